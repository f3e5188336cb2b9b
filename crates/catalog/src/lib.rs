//! The file catalog: for each VM one history table that says in which restore points each version of each file existed.
//!
//! Suggested reading order: [`version`] and [`point`] (what is kept), [`table`] (how: Parquet), [`frames`] → [`sort`] → [`merge`]
//! → [`ingest`] (how a restore point's listing comes in), [`search`], [`browse`], [`export`] (how it is asked). The format is told in
//! docs/catalog-format.md.
//!
//! A library of plain, blocking calls: it knows one folder on a local disk. It knows nothing of guests, of jobs, of how
//! listings reach it, nor of a database or an async runtime. What comes from a guest is not trusted: every length is bounded before
//! it is allocated.

pub mod browse;
pub mod catalog;
pub mod check;
pub mod error;
pub mod export;
pub mod forget;
pub mod frames;
pub mod ingest;
pub mod merge;
pub mod pattern;
pub mod point;
pub mod query;
pub mod room;
pub mod search;
pub mod sort;
pub mod table;
pub mod version;

pub use browse::{BrowseEntry, FileVersion};
pub use catalog::{Bounds, Catalog};
pub use check::CheckReport;
pub use error::{CatalogError, SetAside};
pub use export::ExportFormat;
pub use forget::ForgetReport;
pub use ingest::{IngestOutcome, IngestReport, NewPoint};
pub use lull_guest_wire::listing::{COMPRESSED_BYTES_MAX, IndexSummary};
pub use pattern::{How, Pattern, What};
pub use point::{Point, Presence, Walk};
pub use query::{Hit, Order, PageToken, Query};
pub use room::{NoRoom, Room};
pub use search::SearchReport;
pub use table::header::{hexadecimal_digits, of_hexadecimal_digits};
pub use version::{Interval, Kind, Version};
