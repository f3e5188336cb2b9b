//! A session over its tasks.

use crate::world::{at_ms, now, server_id};
use lull_engine::failover::FailureClass;
use lull_engine::session::{
    Ending, Hop, Outcome, Owed, SessionEvent, SessionState, TaskEvent, TaskFailure, TaskState, advance,
    advance_session, count,
};

#[test]
fn a_session_is_as_good_as_its_worst_task() {
    let end = |ending: Ending| TaskState::Finished {
        ending,
        at: now(),
        still_owed: Owed::default(),
        epoch: 1,
        restore_point: None,
    };
    let success = end(Ending::Success);
    let warning = end(Ending::Warning { messages: vec!["look".into()] });
    let cancelled = end(Ending::Cancelled);
    let failed = end(Ending::Failed {
        failure: TaskFailure {
            step: None,
            hop: Hop::Runtime,
            cause: "no executable directory".into(),
            remedy: "mount one with exec".into(),
            class: FailureClass::GuestSide,
        },
    });
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
        TaskEvent::Dispatch { proxy: server_id(1), partial_file: None, post_script: None, left: None },
        TaskEvent::ServerRestarted,
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
