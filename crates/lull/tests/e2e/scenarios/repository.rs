//! The repository full or gone while the guest writes: the VM runs on, the backup fails, its partial file is removed.

use crate::guest::files_below;
use crate::program::run;
use crate::told::assert_says;
use crate::world::{World, assert_clean_receipt, sentence, task};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A memory file system of its own, taken away when it is dropped.
struct Small(PathBuf);

impl Small {
    fn mount(folder: PathBuf, megabytes: u32) -> Small {
        std::fs::create_dir_all(&folder).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "lull-e2e"]).arg(&folder));
        Small(folder)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// The job fails at the repository while the guest goes on writing without a pause.
fn fails(world: &World, repository: &Path, spoil: impl FnOnce(), says: &[&str]) {
    let path = repository.display().to_string();
    // Where an earlier scenario failed, they are still there.
    world.lull(&["job", "remove", "to-small"]);
    world.lull(&["repository", "remove", "small"]);
    world.lull(&["repository", "add", "small", &path]).ok();
    world.make_job("to-small", &["--repository", "small", "--copy-limit", "32MiB"]);
    world.guest.ssh(
        "setsid sh -c 'while [ ! -e /run/enough ]; do dd if=/dev/urandom of=/root/load bs=64k count=64 conv=fsync 2>/dev/null; done' \
         >/dev/null 2>&1 </dev/null &",
    );
    let pulse = world.guest.pulse();
    let (id, events) = world.start_job("to-small");
    events.until_step("copy");
    let copying = Instant::now();
    spoil();
    let session = world.finished(id);
    let longest = pulse.longest_gap(copying);
    drop((events, pulse));
    world.guest.ssh("touch /run/enough; sleep 1; rm -f /root/load /run/enough");
    println!("   longest time without a write in the guest while copying: {} ms", longest.as_millis());
    assert_says(&sentence(&session), says);
    assert!(longest < Duration::from_secs(5), "the guest stood still for {longest:?}");
    assert_eq!(task(&session).restore_point, None, "{session:#?}");
    assert_clean_receipt(&session);
    assert_eq!(files_below(repository), Vec::<PathBuf>::new(), "the partial file is removed");
    world.verify_first();
    world.lull(&["job", "remove", "to-small"]).ok();
    world.lull(&["repository", "remove", "small"]).ok();
}

pub fn full(world: &mut World) {
    let small = Small::mount(world.folder.join("small"), 64);
    fails(
        world,
        &small.0,
        || (),
        &["at the repository", &small.0.display().to_string(), "no space left", "the vm runs on", "space and storage"],
    );
}

pub fn gone(world: &mut World) {
    let folder = world.folder.join("small");
    let small = Small::mount(folder.clone(), 4_000);
    let path = folder.display().to_string();
    // Under the feet of the copy: what was mounted is there no more, and nothing else may be written there.
    let mut small = Some(small);
    fails(world, &folder, || drop(small.take()), &["at the repository", &path]);
    // Before the copy: nothing is started.
    world.lull(&["repository", "add", "absent", &path]).ok();
    world.make_job("to-absent", &["--repository", "absent"]);
    std::fs::remove_dir_all(&folder).unwrap();
    let session = world.run_job("to-absent");
    assert_says(&sentence(&session), &["at the repository", &path]);
    assert!(!folder.exists(), "a repository that is gone is not made anew: something may be mounted there");
    world.lull(&["job", "remove", "to-absent"]).ok();
    world.lull(&["repository", "remove", "absent"]).ok();
}
