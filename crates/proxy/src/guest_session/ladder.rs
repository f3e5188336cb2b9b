//! The thaw ladder: what is tried, in this order and each step told, until nothing of ours is frozen.
//!
//! 1. the component;
//! 2. its watchdog, which thaws by itself once the channel is closed, and is waited for;
//! 3. by hand over the same connection, then over a new login (one, and none once the guest refused the credential);
//! 4. a person, who gets the exact command.
//!
//! Where a newer task holds the guest nothing is tried: what is frozen is its own. An answer in which a file system could not be thawed is no thaw. The watchdog removes the guest's lock folder when it
//! ends with everything thawed, and only then: a folder that is still there with nobody alive tells that main and watchdog
//! were killed together, or gave up.

use super::GuestSession;
use super::window::still_frozen;
use crate::receipt;
use crate::runtime_client::CallError;
use lull_guest_wire::{Answer, Command, Freezable, Lease};
use std::time::Duration;

const COMPONENT_LIMIT: Duration = Duration::from_secs(5);
/// Beyond lease and budget: a `FIFREEZE` in flight may hold the watchdog back.
const WATCHDOG_GRACE: Duration = Duration::from_secs(3);

impl GuestSession<'_> {
    /// Sees to it that nothing of this task stays frozen. The line tells how; an error that nobody could.
    pub async fn thaw_by_ladder(&mut self, lease: Lease) -> Result<String, String> {
        let Some(freeze) = self.window.sent else {
            // Never frozen; a component that was armed is told to let go.
            if let (Some((client, _)), Some((freeze, _))) = (&mut self.component, &self.armed) {
                let _ = client.call(Command::Thaw(*freeze), COMPONENT_LIMIT).await;
            }
            return Ok("nothing was frozen".into());
        };
        if let Some((client, _)) = self.component.as_mut().filter(|_| !self.cancel.is_evicted()) {
            match client.call(Command::Thaw(freeze), COMPONENT_LIMIT).await {
                Ok(Answer::Thawed(thawed)) => match still_frozen(&thawed.superblocks) {
                    None => {
                        self.window.thawed = Some(thawed);
                        return Ok("by the component".into());
                    }
                    Some(why) => self.reporter.warning(format!("thaw: the component says: {why}")),
                },
                Ok(other) => self.reporter.warning(format!("thaw: the component answered {other:?}")),
                Err(CallError::Evicted) => {}
                Err(e) => {
                    self.reporter.warning(format!("thaw: {e}; its channel is closed, so that its watchdog thaws"))
                }
            }
        }
        // Its last word comes once everything is thawed. What is frozen now is a newer task's.
        if self.cancel.is_evicted() {
            self.component = None;
            return Ok("by the component, which made room for a newer task's".into());
        }
        // Closing the channel is what its watchdog waits for.
        let main = self.component.take().map(|(_, hello)| hello.pid);
        let watchdog = self.armed.as_ref().map(|(_, armed)| armed.watchdog_pid);
        let pids: Vec<u32> = main.into_iter().chain(watchdog).collect();
        let patience = Duration::from_millis(lease.lease_ms.min(lease.budget_ms)) + WATCHDOG_GRACE;
        let mount_points = self.frozen_mount_points();
        if let Some(channel) = self.channel.as_deref() {
            let image = self.image;
            match receipt::watchdog_or_by_hand(channel, image, self.fence, &pids, &mount_points, patience).await {
                Ok(line) => return Ok(line),
                Err(e) if e.newer => return Ok(self.left_to_newer()),
                Err(e) => {
                    self.reporter.warning(format!("thaw: not over this connection: {e}"));
                    e.channel.iter().for_each(|error| self.note(error));
                }
            }
        }
        match self.another_login().await {
            Ok(second) => {
                let second_channel = second.as_ref();
                let (image, fence) = (self.image, self.fence);
                let result =
                    receipt::watchdog_or_by_hand(second_channel, image, fence, &pids, &mount_points, patience).await;
                self.channel = Some(second);
                match result {
                    Ok(line) => return Ok(format!("{line}, over a new login")),
                    Err(e) if e.newer => return Ok(self.left_to_newer()),
                    Err(e) => {
                        self.reporter.warning(format!("thaw: not over a new login: {e}"));
                        e.channel.iter().for_each(|error| self.note(error));
                    }
                }
            }
            Err(e) => self.reporter.warning(format!("thaw: no new login: {e}")),
        }
        let command = self.connector.thaw_command(&mount_points);
        Err(format!("nobody could confirm the thaw of {}; run this: {command}", self.vm_name))
    }

    /// A newer task's component begins only once ours and its watchdog are gone, and thaws what they may have left.
    fn left_to_newer(&self) -> String {
        self.cancel.evict();
        "by whoever ended the component: a newer task holds the guest".into()
    }

    /// What was armed, in the order of thawing; all that can be frozen where the plan is not known.
    fn frozen_mount_points(&self) -> Vec<String> {
        let Some(inventory) = &self.inventory else { return vec!["/".into()] };
        let first = |fs: &lull_guest_wire::FileSystem| fs.mount_points.first().cloned();
        match &self.armed {
            Some((_, armed)) => {
                let named = |sb: &lull_guest_wire::Superblock| {
                    inventory.file_systems.iter().find(|fs| fs.superblock == *sb).and_then(first)
                };
                armed.plan.iter().rev().filter_map(named).collect()
            }
            None => {
                inventory.file_systems.iter().filter(|fs| fs.freezable == Freezable::Yes).filter_map(first).collect()
            }
        }
    }
}
