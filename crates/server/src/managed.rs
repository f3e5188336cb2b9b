//! Makes managed servers of machines, and takes that back. The server knows no SSH: its own proxy does what is done there, and this
//! sees to the rest: who may be disturbed when, the token, the way back over which the new proxy comes, and what is kept.
//!
//! A login goes with one request: it is handed on and forgotten. Work goes on when whoever asked for it is gone.

pub mod login;

use crate::proxies::ProxyLink;
use crate::proxies::joining::{self, TOKEN_LIFE, TokenFor};
use crate::server::Server;
use crate::store::StoreError;
use crate::store::duties::Duty;
use crate::store::infrastructure::ServerRow;
use lull_api::Problem;
use lull_api::managed::{Machine, MachineCheck, MachineFinding, ManagedLine, ShownHostKey};
use lull_engine::ids::ServerId;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::manage_event::Event;
use lull_proxy_wire::v1::manage_order::Work;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::UnboundedSender;

/// Tasks that a proxy works on have so long to end before it is touched.
const DRAIN_MS_MAX: u64 = 3_600_000;

/// Whoever follows the work; may be gone.
#[derive(Clone)]
pub struct Lines(pub UnboundedSender<ManagedLine>);

impl Lines {
    fn step(&self, step: &str, outcome: &str, detail: impl Into<String>) {
        let (step, outcome) = (step.to_string(), outcome.to_string());
        let _ = self.0.send(ManagedLine::Step { step, outcome, detail: detail.into() });
    }
}

/// A machine and this request's login to it.
pub struct Reached {
    /// How it is to be set up.
    pub machine: Machine,
    /// The login.
    pub credential: v1::Credential,
}

/// While it lives, nobody else changes this machine.
pub struct Turn {
    server: Arc<Server>,
    place: String,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.server.managing.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.place);
    }
}

/// Takes the machine's turn.
pub fn turn(server: &Arc<Server>, machine: &Machine) -> Result<Turn, Problem> {
    let place = format!("{} port {}", machine.host, machine.port);
    let free = server.managing.lock().unwrap_or_else(PoisonError::into_inner).insert(place.clone());
    match free {
        true => Ok(Turn { server: server.clone(), place }),
        false => {
            let what = format!("{place} is being changed by another request already");
            Err(Problem::new(409, "busy", what).remedy("wait until that one is over"))
        }
    }
}

/// `HOST:PORT` of this server for a machine: what was given, else the address from which it reaches that machine.
pub async fn own_address(server: &Server, given: Option<&str>, host: &str, port: u16) -> Result<String, Problem> {
    let Some(listens) = server.proxy_address else {
        let what = "this backup server does not listen for proxies on other machines";
        return Err(Problem::new(409, "no-proxy-port", what).remedy("start it without --proxy-listen none"));
    };
    if let Some(given) = given {
        let bare_v6 = given.parse::<Ipv6Addr>().is_ok();
        let has_port = !bare_v6 && given.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        return Ok(match (has_port, bare_v6) {
            (true, _) => given.to_string(),
            (false, true) => format!("[{given}]:{}", listens.port()),
            (false, false) => format!("{given}:{}", listens.port()),
        });
    }
    let ours = if listens.ip().is_unspecified() { way_to(host, port).await } else { Some(listens.ip()) };
    let ours = ours.ok_or_else(|| {
        Problem::new(409, "no-way", format!("there is no way from this backup server to {host}"))
            .remedy("correct the name or address of the machine")
    })?;
    Ok(SocketAddr::new(ours, listens.port()).to_string())
}

/// The address that this machine has on the way there. Nothing is sent.
async fn way_to(host: &str, port: u16) -> Option<IpAddr> {
    for to in tokio::net::lookup_host((host, port)).await.ok()? {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let Ok(socket) = UdpSocket::bind((any, 0)).await else { continue };
        if socket.connect(to).await.is_ok() {
            return socket.local_addr().ok().map(|address| address.ip());
        }
    }
    None
}

