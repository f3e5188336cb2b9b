//! TLS on the port for proxies: version 1.3, a certificate of the authority's from proxies, none from who joins. Whether an old
//! certificate still admits somebody is not decided here: it is only made sure that the authority signed it.

use super::{Authority, TrustError};
use jiff::Timestamp;
use lull_proxy_wire::certificate::within_its_time;
use lull_proxy_wire::{ALPN_JOIN, ALPN_PROXY};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use std::sync::Arc;
use std::time::Duration;

/// For the listener.
pub fn config(authority: &Authority, now: Timestamp) -> Result<Arc<ServerConfig>, TrustError> {
    let provider = Arc::new(default_provider());
    let (chain, key) = authority.of_listener(now)?;
    let verifier = Arc::new(OfTheAuthority::new(authority.certificate(), provider.clone())?);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN_PROXY.to_vec(), ALPN_JOIN.to_vec()];
    // A proxy comes back seldom, and each time it is looked up anew.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Admits certificates of the authority, whatever their age.
#[derive(Debug)]
struct OfTheAuthority(Arc<dyn ClientCertVerifier>);

impl OfTheAuthority {
    fn new(authority: &CertificateDer<'static>, provider: Arc<CryptoProvider>) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(OfTheAuthority(verifier))
    }
}

impl ClientCertVerifier for OfTheAuthority {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.verify_client_cert(end_entity, intermediates, moment(end_entity, now)?)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The moment nearest to now at which the certificate is good.
fn moment(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<UnixTime, Error> {
    let second = within_its_time(certificate, now.as_secs()).ok_or(CertificateError::BadEncoding)?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(second)))
}
