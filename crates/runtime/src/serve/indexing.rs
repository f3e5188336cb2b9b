//! The walk as the control loop sees it: begun, its frames handed on one by one, cancelled, ended.
//!
//! Frames are taken from the walkers only when everything said before is written, so a proxy that reads slowly slows the walk, and
//! an answer never waits behind more than one frame. Knows nothing of how a walk is done ([`crate::walk`]).

use super::{Done, Server};
use crate::walk::outgoing::Outgoing;
use crate::walk::{self, starts};
use lull_guest_wire::{Answer, FromRuntime, IndexOrder, ListingFrame, Phase, RefusalKind};
use std::sync::Arc;

impl Server {
    pub(super) fn index(&mut self, id: u32, order: IndexOrder) {
        if let Err(message) = starts::check(&order) {
            return self.refuse(id, RefusalKind::BadOrder, message);
        }
        let outgoing = Arc::new(Outgoing::new(self.bell.clone()));
        self.walk = Some(outgoing.clone());
        let frozen = self.last.as_ref().and_then(|last| last.frozen_at);
        self.start(id, "a walk", Phase::Indexing, None, move |_, _| {
            let (summary, notes) = walk::run(&order, frozen, &outgoing);
            Done::Answer(Ok(Answer::Indexed(summary)), notes)
        });
    }

    /// Ends the walk, if one runs; its frames are not handed on any more.
    pub(super) fn stop_walk(&mut self, because: &str) {
        if let Some(walk) = &self.walk {
            walk.stop(because);
        }
    }

    /// Hands on the next frames, as far as the proxy takes them now.
    pub(super) fn hand_on_frames(&mut self) {
        while let (false, Some(walk)) = (self.cut || self.channel.has_waiting(), &self.walk) {
            let Some(compressed) = walk.take() else { return };
            self.send(&FromRuntime::Listing(ListingFrame { compressed }));
        }
    }

    /// The walk is over: the few frames that are left go before its answer.
    pub(super) fn hand_on_the_rest(&mut self) {
        let Some(walk) = self.walk.take() else { return };
        while let Some(compressed) = walk.take() {
            self.send(&FromRuntime::Listing(ListingFrame { compressed }));
        }
    }
}
