//! Walks over trees made for them, on this machine's own file system.

use super::*;
use crate::disks::Beneath;
use crate::kernel::Bell;
use crate::mounts;
use crate::plan::Candidate;
use lull_guest_wire::listing::{self, Kind, UNPACKED_BYTES_MAX};
use lull_guest_wire::{IndexScope, Superblock};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::Instant;

/// One folder as it was listed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Listed {
    pieces: usize,
    whole: bool,
    errors: Vec<String>,
    entries: BTreeMap<Vec<u8>, Seen>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: Kind,
    size_bytes: u64,
    mtime_us: i64,
    mode: u32,
    uid: u32,
    gid: u32,
    changed: bool,
}

type Folders = BTreeMap<Vec<u8>, Listed>;

/// What a frame holds goes to its folders.
fn unpack(compressed: &[u8], folders: &mut Folders) {
    let mut unpacked = vec![0; UNPACKED_BYTES_MAX];
    let bytes = zstd_safe::decompress(&mut unpacked[..], compressed).unwrap();
    for folder in listing::read(&unpacked[..bytes]).unwrap().folders {
        let listed = folders.entry(folder.path.to_vec()).or_default();
        listed.pieces += 1;
        listed.whole |= !folder.more;
        listed.errors.extend(folder.error.map(str::to_string));
        for entry in folder.entries {
            let seen = Seen {
                kind: entry.kind,
                size_bytes: entry.size_bytes,
                mtime_us: entry.mtime_us,
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                changed: entry.changed_after_freeze,
            };
            assert!(listed.entries.insert(entry.name.to_vec(), seen).is_none(), "{:?} is listed twice", entry.name);
        }
    }
}

/// This machine's storage; whatever holds the trees of the tests counts as a disk of the guest.
fn ground() -> Storage {
    let mut storage = inventory::storage().unwrap();
    let home = std::env::temp_dir();
    let mount = storage.mounts.iter().filter(|mount| home.starts_with(&mount.mount_point));
    let mount = mount.max_by_key(|mount| (mount.mount_point.components().count(), mount.id)).unwrap();
    let superblock = mount.superblock;
    if !storage.candidates.iter().any(|(candidate, _)| candidate.mounted.superblock == superblock) {
        let mut as_if_on_disk = mount.clone();
        as_if_on_disk.superblock = Superblock { major: 8, minor: 250 };
        let mut mounted = mounts::on_block_devices(&[as_if_on_disk]).remove(0);
        mounted.superblock = superblock;
        storage.candidates.push((Candidate { mounted, inside: vec![] }, Beneath::default()));
    }
    storage
}

fn below(path: &Path) -> IndexOrder {
    let scope = IndexScope::Only(vec![path.as_os_str().as_bytes().to_vec()]);
    IndexOrder { scope, cross_mounts: false, flag_ctime_after_us: None }
}

fn begin(order: IndexOrder) -> (Arc<Outgoing>, thread::JoinHandle<IndexSummary>) {
    let outgoing = Arc::new(Outgoing::new(Arc::new(Bell::new().unwrap())));
    let walking = thread::spawn({
        let outgoing = outgoing.clone();
        move || {
            let (began, mut tally) = (Moment::now(), Tally::default());
            walk(&order, None, &outgoing, &ground(), &mut tally);
            tally.summary(began, Moment::now(), outgoing.stopped_because())
        }
    });
    (outgoing, walking)
}

fn walked(order: IndexOrder) -> (Folders, IndexSummary) {
    let (outgoing, walking) = begin(order);
    let mut folders = Folders::new();
    let mut over = false;
    loop {
        while let Some(frame) = outgoing.take() {
            unpack(&frame, &mut folders);
        }
        if over {
            break;
        }
        over = walking.is_finished();
        thread::sleep(Duration::from_millis(1));
    }
    (folders, walking.join().unwrap())
}

/// What the standard library says of everything below.
fn looked_at(path: &Path) -> Folders {
    let mut all = Folders::new();
    let mut listed = Listed { pieces: 1, whole: true, ..Listed::default() };
    for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
        let found = entry.path().symlink_metadata().unwrap();
        let kind = stat::of_mode(found.mode()).unwrap();
        let seen = Seen {
            kind,
            size_bytes: found.size(),
            mtime_us: found.mtime() * 1_000_000 + found.mtime_nsec() / 1_000,
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            changed: false,
        };
        listed.entries.insert(entry.file_name().as_bytes().to_vec(), seen);
        if kind == Kind::Folder {
            all.extend(looked_at(&entry.path()));
        }
    }
    all.insert(path.as_os_str().as_bytes().to_vec(), listed);
    all
}

