//! What each version put on the wire, byte by byte: a change that moves a field or a variant fails here, and needs a new version with
//! a file of its own beside the others.
//!
//! `LULL_WRITE_WIRE=1` writes the file of the version under development anew.

use lull_guest_wire::frame::HEADER_BYTES;
use lull_guest_wire::*;
use std::fmt::Write;
use std::path::Path;

const DISK: Superblock = Superblock { major: 254, minor: 1 };
const FREEZE: FreezeId = FreezeId(0x0102_0304_0506_0708);

/// The commands that version 1 had.
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

/// The answers that version 1 had.
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

/// What version 1 said upwards.
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

fn commands_since_version_2() -> Vec<Command> {
    let only = IndexScope::Only(vec![b"/srv".to_vec(), b"/home/\xff".to_vec()]);
    let order = |scope| IndexOrder { scope, cross_mounts: true, flag_ctime_after_us: Some(-1) };
    let mut all: Vec<Command> =
        [IndexScope::Everything, IndexScope::ExceptNoise, only].map(|scope| Command::Index(order(scope))).into();
    all.push(Command::CancelIndex);
    all
}

fn up_since_version_2() -> Vec<FromRuntime> {
    let summary = IndexSummary {
        began_us: 1_795_000_000_000_000,
        ended_us: 1_795_000_001_000_000,
        folders: 2,
        entries: 300,
        unreadable_folders: 1,
        unreadable_entries: 4,
        vanished: 5,
        complete: false,
        stopped_because: Some("it was cancelled".into()),
        examples: vec!["/x: Input/output error".into()],
    };
    let status = Status { phase: Phase::Indexing, freeze: None, remaining_ms: 0 };
    vec![
        FromRuntime::Listing(ListingFrame { compressed: vec![0x28, 0xb5, 0x2f, 0xfd] }),
        FromRuntime::Reply { id: 1, result: Ok(Answer::Indexed(summary)) },
        FromRuntime::Reply { id: 2, result: Ok(Answer::Status(status)) },
    ]
}

fn up_since_version_3() -> Vec<FromRuntime> {
    let held = Held { fence: 17, message: "a newer task's component holds the guest".into() };
    vec![FromRuntime::Held(held), FromRuntime::Evicted]
}

/// What was said upwards when the protocol had this version.
fn up_of(version: u8) -> Vec<FromRuntime> {
    let since = [(1, up()), (2, up_since_version_2()), (3, up_since_version_3())];
    since.into_iter().filter(|(since, _)| *since <= version).flat_map(|(_, said)| said).collect()
}

/// A listing as it is inside the zstd frame.
fn listing() -> listing::Listing<'static> {
    use listing::{Entry, FolderListing, Kind, Listing};
    let entry = Entry {
        name: b"caf\xe9\n",
        kind: Kind::File,
        size_bytes: 1 << 40,
        mtime_us: -1,
        mode: 0o4755,
        uid: 1_000,
        gid: 100,
        changed_after_freeze: true,
    };
    let kinds =
        [Kind::File, Kind::Folder, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::CharDevice, Kind::BlockDevice];
    let whole = FolderListing {
        path: b"/",
        error: None,
        more: true,
        entries: kinds.map(|kind| Entry { kind, ..entry }).into(),
    };
    let unread = FolderListing { path: b"/srv/x", error: Some("Input/output error"), more: false, entries: vec![] };
    Listing { folders: vec![whole, unread] }
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

fn kept(version: u8) -> Vec<Vec<u8>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/v{version}.txt"));
    std::fs::read_to_string(file).unwrap().lines().map(bytes).collect()
}

/// Commands, what is said upwards, and last a listing.
fn written() -> Vec<Vec<u8>> {
    let down = commands().into_iter().chain(commands_since_version_2()).zip(1..);
    let down = down.map(|(command, id)| frame::encode(&ToRuntime { id, command }).unwrap());
    let up = up_of(PROTOCOL_VERSION).into_iter().map(|message| frame::encode(&message).unwrap());
    down.chain(up).chain([postcard::to_stdvec(&listing()).unwrap()]).collect()
}

#[test]
fn version_3_is_written_and_read_as_ever() {
    let lines = written();
    if std::env::var_os("LULL_WRITE_WIRE").is_some() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v3.txt");
        let text: Vec<String> = lines.iter().map(|line| hexadecimal(line)).collect();
        std::fs::write(&file, text.join("\n") + "\n").unwrap();
    }
    let kept = kept(PROTOCOL_VERSION);
    assert_eq!(lines, kept, "the wire changed: bump PROTOCOL_VERSION and keep this file");
    let (packed, frames) = kept.split_last().unwrap();
    let commands = commands().len() + commands_since_version_2().len();
    let read = frames[commands..].iter().map(|frame| frame::read(&mut frame.as_slice()).unwrap());
    assert_eq!(read.collect::<Vec<FromRuntime>>(), up_of(3));
    assert_eq!(listing::read(packed).unwrap(), listing());
}

/// Another version is refused by name; and since variants are only ever appended, what it said is still understood.
#[test]
fn earlier_versions_are_refused_by_name_and_their_messages_kept_their_place() {
    let with_walks = commands().into_iter().chain(commands_since_version_2()).collect();
    for (version, commands, listings) in [(1, commands(), 0), (2, with_walks, 1)] {
        let kept = kept(version);
        // The last lines of version 2 on are listings, in no frame.
        let frames = &kept[..kept.len() - listings];
        for frame in frames {
            let refused = frame::read::<FromRuntime>(&mut frame.as_slice());
            assert!(matches!(refused, Err(FrameError::Version(said)) if said == version), "{refused:?}");
        }
        let (down, above) = frames.split_at(commands.len());
        let body = |frame: &Vec<u8>| frame[HEADER_BYTES + 1..].to_vec();
        let read = down.iter().map(|frame| postcard::from_bytes::<ToRuntime>(&body(frame)).unwrap().command);
        assert_eq!(read.collect::<Vec<_>>(), commands);
        let read = above.iter().map(|frame| postcard::from_bytes::<FromRuntime>(&body(frame)).unwrap());
        assert_eq!(read.collect::<Vec<_>>(), up_of(version));
        for packed in &kept[kept.len() - listings..] {
            assert_eq!(listing::read(packed).unwrap(), self::listing());
        }
    }
}