/// Has the own proxy do it; what it tells goes to `told`.
async fn call(
    server: &Server,
    order: v1::ManageOrder,
    mut told: impl FnMut(Event),
) -> Result<v1::MachineDone, Problem> {
    let broken = |why: String| {
        Problem::new(500, "own-proxy-failed", "the backup server's own proxy broke off").why(why).remedy("see its log")
    };
    let own = server.proxies.backup_server().ok_or_else(|| broken("there is none".into()))?;
    let mut client = own.client().map_err(|status| broken(status.message().into()))?;
    let mut events = match client.manage_server(order).await {
        Ok(events) => events.into_inner(),
        Err(status) if status.code() == tonic::Code::InvalidArgument => {
            return Err(Problem::new(422, "bad-value", status.message().to_string()));
        }
        Err(status) => return Err(broken(status.message().into())),
    };
    loop {
        match events.message().await {
            Ok(Some(v1::ManageEvent { event: Some(Event::Done(done)) })) if done.failure.is_empty() => return Ok(done),
            Ok(Some(v1::ManageEvent { event: Some(Event::Done(done)) })) => {
                let code = if done.refused_key.is_empty() { "machine" } else { "host-key" };
                return Err(Problem::new(409, code, done.failure).remedy(done.remedy));
            }
            Ok(Some(v1::ManageEvent { event: Some(event) })) => told(event),
            Ok(Some(_)) => {}
            Ok(None) => return Err(broken("it did not say how it ended".into())),
            Err(status) => return Err(broken(status.message().into())),
        }
    }
}

async fn order(server: &Server, reached: &Reached, work: Work) -> Result<v1::ManageOrder, StoreError> {
    let hypervisors = server.store.hosts().await?.into_iter();
    let hypervisors =
        hypervisors.map(|host| v1::HypervisorFolders { sockets_dir: host.qemu_dir, fleecing_dir: host.fleecing_dir });
    let repositories = server.store.repositories().await?.into_iter().map(|repository| repository.path);
    let Machine { host, port, host_key, server_address, slots, .. } = &reached.machine;
    let pinned = v1::HostKey { fingerprint: host_key.clone(), ..Default::default() };
    Ok(v1::ManageOrder {
        machine: Some(v1::GuestTarget {
            endpoints: vec![v1::Endpoint { host: host.clone(), port: (*port).into() }],
            credential: Some(reached.credential.clone()),
            host_keys: if host_key.is_empty() { vec![] } else { vec![pinned] },
        }),
        settings: Some(v1::MachineSettings {
            server_address: server_address.clone(),
            authority: server.authority.fingerprint().to_vec(),
            slots: *slots,
            hypervisors: hypervisors.collect(),
            repositories: repositories.collect(),
        }),
        work: Some(work),
    })
}

/// Does a piece of work on a machine; its steps are told.
async fn on_machine(server: &Server, reached: &Reached, work: Work, lines: &Lines) -> Result<v1::MachineDone, Problem> {
    let order = order(server, reached, work).await.map_err(stored)?;
    call(server, order, |event| {
        if let Event::Step(step) = event {
            lines.step(&step.step, &step.outcome, step.detail);
        }
    })
    .await
}

/// The host key that a machine shows. Nothing secret is sent to it.
pub async fn host_key(server: &Server, host: &str, port: u16) -> Result<ShownHostKey, Problem> {
    let login = v1::credential::Login::Password(String::new());
    let order = v1::ManageOrder {
        machine: Some(v1::GuestTarget {
            endpoints: vec![v1::Endpoint { host: host.into(), port: port.into() }],
            credential: Some(v1::Credential { user: "nobody".into(), login: Some(login), ..Default::default() }),
            host_keys: vec![],
        }),
        settings: None,
        work: Some(Work::ShowHostKey(v1::ShowHostKey {})),
    };
    let mut shown = None;
    call(server, order, |event| {
        if let Event::HostKey(key) = event {
            shown = Some(ShownHostKey { algorithm: key.algorithm, fingerprint: key.fingerprint });
        }
    })
    .await?;
    shown.ok_or_else(|| Problem::new(409, "machine", format!("{host} showed no host key")))
}

/// Looks at a machine.
pub async fn check(server: &Server, reached: &Reached, is_ours: bool) -> Result<MachineCheck, Problem> {
    let order = order(server, reached, Work::Check(v1::CheckMachine { is_ours })).await.map_err(stored)?;
    let mut seen = None;
    call(server, order, |event| {
        if let Event::Report(report) = event {
            seen = Some(report);
        }
    })
    .await?;
    let report = seen.ok_or_else(|| Problem::new(500, "own-proxy-failed", "the look at the machine told nothing"))?;
    let finding = |f: v1::MachineFinding| MachineFinding {
        check: f.check,
        level: f.level,
        what: f.what,
        remedy: Some(f.remedy).filter(|remedy| !remedy.is_empty()),
    };
    let findings: Vec<MachineFinding> = report.findings.into_iter().map(finding).collect();
    Ok(MachineCheck {
        hostname: report.hostname,
        server_address: reached.machine.server_address.clone(),
        passed: findings.iter().all(|finding| finding.level != "error"),
        findings,
        changes: report.changes,
    })
}

