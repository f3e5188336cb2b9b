//! The commands: one file per object. Here: from the command line to an exit code.

pub mod catalog;
pub mod completions;
pub mod credential;
pub mod doctor;
pub mod host;
pub mod job;
pub mod license;
pub mod managed_server;
pub mod notify;
pub mod proxy;
pub mod proxy_duty;
pub mod quiesce;
pub mod repository;
pub mod restore_point;
pub mod server;
pub mod session;
pub mod settings;
pub mod timing;
pub mod vm;
pub mod vm_settings;

use crate::cli::{Cli, Command, Global};
use crate::connection;
use crate::exit::Exit;
use crate::screen::Screen;
use crate::trouble::{self, Result, Trouble};
use clap::Parser;
use lull_api::Client;
use proxy::ProxyCommand;
use std::process::ExitCode;

/// Runs the command that the arguments ask for.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are answers, not errors.
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            // Not parsed, so looked for; what follows `--` is not ours.
            let json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
            let trouble = trouble::of_command_line(&error);
            Screen::detect(json).complain(&trouble);
            return ExitCode::from(trouble.exit as u8);
        }
    };
    let screen = Screen::detect(cli.global.json);
    let code = match run(cli, &screen) {
        Ok(code) => code,
        Err(trouble) => {
            screen.complain(&trouble);
            trouble.exit as u8
        }
    };
    ExitCode::from(code)
}

fn run(cli: Cli, screen: &Screen) -> Result<u8> {
    let global = &cli.global;
    match cli.command {
        Command::Completions(args) => completions::run(&args, screen),
        Command::ExitCodes => screen.show(&exit_codes(), |_, _| crate::exit::table_text()).map(|()| Exit::Ok as u8),
        Command::Server(args) => server::run(global, screen, &args),
        Command::Doctor => wait(doctor::run(global, screen)),
        Command::Host(command) => client_command(global, |client| host::run(client, screen, command)),
        Command::Vm(command) => client_command(global, |client| vm::run(client, screen, command)),
        Command::Credential(command) => client_command(global, |client| credential::run(client, screen, command)),
        Command::Repository(command) => client_command(global, |client| repository::run(client, screen, command)),
        Command::Job(command) => client_command(global, |client| job::run(client, screen, command)),
        Command::Session(command) => client_command(global, |client| session::run(client, screen, command)),
        Command::RestorePoint(command) => client_command(global, |client| restore_point::run(client, screen, command)),
        Command::Catalog(command) => client_command(global, |client| catalog::run(client, screen, command)),
        Command::Proxy(ProxyCommand::Here(command)) => proxy::daemon::run(global, screen, command),
        Command::Proxy(ProxyCommand::Server(command)) => {
            client_command(global, |client| proxy::run(client, screen, command))
        }
        Command::ManagedServer(command) => {
            client_command(global, |client| managed_server::run(client, screen, command))
        }
        Command::License(command) => client_command(global, |client| license::run(client, screen, command)),
        Command::Quiesce(args) => wait(quiesce::run(global, screen, args)),
    }
}

/// Runs a command that talks to the server.
fn client_command<F: Future<Output = Result<Exit>>>(global: &Global, run: impl FnOnce(Client) -> F) -> Result<u8> {
    wait(async {
        let client = connection::connect(global)?;
        run(client).await.map(|exit| exit as u8)
    })
}

fn wait<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| {
        Trouble::local(Exit::Failed, "no-runtime", "this program could not get what it needs from the system")
            .why(e.to_string())
    })?;
    runtime.block_on(future)
}

fn exit_codes() -> Vec<serde_json::Value> {
    let row = |(exit, meaning): &(Exit, &str)| serde_json::json!({"code": *exit as u8, "meaning": meaning});
    crate::exit::TABLE.iter().map(row).collect()
}

/// Says that an object was removed.
fn removed(screen: &Screen, kind: &str, name: &str) -> Result<Exit> {
    screen.show(&serde_json::json!({"removed": name}), |_, _| format!("Removed {kind} {name}.\n"))?;
    Ok(Exit::Ok)
}
