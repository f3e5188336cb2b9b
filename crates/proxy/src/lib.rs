//! Guest channels, deployment and the guest session.
