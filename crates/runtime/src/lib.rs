//! The runtime component for Linux guests, as a library so that its parts are tested on their own. Knows no proxy and no server.

pub mod postgres;
