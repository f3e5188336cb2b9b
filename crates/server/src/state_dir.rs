//! The state folder: who may read it, which one server uses it, and the two small secret files in it. Knows nothing of
//! what they protect.

use rand::TryRngCore;
use rand::rngs::OsRng;
use secrecy::SecretString;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Longest of the small files, in bytes; longer ones are damaged.
const SMALL_FILE_BYTES_MAX: u64 = 4096;
/// Randomness of a token and of the key, in bytes.
const SECRET_BYTES: usize = 32;

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Reading or writing failed.
    #[error("the state folder cannot be used: {doing} {path} failed")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Another server uses it.
    #[error("another backup server uses the state folder {path}; stop it, or give this one another --state-dir")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Others may look into it.
    #[error("{path} is open to other users (mode {mode:o}) and holds secrets; close it: chmod {wanted:o} {path}")]
    TooOpen {
        /// The folder or file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it must have.
        wanted: u32,
    },
    /// A file in it is not what it must be.
    #[error("{path} is damaged: {what}; {remedy}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// A state folder that belongs to this process for as long as the value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Creates the folder (mode 0700) where it is missing, and locks it. A folder with content that others may look
    /// into is refused, not closed: it may be somebody else's.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let io = |doing| {
            let path = path.to_path_buf();
            move |source| StateDirError::Io { doing, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("creating"))?;
        let mode = path.metadata().map_err(io("looking at"))?.mode() & 0o777;
        if mode & 0o077 != 0 {
            let empty = path.read_dir().map_err(io("listing"))?.next().is_none();
            if !empty {
                return Err(StateDirError::TooOpen { path: path.to_path_buf(), mode, wanted: 0o700 });
            }
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(io("closing"))?;
        }
        let path = path.canonicalize().map_err(io("resolving"))?;
        let lock_path = path.join("lull.lock");
        let lock_io = |doing| {
            let path = lock_path.clone();
            move |source| StateDirError::Io { doing, path, source }
        };
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(lock_io("opening"))?;
        match lock.try_lock() {
            Ok(()) => Ok(StateDir { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateDirError::InUse { path }),
            Err(TryLockError::Error(source)) => Err(lock_io("locking")(source)),
        }
    }

    /// The folder, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.path.join("lull.db")
    }

    /// The bearer token's file.
    pub fn token_file(&self) -> PathBuf {
        self.path.join("admin-token")
    }

    /// The bearer token; made at the first call.
    pub fn token(&self) -> Result<SecretString, StateDirError> {
        let path = self.token_file();
        let text = match read_secret(&path)? {
            Some(text) => text,
            None => write_secret(&path)?,
        };
        let token = text.trim();
        if token.len() < 2 * SECRET_BYTES || !token.bytes().all(|b| b.is_ascii_graphic()) {
            let what = format!("it must hold one word of at least {} characters", 2 * SECRET_BYTES);
            return Err(StateDirError::Damaged {
                path,
                what,
                remedy: "remove it, and the server makes a new one at its next start",
            });
        }
        Ok(SecretString::from(token.to_string()))
    }

    /// The key that protects stored secrets; `None` where there is none yet.
    pub fn secret_key(&self) -> Result<Option<[u8; SECRET_BYTES]>, StateDirError> {
        let path = self.path.join("secret.key");
        let Some(text) = read_secret(&path)? else { return Ok(None) };
        let key = from_hex(text.trim()).ok_or_else(|| StateDirError::Damaged {
            path,
            what: format!("it must hold {} hexadecimal digits", 2 * SECRET_BYTES),
            remedy: "put back a copy of it: without the key, stored passwords and private keys cannot be read",
        })?;
        Ok(Some(key))
    }

    /// Makes the key. It is on disk when this returns.
    pub fn make_secret_key(&self) -> Result<[u8; SECRET_BYTES], StateDirError> {
        let path = self.path.join("secret.key");
        let text = write_secret(&path)?;
        from_hex(text.trim()).ok_or_else(|| StateDirError::Damaged {
            path,
            what: "it changed while it was written".into(),
            remedy: "start the server again",
        })
    }
}

/// The text of a small file that only its owner may read.
fn read_secret(path: &Path) -> Result<Option<String>, StateDirError> {
    let io = |doing| move |source| StateDirError::Io { doing, path: path.to_path_buf(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("opening")(error)),
    };
    let mode = file.metadata().map_err(io("looking at"))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateDirError::TooOpen { path: path.to_path_buf(), mode, wanted: 0o600 });
    }
    let mut bytes = Vec::new();
    file.take(SMALL_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(io("reading"))?;
    // Bytes that are no text fail the caller's check of the content, which names the file and the remedy.
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Writes fresh randomness into a new file that appears under its name only when it is whole and on disk.
fn write_secret(path: &Path) -> Result<String, StateDirError> {
    let io = |doing| move |source| StateDirError::Io { doing, path: path.to_path_buf(), source };
    let mut bytes = [0; SECRET_BYTES];
    OsRng.try_fill_bytes(&mut bytes).map_err(|e| io("making randomness for")(io::Error::other(e)))?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let unfinished = path.with_extension("unfinished");
    // Left by a server that was killed right here; nobody else has the lock.
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("clearing")(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished).map_err(io("creating"))?;
    file.write_all(format!("{text}\n").as_bytes()).map_err(io("writing"))?;
    file.sync_all().map_err(io("writing"))?;
    std::fs::rename(&unfinished, path).map_err(io("naming"))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("writing the folder of"))?;
    Ok(text)
}

fn from_hex(text: &str) -> Option<[u8; SECRET_BYTES]> {
    if text.len() != 2 * SECRET_BYTES || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; SECRET_BYTES];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn a_new_folder_is_closed_and_belongs_to_one_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        assert!(matches!(StateDir::open(&path), Err(StateDirError::InUse { .. })));
        drop(state);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = StateDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
        assert_eq!(dir.path().metadata().unwrap().mode() & 0o777, 0o755);
    }

    #[test]
    fn token_and_key_stay_the_same_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let token = state.token().unwrap();
        assert_eq!(state.token().unwrap().expose_secret(), token.expose_secret());
        assert_eq!(state.secret_key().unwrap(), None);
        let key = state.make_secret_key().unwrap();
        assert_eq!(state.secret_key().unwrap(), Some(key));
        for file in ["secret.key", "admin-token"] {
            assert_eq!(dir.path().join(file).metadata().unwrap().mode() & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn damaged_files_name_themselves_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.make_secret_key().unwrap();
        state.token().unwrap();
        for content in [&b""[..], b"zz", b"\xff\xfe", &[b'0'; 5000]] {
            std::fs::write(dir.path().join("secret.key"), content).unwrap();
            let error = state.secret_key().unwrap_err().to_string();
            assert!(error.contains("secret.key is damaged") && error.contains("put back a copy"), "{error}");
        }
        std::fs::write(dir.path().join("admin-token"), "short").unwrap();
        let error = state.token().unwrap_err().to_string();
        assert!(error.contains("admin-token is damaged") && error.contains("remove it"), "{error}");
        std::fs::set_permissions(dir.path().join("admin-token"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = state.token().unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }
}
