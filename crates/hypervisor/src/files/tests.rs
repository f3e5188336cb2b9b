//! Files of unfinished backups, as scenarios.

use super::*;

struct Bed {
    _dir: tempfile::TempDir,
    repository: PathBuf,
    fleecing: PathBuf,
}

impl Bed {
    fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let (repository, fleecing) = (dir.path().join("repo"), dir.path().join("fleece"));
        fs::create_dir(&repository).unwrap();
        fs::create_dir(&fleecing).unwrap();
        Bed { _dir: dir, repository, fleecing }
    }

    fn layout(&self, vm: &str, id: &str) -> Layout {
        Layout::new(&self.repository, &self.fleecing, vm, Some("12345678-0000-0000-0000-000000000000"), id)
    }

    /// A backup in the middle of its copy.
    fn begin(&self, vm: &str, id: &str) -> (Layout, File) {
        let layout = self.layout(vm, id);
        let claim = Claim { vm: vm.into(), restore_point: id.into(), task: "t".into(), epoch: 1 };
        let file = super::claim(&layout, &claim).unwrap();
        for path in [layout.partial(0), layout.disk(1), layout.fleece(0), layout.fleece(1)] {
            fs::write(path, "x").unwrap();
        }
        (layout, file)
    }

    fn sweep(&self, vm: &str) -> SweptFiles {
        sweep_files(&self.repository, &self.fleecing, vm, &Which::default())
    }

    fn files(&self) -> Vec<String> {
        fn walk(dir: &Path, found: &mut Vec<String>) {
            for e in fs::read_dir(dir).unwrap().flatten() {
                if e.path().is_dir() { walk(&e.path(), found) } else { found.push(e.path().display().to_string()) }
            }
        }
        let mut found = Vec::new();
        walk(&self.repository, &mut found);
        walk(&self.fleecing, &mut found);
        found
    }
}

#[test]
fn what_a_dead_backup_left_goes_and_a_second_sweep_finds_nothing() {
    let bed = Bed::new();
    let (layout, claim) = bed.begin("pg1", "ab");
    drop(claim);
    let swept = bed.sweep("pg1");
    assert_eq!(swept.remaining, Vec::<String>::new());
    assert_eq!(swept.removed.len(), 5, "{:?}", swept.removed);
    assert!(bed.files().is_empty() && !layout.vm_dir.exists());
    assert_eq!(bed.sweep("pg1"), SweptFiles::default());
}

#[test]
fn a_backup_whose_maker_lives_is_left_alone_but_undoes_itself() {
    let bed = Bed::new();
    let (_, claim) = bed.begin("pg1", "ab");
    let before = bed.files();
    let swept = bed.sweep("pg1");
    assert_eq!((swept.removed, bed.files()), (vec![], before));
    assert!(swept.remaining[0].contains("living program"));
    let only = Which { only: Some("ab".into()), ..Which::default() };
    sweep_files(&bed.repository, &bed.fleecing, "pg1", &only);
    assert!(bed.files().is_empty());
    drop(claim);
}

#[test]
fn whole_restore_points_and_other_vms_stay() {
    let bed = Bed::new();
    let (whole, _) = bed.begin("pg1", "whole");
    complete(&whole, b"{}", || true).unwrap();
    let (_, _) = bed.begin("pg1-b", "other");
    let (_, _) = bed.begin("pg1", "dead");
    fs::write(bed.repository.join("notes.txt"), "theirs").unwrap();
    bed.sweep("pg1");
    let left = bed.files();
    assert!(left.iter().any(|f| f.ends_with("whole/restore-point.json")), "{left:?}");
    assert!(left.iter().any(|f| f.ends_with("whole/disk1.qcow2")));
    assert!(left.iter().any(|f| f.ends_with("notes.txt")));
    assert!(!left.iter().any(|f| f.contains("dead")), "{left:?}");
    assert_eq!(left.iter().filter(|f| f.contains("pg1-b")).count(), 5, "{left:?}");
}

#[test]
fn a_finished_restore_point_goes_where_it_was_recorded_nowhere() {
    let bed = Bed::new();
    let unrecorded = |id: &str| Which { unrecorded: Some(id.into()), ..Which::default() };
    let sweep = |which: &Which| sweep_files(&bed.repository, &bed.fleecing, "pg1", which);
    let metadata = |vm: &str| {
        let point = metadata::RestorePointMetadata { vm: vm.into(), ..crate::chain::tests::point("ab", "") };
        serde_json::to_vec(&point).unwrap()
    };
    for (vm, id) in [("pg1", "ab"), ("pg1", "cd"), ("pg2", "ab")] {
        let (layout, _claim) = bed.begin(vm, id);
        complete(&layout, &metadata(vm), || true).unwrap();
    }
    let swept = sweep(&unrecorded("ab"));
    assert_eq!(swept.remaining, Vec::<String>::new());
    let left = bed.files();
    assert!(!left.iter().any(|f| f.contains("pg1-12345678/ab")), "{left:?}");
    assert!(left.iter().any(|f| f.ends_with("cd/restore-point.json")) && left.iter().any(|f| f.contains("pg2-")));
    assert_eq!(sweep(&unrecorded("ab")), SweptFiles::default());
}

#[test]
fn a_restore_point_that_nobody_waits_for_any_more_is_not_completed() {
    let bed = Bed::new();
    let (layout, claim) = bed.begin("pg1", "ab");
    assert!(complete(&layout, b"{}", || false).is_err());
    drop(claim);
    assert_eq!(bed.sweep("pg1").remaining, Vec::<String>::new());
    assert!(bed.files().is_empty());
}

#[test]
fn a_second_backup_cannot_claim_the_same_restore_point() {
    let bed = Bed::new();
    let (layout, _claim) = bed.begin("pg1", "ab");
    let claim = Claim { vm: "pg1".into(), restore_point: "ab".into(), task: "t".into(), epoch: 1 };
    assert_eq!(super::claim(&layout, &claim).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn a_vms_name_cannot_leave_the_repository() {
    for (vm, folder) in [("../x", "_.._x"), ("a b/c", "a_b_c"), ("pg-1", "pg-1"), ("ä", "_")] {
        assert_eq!(plain(vm), folder);
    }
}

#[tokio::test]
async fn a_folder_that_is_no_good_says_why() {
    let bed = Bed::new();
    assert!(probe(&bed.repository).await.unwrap() > 0);
    assert_eq!(bed.files(), Vec::<String>::new());
    assert!(matches!(probe(&bed.repository.join("none")).await, Err(FolderFault::Missing { .. })));
    fs::write(bed.repository.join("file"), "").unwrap();
    assert!(matches!(probe(&bed.repository.join("file")).await, Err(FolderFault::Missing { .. })));
    assert!(matches!(probe(Path::new("/proc")).await, Err(FolderFault::NotWritable { .. })));
}

#[tokio::test]
async fn backups_that_begin_together_do_not_disturb_each_others_probes() {
    let bed = Bed::new();
    for _ in 0..20 {
        let probes: Vec<_> =
            (0..8).map(|_| bed.repository.clone()).map(|dir| tokio::spawn(async move { probe(&dir).await })).collect();
        for one in probes {
            one.await.unwrap().unwrap();
        }
    }
    assert_eq!(fs::read_dir(&bed.repository).unwrap().count(), 0);
}

#[test]
fn who_is_killed_while_a_folder_is_tried_leaves_nothing_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = passing_file(dir.path()).unwrap();
    file.write_all(b"x").unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(passing_file(&dir.path().join("away")).is_err());
}
