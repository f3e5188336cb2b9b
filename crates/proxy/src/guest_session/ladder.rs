//! The thaw ladder: what is tried, in this order and each step told, until nothing of ours is frozen.
//!
//! 1. the component;
//! 2. its watchdog, which thaws by itself once the channel is closed, and is waited for;
//! 3. by hand over the same connection, then over a new login;
//! 4. a person, who gets the exact command.
//!
//! The watchdog removes the guest's lock folder when it ends in order, and only then: a folder that is still there with
//! nobody alive tells that main and watchdog were killed together.

use super::GuestSession;
use crate::channel::GuestChannel;
use crate::receipt::{self, GuestLook};
use crate::runtime_client::CallError;
use lull_guest_wire::{Answer, Command, Freezable, Lease};
use std::time::Duration;
use tokio::time::Instant;

const COMPONENT_LIMIT: Duration = Duration::from_secs(5);
/// Beyond lease and budget: a `FIFREEZE` in flight may hold the watchdog back.
const WATCHDOG_GRACE: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(250);

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
        if let Some((client, _)) = &mut self.component {
            match client.call(Command::Thaw(freeze), COMPONENT_LIMIT).await {
                Ok(Answer::Thawed(thawed)) => {
                    self.window.thawed = Some(thawed);
                    return Ok("by the component".into());
                }
                Err(CallError::Refused(refusal)) => return Ok(format!("the component says: {refusal}")),
                Ok(other) => self.reporter.warning(format!("thaw: the component answered {other:?}")),
                Err(e) => {
                    self.reporter.warning(format!("thaw: {e}; its channel is closed, so that its watchdog thaws"))
                }
            }
        }
        // Closing the channel is what its watchdog waits for.
        self.component = None;
        let longest = Duration::from_millis(lease.lease_ms.min(lease.budget_ms)) + WATCHDOG_GRACE;
        let until = Instant::now() + longest;
        match self.wait_for_the_watchdog(until).await {
            Some(look) if look.processes.is_empty() && !look.lock_folder => return Ok("by the watchdog".into()),
            Some(look) if look.processes.is_empty() => {
                self.reporter.warning("thaw: component and watchdog were killed; thawing by hand");
            }
            Some(_) => {
                self.reporter.warning(format!("thaw: the watchdog did not end within {longest:?}; thawing by hand"))
            }
            None => self.reporter.warning("thaw: the guest does not answer over this connection; trying a new login"),
        }
        let mount_points = self.frozen_mount_points();
        if let Some(line) = self.thaw_by_hand(&mount_points).await {
            return Ok(line);
        }
        let command = self.connector.thaw_command(&mount_points);
        Err(format!("nobody could confirm the thaw of {}; run this: {command}", self.vm_name))
    }

    /// The last look at the component's processes, once they are gone or the time is up; nothing where the guest does not
    /// answer.
    async fn wait_for_the_watchdog(&self, until: Instant) -> Option<GuestLook> {
        let channel = self.channel.as_deref()?;
        loop {
            let look = tokio::time::timeout_at(until + LOOK_EVERY, receipt::look(channel)).await.ok()?.ok()?;
            if look.processes.is_empty() || Instant::now() >= until {
                return Some(look);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Over the connection that there is, then over a new login.
    async fn thaw_by_hand(&mut self, mount_points: &[String]) -> Option<String> {
        let mut tried = None;
        if let Some(channel) = self.channel.as_deref() {
            match by_hand(channel, mount_points).await {
                Ok(line) => return Some(format!("by hand: {line}")),
                Err(e) => {
                    self.reporter.warning(format!("thaw: not by hand over this connection: {e}"));
                    tried = Some(channel.second_login().await);
                }
            }
        }
        let second = match tried {
            Some(Ok(second)) => second,
            Some(Err(_)) | None => match self.connector.connect().await {
                Ok((second, _)) => second,
                Err(e) => {
                    self.reporter.warning(format!("thaw: no new login: {e}"));
                    return None;
                }
            },
        };
        let result = by_hand(second.as_ref(), mount_points).await;
        self.channel = Some(second);
        match result {
            Ok(line) => Some(format!("by hand over a new login: {line}")),
            Err(e) => {
                self.reporter.warning(format!("thaw: not by hand over a new login: {e}"));
                None
            }
        }
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

async fn by_hand(channel: &dyn GuestChannel, mount_points: &[String]) -> Result<String, String> {
    receipt::thaw_by_hand(channel, mount_points).await
}
