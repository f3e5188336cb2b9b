//! `lull managed-server`: machines of the backup infrastructure. Nothing is changed on a machine before its host key and the list of changes
//! were accepted: on the terminal, or by options. A login is used for this one command and kept nowhere.

use super::credential::SecretArgs;
use super::vm::fingerprint;
use crate::calls;
use crate::exit::Exit;
use crate::render::managed;
use crate::render::text::one_line;
use crate::screen::Screen;
use crate::terminal;
use crate::trouble::{Result, Trouble};
use clap::{Args, Subcommand};
use futures::StreamExt;
use lull_api::Client;
use lull_api::managed::{AskHostKey, Login, MachineCheck, ManagedLine, ManagedServer, NewManagedServer, ServerWork};
use lull_proxy::join::check_address;
use serde::Serialize;
use serde_json::json;
use std::pin::pin;

const ADD_EXAMPLES: &str = "\
Examples:
  lull managed-server add linux branch-1.example --user admin --sudo      asks for everything
  lull managed-server add linux 192.0.2.7 --key ~/.ssh/id --host-key SHA256:… --yes

The machine's host key and the list of what would be changed are shown, and you are asked. The login is used for this
command alone: it is neither stored nor logged.";

/// What can be done with managed servers.
#[derive(Debug, Subcommand)]
pub enum ManagedServerCommand {
    /// Make a guest interaction proxy of a machine.
    #[command(subcommand)]
    Add(AddCommand),
    /// List the managed servers.
    List,
    /// Show a managed server.
    Show {
        /// Its name.
        name: String,
    },
    /// Put back what is missing or broken on its machine: program, identity, service.
    #[command(after_help = "Example:\n  lull managed-server repair branch-1 --key ~/.ssh/id")]
    Repair(Box<RepairArgs>),
    /// Put the backup server's own program there, once the tasks of its proxy have ended.
    #[command(after_help = "Example:\n  lull managed-server upgrade branch-1 --key ~/.ssh/id")]
    Upgrade(Box<WorkArgs>),
    /// Remove all of Lull from its machine, and the server from the backup infrastructure.
    #[command(
        after_help = "Examples:\n  lull managed-server remove branch-1 --key ~/.ssh/id\n  lull managed-server remove branch-1 --forget    its machine is gone"
    )]
    Remove(Box<RemoveArgs>),
}

/// Which kind of machine.
#[derive(Debug, Subcommand)]
pub enum AddCommand {
    /// A Linux machine, over SSH.
    #[command(after_help = ADD_EXAMPLES)]
    Linux(Box<AddArgs>),
    /// A Windows machine; comes with the support of Windows.
    Windows {
        /// Its name or address.
        host: String,
    },
}

/// What `add linux` takes.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Its name or address.
    host: String,
    /// Port of its SSH server.
    #[arg(long, value_name = "PORT", default_value_t = 22, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Name of the managed server to be [default: what the machine calls itself].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Task slots [default: as many as it has processors].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    slots: Option<u32>,
    /// The backup server, as it is reached from there: HOST or HOST:PORT [default: the address that it uses on the way there].
    #[arg(long, value_name = "HOST[:PORT]", value_parser = server_address)]
    server_address: Option<String>,
    #[command(flatten)]
    way: WayArgs,
}

/// What all work on a managed server takes, and `upgrade` nothing else.
#[derive(Debug, Args)]
pub struct WorkArgs {
    /// The managed server, by name.
    name: String,
    /// Its address, where that is another now.
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Port of its SSH server, where that is another now.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    #[command(flatten)]
    way: WayArgs,
}

/// What `repair` takes.
#[derive(Debug, Args)]
pub struct RepairArgs {
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    settings: NewSettings,
}

/// How the proxy is set up otherwise from now on.
#[derive(Debug, Default, Args)]
struct NewSettings {
    /// Task slots, where there are to be others.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    slots: Option<u32>,
    /// The backup server, as it is reached from there, where that is otherwise now: HOST or HOST:PORT.
    #[arg(long, value_name = "HOST[:PORT]", value_parser = server_address)]
    server_address: Option<String>,
}

/// What `remove` takes.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Only remove it here: its machine is gone, or was cleared by hand.
    #[arg(long, conflicts_with_all = ["host", "host_key", "password_stdin", "password_file", "key"])]
    forget: bool,
    #[command(flatten)]
    work: WorkArgs,
}

/// How its machine is entered.
#[derive(Debug, Args)]
struct WayArgs {
    /// Fingerprint of its SSH host key, as its console shows it; without this you are asked.
    #[arg(long, value_name = "SHA256:…", value_parser = fingerprint)]
    host_key: Option<String>,
    /// Change what was listed without asking.
    #[arg(long)]
    yes: bool,
    /// Account there.
    #[arg(long, default_value = "root")]
    user: String,
    #[command(flatten)]
    secrets: SecretArgs,
}

