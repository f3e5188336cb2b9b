//! The freeze plan: which superblocks are frozen, in which order, and why the others are not.
//!
//! Order of freezing: what lies inside another file system (loop images) before what holds it, since its last writes go
//! through the outer one; then nested mounts innermost first; the root last, because everything needs it. Thawing goes in reverse.
//! Pure. Knows nothing of descriptors, leases or applications.

use crate::mounts::Mounted;
use lull_guest_wire::{Freezable, Superblock};
use std::path::Path;

/// File systems whose driver implements the freeze. Everything else is refused by the kernel with EOPNOTSUPP, or freezes more
/// than this guest (gfs2, ocfs2 stop a whole cluster).
const FREEZABLE: [&str; 9] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "nilfs2", "bcachefs"];

/// A superblock and what lies beneath it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The superblock with its mounts.
    pub mounted: Mounted,
    /// Superblocks that hold an image on which this one lies.
    pub inside: Vec<Superblock>,
}

/// What will be frozen, in order, and what will not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of freezing.
    pub freeze: Vec<Superblock>,
    /// Not frozen, with the reason.
    pub not_frozen: Vec<(Superblock, String)>,
    /// What the administrator should know, one sentence each.
    pub notes: Vec<String>,
}

/// Whether this superblock will be frozen when nothing is excluded.
pub fn freezable(mounted: &Mounted) -> Freezable {
    if mounted.superblock_read_only {
        return Freezable::No("read-only: nothing can write to it".into());
    }
    if FREEZABLE.contains(&mounted.fs_type.as_str()) {
        return Freezable::Yes;
    }
    Freezable::No(format!("{} has no freeze support that could be used; it is synced instead", mounted.fs_type))
}

/// Plans the freeze. `exclude_mount_points` are exact; each excludes the whole superblock that is mounted there.
pub fn plan(candidates: &[Candidate], exclude_mount_points: &[String]) -> Plan {
    let mut plan = Plan::default();
    for excluded in exclude_mount_points {
        let known = candidates.iter().any(|candidate| mounted_at(&candidate.mounted, excluded));
        if !known {
            plan.notes.push(format!("{excluded} is excluded, but no file system on a disk is mounted there"));
        }
    }
    let mut chosen: Vec<&Candidate> = Vec::new();
    for candidate in candidates {
        let superblock = candidate.mounted.superblock;
        let excluded = exclude_mount_points.iter().find(|point| mounted_at(&candidate.mounted, point));
        match (excluded, freezable(&candidate.mounted)) {
            (Some(point), _) => plan.not_frozen.push((superblock, format!("excluded by the job at {point}"))),
            (None, Freezable::No(reason)) => plan.not_frozen.push((superblock, reason)),
            (None, Freezable::Yes) => chosen.push(candidate),
        }
    }
    chosen.sort_by_key(|candidate| {
        let depth = candidate.mounted.mounts.first().map_or(0, |(_, path)| path.components().count());
        let outermost_last = (usize::MAX - loop_depth(candidates, candidate), candidate.mounted.is_root);
        (outermost_last, usize::MAX - depth, candidate.mounted.superblock)
    });
    plan.freeze = chosen.iter().map(|candidate| candidate.mounted.superblock).collect();
    plan
}

fn mounted_at(mounted: &Mounted, point: &str) -> bool {
    mounted.mounts.iter().any(|(_, path)| path == Path::new(point))
}

