//! What holds in a freeze without faults, and what is refused.

use crate::bed::{BTRFS, Bed, machine_superblocks};
use crate::client::Component;
use crate::deploy::{deploy, start};
use lull_guest_wire::*;
use lull_runtime::kernel;
use std::os::fd::AsFd;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

#[test]
fn a_file_created_while_frozen_hangs_and_appears_after_the_thaw() {
    let bed = Bed::new();
    let mut component = start(&bed);
    assert!(component.hello.leftovers.is_empty(), "{:?}", component.hello.leftovers);
    assert!(bed.path("/run").read_dir().unwrap().next().is_none(), "the component removed its file");
    let Ok(Answer::Inventory(inventory)) = component.ask(Command::Inventory) else { panic!("no inventory") };
    assert_eq!(inventory.os.name, "Test host 1");
    let root = inventory.file_systems.iter().find(|fs| fs.is_root).unwrap();
    assert_eq!((root.superblock, root.fs_type.as_str()), (bed.superblock("/"), "ext4"));
    let data = inventory.file_systems.iter().find(|fs| fs.superblock == bed.superblock("/data")).unwrap();
    assert_eq!(data.mount_points, ["/bind", "/data"]);
    assert_eq!(data.freezable, Freezable::Yes);
    assert!(data.size_bytes > 400 << 20 && data.free_bytes > 0);

    let armed = component.arm(7, 5_000, 30_000);
    let inner = inventory.file_systems.iter().find(|fs| fs.superblock == bed.superblock("/inner")).unwrap();
    assert_eq!(inner.inside, Some(data.superblock), "its image lies in /data");
    assert_eq!(armed.plan, ["/inner", "/data/nested", "/data", "/"].map(|place| bed.superblock(place)));
    let frozen = component.freeze(7);
    assert_eq!(frozen.superblocks.len(), 4);
    let files = bed.create_files_that_hang("plain");
    let thawed = component.thaw(7);
    assert!(thawed.no_gap, "{:?}", thawed.gaps);
    assert!(thawed.superblocks.iter().all(|thaw| thaw.result == ThawResult::Thawed));
    let order: Vec<&str> = thawed.superblocks.iter().map(|thaw| thaw.mount_point.as_str()).collect();
    assert_eq!(order, ["/", "/bind", "/data/nested", "/inner"]);
    assert!(thawed.frozen_us >= 120_000);
    for (place, when) in files {
        when.recv_timeout(Duration::from_secs(2)).unwrap_or_else(|_| panic!("{place} did not thaw"));
    }
    assert_eq!(component.thaw(7), thawed, "a lost answer can be had again");
    component.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn a_btrfs_is_frozen_with_its_subvolumes_and_thaws_by_itself() {
    let bed = Bed::with_btrfs();
    let mut component = start(&bed);
    let Ok(Answer::Inventory(inventory)) = component.ask(Command::Inventory) else { panic!("no inventory") };
    let btrfs = inventory.file_systems.iter().find(|fs| fs.superblock == bed.superblock(BTRFS)).unwrap();
    assert_eq!((btrfs.fs_type.as_str(), &btrfs.freezable), ("btrfs", &Freezable::Yes));
    let freeze = |component: &mut Component, number| {
        let armed = component.arm(number, 5_000, 30_000);
        assert!(armed.plan.contains(&bed.superblock(BTRFS)), "{armed:?}");
        assert_eq!(component.freeze(number).superblocks.len(), 5);
        let mut files = bed.create_files_that_hang(&number.to_string());
        let inside = bed.create_file(&format!("{BTRFS}/subvolume/while-frozen-{number}"));
        assert!(inside.recv_timeout(Duration::from_millis(200)).is_err(), "its subvolumes are frozen with it");
        files.push(("subvolume".into(), inside));
        files
    };
    let all_appear = |files: Vec<(String, Receiver<Instant>)>| {
        for (place, when) in files {
            when.recv_timeout(Duration::from_secs(2)).unwrap_or_else(|_| panic!("{place} did not thaw"));
        }
    };
    let files = freeze(&mut component, 1);
    let thawed = component.thaw(1);
    assert!(thawed.no_gap, "{:?}", thawed.gaps);
    all_appear(files);
    let files = freeze(&mut component, 2);
    component.cut();
    all_appear(files);
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn only_renew_status_and_thaw_pass_while_frozen() {
    let bed = Bed::new();
    let mut component = start(&bed);
    component.arm(1, 5_000, 30_000);
    component.freeze(1);
    for command in
        [Command::Inventory, Command::Release, Command::CancelScript, Command::Bye, Command::Freeze(FreezeId(2))]
    {
        assert_eq!(component.ask(command).unwrap_err().kind, RefusalKind::NotNow);
    }
    assert_eq!(component.renew(2).unwrap_err().kind, RefusalKind::BadOrder);
    assert!(matches!(component.renew(1), Ok(Answer::Renewed { remaining_ms: 4_900..=5_000 })));
    assert_eq!(component.status().phase, Phase::Frozen);
    assert!(component.thaw(1).no_gap);
    assert_eq!(component.status().phase, Phase::Idle);
    assert_eq!(component.renew(1).unwrap_err().kind, RefusalKind::NotNow);
    component.bye();
}

#[test]
fn one_component_freezes_again_and_again() {
    let bed = Bed::new();
    let mut component = start(&bed);
    for freeze in 1..=5 {
        component.arm(freeze, 5_000, 30_000);
        component.freeze(freeze);
        assert!(component.thaw(freeze).no_gap);
        // The thaw is answered before the lock goes; whatever is asked next is answered after.
        component.status();
        assert!(!bed.path("/run/lull.lock").exists());
    }
    component.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn grace_periods_hurry_while_a_freeze_is_armed_and_no_longer() {
    let bed = Bed::new();
    let mut component = start(&bed);
    component.arm(1, 5_000, 30_000);
    assert_eq!(bed.grace_periods(), "1");
    component.freeze(1);
    component.thaw(1);
    component.status();
    assert_eq!(bed.grace_periods(), "0");
    // Somebody else's hurry stays theirs.
    std::fs::write(bed.path("/sys/kernel/rcu_expedited"), "1\n").unwrap();
    component.arm(2, 5_000, 30_000);
    component.freeze(2);
    component.thaw(2);
    component.bye();
    assert_eq!(bed.grace_periods(), "1");
}

#[test]
fn a_plan_that_holds_a_forbidden_superblock_is_refused() {
    let bed = Bed::new();
    let path = deploy(&bed);
    let mut command = bed.command(&path);
    command.args(["serve", "--never-freeze", &machine_superblocks()[0].to_string()]);
    command.args(["--never-freeze", &bed.superblock("/data").to_string()]);
    let mut component = Component::over_pipes(command);
    let order = ArmOrder { freeze: FreezeId(1), lease: Lease::default(), exclude_mount_points: Vec::new() };
    let refusal = component.ask(Command::Arm(order)).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::BadOrder);
    assert!(refusal.message.contains("must never be frozen"), "{}", refusal.message);
    component.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn an_excluded_file_system_takes_writes_while_the_others_are_frozen() {
    let bed = Bed::new();
    let mut component = start(&bed);
    let order = ArmOrder {
        freeze: FreezeId(1),
        lease: Lease::default(),
        exclude_mount_points: vec!["/data/nested".into(), "/nowhere".into()],
    };
    let Ok(Answer::Armed(armed)) = component.ask(Command::Arm(order)) else { panic!("not armed") };
    assert_eq!(armed.plan, ["/inner", "/data", "/"].map(|place| bed.superblock(place)));
    assert!(armed.notes.iter().any(|note| note.starts_with("/nowhere is excluded")), "{:?}", armed.notes);
    component.freeze(1);
    bed.create_file("/data/nested/excluded").recv_timeout(Duration::from_secs(2)).expect("excluded, so writable");
    assert!(component.thaw(1).no_gap);
    component.bye();
}

#[test]
fn somebody_elses_freeze_is_refused_and_left_alone() {
    let bed = Bed::new();
    let mut component = start(&bed);
    component.arm(1, 5_000, 30_000);
    kernel::freeze(bed.place("/data/nested").as_fd()).unwrap();
    let refusal = component.ask(Command::Freeze(FreezeId(1))).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::SomebodyElse, "{refusal:?}");
    let of = |place: &str| {
        let superblock = bed.superblock(place);
        refusal.superblocks.iter().find(|thaw| thaw.superblock == superblock).unwrap().result.clone()
    };
    assert_eq!(of("/data/nested"), ThawResult::SomebodyElse);
    assert_eq!(of("/inner"), ThawResult::Thawed);
    assert_eq!(of("/"), ThawResult::NotFrozen);
    assert_eq!(kernel::thaw(bed.place("/data/nested").as_fd()), Ok(()), "it must still have been frozen");
    component.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn a_freeze_that_fails_half_way_is_undone() {
    let bed = Bed::new();
    let mut component = start(&bed);
    component.arm(1, 5_000, 30_000);
    bed.break_file_system("/");
    let refusal = component.ask(Command::Freeze(FreezeId(1))).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::FreezeFailed, "{refusal:?}");
    let results: Vec<_> = refusal.superblocks.iter().map(|thaw| &thaw.result).collect();
    assert!(matches!(results[0], ThawResult::FreezeFailed(why) if why.contains("Input/output error")), "{results:?}");
    assert_eq!(results[1..], [&ThawResult::Thawed; 3], "the others were frozen before");
    for place in ["/data", "/data/nested", "/inner"] {
        let file = bed.create_file(&format!("{place}/after"));
        file.recv_timeout(Duration::from_secs(2)).unwrap_or_else(|_| panic!("{place} did not thaw"));
    }
    assert!(!component.thaw(1).no_gap);
    component.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn a_thaw_by_somebody_else_is_a_gap() {
    let bed = Bed::new();
    let mut component = start(&bed);
    component.arm(1, 5_000, 30_000);
    component.freeze(1);
    kernel::thaw(bed.place("/data").as_fd()).unwrap();
    let thawed = component.thaw(1);
    assert!(!thawed.no_gap);
    assert_eq!(thawed.gaps.len(), 1, "{:?}", thawed.gaps);
    assert!(thawed.gaps[0].contains("somebody else had thawed"), "{:?}", thawed.gaps);
    component.bye();
}

#[test]
fn a_second_freezer_is_refused_until_the_first_is_done() {
    let bed = Bed::new();
    let mut first = start(&bed);
    let mut second = start(&bed);
    first.arm(1, 5_000, 30_000);
    let order = ArmOrder { freeze: FreezeId(2), lease: Lease::default(), exclude_mount_points: Vec::new() };
    let refusal = second.ask(Command::Arm(order)).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::SomebodyElse);
    assert!(refusal.message.contains("another backup of this guest"), "{}", refusal.message);
    first.freeze(1);
    assert!(first.thaw(1).no_gap);
    first.status();
    second.arm(2, 5_000, 30_000);
    second.freeze(2);
    assert!(second.thaw(2).no_gap);
    first.bye();
    second.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn orders_that_are_wrong_say_what_is_wrong() {
    let bed = Bed::new();
    let mut component = start(&bed);
    let too_long = ArmOrder {
        freeze: FreezeId(1),
        lease: Lease { lease_ms: 5_000, budget_ms: 60_001 },
        exclude_mount_points: Vec::new(),
    };
    assert_eq!(component.ask(Command::Arm(too_long)).unwrap_err().kind, RefusalKind::BadOrder);
    assert_eq!(component.ask(Command::Freeze(FreezeId(9))).unwrap_err().message, "freeze 9 was never armed");
    component.arm(1, 5_000, 30_000);
    assert_eq!(component.ask(Command::Freeze(FreezeId(9))).unwrap_err().kind, RefusalKind::BadOrder);
    let thawed = component.thaw(1);
    assert!(!thawed.no_gap && thawed.superblocks.iter().all(|thaw| thaw.result == ThawResult::NotFrozen));
    component.arm(2, 5_000, 30_000);
    component.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}
