//! What makes this machine a proxy of one backup server: key, certificate, the server's authority and its address, in one file that
//! only its owner reads. Makes keys and keeps what comes back; knows nothing of connections.

use lull_proxy_wire::token::{hex, unhex};
use rcgen::{CertificateParams, KeyPair};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// In the state folder.
const FOLDER: &str = "proxy";
const FILE: &str = "identity.json";

/// Why there is no identity to work with.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// It never joined.
    #[error(
        "this machine has not joined a backup server: there is no {path}; make a token on the server (`lull proxy token`) and run `lull proxy join` here"
    )]
    None {
        /// The file that is missing.
        path: PathBuf,
    },
    /// It did.
    #[error("this machine is the proxy {name} of {server} already ({path}); to join again, add --replace")]
    Already {
        /// Name of its managed server.
        name: String,
        /// The backup server's address.
        server: String,
        /// The file.
        path: PathBuf,
    },
    /// Others may read the key.
    #[error("{path} holds the proxy's key and is open to other users (mode {mode:o}); close it: chmod 600 {path}")]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is not what was written.
    #[error("{path} is damaged ({what}); join again: lull proxy join --replace")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Reading or writing failed.
    #[error("{doing} {path} failed")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// No key could be made.
    #[error("a key could not be made")]
    Key(#[from] rcgen::Error),
}

/// Who this proxy is. `Debug` hides the key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Id of its managed server.
    pub server_id: String,
    /// Name of its managed server.
    pub name: String,
    /// `HOST:PORT` of the backup server.
    pub server: String,
    /// PKCS #8, DER, hexadecimal, as the two below.
    key: String,
    certificate: String,
    authority: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).field("server", &self.server).finish_non_exhaustive()
    }
}

/// A key that waits for its certificate, and the request for it.
pub struct NewKey {
    key: KeyPair,
    /// PKCS #10, DER.
    pub request: Vec<u8>,
}

impl NewKey {
    /// Makes one.
    pub fn make() -> Result<NewKey, MembershipError> {
        let key = KeyPair::generate()?;
        // The server says what the certificate says; of the request only the key counts.
        let request = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        Ok(NewKey { key, request })
    }

    /// With its certificate it is an identity.
    pub fn certified(
        &self,
        server_id: &str,
        name: &str,
        server: &str,
        certificate: &[u8],
        authority: &[u8],
    ) -> Identity {
        Identity {
            server_id: server_id.into(),
            name: name.into(),
            server: server.into(),
            key: hex(self.key.serialized_der()),
            certificate: hex(certificate),
            authority: hex(authority),
        }
    }
}

impl Identity {
    /// The same with the backup server at another address, `HOST:PORT`.
    pub fn at(self, server: &str) -> Identity {
        Identity { server: server.into(), ..self }
    }

    /// Certificate, key (PKCS #8) and the server's authority, DER.
    pub fn parts(&self) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
        Some((unhex(&self.certificate)?, unhex(&self.key)?, unhex(&self.authority)?))
    }
}

/// A sentence with which the server did without us, and whether coming again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dismissed {
    /// For people.
    pub why: String,
    /// Coming again changes nothing.
    pub for_good: bool,
}

/// The identity in its file, and what the server says of it.
#[derive(Debug)]
pub struct Membership {
    path: PathBuf,
    identity: Mutex<Identity>,
    waiting: Mutex<Option<NewKey>>,
    dismissed: watch::Sender<Option<Dismissed>>,
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").finish_non_exhaustive()
    }
}

/// The file in a state folder.
pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join(FOLDER).join(FILE)
}

impl Membership {
    /// Reads it.
    pub fn open(state_dir: &Path) -> Result<Self, MembershipError> {
        let path = file(state_dir);
        let identity = read(&path)?;
        let (dismissed, waiting) = (watch::Sender::new(None), Mutex::default());
        Ok(Membership { path, identity: Mutex::new(identity), waiting, dismissed })
    }

    /// Who this proxy is now.
    pub fn identity(&self) -> Identity {
        locked(&self.identity).clone()
    }

    /// A new key, and the request to certify it. The old one counts until [`Membership::install`].
    pub fn renew(&self) -> Result<Vec<u8>, MembershipError> {
        let new = NewKey::make()?;
        let request = new.request.clone();
        *locked(&self.waiting) = Some(new);
        Ok(request)
    }

    /// The certificate for the last request: written down, then used from the next connection on. `Ok(false)`: there was no request.
    pub fn install(&self, certificate: &[u8], authority: &[u8]) -> Result<bool, MembershipError> {
        let Some(new) = locked(&self.waiting).take() else { return Ok(false) };
        let mut identity = locked(&self.identity);
        let renewed = new.certified(&identity.server_id, &identity.name, &identity.server, certificate, authority);
        write(&self.path, &renewed)?;
        *identity = renewed;
        Ok(true)
    }

