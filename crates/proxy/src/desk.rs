//! The desk: every task that this proxy has, whoever calls. One for the whole process, shared by all its connections.
//!
//! ```text
//! order ──► asks for the lease ──granted──► works ──► finished, kept until it is forgotten
//!                │                            │
//!                └ call ends, 30 s: gone      └ a call that breaks changes nothing; a lease that is not renewed cancels
//! ```
//!
//! A task is begun by its first grant and outlives the call that brought it: what it tells is kept ([`log`]), and another call takes
//! it up where the last one broke. Knows nothing of what a task does, nor of gRPC beyond its messages.

mod lease;
mod log;
mod reach;

pub use lease::{Clock, Lease};

use crate::cancel::{Cancel, EVICTED, LEASE_RAN_OUT};
use crate::journal;
use crate::membership::Membership;
use crate::metrics::ProxyMetrics;
use crate::reporter::{Reporter, Sent};
use crate::task::HoldWord;
use log::{Listener, Log};
use lull_engine::failover::FailureClass;
use lull_engine::session::{Hop, TaskFailure};
use lull_engine::task_lease::{ASK_EVERY_MS, FIRST_GRANT_MS_MAX};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use lull_proxy_wire::v1::to_task::Message as ToTask;
use reach::Reach;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tokio_util::task::TaskTracker;
use tonic::Status;
use tracing::Instrument;

/// Words of a caller who holds that may wait to be read.
const HOLD_WORDS_WAITING_MAX: usize = 64;
/// How often a lease is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A finished task that nobody forgot is kept so long; then whoever ordered it is not coming back.
const FINISHED_KEPT_MS: u64 = 24 * 60 * 60 * 1_000;
/// And so many of them, the latest.
const FINISHED_MAX: usize = 1_000;

/// What a call hears.
pub type Events = Pin<Box<dyn Stream<Item = Sent> + Send>>;

/// What a proxy must be told about itself.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Tasks that it works on at once; the default is `max(2, cores)`.
    pub slots: u32,
    /// What makes it a proxy of a server on another machine; nothing where it is embedded.
    pub membership: Option<Arc<Membership>>,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        ProxyConfig { slots: cores.max(2), membership: None }
    }
}

/// Which task, and which lease of it.
type Key = (String, u64);

/// The tasks of one proxy process; clones are one.
#[derive(Clone)]
pub struct Desk(Arc<Inner>);

struct Inner {
    config: ProxyConfig,
    incarnation: String,
    clock: Clock,
    places: Mutex<BTreeMap<Key, Arc<Place>>>,
    running: AtomicU32,
    ending: AtomicBool,
    tasks: TaskTracker,
    /// What belongs to a call.
    calls: TaskTracker,
    reach: Reach,
    metrics: Arc<ProxyMetrics>,
}

/// One task.
struct Place {
    log: Arc<Log>,
    lease: Lease,
    reporter: Reporter,
    cancel: Cancel,
    stop_index: Cancel,
    hold: mpsc::Sender<HoldWord>,
    /// By the desk's clock.
    finished_ms: Mutex<Option<u64>>,
}

/// What a task works with, as far as the desk has it.
pub struct Hands {
    /// Words of a caller who holds.
    pub hold: mpsc::Receiver<HoldWord>,
    /// Whom to tell.
    pub reporter: Reporter,
    /// Whether to stop; it ends with the lease.
    pub cancel: Cancel,
    /// Whether to list no more files.
    pub stop_index: Cancel,
}

/// Counts one piece of work while it lives.
pub struct Counted(Desk);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a task was not begun.
enum NotBegun {
    CallEnded,
    Cancelled,
    NotGranted,
}

impl Desk {
    /// An empty one.
    pub fn new(config: ProxyConfig) -> Desk {
        Desk::with_clock(config, Clock::of_the_machine())
    }

    /// An empty one whose leases go by another clock.
    pub fn with_clock(config: ProxyConfig, clock: Clock) -> Desk {
        Desk(Arc::new(Inner {
            config,
            incarnation: format!("{:032x}", rand::random::<u128>()),
            clock,
            places: Mutex::default(),
            running: AtomicU32::new(0),
            ending: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            calls: TaskTracker::new(),
            reach: Reach::default(),
            metrics: Arc::default(),
        }))
    }

