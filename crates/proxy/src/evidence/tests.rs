//! From what was said to the level that follows: through the engine's own judgement.

use super::*;
use lull_engine::consistency::{ConsistencyLevel, assess};
use lull_guest_wire::{Application, ApplicationPlace, Os};

const ROOT: Superblock = Superblock { major: 254, minor: 0 };
const FREEZE: FreezeId = FreezeId(7);

fn inventory() -> Inventory {
    let os = Os {
        name: "Debian".into(),
        id: "debian".into(),
        version: "12".into(),
        kernel: "6.1".into(),
        host_name: "db1".into(),
        machine_id: String::new(),
    };
    let root = FileSystem {
        superblock: ROOT,
        fs_type: "ext4".into(),
        source: "/dev/vda".into(),
        mount_points: vec!["/".into()],
        is_root: true,
        read_only: false,
        freezable: Freezable::Yes,
        disks: vec!["vda".into()],
        on_vm_disks: true,
        inside: None,
        size_bytes: 1,
        free_bytes: 1,
    };
    let place = ApplicationPlace { what: "data".into(), path: "/pg".into(), superblock: ROOT };
    let app = Application {
        key: "pg".into(),
        name: "PostgreSQL 15".into(),
        places: vec![place],
        state: ApplicationState::Runs,
    };
    Inventory { os, file_systems: vec![root], applications: vec![app], incomplete: vec![], notes: vec![] }
}

fn quiesced() -> Vec<ApplicationQuiesced> {
    vec![ApplicationQuiesced { key: "pg".into(), result: Ok(vec![]), caveats: vec![], took_ms: 1 }]
}

fn whole_window() -> Window {
    let thaw = SuperblockThaw { superblock: ROOT, mount_point: "/".into(), result: ThawResult::Thawed };
    Window {
        sent: Some(FREEZE),
        frozen: Some(Frozen { freeze: FREEZE, superblocks: vec![(ROOT, 100)], remaining_ms: 5000 }),
        snapshot_after_freeze: true,
        snapshot_before_thaw: true,
        thawed: Some(Thawed { freeze: FREEZE, no_gap: true, gaps: vec![], superblocks: vec![thaw], frozen_us: 40_000 }),
        ..Window::default()
    }
}

fn check(change: impl Fn(&mut Window, &mut Vec<ApplicationQuiesced>), expect: ConsistencyLevel) {
    let (inventory, mut window, mut quiesced) = (inventory(), whole_window(), quiesced());
    change(&mut window, &mut quiesced);
    let snapshot = SnapshotEvidence { taken: true, atomic: true };
    let facts = Facts {
        inventory: Some(&inventory),
        quiesced: Some(&quiesced),
        window: Some(&window),
        snapshot,
        ..Facts::default()
    };
    let assessment = assess(&evidence(&facts));
    assert_eq!(assessment.level, Some(expect), "{assessment}");
}

#[test]
fn a_whole_window_with_its_application_at_rest_is_application_consistent() {
    check(|_, _| {}, ConsistencyLevel::Application);
}

#[test]
fn whatever_is_missing_lowers_the_level() {
    check(|w, _| w.thawed = None, ConsistencyLevel::Crash);
    check(|w, _| w.frozen = None, ConsistencyLevel::Crash);
    check(|w, _| w.snapshot_before_thaw = false, ConsistencyLevel::Crash);
    check(|w, _| w.thawed.as_mut().unwrap().no_gap = false, ConsistencyLevel::Crash);
    check(|w, _| w.thawed.as_mut().unwrap().superblocks[0].result = ThawResult::WasThawed, ConsistencyLevel::Crash);
    check(|_, q| q[0].result = Err("its checkpoint took too long".into()), ConsistencyLevel::FileSystem);
    check(|_, q| q[0].caveats = vec!["fsync is off".into()], ConsistencyLevel::FileSystem);
}

