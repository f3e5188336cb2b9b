//! Whether the key that a guest shows is the pinned one.
//!
//! Pure. Pinned at first contact, refused when it changed, accepted anew only by a person. Knows nothing of where pinned
//! keys are kept.

use crate::access::HostKey;
use crate::channel::{ChannelError, FailureKind, Hop};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PublicKey};

/// A key that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKeySeen {
    /// The key.
    pub key: HostKey,
    /// True where none was pinned before: the caller pins it now.
    pub first_contact: bool,
}

/// The key as it is pinned and shown.
pub fn describe(key: &PublicKey) -> HostKey {
    HostKey {
        algorithm: key.algorithm().to_string(),
        fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
        public_key: key.to_openssh().unwrap_or_default(),
    }
}

/// Accepts `shown` where it is pinned, or where nothing is.
pub fn check(vm_name: &str, guest: &str, pinned: &[HostKey], shown: HostKey) -> Result<HostKeySeen, ChannelError> {
    if pinned.is_empty() {
        return Ok(HostKeySeen { key: shown, first_contact: true });
    }
    if pinned.iter().any(|key| key.fingerprint == shown.fingerprint) {
        return Ok(HostKeySeen { key: shown, first_contact: false });
    }
    let known = pinned.iter().map(|k| format!("{} {}", k.algorithm, k.fingerprint)).collect::<Vec<_>>().join(" or ");
    let error = ChannelError::new(
        Hop::HostKey,
        FailureKind::HostKey,
        format!(
            "{guest} shows another host key than the pinned one: {} {} instead of {known}; nothing was sent to it",
            shown.algorithm, shown.fingerprint
        ),
        format!(
            "if {vm_name} was reinstalled or its keys were renewed, compare the fingerprint on its console and accept it with `lull vm accept-host-key {vm_name}`; if not, somebody else answers at its address"
        ),
    );
    Err(ChannelError { refused_key: Some(Box::new(shown)), ..error })
}

/// Host key algorithms in the order to ask for them: those of the pinned keys first, so that a guest with several keys
/// shows the one that we know. Keys of SHA-1 are never asked for.
pub fn algorithms(pinned: &[HostKey]) -> Vec<Algorithm> {
    let mut all = vec![
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    let is_pinned = |algorithm: &Algorithm| {
        pinned.iter().any(|key| match algorithm {
            Algorithm::Rsa { .. } => key.algorithm == "ssh-rsa" || key.algorithm.starts_with("rsa-"),
            other => key.algorithm == other.as_str(),
        })
    };
    all.sort_by_key(|algorithm| !is_pinned(algorithm));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(algorithm: &str, fingerprint: &str) -> HostKey {
        HostKey { algorithm: algorithm.into(), fingerprint: fingerprint.into(), public_key: String::new() }
    }

    #[test]
    fn the_first_key_is_reported_and_the_same_one_accepted() {
        let shown = key("ssh-ed25519", "SHA256:a");
        assert!(check("db1", "db1:22", &[], shown.clone()).unwrap().first_contact);
        assert!(!check("db1", "db1:22", std::slice::from_ref(&shown), shown.clone()).unwrap().first_contact);
    }

    #[test]
    fn a_changed_key_names_both_fingerprints_and_the_remedy() {
        let error = check("db1", "db1:22", &[key("ssh-ed25519", "SHA256:old")], key("ssh-ed25519", "SHA256:new"));
        let error = error.unwrap_err();
        assert_eq!(error.kind, FailureKind::HostKey);
        assert!(error.what.contains("SHA256:old") && error.what.contains("SHA256:new"), "{error}");
        assert_eq!(error.refused_key.map(|key| key.fingerprint).as_deref(), Some("SHA256:new"));
        assert!(error.remedy.contains("lull vm accept-host-key db1"), "{}", error.remedy);
    }

    #[test]
    fn the_pinned_key_s_algorithm_is_asked_for_first() {
        let first = |pinned: &[HostKey]| algorithms(pinned)[0].as_str().to_string();
        assert_eq!(first(&[]), "ssh-ed25519");
        assert_eq!(first(&[key("ecdsa-sha2-nistp256", "SHA256:a")]), "ecdsa-sha2-nistp256");
        assert_eq!(first(&[key("ssh-rsa", "SHA256:a")]), "rsa-sha2-512");
        assert_eq!(algorithms(&[key("ssh-rsa", "SHA256:a")]).len(), 6);
    }
}
