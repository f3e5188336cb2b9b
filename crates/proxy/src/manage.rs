//! Makes a proxy of another Linux machine, and takes that back: over a login that belongs to the one request.
//!
//! Each piece of work is a few scripts over one SSH connection; [`script`] has them, [`unit`] what is put there, [`facts`] what a look at
//! the machine means. A new installation that fails removes all that it put there. Runs in the backup server's own proxy only: what it
//! installs is the program that runs. Knows nothing of what the server keeps of a managed server.

mod facts;
mod script;
pub mod unit;

use crate::access::{BadOrder, GuestAccess};
use crate::carried::Payload;
use crate::channel::{ChannelError, Exit, FailureKind, GuestChannel, Hop, Limits, Script, nonce};
use crate::ssh::{self, SshChannel};
use facts::{Expected, Facts};
use lull_proxy_wire::token::hex;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::manage_event::Event;
use lull_proxy_wire::v1::manage_order::Work;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::UnboundedSender;

/// A look, a unit written.
const SHORT: Duration = Duration::from_secs(60);
/// The program over a slow line.
const TRANSFER: Duration = Duration::from_secs(1_800);
/// A proxy that ends lets its guests return first.
const ENDING: Duration = Duration::from_secs(240);
/// This program, whatever became of its file.
const OURSELVES: &str = "/proc/self/exe";

/// A piece of work that failed: a sentence, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    what: String,
    remedy: String,
    refused_key: String,
}

impl Failure {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Failure { what: what.into(), remedy: remedy.into(), refused_key: String::new() }
    }
}

/// The same words as for a guest, with a remedy for somebody who stands before a command line.
fn of_channel(error: ChannelError) -> Failure {
    let remedy = match (error.hop, error.kind) {
        (_, FailureKind::HostKey) => {
            "compare the fingerprint on the machine's console (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub); where it is right, \
             give it with --host-key; where not, somebody else answers at this address"
        }
        (Hop::Login, FailureKind::Refused) => {
            "give the account and its password or key that the machine takes; it was tried once, a locked account is not our doing"
        }
        (Hop::Elevation, FailureKind::Refused) => {
            "log in as root, or give the password that sudo or su asks for: --sudo, --sudo-nopasswd or --su with --elevation-password-file"
        }
        (Hop::Login | Hop::Elevation, FailureKind::Unknown) => {
            "see the machine's authentication log before you try again"
        }
        (Hop::Name, _) => "correct the name, or give the machine's IP address",
        (Hop::Route | Hop::Port, _) => {
            "see whether the machine runs, whether sshd listens there, and whether a firewall is between; --port sets the port"
        }
        _ => error.remedy.as_str(),
    };
    let refused_key = error.refused_key.as_ref().map(|key| key.fingerprint.clone()).unwrap_or_default();
    Failure { what: error.what.clone(), remedy: remedy.into(), refused_key }
}

/// Who listens. Nobody need: the work goes on.
#[derive(Clone)]
pub struct Teller(UnboundedSender<v1::ManageEvent>);

impl Teller {
    /// Tells through this channel.
    pub fn new(to: UnboundedSender<v1::ManageEvent>) -> Self {
        Teller(to)
    }

    fn tell(&self, event: Event) {
        let _ = self.0.send(v1::ManageEvent { event: Some(event) });
    }

    fn step(&self, step: &str, outcome: &str, detail: impl Into<String>) {
        let (step, outcome) = (step.into(), outcome.into());
        self.tell(Event::Step(v1::MachineStep { step, outcome, detail: detail.into() }));
    }
}

/// An order that was read.
pub struct Order {
    access: GuestAccess,
    settings: v1::MachineSettings,
    work: Work,
}

impl Order {
    /// Reads and checks one.
    pub fn from_wire(order: v1::ManageOrder) -> Result<Order, BadOrder> {
        let bad = |what: &str| BadOrder(format!("the order {what}"));
        let work = order.work.ok_or_else(|| bad("does not say what to do"))?;
        let machine = order.machine.ok_or_else(|| bad("names no machine"))?;
        let host = machine.endpoints.first().map(|endpoint| endpoint.host.clone()).unwrap_or_default();
        let access = GuestAccess::from_wire(&host, machine)?;
        if access.host_keys.is_empty() && !matches!(work, Work::ShowHostKey(_)) {
            return Err(bad("has no host key that a person accepted"));
        }
        let settings = order.settings.unwrap_or_default();
        if !can_be_argument(&settings.server_address) && matches!(work, Work::Check(_) | Work::Install(_)) {
            return Err(bad("has no address of the backup server"));
        }
        Ok(Order { access, settings, work })
    }
}

