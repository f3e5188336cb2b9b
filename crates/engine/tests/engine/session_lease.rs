//! The lease of a task, and proxies that outlive the backup server: what is granted goes on, what never was never began.

use crate::task::{CLEAN, Task, dispatch, restarted};
use crate::world::{at_ms, server_id};
use lull_engine::failover::FailureClass;
use lull_engine::ids::TaskId;
use lull_engine::session::{
    Action, AfterRecovery, Ending, Ignored, Left, Outcome, Owed, ProxyReport, RECOVERY_ATTEMPTS_MAX, RecoveryPart,
    TaskEvent, TaskState,
};
use lull_engine::task_lease::TASK_LEASE_MS;
use lull_engine::timeline::Step;
use uuid::Uuid;

/// Dispatched to a proxy of its own process, with a lease until then.
fn granted(until_ms: i64) -> Task {
    let mut task = remote();
    task.send(TaskEvent::LeaseGranted { epoch: 1, until: at_ms(until_ms) });
    task
}

fn remote() -> Task {
    let mut task = Task::new();
    task.send(outliving(dispatch(1)));
    task
}

fn outliving(mut event: TaskEvent) -> TaskEvent {
    if let TaskEvent::Dispatch { outlives_server, .. } = &mut event {
        *outlives_server = true;
    }
    event
}

fn begun(mut task: Task, step: Step) -> Task {
    task.report(ProxyReport::Accepted);
    for begun in Step::ALL.into_iter().filter(|begun| *begun <= step) {
        task.report(ProxyReport::StepStarted { step: begun });
    }
    task
}

fn wanted() -> TaskEvent {
    TaskEvent::ServerRestarted { waiting_goes_on: true }
}

fn lost(epoch: u64) -> TaskEvent {
    TaskEvent::ProxyLost { epoch, cause: "silent".into() }
}

fn lease_until(task: &Task) -> Option<i64> {
    match &task.state {
        TaskState::Dispatched { hold } | TaskState::Running { hold, .. } | TaskState::Recovering { hold, .. } => {
            hold.lease_until.map(|until| until.duration_since(at_ms(0)).as_millis() as i64)
        }
        TaskState::Waiting { .. } | TaskState::Finished { .. } => None,
    }
}

fn gives_up(task: &mut Task, part: RecoveryPart) {
    let (class, cause) = (FailureClass::GuestUnreachable, "no route".to_owned());
    task.send(TaskEvent::RecoveryFailed { epoch: task.epoch(), part, class, cause });
}

#[test]
fn a_grant_moves_the_end_on_and_never_back() {
    let mut task = granted(300_000);
    assert_eq!(lease_until(&task), Some(300_000));
    let earlier = task.try_send(&TaskEvent::LeaseGranted { epoch: 1, until: at_ms(200_000) }).expect("harmless");
    assert_eq!(earlier.ignored, Some(Ignored::Duplicate));
    let mut task = begun(task, Step::Freeze);
    task.send(TaskEvent::LeaseGranted { epoch: 1, until: at_ms(360_000) });
    assert_eq!(lease_until(&task), Some(360_000));
    // Whoever lost the task asks in vain; the lease that is over stays what it was.
    task.send(lost(1));
    let late = task.try_send(&TaskEvent::LeaseGranted { epoch: 1, until: at_ms(900_000) }).expect("harmless");
    assert_eq!(late.ignored, Some(Ignored::StaleEpoch));
    assert_eq!(lease_until(&task), Some(360_000));
    let recoverys = TaskEvent::LeaseGranted { epoch: 2, until: at_ms(900_000) };
    assert!(task.try_send(&recoverys).expect_err("illegal").contains("no proxy was given the task"));
}

#[test]
fn what_was_never_granted_never_began_and_the_next_proxy_takes_it_at_once() {
    for event in [TaskEvent::NotDelivered { epoch: 1, cause: "connection refused".into() }, lost(1)] {
        // It has the order, and said so; it does nothing before a grant.
        for mut task in [remote(), begun(remote(), Step::Connect)] {
            task.send(event.clone());
            assert_eq!((task.state.name(), task.last.last()), ("waiting", Some(&Action::Requeue)), "{event:?}");
            assert!(task.state.owed().is_empty());
            assert!(task.try_send(&outliving(dispatch(1))).is_err(), "it had its turn");
        }
    }
}

#[test]
fn what_was_granted_cannot_be_called_undelivered() {
    let mut task = granted(300_000);
    let undelivered = TaskEvent::NotDelivered { epoch: 1, cause: "connection refused".into() };
    assert!(task.try_send(&undelivered).expect_err("illegal").contains("it was granted to the proxy"));
    task.send(lost(1));
    assert_eq!(task.state.owed(), Owed::everything(Some("/repo/vm-1.qcow2".into())), "it may have begun");
}

