//! Checks, benchmarks and chores of the project: `cargo xtask CHORE`.
//!
//! Dispatches only; each chore has a module of its own.

use std::process::ExitCode;

mod check;

const USAGE: &str = "usage: cargo xtask check    the dependency rule, forgotten test targets, paths named in documents, form of source files";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["check"] => check::run(),
        _ => {
            eprintln!("{USAGE}");
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