/// `HOST:PORT` as a word of a script: nothing that a shell could read otherwise.
fn can_be_argument(address: &str) -> bool {
    !address.is_empty()
        && address.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_' | '[' | ']' | '%'))
}

/// Does it, and says how it ended.
pub async fn run(order: Order, teller: Teller) {
    let Order { access, settings, work } = order;
    let done = match work {
        Work::ShowHostKey(_) => show_host_key(&access, &teller).await,
        work => match connect(&access, &teller).await {
            Err(failure) => Err(failure),
            Ok(channel) => {
                let done = match work {
                    Work::Check(check) => check_machine(&channel, &settings, check.is_ours, &teller).await,
                    Work::Install(install) => self::install(&access, &channel, &settings, &install, &teller).await,
                    Work::Upgrade(_) => upgrade(&channel, &settings, &teller).await,
                    Work::Remove(_) => remove(&channel, &teller).await,
                    Work::ShowHostKey(_) => Ok(v1::MachineDone::default()),
                };
                channel.close().await;
                done
            }
        },
    };
    let done = done.unwrap_or_else(|Failure { what, remedy, refused_key }| v1::MachineDone {
        failure: what,
        remedy,
        refused_key,
        ..Default::default()
    });
    teller.tell(Event::Done(done));
}

async fn show_host_key(access: &GuestAccess, teller: &Teller) -> Result<v1::MachineDone, Failure> {
    let key = ssh::host_key_of(access).await.map_err(of_channel)?;
    teller.tell(Event::HostKey(key.into()));
    Ok(v1::MachineDone::default())
}

async fn connect(access: &GuestAccess, teller: &Teller) -> Result<SshChannel, Failure> {
    teller.step("connect", "started", "");
    match ssh::connect(access).await.map_err(of_channel) {
        Ok(channel) => {
            teller.step("connect", "ok", channel.describe());
            Ok(channel)
        }
        Err(failure) => {
            teller.step("connect", "failed", &failure.what);
            Err(failure)
        }
    }
}

/// This program, to be sent.
async fn ourselves() -> Result<Payload, Failure> {
    let read = tokio::task::spawn_blocking(|| std::fs::read(OURSELVES).map(Payload::new)).await;
    let failed = |why: String| {
        Failure::new(
            format!("the backup server's own program cannot be read: {why}"),
            "install the backup server again",
        )
    };
    read.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
}

/// Runs a script that came to its end by itself; what it printed.
async fn sh(channel: &SshChannel, purpose: &'static str, script: &str, timeout: Duration) -> Result<String, Failure> {
    ended_well(run_script(channel, &script::shell(purpose), script.as_bytes(), timeout).await?, purpose)
}

async fn run_script(
    channel: &SshChannel,
    script: &Script,
    stdin: &[u8],
    timeout: Duration,
) -> Result<(Exit, String), Failure> {
    let limits = Limits { timeout, ..Limits::default() };
    let output = channel.exec_elevated(script, stdin, limits).await.map_err(of_channel)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = if said.trim().is_empty() { output.stderr } else { said };
    Ok((output.exit, said))
}

fn ended_well((exit, said): (Exit, String), purpose: &str) -> Result<String, Failure> {
    match exit {
        Exit::Code(0) => Ok(said),
        exit => Err(Failure::new(
            format!("the machine did not {purpose} ({exit}): {}", one_line(&said)),
            "see these words; what is in the way there must be mended there",
        )),
    }
}

/// The end of it, as one line.
fn one_line(said: &str) -> String {
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let from = words.char_indices().rev().nth(600).map_or(0, |(at, _)| at);
    words[from..].to_string()
}

async fn look(channel: &SshChannel, settings: &v1::MachineSettings) -> Result<(Facts, u64), Failure> {
    let folders: Vec<String> = settings.hypervisors.iter().map(|host| host.sockets_dir.clone()).collect();
    let said = sh(channel, "tell what it is", &script::look(&folders), SHORT).await?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok((Facts::read(&said), now_s))
}

