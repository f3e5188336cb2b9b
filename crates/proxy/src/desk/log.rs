//! What a task has told: kept by number until it is forgotten, heard by one call at a time.
//!
//! | told | number | a call that takes the task up again |
//! |---|---|---|
//! | what lasts | `seq`, from 1, without gaps | hears every one after the last that was heard, in order |
//! | a frame of a listing | its own, from 1, without gaps; `seq` 0 | hears every one that was not kept, in its place among the others |
//! | progress, an ask for the lease | none: `seq` 0 | hears only what is told from then on |
//!
//! Of progress only the last is kept for a call that reads slowly. So a log has what a task has to say, and at most
//! [`crate::reporter::FRAMES_UNDER_WAY_MAX`] frames. Knows nothing of what the events mean, nor of leases.

use crate::reporter::{Sent, is_fleeting};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{Semaphore, watch};
use tonic::Status;

/// One task's log.
pub(super) struct Log {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
    /// Room for frames, given back as they are kept.
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct Inner {
    /// By the order in which it was told.
    told: BTreeMap<u64, v1::TaskEvent>,
    last: u64,
    /// Where the last progress and the last ask are.
    progress: Option<u64>,
    ask: Option<u64>,
    /// Which call listens; every one that began has its number.
    call: u64,
    listens: bool,
    finished: bool,
}

impl Log {
    /// An empty one; `room` is what the reporter's frames wait for.
    pub(super) fn new(room: Arc<Semaphore>) -> Arc<Log> {
        Arc::new(Log { inner: Mutex::default(), changed: watch::Sender::new(()), room })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds what was told.
    pub(super) fn push(&self, event: v1::TaskEvent) {
        let mut inner = self.lock();
        inner.last += 1;
        let at = inner.last;
        let before = match &event.event {
            Some(Event::Progress(_)) => inner.progress.replace(at),
            Some(Event::LeaseAsked(_)) => inner.ask.replace(at),
            Some(Event::Finished(_)) => {
                inner.finished = true;
                None
            }
            _ => None,
        };
        if let Some(before) = before {
            inner.told.remove(&before);
        }
        inner.told.insert(at, event);
        drop(inner);
        self.changed.send_replace(());
    }

    /// Frames up to this number need not be kept any more.
    pub(super) fn frames_kept(&self, number: u64) {
        let mut inner = self.lock();
        let before = inner.told.len();
        inner.told.retain(|_, event| frame_number(event).is_none_or(|frame| frame > number));
        self.room.add_permits(before - inner.told.len());
    }

    /// A call that hears from now on, instead of any other: what lasts after `after_seq`, and frames after `frames_kept`.
    pub(super) fn listen(self: &Arc<Log>, after_seq: u64, frames_kept: u64) -> Listener {
        self.frames_kept(frames_kept);
        let mut inner = self.lock();
        inner.call += 1;
        inner.listens = true;
        let (call, began) = (inner.call, inner.last);
        drop(inner);
        self.changed.send_replace(());
        let changed = self.changed.subscribe();
        Listener { log: self.clone(), changed, call, at: 0, began, after_seq, ended: false }
    }

    /// Whether this call is the one that counts.
    pub(super) fn is_heard_by(&self, call: u64) -> bool {
        self.lock().call == call
    }

    /// Resolves when no call listens.
    pub(super) async fn unheard(&self) {
        let mut changed = self.changed.subscribe();
        while self.lock().listens {
            // The sender is ours.
            let _ = changed.changed().await;
        }
    }
}

fn frame_number(event: &v1::TaskEvent) -> Option<u64> {
    match &event.event {
        Some(Event::IndexFrame(frame)) => Some(frame.number),
        _ => None,
    }
}

/// One call that hears a task.
pub(super) struct Listener {
    log: Arc<Log>,
    changed: watch::Receiver<()>,
    /// Its number.
    pub(super) call: u64,
    /// What it heard last.
    at: u64,
    /// What had been told when it began.
    began: u64,
    after_seq: u64,
    ended: bool,
}

impl Listener {
    /// The next event. The last one is `finished`, or an error where another call took its place.
    pub(super) async fn next(&mut self) -> Option<Sent> {
        while !self.ended {
            self.changed.borrow_and_update();
            let sent = self.take();
            if sent.is_some() || self.ended {
                return sent;
            }
            // The sender lives in the log, which we hold.
            let _ = self.changed.changed().await;
        }
        None
    }

