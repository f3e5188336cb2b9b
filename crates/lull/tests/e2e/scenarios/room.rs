//! A guest where no folder allows programs, or has no room: which were tried, and why each would not do.

use crate::told::assert_says;
use crate::world::{VM, World, sentence};
use lull_api::session::Session;

const FOLDERS: [&str; 9] = ["/run", "/dev/shm", "/tmp", "/var/tmp", "/root", "/var/lib", "/opt", "/usr/local", "/srv"];

fn test_now(world: &World) -> Session {
    world.lull(&["vm", "test", VM]).json()
}

pub fn none(world: &mut World) {
    // The memory file systems full: a folder on disk serves, and is not left behind.
    world.guest.ssh(
        "for d in /run /dev/shm; do mount -o remount,size=$(($(df -k --output=used $d | tail -n 1) + 256))k $d; done",
    );
    let session = test_now(world);
    world.guest.ssh("for d in /run /dev/shm; do mount -o remount,size=50% $d; done");
    assert_ne!(session.summary.result.as_deref(), Some("failed"), "another folder serves: {session:#?}");

    // Programs are forbidden everywhere.
    let mounts = FOLDERS
        .map(|d| format!("mkdir -p {d} && mount --bind {d} {d} && mount -o remount,bind,noexec {d}"))
        .join(" && ");
    world.guest.ssh(&mounts);
    let session = test_now(world);
    world.guest.ssh(&FOLDERS.map(|d| format!("umount -l {d}")).join(" && "));
    let mut says = vec!["runtime component", "noexec"];
    says.extend(FOLDERS);
    assert_says(&sentence(&session), &says);
}
