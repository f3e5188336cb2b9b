//! The server killed or stopped at the worst moment: the guest thaws in time, a new server tells the truth and sweeps.

use crate::scenarios::hold::Hold;
use crate::told::assert_says;
use crate::world::{JOB, World, assert_clean_receipt, sentence, task};
use lull_api::session::{EventKind, Session};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// The lease of these freezes, and one second as promised; and one for a write to get through and be told.
const LEASE: Duration = Duration::from_secs(5);
const THAW_WITHIN: Duration = Duration::from_secs(5 + 1 + 1);

pub fn while_frozen(world: &mut World) {
    let pulse = world.guest.pulse();
    let hold = Hold::begin(world, &["--freeze-budget", "60s", "--lease", "5s"]);
    pulse.assert_frozen();
    let fault = Instant::now();
    world.kill_server();
    let thawed = pulse.thaw_after(fault);
    println!("   server SIGKILLed while frozen: a write got through after {} ms", thawed.as_millis());
    assert!(thawed <= THAW_WITHIN, "{thawed:?}");
    world.start_server();
    let session = world.finished(hold.session);
    told_as_interrupted(&session);
    assert_eq!(hold.end().code, 124, "COMMAND was not inside the quiet moment to its end");
    let session = world.run_job(JOB);
    assert_eq!(session.summary.result.as_deref(), Some("success"), "the next run succeeds: {session:#?}");
    assert_eq!(task(&session).level.as_deref(), Some("application"));
}

pub fn stopped_while_frozen(world: &mut World) {
    let pulse = world.guest.pulse();
    let hold = Hold::begin(world, &["--freeze-budget", "60s", "--lease", "5s"]);
    pulse.assert_frozen();
    let fault = Instant::now();
    world.signal_server(Signal::STOP);
    let thawed = pulse.thaw_after(fault);
    println!("   server SIGSTOPped while frozen: a write got through after {} ms", thawed.as_millis());
    world.signal_server(Signal::CONT);
    assert!(thawed <= THAW_WITHIN, "{thawed:?}");
    assert!(thawed >= LEASE - Duration::from_millis(1_500), "something else than the lease thawed it: {thawed:?}");
    let id = hold.session;
    let outcome = hold.end();
    assert_eq!(outcome.code, 124, "{outcome:?}");
    let session = world.finished(id);
    assert_ne!(task(&session).level.as_deref(), Some("application"), "{session:#?}");
    assert_ne!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_clean_receipt(&session);
}

pub fn while_copying(world: &mut World) {
    world.make_job("slow", &["--full-every", "1", "--copy-limit", "8MiB"]);
    let (id, events) = world.start_job("slow");
    events.until_step("copy");
    events.until(60, "progress", |event| matches!(event, EventKind::Progress { done_bytes: 1.., .. }));
    world.kill_server();
    drop(events);
    world.start_server();
    let session = world.finished(id);
    told_as_interrupted(&session);
    let receipt = task(&session).receipt.as_ref().unwrap();
    assert!(receipt.hypervisor_checked, "{receipt:?}");
    assert_eq!(task(&session).restore_point, None, "{session:#?}");
    world.verify_first();
    world.lull(&["job", "remove", "slow"]).ok();
}

/// A task that a killed server left open is closed with the truth.
fn told_as_interrupted(session: &Session) {
    assert_says(&sentence(session), &["backup server", "stopped", "run it again"]);
    assert_ne!(task(session).level.as_deref(), Some("application"), "{session:#?}");
    assert_clean_receipt(session);
}
