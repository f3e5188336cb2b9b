//! The stream of events, cut anywhere.

use crate::harness::{Server, one_vm};
use futures::StreamExt;
use lull_api::session::{EventKind, Session, SessionEvent};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::time::Duration;

/// Reads up to `take` stored events after `after` and hangs up, as a connection that breaks does.
async fn cut(server: &Server, session: i64, after: u64, take: usize, by_header: bool) -> Vec<SessionEvent> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let path = format!("/sessions/{session}/events");
    let request = if by_header {
        http.get(server.url(&path)).header("Last-Event-ID", after)
    } else {
        http.get(server.url(&format!("{path}?after={after}")))
    };
    let mut chunks = request.bearer_auth(&server.token).send().await.unwrap().bytes_stream();
    let (mut buffer, mut events) = (Vec::new(), Vec::new());
    while events.len() < take {
        let Some(Ok(chunk)) = chunks.next().await else { break };
        buffer.extend_from_slice(&chunk);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            let event: SessionEvent = serde_json::from_slice(data).unwrap();
            if event.seq > 0 && events.len() < take {
                events.push(event);
            }
        }
    }
    events
}

/// The whole stream, with the connection cut after each of these numbers of events.
async fn pieced(server: &Server, session: i64, cuts: &[usize]) -> Vec<SessionEvent> {
    let mut all: Vec<SessionEvent> = Vec::new();
    for (n, take) in cuts.iter().chain([&usize::MAX]).enumerate() {
        if all.last().is_some_and(|event| matches!(event.event, EventKind::SessionFinished { .. })) {
            break;
        }
        let after = all.last().map_or(0, |event| event.seq);
        all.extend(cut(server, session, after, *take, n % 2 == 1).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_session_cut_anywhere_loses_none_and_repeats_none() {
    let (_place, _fake, server) = one_vm().await;
    let id = server.finished(server.run("j").await.summary.id).await.summary.id;
    let whole = server.events(id).await;
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let mut runner = TestRunner::new(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() });
        runner
            .run(&proptest::collection::vec(0usize..12, 0..8), |cuts| {
                prop_assert_eq!(&runtime.block_on(pieced(&server, id, &cuts)), &whole);
                Ok(())
            })
            .unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_session_cut_anywhere_loses_none_and_repeats_none() {
    let (_place, fake, server) = one_vm().await;
    fake.set(|script| script.pause_ms = 10);
    for cuts in [vec![], vec![1; 40], vec![3, 0, 7, 1, 1, 5], vec![11, 11]] {
        let id = server.run("j").await.summary.id;
        let seen = pieced(&server, id, &cuts).await;
        assert_eq!(seen, server.events(id).await, "{cuts:?}");
        assert!(matches!(seen.last().unwrap().event, EventKind::SessionFinished { .. }));
        server.finished(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_followers_and_a_slow_one_see_the_same() {
    let (_place, fake, server) = one_vm().await;
    fake.set(|script| script.pause_ms = 3);
    let id = server.run("j").await.summary.id;
    let client = &server.client;
    let slow = async {
        let stream = client.events(id, 0).then(|event| async {
            tokio::time::sleep(Duration::from_millis(15)).await;
            event.unwrap()
        });
        stream.filter(|event| std::future::ready(event.seq > 0)).collect::<Vec<_>>().await
    };
    let (slow, fast, other) = tokio::join!(slow, server.events(id), server.events(id));
    assert_eq!(fast, other);
    assert_eq!(slow, fast);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_live_only_and_has_no_number() {
    let (_place, fake, server) = one_vm().await;
    fake.set(|script| script.pause_ms = 20);
    let id = server.run("j").await.summary.id;
    let live: Vec<_> = server.client.events(id, 0).map(Result::unwrap).collect().await;
    let progress: Vec<_> = live.iter().filter(|e| matches!(e.event, EventKind::Progress { .. })).collect();
    assert_eq!(progress.len(), 1);
    assert_eq!(progress[0].seq, 0);
    assert!(server.events(id).await.iter().all(|e| !matches!(e.event, EventKind::Progress { .. })));
}

/// Whoever sees a session run follows it from the last event that it saw: the end must not be among those.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_that_is_seen_running_has_its_end_yet_to_tell() {
    let (_place, _fake, server) = one_vm().await;
    for _ in 0..20 {
        let id = server.run("j").await.summary.id;
        let look = |_| {
            let client = server.client.clone();
            tokio::spawn(async move {
                let mut seen_running = Vec::new();
                loop {
                    let session: Session = client.get(&format!("/sessions/{id}")).await.unwrap();
                    if session.summary.state == "finished" {
                        return (seen_running, session.last_event);
                    }
                    seen_running.push(session.last_event);
                }
            })
        };
        let looks: Vec<_> = (0..4).map(look).collect();
        for look in looks {
            let (seen_running, end) = look.await.unwrap();
            assert!(seen_running.iter().all(|seen| *seen < end), "{seen_running:?}, and the end is event {end}");
        }
    }
}
