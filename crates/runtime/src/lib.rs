//! The runtime component for Linux guests: put into a guest for one task, gone right after.
//!
//! Reading order: [`serve`] (the control loop) · [`accept`] (what is accepted when) · [`hold`] (one freeze) · [`shared`] (lease and
//! slots, and the argument why no freeze slips past a thaw) · [`freeze`], [`thaw_pool`], [`watchdog`] (who freezes, who thaws, who
//! guards) · [`guard`] (in which order all that comes and goes), [`carriers`], [`grace_periods`] · [`inventory`], [`mounts`], [`disks`], [`plan`] · [`script`] ·
//! [`applications`], [`postgres`] · [`walk`].
//!
//! Synchronous, no async runtime, nothing needed from the guest's libraries. Knows nothing of SSH, hypervisors or jobs.

pub mod accept;
pub mod applications;
pub mod carriers;
pub mod channel;
pub mod deployment;
pub mod disks;
pub mod fence;
pub mod freeze;
pub mod grace_periods;
pub mod guard;
pub mod guest_lock;
pub mod hold;
pub mod inventory;
pub mod kernel;
pub mod memory;
pub mod mounts;
pub mod plan;
pub mod postgres;
pub mod report;
pub mod script;
pub mod serve;
pub mod shared;
pub mod thaw_pool;
pub mod walk;
pub mod watchdog;
