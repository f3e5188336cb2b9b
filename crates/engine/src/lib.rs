//! Pure decisions: infrastructure, job to tasks, proxy selection, session state machine, consistency level, licence.
//!
//! Nothing here does IO, waits, or reads a clock: `now` is an argument, and what must happen comes back as a value.
//! Knows nothing of stores, wires, guests' protocols or HTTP.
//!
//! Suggested reading order: [`infrastructure`] and [`settings`] (what there is), [`job`] (what is wanted), [`licence`],
//! [`selection`] and [`dispatch`] (who does it, and when), [`failover`] (what a failure means), [`timeline`] and
//! [`session`] (how one VM's work proceeds), [`consistency`] (what its result is worth), [`chain`] (what a backup builds on),
//! [`retention`] (how long that is kept), [`schedule`] (when the next one is due), [`validation`] (what to tell the person
//! who saves a job).

pub mod chain;
pub mod consistency;
pub mod dispatch;
pub mod failover;
pub mod ids;
pub mod infrastructure;
pub mod instant;
pub mod job;
pub mod licence;
pub mod retention;
pub mod schedule;
pub mod selection;
pub mod session;
pub mod settings;
pub mod task_lease;
pub mod timeline;
pub mod validation;
