//! The server as its callers see it: a real database, real HTTP on a free port, and proxies that play a script.

mod catalog;
mod catalog_queue;
mod chains;
mod clock;
mod debts;
mod fake;
mod falls_back;
mod harness;
mod interface;
mod kills;
mod notify;
mod notify_tls;
mod overrides;
mod quiesce;
mod retention;
mod scenarios;
mod secrecy;
mod stored;
mod streams;
mod verify;
