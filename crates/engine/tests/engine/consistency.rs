//! What a restore point is worth, case by case, with the words a person reads.

use lull_engine::consistency::{
    ApplicationEvidence, CallResult, ConsistencyLevel, Evidence, FileSystemEvidence, FreezeResult, QuiesceResult, Role,
    SnapshotEvidence, SuperblockId, WindowEvidence, assess, level_name,
};

pub const FROZEN: FreezeResult = FreezeResult::Attempted { freeze: CallResult::Ok, thaw: CallResult::Ok };

pub fn sb(minor: u32) -> SuperblockId {
    SuperblockId { major: 8, minor }
}

pub fn fs(minor: u32, mount_point: &str, role: Role) -> FileSystemEvidence {
    FileSystemEvidence {
        mount_points: vec![mount_point.into()],
        superblock: sb(minor),
        fs_type: "ext4".into(),
        role,
        writable: true,
        freezable: true,
        excluded: false,
        frozen: FROZEN,
        on_snapshot: true,
    }
}

/// Root, PostgreSQL's data on a disk of its own, and the ESP, all as good as can be.
fn good() -> Evidence {
    let postgres = "PostgreSQL 15 main".to_owned();
    let mut esp = fs(15, "/boot/efi", Role::Other);
    esp.fs_type = "vfat".into();
    esp.freezable = false;
    esp.frozen = FreezeResult::NotAttempted;
    Evidence {
        file_systems: vec![
            fs(1, "/", Role::Root { applications: Vec::new() }),
            fs(17, "/srv/pg", Role::ApplicationData { applications: vec![postgres.clone()] }),
            esp,
        ],
        applications: vec![ApplicationEvidence {
            name: postgres,
            superblocks: vec![sb(17)],
            quiesce: QuiesceResult::Quiesced,
        }],
        applications_searched: true,
        window: WindowEvidence {
            frozen_id: Some(7),
            acknowledged_before_snapshot: true,
            snapshot_returned_before_thaw: true,
            thawed_id: Some(7),
            no_gap: true,
        },
        snapshot: SnapshotEvidence { taken: true, atomic: true },
        left_alone: None,
    }
}

/// The first line of the assessment must read like this.
fn check(change: impl FnOnce(&mut Evidence), expected: &str) {
    let mut evidence = good();
    change(&mut evidence);
    let said = assess(&evidence).to_string();
    assert_eq!(said.lines().next(), Some(expected), "\n{said}");
}

#[test]
fn the_best_case_names_everything_also_what_does_not_count() {
    assert_eq!(
        assess(&good()).to_string(),
        "application
  PostgreSQL 15 main: application
  / (8:1): file-system
  /srv/pg (8:17): file-system
  /boot/efi (8:15): crash, does not count, since vfat cannot be frozen"
    );
}

#[test]
fn the_level_falls_with_what_is_missing_and_says_so() {
    check(|e| e.applications_searched = false, "file-system: applications were not looked for to the end");
    check(
        |e| e.applications[0].quiesce = QuiesceResult::Failed { cause: "the checkpoint took longer than 30 s".into() },
        "file-system: PostgreSQL 15 main: it could not be brought to rest: the checkpoint took longer than 30 s",
    );
    check(
        |e| e.applications[0].quiesce = QuiesceResult::NotRunning,
        "file-system: PostgreSQL 15 main: it was not running, so its state could not be established",
    );
    check(
        |e| {
            e.applications.clear();
            e.file_systems.remove(1);
        },
        "file-system: no application that could be brought to rest was found",
    );
    check(
        |e| e.file_systems[1].frozen = FreezeResult::NotAttempted,
        "crash: the file system at /srv/pg: it was not frozen; PostgreSQL 15 main: the file system at /srv/pg it writes \
         to: it was not frozen",
    );
    check(|e| e.snapshot.taken = false, "none: no snapshot was taken");
}

#[test]
fn somebody_elses_freeze_is_not_ours() {
    let busy = FreezeResult::Attempted { freeze: CallResult::Failed { errno: 16 }, thaw: CallResult::Unknown };
    check(|e| e.file_systems[0].frozen = busy, "crash: the file system at /: somebody else had frozen it");
}

#[test]
fn a_thaw_that_did_not_return_zero_was_no_freeze_to_the_end() {
    for (thaw, words) in [
        (
            CallResult::Failed { errno: 22 },
            "its thaw ended with error number 22, so it may not have been frozen to the end",
        ),
        (CallResult::Unknown, "its thaw was not confirmed, so it may not have been frozen to the end"),
    ] {
        check(
            |e| e.file_systems[0].frozen = FreezeResult::Attempted { freeze: CallResult::Ok, thaw },
            &format!("crash: the file system at /: {words}"),
        );
    }
}

