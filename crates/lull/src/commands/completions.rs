//! `lull completions`: scripts that make a shell complete lull's commands.

use crate::cli::Cli;
use crate::exit::Exit;
use crate::screen::Screen;
use crate::trouble::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  lull completions bash > /etc/bash_completion.d/lull
  lull completions fish > ~/.config/fish/completions/lull.fish";

/// What `lull completions` takes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs, screen: &Screen) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lull", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    screen.show(&serde_json::json!({"shell": args.shell.to_string(), "script": script}), |_, _| script.clone())?;
    Ok(Exit::Ok as u8)
}
