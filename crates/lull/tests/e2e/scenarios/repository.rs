//! The repository full, slow or gone while the guest writes: the VM runs on. Full or gone, the backup fails and its partial
//! file is removed; slow, it succeeds later.

use crate::guard::assert_may_be_frozen;
use crate::guest::{Pulse, files_below};
use crate::program::run;
use crate::told::assert_says;
use crate::world::{JOB, World, assert_clean_receipt, sentence, task};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// A write load on the guest's root, and the pulse beside it.
fn load(world: &World) -> Pulse {
    world.guest.ssh(
        "setsid sh -c 'while [ ! -e /run/enough ]; do dd if=/dev/urandom of=/root/load bs=64k count=64 conv=fsync 2>/dev/null; done' \
         >/dev/null 2>&1 </dev/null &",
    );
    world.guest.pulse()
}

fn end_load(world: &World, pulse: Pulse) {
    drop(pulse);
    world.guest.ssh("touch /run/enough; sleep 1; rm -f /root/load /run/enough");
}

/// The job fails at the repository while the guest goes on writing without a pause.
fn fails(world: &World, repository: &Path, spoil: impl FnOnce(), says: &[&str]) {
    let path = repository.display().to_string();
    // Where an earlier scenario failed, they are still there.
    world.lull(&["job", "remove", "to-small"]);
    world.lull(&["repository", "remove", "small"]);
    world.lull(&["repository", "add", "small", &path]).ok();
    world.make_job("to-small", &["--repository", "small", "--copy-limit", "32MiB"]);
    let pulse = load(world);
    let (id, events) = world.start_job("to-small");
    events.until_step("copy");
    let copying = Instant::now();
    spoil();
    let session = world.finished(id);
    let longest = pulse.longest_gap(copying);
    drop(events);
    end_load(world, pulse);
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

/// An ext4 in a file of its own. Frozen, it is a repository whose writes hang, as on a server that does not answer.
struct Slow {
    folder: PathBuf,
}

impl Slow {
    fn mount(world: &World) -> Slow {
        let (folder, image) = (world.folder.join("slow"), world.folder.join("slow.img"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::File::create(&image).unwrap().set_len(4 << 30).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&folder));
        std::fs::remove_dir(folder.join("lost+found")).unwrap();
        Slow { folder }
    }

    /// Hangs once for long, then again and again for a moment, until it is told to end.
    fn hang(&self, enough: &AtomicBool) {
        assert_may_be_frozen(&self.folder);
        for pause in [LONG_HANG].into_iter().chain(std::iter::repeat_n(SHORT_HANG, 12)) {
            if enough.load(Ordering::SeqCst) {
                return;
            }
            run(Command::new("fsfreeze").arg("-f").arg(&self.folder));
            std::thread::sleep(pause);
            run(Command::new("fsfreeze").arg("-u").arg(&self.folder));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.folder).output();
        let _ = Command::new("umount").arg("-l").arg(&self.folder).output();
        let _ = std::fs::remove_file(self.folder.with_extension("img"));
    }
}

const LONG_HANG: Duration = Duration::from_secs(8);
const SHORT_HANG: Duration = Duration::from_millis(400);

pub fn slow(world: &mut World) {
    let slow = Slow::mount(world);
    let path = slow.folder.display().to_string();
    world.lull(&["job", "remove", "to-slow"]);
    world.lull(&["repository", "remove", "slow"]);
    world.lull(&["repository", "add", "slow", &path]).ok();
    world.make_job("to-slow", &["--repository", "slow"]);
    let pulse = load(world);
    let (id, events) = world.start_job("to-slow");
    events.until_step("copy");
    let copying = Instant::now();
    let enough = AtomicBool::new(false);
    let (session, took) = std::thread::scope(|scope| {
        scope.spawn(|| slow.hang(&enough));
        let session = world.finished(id);
        let took = copying.elapsed();
        enough.store(true, Ordering::SeqCst);
        (session, took)
    });
    let longest = pulse.longest_gap(copying);
    drop(events);
    end_load(world, pulse);
    println!(
        "   the copy took {} ms; longest time without a write in the guest: {} ms",
        took.as_millis(),
        longest.as_millis()
    );
    assert!(took > LONG_HANG, "the repository was not slow: {took:?}");
    assert!(longest < Duration::from_secs(3), "the guest stood still for {longest:?}");
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_eq!(task(&session).level.as_deref(), Some("application"), "{session:#?}");
    assert_clean_receipt(&session);
    let point = task(&session).restore_point.expect("a restore point").to_string();
    world.lull(&["restore-point", "verify", &point]).ok();
    world.lull(&["restore-point", "remove", &point, "--yes"]).ok();
    world.lull(&["job", "remove", "to-slow"]).ok();
    world.lull(&["repository", "remove", "slow"]).ok();
    drop(slow);
    // The bitmap of a restore point that was removed is owed no more.
    assert_eq!(world.run_job(JOB).summary.result.as_deref(), Some("success"));
}
