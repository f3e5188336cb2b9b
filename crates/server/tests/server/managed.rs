//! Managed servers over REST: the backup server's own proxy is a fake that plays another machine, and what it installs there joins and
//! dials for real.

use crate::fake::Fake;
use crate::harness::{PATIENCE, Place, Server};
use futures::StreamExt;
use lull_api::Problem;
use lull_api::client::ClientError;
use lull_api::infrastructure::{Elevation, Proxy, ProxyChange};
use lull_api::managed::{
    AskHostKey, Login, MachineCheck, ManagedLine, ManagedServer, NewManagedServer, ServerWork, ShownHostKey,
};
use lull_proxy::join::Name;
use lull_proxy::membership::{Membership, NewKey, save};
use lull_proxy::{dial, join};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::manage_event::Event;
use lull_proxy_wire::v1::manage_order::Work;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// Another machine: what is done to it, and the proxy on it.
#[derive(Clone, Default)]
pub struct FakeMachine {
    pub orders: Arc<Mutex<Vec<v1::ManageOrder>>>,
    /// The next installation fails with this sentence, after it joined.
    fails: Arc<Mutex<Option<String>>>,
    /// What is installed never dials.
    stays_away: Arc<AtomicBool>,
    /// systemd does not run there.
    no_service: Arc<AtomicBool>,
    state: Arc<Mutex<Option<TempDir>>>,
    dialling: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl FakeMachine {
    pub async fn manage(&self, order: v1::ManageOrder) -> Vec<v1::ManageEvent> {
        self.orders.lock().unwrap().push(order.clone());
        let settings = order.settings.unwrap_or_default();
        let mut events = Vec::new();
        let service = !self.no_service.load(Ordering::SeqCst);
        let run_instead = if service { String::new() } else { format!("lull proxy run --slots {}", settings.slots) };
        let mut done = v1::MachineDone { service, run_instead, ..Default::default() };
        match order.work.unwrap() {
            Work::ShowHostKey(_) => events.push(Event::HostKey(v1::HostKey {
                algorithm: "ssh-ed25519".into(),
                fingerprint: key(),
                public_key: String::new(),
            })),
            Work::Check(_) => events.push(Event::Report(v1::MachineReport {
                findings: vec![v1::MachineFinding {
                    check: "clock".into(),
                    level: "warning".into(),
                    what: "its clock is behind".into(),
                    remedy: String::new(),
                }],
                changes: vec!["put something there".into()],
                hostname: "m1".into(),
            })),
            Work::Install(install) => {
                self.end().await;
                let (state, new) = (tempfile::tempdir().unwrap(), NewKey::make().unwrap());
                let token = install.token.parse().unwrap();
                let identity = join::join(&settings.server_address, &token, &Name::Machine("whatever".into()), &new)
                    .await
                    .unwrap();
                save(state.path(), &identity, true).unwrap();
                *self.state.lock().unwrap() = Some(state);
                match self.fails.lock().unwrap().take() {
                    Some(why) => (done.failure, done.remedy) = (why, "mend it".into()),
                    None => self.dial(),
                }
            }
            Work::Upgrade(_) => {
                self.end().await;
                self.dial();
            }
            Work::Remove(_) => {
                self.end().await;
                *self.state.lock().unwrap() = None;
            }
        }
        events.push(Event::Step(v1::MachineStep { step: "work".into(), outcome: "ok".into(), detail: String::new() }));
        events.push(Event::Done(done));
        events.into_iter().map(|event| v1::ManageEvent { event: Some(event) }).collect()
    }

    /// A process begins that is a proxy.
    fn dial(&self) {
        if self.stays_away.load(Ordering::SeqCst) {
            return;
        }
        let state = self.state.lock().unwrap().as_ref().map(|state| state.path().to_path_buf()).unwrap();
        let membership = Arc::new(Membership::open(&state).unwrap());
        let fake = Fake { networks: vec!["192.0.2.0/24".into()], ..Fake::named("m1", false) };
        *fake.membership.lock().unwrap() = Some(membership.clone());
        *self.dialling.lock().unwrap() = Some(tokio::spawn(async move {
            let serve = |io| {
                let fake = fake.clone();
                async move { fake.serve(io).await }
            };
            dial::stay_connected(&membership, serve).await;
        }));
    }

    async fn end(&self) {
        let dialling = self.dialling.lock().unwrap().take();
        if let Some(dialling) = dialling {
            dialling.abort();
            let _ = dialling.await;
        }
    }

    fn works(&self) -> Vec<&'static str> {
        let name = |order: &v1::ManageOrder| match order.work.as_ref().unwrap() {
            Work::ShowHostKey(_) => "host-key",
            Work::Check(_) => "check",
            Work::Install(v1::InstallProxy { repair: false, .. }) => "install",
            Work::Install(_) => "repair",
            Work::Upgrade(_) => "upgrade",
            Work::Remove(_) => "remove",
        };
        self.orders.lock().unwrap().iter().map(name).collect()
    }
}

