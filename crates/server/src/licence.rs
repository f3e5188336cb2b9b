//! Licence files: whether one is genuine, whether it holds, and which one is in force. What a licence admits is decided by
//! `lull_engine::licence`; where the file comes from is not known here.
//!
//! Whose signature counts: Lull's own key (`licence/issuer.pub`; its private half is not in the source) and the keys that an administrator
//! put into the state folder, `licence-issuers/NAME.pub`, by hand: there is deliberately no call for it, so that whoever holds only the
//! token cannot make licences.

use crate::store::{Store, StoreError, json};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use lull_api::licence::{FORMAT, LicenceFile, LicenceStatus};
use lull_engine::licence::{Edition, Licence};
use ring::signature::{ED25519, UnparsedPublicKey};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

/// Lull's own issuer, 64 hexadecimal digits.
const OWN_ISSUER: &str = include_str!("licence/issuer.pub");
/// What it is called.
const OWN_ISSUER_NAME: &str = "Lull";
/// Folder of further issuers, in the state folder.
const ISSUERS_DIR: &str = "licence-issuers";
/// Under this name the database keeps the installed licence.
const STORED: &str = "licence";
/// So many days before a licence ends it is said.
const WARNED_DAYS: i64 = 30;
/// Longest id and licensee, in bytes.
const TEXT_BYTES_MAX: usize = 200;

/// Why a licence is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LicenceError {
    /// Not what a licence looks like.
    #[error("the licence is damaged: {what}")]
    Damaged {
        /// What is wrong.
        what: String,
    },
    /// A format of another version.
    #[error("the licence has format {found}, and this version of Lull knows format {FORMAT}")]
    Format {
        /// Its format.
        found: u32,
    },
    /// Nobody whose signature counts here.
    #[error("this server does not know who issued the licence (key {issuer}){passed_over}")]
    UnknownIssuer {
        /// The public key.
        issuer: String,
        /// Keys in the folder that do not count, with the reason.
        passed_over: String,
    },
    /// The content is not what was signed.
    #[error("the licence's signature does not fit its content: it was changed after it was issued, or damaged")]
    Signature,
    /// Too early.
    #[error("the licence is not valid yet: it begins on {from}")]
    NotYet {
        /// First day.
        from: String,
    },
    /// Too late.
    #[error("the licence has expired: its last day was {until}")]
    Expired {
        /// Last day.
        until: String,
    },
}

/// A licence whose form and signature are right.
#[derive(Debug, Clone)]
pub struct Genuine {
    file: LicenceFile,
    rule: Licence,
    issuer: String,
    from: Date,
    until: Date,
}

/// Somebody whose signature counts.
struct Issuer {
    name: String,
    key: Vec<u8>,
}

/// Those whose signatures count, and the files that were passed over.
struct Issuers {
    known: Vec<Issuer>,
    passed_over: Vec<String>,
}

/// What was installed.
#[derive(Debug, Clone)]
enum Held {
    BuiltIn,
    Genuine(Box<Genuine>),
    /// It was genuine when it was installed.
    Unusable(LicenceError),
}

/// The licence in force.
pub struct LicenceBook {
    state_dir: PathBuf,
    held: RwLock<Held>,
}

impl LicenceBook {
    /// The one that is stored, or the built-in one.
    pub async fn open(store: &Store, state_dir: &Path) -> Result<Self, StoreError> {
        let held = match store.meta(STORED).await? {
            None => Held::BuiltIn,
            Some(bytes) => match parsed(&bytes).and_then(|file| examine(&file, state_dir)) {
                Ok(genuine) => Held::Genuine(Box::new(genuine)),
                Err(error) => Held::Unusable(error),
            },
        };
        let book = LicenceBook { state_dir: state_dir.to_path_buf(), held: RwLock::new(held) };
        if let Some(warning) = book.status(Timestamp::now()).warning {
            tracing::warn!(warning, "the licence needs to be looked at");
        }
        Ok(book)
    }

    /// The rule that holds. It stays the same when a licence expires: a backup never stops, and never gets another proxy, because a day is over.
    pub fn in_force(&self) -> Licence {
        match self.held() {
            Held::Genuine(genuine) => genuine.rule,
            Held::BuiltIn | Held::Unusable(_) => Licence::Universal,
        }
    }

