//! The language between the backup server and a guest interaction proxy: gRPC, generated from `proto/proxy.proto`,
//! which is where it is explained.
//!
//! Knows nothing of how a connection comes to be, nor of what the calls do. Credentials pass through here: the
//! messages that hold secrets print none of them.

use std::fmt;

pub mod certificate;
pub mod token;

/// Of this protocol: what it can say. One apart works; see [`fits`].
pub const GENERATION: u32 = 1;
/// Port on which the backup server waits for proxies.
pub const PORT: u16 = 7421;
/// TLS application protocol of a machine that wants to become a proxy: it shows no certificate.
pub const ALPN_JOIN: &[u8] = b"lull-join/1";
/// TLS application protocol of a proxy: it shows its certificate and serves [`v1::proxy_server::Proxy`] on the connection.
pub const ALPN_PROXY: &[u8] = b"lull-proxy/1";
/// The name in the backup server's certificate, wherever it is reached. Never resolved.
pub const SERVER_NAME: &str = "backup-server.lull.invalid";

/// Whether two sides of these generations of the protocol understand each other.
pub fn fits(ours: u32, theirs: u32) -> bool {
    ours.abs_diff(theirs) <= 1
}

/// Everything that the protocol defines.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("lull.proxy.v1");
}

impl fmt::Debug for v1::Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("name", &self.name).field("user", &self.user).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::Elevation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elevation").field("method", &self.method()).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::InstallProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstallProxy").field("repair", &self.repair).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::v1::{Credential, Elevation, GuestTarget, PrivateKey, credential::Login};

    #[test]
    fn no_secret_is_ever_printed() {
        let key = PrivateKey { pem: "s3cret-pem".into(), passphrase: "s3cret-phrase".into() };
        let mut credential = Credential {
            user: "root".into(),
            login: Some(Login::PrivateKey(key)),
            elevation: Some(Elevation { method: 1, password: "s3cret-sudo".into() }),
            ..Default::default()
        };
        let mut target = GuestTarget { credential: Some(credential.clone()), ..Default::default() };
        assert!(!format!("{target:?}").contains("s3cret"));
        credential.login = Some(Login::Password("s3cret-password".into()));
        target.credential = Some(credential);
        let printed = format!("{target:?}");
        assert!(printed.contains("root") && !printed.contains("s3cret"), "{printed}");
        let install = super::v1::InstallProxy { token: "s3cret-token".into(), repair: false };
        assert!(!format!("{install:?}").contains("s3cret"));
    }
}
