//! Checks, benchmarks and chores of the project.

fn main() {}
