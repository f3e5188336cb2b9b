//! Chains whole and broken, as scenarios.

use super::*;
use crate::qcow2::tests::image;
use proptest::prelude::*;

const POINT: &str = include_str!("../../tests/data/restore-point-2.json");
const BYTES: u64 = 1 << 20;

/// A point's description; `parent` empty: a full backup.
pub(crate) fn point(id: &str, parent: &str) -> RestorePointMetadata {
    let mut metadata: RestorePointMetadata = serde_json::from_str(POINT).unwrap();
    metadata.restore_point = id.into();
    metadata.bitmap = crate::bitmap_name(id);
    metadata.parent = Some(parent.to_owned()).filter(|p| !p.is_empty());
    metadata.kind = if parent.is_empty() { Kind::Full } else { Kind::Incremental };
    metadata.disks[0].length_bytes = None;
    metadata
}

/// Writes it as a restore point into a VM's folder.
pub(crate) fn write(vm_dir: &Path, metadata: &RestorePointMetadata) {
    let dir = vm_dir.join(&metadata.restore_point);
    std::fs::create_dir_all(&dir).unwrap();
    for disk in &metadata.disks {
        let backing = metadata.parent.as_deref().map(|p| backing_name(p, &disk.file));
        std::fs::write(dir.join(&disk.file), image(disk.virtual_bytes, backing.as_deref())).unwrap();
    }
    std::fs::write(dir.join(metadata::FILE_NAME), serde_json::to_vec(metadata).unwrap()).unwrap();
}

fn three(vm_dir: &Path) {
    for (id, parent) in [("a", ""), ("b", "a"), ("c", "b")] {
        write(vm_dir, &point(id, parent));
    }
}

fn check(damage: impl FnOnce(&Path), at: &str, expect: &str) {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path());
    damage(dir.path());
    let broken = read_chain(&dir.path().join("c")).unwrap_err();
    assert_eq!(broken.restore_point, at, "{broken}");
    assert!(broken.why.contains(expect), "{broken}");
}

#[test]
fn a_whole_chain_is_read_up_to_its_full_backup() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path());
    let chain = read_chain(&dir.path().join("c")).unwrap();
    assert_eq!(chain.iter().map(|p| p.metadata.restore_point.as_str()).collect::<Vec<_>>(), ["c", "b", "a"]);
}

#[test]
fn a_broken_chain_names_the_link() {
    check(|d| std::fs::remove_dir_all(d.join("b")).unwrap(), "b", "cannot be read");
    check(|d| std::fs::remove_file(d.join("a/disk0.qcow2")).unwrap(), "a", "disk0.qcow2 cannot be read");
    check(
        |d| std::fs::write(d.join("a/disk0.qcow2"), image(BYTES / 2, None)).unwrap(),
        "a",
        "524288 bytes, not 1048576",
    );
    check(|d| std::fs::write(d.join("b/disk0.qcow2"), image(BYTES, None)).unwrap(), "b", "lies over nothing");
    let elsewhere = |d: &Path| std::fs::write(d.join("b/disk0.qcow2"), image(BYTES, Some("../x/disk0.qcow2"))).unwrap();
    check(elsewhere, "b", "lies over \"../x/disk0.qcow2\"");
    check(|d| write(d, &RestorePointMetadata { uuid: None, ..point("a", "") }), "b", "another VM");
    check(|d| write(d, &point("a", "c")), "c", "its own ancestor");
    let mut longer = point("b", "a");
    longer.disks[0].length_bytes = Some(7);
    check(|d| write(d, &longer), "b", "bytes long, not 7");
    let mut other = point("a", "");
    other.disks[0].qdev = "/machine/peripheral/vd7/virtio-backend".into();
    check(|d| write(d, &other), "b", "has no disk vd0");
    check(
        |d| std::fs::copy(d.join("c/restore-point.json"), d.join("b/restore-point.json")).map(drop).unwrap(),
        "b",
        "that of restore point c",
    );
}

fn verdicts(points: &[(&str, &str, bool)]) -> Vec<Option<String>> {
    let metadata: Vec<_> = points.iter().map(|(id, parent, _)| point(id, parent)).collect();
    let seen = metadata.iter().zip(points);
    let seen = seen.map(|(m, (_, _, sound))| Seen { metadata: m, own_fault: (!sound).then(|| "damaged".to_owned()) });
    judge(&seen.collect::<Vec<_>>()).into_iter().map(|v| v.map(|v| v.restore_point)).collect()
}

#[test]
fn the_nearest_broken_link_is_named_and_siblings_are_not_touched() {
    let points =
        [("d", "b", true), ("a", "", true), ("c", "b", true), ("b", "a", false), ("e", "a", true), ("f", "x", true)];
    let expect = [Some("b"), None, Some("b"), Some("b"), None, Some("x")];
    assert_eq!(verdicts(&points), expect.map(|e| e.map(str::to_owned)));
    assert_eq!(verdicts(&[("a", "b", true), ("b", "a", true), ("c", "", true)])[2], None);
    assert!(verdicts(&[("a", "b", true), ("b", "a", true)]).iter().all(Option::is_some));
}

proptest! {
    /// However points build on each other: whole is exactly what reaches a full backup over sound points.
    #[test]
    fn whole_is_what_reaches_a_full_backup_over_sound_points(links in proptest::collection::vec((0usize..12, any::<bool>()), 1..12)) {
        let name = |n: usize| format!("p{n}");
        let names: Vec<(String, String, bool)> = links.iter().enumerate().map(|(n, (parent, sound))| {
            // 0: a full backup; beyond the last: a parent that is not there.
            (name(n), if *parent == 0 { String::new() } else { name(*parent - 1) }, *sound)
        }).collect();
        let borrowed: Vec<_> = names.iter().map(|(a, b, c)| (a.as_str(), b.as_str(), *c)).collect();
        let found = verdicts(&borrowed);
        for (n, verdict) in found.iter().enumerate() {
            let (mut at, mut whole) = (Some(n), true);
            for _ in 0..=links.len() {
                let Some(here) = at else { break };
                let Some((parent, sound)) = links.get(here) else { whole = false; break };
                whole &= *sound;
                at = parent.checked_sub(1);
            }
            prop_assert_eq!(verdict.is_none(), whole && at.is_none(), "{:?} {}", links, n);
        }
    }
}
