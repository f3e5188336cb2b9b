//! One version of a file, and the interval of restore points in which it existed. Pure.

pub use lull_guest_wire::listing::Kind;
use serde::{Deserialize, Serialize};

/// Everything that is kept of a file besides its path. Two walks that find equal values have found the same version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// What it is.
    pub kind: Kind,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When its content was last changed, in microseconds since 1970 of the guest's clock.
    pub mtime_us: i64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// It changed between the freeze and the walk: the restore point may hold an earlier version of it.
    pub changed_after_freeze: bool,
}

/// In which indexed restore points a version existed, by their numbers, all inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Interval {
    /// The first walk that saw it.
    pub first: u32,
    /// The last point for which it is not known to be gone or changed.
    pub last: u32,
    /// The last walk that saw it. From there to `last` it is *unknown*: those walks did not look there.
    pub seen: u32,
}

impl Interval {
    /// Of a version that walk `number` saw first.
    pub fn at(number: u32) -> Interval {
        Interval { first: number, last: number, seen: number }
    }

    /// Whether point `number` lies in it.
    pub fn contains(&self, number: u32) -> bool {
        self.first <= number && number <= self.last
    }
}

/// All kinds with their code in the table and their name for people and exports. Codes never change their meaning.
pub const KINDS: [(Kind, i32, &str); 7] = [
    (Kind::File, 0, "file"),
    (Kind::Folder, 1, "folder"),
    (Kind::Symlink, 2, "symlink"),
    (Kind::Fifo, 3, "fifo"),
    (Kind::Socket, 4, "socket"),
    (Kind::CharDevice, 5, "char-device"),
    (Kind::BlockDevice, 6, "block-device"),
];

/// The code of a kind in the table.
pub fn kind_code(kind: Kind) -> i32 {
    KINDS[kind as usize].1
}

/// The kind of a code, if there is one.
pub fn kind_of_code(code: i32) -> Option<Kind> {
    usize::try_from(code).ok().and_then(|code| KINDS.get(code)).map(|(kind, _, _)| *kind)
}

/// The name of a kind.
pub fn kind_name(kind: Kind) -> &'static str {
    KINDS[kind as usize].2
}

/// The kind of a name, if there is one.
pub fn kind_of_name(name: &str) -> Option<Kind> {
    KINDS.iter().find(|(_, _, known)| *known == name).map(|(kind, _, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_code_and_a_name_of_its_own() {
        for (index, (kind, code, name)) in KINDS.into_iter().enumerate() {
            assert_eq!((code, kind_code(kind), kind_name(kind)), (index as i32, code, name));
            assert_eq!((kind_of_code(code), kind_of_name(name)), (Some(kind), Some(kind)));
        }
        assert_eq!((kind_of_code(7), kind_of_code(-1), kind_of_name("door")), (None, None, None));
    }
}
