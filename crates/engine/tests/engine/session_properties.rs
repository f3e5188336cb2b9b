//! Properties of the task state machine under any sequence of events: lost, late, doubled, out of order.

use crate::world::{at_ms, now, server_id};
use jiff::Timestamp;
use lull_engine::failover::FailureClass;
use lull_engine::ids::{RestorePointId, TaskId};
use lull_engine::session::{
    Action, Ending, Hop, Ignored, Left, Owed, ProxyReport, RECOVERY_ATTEMPTS_MAX, RecoveryPart, TaskEvent, TaskFailure,
    TaskState, advance,
};
use lull_engine::timeline::Step;
use proptest::prelude::*;
use proptest::sample::select;
use uuid::Uuid;

fn any_class() -> impl Strategy<Value = FailureClass> {
    select(vec![
        FailureClass::RefusedCredential,
        FailureClass::GuestUnreachable,
        FailureClass::GuestSide,
        FailureClass::Hypervisor,
        FailureClass::Repository,
    ])
}

fn any_ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        Just(Ending::Success),
        Just(Ending::Warning { messages: vec!["look".into()] }),
        Just(Ending::Cancelled),
        any_class().prop_map(|class| Ending::Failed {
            failure: TaskFailure { step: None, hop: Hop::Runtime, cause: "c".into(), remedy: "r".into(), class }
        }),
    ]
}

fn any_owed() -> impl Strategy<Value = Owed> {
    (any::<[bool; 3]>(), prop::option::of(Just("f".to_owned())), prop::option::of(any_task())).prop_map(
        |([guest, frozen, hypervisor], partial_file, post_script)| Owed {
            guest,
            frozen,
            hypervisor,
            partial_file,
            post_script,
        },
    )
}

fn any_task() -> impl Strategy<Value = TaskId> {
    (0u128..2).prop_map(|n| TaskId(Uuid::from_u128(n)))
}

fn any_dispatch() -> impl Strategy<Value = TaskEvent> {
    let left = (any_task(), any_owed()).prop_map(|(by, owed)| Left::of(by, &owed));
    (0u128..4, prop::option::of(any_task()), left, any::<bool>()).prop_map(|(n, post_script, left, outlives_server)| {
        TaskEvent::Dispatch { proxy: server_id(n), partial_file: Some("f".into()), post_script, left, outlives_server }
    })
}

fn any_report() -> impl Strategy<Value = ProxyReport> {
    prop_oneof![
        Just(ProxyReport::Accepted),
        select(Step::ALL.to_vec()).prop_map(|step| ProxyReport::StepStarted { step }),
        select(Step::ALL.to_vec()).prop_map(|step| ProxyReport::StepEnded { step }),
        (1u64..3).prop_map(|freeze_id| ProxyReport::Frozen { freeze_id }),
        (1u64..3).prop_map(|freeze_id| ProxyReport::Thawed { freeze_id }),
        Just(ProxyReport::FileStarted { path: "f".into() }),
        Just(ProxyReport::Swept),
        Just(ProxyReport::ReceiptClean),
        Just(ProxyReport::GuestUntouched),
        (any_ending(), any_owed()).prop_map(|(ending, owed)| ProxyReport::Finished { ending, owed }),
    ]
}

fn no_proxy() -> TaskEvent {
    TaskEvent::NoProxy { cause: "none".into(), remedy: "add one".into() }
}

/// An event whose epoch is relative to the task's: 0 is the present one, 1 the one before.
fn any_event() -> impl Strategy<Value = (u64, TaskEvent)> {
    let part = select(vec![RecoveryPart::Guest, RecoveryPart::Hypervisor]);
    let event = prop_oneof![
        3 => any_dispatch(),
        8 => any_report().prop_map(|report| TaskEvent::Report { epoch: 0, report }),
        1 => Just(no_proxy()),
        1 => Just(TaskEvent::NotDelivered { epoch: 0, cause: "refused".into() }),
        1 => Just(TaskEvent::RestorePointRecorded { epoch: 0, restore_point: RestorePointId(Uuid::nil()) }),
        1 => Just(TaskEvent::ProxyLost { epoch: 0, cause: "silent".into() }),
        1 => Just(TaskEvent::CancelRequested),
        1 => any::<bool>().prop_map(|waiting_goes_on| TaskEvent::ServerRestarted { waiting_goes_on }),
        3 => (0i64..600_000).prop_map(|ms| TaskEvent::LeaseGranted { epoch: 0, until: at_ms(ms) }),
        1 => Just(TaskEvent::PostScriptRan { epoch: 0 }),
        2 => Just(TaskEvent::GuestRecovered { epoch: 0 }),
        2 => Just(TaskEvent::HypervisorSwept { epoch: 0 }),
        3 => (part, any_class()).prop_map(|(part, class)| {
            TaskEvent::RecoveryFailed { epoch: 0, part, class, cause: "no".into() }
        }),
    ];
    (prop_oneof![4 => Just(0u64), 1 => Just(1u64)], event)
}

