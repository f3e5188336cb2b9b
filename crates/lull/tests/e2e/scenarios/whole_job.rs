//! A whole job on other guests than the small one: receipt, level, a restore point that is sound, and a clone that boots and
//! whose PostgreSQL is whole.

use crate::program::{run, testbed, wait_for, wait_for_end};
use crate::told::assert_says;
use crate::world::{JOB, VM, World, assert_clean_receipt, task};
use lull_api::session::Session;
use std::path::Path;
use std::process::{Command, Stdio};

/// A guest that boots systemd, with PAM, journald on disk, logind, and a noisy profile.
pub fn systemd(world: &mut World) {
    assert_eq!(world.guest.ssh("cat /proc/1/comm"), "systemd");
    let session = whole(world);
    assert_eq!(world.guest.ssh("systemctl is-failed --quiet '*' && systemctl --failed --no-legend; true"), "");
    assert_says(&task(&session).inventory.as_ref().unwrap().to_string(), &["\"/\"", "postgresql"]);
}

/// A guest with LVM, XFS nested in ext4, a bind mount and a vfat ESP, which cannot be frozen and has a level of its own.
pub fn full(world: &mut World) {
    let session = whole(world);
    let inventory = task(&session).inventory.as_ref().unwrap().to_string();
    assert_says(&inventory, &["\"/srv\"", "\"/srv/data\"", "xfs", "\"/boot/efi\"", "vfat"]);
}

/// Under a write load, which must not notice.
fn whole(world: &World) -> Session {
    let mut load = Command::new(testbed("load.sh"));
    load.args([VM, "--seconds", "20", "--dir"]).arg(&world.guest.folder).stdin(Stdio::null());
    let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let count = "cd / && runuser -u postgres -- psql -XAtc 'select count(*) from pgbench_history' pgbench";
    wait_for(60, "the load commits", || (world.guest.ssh(count) != "0").then_some(()));
    let session = world.run_job(JOB);
    assert_eq!(wait_for_end(load, 180).code, 0, "the load saw an error");
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_eq!(task(&session).level.as_deref(), Some("application"), "{session:#?}");
    assert_clean_receipt(&session);
    assert!(task(&session).receipt.as_ref().unwrap().hypervisor_checked, "{session:#?}");
    let id = task(&session).restore_point.expect("a restore point");
    world.lull(&["restore-point", "verify", &id.to_string()]).ok();
    let point = world.points().into_iter().find(|point| point.id == id).expect("it is listed");
    clone_boots(world, Path::new(&point.directory));
    session
}

/// The clone is isolated, has nothing of ours inside, and its PostgreSQL recovers with balances that agree.
fn clone_boots(world: &World, point: &Path) {
    let clones = world.folder.join("clones");
    let vm = testbed("guest/vm.sh");
    let mut boot = Command::new(&vm);
    boot.arg("boot-restore").arg(point.join("disk0.qcow2")).args(["--name", "proof", "--wait", "--dir"]).arg(&clones);
    for disk in (1..).map(|n| point.join(format!("disk{n}.qcow2"))).take_while(|disk| disk.exists()) {
        boot.arg("--disk").arg(disk);
    }
    let clone = Clone { clones: &clones, vm: &vm };
    run(&mut boot);
    let proof = run(Command::new(testbed("pg-check.sh")).args(["proof", "--amcheck", "--dir"]).arg(&clones));
    println!("   the clone: {}", proof.lines().last().unwrap_or_default());
    let look = "find / -xdev -name '*lull*' 2>/dev/null; find /srv -name '*lull*' 2>/dev/null; true";
    let found = run(Command::new(&vm).args(["ssh", "proof", "--dir"]).arg(&clones).args(["--", look]));
    let ours: Vec<&str> = found.lines().filter(|line| line.starts_with('/')).collect();
    assert_eq!(ours, Vec::<&str>::new(), "inside the restore point");
    drop(clone);
}

/// Ends the clone, whatever happens.
struct Clone<'a> {
    clones: &'a Path,
    vm: &'a Path,
}

impl Drop for Clone<'_> {
    fn drop(&mut self) {
        let _ = Command::new(self.vm).args(["stop", "--all", "--dir"]).arg(self.clones).output();
    }
}