    fn take(&mut self) -> Option<Sent> {
        let inner = self.log.lock();
        if inner.call != self.call {
            self.ended = true;
            return Some(Err(Status::aborted("another call took the task up")));
        }
        let wanted = |at: u64, event: &v1::TaskEvent| match &event.event {
            Some(Event::IndexFrame(_)) => true,
            Some(event) if is_fleeting(event) => at > self.began,
            _ => event.seq > self.after_seq,
        };
        let next = inner.told.range(self.at + 1..).find(|(at, event)| wanted(**at, event));
        let (at, event) = match next {
            Some((at, event)) => (*at, event.clone()),
            None => {
                self.at = inner.last;
                // All was heard, also where `finished` was heard by an earlier call.
                self.ended = inner.finished;
                return None;
            }
        };
        self.at = at;
        self.ended = matches!(event.event, Some(Event::Finished(_)));
        Some(Ok(event))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut inner = self.log.lock();
        if inner.call == self.call {
            inner.listens = false;
            drop(inner);
            self.log.changed.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reporter::Reporter;
    use std::time::Duration;

    /// A log, and a reporter that tells into it.
    fn log() -> (Arc<Log>, Reporter) {
        let (reporter, mut told) = Reporter::new();
        let log = Log::new(told.room());
        let into = log.clone();
        tokio::spawn(async move {
            while let Some(event) = told.recv_unheard().await {
                into.push(event);
            }
        });
        (log, reporter)
    }

    fn progress(done_bytes: u64) -> Event {
        Event::Progress(v1::Progress { done_bytes, ..Default::default() })
    }

    /// What is told within a moment, one short word each.
    async fn heard(listener: &mut Listener) -> Vec<String> {
        let mut words = vec![];
        while let Ok(Some(sent)) = tokio::time::timeout(Duration::from_millis(100), listener.next()).await {
            words.push(match sent {
                Err(status) => status.code().to_string(),
                Ok(v1::TaskEvent { seq, event, .. }) => match event.unwrap() {
                    Event::Note(note) => format!("{seq} {}", note.text),
                    Event::IndexFrame(frame) => format!("{seq} frame {}", frame.number),
                    Event::Progress(progress) => format!("{seq} at {}", progress.done_bytes),
                    Event::Finished(_) => format!("{seq} end"),
                    other => format!("{seq} {other:?}"),
                },
            });
        }
        words
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_task_up_again_hears_what_lasts_without_gaps_and_frames_that_were_not_kept() {
        let (log, reporter) = log();
        let mut first = log.listen(0, 0);
        reporter.info("a");
        reporter.tell(progress(1));
        reporter.index_frame(vec![1]).await;
        reporter.info("b");
        reporter.index_frame(vec![2]).await;
        reporter.tell(Event::Finished(v1::Finished::default()));
        assert_eq!(heard(&mut first).await, ["1 a", "0 at 1", "0 frame 1", "2 b", "0 frame 2", "3 end"]);
        drop(first);
        assert_eq!(heard(&mut log.listen(0, 0)).await, ["1 a", "0 frame 1", "2 b", "0 frame 2", "3 end"]);
        assert_eq!(heard(&mut log.listen(1, 1)).await, ["2 b", "0 frame 2", "3 end"]);
        assert_eq!(heard(&mut log.listen(0, 0)).await, ["1 a", "2 b", "0 frame 2", "3 end"], "what is kept is gone");
        assert!(heard(&mut log.listen(3, 2)).await.is_empty(), "and it ends");
        assert!(log.listen(3, 2).next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_call_ends_the_first_and_a_slow_one_hears_the_last_progress() {
        let (log, reporter) = log();
        let mut first = log.listen(0, 0);
        reporter.info("a");
        assert_eq!(heard(&mut first).await, ["1 a"]);
        let mut second = log.listen(0, 0);
        assert_eq!(heard(&mut first).await, [tonic::Code::Aborted.to_string()]);
        drop(first);
        assert!(log.is_heard_by(second.call));
        assert!(tokio::time::timeout(Duration::from_secs(1), log.unheard()).await.is_err(), "the second one listens");
        for done in 1..100 {
            reporter.tell(progress(done));
        }
        reporter.info("b");
        assert_eq!(heard(&mut second).await, ["1 a", "0 at 99", "2 b"]);
        drop(second);
        tokio::time::timeout(Duration::from_secs(1), log.unheard()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_walk_waits_until_frames_are_kept_whoever_heard_them() {
        let (log, reporter) = log();
        let mut listener = log.listen(0, 0);
        let mut told = 0;
        while tokio::time::timeout(Duration::from_secs(1), reporter.index_frame(vec![0])).await.is_ok() {
            told += 1;
        }
        assert_eq!((told, heard(&mut listener).await.len()), (16, 16));
        assert!(tokio::time::timeout(Duration::from_secs(1), reporter.index_frame(vec![0])).await.is_err());
        log.frames_kept(2);
        log.frames_kept(2);
        reporter.index_frame(vec![0]).await;
        reporter.index_frame(vec![0]).await;
        assert!(tokio::time::timeout(Duration::from_secs(1), reporter.index_frame(vec![0])).await.is_err());
        assert_eq!(heard(&mut listener).await, ["0 frame 17", "0 frame 18"]);
    }
}