fn key() -> String {
    format!("SHA256:{}", "k".repeat(43))
}

fn login() -> Login {
    Login {
        user: "admin".into(),
        password: Some("s3cret-of-admin".into()),
        private_key: None,
        passphrase: None,
        elevation: Elevation::Su,
        elevation_password: Some("s3cret-of-root".into()),
    }
}

fn machine(server: &Server) -> NewManagedServer {
    NewManagedServer {
        kind: "linux".into(),
        name: Some("m1".into()),
        host: "m1.example".into(),
        port: 2222,
        host_key: key(),
        login: login(),
        server_address: Some(server.ready.proxy_address.unwrap().to_string()),
        slots: 3,
    }
}

fn work() -> ServerWork {
    ServerWork { host: None, port: None, host_key: None, login: login(), server_address: None, slots: None }
}

async fn post(
    server: &Server,
    path: &str,
    body: &impl serde::Serialize,
) -> (Vec<String>, Result<Option<Box<ManagedServer>>, Problem>) {
    let lines = server.client.post_lines::<ManagedLine, _>(path, body).await.unwrap();
    let mut lines = std::pin::pin!(lines);
    let mut steps = Vec::new();
    while let Some(line) = lines.next().await {
        match line.unwrap() {
            ManagedLine::Step { step, outcome, .. } if outcome != "started" => steps.push(format!("{step} {outcome}")),
            ManagedLine::Step { .. } => {}
            ManagedLine::Done { server } => return (steps, Ok(server)),
            ManagedLine::Failed(problem) => return (steps, Err(problem)),
        }
    }
    panic!("the answer ended without saying how: {steps:?}");
}

async fn begin() -> (Place, Fake, Server) {
    let (place, own) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&own)).await;
    (place, own, server)
}

async fn names(server: &Server) -> Vec<String> {
    let all: Vec<ManagedServer> = server.client.get("/managed-servers").await.unwrap();
    all.into_iter().map(|server| server.name).collect()
}

fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Problem {
    match answer {
        Err(ClientError::Problem(problem)) => problem,
        other => panic!("not refused: {other:?}"),
    }
}

