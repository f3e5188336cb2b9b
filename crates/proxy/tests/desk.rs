//! Tasks that outlive their call: leases, calls that break and are taken up again, on a clock of the test's.

use lull_engine::failover::FailureClass;
use lull_engine::session::TaskFailure;
use lull_engine::task_lease::{ASK_EVERY_MS, ENTER_MS_MAX, FIRST_GRANT_MS_MAX, TASK_LEASE_MS, UNDO_MS};
use lull_proxy::desk::{Clock, Desk, Events, Hands, ProxyConfig};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use lull_proxy_wire::v1::to_task::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// A desk by tokio's clock, and milliseconds that its machine slept besides.
fn desk() -> (Desk, Arc<AtomicU64>) {
    let (began, slept_ms) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let slept = slept_ms.clone();
    let now_ms = move || began.elapsed().as_millis() as u64 + slept.load(Ordering::SeqCst);
    (Desk::with_clock(ProxyConfig { slots: 2, membership: None }, Clock::new(now_ms)), slept_ms)
}

/// One call to the desk.
struct Call {
    words: mpsc::Sender<Result<v1::ToTask, Status>>,
    events: Events,
}

/// What the test's task is told to do, and what became of it.
struct Work {
    go: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<&'static str>,
}

impl Call {
    /// Orders a task that says "a", waits until it is told to go on or is cancelled, and says "b".
    fn order(desk: &Desk, epoch: u64) -> Result<(Call, Work), Status> {
        let (words, heard) = mpsc::channel(16);
        let (go, may_go) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let events = desk.take("t", epoch, ReceiverStream::new(heard), move |hands: Hands| async move {
            hands.reporter.info("a");
            let outcome = tokio::select! {
                _ = may_go => "success",
                () = hands.cancel.cancelled() => "cancelled",
            };
            hands.reporter.info("b");
            let _ = end.send(outcome);
            v1::Finished { outcome: outcome.into(), ..Default::default() }
        })?;
        Ok((Call { words, events }, Work { go: Some(go), ended }))
    }

    fn attach(desk: &Desk, epoch: u64, after_seq: u64) -> Result<Call, Status> {
        let (words, heard) = mpsc::channel(16);
        let attach = v1::Attach { task_id: "t".into(), epoch, after_seq, frames_kept: 0 };
        Ok(Call { words, events: desk.attach(&attach, ReceiverStream::new(heard))? })
    }

    async fn say(&self, message: Message) {
        self.words.send(Ok(v1::ToTask { message: Some(message) })).await.unwrap();
    }

    async fn grant(&self, number: u64) {
        self.say(Message::LeaseGranted(v1::LeaseGranted { number, lease_ms: TASK_LEASE_MS })).await;
    }

    /// What is told within two seconds, one word each.
    async fn heard(&mut self) -> Vec<String> {
        let mut words = vec![];
        while let Ok(Some(sent)) = timeout(Duration::from_secs(2), self.events.next()).await {
            words.push(match sent {
                Err(status) => format!("{:?}", status.code()),
                Ok(v1::TaskEvent { seq, event, .. }) => match event.unwrap() {
                    Event::LeaseAsked(asked) => format!("{seq} asks {}", asked.number),
                    Event::Note(note) => format!("{seq} {}", note.text),
                    Event::Finished(finished) => format!("{seq} {}", finished.outcome),
                    other => format!("{seq} {other:?}"),
                },
            });
        }
        words
    }
}

fn code<T>(result: Result<T, Status>) -> Option<Code> {
    result.err().map(|status| status.code())
}

