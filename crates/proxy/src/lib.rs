//! The guest interaction proxy: reaches guests, puts the runtime component into them, and works one VM's task.
//!
//! Entry point: [`service::serve`], which answers the calls of `proxy-wire` on any stream.
//!
//! Knows nothing of jobs, of the choice of a proxy, or of any store: what it must know comes with the order.

pub mod access;
pub mod cancel;
pub mod carried;
pub mod channel;
pub mod deploy;
pub mod evidence;
pub mod failure;
pub mod fake;
pub mod guest_session;
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
pub mod trial;
