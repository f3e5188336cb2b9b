//! That no evidence taken away ever makes a restore point worth more, and that levels mean what they say.

use crate::consistency::{FROZEN, fs, sb};
use lull_engine::consistency::{
    ApplicationEvidence, Assessment, CallResult, ConsistencyLevel, Evidence, FreezeResult, QuiesceResult, Role,
    SnapshotEvidence, WindowEvidence, assess,
};
use proptest::prelude::*;
use proptest::sample::{Index, select};

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
                left_alone: None,
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