/// Makes a managed server of a machine. What was done there is undone where it fails.
pub async fn add(server: &Arc<Server>, name: String, reached: Reached, lines: &Lines) -> Result<ServerRow, Problem> {
    let (token, _) =
        joining::make_token(server, TokenFor::New(Some(name.clone())), TOKEN_LIFE).await.map_err(stored)?;
    let install = v1::InstallProxy { token: token.to_string(), repair: false };
    let installed = on_machine(server, &reached, Work::Install(install), lines).await;
    let row = server.store.servers().await.map_err(stored)?.into_iter().find(|row| row.name == name);
    let (done, row) = match (installed, row) {
        (Ok(done), Some(row)) => (done, row),
        (installed, row) => {
            // It joined before something else failed.
            if let Some(row) = row {
                forget(server, &row).await?;
            }
            return Err(installed
                .err()
                .unwrap_or_else(|| Problem::new(500, "internal", "the machine joined as nobody")));
        }
    };
    let is_service = done.service;
    installed_there(server, &row, &reached, done).await?;
    if is_service && let Err(problem) = comes_online(server, &row, None, lines).await {
        lines.step("undo", "started", "");
        let cleared = on_machine(server, &reached, Work::Remove(v1::RemoveProxy {}), lines).await;
        forget(server, &row).await?;
        let undone = match cleared {
            Ok(_) => "everything was undone".to_string(),
            Err(undo) => format!("it could not all be undone: {}", undo.what),
        };
        lines.step("undo", "ok", &undone);
        let what = format!("{}; {undone}", problem.what);
        return Err(Problem { what, ..problem });
    }
    Ok(row)
}

/// Remembers how the machine is entered, and how the proxy runs there.
async fn installed_there(
    server: &Server,
    row: &ServerRow,
    reached: &Reached,
    done: v1::MachineDone,
) -> Result<(), Problem> {
    let mut machine = reached.machine.clone();
    (machine.service, machine.run_instead) = (done.service, Some(done.run_instead).filter(|run| !run.is_empty()));
    server.store.set_machine(row.id, &machine).await.map_err(stored)
}

/// Puts back what is missing or broken: program, identity, unit.
pub async fn repair(
    server: &Arc<Server>,
    row: ServerRow,
    reached: Reached,
    lines: &Lines,
) -> Result<Option<ServerRow>, Problem> {
    let token = joining::make_token(server, TokenFor::Again(row.clone()), TOKEN_LIFE).await;
    let install = v1::InstallProxy { token: token.map_err(stored)?.0.to_string(), repair: true };
    drained(server, &row, lines, async {
        let done = on_machine(server, &reached, Work::Install(install), lines).await?;
        let (is_service, run_instead) = (done.service, done.run_instead.clone());
        installed_there(server, &row, &reached, done).await?;
        if is_service {
            return comes_online(server, &row, None, lines).await;
        }
        lines.step("service", "warning", format!("no proxy runs there now; start it: {run_instead}"));
        Ok(())
    })
    .await?;
    Ok(Some(row))
}

/// This server's own program takes the place of the one there.
pub async fn upgrade(
    server: &Arc<Server>,
    row: ServerRow,
    reached: Reached,
    lines: &Lines,
) -> Result<Option<ServerRow>, Problem> {
    drained(server, &row, lines, async {
        let before = link(server, &row).map(|link| link.health().incarnation);
        let done = on_machine(server, &reached, Work::Upgrade(v1::UpgradeProxy {}), lines).await?;
        match done.service {
            true => comes_online(server, &row, before, lines).await,
            false => {
                lines.step(
                    "service",
                    "warning",
                    format!("end the proxy there and start it again: {}", done.run_instead),
                );
                Ok(())
            }
        }
    })
    .await?;
    Ok(Some(row))
}