/// A guest whose data lies on a second disk, in a snapshot that only the freeze could make one instant.
fn on_two_disks(change: impl Fn(&mut Inventory, &mut Window)) -> Option<ConsistencyLevel> {
    let data = Superblock { major: 254, minor: 16 };
    let (mut inventory, mut window, quiesced) = (inventory(), whole_window(), quiesced());
    inventory.file_systems.push(FileSystem {
        superblock: data,
        mount_points: vec!["/srv".into()],
        is_root: false,
        disks: vec!["vdb".into()],
        ..inventory.file_systems[0].clone()
    });
    let thawed = window.thawed.as_mut().unwrap();
    thawed.superblocks.push(SuperblockThaw { superblock: data, ..thawed.superblocks[0].clone() });
    window.frozen.as_mut().unwrap().superblocks.push((data, 100));
    change(&mut inventory, &mut window);
    let snapshot = SnapshotEvidence { taken: true, atomic: false };
    let (inventory, quiesced, window) = (Some(&inventory), Some(quiesced.as_slice()), Some(&window));
    assess(&evidence(&Facts { inventory, quiesced, window, snapshot, ..Facts::default() })).level
}

#[test]
fn several_disks_are_one_instant_only_as_far_as_the_freeze_is_proved() {
    assert_eq!(on_two_disks(|_, _| {}), Some(ConsistencyLevel::Application));
    let gap = |_: &mut Inventory, window: &mut Window| window.thawed.as_mut().unwrap().no_gap = false;
    assert_eq!(on_two_disks(gap), None, "torn, not crash-consistent");
    let not_frozen = |inventory: &mut Inventory, window: &mut Window| {
        inventory.file_systems[1].fs_type = "vfat".into();
        inventory.file_systems[1].freezable = Freezable::No("vfat cannot be frozen".into());
        window.frozen.as_mut().unwrap().superblocks.truncate(1);
        window.thawed.as_mut().unwrap().superblocks.truncate(1);
    };
    assert_eq!(
        on_two_disks(not_frozen),
        Some(ConsistencyLevel::Application),
        "it does not count, and lies on one disk"
    );
    let torn = |inventory: &mut Inventory, window: &mut Window| {
        not_frozen(inventory, window);
        inventory.file_systems[1].disks.push("vdc".into());
    };
    assert_eq!(on_two_disks(torn), Some(ConsistencyLevel::FileSystem), "the disks are not known to be of one instant");
}

#[test]
fn an_application_that_is_down_or_may_have_been_missed_keeps_the_level_below_the_best() {
    let level = |change: fn(&mut Inventory)| {
        let (mut inventory, window, quiesced) = (inventory(), whole_window(), quiesced());
        change(&mut inventory);
        let snapshot = SnapshotEvidence { taken: true, atomic: true };
        let (inventory, quiesced, window) = (Some(&inventory), Some(quiesced.as_slice()), Some(&window));
        assess(&evidence(&Facts { inventory, quiesced, window, snapshot, ..Facts::default() }))
    };
    let missed =
        level(|inventory| inventory.incomplete = vec!["of 3 processes it could not be seen what they run".into()]);
    assert_eq!(missed.level, Some(ConsistencyLevel::FileSystem), "{missed}");
    let down = level(|inventory| {
        let down = Application { key: "old".into(), name: "PostgreSQL 13".into(), ..inventory.applications[0].clone() };
        inventory.applications.push(Application { state: ApplicationState::Down, ..down });
    });
    assert_eq!(down.level, Some(ConsistencyLevel::FileSystem), "{down}");
    assert!(down.to_string().contains("PostgreSQL 13"), "{down}");
}

#[test]
fn a_lost_answer_is_unknown_and_a_refused_freeze_is_told_as_it_was() {
    let lost = Window { sent: Some(FREEZE), ..Window::default() };
    let unknown = FreezeResult::Attempted { freeze: CallResult::Unknown, thaw: CallResult::Unknown };
    assert_eq!(freeze_result(&lost, ROOT), unknown);
    let words = "Input/output error (os error 5)".to_string();
    let refused = SuperblockThaw { superblock: ROOT, mount_point: "/".into(), result: ThawResult::FreezeFailed(words) };
    let window = Window { sent: Some(FREEZE), refused: vec![refused], ..Window::default() };
    let failed = FreezeResult::Attempted { freeze: CallResult::Failed { errno: 5 }, thaw: CallResult::Unknown };
    assert_eq!(freeze_result(&window, ROOT), failed);
}

#[test]
fn an_application_that_could_not_be_brought_to_rest_is_named_with_its_reason() {
    let failures = application_failures(&inventory(), &[]);
    assert_eq!(failures, ["PostgreSQL 15: the guest said nothing of it"]);
    assert!(application_failures(&inventory(), &quiesced()).is_empty());
    let mut down = inventory();
    down.applications[0].state = ApplicationState::Down;
    assert_eq!(application_failures(&down, &[]), ["PostgreSQL 15 ought to run and does not"]);
}