#[tokio::test(start_paused = true)]
async fn nothing_is_begun_before_the_first_grant() {
    let (desk, _) = desk();
    let (mut call, mut work) = Call::order(&desk, 1).unwrap();
    assert_eq!(call.heard().await, ["0 asks 1"]);
    assert_eq!(desk.running(), 0);
    call.grant(7).await;
    assert!(call.heard().await.is_empty(), "nobody asked with that number");
    call.grant(1).await;
    assert_eq!(call.heard().await, ["1 a"]);
    assert_eq!(desk.running(), 1);
    assert_eq!(code(Call::order(&desk, 1)), Some(Code::AlreadyExists), "one order, one task");
    let _ = work.go.take().unwrap().send(());
    assert_eq!(call.heard().await, ["2 b", "3 success"]);
    assert_eq!(desk.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_lease_is_not_granted_was_never_begun() {
    let (desk, _) = desk();
    let (mut call, work) = Call::order(&desk, 1).unwrap();
    assert_eq!(call.heard().await, ["0 asks 1"]);
    sleep(Duration::from_millis(FIRST_GRANT_MS_MAX)).await;
    let Some(Ok(v1::TaskEvent { event: Some(Event::Finished(finished)), .. })) = call.events.next().await else {
        panic!()
    };
    let failure: TaskFailure = serde_json::from_str(&finished.failure_json).unwrap();
    assert_eq!((finished.outcome.as_str(), failure.class), ("failed", FailureClass::ProxyLost));
    assert!(failure.cause.contains("was not begun"), "{failure}");
    let receipt = finished.receipt.unwrap();
    assert!(receipt.thaw_confirmed && receipt.hypervisor_untouched);
    assert!(work.ended.await.is_err(), "its work was never called");
    assert_eq!(code(Call::attach(&desk, 1, 0)), Some(Code::NotFound));

    let (call, work) = Call::order(&desk, 2).unwrap();
    drop(call);
    assert!(work.ended.await.is_err(), "the call ended before the grant");
    assert_eq!(code(Call::attach(&desk, 2, 0)), Some(Code::NotFound));

    let (mut call, work) = Call::order(&desk, 3).unwrap();
    call.say(Message::Cancel(v1::Cancel { reason: "a person asked".into() })).await;
    assert_eq!(call.heard().await, ["0 asks 1", "1 cancelled"]);
    assert!(work.ended.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_breaks_changes_nothing_and_another_takes_the_task_up() {
    let (desk, _) = desk();
    let (mut call, mut work) = Call::order(&desk, 1).unwrap();
    call.grant(1).await;
    assert_eq!(call.heard().await, ["0 asks 1", "1 a"]);
    drop(call);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(desk.running(), 1);
    assert_eq!(code(Call::attach(&desk, 2, 0)), Some(Code::NotFound), "another epoch is another task");
    let mut second = Call::attach(&desk, 1, 1).unwrap();
    assert_eq!(second.heard().await, ["0 asks 2"], "what was heard is not told again");
    let mut third = Call::attach(&desk, 1, 0).unwrap();
    assert_eq!(second.heard().await, ["Aborted"], "the later call counts");
    assert_eq!(third.heard().await, ["1 a", "0 asks 3"]);
    second.say(Message::Cancel(v1::Cancel { reason: "stale".into() })).await;
    assert!(third.heard().await.is_empty(), "the earlier call's words do not count");
    assert_eq!(code(desk.forget("t", 1)), Some(Code::FailedPrecondition));
    let _ = work.go.take().unwrap().send(());
    drop(third);
    assert_eq!(work.ended.await, Ok("success"));
    // It ended unheard: everything is told once more.
    let mut fourth = Call::attach(&desk, 1, 0).unwrap();
    assert_eq!(fourth.heard().await, ["1 a", "2 b", "3 success"]);
    assert!(fourth.events.next().await.is_none());
    desk.forget("t", 1).unwrap();
    desk.forget("t", 1).unwrap();
    assert_eq!(code(Call::attach(&desk, 1, 0)), Some(Code::NotFound));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_renewed_ends_the_task_in_time() {
    let (desk, _) = desk();
    let (mut call, work) = Call::order(&desk, 1).unwrap();
    call.grant(1).await;
    assert_eq!(call.heard().await, ["0 asks 1", "1 a"]);
    let began = Instant::now();
    sleep(Duration::from_millis(ASK_EVERY_MS)).await;
    assert_eq!(call.heard().await, ["0 asks 2"]);
    call.grant(2).await;
    drop(call);
    assert_eq!(work.ended.await, Ok("cancelled"));
    let end_ms = ASK_EVERY_MS + TASK_LEASE_MS - UNDO_MS;
    assert!((end_ms - 5_000..=end_ms).contains(&(began.elapsed().as_millis() as u64)), "{:?}", began.elapsed());
    let mut call = Call::attach(&desk, 1, 1).unwrap();
    let told = call.heard().await;
    assert_eq!(told, ["2 b", "3 failed"], "nobody cancelled it: another proxy may take it");
}

/// Who stood still and wakes under a lease that still holds might come after another one was there.
#[tokio::test(start_paused = true)]
async fn what_is_not_held_yet_is_entered_only_under_a_fresh_grant() {
    let (desk, slept_ms) = desk();
    let (words, heard) = mpsc::channel(16);
    let (entered, has_entered) = oneshot::channel();
    let (go, may_go) = oneshot::channel::<()>();
    let events = desk.take("t", 1, ReceiverStream::new(heard), move |hands: Hands| async move {
        hands.cancel.enter().await.unwrap();
        let _ = may_go.await;
        hands.cancel.enter().await.unwrap();
        let _ = entered.send(());
        v1::Finished { outcome: "success".into(), ..Default::default() }
    });
    let mut call = Call { words, events: events.unwrap() };
    call.grant(1).await;
    assert_eq!(call.heard().await, ["0 asks 1"]);
    slept_ms.fetch_add(ENTER_MS_MAX, Ordering::SeqCst);
    let _ = go.send(());
    assert_eq!(call.heard().await, ["0 asks 2"], "it asks before it enters");
    let mut has_entered = has_entered;
    assert!(has_entered.try_recv().is_err());
    call.grant(2).await;
    assert_eq!(call.heard().await, ["1 success"]);
    assert!(has_entered.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_lease_runs_out_while_the_machine_sleeps() {
    let (desk, slept_ms) = desk();
    let (call, work) = Call::order(&desk, 1).unwrap();
    call.grant(1).await;
    sleep(Duration::from_secs(1)).await;
    slept_ms.fetch_add(TASK_LEASE_MS, Ordering::SeqCst);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(work.ended.await, Ok("cancelled"));
    drop(call);
}

#[tokio::test(start_paused = true)]
async fn finished_tasks_that_nobody_forgot_are_kept_for_a_day() {
    let (desk, slept_ms) = desk();
    for epoch in 1..=1_003 {
        let (call, mut work) = Call::order(&desk, epoch).unwrap();
        call.grant(1).await;
        let _ = work.go.take().unwrap().send(());
        assert_eq!(work.ended.await, Ok("success"));
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(code(Call::attach(&desk, 3, 0)), Some(Code::NotFound), "the latest thousand");
    assert!(Call::attach(&desk, 4, 0).is_ok());
    slept_ms.fetch_add(24 * 60 * 60 * 1_000, Ordering::SeqCst);
    let _running = Call::order(&desk, 2_000).unwrap();
    assert_eq!(code(Call::attach(&desk, 1_003, 0)), Some(Code::NotFound));
}

#[tokio::test(start_paused = true)]
async fn a_desk_that_ends_undoes_its_tasks_and_takes_no_more() {
    let (desk, _) = desk();
    let (call, work) = Call::order(&desk, 1).unwrap();
    call.grant(1).await;
    sleep(Duration::from_secs(1)).await;
    desk.end("the proxy was told to stop").await;
    assert_eq!(work.ended.await, Ok("cancelled"));
    assert_eq!(code(Call::order(&desk, 2)), Some(Code::Unavailable));
}