/// How many file systems lie between this one and a disk.
fn loop_depth(candidates: &[Candidate], candidate: &Candidate) -> usize {
    let mut depth = 0;
    let mut level: Vec<Superblock> = candidate.inside.clone();
    // Bounded, since a chain cannot be longer than the list, whatever sysfs says.
    while !level.is_empty() && depth < candidates.len() {
        depth += 1;
        level = candidates
            .iter()
            .filter(|outer| level.contains(&outer.mounted.superblock))
            .flat_map(|outer| outer.inside.iter().copied())
            .collect();
    }
    depth
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;

    fn candidate(minor: u32, fs_type: &str, points: &[&str], inside: &[u32]) -> Candidate {
        let superblock = |minor| Superblock { major: 254, minor };
        Candidate {
            mounted: Mounted {
                superblock: superblock(minor),
                fs_type: fs_type.into(),
                source: format!("/dev/vd{minor}"),
                mounts: points.iter().enumerate().map(|(i, p)| (i as u64, PathBuf::from(p))).collect(),
                is_root: points.contains(&"/"),
                superblock_read_only: false,
                mounts_read_only: false,
            },
            inside: inside.iter().map(|minor| superblock(*minor)).collect(),
        }
    }

    fn check(candidates: &[Candidate], excludes: &[&str], order: &[u32]) -> Plan {
        let excludes: Vec<String> = excludes.iter().map(ToString::to_string).collect();
        let plan = plan(candidates, &excludes);
        assert_eq!(plan.freeze.iter().map(|superblock| superblock.minor).collect::<Vec<_>>(), order);
        plan
    }

    #[test]
    fn the_root_comes_last_and_nested_mounts_first() {
        check(
            &[
                candidate(1, "ext4", &["/"], &[]),
                candidate(2, "xfs", &["/srv"], &[]),
                candidate(3, "ext4", &["/srv/data/deep"], &[]),
            ],
            &[],
            &[3, 2, 1],
        );
    }

    #[test]
    fn a_loop_image_freezes_before_the_file_system_that_holds_it() {
        check(
            &[
                candidate(1, "ext4", &["/"], &[]),
                candidate(2, "xfs", &["/a/b/c/d"], &[]),
                candidate(3, "ext4", &["/l"], &[2]),
                candidate(4, "ext4", &["/m"], &[3]),
            ],
            &[],
            &[4, 3, 2, 1],
        );
    }

    #[test]
    fn what_cannot_freeze_is_named() {
        let plan = check(&[candidate(1, "vfat", &["/boot/efi"], &[]), candidate(2, "ext4", &["/"], &[])], &[], &[2]);
        assert_eq!(plan.not_frozen[0].1, "vfat has no freeze support that could be used; it is synced instead");
    }

    #[test]
    fn an_exclusion_excludes_the_superblock_wherever_it_is_mounted() {
        let plan = check(
            &[candidate(1, "ext4", &["/"], &[]), candidate(2, "xfs", &["/srv", "/mnt/bind"], &[])],
            &["/mnt/bind", "/no/such"],
            &[1],
        );
        assert_eq!(plan.not_frozen[0].1, "excluded by the job at /mnt/bind");
        assert_eq!(plan.notes, ["/no/such is excluded, but no file system on a disk is mounted there"]);
    }

    fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (
            proptest::sample::select(vec!["ext4", "xfs", "vfat", "btrfs", "squashfs"]),
            proptest::collection::vec("(/[a-c]){1,4}", 1..3),
            any::<bool>(),
            proptest::collection::vec(any::<proptest::sample::Index>(), 0..2),
        );
        proptest::collection::vec(one, 1..12).prop_map(|rows| {
            let count = rows.len();
            rows.into_iter()
                .enumerate()
                .map(|(minor, (fs_type, points, read_only, inside))| {
                    let points: Vec<&str> =
                        if minor == 0 { vec!["/"] } else { points.iter().map(String::as_str).collect() };
                    // Images lie in file systems with a smaller number, so that no chain closes on itself.
                    let inside: Vec<u32> = inside
                        .iter()
                        .map(|i| i.index(count) as u32)
                        .filter(|outer| (*outer as usize) < minor)
                        .collect();
                    let mut candidate = candidate(minor as u32, fs_type, &points, &inside);
                    candidate.mounted.superblock_read_only = read_only;
                    candidate
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn every_plan_is_complete_and_ordered(candidates in any_candidates(), excludes in proptest::collection::vec("(/[a-c]){1,2}", 0..3)) {
            let plan = plan(&candidates, &excludes);
            let position = |superblock: Superblock| plan.freeze.iter().position(|other| *other == superblock);
            for candidate in &candidates {
                let superblock = candidate.mounted.superblock;
                let frozen = plan.freeze.iter().filter(|other| **other == superblock).count();
                let refused = plan.not_frozen.iter().filter(|(other, _)| *other == superblock).count();
                prop_assert_eq!(frozen + refused, 1, "each superblock once");
                for outer in &candidate.inside {
                    if let (Some(inner), Some(outer)) = (position(superblock), position(*outer)) {
                        prop_assert!(inner < outer, "an image before its holder");
                    }
                }
                if frozen == 1 {
                    prop_assert!(!candidate.mounted.superblock_read_only);
                    prop_assert!(!["vfat", "squashfs"].contains(&candidate.mounted.fs_type.as_str()));
                    prop_assert!(!candidate.mounted.mounts.iter().any(|(_, path)| excludes.iter().any(|e| path == Path::new(e))));
                }
            }
            let plain: Vec<&Candidate> = candidates.iter().filter(|c| c.inside.is_empty()).collect();
            for outer in &plain {
                for inner in &plain {
                    let (outer_path, inner_path) = (&outer.mounted.mounts[0].1, &inner.mounted.mounts[0].1);
                    let nested = inner_path != outer_path && inner_path.starts_with(outer_path);
                    if let (true, Some(i), Some(o)) = (nested, position(inner.mounted.superblock), position(outer.mounted.superblock)) {
                        prop_assert!(i < o, "nested mounts innermost first");
                    }
                }
            }
            if let Some(root) = position(candidates[0].mounted.superblock) {
                prop_assert_eq!(root, plan.freeze.len() - 1, "the root last");
            }
        }
    }
}