    /// The server does without this connection.
    pub fn dismiss(&self, dismissed: Dismissed) {
        self.dismissed.send_replace(Some(dismissed));
    }

    /// What it said last, which is then forgotten.
    pub fn take_dismissal(&self) -> Option<Dismissed> {
        self.dismissed.send_replace(None)
    }
}

/// Writes an identity down; `replace` an earlier one only where that is wanted.
pub fn save(state_dir: &Path, identity: &Identity, replace: bool) -> Result<PathBuf, MembershipError> {
    check_free(state_dir, replace)?;
    let path = file(state_dir);
    write(&path, identity)?;
    Ok(path)
}

/// Whether an identity may be written here: asked before a token is used up.
pub fn check_free(state_dir: &Path, replace: bool) -> Result<(), MembershipError> {
    let path = file(state_dir);
    let folder = path.parent().unwrap_or(state_dir);
    let io = |source| MembershipError::Io { doing: "creating", path: folder.to_path_buf(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
    match read(&path) {
        Ok(Identity { name, server, .. }) if !replace => Err(MembershipError::Already { name, server, path }),
        Ok(_) | Err(MembershipError::None { .. }) => Ok(()),
        Err(_) if replace => Ok(()),
        Err(error) => Err(error),
    }
}

fn read(path: &Path) -> Result<Identity, MembershipError> {
    let io = |source| MembershipError::Io { doing: "reading", path: path.to_path_buf(), source };
    let damaged = |what: String| MembershipError::Damaged { path: path.to_path_buf(), what };
    let mode = match path.metadata() {
        Ok(metadata) => metadata.mode() & 0o777,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MembershipError::None { path: path.to_path_buf() });
        }
        Err(error) => return Err(io(error)),
    };
    if mode & 0o077 != 0 {
        return Err(MembershipError::TooOpen { path: path.to_path_buf(), mode });
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    let identity: Identity = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    identity.parts().ok_or_else(|| damaged("its key or certificate is no number".into()))?;
    Ok(identity)
}

/// The old content or the new one is there, whenever the power goes.
fn write(path: &Path, identity: &Identity) -> Result<(), MembershipError> {
    let io = |doing| move |source| MembershipError::Io { doing, path: path.to_path_buf(), source };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let new = path.with_extension("new");
    let text = serde_json::to_string_pretty(identity).unwrap_or_default();
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(io("writing"))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io("writing"))?;
    std::fs::rename(&new, path).map_err(io("replacing"))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("storing"))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_identity_is_kept_closed_and_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Membership::open(dir.path()), Err(MembershipError::None { .. })));
        let key = NewKey::make().unwrap();
        let identity = key.certified("id", "p1", "server:7421", b"cert", b"ca");
        let path = save(dir.path(), &identity, false).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert!(matches!(check_free(dir.path(), false), Err(MembershipError::Already { .. })));
        check_free(dir.path(), true).unwrap();

        let membership = Membership::open(dir.path()).unwrap();
        assert!(!membership.install(b"other", b"ca").unwrap(), "nothing was asked for");
        membership.renew().unwrap();
        assert_eq!(membership.identity(), identity, "the old key counts");
        assert!(membership.install(b"other", b"ca").unwrap());
        let renewed = Membership::open(dir.path()).unwrap().identity();
        assert_eq!(renewed, membership.identity());
        assert_ne!(renewed.parts().unwrap().1, identity.parts().unwrap().1, "the key is new");
        assert!(!format!("{renewed:?}").contains(&renewed.key));

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Membership::open(dir.path()), Err(MembershipError::TooOpen { .. })));
    }

    /// A disk without room refuses the new file, as this one does, of which there is a folder already.
    #[test]
    fn a_proxy_that_cannot_keep_a_new_identity_keeps_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let identity = NewKey::make().unwrap().certified("id", "p1", "server:7421", b"cert", b"ca");
        let path = save(dir.path(), &identity, false).unwrap();
        let membership = Membership::open(dir.path()).unwrap();
        std::fs::create_dir(path.with_extension("new")).unwrap();
        membership.renew().unwrap();
        let error = membership.install(b"other", b"ca").unwrap_err();
        assert!(error.to_string().contains("writing") && error.to_string().contains("identity.json"), "{error}");
        assert_eq!(membership.identity(), identity);
        assert_eq!(Membership::open(dir.path()).unwrap().identity(), identity);
        // With room again, the next renewal succeeds.
        std::fs::remove_dir(path.with_extension("new")).unwrap();
        membership.renew().unwrap();
        assert!(membership.install(b"other", b"ca").unwrap());
    }
}