/// Flaws of the window take every file system with them.
#[test]
fn a_snapshot_that_is_not_known_to_lie_inside_the_window_is_a_crash() {
    let check_window = |change: fn(&mut WindowEvidence), words: &str| {
        let mut evidence = good();
        change(&mut evidence.window);
        let assessment = assess(&evidence);
        assert_eq!(assessment.level, Some(ConsistencyLevel::Crash), "{words}");
        for fs in assessment.file_systems.iter().filter(|fs| fs.counts) {
            assert_eq!(fs.reason.as_ref().map(ToString::to_string).as_deref(), Some(words));
        }
    };
    check_window(|w| w.frozen_id = None, "no freeze was acknowledged");
    check_window(
        |w| w.acknowledged_before_snapshot = false,
        "the snapshot was not sent after the freeze was acknowledged",
    );
    check_window(|w| w.snapshot_returned_before_thaw = false, "the thaw was sent before the snapshot had returned");
    check_window(|w| w.thawed_id = None, "the guest confirmed no thaw of this freeze");
    check_window(|w| w.thawed_id = Some(8), "the guest confirmed no thaw of this freeze");
    check_window(|w| w.no_gap = false, "the guest was not frozen without a gap until the snapshot had returned");
}

#[test]
fn disks_of_different_instants_are_worth_something_only_where_they_were_at_rest() {
    check(
        |e| e.snapshot.atomic = false,
        "file-system: PostgreSQL 15 main: the snapshot's disks are not known to be of one instant",
    );
    check(
        |e| {
            e.snapshot.atomic = false;
            e.file_systems[0].frozen = FreezeResult::NotAttempted;
        },
        "none: the file system at /: it was not at rest, and the snapshot's disks are not known to be of one instant; \
         PostgreSQL 15 main: the snapshot's disks are not known to be of one instant",
    );
}

#[test]
fn data_outside_the_snapshot_leaves_no_level() {
    check(
        |e| e.file_systems[1].on_snapshot = false,
        "none: the file system at /srv/pg: not all its disks are in the snapshot; PostgreSQL 15 main: the file system at \
         /srv/pg it writes to: not all its disks are in the snapshot",
    );
    check(
        |e| e.applications[0].superblocks.push(sb(33)),
        "none: PostgreSQL 15 main: it writes to 8:33, about which nothing is known",
    );
    check(
        |e| e.applications[0].superblocks.clear(),
        "none: PostgreSQL 15 main: it is not known which file systems it writes to",
    );
    check(
        |e| {
            e.file_systems.remove(0);
        },
        "none: nothing is known about the root file system",
    );
}

#[test]
fn a_file_system_that_an_application_writes_to_counts_whatever_it_was_taken_for() {
    check(
        |e| {
            e.file_systems[2].role = Role::Other;
            e.applications[0].superblocks.push(sb(15));
        },
        "crash: the file system at /boot/efi: vfat cannot be frozen; PostgreSQL 15 main: the file system at /boot/efi it \
         writes to: vfat cannot be frozen",
    );
}

#[test]
fn a_read_only_file_system_is_at_rest_without_a_freeze() {
    check(
        |e| {
            e.file_systems[0].writable = false;
            e.file_systems[0].frozen = FreezeResult::NotAttempted;
        },
        "application",
    );
}

#[test]
fn an_excluded_file_system_lowers_the_level_if_it_counts() {
    let exclude = |fs: &mut FileSystemEvidence| {
        fs.excluded = true;
        fs.frozen = FreezeResult::NotAttempted;
    };
    check(|e| exclude(&mut e.file_systems[0]), "crash: the file system at /: the settings exclude it from freezing");
    let scratch = |e: &mut Evidence| {
        let mut scratch = fs(40, "/scratch", Role::Other);
        exclude(&mut scratch);
        e.file_systems.push(scratch);
    };
    check(scratch, "application");
}

#[test]
fn a_device_number_is_two_numbers() {
    assert_eq!("253:0".parse(), Ok(SuperblockId { major: 253, minor: 0 }));
    assert_eq!(
        "sda1".parse::<SuperblockId>(),
        Err("\"sda1\" is not a device number: it must look like 8:1".to_owned())
    );
    assert_eq!(serde_json::to_string(&sb(1)).expect("JSON"), "\"8:1\"");
}

#[test]
fn a_guest_that_was_left_alone_is_as_after_a_power_cut_and_says_why() {
    let cause = "the guest cannot be reached".to_string();
    let check = |evidence: Evidence, expect: &str| {
        let verdict = assess(&evidence);
        let first = verdict.reasons.first().map(ToString::to_string).unwrap_or_default();
        assert_eq!(format!("{}: {first}", level_name(verdict.level)), expect);
    };
    // Not even looked into: the snapshot of its disks is all there is.
    let unseen = |atomic| Evidence {
        snapshot: SnapshotEvidence { taken: true, atomic },
        left_alone: Some(cause.clone()),
        ..Evidence::default()
    };
    check(unseen(true), "crash: nothing was frozen in the guest: the guest cannot be reached");
    check(unseen(false), "none: nothing was frozen in the guest: the guest cannot be reached");
    check(Evidence { left_alone: None, ..unseen(true) }, "none: nothing is known about the root file system");
    // Looked into: what is known of it counts, and the reason comes first.
    let mut seen = Evidence { left_alone: Some(cause.clone()), window: WindowEvidence::default(), ..good() };
    check(seen.clone(), "crash: nothing was frozen in the guest: the guest cannot be reached");
    seen.file_systems[0].on_snapshot = false;
    check(seen.clone(), "none: nothing was frozen in the guest: the guest cannot be reached");
    seen.snapshot.taken = false;
    check(seen, "none: no snapshot was taken");
    // It is no evidence of anything itself.
    assert_eq!(assess(&Evidence { left_alone: Some(cause), ..good() }), assess(&good()));
}