/// Leaves nothing there, then nothing here.
pub async fn remove(
    server: &Arc<Server>,
    row: ServerRow,
    reached: Reached,
    lines: &Lines,
) -> Result<Option<ServerRow>, Problem> {
    drained(server, &row, lines, async {
        on_machine(server, &reached, Work::Remove(v1::RemoveProxy {}), lines).await.map(drop)
    })
    .await?;
    forget(server, &row).await?;
    Ok(None)
}

/// It is no longer in the backup infrastructure.
async fn forget(server: &Server, row: &ServerRow) -> Result<(), Problem> {
    match server.store.remove_server(row.id).await {
        Ok(()) | Err(StoreError::Missing { .. }) => {}
        Err(error) => return Err(stored(error)),
    }
    server.proxies.remove(row.id);
    server.wake.notify_one();
    Ok(())
}

fn link(server: &Server, row: &ServerRow) -> Option<Arc<ProxyLink>> {
    server.proxies.get(ServerId(row.id))
}

/// Does `work` while the proxy has no tasks and gets none.
async fn drained(
    server: &Server,
    row: &ServerRow,
    lines: &Lines,
    work: impl Future<Output = Result<(), Problem>>,
) -> Result<(), Problem> {
    let said = server.store.server_duties().await.map_err(stored)?.remove(&row.id).unwrap_or_default();
    if said.duty == Duty::Enabled {
        let mut draining = said;
        draining.duty = Duty::Draining;
        server.store.set_server_duty(row.id, draining).await.map_err(stored)?;
    }
    let done = match idle(server, row, lines).await {
        Ok(()) => work.await,
        Err(problem) => Err(problem),
    };
    match server.store.set_server_duty(row.id, said).await {
        Ok(()) | Err(StoreError::Missing { .. }) => {}
        Err(error) => return Err(stored(error)),
    }
    server.wake.notify_one();
    done
}

/// Waits until the proxy has no tasks. One that is away has none that could be waited for.
async fn idle(server: &Server, row: &ServerRow, lines: &Lines) -> Result<(), Problem> {
    let tasks = || server.proxies.running(row.id);
    let is_online = || link(server, row).is_some_and(|link| link.health().online);
    if tasks() == 0 || !is_online() {
        return Ok(());
    }
    lines.step("drain", "started", format!("{} works on {} tasks; their end is waited for", row.name, tasks()));
    let waited = async {
        while tasks() > 0 && is_online() {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    match tokio::time::timeout(Duration::from_millis(DRAIN_MS_MAX), waited).await {
        Ok(()) => {
            lines.step("drain", "ok", "");
            Ok(())
        }
        Err(_) => {
            let what = format!(
                "{} still works on {} tasks after {} min; nothing was changed",
                row.name,
                tasks(),
                DRAIN_MS_MAX / 60_000
            );
            lines.step("drain", "failed", &what);
            Err(Problem::new(409, "in-use", what)
                .remedy(format!("try again later, or take them away from it: lull proxy revoke {}", row.name)))
        }
    }
}

/// Waits until the proxy has come, as another process than `before`.
async fn comes_online(server: &Server, row: &ServerRow, before: Option<String>, lines: &Lines) -> Result<(), Problem> {
    lines.step("online", "started", "");
    let coming = async {
        let link = link(server, row)?;
        loop {
            let process = link.answers_again().await;
            if Some(&process) != before.as_ref() {
                return Some(link);
            }
        }
    };
    match tokio::time::timeout(Duration::from_millis(server.pace.come_ms), coming).await {
        Ok(Some(link)) => {
            let known = link.health().last_known;
            let networks = known.networks.join(", ");
            lines.step(
                "online",
                "ok",
                format!("{} slots, {}; networks: {networks}", known.slots, known.channels.join(", ")),
            );
            Ok(())
        }
        _ => {
            let trouble = link(server, row).and_then(|link| link.health().trouble);
            let why = trouble.map(|trouble| format!(": {trouble}")).unwrap_or_default();
            let what = format!("{} did not come online within {} s{why}", row.name, server.pace.come_ms / 1_000);
            lines.step("online", "failed", &what);
            Err(Problem::new(409, "offline", what)
                .remedy("see its log there (journalctl -u lull-proxy), and whether a firewall is in the way to this server's port for proxies"))
        }
    }
}

/// What the database said.
fn stored(error: StoreError) -> Problem {
    tracing::error!(error = &error as &dyn std::error::Error, "work on a managed server failed");
    Problem::new(500, "internal", error.to_string())
}
