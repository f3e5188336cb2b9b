//! A session over its tasks.

use crate::world::{at_ms, now, server_id};
use lull_engine::failover::FailureClass;
use lull_engine::session::{
    Ending, Hop, Outcome, Owed, SessionEvent, SessionState, TaskEvent, TaskFailure, TaskState, advance,
    advance_session, count,
};
use proptest::prelude::*;
use proptest::sample::select;

/// A task that ended so.
fn finished(outcome: Outcome) -> TaskState {
    let ending = match outcome {
        Outcome::Success => Ending::Success,
        Outcome::Warning => Ending::Warning { messages: vec!["look".into()] },
        Outcome::Cancelled => Ending::Cancelled,
        Outcome::Failed => Ending::Failed {
            failure: TaskFailure {
                step: None,
                hop: Hop::Runtime,
                cause: "no executable directory".into(),
                remedy: "mount one with exec".into(),
                class: FailureClass::GuestSide,
            },
        },
    };
    TaskState::Finished { ending, at: now(), still_owed: Owed::default(), epoch: 1, restore_point: None }
}

#[test]
fn a_session_is_as_good_as_its_worst_task() {
    let success = finished(Outcome::Success);
    let warning = finished(Outcome::Warning);
    let cancelled = finished(Outcome::Cancelled);
    let failed = finished(Outcome::Failed);
    let started = SessionState::Running { since: now() };
    for (tasks, expected) in [
        (vec![&success, &success], Outcome::Success),
        (vec![&warning, &success], Outcome::Warning),
        (vec![&success, &cancelled, &warning], Outcome::Cancelled),
        (vec![&failed, &cancelled, &warning, &success], Outcome::Failed),
        (vec![], Outcome::Failed),
    ] {
        let counts = count(tasks);
        let state = advance_session(&started, &SessionEvent::TasksChanged { counts }, at_ms(5));
        assert_eq!(state, SessionState::Finished { since: now(), at: at_ms(5), outcome: expected });
        // Late news changes nothing.
        assert_eq!(advance_session(&state, &SessionEvent::CancelRequested, at_ms(9)), state);
    }
}

#[test]
fn a_session_ends_only_when_its_last_task_has() {
    let mut recovering = TaskState::new(now());
    for event in [
        TaskEvent::Dispatch {
            proxy: server_id(1),
            partial_file: None,
            post_script: None,
            left: None,
            outlives_server: false,
        },
        TaskEvent::ServerRestarted { waiting_goes_on: false },
    ] {
        recovering = advance(&recovering, &event, now()).expect("legal").state;
    }
    let counts = count([&recovering]);
    assert_eq!((counts.recovering, counts.open()), (1, 1));
    let started = SessionState::Running { since: now() };
    let cancelling = advance_session(&started, &SessionEvent::CancelRequested, at_ms(1));
    assert_eq!(cancelling, SessionState::Cancelling { since: now() });
    assert_eq!(advance_session(&cancelling, &SessionEvent::TasksChanged { counts }, at_ms(2)), cancelling);
}

proptest! {
    #[test]
    fn whatever_its_tasks_a_session_ends_with_the_last_and_as_the_worst(
        outcomes in prop::collection::vec(
            prop::option::weighted(
                0.9,
                select(vec![Outcome::Success, Outcome::Warning, Outcome::Cancelled, Outcome::Failed]),
            ),
            0..12,
        ),
    ) {
        // `None` is a task that is not over.
        let tasks: Vec<TaskState> =
            outcomes.iter().map(|outcome| outcome.map_or_else(|| TaskState::new(now()), finished)).collect();
        let counts = count(&tasks);
        prop_assert_eq!(counts.open() as usize, outcomes.iter().filter(|outcome| outcome.is_none()).count());
        let started = SessionState::Running { since: now() };
        let state = advance_session(&started, &SessionEvent::TasksChanged { counts }, at_ms(5));
        if outcomes.contains(&None) {
            prop_assert_eq!(state, started);
        } else {
            let outcome = outcomes.iter().flatten().max().copied().unwrap_or(Outcome::Failed);
            prop_assert_eq!(state, SessionState::Finished { since: now(), at: at_ms(5), outcome });
        }
    }
}
