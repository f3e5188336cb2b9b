//! What a walk came to, in numbers and a few examples.

use super::moment::Moment;
use crate::kernel;
use lull_guest_wire::IndexSummary;
use lull_guest_wire::listing::{EXAMPLES_MAX, cut};

/// A path in an example is cut to this length, in bytes.
const EXAMPLE_BYTES_MAX: usize = 500;

/// Counts.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Folders that were read.
    pub folders: u64,
    /// Entries that were listed.
    pub entries: u64,
    /// What was gone when it was looked at.
    pub vanished: u64,
    unreadable_folders: u64,
    unreadable_entries: u64,
    examples: Vec<String>,
}

impl Tally {
    /// A folder could not be read, or not to its end.
    pub fn unreadable_folder(&mut self, path: &[u8], why: &str) {
        self.unreadable_folders += 1;
        self.example(path, why);
    }

    /// Nothing but the name of an entry is known; the sentence says which and why.
    pub fn unreadable_entry(&mut self, path: &[u8], name: &[u8], errno: kernel::Errno) -> String {
        self.unreadable_entries += 1;
        let slash: &[u8] = if path == b"/" { b"" } else { b"/" };
        let why = kernel::describe(errno);
        self.example(&[path, slash, name].concat(), &why);
        format!("{}: {why}", String::from_utf8_lossy(name))
    }

    fn example(&mut self, path: &[u8], why: &str) {
        if self.examples.len() < EXAMPLES_MAX {
            let path = String::from_utf8_lossy(path);
            let shown = cut(&path, EXAMPLE_BYTES_MAX);
            let dots = if shown.len() < path.len() { "…" } else { "" };
            self.examples.push(format!("{shown}{dots}: {why}"));
        }
    }

    /// Adds another's.
    pub fn add(&mut self, other: Tally) {
        self.folders += other.folders;
        self.entries += other.entries;
        self.vanished += other.vanished;
        self.unreadable_folders += other.unreadable_folders;
        self.unreadable_entries += other.unreadable_entries;
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES_MAX);
    }

    /// Of a walk between these moments.
    pub fn summary(self, began: Moment, ended: Moment, stopped_because: Option<String>) -> IndexSummary {
        IndexSummary {
            began_us: began.wall_us,
            ended_us: began.wall_us.saturating_add(ended.since_us(began)),
            folders: self.folders,
            entries: self.entries,
            unreadable_folders: self.unreadable_folders,
            unreadable_entries: self.unreadable_entries,
            vanished: self.vanished,
            complete: stopped_because.is_none(),
            stopped_because,
            examples: self.examples,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_never_ends_before_it_began_though_the_clock_is_set_back() {
        let began = Moment { wall_us: 1_000_000, monotonic_us: 10 };
        let ended = Moment { wall_us: 5, monotonic_us: 510 };
        let summary = Tally::default().summary(began, ended, None);
        assert_eq!((summary.began_us, summary.ended_us, summary.complete), (1_000_000, 1_000_500, true));
    }

    #[test]
    fn examples_are_few_and_short() {
        let mut tally = Tally::default();
        for _ in 0..50 {
            tally.unreadable_folder(&[0xff; 5_000], "no");
        }
        let mut all = tally.clone();
        all.add(tally);
        let summary = all.summary(Moment::now(), Moment::now(), Some("stopped".into()));
        assert_eq!((summary.unreadable_folders, summary.examples.len(), summary.complete), (100, EXAMPLES_MAX, false));
        assert!(summary.examples.iter().all(|example| example.len() < 600 && example.ends_with("…: no")));
    }
}
