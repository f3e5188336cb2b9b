//! The component listing files for a proxy, over pipes: answers meanwhile, a proxy that reads slowly, and every way to end.
//!
//! Needs no root: nothing is frozen. What a walk may enter is tested on mounts of its own in freeze_loop.

use lull_guest_wire::listing::{self, COMPRESSED_BYTES_MAX, UNPACKED_BYTES_MAX};
use lull_guest_wire::*;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::time::{Duration, Instant};

const FOLDERS: usize = 60;
const FILES: usize = 1_000;
/// So much of a component's memory may be resident while it lists, in KiB.
const RESIDENT_KIB_MAX: u64 = 64 << 10;

struct Component {
    process: Child,
    to: Option<File>,
    from: Option<File>,
    next_id: u32,
    frames: Vec<Vec<u8>>,
}

impl Component {
    fn start() -> Component {
        let mut program = Program::new(env!("CARGO_BIN_EXE_lull-runtime"));
        let mut process = program.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (to, from): (OwnedFd, OwnedFd) = (to.into(), from.into());
        let mut component =
            Component { process, to: Some(to.into()), from: Some(from.into()), next_id: 1, frames: vec![] };
        assert!(matches!(component.hear(), FromRuntime::Hello(_)));
        component
    }

    fn send(&mut self, command: Command) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        frame::write(self.to.as_mut().unwrap(), &ToRuntime { id, command }).unwrap();
        id
    }

    fn hear(&mut self) -> FromRuntime {
        frame::read(self.from.as_mut().unwrap()).unwrap()
    }

    /// The next reply; frames of the walk that come before it are kept.
    fn reply(&mut self) -> (u32, Result<Answer, Refusal>) {
        loop {
            match self.hear() {
                FromRuntime::Reply { id, result } => return (id, result),
                FromRuntime::Listing(ListingFrame { compressed }) => self.frames.push(compressed),
                other => panic!("{other:?}"),
            }
        }
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn ends_within(mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if self.process.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.process.kill().unwrap();
        false
    }

    fn listed(&self) -> u64 {
        let mut unpacked = vec![0; UNPACKED_BYTES_MAX];
        let mut entries = 0;
        for frame in &self.frames {
            assert!(frame.len() <= COMPRESSED_BYTES_MAX);
            let bytes = zstd_safe::decompress(&mut unpacked[..], frame).unwrap();
            entries +=
                listing::read(&unpacked[..bytes]).unwrap().folders.iter().map(|f| f.entries.len()).sum::<usize>();
        }
        entries as u64
    }
}

/// Sixty thousand entries with long names that do not compress: far more frames than may wait anywhere.
fn tree() -> tempfile::TempDir {
    // On a disk: what lies in memory is not listed, and /tmp may.
    let tree = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = tree.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let mut random = 1u64;
    let mut name = || {
        let word = |random: &mut u64| {
            *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            format!("{random:016x}")
        };
        (0..12).map(|_| word(&mut random)).collect::<String>()
    };
    for _ in 0..FOLDERS {
        let folder = tree.path().join(name());
        std::fs::create_dir(&folder).unwrap();
        for _ in 0..FILES {
            std::fs::hard_link(&file, folder.join(name())).unwrap();
        }
    }
    tree
}

fn below(path: &Path) -> Command {
    let scope = IndexScope::Only(vec![path.as_os_str().as_bytes().to_vec()]);
    Command::Index(IndexOrder { scope, cross_mounts: false, flag_ctime_after_us: None })
}

fn indexed(result: Result<Answer, Refusal>) -> IndexSummary {
    match result {
        Ok(Answer::Indexed(summary)) => summary,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_proxy_that_reads_slowly_slows_the_walk_and_costs_the_guest_no_memory() {
    let tree = tree();
    let mut component = Component::start();
    let index = component.send(below(tree.path()));
    std::thread::sleep(Duration::from_millis(1_500));
    let status = component.send(Command::Status);
    let arm = component.send(Command::Arm(ArmOrder {
        freeze: FreezeId(1),
        lease: Lease::default(),
        exclude_mount_points: vec![],
    }));
    let (id, result) = component.reply();
    let Ok(Answer::Status(Status { phase, .. })) = result else { panic!("{result:?}") };
    assert_eq!((id, phase), (status, Phase::Indexing), "answered while the walk waits");
    assert!(component.frames.len() <= 3, "{} frames went before the answer", component.frames.len());
    let (id, result) = component.reply();
    assert_eq!((id, result.unwrap_err().kind), (arm, RefusalKind::NotNow), "nothing is frozen while files are listed");
    let (id, result) = component.reply();
    let summary = indexed(result);
    assert_eq!((id, summary.complete, summary.unreadable_entries), (index, true, 0), "{summary:?}");
    assert_eq!(summary.entries, (FOLDERS * FILES + FOLDERS + 1) as u64);
    assert_eq!(component.listed(), summary.entries, "every frame came whole");
    let resident_kib = component.resident_kib();
    assert!(resident_kib <= RESIDENT_KIB_MAX, "{resident_kib} KiB");
    let bye = component.send(Command::Bye);
    assert_eq!(component.reply(), (bye, Ok(Answer::Done)));
    assert!(component.ends_within(Duration::from_secs(5)));
}

#[test]
fn a_walk_is_cancelled_at_once_and_another_one_may_follow() {
    let tree = tree();
    let mut component = Component::start();
    let index = component.send(below(tree.path()));
    let FromRuntime::Listing(_) = component.hear() else { panic!("no frame") };
    let cancel = component.send(Command::CancelIndex);
    assert_eq!(component.reply(), (cancel, Ok(Answer::Done)));
    let (id, result) = component.reply();
    let summary = indexed(result);
    assert_eq!((id, summary.complete), (index, false));
    assert_eq!(summary.stopped_because.as_deref(), Some("it was cancelled"));
    let again = component.send(below(&tree.path().join("file")));
    let (id, result) = component.reply();
    assert_eq!((id, indexed(result).entries), (again, 1));
    // What is cancelled is over already: not an error.
    component.send(Command::CancelIndex);
    assert_eq!(component.reply().1, Ok(Answer::Done));
}

#[test]
fn goodbye_ends_a_walk_and_a_channel_that_closes_does_too() {
    let tree = tree();
    let mut component = Component::start();
    component.send(below(tree.path()));
    let FromRuntime::Listing(_) = component.hear() else { panic!("no frame") };
    let bye = component.send(Command::Bye);
    let (_, walk) = component.reply();
    assert_eq!(indexed(walk).stopped_because.as_deref(), Some("the component was told to end"));
    assert_eq!(component.reply(), (bye, Ok(Answer::Done)));
    assert!(component.ends_within(Duration::from_secs(5)));

    for close_input in [true, false] {
        let mut component = Component::start();
        component.send(below(tree.path()));
        let FromRuntime::Listing(_) = component.hear() else { panic!("no frame") };
        // The walk waits: nobody reads, and nobody will.
        std::thread::sleep(Duration::from_millis(300));
        if close_input {
            component.to = None;
        }
        component.from = None;
        assert!(component.ends_within(Duration::from_secs(2)), "input closed: {close_input}");
    }
}

#[test]
fn an_order_that_makes_no_sense_is_refused() {
    let mut component = Component::start();
    component.send(below(Path::new("not/absolute")));
    let refusal = component.reply().1.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (RefusalKind::BadOrder, "\"not/absolute\" is no absolute path")
    );
    assert!(component.frames.is_empty());
}