    /// Takes a licence, if it is genuine and holds now. On disk when this returns.
    pub async fn install(
        &self,
        store: &Store,
        file: &LicenceFile,
        now: Timestamp,
    ) -> Result<Result<(), LicenceError>, StoreError> {
        let genuine = match examine(file, &self.state_dir).and_then(|genuine| holding(genuine, now)) {
            Ok(genuine) => genuine,
            Err(error) => return Ok(Err(error)),
        };
        store.set_meta(STORED, json(file).as_bytes()).await?;
        self.hold(Held::Genuine(Box::new(genuine)));
        Ok(Ok(()))
    }

    /// The built-in licence holds again; `false` where it did already.
    pub async fn remove(&self, store: &Store) -> Result<bool, StoreError> {
        let was_there = store.remove_meta(STORED).await?;
        self.hold(Held::BuiltIn);
        Ok(was_there)
    }

    /// What can be said of it.
    pub fn status(&self, now: Timestamp) -> LicenceStatus {
        let rule = self.in_force();
        let held = self.held();
        let mut status = LicenceStatus {
            state: "built-in".into(),
            kind: kind(rule).into(),
            edition: None,
            sockets: None,
            id: None,
            licensee: None,
            issuer: None,
            valid_from: None,
            valid_until: None,
            admits_proxies: rule.admits_proxies(),
            meaning: meaning(rule),
            warning: None,
        };
        match held {
            Held::BuiltIn => {}
            Held::Unusable(error) => {
                status.state = "unusable".into();
                status.warning =
                    Some(format!("the installed licence does not count, and the built-in one holds: {error}"));
            }
            Held::Genuine(genuine) => {
                let terms = genuine.file.licence.clone();
                (status.edition, status.sockets) = (terms.edition, terms.sockets);
                (status.id, status.licensee) = (Some(terms.id), Some(terms.licensee));
                (status.valid_from, status.valid_until) = (Some(terms.valid_from), Some(terms.valid_until));
                status.issuer = Some(genuine.issuer.clone());
                (status.state, status.warning) = standing(&genuine, now);
                if let Some(sockets) = status.sockets {
                    status.meaning.push(format!("it is for {sockets} CPU sockets; Lull does not count them"));
                }
                if genuine.issuer != OWN_ISSUER_NAME {
                    let folder = self.state_dir.join(ISSUERS_DIR);
                    status
                        .meaning
                        .push(format!("it was issued by a key of this server's own, in {}", folder.display()));
                }
            }
        }
        status
    }

    fn held(&self) -> Held {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, held: Held) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
    }
}

fn kind(rule: Licence) -> &'static str {
    match rule {
        Licence::Universal => "universal",
        Licence::Socket { .. } => "socket",
    }
}

fn meaning(rule: Licence) -> Vec<String> {
    match rule.choose_disabled_because() {
        None => vec!["every managed server may be a guest interaction proxy, and jobs may prefer servers".into()],
        Some(because) => vec![because, "jobs cannot prefer servers".into()],
    }
}

fn standing(genuine: &Genuine, now: Timestamp) -> (String, Option<String>) {
    let until = &genuine.file.licence.valid_until;
    let left = end_of(genuine.until).duration_since(now);
    if left <= SignedDuration::ZERO {
        let warning = format!(
            "the licence has expired, its last day was {until}; backups go on and its rule stays: install a new one"
        );
        return ("expired".into(), Some(warning));
    }
    if now < start_of(genuine.from) {
        let warning = format!("the licence begins on {} only: see whether this server's clock is right", genuine.from);
        return ("valid".into(), Some(warning));
    }
    let days = left.as_hours() / 24;
    if days < WARNED_DAYS {
        let warning = format!("the licence ends in {days} days, on {until}: install a new one until then");
        return ("expires-soon".into(), Some(warning));
    }
    ("valid".into(), None)
}

/// A licence that is installed must hold now.
fn holding(genuine: Genuine, now: Timestamp) -> Result<Genuine, LicenceError> {
    if now < start_of(genuine.from) {
        return Err(LicenceError::NotYet { from: genuine.from.to_string() });
    }
    if now >= end_of(genuine.until) {
        return Err(LicenceError::Expired { until: genuine.until.to_string() });
    }
    Ok(genuine)
}

fn start_of(day: Date) -> Timestamp {
    day.to_zoned(TimeZone::UTC).map_or(Timestamp::MIN, |start| start.timestamp())
}

/// The last day counts to its end.
fn end_of(day: Date) -> Timestamp {
    day.tomorrow().map_or(Timestamp::MAX, start_of)
}

