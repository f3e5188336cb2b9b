//! How a guest is to be reached: addresses, login, elevation, pinned keys; read from an order and checked.
//!
//! Secrets live here, in memory, and are never printed. Knows nothing of how a login is done.

use lull_proxy_wire::v1;
use secrecy::SecretString;

/// Everything that a channel needs to enter one guest.
#[derive(Debug, Clone)]
pub struct GuestAccess {
    /// The VM's name, for people and for the commands that an error proposes.
    pub vm_name: String,
    /// Tried in this order.
    pub endpoints: Vec<Endpoint>,
    /// The credential's name, for people.
    pub credential: String,
    /// The account in the guest.
    pub user: String,
    /// How the account proves itself.
    pub login: Login,
    /// How the account becomes root.
    pub elevation: Elevation,
    /// Keys that the guest may have; empty at first contact.
    pub host_keys: Vec<HostKey>,
}

/// A host name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// How an account proves itself.
#[derive(Debug, Clone)]
pub enum Login {
    /// By a password.
    Password(SecretString),
    /// By a private key.
    PrivateKey {
        /// In any of the usual text formats.
        pem: SecretString,
        /// What it is encrypted with, if it is.
        passphrase: Option<SecretString>,
    },
}

/// How an account becomes root.
#[derive(Debug, Clone)]
pub enum Elevation {
    /// It is root.
    None,
    /// `sudo`, with the account's password or (none) without.
    Sudo(Option<SecretString>),
    /// `su`, with root's password.
    Su(SecretString),
}

/// A host key as it is pinned and reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey {
    /// `ssh-ed25519`, …
    pub algorithm: String,
    /// `SHA256:…`
    pub fingerprint: String,
    /// One line as in `known_hosts`, without the host.
    pub public_key: String,
}

/// Why an order cannot be carried out as it stands.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct BadOrder(pub String);

impl GuestAccess {
    /// Reads and checks a guest target. Errors name the field.
    pub fn from_wire(vm_name: &str, target: v1::GuestTarget) -> Result<Self, BadOrder> {
        let bad = |what: &str| BadOrder(format!("the order for VM {vm_name} {what}"));
        let endpoints = target
            .endpoints
            .into_iter()
            .map(|e| match u16::try_from(e.port) {
                Ok(port @ 1..) if !e.host.is_empty() => Ok(Endpoint { host: e.host, port }),
                _ => Err(bad(&format!("names an address that cannot be: \"{}\" port {}", e.host, e.port))),
            })
            .collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(bad("names no address of the guest: set one with `lull vm set VM --address IP`"));
        }
        let credential =
            target.credential.ok_or_else(|| bad("names no credential: `lull vm set VM --credential C`"))?;
        if credential.user.is_empty() {
            return Err(bad("names a credential without a user"));
        }
        let login = match credential.login {
            Some(v1::credential::Login::Password(password)) => Login::Password(password.into()),
            Some(v1::credential::Login::PrivateKey(key)) => {
                Login::PrivateKey { pem: key.pem.into(), passphrase: secret(key.passphrase) }
            }
            None => return Err(bad("names a credential with neither password nor key")),
        };
        let elevation = credential.elevation.unwrap_or_default();
        let method = elevation.method();
        let elevation = match (method, secret(elevation.password)) {
            (v1::elevation::Method::None, _) => Elevation::None,
            (v1::elevation::Method::Sudo, password) => Elevation::Sudo(password),
            (v1::elevation::Method::Su, Some(password)) => Elevation::Su(password),
            (v1::elevation::Method::Su, None) => return Err(bad("elevates by su without root's password")),
        };
        Ok(GuestAccess {
            vm_name: vm_name.into(),
            endpoints,
            credential: credential.name,
            user: credential.user,
            login,
            elevation,
            host_keys: target.host_keys.into_iter().map(HostKey::from).collect(),
        })
    }
}

fn secret(text: String) -> Option<SecretString> {
    (!text.is_empty()).then(|| text.into())
}

impl From<v1::HostKey> for HostKey {
    fn from(key: v1::HostKey) -> Self {
        HostKey { algorithm: key.algorithm, fingerprint: key.fingerprint, public_key: key.public_key }
    }
}

impl From<HostKey> for v1::HostKey {
    fn from(key: HostKey) -> Self {
        v1::HostKey { algorithm: key.algorithm, fingerprint: key.fingerprint, public_key: key.public_key }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> v1::GuestTarget {
        v1::GuestTarget {
            endpoints: vec![v1::Endpoint { host: "192.0.2.7".into(), port: 22 }],
            credential: Some(v1::Credential {
                name: "linux".into(),
                user: "backup".into(),
                login: Some(v1::credential::Login::Password("s3cret".into())),
                elevation: Some(v1::Elevation { method: 1, password: "s3cret".into() }),
                ..Default::default()
            }),
            host_keys: vec![],
        }
    }

    #[test]
    fn an_order_is_read_and_never_prints_its_secrets() {
        let access = GuestAccess::from_wire("db1", target()).unwrap();
        assert_eq!(access.endpoints[0].to_string(), "192.0.2.7:22");
        assert!(!format!("{access:?}").contains("s3cret"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let check = |change: fn(&mut v1::GuestTarget), expect: &str| {
            let mut target = target();
            change(&mut target);
            let error = GuestAccess::from_wire("db1", target).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(|t| t.endpoints.clear(), "no address");
        check(|t| t.endpoints[0].port = 70_000, "\"192.0.2.7\" port 70000");
        check(|t| t.credential = None, "no credential");
        check(|t| t.credential.as_mut().unwrap().login = None, "neither password nor key");
        check(
            |t| t.credential.as_mut().unwrap().elevation = Some(v1::Elevation { method: 2, password: String::new() }),
            "su without",
        );
    }
}