async fn check_machine(
    channel: &SshChannel,
    settings: &v1::MachineSettings,
    is_ours: bool,
    teller: &Teller,
) -> Result<v1::MachineDone, Failure> {
    let program = ourselves().await?;
    let (facts, now_s) = look(channel, settings).await?;
    let expected = Expected { settings, is_ours, program_kib: program.bytes.len() as u64 >> 10, now_s };
    let mut findings = facts::of_look(&facts, &expected);
    if findings.iter().all(|finding| finding.level != "error") {
        teller.step("trial", "started", "");
        let token = nonce();
        let authority = hex(&settings.authority);
        let script = script::trial(&token, program.bytes.len(), &program.sha256, &settings.server_address, &authority);
        let (_, said) = run_script(channel, &script, &program.bytes, TRANSFER).await?;
        teller.step("trial", "ok", "");
        findings.extend(facts::of_trial(&said, &settings.server_address));
    }
    let program_mib = program.bytes.len() as u64 >> 20;
    teller.tell(Event::Report(v1::MachineReport {
        changes: facts::changes(&facts, settings, is_ours, program_mib),
        findings,
        hostname: facts.first("hostname").into(),
    }));
    Ok(v1::MachineDone { service: facts.has_systemd(), ..Default::default() })
}

/// A step of an installation, told.
async fn step<T>(
    teller: &Teller,
    name: &str,
    detail: impl FnOnce(&T) -> String,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    teller.step(name, "started", "");
    let done = work.await;
    match &done {
        Ok(value) => teller.step(name, "ok", detail(value)),
        Err(failure) => teller.step(name, "failed", &failure.what),
    }
    done
}

async fn install(
    access: &GuestAccess,
    channel: &SshChannel,
    settings: &v1::MachineSettings,
    order: &v1::InstallProxy,
    teller: &Teller,
) -> Result<v1::MachineDone, Failure> {
    let (facts, _) = look(channel, settings).await?;
    if !order.repair && !facts.first("ours").is_empty() {
        // Between the check and now somebody else was here: nothing of theirs may be undone as ours.
        return Err(Failure::new(
            format!("a Lull proxy is installed there already: {}", facts.first("ours")),
            "where it is one of this backup server's: lull managed-server repair NAME",
        ));
    }
    match put_all(channel, settings, order, &facts, teller).await {
        Ok(()) => Ok(v1::MachineDone {
            service: facts.has_systemd(),
            run_instead: if facts.has_systemd() { String::new() } else { unit::command(settings.slots) },
            ..Default::default()
        }),
        Err(failure) if order.repair => Err(failure),
        Err(mut failure) => {
            let undone =
                step(teller, "undo", |done: &v1::MachineDone| undone_words(&done.left), undo(access, channel)).await;
            match undone {
                Ok(done) if done.left.is_empty() => failure.what.push_str("; everything was undone"),
                Ok(done) => failure.what.push_str(&format!("; this is still there: {}", done.left.join(", "))),
                Err(undo) => failure.what.push_str(&format!("; it could not be undone: {}", undo.what)),
            }
            Err(failure)
        }
    }
}

/// Removes what was put there. Where the connection broke, over another one: the login was accepted before.
async fn undo(access: &GuestAccess, channel: &SshChannel) -> Result<v1::MachineDone, Failure> {
    if let Ok(done) = clear(channel).await {
        return Ok(done);
    }
    let again = ssh::connect(access).await.map_err(of_channel)?;
    let done = clear(&again).await;
    again.close().await;
    done
}

fn undone_words(left: &[String]) -> String {
    if left.is_empty() { "nothing is left".into() } else { format!("still there: {}", left.join(", ")) }
}

async fn put_all(
    channel: &SshChannel,
    settings: &v1::MachineSettings,
    order: &v1::InstallProxy,
    facts: &Facts,
    teller: &Teller,
) -> Result<(), Failure> {
    put_program(channel, teller).await?;
    if let Some(process) = facts.ends_for_good() {
        teller.step("stop", "warning", format!("the running proxy (process {process}) is ended"));
    }
    step(teller, "join", |_| settings.server_address.clone(), async {
        let join = script::join(&settings.server_address, &order.token);
        sh(channel, "join the backup server", &join, ENDING).await?;
        sh(channel, "clean up", &script::forget_before(), SHORT).await
    })
    .await?;
    if facts.has_systemd() {
        let unit = unit::unit_file(&facts.unit_settings(settings));
        let detail = |_: &String| format!("{} is enabled and runs", unit::UNIT);
        step(teller, "service", detail, sh(channel, "start the service", &script::start_service(&unit), ENDING))
            .await?;
    }
    Ok(())
}