fn assert_complete(summary: &IndexSummary, folders: &Folders) {
    assert!(summary.complete && summary.stopped_because.is_none() && summary.examples.is_empty(), "{summary:?}");
    assert_eq!(summary.folders, folders.len() as u64);
    assert_eq!(summary.entries, folders.values().map(|listed| listed.entries.len() as u64).sum::<u64>());
    assert!(summary.ended_us >= summary.began_us);
}

/// A tree with all that a file system may hold.
fn odd_tree(at: &Path) {
    for folder in ["empty", "a/b/c", "with space", "new\nline"] {
        std::fs::create_dir_all(at.join(folder)).unwrap();
    }
    std::fs::write(at.join("a/b/c/deep"), b"12345").unwrap();
    std::fs::write(at.join("new\nline/in it"), b"").unwrap();
    std::fs::write(at.join(OsStr::from_bytes(b"caf\xe9 \xff\xfe")), b"x").unwrap();
    std::fs::write(at.join("setuid"), b"").unwrap();
    std::fs::set_permissions(at.join("setuid"), std::fs::Permissions::from_mode(0o4711)).unwrap();
    std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(at.join("old"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH - Duration::from_micros(1_500_000))
        .unwrap();
    symlink("/nowhere", at.join("link")).unwrap();
    symlink("..", at.join("a/up")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at.join("pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    std::os::unix::net::UnixListener::bind(at.join("socket")).unwrap();
}

#[test]
fn everything_is_listed_as_it_is() {
    let tree = tempfile::tempdir().unwrap();
    odd_tree(tree.path());
    let (folders, summary) = walked(below(tree.path()));
    assert_eq!(folders, looked_at(tree.path()));
    assert_complete(&summary, &folders);
}

#[test]
fn a_large_folder_comes_in_pieces_and_none_is_missing() {
    let tree = tempfile::tempdir().unwrap();
    let file = tree.path().join("file");
    std::fs::write(&file, b"").unwrap();
    for number in 0..3_000 {
        std::fs::hard_link(&file, tree.path().join(format!("{number:0>200}"))).unwrap();
    }
    let (folders, summary) = walked(below(tree.path()));
    let listed = &folders[tree.path().as_os_str().as_bytes()];
    assert!(listed.pieces > 3 && listed.whole, "{} pieces", listed.pieces);
    assert_eq!(listed.entries.len(), 3_001);
    assert_complete(&summary, &folders);
}

#[test]
fn paths_longer_than_the_kernel_takes_at_once_are_walked() {
    let tree = tempfile::tempdir().unwrap();
    let (mut path, mut folder) = (tree.path().as_os_str().as_bytes().to_vec(), open(tree.path()));
    for level in 0..60 {
        let name = format!("{level:0>200}");
        mkdirat(&folder, &name, Mode::RWXU).unwrap();
        folder = openat(&folder, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
        path = [&path, b"/".as_slice(), name.as_bytes()].concat();
    }
    drop(openat(&folder, "at the bottom", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap());
    assert!(path.len() > 12_000);
    let (folders, summary) = walked(below(tree.path()));
    assert!(folders[&path].entries.contains_key(b"at the bottom".as_slice()));
    assert_eq!(folders.len(), 61);
    assert_complete(&summary, &folders);
}

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::DIRECTORY, Mode::empty()).unwrap()
}

#[test]
fn what_vanishes_while_it_is_walked_is_no_error() {
    let tree = tempfile::tempdir().unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    let order = below(tree.path());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                for folder in 0..40 {
                    let folder = tree.path().join(format!("{folder}/below"));
                    std::fs::create_dir_all(&folder).unwrap();
                    std::fs::write(folder.join("file"), b"").unwrap();
                }
                for folder in 0..40 {
                    std::fs::remove_dir_all(tree.path().join(folder.to_string())).unwrap();
                }
            }
        });
        let mut vanished = 0;
        let began = Instant::now();
        while vanished == 0 {
            let (_, summary) = walked(order.clone());
            let unreadable = summary.unreadable_folders + summary.unreadable_entries;
            assert!(summary.complete && unreadable == 0, "{summary:?}");
            vanished += summary.vanished;
            assert!(began.elapsed() < Duration::from_secs(60), "nothing ever vanished");
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// Refuses these system calls with ENOSYS, for this thread and those it starts.
fn refuse_system_calls(calls: &[libc::c_long]) {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for call in calls {
        program.push(statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, *call as u32));
        let answer = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        program.push(statement(libc::BPF_RET | libc::BPF_K, 0, 0, answer));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is live for the length of the call, which copies it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let installed = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program);
        assert_eq!(installed, 0, "{}", std::io::Error::last_os_error());
    }
}