fn epoch_of(state: &TaskState) -> u64 {
    match state {
        TaskState::Waiting { epoch, .. } => *epoch,
        TaskState::Dispatched { hold } | TaskState::Running { hold, .. } | TaskState::Recovering { hold, .. } => {
            hold.epoch
        }
        TaskState::Finished { .. } => 0,
    }
}

fn with_epoch(event: &TaskEvent, number: u64) -> TaskEvent {
    let mut event = event.clone();
    match &mut event {
        TaskEvent::NotDelivered { epoch, .. }
        | TaskEvent::Report { epoch, .. }
        | TaskEvent::RestorePointRecorded { epoch, .. }
        | TaskEvent::ProxyLost { epoch, .. }
        | TaskEvent::LeaseGranted { epoch, .. }
        | TaskEvent::PostScriptRan { epoch }
        | TaskEvent::GuestRecovered { epoch }
        | TaskEvent::HypervisorSwept { epoch }
        | TaskEvent::RecoveryFailed { epoch, .. } => *epoch = number,
        _ => {}
    }
    event
}

/// Whether this event is evidence that clears debts, so that `owed` may shrink.
fn is_evidence(event: &TaskEvent) -> bool {
    matches!(
        event,
        TaskEvent::NotDelivered { .. }
            | TaskEvent::RestorePointRecorded { .. }
            | TaskEvent::PostScriptRan { .. }
            | TaskEvent::GuestRecovered { .. }
            | TaskEvent::HypervisorSwept { .. }
            | TaskEvent::Report {
                report: ProxyReport::Thawed { .. }
                    | ProxyReport::Swept
                    | ProxyReport::ReceiptClean
                    | ProxyReport::GuestUntouched
                    | ProxyReport::StepEnded { step: Step::PostScript }
                    | ProxyReport::Finished { .. },
                ..
            }
    )
}

/// Whether the task is with a proxy that was never granted a lease, without which it does nothing.
fn never_granted(state: &TaskState) -> bool {
    match state {
        TaskState::Dispatched { hold } | TaskState::Running { hold, .. } => {
            hold.outlives_server && hold.lease_until.is_none()
        }
        _ => false,
    }
}

fn lease_of(state: &TaskState) -> Option<Timestamp> {
    match state {
        TaskState::Dispatched { hold } | TaskState::Running { hold, .. } | TaskState::Recovering { hold, .. } => {
            hold.lease_until
        }
        _ => None,
    }
}