/// Puts the program in its place; the one before stays beside it.
async fn put_program(channel: &SshChannel, teller: &Teller) -> Result<(), Failure> {
    step(teller, "program", |version: &String| format!("{}: {version}", unit::PROGRAM), async {
        let program = ourselves().await?;
        let put = script::put_program(program.bytes.len(), &program.sha256);
        let (_, said) = run_script(channel, &put, &program.bytes, TRANSFER).await?;
        let facts = Facts::read(&said);
        let version = match (facts.first("version").split_once(' '), facts.first("failed")) {
            (Some(("0", version)), _) => version.to_string(),
            (Some((code, words)), _) => {
                return Err(Failure::new(
                    format!("the program does not run there (exit code {code}): {words}"),
                    "the machine's C library is older than it needs, or a policy forbids programs",
                ));
            }
            (None, why) => {
                let why = if why.is_empty() { one_line(&said) } else { why.to_string() };
                return Err(Failure::new(
                    format!("the program could not be written to {}: {why}", unit::PROGRAM),
                    "make room there, or make the folder writable",
                ));
            }
        };
        sh(channel, "put the program in its place", &script::swap_program(), SHORT).await?;
        Ok(version)
    })
    .await
    .map(drop)
}

async fn upgrade(
    channel: &SshChannel,
    settings: &v1::MachineSettings,
    teller: &Teller,
) -> Result<v1::MachineDone, Failure> {
    let (facts, _) = look(channel, settings).await?;
    if facts.first("joined").is_empty() {
        return Err(Failure::new(
            "there is no Lull proxy on this machine",
            "put it back: lull managed-server repair NAME",
        ));
    }
    put_program(channel, teller).await?;
    let restarted = match facts.has_systemd() {
        false => Ok(String::new()),
        true => {
            let script = script::restart_service();
            let restart = sh(channel, "start the service", &script, ENDING);
            step(teller, "service", |_| format!("{} runs again", unit::UNIT), restart).await
        }
    };
    if let Err(mut failure) = restarted {
        let script = script::swap_back();
        let back = sh(channel, "take the program before again", &script, ENDING);
        match step(teller, "undo", |_| "the program before runs again".into(), back).await {
            Ok(_) => failure.what.push_str("; the program before runs again"),
            Err(undo) => failure.what.push_str(&format!("; nor does the one before: {}", undo.what)),
        }
        return Err(failure);
    }
    sh(channel, "clean up", &script::forget_before(), SHORT).await?;
    let run_instead = if facts.has_systemd() { String::new() } else { unit::command(settings.slots) };
    Ok(v1::MachineDone { service: facts.has_systemd(), run_instead, ..Default::default() })
}

async fn remove(channel: &SshChannel, teller: &Teller) -> Result<v1::MachineDone, Failure> {
    let done = step(teller, "remove", |done: &v1::MachineDone| undone_words(&done.left), clear(channel)).await?;
    match done.left.as_slice() {
        [] => Ok(done),
        left => Err(Failure::new(
            format!("not everything could be removed: {}", left.join(", ")),
            "remove it by hand there, then `lull managed-server remove NAME --forget`",
        )),
    }
}

async fn clear(channel: &SshChannel) -> Result<v1::MachineDone, Failure> {
    let said = sh(channel, "remove the proxy", &script::remove(), ENDING).await?;
    let left = said.lines().filter_map(|line| line.strip_prefix("left ")).map(str::to_string).collect();
    Ok(v1::MachineDone { left, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_needs_a_host_key_that_a_person_accepted_and_an_address_without_tricks() {
        let order = |keys: usize, address: &str| v1::ManageOrder {
            machine: Some(v1::GuestTarget {
                endpoints: vec![v1::Endpoint { host: "m1".into(), port: 22 }],
                credential: Some(v1::Credential {
                    user: "root".into(),
                    login: Some(v1::credential::Login::Password("s3cret".into())),
                    ..Default::default()
                }),
                host_keys: vec![v1::HostKey { fingerprint: "SHA256:x".into(), ..Default::default() }; keys],
            }),
            settings: Some(v1::MachineSettings { server_address: address.into(), ..Default::default() }),
            work: Some(Work::Check(v1::CheckMachine { is_ours: false })),
        };
        assert!(Order::from_wire(order(1, "[2001:db8::1]:7421")).is_ok());
        assert!(Order::from_wire(order(0, "backup:7421")).is_err());
        for address in ["", "a;reboot", "$(reboot)", "a b"] {
            assert!(Order::from_wire(order(1, address)).is_err(), "{address}");
        }
    }

    #[test]
    fn what_a_machine_said_is_one_line_of_bounded_length() {
        assert_eq!(one_line(" a\n b\n"), "a b");
        assert_eq!(one_line(&"ü ".repeat(2_000)).chars().count(), 601);
    }
}
