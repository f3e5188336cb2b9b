//! The applications of the guest: found with the inventory, brought to rest before the freeze, let go after it.
//!
//! Knows each kind of application by its module only; knows nothing of file systems or of the channel.

use lull_guest_wire::{Application, ApplicationQuiesced, QuiesceOrder};

/// What was found, and what is held at rest.
#[derive(Debug, Default)]
pub struct Applications {}

impl Applications {
    /// Looks for every application that runs. Also says what could not be found out.
    pub fn discover(&mut self) -> (Vec<Application>, Vec<String>) {
        (Vec::new(), Vec::new())
    }

    /// Brings those of the last inventory to rest.
    pub fn quiesce(&mut self, _order: &QuiesceOrder) -> Vec<ApplicationQuiesced> {
        Vec::new()
    }

    /// Lets them go.
    pub fn release(&mut self) {}
}
