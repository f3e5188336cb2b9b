//! A folder with a million entries, and a tree with five million: real ones, walked by the real component within its bound of memory.
//!
//! Needs root: the entries are hard links on an XFS of their own, in an image on the disk (what lies in memory is not listed). The
//! image is copied and mounted five times, in a mount namespace that ends with the test. Nothing is frozen.

use lull_guest_wire::listing::{self, UNPACKED_BYTES_MAX};
use lull_guest_wire::*;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::time::Instant;

const ENTRIES: usize = 1_000_000;
const COPIES: usize = 5;
/// So much of a component's memory may be resident while it lists, in KiB.
const RESIDENT_KIB_MAX: u64 = 64 << 10;

struct Component {
    process: Child,
    to: File,
    from: File,
}

/// What came of one walk.
struct Walked {
    summary: IndexSummary,
    entries: u64,
    /// Of the folder with the many: each number once.
    seen: Vec<bool>,
}

impl Component {
    fn start() -> Component {
        let mut program = Program::new(env!("CARGO_BIN_EXE_lull-runtime"));
        let mut process = program.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (to, from): (OwnedFd, OwnedFd) = (to.into(), from.into());
        let mut component = Component { process, to: to.into(), from: from.into() };
        assert!(matches!(component.hear(), FromRuntime::Hello(_)));
        component
    }

    fn hear(&mut self) -> FromRuntime {
        frame::read(&mut self.from).unwrap()
    }

    fn walk(&mut self, below: &Path) -> Walked {
        let scope = IndexScope::Only(vec![below.as_os_str().as_bytes().to_vec()]);
        let order = Command::Index(IndexOrder { scope, cross_mounts: true, flag_ctime_after_us: None });
        frame::write(&mut self.to, &ToRuntime { id: 1, command: order }).unwrap();
        let mut unpacked = vec![0; UNPACKED_BYTES_MAX];
        let (mut entries, mut seen) = (0, vec![false; ENTRIES]);
        loop {
            match self.hear() {
                FromRuntime::Listing(ListingFrame { compressed }) => {
                    let bytes = zstd_safe::decompress(&mut unpacked[..], &compressed).unwrap();
                    for folder in listing::read(&unpacked[..bytes]).unwrap().folders {
                        assert_eq!(folder.error, None);
                        entries += folder.entries.len() as u64;
                        if folder.path.ends_with(b"/1/many") {
                            for entry in folder.entries {
                                let number: usize = std::str::from_utf8(entry.name).unwrap().parse().unwrap();
                                assert!(!std::mem::replace(&mut seen[number], true), "{number} is listed twice");
                            }
                        }
                    }
                }
                FromRuntime::Reply { result: Ok(Answer::Indexed(summary)), .. } => {
                    return Walked { summary, entries, seen };
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn sh(script: &str) {
    let output = Program::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Five file systems below the folder, each with a folder of a million entries. Mounted for this thread and what it starts.
fn mounted(folder: &Path) {
    // SAFETY: plain system calls on this thread.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "needs root: {}", std::io::Error::last_os_error());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        assert_eq!(libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()), 0);
    }
    let at = folder.display();
    sh(&format!(
        "cd {at}; mkdir tree; cd tree; mkdir $(seq {COPIES}); truncate -s 600M ../1.img; mkfs.xfs -q ../1.img; mount -o loop ../1.img 1"
    ));
    let many = folder.join("tree/1/many");
    std::fs::create_dir(&many).unwrap();
    std::fs::write(folder.join("tree/1/file"), b"").unwrap();
    let file = folder.join("tree/1/file");
    for number in 0..ENTRIES {
        std::fs::hard_link(&file, many.join(format!("{number:07}"))).unwrap();
    }
    sh(&format!(
        "cd {at}/tree; umount 1; for n in $(seq 2 {COPIES}); do cp --sparse=always ../1.img ../$n.img; done
         for n in $(seq {COPIES}); do mount -o loop,nouuid ../$n.img $n; done"
    ));
}

#[test]
fn folders_of_a_million_entries_and_a_tree_of_five_million_are_walked_in_bounded_memory() {
    let began = Instant::now();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    mounted(folder.path());
    println!("made in {:.1} s", began.elapsed().as_secs_f64());
    let mut component = Component::start();
    let began = Instant::now();
    let walked = component.walk(&folder.path().join("tree"));
    let resident_kib = component.resident_kib();
    println!("{} entries in {:.1} s, {resident_kib} KiB", walked.entries, began.elapsed().as_secs_f64());
    assert!(walked.summary.complete, "{:?}", walked.summary);
    assert!(walked.seen.iter().all(|seen| *seen), "of a folder with a million entries one is missing");
    assert!(walked.entries > (COPIES * ENTRIES) as u64 && walked.entries == walked.summary.entries);
    assert!(resident_kib <= RESIDENT_KIB_MAX, "{resident_kib} KiB");
    drop(component);
    // Of this thread's namespace, which ends after the folder would be removed.
    sh(&format!("cd {}/tree; umount *", folder.path().display()));
}
