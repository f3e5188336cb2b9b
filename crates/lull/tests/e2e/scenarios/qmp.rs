//! The hypervisor's socket cut before, during and after the snapshot and while data is copied, back at once or only later:
//! a frozen guest thaws in time, the session names the step, and nothing stays in the hypervisor once the socket is back.

use crate::guest::Pulse;
use crate::relay::{At, Relay};
use crate::told::assert_says;
use crate::world::{JOB, World, assert_clean_receipt, sentence, task};
use std::time::{Duration, Instant};

/// Lease and one second as promised, and one for a write to get through and be told.
pub const THAW_WITHIN: Duration = Duration::from_secs(5 + 1 + 1);
/// While nothing is frozen, no write takes longer.
pub const LONGEST_WRITE: Duration = Duration::from_secs(3);

struct Case {
    at: At,
    command: &'static str,
    /// In which the step is told.
    step: &'static str,
    frozen: bool,
    /// The socket comes back only after this.
    away: Option<Duration>,
}

const CASES: &[Case] = &[
    Case { at: At::After, command: "blockdev-add", step: "inventory", frozen: false, away: None },
    Case { at: At::Before, command: "transaction", step: "snapshot", frozen: true, away: None },
    Case { at: At::After, command: "transaction", step: "snapshot", frozen: true, away: None },
    Case { at: At::AnswersLost, command: "transaction", step: "snapshot", frozen: true, away: None },
    Case { at: At::Before, command: "blockdev-backup", step: "copy", frozen: false, away: None },
    Case { at: At::AnswersLost, command: "blockdev-backup", step: "copy", frozen: false, away: None },
    Case { at: At::After, command: "transaction", step: "snapshot", frozen: true, away: Some(AWAY) },
    Case { at: At::AnswersLost, command: "blockdev-backup", step: "copy", frozen: false, away: Some(AWAY) },
];

/// Longer than the task itself looks for the socket.
const AWAY: Duration = Duration::from_secs(5);

pub fn cut(world: &mut World) {
    let relay = Relay::before(&world.guest);
    for case in CASES {
        println!("   {:?} {}{}", case.at, case.command, if case.away.is_some() { ", and stays away" } else { "" });
        let pulse = world.guest.pulse();
        let held = relay.hold(case.at, case.command);
        let (id, events) = world.start_job(JOB);
        held.wait();
        if case.frozen {
            pulse.assert_frozen();
        }
        if case.away.is_some() {
            relay.take_away();
        }
        let fault = held.cut();
        thawed(&pulse, fault, case.frozen);
        if let Some(away) = case.away {
            std::thread::sleep(away);
            relay.put_back();
        }
        let session = world.finished(id);
        assert_eq!(events.end(), 1, "whoever follows is told");
        if !case.frozen {
            let longest = pulse.longest_gap(fault);
            assert!(longest < LONGEST_WRITE, "the guest stood still for {longest:?}");
        }
        let said = sentence(&session);
        println!("      {said}");
        assert_says(&said, &["at the hypervisor", "qmp", case.command, "lost", "swept when the socket answers again"]);
        assert_eq!(task(&session).failure.as_ref().unwrap().step, case.step, "{session:#?}");
        assert_eq!(task(&session).restore_point, None, "{session:#?}");
        assert_clean_receipt(&session);
        assert!(task(&session).receipt.as_ref().unwrap().hypervisor_checked, "{session:#?}");
        drop(pulse);
        world.assert_calm();
    }
    drop(relay);
    world.verify_first();
    let session = world.run_job(JOB);
    assert_eq!(session.summary.result.as_deref(), Some("success"), "the next run succeeds: {session:#?}");
    assert_eq!(task(&session).level.as_deref(), Some("application"));
}

fn thawed(pulse: &Pulse, fault: Instant, frozen: bool) {
    if frozen {
        let thawed = pulse.thaw_after(fault);
        println!("      a write got through after {} ms", thawed.as_millis());
        assert!(thawed <= THAW_WITHIN, "{thawed:?}");
    }
}