fn holds(folder: &Path, secret: &str) -> bool {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).any(|path| match path.is_dir() {
        true => holds(&path, secret),
        false => std::fs::read(&path).unwrap().windows(secret.len()).any(|window| window == secret.as_bytes()),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_added_repaired_upgraded_and_removed_and_its_login_is_kept_nowhere() {
    let (place, own, server) = begin().await;
    let shown: ShownHostKey = server
        .client
        .post("/managed-servers/host-key", &AskHostKey { host: "m1.example".into(), port: 2222 })
        .await
        .unwrap();
    assert_eq!(shown.fingerprint, key());
    let check: MachineCheck = server.client.post("/managed-servers/check", &machine(&server)).await.unwrap();
    assert!(check.passed && check.changes.len() == 1 && check.hostname == "m1", "{check:?}");

    let (steps, added) = post(&server, "/managed-servers", &machine(&server)).await;
    assert_eq!(steps, ["work ok", "online ok"]);
    let added = added.unwrap().expect("it is there");
    assert_eq!((added.state.as_str(), added.kind.as_str()), ("online", "linux"));
    assert_eq!(added.networks, ["192.0.2.0/24"]);
    let kept = added.machine.expect("how to come there again");
    assert_eq!((kept.host.as_str(), kept.port, kept.host_key, kept.slots), ("m1.example", 2222, key(), 3));

    // Nothing but the login is said again, and the same host key is asked for.
    let (steps, repaired) = post(&server, "/managed-servers/m1/repair", &work()).await;
    assert_eq!((steps, repaired.unwrap().unwrap().id), (vec!["work ok".into(), "online ok".into()], added.id));
    let (steps, upgraded) = post(&server, "/managed-servers/m1/upgrade", &work()).await;
    assert_eq!(
        (steps, upgraded.unwrap().unwrap().state),
        (vec!["work ok".into(), "online ok".into()], "online".into())
    );
    let orders = own.machine.orders.lock().unwrap().clone();
    for order in orders.iter().skip(1) {
        let target = order.machine.clone().unwrap();
        assert_eq!((target.endpoints[0].port, &target.host_keys[0].fingerprint), (2222, &key()));
        // They did go out, or nothing is shown below.
        assert_eq!(target.credential.unwrap().elevation.unwrap().password, "s3cret-of-root");
    }

    let (_, removed) = post(&server, "/managed-servers/m1/remove", &work()).await;
    assert_eq!(removed.unwrap(), None);
    assert_eq!(names(&server).await, ["backup-server"]);
    assert_eq!(own.machine.works(), ["host-key", "check", "install", "repair", "upgrade", "remove"]);
    server.stop().await.unwrap();
    for secret in ["s3cret-of-admin", "s3cret-of-root", "lull1-"] {
        assert!(!holds(&place.state, secret), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_fails_leaves_no_managed_server() {
    let (_place, own, server) = begin().await;
    *own.machine.fails.lock().unwrap() = Some("the disk is full; everything was undone".into());
    let (_, added) = post(&server, "/managed-servers", &machine(&server)).await;
    let problem = added.unwrap_err();
    assert_eq!(
        (problem.what.as_str(), problem.remedy.as_deref()),
        ("the disk is full; everything was undone", Some("mend it"))
    );
    assert_eq!(names(&server).await, ["backup-server"]);
    // The same name serves again.
    assert!(post(&server, "/managed-servers", &machine(&server)).await.1.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_does_not_come_is_removed_from_its_machine_again() {
    let (_place, own, server) = begin().await;
    own.machine.stays_away.store(true, Ordering::SeqCst);
    let (steps, added) = post(&server, "/managed-servers", &machine(&server)).await;
    let problem = added.unwrap_err();
    assert!(
        problem.what.contains("did not come online within") && problem.what.ends_with("everything was undone"),
        "{problem:?}"
    );
    assert!(problem.remedy.is_some_and(|remedy| remedy.contains("journalctl -u lull-proxy")));
    assert_eq!(steps.last().map(String::as_str), Some("undo ok"), "{steps:?}");
    assert_eq!(own.machine.works(), ["install", "remove"]);
    assert_eq!(names(&server).await, ["backup-server"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_before_anybody_logs_in() {
    let (_place, own, server) = begin().await;
    let ask =
        async |new: NewManagedServer| refused(server.client.post::<serde_json::Value>("/managed-servers", &new).await);
    let windows = ask(NewManagedServer { kind: "windows".into(), ..machine(&server) }).await;
    assert_eq!((windows.status, windows.code.as_str()), (409, "no-windows-yet"));
    let taken = ask(NewManagedServer { name: Some("backup-server".into()), ..machine(&server) }).await;
    assert_eq!(taken.code, "name-taken");
    let no_key = ask(NewManagedServer { host_key: "SHA256:short".into(), ..machine(&server) }).await;
    assert!(no_key.what.starts_with("host_key: "), "{no_key:?}");
    let no_login = ask(NewManagedServer { login: Login { password: None, ..login() }, ..machine(&server) }).await;
    assert!(no_login.what.starts_with("login.password: "), "{no_login:?}");
    let itself =
        refused(server.client.post::<serde_json::Value>("/managed-servers/backup-server/remove", &work()).await);
    assert_eq!(itself.code, "own-proxy");
    assert!(own.machine.works().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_accepted_for_one_machine_counts_for_no_other() {
    let (_place, own, server) = begin().await;
    post(&server, "/managed-servers", &machine(&server)).await.1.unwrap();
    let elsewhere = ServerWork { host: Some("other.example".into()), ..work() };
    let problem = refused(server.client.post::<serde_json::Value>("/managed-servers/m1/repair", &elsewhere).await);
    assert!(problem.what.starts_with("host_key: "), "{problem:?}");
    assert_eq!(own.machine.works(), ["install"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_systemd_every_work_that_ends_the_proxy_says_how_it_starts_again() {
    let (_place, own, server) = begin().await;
    own.machine.no_service.store(true, Ordering::SeqCst);
    post(&server, "/managed-servers", &machine(&server)).await.1.unwrap();
    for path in ["/managed-servers/m1/repair", "/managed-servers/m1/upgrade"] {
        let told: Vec<ManagedLine> =
            server.client.post_lines(path, &work()).await.unwrap().map(|line| line.unwrap()).collect().await;
        let by_hand = told.iter().find_map(|line| match line {
            ManagedLine::Step { step, outcome, detail } if step == "service" && outcome == "warning" => Some(detail),
            _ => None,
        });
        assert!(by_hand.is_some_and(|detail| detail.ends_with("lull proxy run --slots 3")), "{path}: {told:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_administrator_said_of_a_server_holds_after_work_on_it() {
    let (_place, _own, server) = begin().await;
    post(&server, "/managed-servers", &machine(&server)).await.1.unwrap();
    let change = ProxyChange { state: Some("disabled".into()), slots: None };
    let _: Proxy = server.client.patch("/proxies/m1", &change).await.unwrap();
    post(&server, "/managed-servers/m1/upgrade", &work()).await.1.unwrap();
    let since = Instant::now();
    loop {
        let proxies: Vec<Proxy> = server.client.get("/proxies").await.unwrap();
        if proxies.iter().any(|proxy| proxy.name == "m1" && proxy.state == "disabled") {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "{proxies:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
