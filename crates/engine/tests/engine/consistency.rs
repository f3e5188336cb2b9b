//! What a restore point is worth, and that no evidence taken away ever makes it worth more.

use lull_engine::consistency::{
    ApplicationEvidence, Assessment, CallResult, ConsistencyLevel, Evidence, FileSystemEvidence, FreezeResult,
    QuiesceResult, Role, SnapshotEvidence, SuperblockId, WindowEvidence, assess,
};
use proptest::prelude::*;
use proptest::sample::{Index, select};

const FROZEN: FreezeResult = FreezeResult::Attempted { freeze: CallResult::Ok, thaw: CallResult::Ok };

fn sb(minor: u32) -> SuperblockId {
    SuperblockId { major: 8, minor }
}

fn fs(minor: u32, mount_point: &str, role: Role) -> FileSystemEvidence {
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

fn any_call() -> impl Strategy<Value = CallResult> {
    prop_oneof![
        4 => Just(CallResult::Ok),
        1 => Just(CallResult::Failed { errno: 16 }),
        1 => Just(CallResult::Failed { errno: 5 }),
        1 => Just(CallResult::Unknown),
    ]
}

fn any_frozen() -> impl Strategy<Value = FreezeResult> {
    prop_oneof![
        1 => Just(FreezeResult::NotAttempted),
        5 => (any_call(), any_call()).prop_map(|(freeze, thaw)| FreezeResult::Attempted { freeze, thaw }),
    ]
}

fn mostly() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.85)
}

/// Evidence as an inventory yields it: roles name exactly the applications that write there.
fn any_evidence() -> impl Strategy<Value = Evidence> {
    let file_system = (mostly(), mostly(), mostly(), mostly(), any_frozen(), any::<bool>());
    let quiesce = select(vec![
        QuiesceResult::Quiesced,
        QuiesceResult::Quiesced,
        QuiesceResult::Quiesced,
        QuiesceResult::NotRunning,
        QuiesceResult::Failed { cause: "down".into() },
        QuiesceResult::NotAttempted,
    ]);
    let application = (prop::collection::btree_set(0u32..5, 1..3), quiesce);
    (
        prop::collection::vec(file_system, 1..5),
        prop::collection::vec(application, 0..3),
        mostly(),
        (prop::option::weighted(0.9, 1u64..3), mostly(), mostly(), prop::option::weighted(0.9, 1u64..2), mostly()),
        (prop::bool::weighted(0.95), mostly()),
    )
        .prop_map(|(file_systems, applications, searched, window, (taken, atomic))| {
            let count = file_systems.len() as u32;
            let applications: Vec<ApplicationEvidence> = applications
                .into_iter()
                .enumerate()
                .map(|(n, (superblocks, quiesce))| ApplicationEvidence {
                    name: format!("app-{n}"),
                    superblocks: superblocks.into_iter().map(|minor| sb(minor % count)).collect(),
                    quiesce,
                })
                .collect();
            let file_systems = file_systems
                .into_iter()
                .enumerate()
                .map(|(n, (writable, freezable, included, on_snapshot, frozen, counts))| {
                    let superblock = sb(n as u32);
                    let writers: Vec<String> = applications
                        .iter()
                        .filter(|app| app.superblocks.contains(&superblock))
                        .map(|app| app.name.clone())
                        .collect();
                    let role = if n == 0 && counts {
                        Role::Root { applications: writers }
                    } else if writers.is_empty() {
                        Role::Other
                    } else {
                        Role::ApplicationData { applications: writers }
                    };
                    let mut fs = fs(n as u32, &format!("/mnt/{n}"), role);
                    (fs.writable, fs.freezable, fs.excluded) = (writable, freezable, !included);
                    (fs.on_snapshot, fs.frozen) = (on_snapshot, frozen);
                    fs
                })
                .collect();
            Evidence {
                file_systems,
                applications,
                applications_searched: searched,
                window: WindowEvidence {
                    frozen_id: window.0,
                    acknowledged_before_snapshot: window.1,
                    snapshot_returned_before_thaw: window.2,
                    thawed_id: window.3,
                    no_gap: window.4,
                },
                snapshot: SnapshotEvidence { taken, atomic },
            }
        })
}

