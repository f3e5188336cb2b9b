//! The runtime component for Linux guests.

fn main() {}