#[test]
fn a_proxy_that_outlives_the_server_keeps_its_task() {
    for restart in [wanted(), restarted()] {
        for step in Step::ALL {
            let mut task = begun(granted(300_000), step);
            let before = task.state.clone();
            for _ in 0..2 {
                task.send(restart.clone());
                assert_eq!(task.state, before, "at {step}");
                assert_eq!(task.last, [Action::AttachTask { proxy: server_id(1), epoch: 1 }]);
            }
            task.report(ProxyReport::Thawed { freeze_id: 7 });
            task.finish(Ending::Success, CLEAN);
            assert_eq!(task.ending(), &Ending::Success, "at {step}");
        }
    }
}

#[test]
fn a_task_that_waits_goes_on_waiting_where_somebody_wants_it() {
    let mut task = Task::new();
    let before = task.state.clone();
    task.send(wanted());
    assert_eq!((&task.state, task.last.as_slice()), (&before, [Action::Requeue].as_slice()));
    task.send(restarted());
    assert_eq!(task.ending().outcome(), Outcome::Failed);
}

#[test]
fn an_order_that_was_not_granted_before_the_restart_waits_again_and_blames_nobody() {
    for mut task in [remote(), begun(remote(), Step::Connect)] {
        let mut of_a_caller = Task { state: task.state.clone(), ..Task::new() };
        let mut cancelled = Task { state: task.state.clone(), ..Task::new() };
        task.send(wanted());
        assert_eq!((task.state.name(), task.last.as_slice()), ("waiting", [Action::Requeue].as_slice()));
        task.send(outliving(dispatch(1)));
        assert_eq!(task.last, [Action::SendTask { proxy: server_id(1), epoch: 2 }]);

        of_a_caller.send(restarted());
        assert_eq!(of_a_caller.ending().outcome(), Outcome::Failed);
        cancelled.send(TaskEvent::CancelRequested);
        cancelled.send(wanted());
        assert_eq!(cancelled.ending(), &Ending::Cancelled);
    }
}

#[test]
fn what_the_embedded_proxy_held_is_recovered_at_once_and_fails() {
    let mut task = Task::dispatched();
    task.send(TaskEvent::LeaseGranted { epoch: 1, until: at_ms(300_000) });
    let mut task = begun(task, Step::Copy);
    task.send(wanted());
    assert_eq!((task.state.name(), lease_until(&task)), ("recovering", None), "that proxy died with the server");
    task.recovered();
    assert_eq!(task.ending().outcome(), Outcome::Failed);
}

#[test]
fn a_failover_goes_on_after_a_restart() {
    let mut task = begun(granted(300_000), Step::Freeze);
    task.send(lost(1));
    let mut unwanted = Task { state: task.state.clone(), ..Task::new() };
    task.send(wanted());
    assert!(matches!(task.state, TaskState::Recovering { then: AfterRecovery::Failover { .. }, .. }));
    assert_eq!((task.epoch(), task.last.len()), (3, 2), "the recovery begins anew");
    let mut cancelled = Task { state: task.state.clone(), ..Task::new() };
    task.recovered();
    task.send(outliving(dispatch(2)));
    assert_eq!(task.last, [Action::SendTask { proxy: server_id(2), epoch: 4 }]);

    cancelled.send(TaskEvent::CancelRequested);
    cancelled.recovered();
    assert_eq!(cancelled.ending(), &Ending::Cancelled);
    unwanted.send(restarted());
    unwanted.recovered();
    assert_eq!(unwanted.ending().outcome(), Outcome::Failed);
}

#[test]
fn a_task_that_pays_for_an_earlier_one_still_begins_after_a_restart() {
    let owed = Owed { frozen: true, guest: true, ..Owed::default() };
    let left = Left::of(TaskId(Uuid::from_u128(8)), &owed);
    let mut task = Task::new();
    task.send(outliving(crate::task::dispatch_with(1, None, left.clone())));
    task.send(wanted());
    assert_eq!(task.cut_at(), Some(Step::Connect));
    let epoch = task.epoch();
    task.send(TaskEvent::GuestRecovered { epoch });
    assert_eq!(task.state.name(), "waiting");
    task.send(outliving(crate::task::dispatch_with(1, None, left)));
    assert!(matches!(task.last.as_slice(), [Action::SendTask { .. }]));
}