#[test]
fn without_statx_and_openat2_the_same_is_found() {
    let tree = tempfile::tempdir().unwrap();
    odd_tree(tree.path());
    let expect = walked(below(tree.path())).0;
    let (order, place) = (below(tree.path()), tree.path().to_path_buf());
    let (folders, summary) = thread::spawn(move || {
        refuse_system_calls(&[libc::SYS_statx, libc::SYS_openat2]);
        // SAFETY: no pointers that the kernel follows: both calls are refused before.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_statx, 0, 0, 0, 0, 0), -1);
            assert_eq!(crate::kernel::last_errno(), libc::ENOSYS);
            assert_eq!(libc::syscall(libc::SYS_openat2, 0, 0, 0, 0), -1);
            assert_eq!(crate::kernel::last_errno(), libc::ENOSYS);
        }
        let opener = open::Opener::new(open(&place), Default::default, false).unwrap();
        let through_a_link = [place.as_os_str().as_bytes(), b"/a/up/empty"].concat();
        assert!(
            opener.open(&through_a_link, place.as_os_str().len() + 1, None).is_err(),
            "a symbolic link was followed"
        );
        walked(order)
    })
    .join()
    .unwrap();
    assert_eq!(folders, expect);
    assert_complete(&summary, &folders);
}

#[test]
fn no_folder_is_opened_through_a_symbolic_link() {
    let tree = tempfile::tempdir().unwrap();
    odd_tree(tree.path());
    let opener = open::Opener::new(open(tree.path()), Default::default, false).unwrap();
    let absolute = |below: &str| tree.path().join(below).as_os_str().as_bytes().to_vec();
    let below = tree.path().as_os_str().len() + 1;
    assert!(opener.open(&absolute("a/b"), below, None).is_ok());
    for link in ["a/up", "a/up/a", "link"] {
        assert!(opener.open(&absolute(link), below, None).is_err(), "{link}");
    }
}

