//! Proxy to runtime component: frames, closed command set, limits, the arithmetic of the lease.
