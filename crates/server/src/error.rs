//! Why the server does not start or stops. Errors of single requests are [`lull_api::Problem`]s.

use crate::secrets::SecretError;
use crate::state_dir::StateDirError;
use crate::store::StoreError;
use crate::trust::TrustError;
use lull_catalog::CatalogError;
use std::net::SocketAddr;

/// Why the server could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The state folder cannot be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key for stored secrets cannot be used.
    #[error(transparent)]
    Secrets(#[from] SecretError),
    /// The file catalog cannot be opened.
    #[error("the file catalog cannot be opened")]
    Catalog(#[source] CatalogError),
    /// No certificates for proxies.
    #[error("the port for proxies cannot be secured")]
    Trust(#[from] TrustError),
    /// The port for proxies cannot be listened on.
    #[error(
        "proxies cannot be listened for on {listen}; see which program holds the port, choose another with --proxy-listen, or \
         do without proxies: --proxy-listen none"
    )]
    ListenForProxies {
        /// What was asked for.
        listen: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// The address is reachable from other machines.
    #[error(
        "the REST interface does not listen on {listen}: an address other than loopback needs TLS, which this version \
         does not have; listen on 127.0.0.1 or [::1], and reach it from elsewhere through an SSH tunnel"
    )]
    NeedsTls {
        /// What was asked for.
        listen: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error(
        "the REST interface cannot listen on {listen}; see which program holds the port, or choose another with --listen"
    )]
    Listen {
        /// What was asked for.
        listen: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// Monitoring cannot be served at its address.
    #[error(
        "metrics cannot be served on {listen}; see which program holds the port, or choose another with --metrics-listen"
    )]
    ListenForMetrics {
        /// What was asked for.
        listen: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// Not exactly one of the proxies is the backup server's own.
    #[error("{found} proxies say that they are the backup server's own; exactly one must")]
    BackupServerProxy {
        /// How many do.
        found: usize,
    },
}
