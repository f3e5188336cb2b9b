//! The `lull` program: reads the command line, runs one command, ends with its exit code.
//!
//! Suggested reading order: [`cli`] (what can be asked for), [`commands`] (what is done), [`render`] (how it looks),
//! [`follow`] (how a running session is shown), [`exit`] (what the exit codes mean).

mod calls;
mod cli;
mod commands;
mod connection;
mod exit;
mod follow;
mod render;
mod screen;
mod secrets;
mod terminal;
mod trouble;

fn main() -> std::process::ExitCode {
    commands::main()
}
