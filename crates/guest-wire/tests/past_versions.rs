//! What version 1 put on the wire, byte by byte: a change that moves a field or a variant fails here, and needs a new version with
//! a file of its own beside this one.
//!
//! `LULL_WRITE_WIRE=1` writes the file of the version under development anew.

use lull_guest_wire::*;
use std::fmt::Write;
use std::path::Path;

const DISK: Superblock = Superblock { major: 254, minor: 1 };
const FREEZE: FreezeId = FreezeId(0x0102_0304_0506_0708);

fn commands() -> Vec<Command> {
    let script = ScriptOrder {
        stage: ScriptStage::PostThaw,
        body: b"#!/bin/sh\ntrue\n".to_vec(),
        timeout_ms: 600_000,
        environment: vec![("LULL_VM".into(), "db".into())],
    };
    let quiesce = QuiesceOrder { checkpoint: true, checkpoint_timeout_ms: 60_000, connect_timeout_ms: 10_000 };
    let arm = ArmOrder { freeze: FREEZE, lease: Lease::default(), exclude_mount_points: vec!["/scratch".into()] };
    vec![
        Command::Inventory,
        Command::Script(script),
        Command::CancelScript,
        Command::Quiesce(quiesce),
        Command::Arm(arm),
        Command::Freeze(FREEZE),
        Command::Renew(FREEZE),
        Command::Status,
        Command::Thaw(FREEZE),
        Command::Release,
        Command::Bye,
    ]
}

fn inventory() -> Inventory {
    let os = Os {
        name: "Debian GNU/Linux 12 (bookworm)".into(),
        id: "debian".into(),
        version: "12".into(),
        kernel: "6.1.0".into(),
        host_name: "db".into(),
        machine_id: String::new(),
    };
    let root = FileSystem {
        superblock: DISK,
        fs_type: "ext4".into(),
        source: "/dev/vda".into(),
        mount_points: vec!["/".into(), "/bind".into()],
        is_root: true,
        read_only: false,
        freezable: Freezable::Yes,
        disks: vec!["vda".into()],
        on_vm_disks: true,
        inside: None,
        size_bytes: 1 << 30,
        free_bytes: 1 << 29,
    };
    let esp = FileSystem { freezable: Freezable::No("vfat".into()), inside: Some(DISK), ..root.clone() };
    let application = |state| Application {
        key: "postgresql:/d".into(),
        name: "PostgreSQL 15".into(),
        places: vec![ApplicationPlace { what: "data".into(), path: "/d".into(), superblock: DISK }],
        state,
    };
    let states = [ApplicationState::Runs, ApplicationState::Unreachable("a container".into()), ApplicationState::Down];
    Inventory {
        os,
        file_systems: vec![root, esp],
        applications: states.map(application).into(),
        incomplete: vec!["unseen".into()],
        notes: vec!["a note".into()],
    }
}

fn answers() -> Vec<Answer> {
    let thaw = |result| SuperblockThaw { superblock: DISK, mount_point: "/".into(), result };
    let ends = [ScriptEnd::Exited(3), ScriptEnd::Signalled(9), ScriptEnd::TimedOut, ScriptEnd::Cancelled];
    let scripts =
        ends.map(|end| Answer::Script(ScriptResult { end, output: b"said".to_vec(), dropped_bytes: 5, took_ms: 700 }));
    let quiesced = ApplicationQuiesced {
        key: "postgresql:/d".into(),
        result: Ok(vec![("timeline".into(), "1".into())]),
        caveats: vec!["fsync is off".into()],
        took_ms: 12,
    };
    let failed = ApplicationQuiesced { result: Err("refused".into()), ..quiesced.clone() };
    let results = [
        ThawResult::Thawed,
        ThawResult::WasThawed,
        ThawResult::SomebodyElse,
        ThawResult::FreezeFailed("no".into()),
        ThawResult::NotFrozen,
        ThawResult::Failed("no".into()),
    ];
    let thawed = Thawed {
        freeze: FREEZE,
        no_gap: false,
        gaps: vec!["a gap".into()],
        superblocks: results.map(thaw).into(),
        frozen_us: 40_000,
    };
    let phases = [Phase::Idle, Phase::Script, Phase::Armed, Phase::Freezing, Phase::Frozen, Phase::Thawing];
    let statuses = phases.map(|phase| Answer::Status(Status { phase, freeze: Some(FREEZE), remaining_ms: 4_000 }));
    let mut all = vec![Answer::Inventory(inventory())];
    all.extend(scripts);
    all.extend([
        Answer::Quiesced(vec![quiesced, failed]),
        Answer::Armed(Armed { plan: vec![DISK], watchdog_pid: 812, notes: vec!["a note".into()] }),
        Answer::Frozen(Frozen { freeze: FREEZE, superblocks: vec![(DISK, 900)], remaining_ms: 5_000 }),
        Answer::Renewed { remaining_ms: 5_000 },
        Answer::Thawed(thawed),
        Answer::Done,
    ]);
    all.extend(statuses);
    all
}

fn up() -> Vec<FromRuntime> {
    let kinds = [
        RefusalKind::NotNow,
        RefusalKind::BadOrder,
        RefusalKind::SomebodyElse,
        RefusalKind::FreezeFailed,
        RefusalKind::Expired,
        RefusalKind::WatchdogLost,
        RefusalKind::Failed,
    ];
    let refused = |kind| Err(Refusal { kind, message: "why".into(), superblocks: vec![] });
    let results = answers().into_iter().map(Ok).chain(kinds.map(refused));
    let hello = Hello { version: "0.1.0".into(), pid: 811, leftovers: vec!["/run/lull-x".into()] };
    let mut all = vec![FromRuntime::Hello(hello), FromRuntime::Event(Event::Note("a note".into()))];
    all.extend(results.zip(1..).map(|(result, id)| FromRuntime::Reply { id, result }));
    all
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    (0..hexadecimal.len()).step_by(2).map(|at| u8::from_str_radix(&hexadecimal[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn version_1_is_written_and_read_as_ever() {
    let down = commands().into_iter().zip(1..).map(|(command, id)| ToRuntime { id, command });
    let down: Vec<String> = down.map(|message| hexadecimal(&frame::encode(&message).unwrap())).collect();
    let all = up();
    let written = all.iter().map(|message| hexadecimal(&frame::encode(message).unwrap()));
    let lines: Vec<String> = down.into_iter().chain(written).collect();

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1.txt");
    if std::env::var_os("LULL_WRITE_WIRE").is_some() {
        std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    }
    let kept = std::fs::read_to_string(file).unwrap();
    assert_eq!(lines, kept.lines().collect::<Vec<_>>(), "the wire changed: bump PROTOCOL_VERSION and keep this file");
    let read = kept.lines().skip(commands().len()).map(|line| frame::read(&mut bytes(line).as_slice()).unwrap());
    assert_eq!(read.collect::<Vec<FromRuntime>>(), all);
}
