//! The names of everything we create inside a hypervisor, and how to know them again.
//!
//! A name says whose it is (`lull-`), of which restore point, of which disk and what it is for:
//! `lull-<restore point>-<disk>-<role>`. Bitmaps (`lull-<restore point>`) live on from one restore point to the next; all
//! else is gone when a task ends, also the copy of the parent's bitmap that an increment reads by (`lull-<restore point>-changed`). A sweep removes only what [`parse`] recognises.
//!
//! Knows nothing of QMP.

/// What every name of ours begins with.
pub const PREFIX: &str = "lull-";
/// QEMU allows 31 characters in a node name: `lull-` + 16 + `-NN-` + the longest role (6) = 31.
pub const RESTORE_POINT_CHARS_MAX: usize = 16;
/// How the name of an increment's working bitmap ends.
const CHANGED: &str = "-changed";
/// Two digits in a node name.
pub const DISKS_MAX: usize = 100;

/// What a thing of ours inside a hypervisor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The background job that copies one disk to the repository.
    Job,
    /// The copy-before-write filter in front of one disk.
    Filter,
    /// The view of one disk at the instant of the snapshot.
    Snapshot,
    /// The local image that takes old data before the guest overwrites it.
    Fleece,
    /// The image in the repository.
    Target,
}

impl Role {
    const ALL: [Role; 5] = [Role::Job, Role::Filter, Role::Snapshot, Role::Fleece, Role::Target];

    fn suffix(self) -> &'static str {
        match self {
            Role::Job => "job",
            Role::Filter => "cbw",
            Role::Snapshot => "snap",
            Role::Fleece => "fleece",
            Role::Target => "target",
        }
    }
}

/// A name of ours, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OurName {
    /// The restore point it belongs to.
    pub restore_point: String,
    /// The disk's index in that backup.
    pub disk: usize,
    /// What it is for.
    pub role: Role,
}

/// Whether `id` may name a restore point: 1 to 16 ASCII letters and digits.
pub fn is_restore_point_id(id: &str) -> bool {
    (1..=RESTORE_POINT_CHARS_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// `lull-<restore point>-<disk>-<role>`.
pub fn name(restore_point: &str, disk: usize, role: Role) -> String {
    format!("{PREFIX}{restore_point}-{disk}-{}", role.suffix())
}

/// The dirty bitmap that records what changes after this restore point: `lull-<restore point>`.
pub fn bitmap_name(restore_point: &str) -> String {
    format!("{PREFIX}{restore_point}")
}

/// What changed between the parent and this restore point: a copy of the parent's bitmap, gone when the task ends.
pub fn changed_bitmap_name(restore_point: &str) -> String {
    format!("{PREFIX}{restore_point}{CHANGED}")
}

/// The object that exists exactly while the VM is stopped by us, so that whoever comes later knows to continue it.
pub fn stop_marker(restore_point: &str) -> String {
    format!("{PREFIX}{restore_point}-stop")
}

/// Takes a job's or node's name apart; `None`: not ours.
pub fn parse(text: &str) -> Option<OurName> {
    let mut parts = text.strip_prefix(PREFIX)?.splitn(3, '-');
    let (restore_point, disk, role) = (parts.next()?, parts.next()?, parts.next()?);
    let role = Role::ALL.into_iter().find(|r| r.suffix() == role)?;
    let disk = disk.parse::<usize>().ok().filter(|n| *n < DISKS_MAX && n.to_string() == disk)?;
    is_restore_point_id(restore_point).then(|| OurName { restore_point: restore_point.to_owned(), disk, role })
}

/// The restore point of a bitmap of ours, of either kind; `None`: not ours.
pub fn parse_bitmap(text: &str) -> Option<&str> {
    let rest = text.strip_prefix(PREFIX)?;
    Some(rest.strip_suffix(CHANGED).unwrap_or(rest)).filter(|id| is_restore_point_id(id))
}

/// The restore point of a stop marker of ours; `None`: not ours.
pub fn parse_stop_marker(text: &str) -> Option<&str> {
    text.strip_prefix(PREFIX)?.strip_suffix("-stop").filter(|id| is_restore_point_id(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_name_fits_qemu_and_is_known_again(id in "[a-zA-Z0-9]{1,16}", disk in 0usize..DISKS_MAX, role in 0usize..5) {
            let role = Role::ALL[role];
            let text = name(&id, disk, role);
            prop_assert!(text.len() <= 31);
            prop_assert_eq!(parse(&text), Some(OurName { restore_point: id.clone(), disk, role }));
            let bitmap = bitmap_name(&id);
            prop_assert_eq!(parse_bitmap(&bitmap), Some(id.as_str()));
            let changed = changed_bitmap_name(&id);
            prop_assert_eq!(parse_bitmap(&changed), Some(id.as_str()));
            prop_assert_eq!(parse(&changed), None);
            let marker = stop_marker(&id);
            prop_assert_eq!(parse_stop_marker(&marker), Some(id.as_str()));
            prop_assert_eq!(parse(&marker), None);
            prop_assert_eq!(parse_bitmap(&marker), None);
            prop_assert_eq!(parse_bitmap(&text), None);
        }

        #[test]
        fn whatever_is_recognised_is_spelled_as_we_spell_it(text in "(lull-)?[a-z0-9-]{0,24}(-job|-cbw|-snap|-fleece|-target|-stop)?") {
            if let Some(n) = parse(&text) {
                prop_assert_eq!(name(&n.restore_point, n.disk, n.role), text);
            }
        }
    }

    #[test]
    fn other_peoples_names_are_left_alone() {
        for text in [
            "disk0",
            "#block123",
            "lull",
            "lull-",
            "lull-changed-",
            "lull-a-0-other",
            "lull-a-007-cbw",
            "xlull-a-0-cbw",
            "lull-a-0",
        ] {
            assert_eq!((parse(text), parse_bitmap(text)), (None, None), "{text}");
        }
    }
}
