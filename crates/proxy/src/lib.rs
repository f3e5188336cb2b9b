//! The guest interaction proxy: reaches guests, puts the runtime component into them, and works one VM's task.
//!
//! Entry point: [`service::serve`], which answers the calls of `proxy-wire` on any stream, for a [`desk::Desk`] of tasks.
//!
//! Knows nothing of jobs, of the choice of a proxy, or of any store: what it must know comes with the order.

pub mod access;
pub mod cancel;
pub mod carried;
pub mod channel;
pub mod deploy;
pub mod desk;
pub mod dial;
pub mod evidence;
pub mod failure;
pub mod fake;
pub mod ground;
pub mod guest_session;
pub mod join;
mod journal;
pub mod manage;
pub mod membership;
pub mod metrics;
pub mod networks;
pub mod order;
pub mod receipt;
pub mod recover;
pub mod reporter;
pub mod runtime_client;
pub mod service;
pub mod snapshotter;
pub mod ssh;
pub mod task;
pub mod tls;
pub mod trial;
pub mod watcher;