#[test]
fn what_cannot_be_read_is_counted_and_the_rest_is_walked() {
    let tree = tempfile::tempdir().unwrap();
    std::fs::set_permissions(tree.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for (folder, mode) in [("closed", 0o000), ("names only", 0o444), ("open", 0o755)] {
        std::fs::create_dir(tree.path().join(folder)).unwrap();
        std::fs::write(tree.path().join(folder).join("file"), b"").unwrap();
        std::fs::set_permissions(tree.path().join(folder), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let order = below(tree.path());
    let (folders, summary) = thread::spawn(move || {
        // SAFETY: no pointers. Of this thread, and of those it starts: nobody's rights from here on.
        unsafe { libc::setfsuid(65_534) };
        walked(order)
    })
    .join()
    .unwrap();
    let listed = |name: &str| &folders[tree.path().join(name).as_os_str().as_bytes()];
    assert_eq!(listed("closed").errors, ["Permission denied (os error 13)"]);
    assert_eq!(listed("names only").errors, ["an entry could not be read: file: Permission denied (os error 13)"]);
    assert_eq!((listed("open").errors.len(), listed("open").entries.len()), (0, 1));
    let counts = (summary.unreadable_folders, summary.unreadable_entries, summary.complete, summary.examples.len());
    assert_eq!(counts, (1, 1, true, 2), "{summary:?}");
}

#[test]
fn what_changed_after_the_freeze_is_marked() {
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("before"), b"").unwrap();
    thread::sleep(Duration::from_millis(30));
    let frozen = Moment::now();
    thread::sleep(Duration::from_millis(30));
    std::fs::write(tree.path().join("after"), b"").unwrap();
    let order = IndexOrder { flag_ctime_after_us: Some(frozen.flag_after_us(Moment::now())), ..below(tree.path()) };
    let (folders, _) = walked(order);
    let changed = folders.values().flat_map(|listed| &listed.entries).filter(|(_, seen)| seen.changed);
    assert_eq!(changed.map(|(name, _)| name.as_slice()).collect::<Vec<_>>(), [b"after"]);
}

#[test]
fn only_what_was_asked_for_is_walked_and_noise_is_not_entered() {
    let tree = tempfile::tempdir().unwrap();
    odd_tree(tree.path());
    std::fs::create_dir_all(tree.path().join("a/.cache/x")).unwrap();
    let absolute = |below: &str| tree.path().join(below).as_os_str().as_bytes().to_vec();
    let paths = vec![absolute("a/b/"), absolute("a/b/c"), absolute("setuid"), absolute("gone"), b"/proc".to_vec()];
    let order = IndexOrder { scope: IndexScope::Only(paths), cross_mounts: true, flag_ctime_after_us: None };
    let (folders, summary) = walked(order);
    let names: Vec<_> = folders.keys().cloned().collect();
    let mut expect = vec![absolute("a/b"), absolute("a/b/c"), absolute("gone"), b"/proc".to_vec(), absolute("")];
    expect[4].pop();
    expect.sort();
    assert_eq!(names, expect);
    assert_eq!(folders[&absolute("a/b/c")].pieces, 1, "walked once though asked for twice");
    assert_eq!(folders[b"/proc".as_slice()].errors, ["it lies on proc, which is on no disk of the guest"]);
    assert_eq!(folders[&absolute("gone")].errors, ["No such file or directory (os error 2)"]);
    let single = &folders[tree.path().as_os_str().as_bytes()];
    assert_eq!((single.entries.len(), single.errors.len()), (1, 1));
    assert_eq!((summary.unreadable_folders, summary.complete), (2, true));
}

#[test]
fn an_order_for_paths_that_are_none_is_refused() {
    let refused = |paths: &[&[u8]]| {
        let scope = IndexScope::Only(paths.iter().map(|path| path.to_vec()).collect());
        starts::check(&IndexOrder { scope, cross_mounts: false, flag_ctime_after_us: None }).is_err()
    };
    assert!(!refused(&[b"/", b"/srv/", b"/a b/\xff"]));
    for path in [&b""[..], b"srv", b"/a/../b", b"/a\0", b"/a//b"] {
        assert!(refused(&[path]), "{path:?}");
    }
    assert!(refused(&[]) && refused(&vec![b"/a".as_slice(); lull_guest_wire::LIST_MAX + 1]));
}

/// Walkers of this process: nice value and class of their input and output.
fn priorities() -> Vec<(i32, libc::c_long)> {
    let mut found = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap) {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.trim() == "lull-walk" {
            let id: i32 = task.file_name().to_str().unwrap().parse().unwrap();
            // SAFETY: no pointers.
            unsafe {
                let class = libc::syscall(libc::SYS_ioprio_get, 1, id) >> 13;
                found.push((libc::getpriority(libc::PRIO_PROCESS, id as libc::id_t), class));
            }
        }
    }
    found
}

#[test]
fn a_walk_that_nobody_reads_waits_at_the_lowest_priority_and_ends_at_once_when_stopped() {
    let tree = tempfile::tempdir().unwrap();
    let file = tree.path().join("file");
    std::fs::write(&file, b"").unwrap();
    for folder in 0..40 {
        let folder = tree.path().join(folder.to_string());
        std::fs::create_dir(&folder).unwrap();
        for number in 0..1_000 {
            std::fs::hard_link(&file, folder.join(format!("{number:0>240}"))).unwrap();
        }
    }
    let (outgoing, walking) = begin(below(tree.path()));
    let began = Instant::now();
    while !outgoing.was_full() {
        assert!(began.elapsed() < Duration::from_secs(30), "the walk never had to wait");
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(Duration::from_millis(300));
    assert!(!walking.is_finished());
    let priorities = priorities();
    assert!(priorities.len() >= pace::WALKERS_MIN, "{priorities:?}");
    assert!(priorities.iter().all(|priority| *priority == (19, 3)), "{priorities:?}");
    let stopped = Instant::now();
    outgoing.stop("it was cancelled");
    let summary = walking.join().unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(1), "{:?}", stopped.elapsed());
    assert_eq!((summary.complete, summary.stopped_because.as_deref()), (false, Some("it was cancelled")));
    assert!(outgoing.take().is_none());
}
