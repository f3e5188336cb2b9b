//! Whom the server trusts on its port for proxies, and how they get to be trusted: an authority of its own, and what a
//! certificate says. Knows neither sockets nor who is revoked; docs/decisions/0009-how-proxies-and-server-trust-each-other.md argues it.

use crate::secrets::{SecretError, Secrets};
use crate::store::{Store, StoreError};
use jiff::{SignedDuration, Timestamp};
use lull_proxy_wire::SERVER_NAME;
use lull_proxy_wire::token::{hex, unhex};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use uuid::Uuid;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

pub mod tls;

/// A proxy's certificate is good for so long.
pub const CERTIFICATE_LIFE: SignedDuration = SignedDuration::from_hours(24);
/// One that is older admits its proxy for renewing, for so long.
pub const RENEWABLE_AFTER: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Certificates are dated back, for clocks that are behind.
const DATED_BACK: SignedDuration = SignedDuration::from_hours(48);
/// The authority's, and that of the listener, which is made anew at each start.
const LONG_LIFE: SignedDuration = SignedDuration::from_hours(20 * 365 * 24);
/// A proxy's name in its certificate: the id of its managed server before this.
const PROXY_SUFFIX: &str = ".proxy.lull.invalid";

const META_CERTIFICATE: &str = "authority-certificate";
const META_KEY: &str = "authority-key";
const SEALED_AS: &str = "authority's key";

/// Why certificates cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// What is stored does not open.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// It could not be stored or read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored authority is not one.
    #[error(
        "the server's certificate authority in lull.db is damaged ({what}); put back a copy of lull.db, or start with a new \
         --state-dir and have every proxy join again"
    )]
    Damaged {
        /// What is wrong with it.
        what: String,
    },
    /// A certificate could not be made.
    #[error("a certificate could not be made")]
    Make(#[from] rcgen::Error),
    /// A request or certificate of somebody else's is not one.
    #[error("this is not a {what} that can be read")]
    Unreadable {
        /// What it should be.
        what: &'static str,
    },
    /// TLS does not take it.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// SHA-256 of a public key (SubjectPublicKeyInfo, DER).
pub type KeyHash = [u8; 32];

/// What a proxy's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// The managed server.
    pub server: Uuid,
    /// Its key.
    pub key: KeyHash,
    /// Until when it is good.
    pub until: Timestamp,
}

/// The server's certificate authority.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The stored one; made at the first call.
    pub async fn open(store: &Store, secrets: &Secrets, now: Timestamp) -> Result<Self, TrustError> {
        let damaged = |what: &str| TrustError::Damaged { what: what.into() };
        let (certificate, key) = match (store.meta(META_CERTIFICATE).await?, store.meta(META_KEY).await?) {
            (Some(certificate), Some(sealed)) => {
                let key = secrets.open(Uuid::nil(), SEALED_AS, &sealed)?;
                let der = unhex(key.expose_secret()).ok_or_else(|| damaged("its key is no number"))?;
                let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(der)).map_err(|e| damaged(&e.to_string()))?;
                (CertificateDer::from(certificate), key)
            }
            // Half of it is what a kill between the two writes leaves: nobody was ever told of it.
            _ => {
                let key = KeyPair::generate()?;
                let certificate = authority_parameters(now).self_signed(&key)?.der().clone();
                let sealed = SecretString::from(hex(key.serialized_der()));
                store.set_meta(META_KEY, &secrets.seal(Uuid::nil(), SEALED_AS, &sealed)?).await?;
                store.set_meta(META_CERTIFICATE, &certificate).await?;
                (certificate, key)
            }
        };
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| damaged(&e.to_string()))?;
        Ok(Authority { certificate, issuer })
    }

    /// Its own certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What join tokens name it by: SHA-256 of its certificate.
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.certificate)
    }

    /// For the listener: its certificate with the authority's behind it, and its key.
    pub fn of_listener(
        &self,
        now: Timestamp,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TrustError> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(vec![SERVER_NAME.to_string()])?;
        valid(&mut parameters, now, LONG_LIFE);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = parameters.signed_by(&key, &self.issuer)?.der().clone();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((vec![certificate, self.certificate.clone()], key.into()))
    }

    /// A certificate for the key of a request, for this managed server. Nothing else of the request counts.
    pub fn certify(&self, request: &[u8], server: Uuid, now: Timestamp) -> Result<Vec<u8>, TrustError> {
        let unreadable = |_| TrustError::Unreadable { what: "request for a certificate" };
        let request = CertificateSigningRequestDer::from(request);
        let mut request = CertificateSigningRequestParams::from_der(&request).map_err(unreadable)?;
        let mut parameters = CertificateParams::new(vec![format!("{server}{PROXY_SUFFIX}")])?;
        valid(&mut parameters, now, CERTIFICATE_LIFE);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request.params = parameters;
        Ok(request.signed_by(&self.issuer)?.der().to_vec())
    }
}

fn authority_parameters(now: Timestamp) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, "Lull backup server");
    valid(&mut parameters, now, LONG_LIFE);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    parameters
}

fn valid(parameters: &mut CertificateParams, now: Timestamp, life: SignedDuration) {
    // Certificates know years up to 9999; a clock that is further off makes none that anybody takes.
    let at = |moment: Timestamp| {
        OffsetDateTime::from_unix_timestamp(moment.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    };
    parameters.not_before = at(now.saturating_sub(DATED_BACK).unwrap_or(now));
    parameters.not_after = at(now.saturating_add(life).unwrap_or(now));
}

/// What a proxy's certificate says. Whether it is to be believed was asked before, by TLS.
pub fn read(certificate: &[u8]) -> Result<Presented, TrustError> {
    let unreadable = || TrustError::Unreadable { what: "certificate of a proxy" };
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unreadable())?;
    let names = parsed.subject_alternative_name().map_err(|_| unreadable())?.ok_or_else(unreadable)?;
    let server = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => name.strip_suffix(PROXY_SUFFIX)?.parse().ok(),
        _ => None,
    });
    let until = Timestamp::from_second(parsed.validity().not_after.timestamp()).map_err(|_| unreadable())?;
    Ok(Presented { server: server.ok_or_else(unreadable)?, key: sha256(parsed.public_key().raw), until })
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}