/// Runs it.
pub async fn run(client: Client, screen: &Screen, command: ManagedServerCommand) -> Result<Exit> {
    match command {
        ManagedServerCommand::List => {
            screen.show(&calls::managed_servers(&client).await?, |all, look| managed::list(all, look))?;
        }
        ManagedServerCommand::Show { name } => {
            screen.show(&calls::managed_server(&client, &name).await?, managed::server)?;
        }
        ManagedServerCommand::Add(AddCommand::Linux(args)) => return add(&client, screen, *args).await,
        ManagedServerCommand::Add(AddCommand::Windows { host }) => {
            return Err(Trouble::local(Exit::Refused, "no-windows-yet", format!("{host} was not added"))
                .why("Windows servers cannot be added yet: that comes with the support of Windows")
                .remedy("add a Linux server: lull managed-server add linux HOST"));
        }
        ManagedServerCommand::Repair(args) => {
            let RepairArgs { work, settings } = *args;
            return change(&client, screen, work, Change::Repair(settings)).await;
        }
        ManagedServerCommand::Upgrade(args) => return change(&client, screen, *args, Change::Upgrade).await,
        ManagedServerCommand::Remove(args) => {
            let RemoveArgs { forget, work } = *args;
            if !forget {
                return change(&client, screen, work, Change::Remove).await;
            }
            calls::remove_proxy(&client, &work.name).await?;
            return super::removed(screen, "managed server", &work.name);
        }
    }
    Ok(Exit::Ok)
}

enum Change {
    Repair(NewSettings),
    Upgrade,
    Remove,
}

async fn add(client: &Client, screen: &Screen, args: AddArgs) -> Result<Exit> {
    let AddArgs { host, port, name, slots, server_address, way } = args;
    let host_key = accepted_key(client, &host, port, way.host_key.as_deref()).await?;
    let mut new = NewManagedServer {
        kind: "linux".into(),
        name,
        login: login(&way)?,
        host,
        port,
        host_key,
        server_address,
        slots: slots.unwrap_or(0),
    };
    screen.remark(&format!("Looking at {} …", new.host));
    let check = calls::check_machine(client, &new).await?;
    let name = new.name.get_or_insert_with(|| check.hostname.clone()).clone();
    screen.remark(&managed::check(&check, &screen.look()));
    passed(screen, &check, &new.host)?;
    confirm(screen, way.yes, &check, &format!("Change this on {} and add it as {name}?", new.host))?;
    if let Some(added) = follow(client, screen, "/managed-servers", &new).await? {
        screen.show(&added, |added, look| managed::server(&added.server, look))?;
    }
    Ok(Exit::Ok)
}

async fn change(client: &Client, screen: &Screen, args: WorkArgs, change: Change) -> Result<Exit> {
    let WorkArgs { name, host, port, way } = args;
    let known = calls::managed_server(client, &name).await?;
    let place = |machine: &lull_api::managed::Machine| (machine.host.clone(), machine.port);
    let before = known.machine.as_ref().map(place);
    let now = (
        host.clone().or_else(|| before.as_ref().map(|(host, _)| host.clone())),
        port.or(before.as_ref().map(|(_, port)| *port)).unwrap_or(22),
    );
    let host_key = match (&way.host_key, &now, &before) {
        (Some(key), ..) => Some(key.clone()),
        // The one that was accepted is asked for by the server.
        (None, (Some(host), port), Some((known, known_port))) if host == known && port == known_port => None,
        (None, (Some(host), port), _) => Some(accepted_key(client, host, *port, None).await?),
        // The server says what is missing.
        (None, (None, _), _) => None,
    };
    let at = now.0.unwrap_or_else(|| name.clone());
    let mut work = ServerWork { host, port, host_key, login: login(&way)?, server_address: None, slots: None };
    let path = match change {
        Change::Repair(settings) => {
            (work.slots, work.server_address) = (settings.slots, settings.server_address);
            screen.remark(&format!("Looking at {at} …"));
            let check = calls::check_managed_server(client, &name, &work).await?;
            screen.remark(&managed::check(&check, &screen.look()));
            passed(screen, &check, &at)?;
            confirm(screen, way.yes, &check, &format!("Change this on {at}?"))?;
            "repair"
        }
        Change::Upgrade => {
            let changes = managed::upgrade(&known);
            screen.remark(&managed::changes("This will be changed there:", &changes));
            let question = format!("Wait for the tasks of {name}, then change this on {at}?");
            confirm(screen, way.yes, &json!({ "changes": changes }), &question)?;
            "upgrade"
        }
        Change::Remove => {
            let changes = managed::removal(&known);
            screen.remark(&managed::changes("This will be removed there:", &changes));
            let question = format!(
                "Wait for the tasks of {name}, remove this from {at}, and {name} from the backup infrastructure?"
            );
            confirm(screen, way.yes, &json!({ "changes": changes }), &question)?;
            "remove"
        }
    };
    let path = format!("/managed-servers/{}/{path}", calls::segment(&name));
    match follow(client, screen, &path, &work).await? {
        Some(done) => screen.show(&done, |done, look| managed::server(&done.server, look))?,
        None => return super::removed(screen, "managed server", &name),
    }
    Ok(Exit::Ok)
}

