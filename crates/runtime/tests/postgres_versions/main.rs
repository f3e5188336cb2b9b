//! PostgreSQL 10 to 18 against real servers: found, described, brought to a checkpoint, or refused with the reason. Needs root (servers run as
//! another user) and the servers that `testbed/postgres/fetch.sh` fetches.

mod each_version;
mod odd_places;
mod refusals;
mod server;

use std::path::Path;

use lull_runtime::postgres::{Cluster, Discovery, QuiesceOptions, UnreachableBecause, discover};
use server::Server;

/// A version for scenarios in which the version plays no part.
const ANY: u32 = 15;

const GENEROUS: QuiesceOptions =
    QuiesceOptions { checkpoint: true, checkpoint_timeout_ms: 60_000, connect_timeout_ms: 20_000 };

fn all_found() -> Discovery {
    discover(Path::new("/proc"))
}

/// The cluster of this server among all that run on the machine.
fn found(server: &Server) -> Cluster {
    let discovery = all_found();
    let pid = server.pid();
    let cluster = discovery.clusters.iter().find(|cluster| cluster.pid == pid);
    cluster.unwrap_or_else(|| panic!("process {pid} is not among {discovery:#?}")).clone()
}

/// Why the server with this process id is unreachable.
fn unreachable_because(pid: u32) -> UnreachableBecause {
    let discovery = all_found();
    let one = discovery.unreachable.iter().find(|one| one.pid == pid);
    one.unwrap_or_else(|| panic!("process {pid} is not unreachable in {discovery:#?}")).because.clone()
}
