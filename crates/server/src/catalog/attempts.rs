//! How often a listing was tried, and why it is not in the catalog: kept in a file beside it, so that one that ends the server each
//! time is given up all the same. What became of a listing that was given up stays there until its restore point goes.
//!
//! Knows nothing of what is in a listing or a table.

use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

/// What the catalog may take of the server's disk, and how often it tries to take a listing in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogPace {
    /// Free space that neither listings nor tables take, in bytes: the server's database lies there too.
    pub reserve_bytes: u64,
    /// Pauses after attempts that failed. After one more attempt a listing is given up.
    pub pauses_ms: Vec<u64>,
}

impl Default for CatalogPace {
    /// 256 MiB; 1 min, 5 min, 30 min, 2 h, 6 h, 24 h.
    fn default() -> Self {
        let pauses_ms = [1, 5, 30, 120, 360, 1_440].map(|minutes| minutes * 60_000).to_vec();
        CatalogPace { reserve_bytes: 256 << 20, pauses_ms }
    }
}

/// What became of a listing so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// Attempts that began.
    pub begun: u32,
    /// Why the last one failed.
    pub why: Option<String>,
    /// There will be no other, and the listing is gone.
    pub given_up: bool,
}

impl Attempts {
    /// Begins another one. It has failed already where the server does not live to say how it went.
    ///
    /// # Errors
    /// There were enough: why the listing is given up.
    pub fn begin(&mut self, pace: &CatalogPace) -> Result<(), String> {
        let stopped = "the backup server stopped while it took it in".to_string();
        if self.begun as usize > pace.pauses_ms.len() {
            return Err(self.give_up(self.why.clone().unwrap_or(stopped)));
        }
        self.begun += 1;
        self.why = Some(stopped);
        Ok(())
    }

    /// It failed. Answers after which pause it is tried again; after none where it is given up.
    pub fn failed(&mut self, why: String, pace: &CatalogPace) -> Option<Duration> {
        let last = (self.begun as usize).checked_sub(1);
        match last.and_then(|last| pace.pauses_ms.get(last)) {
            Some(pause_ms) => {
                self.why = Some(why);
                Some(Duration::from_millis(*pause_ms))
            }
            None => {
                self.give_up(why);
                None
            }
        }
    }

    /// It will not be tried again. Answers the reason.
    pub fn give_up(&mut self, why: String) -> String {
        self.given_up = true;
        let times = match self.begun {
            0 | 1 => String::new(),
            times => format!(", after {times} attempts"),
        };
        let why = format!("its listing was given up{times}: {why}");
        self.why = Some(why.clone());
        why
    }

    /// What stands in the file; nothing where there is none, or it breaks off.
    pub fn read(path: &Path) -> io::Result<Option<Attempts>> {
        match std::fs::read(path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it into the file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, serde_json::to_vec(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> CatalogPace {
        CatalogPace { reserve_bytes: 0, pauses_ms: vec![10, 20] }
    }

    #[test]
    fn pauses_grow_and_after_the_last_one_attempt_more_is_the_last() {
        let mut attempts = Attempts::default();
        for pause in [Some(10), Some(20), None] {
            attempts.begin(&pace()).unwrap();
            assert_eq!(attempts.failed("full".into(), &pace()), pause.map(Duration::from_millis));
            assert_eq!(attempts.given_up, pause.is_none());
        }
        assert_eq!(attempts.why.as_deref(), Some("its listing was given up, after 3 attempts: full"));
        let pauses = CatalogPace::default().pauses_ms;
        assert!(pauses.is_sorted() && pauses.len() == 6, "{pauses:?}");
    }

    #[test]
    fn a_listing_that_ends_the_server_each_time_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.attempts");
        for killed in 0..3 {
            let mut attempts = Attempts::read(&path).unwrap().unwrap_or_default();
            assert_eq!(attempts.begun, killed);
            attempts.begin(&pace()).unwrap();
            attempts.write(&path).unwrap();
        }
        let mut attempts = Attempts::read(&path).unwrap().unwrap();
        let why = attempts.begin(&pace()).unwrap_err();
        assert!(attempts.given_up && why.contains("after 3 attempts: the backup server stopped"), "{why}");
        std::fs::write(&path, "{\"begun\":").unwrap();
        assert_eq!(Attempts::read(&path).unwrap(), None, "a file that breaks off says nothing");
    }
}
