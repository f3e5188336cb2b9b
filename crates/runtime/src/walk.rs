//! The walk: lists the guest's files while the guest goes about its own work.
//!
//! ```text
//! starts ─▶ pending folders ─▶ walkers (2 to 16 threads): open, read, stat ─▶ packer ─▶ outgoing ─▶ the control loop
//!               ▲    └────────── their folders ──────────┘    compressed frames,     as fast as the
//!               └─ bounded: what does not fit is found again   few at a time          channel takes them
//! ```
//!
//! Reading order: [`scope`] (what is left out) · [`starts`] (where it begins) · [`pending`] (what is still to be walked, in bounded
//! memory) · [`open`], [`stat`], [`walker`] (one folder) · [`packer`], [`outgoing`] (how it leaves) · [`pace`] (how many threads).
//!
//! Every walker is the last to get a processor and the disk. A walk stops at once when it is told to, or when nobody takes its frames
//! any more; what cannot be read is counted and never ends it. docs/decisions/0007 argues why it is threads and not a process.
//!
//! Knows nothing of the channel, nor of when a walk is allowed.

pub mod moment;
pub mod open;
pub mod outgoing;
pub mod pace;
pub mod packer;
pub mod pending;
pub mod scope;
pub mod starts;
pub mod stat;
pub mod tally;
pub mod walker;

use crate::inventory::{self, Storage};
use lull_guest_wire::{IndexOrder, IndexSummary};
use moment::{ChangedAfter, Moment};
use outgoing::Outgoing;
use pace::Load;
use packer::Packer;
use pending::Pending;
use scope::Noise;
use starts::Start;
use std::sync::Arc;
use std::time::Duration;
use tally::Tally;
use walker::Walker;

/// How often it is looked whether more walkers would help, and whether the walk was stopped.
const TICK: Duration = Duration::from_millis(50);
/// A walker's stack; the C library keeps some of them when they end.
const STACK_BYTES: usize = 256 * 1024;

/// Everything that walkers share.
pub struct Shared {
    /// Where the walk began.
    pub starts: Vec<Start>,
    /// What is left out.
    pub noise: Noise,
    /// Entries changed after this are marked.
    pub changed_after: Option<ChangedAfter>,
    /// What is still to be walked.
    pub pending: Pending,
    /// Where the frames go.
    pub outgoing: Arc<Outgoing>,
}

/// Walks to the end, or until it is stopped. `frozen`: when the last freeze of this component was complete. The notes are
/// worth telling.
pub fn run(order: &IndexOrder, frozen: Option<Moment>, outgoing: &Arc<Outgoing>) -> (IndexSummary, Vec<String>) {
    let began = Moment::now();
    let mut notes = Vec::new();
    let mut tally = Tally::default();
    match inventory::storage() {
        Ok(storage) => {
            let freeze = frozen.map(|frozen| ChangedAfter::freeze(frozen, began));
            walk(order, freeze, outgoing, &storage, &mut tally);
        }
        Err(message) => outgoing.stop(message),
    }
    let ended = Moment::now();
    if let Some(back_us) = ended.clock_was_set_back_us(began) {
        notes.push(format!(
            "the guest's clock was set back by {} s while its files were listed: files that changed after the freeze may not be \
             marked as such",
            (back_us + 999_999) / 1_000_000
        ));
    }
    (tally.summary(began, ended, outgoing.stopped_because()), notes)
}

/// Walks on this storage. Whether it was stopped, and why, `outgoing` says.
pub fn walk(
    order: &IndexOrder,
    freeze: Option<ChangedAfter>,
    outgoing: &Arc<Outgoing>,
    storage: &Storage,
    tally: &mut Tally,
) {
    let noise = Noise::of(&order.scope);
    let found = starts::find(order, storage, &noise);
    let mut packer = match Packer::new(outgoing.clone()) {
        Ok(packer) => packer,
        Err(message) => return outgoing.stop(message),
    };
    if found.tell(&mut packer, tally).and_then(|()| packer.flush()).is_err() {
        return;
    }
    drop(packer);
    let shared = Arc::new(Shared {
        pending: Pending::new(found.starts.len()),
        starts: found.starts,
        noise,
        changed_after: order.flag_ctime_after_us.map(ChangedAfter::time).or(freeze),
        outgoing: outgoing.clone(),
    });
    let mut walkers = Vec::new();
    let mut wanted = pace::WALKERS_MIN;
    let mut load = Load::new();
    loop {
        while walkers.len() < wanted {
            match Walker::spawn(shared.clone(), STACK_BYTES) {
                Ok(walker) => walkers.push(walker),
                // With fewer it takes longer; with none there is no walk.
                Err(e) if walkers.is_empty() => {
                    outgoing.stop(format!("no thread could be started: {e}"));
                    break;
                }
                Err(_) => wanted = walkers.len(),
            }
        }
        if outgoing.is_stopped() {
            shared.pending.stop();
        }
        if shared.pending.over_within(TICK) {
            break;
        }
        let busy = !outgoing.was_full() && shared.pending.len() > walkers.len();
        wanted = load.walkers_wanted(walkers.iter().map(|walker| walker.thread_id()), busy).max(wanted);
    }
    for walker in walkers {
        match walker.join() {
            Ok(walked) => tally.add(walked),
            Err(message) => outgoing.stop(message),
        }
    }
}

#[cfg(test)]
mod tests;
