//! The rules of the engine as scenarios and properties, through its public API alone.

mod consistency;
mod consistency_properties;
mod dispatch;
mod failover;
mod infrastructure;
mod job;
mod retention;
mod schedule;
mod selection;
mod selection_properties;
mod session;
mod session_lease;
mod session_properties;
mod session_run;
mod task;
mod timeline;
mod validation;
mod world;
