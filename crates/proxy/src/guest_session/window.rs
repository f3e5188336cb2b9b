//! The freeze window: arm, freeze, whatever happens inside, thaw.
//!
//! Between *freeze* sent and *thaw* answered nothing is done but what must be: no event leaves, nothing is written, and
//! every wait is for the guest or for what happens inside. Renewals come from here alone, because here it is awaited. A
//! freeze whose answer is lost counts as frozen.

use super::GuestSession;
use crate::evidence::Window;
use crate::failure::{self, Stop};
use crate::reporter::StepOutcome;
use crate::runtime_client::{CallError, RuntimeClient};
use lull_engine::failover::FailureClass;
use lull_engine::session::{Hop, TaskFailure};
use lull_engine::timeline::Step;
use lull_guest_wire::lease::RENEW_EVERY_MS;
use lull_guest_wire::{
    Answer, ArmOrder, Command, FreezeId, Frozen, Lease, RefusalKind, SuperblockThaw, ThawResult, Thawed,
};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use std::future::Future;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// `syncfs` on every file system comes with arming.
const ARM_LIMIT: Duration = Duration::from_secs(180);
/// The component has thawed by itself this long after its budget; no answer then is a lost answer.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// A renewal that does not leave at once will not save the lease, and must not hide the end of the inside.
const RENEW_LIMIT: Duration = Duration::from_millis(500);
const THAW_LIMIT: Duration = Duration::from_secs(10);

/// When the lease is renewed while the inside is awaited.
pub enum Pulse {
    /// Every second: who awaits is we.
    EverySecond,
    /// Whenever the caller who awaits says so.
    Relayed(mpsc::Receiver<()>),
}

/// How the window ended, as far as the inside is concerned.
pub struct Inside<T> {
    /// What the inside brought, where it was reached.
    pub output: Option<T>,
    /// Why the guest was not frozen, or not thawed in order. With [`Window::thawed`] unset and [`Window::sent`] set the
    /// guest counts as frozen.
    pub trouble: Option<Stop>,
    /// The freeze was refused, and the component said that nothing stays frozen.
    pub refused: Option<RefusalKind>,
}

impl GuestSession<'_> {
    /// Plans, syncs, opens, starts the watchdog.
    pub async fn arm(
        &mut self,
        freeze: FreezeId,
        lease: Lease,
        excluded: &[String],
    ) -> Result<(), (Stop, Option<RefusalKind>)> {
        let order = ArmOrder { freeze, lease, exclude_mount_points: excluded.to_vec() };
        let cancel = self.cancel.clone();
        cancel.check().map_err(|stop| (stop, None))?;
        let client = self.client(Step::Freeze).map_err(|stop| (stop, None))?;
        let answer = async {
            let id = client.send(Command::Arm(order)).await?;
            client.answer_within(id, ARM_LIMIT).await
        };
        let answer = answer.await;
        let kind = match &answer {
            Err(CallError::Refused(refusal)) => Some(refusal.kind),
            _ => None,
        };
        let armed = match answer {
            Ok(Answer::Armed(armed)) => armed,
            Ok(other) => return Err((self.wrong(Step::Freeze, &other), None)),
            Err(e) => {
                if e.ends_component() {
                    self.component = None;
                }
                return Err((self.unless_evicted(not_frozen("the freeze could not be prepared", &e)), kind));
            }
        };
        for note in &armed.notes {
            self.reporter.info(note);
        }
        self.armed = Some((freeze, armed));
        cancel.check().map_err(|stop| (stop, None))
    }

    /// Freezes what was armed, awaits `inside`, thaws. `inside` starts only once everything is frozen; it is told of the
    /// freeze. Cancelling ends the wait for the freeze, never `inside`: that one ends itself.
    pub async fn frozen<T, F>(
        &mut self,
        freeze: FreezeId,
        lease: Lease,
        pulse: Pulse,
        inside: impl FnOnce(&Frozen) -> F,
    ) -> Inside<T>
    where
        F: Future<Output = T>,
    {
        let (cancel, reporter) = (self.cancel.clone(), self.reporter.clone());
        let mut window = Window { sent: Some(freeze), ..Window::default() };
        let Ok(client) = self.client(Step::Freeze) else {
            return Inside { output: None, trouble: Some(super::lost(Step::Freeze)), refused: None };
        };
        let limit = Duration::from_millis(lease.budget_ms.max(lease.lease_ms)) + ANSWER_GRACE;
        let relayed = matches!(pulse, Pulse::Relayed(_));
        let mut beat = Beat::new(pulse);
        let began = Instant::now();
        let answer = tokio::select! {
            biased;
            answer = freeze_answer(client, freeze, &mut beat, limit) => Some(answer),
            () = cancel.cancelled() => None,
        };
        let mut result = Inside { output: None, trouble: None, refused: None };
        match answer {
            Some(Ok(frozen)) => {
                window.snapshot_after_freeze = true;
                reporter.tell(Event::Frozen(v1::Frozen {
                    freeze_id: freeze.0,
                    superblocks: frozen.superblocks.len() as u32,
                }));
                if relayed {
                    reporter.let_go();
                }
                result.output = Some(await_inside(client, freeze, &mut beat, inside(&frozen)).await);
                window.snapshot_before_thaw = true;
                window.frozen = Some(frozen);
            }
            Some(Err(e)) => {
                if let CallError::Refused(refusal) = &e {
                    window.refused = refusal.superblocks.clone();
                    result.refused = still_frozen(&refusal.superblocks).is_none().then_some(refusal.kind);
                }
                result.trouble = Some(not_frozen("the freeze failed", &e).into());
            }
            None => result.trouble = Some(cancel.stop()),
        }
        if result.refused.is_none() {
            let thaw_began = Instant::now();
            match thaw(client, freeze).await {
                Ok(Thawed { superblocks, .. }) if still_frozen(&superblocks).is_some() => {
                    let cause = still_frozen(&superblocks).unwrap_or_default();
                    let remedy = "see the file system's state in the guest's kernel log";
                    let stop = failure::of(Step::Thaw, Hop::FileSystem, FailureClass::FileSystem, cause, remedy);
                    result.trouble.get_or_insert_with(|| stop.into());
                }
                Ok(thawed) => {
                    window.window_us = began.elapsed().as_micros() as u64;
                    window.thaw_us = thaw_began.elapsed().as_micros() as u64;
                    let thawed_event =
                        v1::Thawed { freeze_id: freeze.0, no_gap: thawed.no_gap, window_us: window.window_us };
                    window.thawed = Some(thawed);
                    reporter.tell(Event::Thawed(thawed_event));
                }
                Err(e) => {
                    let what = "the guest did not confirm its thaw";
                    result.trouble.get_or_insert_with(|| failure::of_call(Step::Thaw, what, &e).into());
                }
            }
        }
        self.window = window;
        if let Some(Stop::Failed(failure)) = result.trouble {
            result.trouble = Some(self.unless_evicted(*failure));
        }
        result
    }

    /// Tells what the window came to, once the guest writes again.
    pub fn tell_thaw(&self) {
        let Some(thawed) = &self.window.thawed else { return };
        for gap in &thawed.gaps {
            self.reporter.warning(gap);
        }
        let outcome = if thawed.no_gap { StepOutcome::Ok } else { StepOutcome::Warning };
        let line = format!(
            "frozen {} ms by the guest's clock, {} ms by ours",
            thawed.frozen_us / 1_000,
            self.window.window_us / 1_000
        );
        self.reporter.ended(Step::Thaw, outcome, line, Duration::from_micros(self.window.thaw_us));
    }
}