fn parsed(bytes: &[u8]) -> Result<LicenceFile, LicenceError> {
    serde_json::from_slice(bytes).map_err(|error| LicenceError::Damaged { what: error.to_string() })
}

/// Form and signature, whatever day it is.
fn examine(file: &LicenceFile, state_dir: &Path) -> Result<Genuine, LicenceError> {
    let damaged = |what: String| LicenceError::Damaged { what };
    if file.lull_licence != FORMAT {
        return Err(LicenceError::Format { found: file.lull_licence });
    }
    let terms = &file.licence;
    for (member, text) in [("id", &terms.id), ("licensee", &terms.licensee)] {
        if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(damaged(format!("{member} must have 1 to {TEXT_BYTES_MAX} bytes and no control characters")));
        }
    }
    let signature = from_hex(&file.signature).filter(|bytes| bytes.len() == 64);
    let signature = signature.ok_or_else(|| damaged("signature must have 128 hexadecimal digits".into()))?;
    let key = from_hex(&terms.issuer).filter(|bytes| bytes.len() == 32);
    let key = key.ok_or_else(|| damaged("issuer must have 64 hexadecimal digits".into()))?;
    let Issuers { known, passed_over } = issuers(state_dir);
    let Some(issuer) = known.into_iter().find(|issuer| issuer.key == key) else {
        let passed_over = passed_over.iter().map(|file| format!("; {file}")).collect();
        return Err(LicenceError::UnknownIssuer { issuer: terms.issuer.clone(), passed_over });
    };
    let public = UnparsedPublicKey::new(&ED25519, &issuer.key);
    public.verify(&file.signed_bytes(), &signature).map_err(|_| LicenceError::Signature)?;

    // What follows was signed; it can still be something that this version does not know.
    let day = |member: &str, text: &str| {
        text.parse::<Date>().map_err(|_| damaged(format!("{member} must be a day as in 2026-12-31")))
    };
    let (from, until) = (day("valid_from", &terms.valid_from)?, day("valid_until", &terms.valid_until)?);
    if until < from {
        return Err(damaged("it ends before it begins".into()));
    }
    let rule = rule(file).ok_or_else(|| damaged("kind and edition do not go together".into()))?;
    Ok(Genuine { rule, issuer: issuer.name, from, until, file: file.clone() })
}

fn rule(file: &LicenceFile) -> Option<Licence> {
    let terms = &file.licence;
    let edition = match terms.edition.as_deref() {
        None => None,
        Some("standard") => Some(Edition::Standard),
        Some("enterprise") => Some(Edition::Enterprise),
        Some("enterprise-plus") => Some(Edition::EnterprisePlus),
        Some(_) => return None,
    };
    match (terms.kind.as_str(), edition, terms.sockets) {
        ("universal", None, None) => Some(Licence::Universal),
        ("socket", Some(edition), Some(1..)) => Some(Licence::Socket { edition }),
        _ => None,
    }
}

/// Lull's own key, and those in the state folder that only root or this server's account can have put there.
fn issuers(state_dir: &Path) -> Issuers {
    let own = Issuer { name: OWN_ISSUER_NAME.into(), key: from_hex(OWN_ISSUER.trim()).unwrap_or_default() };
    let mut issuers = Issuers { known: vec![own], passed_over: Vec::new() };
    let Ok(folder) = state_dir.join(ISSUERS_DIR).read_dir() else { return issuers };
    for path in folder.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "pub") {
            continue;
        }
        match read_key(&path) {
            Ok(key) => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                issuers.known.push(Issuer { name, key });
            }
            Err(why) => issuers.passed_over.push(format!("{} does not count: {why}", path.display())),
        }
    }
    issuers
}

fn read_key(path: &Path) -> Result<Vec<u8>, String> {
    let facts = path.symlink_metadata().map_err(|error| error.to_string())?;
    let own = rustix::process::geteuid().as_raw();
    if !facts.is_file() || facts.len() > 1_024 {
        return Err("it is no small file".into());
    }
    if facts.mode() & 0o022 != 0 || (facts.uid() != 0 && facts.uid() != own) {
        return Err("it can be changed by others: chown root and chmod 644".into());
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    from_hex(text.trim()).filter(|key| key.len() == 32).ok_or_else(|| "it must hold 64 hexadecimal digits".into())
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests;
