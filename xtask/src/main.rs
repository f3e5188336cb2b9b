//! Checks, benchmarks and chores of the project: `cargo xtask CHORE`.
//!
//! Dispatches only; each chore has a module of its own.

use std::process::ExitCode;

mod bench;
mod check;
mod license;

const USAGE: &str = "usage:
  cargo xtask check                  the dependency rule, forgotten test targets, paths named in documents, form of source files
  cargo xtask bench [NAME...] [...]  measures beside a peer; `cargo xtask bench --help` tells more";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["check"] => check::run(),
        ["license", words @ ..] => license::run(words),
        // What the bench of the catalog measures in a process of its own.
        ["bench-step", step @ ..] => bench::catalog::step::run(step),
        ["bench", options @ ..] => return bench::run(options),
        _ => {
            eprintln!("{USAGE}\n{}", license::USAGE);
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