/// Takes one piece of evidence away; `which` and `whom` pick it.
fn weaken(evidence: &Evidence, which: usize, whom: &Index) -> Evidence {
    let mut weaker = evidence.clone();
    let fs_index = whom.index(weaker.file_systems.len());
    let fs = &mut weaker.file_systems[fs_index];
    let app = (!evidence.applications.is_empty()).then(|| whom.index(evidence.applications.len()));
    match (which, app) {
        (0, _) => weaker.snapshot.taken = false,
        (1, _) => weaker.snapshot.atomic = false,
        (2, _) => weaker.window.frozen_id = None,
        (3, _) => weaker.window.acknowledged_before_snapshot = false,
        (4, _) => weaker.window.snapshot_returned_before_thaw = false,
        (5, _) => weaker.window.thawed_id = None,
        (6, _) => weaker.window.no_gap = false,
        (7, _) => weaker.applications_searched = false,
        (8, _) => fs.on_snapshot = false,
        (9, _) => fs.writable = true,
        (10, _) => fs.frozen = FreezeResult::NotAttempted,
        (11, _) => fs.frozen = FreezeResult::Attempted { freeze: CallResult::Ok, thaw: CallResult::Unknown },
        (12, _) => fs.frozen = FreezeResult::Attempted { freeze: CallResult::Unknown, thaw: CallResult::Unknown },
        (13, _) => {
            weaker.file_systems.remove(fs_index);
        }
        (14, Some(app)) => weaker.applications[app].quiesce = QuiesceResult::NotAttempted,
        (15, Some(app)) => {
            weaker.applications[app].superblocks.clear();
        }
        (16, Some(app)) => weaker.applications[app].superblocks.push(sb(99)),
        (17, Some(app)) => {
            weaker.applications.remove(app);
        }
        _ => {}
    }
    weaker
}

const WEAKENINGS: usize = 18;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn taking_evidence_away_never_raises_a_level(
        evidence in any_evidence(),
        which in 0..WEAKENINGS,
        whom in any::<Index>(),
    ) {
        let weaker = weaken(&evidence, which, &whom);
        let (before, after) = (assess(&evidence), assess(&weaker));
        prop_assert!(after.level <= before.level, "VM, by weakening {}:\n{}\n->\n{}", which, before, after);
        for fs in &after.file_systems {
            let known = before.file_systems.iter().find(|known| known.superblock == fs.superblock).expect("known");
            prop_assert!(fs.level <= known.level, "{} by weakening {}", fs.superblock, which);
        }
        for app in &after.applications {
            let known = before.applications.iter().find(|known| known.name == app.name).expect("known");
            prop_assert!(app.level <= known.level, "{} by weakening {}", app.name, which);
        }
    }

    #[test]
    fn the_vm_is_never_better_than_anything_that_counts(evidence in any_evidence()) {
        let assessment = assess(&evidence);
        for fs in assessment.file_systems.iter().filter(|fs| fs.counts) {
            prop_assert!(assessment.level.min(Some(ConsistencyLevel::FileSystem)) <= fs.level);
        }
        for app in &assessment.applications {
            prop_assert!(assessment.level <= app.level);
        }
        // Application means, told once more: everything an application writes to was at rest at one instant.
        if assessment.level == Some(ConsistencyLevel::Application) {
            prop_assert!(evidence.snapshot.taken && evidence.snapshot.atomic && evidence.applications_searched);
            prop_assert!(!evidence.applications.is_empty());
            for app in &evidence.applications {
                prop_assert_eq!(&app.quiesce, &QuiesceResult::Quiesced);
                for superblock in &app.superblocks {
                    let fs = evidence.file_systems.iter().find(|fs| fs.superblock == *superblock).expect("known");
                    let frozen = fs.frozen == FROZEN
                        && evidence.window.no_gap
                        && evidence.window.acknowledged_before_snapshot
                        && evidence.window.snapshot_returned_before_thaw
                        && evidence.window.frozen_id.is_some()
                        && evidence.window.frozen_id == evidence.window.thawed_id;
                    prop_assert!(fs.on_snapshot && (frozen || !fs.writable));
                }
            }
        }
    }

    #[test]
    fn whatever_is_not_the_best_says_why(evidence in any_evidence()) {
        let assessment = assess(&evidence);
        prop_assert_eq!(assessment.reasons.is_empty(), assessment.level == Some(ConsistencyLevel::Application));
        for fs in &assessment.file_systems {
            prop_assert_eq!(fs.reason.is_none(), fs.level == Some(ConsistencyLevel::FileSystem));
        }
        for app in &assessment.applications {
            prop_assert_eq!(app.reason.is_none(), app.level == Some(ConsistencyLevel::Application));
        }
        let text = serde_json::to_string(&assessment).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<Assessment>(&text).expect("the same"), assessment);
    }

    #[test]
    fn evidence_survives_json_and_an_empty_one_is_worth_nothing(evidence in any_evidence()) {
        let text = serde_json::to_string(&evidence).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<Evidence>(&text).expect("the same"), evidence);
        prop_assert_eq!(assess(&Evidence::default()).level, None);
    }
}
