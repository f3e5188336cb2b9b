//! The commands end to end: the real binary against a fake server that speaks HTTP and records what it is asked.

mod commands;
mod fake;
mod follow;
mod host_key;
mod managed_server;
mod proxy_here;
mod proxy_tier;
mod quiesce;
mod run;
mod samples;
mod secrets;
mod server;
mod trouble;
