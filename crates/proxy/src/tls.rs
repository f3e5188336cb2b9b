//! TLS to the backup server: version 1.3, and nobody but the server whose authority is known. Of the clock nothing is asked: a proxy
//! whose clock is wrong reaches its server all the same. Knows nothing of what is said over it.

use lull_proxy_wire::SERVER_NAME;
use lull_proxy_wire::certificate::within_its_time;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// What the server is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Its authority's certificate, DER.
    Authority(Vec<u8>),
    /// SHA-256 of that, as a join token has it: the server shows the certificate itself.
    Fingerprint([u8; 32]),
}

/// For a machine that joins: it shows no certificate.
pub fn to_join(known: Known, alpn: &[u8]) -> Result<Arc<ClientConfig>, Error> {
    let (provider, verifier) = verifier(known);
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

/// For a proxy, which shows this certificate.
pub fn as_proxy(known: Known, alpn: &[u8], certificate: &[u8], key_pkcs8: &[u8]) -> Result<Arc<ClientConfig>, Error> {
    let (provider, verifier) = verifier(known);
    let chain = vec![CertificateDer::from(certificate.to_vec())];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key_pkcs8.to_vec()));
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config =
        builder.dangerous().with_custom_certificate_verifier(verifier).with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name that the server's certificate has, wherever it is reached.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("the name is a DNS name, and a test reads it")
}

fn verifier(known: Known) -> (Arc<CryptoProvider>, Arc<OneServer>) {
    let provider = Arc::new(default_provider());
    (provider.clone(), Arc::new(OneServer { known, provider }))
}

/// Takes the one server's certificate, at whatever time.
#[derive(Debug)]
struct OneServer {
    known: Known,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OneServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = match &self.known {
            Known::Authority(der) => CertificateDer::from(der.as_slice()),
            Known::Fingerprint(expected) => intermediates
                .iter()
                .find(|shown| Sha256::digest(shown)[..] == expected[..])
                .cloned()
                .ok_or(CertificateError::UnknownIssuer)?,
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, name, ocsp, moment(end_entity, now)?)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The moment nearest to now at which the certificate is good.
fn moment(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<UnixTime, Error> {
    let second = within_its_time(certificate, now.as_secs()).ok_or(CertificateError::BadEncoding)?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(second)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_servers_name_is_one() {
        assert_eq!(super::server_name().to_str(), lull_proxy_wire::SERVER_NAME);
    }
}
