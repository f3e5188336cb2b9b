//! The command line: what can be asked for, with the help that people read. Its types live beside the commands.
//!
//! Knows nothing of how a command does its work.

use crate::commands::{
    catalog, completions, credential, host, job, license, managed_server, proxy, quiesce, repository, restore_point,
    server, session, vm,
};
use crate::connection::DEFAULT_SERVER;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

const EXAMPLES: &str = "\
A first backup:
  lull server &                                               the backup server, with everything embedded
  lull host add here --qemu /run/vms                          every VM.qmp in this folder is a VM
  lull credential add root-key --user root --key ~/.ssh/id    how to log in to guests
  lull vm set shop --address 10.0.0.5 --credential root-key
  lull vm test shop                                           connects along every hop
  lull repository add local /srv/backup
  lull job create nightly --vm shop --repository local
  lull job run nightly                                        shows every step as it happens

`lull help COMMAND` tells more, `lull exit-codes` what the exit codes mean.";

/// Puts guests at rest for exactly as long as a snapshot takes.
///
/// Lull is the guest-processing tier of VM backup: it puts a small non-persistent component into a guest, brings its
/// applications and file systems to rest, has the snapshot taken, wakes everything up and leaves nothing behind.
/// Every command but `server` talks to a running backup server over its REST interface.
#[derive(Debug, Parser)]
#[command(name = "lull", version, after_help = EXAMPLES, max_term_width = 110, subcommand_required = true)]
#[command(arg_required_else_help = true)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The backup server to talk to.
    #[arg(long, global = true, env = "LULL_SERVER", value_name = "URL", default_value = DEFAULT_SERVER)]
    pub server: String,
    /// File that holds the token to show to it [default: $LULL_TOKEN_FILE, else admin-token in the state folder].
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// State folder of the server [default: /var/lib/lull for root, else $XDG_STATE_HOME/lull].
    #[arg(long, global = true, env = "LULL_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Answer with one JSON document on stdout, errors with one on stderr.
    #[arg(long, global = true)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the backup server, with a guest interaction proxy embedded.
    Server(server::ServerArgs),
    /// Hypervisor hosts.
    #[command(subcommand)]
    Host(host::HostCommand),
    /// VMs: how to reach their guests; test and rehearse.
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Accounts in guests, stored encrypted.
    #[command(subcommand)]
    Credential(credential::CredentialCommand),
    /// Folders that backups are written to.
    #[command(subcommand)]
    Repository(repository::RepositoryCommand),
    /// Backup jobs: create, edit, run, follow, cancel.
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Sessions: what ran, step by step.
    #[command(subcommand)]
    Session(session::SessionCommand),
    /// Restore points: list, verify, remove.
    #[command(subcommand)]
    RestorePoint(restore_point::RestorePointCommand),
    /// The guests' files over all restore points: search, browse, export.
    #[command(subcommand)]
    Catalog(catalog::CatalogCommand),
    /// Guest interaction proxies, and why one is chosen.
    #[command(subcommand)]
    Proxy(proxy::ProxyCommand),
    /// Machines of the backup infrastructure: add, repair, upgrade, remove.
    #[command(subcommand)]
    ManagedServer(managed_server::ManagedServerCommand),
    /// The licence: show, install, remove.
    #[command(subcommand, visible_alias = "licence")]
    License(license::LicenseCommand),
    /// Bring a guest to rest while a command of yours runs.
    Quiesce(quiesce::QuiesceArgs),
    /// Look for what is wrong, here and at the server.
    Doctor,
    /// Print a completion script for a shell.
    Completions(completions::CompletionsArgs),
    /// What the exit codes mean.
    #[command(after_long_help = crate::exit::table_text())]
    ExitCodes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// What stands before a command in a sentence, a remedy, an example.
    const BEFORE_A_COMMAND: &[&str] =
        &["`lull ", ": lull ", "\"lull ", "see lull ", "\\n  lull ", "$ lull ", "\nlull "];

    /// Every `lull …` that an operator might type, in the sources of all crates and in the documents: in backticks, in a
    /// remedy, or as an example.
    fn commands_that_are_named(folder: &std::path::Path, found: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if entry.is_dir() && !["target", "tests"].contains(&name.as_str()) && !name.starts_with('.') {
                commands_that_are_named(&entry, found);
            }
            if !name.ends_with(".rs") && !name.ends_with(".md") {
                continue;
            }
            let text = std::fs::read_to_string(&entry).unwrap();
            for (before, part) in
                BEFORE_A_COMMAND.iter().flat_map(|before| text.split(before).skip(1).map(move |p| (before, p)))
            {
                let end: &[&str] =
                    if before.starts_with('`') { &["`"] } else { &["\"", "`", "; ", ", ", "  ", "\\n", "\n"] };
                let command = end.iter().fold(part, |command, end| command.split(end).next().unwrap_or_default());
                // A long string goes on in the next line, a comment behind its slashes; a server in a shell's background.
                let command = command.trim_end().trim_end_matches('&').replace(['\\', '\n'], " ").replace("///", " ");
                found.push((command, name.clone()));
            }
        }
    }

    #[test]
    fn every_command_that_is_named_anywhere_exists() {
        use clap::error::ErrorKind;
        let mut named = Vec::new();
        commands_that_are_named(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."), &mut named);
        assert!(named.len() > 50, "{named:?}");
        let wrong: Vec<String> = named
            .iter()
            .filter(|(command, _)| command.starts_with(|first: char| first.is_ascii_lowercase()))
            .filter(|(command, _)| !command.starts_with("help ") && !command.contains(['…', '*', '[']))
            // What the program says of itself.
            .filter(|(command, _)| !command.starts_with("server is ready"))
            .filter_map(|(command, file)| {
                let words = std::iter::once("lull").chain(command.split_whitespace());
                let kind = Cli::try_parse_from(words).err()?.kind();
                // What stands for a value need not be one, and an argument may be left out.
                let wrong = matches!(kind, ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument);
                wrong.then(|| format!("{file}: `lull {command}`"))
            })
            .collect();
        assert!(wrong.is_empty(), "no such command or option:\n{}", wrong.join("\n"));
    }

    #[test]
    fn every_command_and_option_is_explained() {
        fn check(command: &clap::Command, path: &str) {
            for argument in command.get_arguments().filter(|a| !a.is_hide_set() && a.get_id() != "help") {
                let explained = argument.get_help().is_some_and(|help| !help.to_string().is_empty());
                assert!(explained, "{path}: {} has no help", argument.get_id());
            }
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} has no help");
                check(sub, &path);
            }
        }
        check(&Cli::command(), "lull");
    }
}
