//! The language between the backup server and a guest interaction proxy: gRPC, generated from `proto/proxy.proto`,
//! which is where it is explained.
//!
//! Knows nothing of how a connection comes to be, nor of what the calls do. Credentials pass through here: the
//! messages that hold secrets print none of them.

use std::fmt;

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
    }
}
