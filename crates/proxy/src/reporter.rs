//! Tells the backup server what happens, in order; what lasts is numbered without gaps.
//!
//! Telling never waits: events go into memory, and inside the freeze window they are kept there until the guest is thawed,
//! so that nothing of ours competes with the snapshot. Only frames of a listing wait, for room: there are many of them, and who hears
//! them slowly must slow the guest's walk down instead of filling our memory. Knows nothing of what the events mean.

use lull_engine::timeline::Step;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::Stream;
use tonic::Status;

/// What goes over the wire.
pub type Sent = Result<v1::TaskEvent, Status>;

/// Frames of a listing that were told and not heard yet; each has at most 256 KiB.
pub const FRAMES_UNDER_WAY_MAX: usize = 16;

/// Whether an event has no number: who did not hear it misses nothing but a moment, or (a frame) knows it by its own.
pub fn is_fleeting(event: &Event) -> bool {
    matches!(event, Event::Progress(_) | Event::LeaseAsked(_) | Event::IndexFrame(_))
}

/// Tells one caller about one piece of work. Clones tell the same caller.
#[derive(Clone)]
pub struct Reporter(Arc<Mutex<Inner>>);

struct Inner {
    to: mpsc::UnboundedSender<Sent>,
    seq: u64,
    /// Frames of a listing that were told.
    frames: u64,
    /// Filled while events are held back.
    held: Option<Vec<v1::TaskEvent>>,
    warnings: Vec<String>,
    room: Arc<Semaphore>,
}

/// What a reporter tells, for the one who listens.
pub struct Told {
    from: mpsc::UnboundedReceiver<Sent>,
    room: Arc<Semaphore>,
}

impl Told {
    /// The next event; `None` once all reporters are gone.
    pub async fn recv(&mut self) -> Option<Sent> {
        let sent = self.from.recv().await;
        self.heard(sent.as_ref());
        sent
    }

    /// The next event, if it is there already.
    pub fn try_recv(&mut self) -> Result<Sent, TryRecvError> {
        let sent = self.from.try_recv()?;
        self.heard(Some(&sent));
        Ok(sent)
    }

    /// The next event. Frames take their room until somebody gives it back.
    pub async fn recv_unheard(&mut self) -> Option<v1::TaskEvent> {
        // A reporter sends nothing but events.
        self.from.recv().await.and_then(Result::ok)
    }

    /// What frames wait for.
    pub fn room(&self) -> Arc<Semaphore> {
        self.room.clone()
    }

    fn heard(&self, sent: Option<&Sent>) {
        if let Some(Ok(v1::TaskEvent { event: Some(Event::IndexFrame(_)), .. })) = sent {
            self.room.add_permits(1);
        }
    }
}

impl Stream for Told {
    type Item = Sent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Sent>> {
        let polled = self.from.poll_recv(context);
        if let Poll::Ready(sent) = &polled {
            self.heard(sent.as_ref());
        }
        polled
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // Nobody hears any more: nobody need wait for room.
        self.room.close();
    }
}

/// How a step ended, on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    /// As it should.
    Ok,
    /// With something to look at.
    Warning,
    /// Not.
    Failed,
    /// Left out.
    Skipped,
    /// By a person.
    Cancelled,
}

impl StepOutcome {
    fn name(self) -> &'static str {
        match self {
            StepOutcome::Ok => "ok",
            StepOutcome::Warning => "warning",
            StepOutcome::Failed => "failed",
            StepOutcome::Skipped => "skipped",
            StepOutcome::Cancelled => "cancelled",
        }
    }
}

impl Reporter {
    /// A reporter, and what it tells.
    pub fn new() -> (Reporter, Told) {
        let (to, from) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(FRAMES_UNDER_WAY_MAX));
        let inner = Inner { to, seq: 0, frames: 0, held: None, warnings: Vec::new(), room: room.clone() };
        (Reporter(Arc::new(Mutex::new(inner))), Told { from, room })
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Resolves when nobody listens any more.
    pub async fn closed(&self) {
        let to = self.inner().to.clone();
        to.closed().await;
    }

