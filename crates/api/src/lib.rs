//! The public REST interface under `/api/v1`: its types ([`infrastructure`], [`job`], [`timing`], [`vm_settings`], [`notify`], [`licence`],
//! [`proxy_tier`], [`session`], [`catalog`], [`problem`]) and a typed [`client`].
//!
//! Wherever a path takes an object, its name serves as well as its id. Times are RFC 3339 strings in UTC. Knows nothing
//! of how the server answers; the OpenAPI document is put together by the server from these types.

pub mod catalog;
pub mod client;
pub mod infrastructure;
pub mod job;
pub mod licence;
pub mod managed;
pub mod notify;
pub mod problem;
pub mod proxy_tier;
pub mod session;
pub mod timing;
pub mod vm_settings;

pub use client::Client;
pub use problem::Problem;
