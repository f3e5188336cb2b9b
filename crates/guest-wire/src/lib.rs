//! The language between a proxy and the runtime component in a guest.
//!
//! Frames ([`frame`]) carry one message each ([`message`]) over any ordered byte stream; the arithmetic of the lease
//! ([`lease`]) is here so that both ends and the tests compute it alike. docs/guest-protocol.md tells the story.
//!
//! Knows nothing of SSH, of processes or of how a freeze is done. Synchronous, no IO beyond `Read` and `Write`.

pub mod frame;
pub mod lease;
pub mod listing;
pub mod message;

pub use frame::{FRAME_BYTES_MAX, FrameError, PROTOCOL_VERSION};
pub use lease::{Lease, LeaseState};
pub use message::*;
