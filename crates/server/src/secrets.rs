//! Secrets at rest: sealed with XChaCha20-Poly1305 under the key of the state folder, bound to their owner and field,
//! so that a sealed value moved to another row does not open. Knows no table and prints nothing.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use rand::TryRngCore;
use rand::rngs::OsRng;
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

/// First byte of a sealed value: how it was sealed.
const SEALED_V1: u8 = 1;
const NONCE_BYTES: usize = 24;

/// Why a secret could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The value does not open with this key.
    #[error(
        "{owner}'s {field} cannot be decrypted: secret.key is not the one it was encrypted with, or lull.db is \
         damaged; put back the copy of secret.key that belongs to this lull.db, or enter the secret again"
    )]
    NotOurs {
        /// Whose.
        owner: String,
        /// Which of its secrets.
        field: &'static str,
    },
    /// The key is gone, but there are values that need it.
    #[error(
        "secret.key is missing in {state_dir}, and lull.db holds passwords encrypted with it; put back a copy of \
         secret.key, or give the server a new --state-dir and enter everything again"
    )]
    KeyMissing {
        /// The state folder.
        state_dir: String,
    },
    /// The system gave no randomness, or the value is too long.
    #[error("a secret could not be encrypted: {why}")]
    Seal {
        /// Why.
        why: String,
    },
}

/// Seals and opens.
pub struct Secrets {
    cipher: XChaCha20Poly1305,
}

impl Secrets {
    /// With the key of the state folder.
    pub fn new(key: &[u8; 32]) -> Self {
        Secrets { cipher: XChaCha20Poly1305::new(key.into()) }
    }

    /// Version byte, nonce, ciphertext with tag.
    pub fn seal(&self, owner: Uuid, field: &'static str, secret: &SecretString) -> Result<Vec<u8>, SecretError> {
        let mut nonce = [0; NONCE_BYTES];
        OsRng.try_fill_bytes(&mut nonce).map_err(|e| SecretError::Seal { why: e.to_string() })?;
        let aad = bound_to(owner, field);
        let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: &aad };
        let sealed = self
            .cipher
            .encrypt(XNonce::from_slice(&nonce), payload)
            .map_err(|_| SecretError::Seal { why: "it is too long".into() })?;
        Ok([&[SEALED_V1][..], &nonce, &sealed].concat())
    }

    /// What was sealed for this owner and field.
    pub fn open(&self, owner: Uuid, field: &'static str, sealed: &[u8]) -> Result<SecretString, SecretError> {
        let not_ours = || SecretError::NotOurs { owner: owner.to_string(), field };
        let (version, rest) = sealed.split_first().ok_or_else(not_ours)?;
        if *version != SEALED_V1 || rest.len() < NONCE_BYTES {
            return Err(not_ours());
        }
        let (nonce, message) = rest.split_at(NONCE_BYTES);
        let aad = bound_to(owner, field);
        let payload = Payload { msg: message, aad: &aad };
        let opened = self.cipher.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| not_ours())?;
        String::from_utf8(opened).map(SecretString::from).map_err(|_| not_ours())
    }
}

fn bound_to(owner: Uuid, field: &str) -> Vec<u8> {
    [owner.as_bytes(), field.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_sealed_value_opens_only_where_it_belongs() {
        let secrets = Secrets::new(&[7; 32]);
        let (ours, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let sealed = secrets.seal(ours, "password", &"hunter2".to_string().into()).unwrap();
        assert_eq!(secrets.open(ours, "password", &sealed).unwrap().expose_secret(), "hunter2");
        assert!(secrets.open(other, "password", &sealed).is_err());
        assert!(secrets.open(ours, "passphrase", &sealed).is_err());
        assert!(Secrets::new(&[8; 32]).open(ours, "password", &sealed).is_err());
        assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
    }

    #[test]
    fn the_same_secret_is_sealed_differently_each_time() {
        let secrets = Secrets::new(&[7; 32]);
        let seal = || secrets.seal(Uuid::nil(), "password", &"x".to_string().into()).unwrap();
        assert_ne!(seal(), seal());
    }

    proptest! {
        #[test]
        fn any_damage_is_noticed(text in ".{0,40}", at in 0usize..200, flip in 1u8..) {
            let secrets = Secrets::new(&[9; 32]);
            let mut sealed = secrets.seal(Uuid::nil(), "password", &text.into()).unwrap();
            let at = at % sealed.len();
            sealed[at] ^= flip;
            prop_assert!(secrets.open(Uuid::nil(), "password", &sealed).is_err());
            prop_assert!(secrets.open(Uuid::nil(), "password", &sealed[..at]).is_err());
        }
    }
}