fn login(way: &WayArgs) -> Result<Login> {
    let elevation = way.secrets.elevation().unwrap_or_default();
    let by_key = way.secrets.key.is_some();
    // As for credentials: with a password there is one for sudo already.
    let asks = match elevation {
        lull_api::infrastructure::Elevation::Su => true,
        lull_api::infrastructure::Elevation::Sudo => by_key,
        _ => false,
    };
    let secrets = way.secrets.read(&way.user, !by_key, asks)?;
    Ok(Login {
        user: way.user.clone(),
        password: secrets.password,
        private_key: secrets.private_key,
        passphrase: secrets.passphrase,
        elevation,
        elevation_password: secrets.elevation_password,
    })
}

/// The host key that the machine shows, once a person or an option has accepted it.
async fn accepted_key(client: &Client, host: &str, port: u16, given: Option<&str>) -> Result<String> {
    let shown = calls::machine_host_key(client, &AskHostKey { host: host.into(), port }).await?;
    let (key, kind) = (shown.fingerprint, one_line(&shown.algorithm));
    if let Some(given) = given {
        if given == key {
            return Ok(key);
        }
        return Err(Trouble::local(
            Exit::Refused,
            "host-key",
            format!("{host} shows another host key than the one given"),
        )
        .why(format!("it shows {kind} {key}, not {given}; nothing secret was sent to it"))
        .remedy("compare with its console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"));
    }
    let question = format!(
        "{host} shows this host key:\n  {kind} {key}\n\
         Compare with its console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub\nIs it right? [yes/no]"
    );
    match terminal::ask_line(&question) {
        Ok(Some(answer)) if answer.trim() == "yes" => Ok(key),
        Ok(Some(_)) => {
            Err(Trouble::local(Exit::Failed, "not-accepted", "the host key was not accepted")
                .why("only `yes` accepts it"))
        }
        Ok(None) | Err(_) => Err(Trouble::usage(format!("a person has to accept the host key of {host}"))
            .why(format!("there is no terminal to ask on; it shows {kind} {key}"))
            .remedy(format!("compare with its console, then add --host-key {key}"))),
    }
}

fn server_address(text: &str) -> std::result::Result<String, String> {
    check_address(text).map(|()| text.to_string()).map_err(|error| error.to_string())
}

fn passed(screen: &Screen, check: &MachineCheck, host: &str) -> Result<()> {
    let Some(error) = check.findings.iter().find(|finding| finding.level == "error") else { return Ok(()) };
    if screen.json {
        screen.json_line(check)?;
    }
    let trouble = Trouble::local(Exit::Failed, "machine", format!("{host} cannot be a proxy as it is: {}", error.what));
    Err(match &error.remedy {
        Some(remedy) => trouble.remedy(remedy),
        None => trouble,
    })
}

/// Whether the changes are accepted. With `--json` nobody is asked: who did not say so beforehand gets the plan, and nothing is changed.
fn confirm<P: Serialize>(screen: &Screen, yes: bool, plan: &P, question: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    if screen.json {
        screen.json_line(plan)?;
        return Err(Trouble::usage("nothing was changed: with --json nobody is asked")
            .remedy("read the changes on stdout, then add --yes"));
    }
    match terminal::ask_line(&format!("{question} [yes/no]")) {
        Ok(Some(answer)) if answer.trim() == "yes" => Ok(()),
        Ok(Some(_)) => {
            Err(Trouble::local(Exit::Failed, "not-accepted", "nothing was changed").why("only `yes` accepts it"))
        }
        Ok(None) | Err(_) => {
            Err(Trouble::usage("a person has to accept the changes, and there is no terminal to ask on")
                .remedy("read the list above, then add --yes"))
        }
    }
}

/// A managed server after work on its machine.
#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    server: Box<ManagedServer>,
    /// What is left to be done by hand.
    warnings: Vec<String>,
}

/// Has it done, and shows each step; the server as it is then.
async fn follow<B: Serialize>(client: &Client, screen: &Screen, path: &str, body: &B) -> Result<Option<Done>> {
    let mut lines = pin!(client.post_lines::<ManagedLine, B>(path, body).await?);
    let mut warnings = Vec::new();
    while let Some(line) = lines.next().await {
        match line? {
            ManagedLine::Step { step, outcome, detail } => {
                if let Some(text) = managed::step(&step, &outcome, &detail, &screen.look()) {
                    screen.remark(&text);
                }
                if outcome == "warning" {
                    warnings.push(detail);
                }
            }
            ManagedLine::Done { server } => return Ok(server.map(|server| Done { server, warnings })),
            ManagedLine::Failed(problem) => {
                return Err(Trouble { exit: Exit::Failed, problem: Some(Box::new(problem)) });
            }
        }
    }
    Err(Trouble::local(Exit::Unreachable, "stream-ended", "the backup server went away in the middle")
        .why("whether the machine was changed is not known")
        .remedy("see `lull managed-server list`; `lull managed-server repair NAME` finishes what was begun"))
}