    /// Tells one event.
    pub fn tell(&self, event: Event) {
        let mut inner = self.inner();
        let fleeting = is_fleeting(&event);
        if !fleeting {
            inner.seq += 1;
        }
        let seq = if fleeting { 0 } else { inner.seq };
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let event = v1::TaskEvent { seq, at_us: since_epoch.as_micros() as i64, event: Some(event) };
        match &mut inner.held {
            Some(held) => held.push(event),
            // A caller that is gone is noticed elsewhere; the work is ended in order.
            None => drop(inner.to.send(Ok(event))),
        }
    }

    /// Tells a frame of a listing, as soon as there is room for it.
    pub async fn index_frame(&self, compressed: Vec<u8>) {
        let room = self.inner().room.clone();
        // Closed: nobody listens, which is noticed elsewhere.
        if let Ok(permit) = room.acquire().await {
            permit.forget();
            let number = {
                let mut inner = self.inner();
                inner.frames += 1;
                inner.frames
            };
            self.tell(Event::IndexFrame(v1::IndexFrame { compressed, number }));
        }
    }

    /// Keeps events back until [`Reporter::let_go`].
    pub fn hold_back(&self) {
        self.inner().held.get_or_insert_default();
    }

    /// Tells what was kept back.
    pub fn let_go(&self) {
        let mut inner = self.inner();
        for event in inner.held.take().unwrap_or_default() {
            drop(inner.to.send(Ok(event)));
        }
    }

    /// A step begins.
    pub fn started(&self, step: Step, detail: impl Into<String>) -> Instant {
        self.tell(Event::StepStarted(v1::StepStarted { step: step.name().into(), detail: detail.into() }));
        Instant::now()
    }

    /// A step ended.
    pub fn ended(&self, step: Step, outcome: StepOutcome, detail: impl Into<String>, took: Duration) {
        self.tell(Event::StepEnded(v1::StepEnded {
            step: step.name().into(),
            outcome: outcome.name().into(),
            detail: detail.into(),
            took_us: took.as_micros() as u64,
        }));
    }

    /// Something worth knowing.
    pub fn info(&self, text: impl Into<String>) {
        self.tell(Event::Note(v1::Note { level: "info".into(), text: text.into() }));
    }

    /// Something to look at; it makes a success a warning.
    pub fn warning(&self, text: impl Into<String>) {
        let text = text.into();
        self.inner().warnings.push(text.clone());
        self.tell(Event::Note(v1::Note { level: "warning".into(), text }));
    }

    /// Whether there was a warning.
    pub fn has_warnings(&self) -> bool {
        !self.inner().warnings.is_empty()
    }
}

/// `1 file system`, `2 file systems`.
pub fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Microseconds as `85.1 ms`.
pub fn millis(us: u64) -> String {
    format!("{}.{} ms", us / 1_000, us % 1_000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_are_numbered_without_gaps_and_kept_back_in_the_window() {
        let (reporter, mut told) = Reporter::new();
        reporter.info("one");
        reporter.hold_back();
        reporter.warning("two");
        assert_eq!(told.recv().await.unwrap().unwrap().seq, 1);
        assert!(told.try_recv().is_err());
        reporter.let_go();
        reporter.info("three");
        let seqs = [told.recv().await.unwrap().unwrap().seq, told.recv().await.unwrap().unwrap().seq];
        assert_eq!(seqs, [2, 3]);
        assert!(reporter.has_warnings());
    }

    #[tokio::test(start_paused = true)]
    async fn frames_wait_for_whoever_hears_them_and_for_nobody_once_he_is_gone() {
        let (reporter, mut told) = Reporter::new();
        let mut sent = 0;
        while tokio::time::timeout(Duration::from_secs(1), reporter.index_frame(vec![1])).await.is_ok() {
            sent += 1;
        }
        assert_eq!(sent, FRAMES_UNDER_WAY_MAX);
        reporter.info("events do not wait");
        assert!(matches!(told.recv().await.unwrap().unwrap().event, Some(Event::IndexFrame(_))));
        reporter.index_frame(vec![2]).await;
        drop(told);
        reporter.index_frame(vec![3]).await;
    }
}