#[test]
fn no_debt_is_given_up_while_the_lost_proxys_lease_holds_nor_before_one_more_attempt_after_it() {
    let until_ms = 290_000;
    let mut task = begun(granted(until_ms), Step::Copy);
    task.send(lost(1));
    task.send(TaskEvent::GuestRecovered { epoch: 2 });
    // Each attempt fails as soon as it is made.
    let mut waits_ms = Vec::new();
    let mut begun_ms = Vec::new();
    while let TaskState::Recovering { .. } = task.state {
        begun_ms.push(task.clock_ms);
        task.clock_ms -= 1_000;
        gives_up(&mut task, RecoveryPart::Hypervisor);
        for action in &task.last {
            if let Action::SweepHypervisor { after_ms, .. } = action {
                waits_ms.push(*after_ms);
                task.clock_ms += *after_ms as i64;
            }
        }
        assert!(begun_ms.len() < 40, "no end in sight");
    }
    assert!(waits_ms.iter().all(|wait_ms| *wait_ms <= 60_000), "{waits_ms:?}");
    let after = begun_ms.iter().filter(|ms| **ms >= until_ms).count();
    assert!(begun_ms.len() as u32 >= RECOVERY_ATTEMPTS_MAX && after >= 1, "{begun_ms:?}");
    assert!(*begun_ms.last().expect("attempts") < until_ms + 3 * 60_000, "bounded: {begun_ms:?}");
    assert!(task.state.owed().hypervisor, "what is left stays recorded");
}

#[test]
fn an_attempt_that_began_under_the_lease_and_failed_after_it_is_not_the_last() {
    let mut task = begun(granted(200_000), Step::Copy);
    task.send(lost(1));
    for _ in 0..2 * RECOVERY_ATTEMPTS_MAX {
        gives_up(&mut task, RecoveryPart::Guest);
        gives_up(&mut task, RecoveryPart::Hypervisor);
    }
    task.send(TaskEvent::HypervisorSwept { epoch: 2 });
    task.clock_ms = 200_000;
    gives_up(&mut task, RecoveryPart::Guest);
    assert_eq!(task.state.name(), "recovering");
    gives_up(&mut task, RecoveryPart::Guest);
    assert_eq!(task.ending().outcome(), Outcome::Failed);
}

#[test]
fn a_clock_that_was_put_back_does_not_keep_a_recovery_going_for_days() {
    let day_ms = 86_400_000;
    let mut task = begun(granted(day_ms + TASK_LEASE_MS as i64), Step::Copy);
    task.send(lost(1));
    task.send(TaskEvent::HypervisorSwept { epoch: 2 });
    for _ in 0..RECOVERY_ATTEMPTS_MAX {
        gives_up(&mut task, RecoveryPart::Guest);
    }
    assert_eq!(task.state.name(), "finished");
}

#[test]
fn a_refused_credential_is_not_tried_again_however_long_the_lease_holds() {
    let mut task = begun(granted(300_000), Step::Copy);
    task.send(lost(1));
    task.send(TaskEvent::HypervisorSwept { epoch: 2 });
    let (class, cause) = (FailureClass::RefusedCredential, "refused".to_owned());
    task.send(TaskEvent::RecoveryFailed { epoch: 2, part: RecoveryPart::Guest, class, cause });
    assert_eq!(task.state.name(), "finished");
}

/// As the store of a backup server holds them that knew no leases.
#[test]
fn tasks_that_an_older_server_stored_are_read_and_end() {
    let waiting = r#"{"state":"waiting","since":"2030-01-01T12:00:00Z","epoch":0,"tried":[],"last_failure":null}"#;
    let hold = r#"{"proxy":"00000000-0000-0000-0000-000000005e01","epoch":1,"since":"2030-01-01T12:00:00Z",
        "owed":{"guest":true,"frozen":true,"hypervisor":true,"partial_file":"/repo/vm-1","post_script":null},
        "tried":[],"cancel_requested":false,"frozen_id":7,"thawed":null,"restore_point":null,"post_script":null,
        "paid_for":null,"cut_at":null}"#;
    let dispatched = format!(r#"{{"state":"dispatched","hold":{hold}}}"#);
    let running =
        format!(r#"{{"state":"running","hold":{hold},"step":"snapshot","step_since":"2030-01-01T12:00:00.5Z"}}"#);
    let failure = r#"{"step":"copy","hop":"server-to-proxy","cause":"silent","remedy":"r","class":"proxy-lost"}"#;
    let recovering = format!(
        r#"{{"state":"recovering","hold":{hold},"since":"2030-01-01T12:00:01Z","guest_attempts":2,
            "hypervisor_attempts":0,"then":{{"kind":"failover","failure":{failure}}}}}"#
    );
    for (json, restarted_to) in [
        (waiting, "waiting"),
        (dispatched.as_str(), "recovering"),
        (running.as_str(), "recovering"),
        (recovering.as_str(), "recovering"),
    ] {
        let state: TaskState = serde_json::from_str(json).expect("it is read");
        let mut task = Task { state, ..Task::new() };
        task.send(wanted());
        assert_eq!(task.state.name(), restarted_to, "{json}");
        let again = serde_json::to_string(&task.state).expect("JSON");
        assert_eq!(serde_json::from_str::<TaskState>(&again).expect("the same"), task.state);
    }
    let event = r#"{"event":"server-restarted"}"#;
    assert_eq!(serde_json::from_str::<TaskEvent>(event).expect("it is read"), restarted());
}
