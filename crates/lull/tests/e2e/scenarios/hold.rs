//! `lull quiesce VM -- COMMAND`: what COMMAND sees, what its caller gets, and who else may freeze.

use crate::program::{Outcome, wait_for, wait_for_end};
use crate::told::assert_says;
use crate::world::{VM, World, assert_clean_receipt, sentence, task};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A guest held frozen by a command that lasts until it is released.
pub struct Hold {
    child: Option<Child>,
    pub session: i64,
    release: PathBuf,
}

impl Hold {
    /// Returns once COMMAND runs: the guest is frozen.
    pub fn begin(world: &World, flags: &[&str]) -> Hold {
        let (ready, release) = (world.folder.join("hold-ready"), world.folder.join("hold-release"));
        let _ = std::fs::remove_file(&ready);
        let _ = std::fs::remove_file(&release);
        let script = format!(
            "touch {}; n=0; while [ ! -e {} ] && [ $n -lt 1200 ]; do sleep 0.1; n=$((n+1)); done",
            ready.display(),
            release.display()
        );
        let mut command = world.command(&["--json", "quiesce", VM]);
        command.args(flags).args(["--", "sh", "-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        wait_for(120, "the guest is at rest and COMMAND runs", || {
            let over = child.try_wait().unwrap().is_some();
            assert!(!over || ready.exists(), "quiesce ended before COMMAND ran");
            ready.exists().then_some(())
        });
        Hold { child: Some(child), session: world.newest_session(), release }
    }

    /// Lets COMMAND end; how `lull quiesce` ended.
    pub fn end(mut self) -> Outcome {
        std::fs::write(&self.release, "").unwrap();
        wait_for_end(self.child.take().expect("it ends once"), 120)
    }

    /// Kills `lull quiesce` as nothing can be held back from; COMMAND lasts until this value is gone.
    pub fn kill_caller(&mut self) {
        let mut child = self.child.take().expect("it ends once");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.release, "");
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

/// Runs a hold to its end.
pub fn quiesce(world: &World, flags: &[&str], command: &[&str]) -> Outcome {
    world.lull(&[&["quiesce", VM], flags, &["--"], command].concat())
}

pub fn file_created_while_frozen(world: &mut World) {
    world.guest.ssh("rm -f /root/late /run/late-began");
    let hold = Hold::begin(world, &["--freeze-budget", "60s"]);
    // Begins in memory, so that it is seen to have begun; its creation on the root file system hangs.
    let late = "setsid sh -c 'touch /run/late-began; echo here >/root/late' >/dev/null 2>&1 </dev/null &";
    let seen = world.guest.ssh(&format!("{late} sleep 1; ls /run/late-began /root/late 2>/dev/null; true"));
    assert_eq!(seen, "/run/late-began");
    let session = hold.session;
    let outcome = hold.end();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let verdict: Value = outcome.json();
    assert_eq!((&verdict["inside"], &verdict["level"]), (&true.into(), &"application".into()), "{verdict}");
    wait_for(20, "the file appears", || (world.guest.ssh("cat /root/late 2>/dev/null; true") == "here").then_some(()));
    world.guest.ssh("rm /root/late /run/late-began");
    let session = world.finished(session);
    assert_says(&task(&session).inventory.as_ref().unwrap().to_string(), &["\"/\"", "\"/mnt/scratch\""]);
    assert_clean_receipt(&session);
}

pub fn exit_codes(world: &mut World) {
    let missing = world.folder.join("no-such-program").display().to_string();
    let plain = world.folder.join("server.log").display().to_string();
    // Command, exit code, what the document says.
    let table: [(&[&str], i32, &[&str]); 5] = [
        (
            &["sh", "-c", "test \"$LULL_VM\" = shop && test -n \"$LULL_FREEZE_ID\""],
            0,
            &["exit code 0", "\"inside\":true"],
        ),
        (&["sh", "-c", "exit 7"], 7, &["exit code 7", "\"inside\":true"]),
        (&["sh", "-c", "kill -9 $$"], 137, &["killed by signal 9"]),
        (&[&missing], 127, &["could not be started"]),
        (&[&plain], 126, &["could not be started"]),
    ];
    for (command, code, words) in table {
        let outcome = quiesce(world, &[], command);
        assert_eq!(outcome.code, code, "{command:?}: {outcome:?}");
        assert_says(&outcome.stdout, words);
    }
}

pub fn longer_than_the_budget(world: &mut World) {
    let pulse = world.guest.pulse();
    let began = Instant::now();
    let outcome = quiesce(world, &["--freeze-budget", "3s", "--lease", "2s"], &["sleep", "8"]);
    assert_eq!(outcome.code, 124, "{outcome:?}");
    assert_says(&outcome.stdout, &["\"inside\":false"]);
    let longest = pulse.longest_gap(began);
    println!("   budget 3 s, command 8 s: the guest's longest time without a write was {} ms", longest.as_millis());
    assert!(longest > Duration::from_secs(2) && longest < Duration::from_secs(3 + 1 + 1), "{longest:?}");
    let session = world.session(world.newest_session());
    assert_ne!(task(&session).level.as_deref(), Some("application"), "{session:#?}");
    assert_clean_receipt(&session);
}

pub fn caller_killed(world: &mut World) {
    let pulse = world.guest.pulse();
    let mut hold = Hold::begin(world, &["--freeze-budget", "60s", "--lease", "5s"]);
    pulse.assert_frozen();
    let fault = Instant::now();
    hold.kill_caller();
    let thawed = pulse.thaw_after(fault);
    println!("   caller SIGKILLed while frozen: a write got through after {} ms", thawed.as_millis());
    let session = world.finished(hold.session);
    assert!(thawed <= Duration::from_secs(5 + 1 + 1), "{thawed:?}");
    assert_says(&sentence(&session), &["at the caller of the hold", "did not renew", "run the command again"]);
    assert_clean_receipt(&session);
}

pub fn frozen_by_somebody_else(world: &mut World) {
    world.guest.ssh("fsfreeze -f /mnt/scratch");
    let session = world.run_job(crate::world::JOB);
    let still_frozen = world.guest.try_ssh("fsfreeze -u /mnt/scratch").code == 0;
    assert_says(&sentence(&session), &["file system", "/mnt/scratch", "somebody else", "thaw what"]);
    assert!(still_frozen, "a freeze of somebody else's was thawed by us");
    assert_eq!(task(&session).restore_point, None, "{session:#?}");
    assert_clean_receipt(&session);
}