    /// What the proxy was told about itself.
    pub fn config(&self) -> &ProxyConfig {
        &self.0.config
    }

    /// Random for each desk: another one has none of this one's tasks.
    pub fn incarnation(&self) -> &str {
        &self.0.incarnation
    }

    /// Pieces of work that run now.
    pub fn running(&self) -> u32 {
        self.0.running.load(Ordering::Relaxed)
    }

    /// What monitoring is told of this proxy.
    pub fn metrics(&self) -> String {
        self.0.metrics.text(self.running(), self.0.config.slots)
    }

    /// Counts one more until it is dropped.
    pub fn count(&self) -> Counted {
        self.0.running.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }

    /// Which of these folders can be read, in their order; within a moment.
    pub async fn readable(&self, folders: &[PathBuf]) -> Vec<bool> {
        self.0.reach.readable(folders).await
    }

    /// Where work runs that belongs to a call and is cancelled with it.
    pub fn calls(&self) -> &TaskTracker {
        &self.0.calls
    }

    /// Returns once no such work runs: whoever ends the connections before this cancels it.
    pub async fn calls_undone(&self) {
        self.0.calls.close();
        self.0.calls.wait().await;
    }

    /// Cancels every task, takes no more, and returns once all are undone, and the work of calls too.
    pub async fn end(&self, reason: &str) {
        self.0.ending.store(true, Ordering::SeqCst);
        let places: Vec<_> = self.places().values().cloned().collect();
        for place in places {
            place.cancel.cancel(reason);
        }
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.calls_undone().await;
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Place>>> {
        self.0.places.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes an order: `work` begins when its lease is granted, and is never dropped, since it must thaw and sweep first. A panic in it
    /// ends this task only. ALREADY_EXISTS where the desk has the task. What is logged of it is logged in the current span.
    pub fn take<F>(
        &self,
        task_id: &str,
        epoch: u64,
        words: impl Stream<Item = Result<v1::ToTask, Status>> + Send + Unpin + 'static,
        work: impl FnOnce(Hands) -> F + Send + 'static,
    ) -> Result<Events, Status>
    where
        F: Future<Output = v1::Finished> + Send + 'static,
    {
        self.drop_old();
        let (reporter, mut told) = Reporter::new();
        let log = Log::new(told.room());
        let lease = Lease::new(self.0.clock.clone());
        let (hold, from_caller) = mpsc::channel(HOLD_WORDS_WAITING_MAX);
        let (cancel, stop_index) = (Cancel::under(lease.clone()), Cancel::default());
        let hands = Hands {
            hold: from_caller,
            reporter: reporter.clone(),
            cancel: cancel.clone(),
            stop_index: stop_index.clone(),
        };
        let finished_ms = Mutex::new(None);
        let place = Place { log: log.clone(), lease, reporter, cancel, stop_index, hold, finished_ms };
        let place = Arc::new(place);
        let key = (task_id.to_string(), epoch);
        {
            let mut places = self.places();
            if self.0.ending.load(Ordering::SeqCst) {
                return Err(Status::unavailable("this proxy is ending"));
            }
            if places.contains_key(&key) {
                return Err(Status::already_exists(format!("this proxy has task {task_id} of epoch {epoch} already")));
            }
            places.insert(key.clone(), place.clone());
        }
        let listener = log.listen(0, 0);
        place.ask();
        tokio::spawn(hear(words, place.clone(), listener.call));
        let metrics = self.0.metrics.clone();
        let pass_on = async move {
            while let Some(told) = told.recv_unheard().await {
                metrics.observe(&told);
                told.event.iter().for_each(journal::tell);
                log.push(told);
            }
        };
        tokio::spawn(pass_on.in_current_span());
        let desk = self.clone();
        self.0.tasks.spawn(async move { desk.attend(key, place, hands, work).await }.in_current_span());
        Ok(events(listener))
    }

    /// Takes a task up again where an earlier call broke, which ends if it has not. NOT_FOUND where the desk has no such task.
    pub fn attach(
        &self,
        attach: &v1::Attach,
        words: impl Stream<Item = Result<v1::ToTask, Status>> + Send + Unpin + 'static,
    ) -> Result<Events, Status> {
        let v1::Attach { task_id, epoch, after_seq, frames_kept } = attach;
        let place = self.places().get(&(task_id.clone(), *epoch)).cloned();
        let place =
            place.ok_or_else(|| Status::not_found(format!("this proxy has no task {task_id} of epoch {epoch}")))?;
        let listener = place.log.listen(*after_seq, *frames_kept);
        tokio::spawn(hear(words, place.clone(), listener.call));
        if place.finished().is_none() {
            // The answer to the last ask may have been lost with the call.
            place.ask();
        }
        Ok(events(listener))
    }

    /// Drops a finished task. One that is not there is fine; one that runs is not dropped.
    pub fn forget(&self, task_id: &str, epoch: u64) -> Result<(), Status> {
        let key = (task_id.to_string(), epoch);
        let mut places = self.places();
        match places.get(&key) {
            Some(place) if place.finished().is_none() => {
                Err(Status::failed_precondition(format!("task {task_id} of epoch {epoch} has not ended yet")))
            }
            _ => {
                places.remove(&key);
                Ok(())
            }
        }
    }

    /// Drops finished tasks that nobody forgot.
    fn drop_old(&self) {
        let now_ms = self.0.clock.now_ms();
        let mut places = self.places();
        places.retain(|_, place| place.finished().is_none_or(|at_ms| now_ms < at_ms.saturating_add(FINISHED_KEPT_MS)));
        let mut finished: Vec<(u64, Key)> =
            places.iter().filter_map(|(key, place)| Some((place.finished()?, key.clone()))).collect();
        let too_many = finished.len().saturating_sub(FINISHED_MAX);
        finished.sort_unstable();
        for (_, key) in finished.drain(..too_many) {
            places.remove(&key);
        }
    }

    /// One task from its order to its end.
    async fn attend<F>(self, key: Key, place: Arc<Place>, hands: Hands, work: impl FnOnce(Hands) -> F)
    where
        F: Future<Output = v1::Finished> + Send + 'static,
    {
        if let Err(why) = place.first_grant().await {
            // Nothing was begun, so nothing need be known of it.
            self.places().remove(&key);
            if let Some(finished) = not_begun(why) {
                place.reporter.tell(Event::Finished(finished));
            }
            return;
        }
        let counted = self.count();
        let mut work = tokio::spawn(work(hands));
        let mut look = tokio::time::interval(LOOK_EVERY);
        let finished = loop {
            tokio::select! {
                finished = &mut work => break finished.unwrap_or_else(|e| broke_off(&e.to_string())),
                _ = look.tick() => place.look_after_lease(),
                () = place.lease.wanted() => place.ask(),
            }
        };
        drop(counted);
        let finished = place.judge(finished);
        *place.finished_ms() = Some(self.0.clock.now_ms());
        place.reporter.tell(Event::Finished(finished));
        self.drop_old();
    }
}

impl Place {
    fn finished_ms(&self) -> MutexGuard<'_, Option<u64>> {
        self.finished_ms.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn finished(&self) -> Option<u64> {
        *self.finished_ms()
    }

    fn ask(&self) {
        let number = self.lease.ask();
        self.reporter.tell(Event::LeaseAsked(v1::LeaseAsked { number }));
    }

    /// Waits until the task may be begun.
    async fn first_grant(&self) -> Result<(), NotBegun> {
        let too_late = tokio::time::sleep(Duration::from_millis(FIRST_GRANT_MS_MAX));
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(NotBegun::Cancelled),
            () = self.log.unheard() => Err(NotBegun::CallEnded),
            () = too_late => Err(NotBegun::NotGranted),
            () = self.lease.allows_work() => Ok(()),
        }
    }

    /// Nobody cancelled a task whose lease ran out, or whose guest is a newer task's: it failed, as undone as one that was cancelled.
    fn judge(&self, finished: v1::Finished) -> v1::Finished {
        let why = match finished.outcome.as_str() {
            "failed" | "cancelled" if self.cancel.is_evicted() => EVICTED,
            "cancelled" if self.cancel.is_because_of(LEASE_RAN_OUT) => LEASE_RAN_OUT,
            _ => return finished,
        };
        let v1::Finished { outcome, failure_json, .. } = not_ours(why.into());
        v1::Finished { outcome, failure_json, ..finished }
    }

    /// Asks again when it is time, and cancels what is not the proxy's much longer.
    fn look_after_lease(&self) {
        if self.lease.asked_ms_ago() >= ASK_EVERY_MS {
            self.ask();
        }
        self.cancel.heed_lease();
    }
}

fn events(listener: Listener) -> Events {
    let next = |mut listener: Listener| async move { listener.next().await.map(|sent| (sent, listener)) };
    Box::pin(futures::stream::unfold(listener, next).fuse())
}

/// Reads what comes after the order, as long as this call is the one that counts: cancellations, of the task or of its index, grants, what
/// was kept, and the words of a caller who holds. A call that ends says nothing.
async fn hear(mut words: impl Stream<Item = Result<v1::ToTask, Status>> + Unpin, place: Arc<Place>, call: u64) {
    while let Some(Ok(v1::ToTask { message })) = words.next().await {
        if !place.log.is_heard_by(call) {
            return;
        }
        match message {
            Some(ToTask::Cancel(asked)) => place.cancel.cancel(asked.reason),
            Some(ToTask::StopIndex(asked)) => place.stop_index.cancel(asked.reason),
            Some(ToTask::Renew(_)) => drop(place.hold.try_send(HoldWord::Renew)),
            Some(ToTask::End(v1::HoldEnd { succeeded, detail })) => {
                drop(place.hold.send(HoldWord::End { succeeded, detail }).await);
            }
            Some(ToTask::LeaseGranted(v1::LeaseGranted { number, lease_ms })) => {
                place.lease.granted(number, lease_ms);
            }
            Some(ToTask::FramesKept(kept)) => place.log.frames_kept(kept.number),
            Some(ToTask::Order(_) | ToTask::Attach(_)) => {
                place.cancel.cancel("a second order came over the same call");
            }
            None => {}
        }
    }
}

/// How a task ended that was never begun; nothing where nobody would hear it.
fn not_begun(why: NotBegun) -> Option<v1::Finished> {
    let receipt = v1::Receipt { thaw_confirmed: true, hypervisor_untouched: true, ..Default::default() };
    let finished = match why {
        NotBegun::CallEnded => return None,
        NotBegun::Cancelled => v1::Finished { outcome: "cancelled".into(), ..Default::default() },
        NotBegun::NotGranted => {
            let within_s = FIRST_GRANT_MS_MAX / 1_000;
            not_ours(format!("the task was not begun: the backup server did not grant its lease within {within_s} s"))
        }
    };
    Some(v1::Finished { receipt: Some(receipt), ..finished })
}

/// The end of a task that another proxy may take, or has.
fn not_ours(cause: String) -> v1::Finished {
    let remedy = "see the line between backup server and proxy; another proxy takes the task".into();
    failed(&TaskFailure { step: None, hop: Hop::ServerToProxy, cause, remedy, class: FailureClass::ProxyLost })
}

/// A piece of work that panicked.
pub(crate) fn broke_off(why: &str) -> v1::Finished {
    let failure = TaskFailure {
        step: None,
        hop: Hop::ServerToProxy,
        cause: format!("the proxy broke off: {why}"),
        remedy: "the guest thaws by itself; report this".into(),
        class: FailureClass::Internal,
    };
    failed(&failure)
}

fn failed(failure: &TaskFailure) -> v1::Finished {
    let failure_json = serde_json::to_string(failure).unwrap_or_default();
    v1::Finished { outcome: "failed".into(), failure_json, ..Default::default() }
}
