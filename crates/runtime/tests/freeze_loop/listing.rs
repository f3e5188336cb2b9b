//! Which mounts a walk enters, and that it never meets a freeze.

use crate::bed::Bed;
use crate::deploy::start;
use lull_guest_wire::listing::{self, UNPACKED_BYTES_MAX};
use lull_guest_wire::*;
use lull_runtime::disks::Beneath;
use lull_runtime::inventory::Storage;
use lull_runtime::kernel::Bell;
use lull_runtime::mounts;
use lull_runtime::plan::Candidate;
use lull_runtime::walk::{outgoing::Outgoing, tally::Tally, walk};
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// Folders with the names of their entries.
type Listed = BTreeMap<String, Vec<String>>;

/// The host's storage; its images count as disks of the guest.
fn storage() -> Storage {
    let text = std::fs::read("/proc/thread-self/mountinfo").unwrap();
    let (mounts, _) = mounts::parse(&text);
    let on_disk = mounts::on_block_devices(&mounts).into_iter();
    let candidates = on_disk.map(|mounted| (Candidate { mounted, inside: vec![] }, Beneath::default())).collect();
    Storage { mounts, candidates, notes: vec![] }
}

/// Walks inside the host, from a thread that enters it.
fn walked(bed: &Bed, scope: IndexScope, cross_mounts: bool) -> Listed {
    let order = IndexOrder { scope, cross_mounts, flag_ctime_after_us: None };
    let namespace = bed.mount_namespace();
    let outgoing = Arc::new(Outgoing::new(Arc::new(Bell::new().unwrap())));
    let walking = std::thread::spawn({
        let outgoing = outgoing.clone();
        move || {
            // SAFETY: no pointers but the path. Of this thread and those it starts.
            unsafe {
                assert_eq!(libc::unshare(libc::CLONE_FS), 0);
                assert_eq!(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS), 0);
                assert_eq!(libc::chdir(c"/".as_ptr()), 0);
            }
            let mut tally = Tally::default();
            walk(&order, None, &outgoing, &storage(), &mut tally);
            assert_eq!(outgoing.stopped_because(), None);
        }
    });
    let mut listed = Listed::new();
    let mut unpacked = vec![0; UNPACKED_BYTES_MAX];
    let mut over = false;
    loop {
        while let Some(frame) = outgoing.take() {
            let bytes = zstd_safe::decompress(&mut unpacked[..], &frame).unwrap();
            for folder in listing::read(&unpacked[..bytes]).unwrap().folders {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let mut names: Vec<String> = folder.entries.iter().map(|entry| text(entry.name)).collect();
                names.sort();
                assert_eq!(folder.error, None);
                assert!(listed.insert(text(folder.path), names).is_none(), "{} is walked twice", text(folder.path));
            }
        }
        if over {
            break;
        }
        over = walking.is_finished();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    walking.join().unwrap();
    listed
}

#[test]
fn a_walk_stops_at_mounts_unless_told_and_enters_what_is_mounted_twice_once() {
    let bed = Bed::new();
    for file in ["/etc/of root", "/data/of data", "/data/sub/also at bind", "/data/nested/of nested", "/inner/of inner"]
    {
        std::fs::write(bed.path(file), b"").unwrap();
    }
    let stays = walked(&bed, IndexScope::Everything, false);
    assert!(stays["/"].contains(&"data".to_string()) && stays["/etc"].contains(&"of root".to_string()));
    for mount in ["/data", "/data/nested", "/inner", "/bind", "/proc", "/sys", "/dev", "/run"] {
        assert!(!stays.keys().any(|path| path.starts_with(mount)), "{mount} is entered");
    }
    let crosses = walked(&bed, IndexScope::Everything, true);
    for (folder, file) in [
        ("/etc", "of root"),
        ("/data", "of data"),
        ("/data/sub", "also at bind"),
        ("/data/nested", "of nested"),
        ("/inner", "of inner"),
    ] {
        assert!(crosses[folder].contains(&file.to_string()), "{folder}: {:?}", crosses[folder]);
    }
    for mount in ["/bind", "/proc", "/sys", "/dev", "/run"] {
        assert!(!crosses.keys().any(|path| path.starts_with(mount)), "{mount} is entered");
    }
    // Asked for by its other name, it is walked there.
    let only = walked(&bed, IndexScope::Only(vec![b"/bind".to_vec()]), true);
    assert_eq!(only.into_iter().collect::<Vec<_>>(), [("/bind".to_string(), vec!["also at bind".to_string()])]);
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn noise_on_a_file_system_of_its_own_is_not_entered_either() {
    let bed = Bed::new();
    std::fs::create_dir_all(bed.path("/data/x/.cache/y")).unwrap();
    std::fs::write(bed.path("/tmp/temporary"), b"").unwrap();
    let quiet = walked(&bed, IndexScope::ExceptNoise, true);
    assert!(quiet["/"].contains(&"tmp".to_string()) && quiet["/data/x"] == [".cache"]);
    for noise in ["/tmp", "/data/x/.cache", "/lost+found", "/data/nested/lost+found"] {
        assert!(!quiet.contains_key(noise), "{noise} is entered");
    }
}

#[test]
fn nothing_is_listed_between_arm_and_thaw() {
    let bed = Bed::new();
    let mut component = start(&bed);
    let index =
        || Command::Index(IndexOrder { scope: IndexScope::Everything, cross_mounts: true, flag_ctime_after_us: None });
    component.arm(1, 5_000, 30_000);
    assert_eq!(component.ask(index()).unwrap_err().kind, RefusalKind::NotNow);
    component.freeze(1);
    assert_eq!(component.ask(index()).unwrap_err().kind, RefusalKind::NotNow);
    assert_eq!(component.ask(Command::CancelIndex).unwrap_err().kind, RefusalKind::NotNow);
    assert!(component.thaw(1).no_gap);
    let Ok(Answer::Indexed(summary)) = component.ask(index()) else { panic!("not listed after the thaw") };
    assert!(summary.complete);
    // And after a walk with all its threads a freeze is armed as ever.
    component.arm(2, 5_000, 30_000);
    component.freeze(2);
    assert!(component.thaw(2).no_gap);
    component.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}