/// Which file systems the component could not thaw; `None` where it left none frozen.
pub(super) fn still_frozen(superblocks: &[SuperblockThaw]) -> Option<String> {
    let failed = superblocks.iter().filter_map(|thaw| match &thaw.result {
        ThawResult::Failed(why) => Some(format!("{} could not be thawed: {why}", thaw.mount_point)),
        _ => None,
    });
    let failed = failed.collect::<Vec<_>>().join("; ");
    (!failed.is_empty()).then_some(failed)
}

fn not_frozen(what: &str, error: &CallError) -> TaskFailure {
    let remedy = match error {
        CallError::Refused(refusal) if refusal.kind == RefusalKind::SomebodyElse => {
            "wait for the other backup, or thaw what somebody else froze"
        }
        CallError::Refused(_) => "see the file system's state in the guest's kernel log",
        _ => "see whether the guest still runs and is reachable",
    };
    let cause = format!("{what}: {error}");
    failure::of(Step::Freeze, Hop::FileSystem, FailureClass::FileSystem, cause, remedy)
}

/// When the next renewal is due.
enum Beat {
    Every(Interval),
    Relayed(mpsc::Receiver<()>, Interval),
}

impl Beat {
    fn new(pulse: Pulse) -> Self {
        let every = Duration::from_millis(RENEW_EVERY_MS);
        let mut interval = tokio::time::interval_at(Instant::now() + every, every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        match pulse {
            Pulse::EverySecond => Beat::Every(interval),
            Pulse::Relayed(receiver) => Beat::Relayed(receiver, interval),
        }
    }

    /// While we wait for the freeze ourselves.
    async fn ours(&mut self) {
        match self {
            Beat::Every(interval) | Beat::Relayed(_, interval) => drop(interval.tick().await),
        }
    }

    /// While the inside is awaited.
    async fn next(&mut self) {
        match self {
            Beat::Every(interval) => drop(interval.tick().await),
            Beat::Relayed(receiver, _) => {
                if receiver.recv().await.is_none() {
                    std::future::pending().await
                }
            }
        }
    }
}

async fn freeze_answer(
    client: &mut RuntimeClient,
    freeze: FreezeId,
    beat: &mut Beat,
    limit: Duration,
) -> Result<Frozen, CallError> {
    let until = Instant::now() + limit;
    let id = client.send(Command::Freeze(freeze)).await?;
    loop {
        tokio::select! {
            biased;
            answer = client.answer(id) => return match answer? {
                Answer::Frozen(frozen) => Ok(frozen),
                other => Err(CallError::Protocol(format!("{other:?}"))),
            },
            () = tokio::time::sleep_until(until) => {
                return Err(CallError::TimedOut { after_ms: limit.as_millis() as u64 });
            }
            () = beat.ours() => {}
        }
        client.send(Command::Renew(freeze)).await?;
    }
}

/// A renewal that cannot be sent does not end the inside: the thaw's answer will tell of the gap.
async fn await_inside<T>(
    client: &mut RuntimeClient,
    freeze: FreezeId,
    beat: &mut Beat,
    inside: impl Future<Output = T>,
) -> T {
    tokio::pin!(inside);
    let mut renewable = true;
    loop {
        tokio::select! {
            biased;
            output = &mut inside => return output,
            () = beat.next(), if renewable => {}
        }
        let renewal = tokio::time::timeout(RENEW_LIMIT, client.send(Command::Renew(freeze))).await;
        renewable = matches!(renewal, Ok(Ok(_)));
    }
}

async fn thaw(client: &mut RuntimeClient, freeze: FreezeId) -> Result<Thawed, CallError> {
    match client.call(Command::Thaw(freeze), THAW_LIMIT).await? {
        Answer::Thawed(thawed) if thawed.freeze == freeze => Ok(thawed),
        other => Err(CallError::Protocol(format!("{other:?}"))),
    }
}
