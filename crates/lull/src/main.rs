//! The `lull` program.

fn main() {}
