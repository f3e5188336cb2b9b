//! What server and proxies tell one another, and the network in between: delay, loss, doubles, another order, cut lines. Knows no meaning.
//!
//! Harsher than TCP, where an order is kept within one connection; whoever needs an answer asks again.

use crate::site::Who;
use crate::{Event, World};
use lull_engine::session::{Ending, FinalAccount, ProxyReport, RecoveryPart};

/// Down.
#[derive(Debug, Clone)]
pub enum ToProxy {
    /// Work on this VM, for this start of the server.
    Order(Who, u64),
    /// Go on telling about the task to this start of the server, from the first event.
    Attach(Who, u64),
    /// The ask of this number is granted.
    Grant(Who, u64, u64),
    /// Events up to this one are recorded, says this start of the server.
    Heard(Who, usize, u64),
    /// Cancel it.
    Cancel(Who),
    /// Undo what a task left. The call it came with: once that is over, nothing is begun.
    Recover(Who, RecoveryPart, u64),
}

/// Up, each with the proxy and its process.
#[derive(Debug, Clone)]
pub enum ToServer {
    /// It lives.
    Heartbeat(usize, u64),
    /// The task, for another while; and the start of the server that it tells about it.
    Ask(Who, u64, u64),
    /// An event by its number, from 1.
    Said(Who, usize, Said),
    /// It has no such task.
    NotFound(Who),
    /// How a recovery went.
    Recovered(Who, RecoveryPart, u64, bool),
}

/// What a proxy tells about a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// What happened.
    Report(ProxyReport),
    /// The restore point is verified; whether the snapshot was inside the freeze, for the check alone.
    RestorePoint(bool),
    /// The end.
    Finished(Ending, FinalAccount),
}

impl World {
    /// Whether the line between server and proxy is cut. The server's own proxy is a part of it.
    pub(crate) fn is_cut_off(&self, proxy: usize) -> bool {
        proxy != 0 && self.now_ms < self.server_cut_ms[proxy]
    }

    /// Whether a proxy reaches this VM's guest.
    pub(crate) fn reaches_guest(&self, proxy: usize, vm: usize) -> bool {
        let site = self.site_of_vm(vm);
        self.site_cut_ms.get(&(proxy, site)).is_none_or(|until_ms| self.now_ms >= *until_ms)
    }

    pub(crate) fn down(&mut self, proxy: usize, message: ToProxy) {
        for delay_ms in self.copies(proxy) {
            self.after(delay_ms, Event::AtProxy(proxy, message.clone()));
        }
    }

    pub(crate) fn up(&mut self, proxy: usize, message: ToServer) {
        for delay_ms in self.copies(proxy) {
            self.after(delay_ms, Event::AtServer(message.clone()));
        }
    }

    /// After how long each copy of a message arrives.
    fn copies(&mut self, proxy: usize) -> Vec<u64> {
        if proxy == 0 {
            return vec![1];
        }
        let delay = |chance: &mut crate::chance::Chance| match chance.between(0, 1_000) {
            0..980 => chance.between(1, 150),
            980..997 => chance.between(150, 4_000),
            // It lay in a buffer.
            _ => chance.between(4_000, 200_000),
        };
        let mut copies = Vec::new();
        if !self.is_cut_off(proxy) && !self.chance.per_mille(self.loss_per_mille) {
            copies.push(delay(&mut self.chance));
        }
        if !self.is_cut_off(proxy) && self.chance.per_mille(10) {
            copies.push(delay(&mut self.chance));
        }
        copies
    }
}
