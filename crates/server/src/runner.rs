//! From a job to its end: the book of open tasks, the dispatcher, the calls to proxies, and what was owed when the
//! server stopped. What a task's next state is, is decided by `engine::session::advance` alone; here it is written down
//! first and acted upon then.

pub mod actions;
pub mod begin;
pub mod book;
pub mod dispatcher;
pub mod drive;
pub mod explain;
pub mod history;
pub mod limits;
pub mod listing;
pub mod order;
pub mod preview;
pub mod recovery;
pub mod report;