fn covers(more: &Owed, less: &Owed) -> bool {
    (more.guest || !less.guest)
        && (more.frozen || !less.frozen)
        && (more.hypervisor || !less.hypervisor)
        && (more.partial_file.is_some() || less.partial_file.is_none())
        && (more.post_script.is_some() || less.post_script.is_none())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_sequence_of_events_breaks_a_task(events in prop::collection::vec(any_event(), 1..60)) {
        let mut state = TaskState::new(now());
        let mut epochs_issued = Vec::new();
        for (index, (behind, event)) in events.iter().enumerate() {
            let event = with_epoch(event, epoch_of(&state).saturating_sub(*behind));
            let at = at_ms(index as i64);
            let Ok(transition) = advance(&state, &event, at) else { continue };
            let before = state.owed();
            let after = transition.state.owed();

            // Debts go only by evidence, and a task is never dispatched while it owes anything.
            if !is_evidence(&event) && !never_granted(&state) {
                prop_assert!(covers(&after, &before), "{event:?}: {before:?} -> {after:?}");
            }
            if matches!(transition.state, TaskState::Waiting { .. }) {
                prop_assert!(after.is_empty());
            }
            // Nor while an earlier task's debts on the VM are not paid.
            if let (TaskEvent::Dispatch { left: Some(left), .. }, TaskState::Dispatched { hold }) =
                (&event, &transition.state)
            {
                prop_assert_eq!(hold.paid_for, Some(left.by));
            }
            // Whatever is owed is being paid, held by a proxy, or recorded at the end.
            if let TaskState::Recovering { .. } = transition.state {
                prop_assert!(!after.is_empty());
            }
            if let TaskState::Finished { ending: Ending::Success, .. } = transition.state {
                prop_assert!(after.is_empty(), "a success owes nothing");
            }

            // A task is somebody else's only after the debts of whoever was granted it are paid, and no grant is taken back.
            if let (TaskState::Dispatched { hold } | TaskState::Running { hold, .. }, Some(until)) =
                (&state, lease_of(&state))
            {
                let same = epoch_of(&transition.state) == hold.epoch && lease_of(&transition.state) >= Some(until);
                let over = !matches!(transition.state, TaskState::Dispatched { .. } | TaskState::Running { .. });
                prop_assert!(same || over, "{event:?}");
                if matches!(transition.state, TaskState::Waiting { .. }) {
                    prop_assert!(is_evidence(&event), "{event:?} gave up what was granted");
                }
            }

            // Ignored means ignored.
            if transition.ignored.is_some() {
                prop_assert_eq!(&transition.state, &state);
                prop_assert!(transition.actions.is_empty());
            }
            // Every number is issued once, so that nobody is mistaken for somebody else.
            for action in &transition.actions {
                if let Action::SendTask { epoch, .. } = action {
                    prop_assert!(!epochs_issued.contains(epoch), "epoch {epoch} twice");
                    epochs_issued.push(*epoch);
                }
            }
            let over = matches!(transition.state, TaskState::Finished { .. });
            prop_assert!(over || epoch_of(&transition.state) >= epoch_of(&state));
            // The end is the end.
            if let TaskState::Finished { .. } = state {
                prop_assert_eq!(transition.ignored, Some(Ignored::AfterEnd));
            }
            prop_assert_eq!(
                transition.actions.contains(&Action::TaskClosed),
                over && !matches!(state, TaskState::Finished { .. })
            );

            // An event that is delivered twice does nothing more, except that attempts are counted and cancelled
            // restarts restart.
            let counted = matches!(event, TaskEvent::RecoveryFailed { .. } | TaskEvent::ServerRestarted { .. });
            if !counted
                && let Ok(again) = advance(&transition.state, &event, at)
            {
                prop_assert_eq!(&again.state, &transition.state, "{:?} twice", event);
                prop_assert!(again.actions.is_empty());
            }

            let text = serde_json::to_string(&transition).expect("JSON");
            prop_assert_eq!(&serde_json::from_str::<lull_engine::session::Transition>(&text).expect("the same"), &transition);
            state = transition.state;
        }
    }

    #[test]
    fn a_restart_always_leads_to_an_end(
        events in prop::collection::vec(any_event(), 0..30),
        luck in any::<[bool; 2]>(),
        waiting_goes_on in any::<bool>(),
    ) {
        let mut state = TaskState::new(now());
        for (_, event) in &events {
            let event = with_epoch(event, epoch_of(&state));
            if let Ok(transition) = advance(&state, &event, now()) {
                state = transition.state;
            }
        }
        let mut pending = Vec::new();
        let restarted =
            advance(&state, &TaskEvent::ServerRestarted { waiting_goes_on }, now()).expect("always legal");
        state = restarted.state;
        pending.extend(restarted.actions);
        let mut turns = 0;
        while let Some(action) = pending.pop() {
            turns += 1;
            prop_assert!(turns <= 8 * RECOVERY_ATTEMPTS_MAX, "no end in sight");
            let event = match action {
                Action::RecoverGuest { epoch, .. } if luck[0] => TaskEvent::GuestRecovered { epoch },
                Action::RecoverGuest { epoch, .. } => {
                    let class = FailureClass::GuestSide;
                    TaskEvent::RecoveryFailed { epoch, part: RecoveryPart::Guest, class, cause: "no".into() }
                }
                Action::SweepHypervisor { epoch, .. } if luck[1] => TaskEvent::HypervisorSwept { epoch },
                Action::SweepHypervisor { epoch, .. } => {
                    let class = FailureClass::Hypervisor;
                    TaskEvent::RecoveryFailed { epoch, part: RecoveryPart::Hypervisor, class, cause: "no".into() }
                }
                Action::AttachTask { epoch, .. } => TaskEvent::ProxyLost { epoch, cause: "it stays away".into() },
                Action::Requeue => no_proxy(),
                _ => continue,
            };
            // Longer than any lease: time goes on meanwhile.
            let at = at_ms(600_000 + i64::from(turns));
            let transition = advance(&state, &event, at).expect("an answer to an action is legal");
            state = transition.state;
            pending.extend(transition.actions);
        }
        prop_assert!(matches!(state, TaskState::Finished { .. }), "stuck in {}", state.name());
    }
}
