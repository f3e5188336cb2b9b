//! Proxies on other machines: real TLS on loopback, fakes that dial. What they do with tasks.

use crate::fake::Fake;
use crate::harness::{PATIENCE, Place, Server, furnish};
use lull_api::infrastructure::{JoinToken, NewJoinToken, Proxy};
use lull_api::job::GuestSettings;
use lull_api::session::Session;
use lull_engine::failover::FailureClass;
use lull_engine::timeline::Step;
use lull_proxy::join::Name;
use lull_proxy::membership::{Dismissed, Identity, Membership, NewKey, save};
use lull_proxy::{dial, join};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// A machine with a fake proxy that dials.
pub struct Machine {
    pub state: TempDir,
    pub fake: Fake,
    dialling: JoinHandle<Dismissed>,
}

impl Machine {
    /// Joins under the fake's name and dials.
    pub async fn joined(server: &Server, fake: &Fake) -> Machine {
        let state = tempfile::tempdir().unwrap();
        let identity = try_join(server, &token(server, NewJoinToken::default()).await, &fake.name).await.unwrap();
        save(state.path(), &identity, false).unwrap();
        let machine = Machine::with(state, fake);
        seen(server, &fake.name, "online").await;
        machine
    }

    /// Dials with the identity in this folder.
    pub fn with(state: TempDir, fake: &Fake) -> Machine {
        let membership = Arc::new(Membership::open(state.path()).unwrap());
        *fake.membership.lock().unwrap() = Some(membership.clone());
        let serving = fake.clone();
        let dialling = tokio::spawn(async move {
            dial::stay_connected(&membership, |io| {
                let fake = serving.clone();
                async move { fake.serve(io).await }
            })
            .await
        });
        Machine { state, fake: fake.clone(), dialling }
    }

    /// Its connection ends, and it does not dial again.
    pub async fn off(self) -> TempDir {
        self.dialling.abort();
        let _ = self.dialling.await;
        self.state
    }

    /// Dials again, as the same process.
    pub async fn back(state: TempDir, fake: &Fake, server: &Server) -> Machine {
        let identity = Membership::open(state.path()).unwrap().identity();
        save(state.path(), &identity.at(&proxy_address(server)), true).unwrap();
        Machine::with(state, fake)
    }

    /// Waits until the server did without it for good.
    pub async fn dismissed(self) -> Dismissed {
        tokio::time::timeout(PATIENCE, self.dialling).await.unwrap().unwrap()
    }
}

pub fn proxy_address(server: &Server) -> String {
    server.ready.proxy_address.unwrap().to_string()
}

pub async fn token(server: &Server, new: NewJoinToken) -> String {
    let token: JoinToken = server.client.post("/proxies/tokens", &new).await.unwrap();
    assert_eq!(token.port, server.ready.proxy_address.unwrap().port());
    token.token
}

/// Joins with a new key; a refusal in words.
pub async fn try_join(server: &Server, token: &str, name: &str) -> Result<Identity, String> {
    let key = NewKey::make().unwrap();
    join_with(server, token, name, &key).await
}

pub async fn join_with(server: &Server, token: &str, name: &str, key: &NewKey) -> Result<Identity, String> {
    let joined = join::join(&proxy_address(server), &token.parse().unwrap(), &Name::Machine(name.into()), key).await;
    joined.map_err(|error| error.to_string())
}

/// Waits until the proxy is listed in this state.
pub async fn seen(server: &Server, name: &str, state: &str) -> Proxy {
    let since = Instant::now();
    loop {
        let proxies: Vec<Proxy> = server.client.get("/proxies").await.unwrap();
        match proxies.iter().find(|proxy| proxy.name == name) {
            Some(proxy) if proxy.state == state => return proxy.clone(),
            _ => assert!(since.elapsed() < PATIENCE, "{name} did not become {state}: {proxies:#?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the fake has told so much of its task.
pub async fn said(fake: &Fake, events: usize) {
    let since = Instant::now();
    while fake.world.said.load(Ordering::SeqCst) < events {
        assert!(since.elapsed() < PATIENCE, "it did not come so far");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The proxy that was chosen last.
pub fn served_by(session: &Session) -> Option<&str> {
    session.tasks[0].proxy.as_ref()?.chosen.as_deref()
}

/// A server whose own proxy is far from the VM, and a machine in the VM's network.
pub async fn one_remote() -> (Place, Server, Fake, Machine) {
    let (place, own) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&own)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    let near = Fake { networks: vec!["192.0.2.0/24".into()], ..Fake::named("near", false) };
    let machine = Machine::joined(&server, &near).await;
    (place, server, own, machine)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_joined_serves_the_vms_of_its_network() {
    let (_place, server, own, machine) = one_remote().await;
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_eq!(served_by(&session), Some("near"));
    assert_eq!((machine.fake.orders().len(), own.orders().len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_knows_its_proxies_and_they_come_back() {
    let (place, server, own, machine) = one_remote().await;
    let state = machine.off().await;
    server.stop().await.unwrap();
    let server = Server::start(&place.state, std::slice::from_ref(&own)).await;
    let known = seen(&server, "near", "offline").await;
    assert_eq!(known.networks, ["192.0.2.0/24"], "what it said last is known");
    let near = Fake { networks: known.networks, ..Fake::named("near", false) };
    let machine = Machine::back(state, &near, &server).await;
    seen(&server, "near", "online").await;
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(served_by(&session), Some("near"));
    drop(machine);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_proxy_in_mid_task_loses_it_to_another() {
    let (_place, server, own, machine) = one_remote().await;
    machine.fake.set(|script| script.hang_after = Some(9));
    let id = server.run("j").await.summary.id;
    server.until(id, "the proxy works", |s| served_by(s) == Some("near")).await;
    said(&machine.fake, 9).await;
    let _: Proxy = server.client.post("/proxies/near/revoke", &()).await.unwrap();
    let session = server.finished(id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_eq!(served_by(&session), Some("backup-server"));
    assert_eq!(
        own.recoveries().len() + machine.fake.recoveries().len(),
        2,
        "guest and hypervisor, before the next began"
    );
    assert!(own.orders().len() == 1 && own.orders()[0].fence > machine.fake.orders()[0].fence);
    let dismissed = machine.dismissed().await;
    assert!(dismissed.for_good && dismissed.why.contains("revoked"), "{dismissed:?}");
    assert_eq!(seen(&server, "near", "revoked").await.running_tasks, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_no_proxy_reaches_fails_after_each_had_its_turn() {
    let (_place, server, own, machine) = one_remote().await;
    for fake in [&own, &machine.fake] {
        fake.set(|script| script.fail_at = Some((Step::Connect, FailureClass::GuestUnreachable)));
    }
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("failed"));
    assert_eq!((own.orders().len(), machine.fake.orders().len()), (1, 1));
    let failure = session.tasks[0].failure.clone().unwrap();
    assert_eq!((failure.step.as_str(), failure.hop.as_str()), ("connect", "proxy-to-guest"), "{failure:?}");
    assert!(!failure.remedy.is_empty(), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_preferred_servers_the_backup_server_takes_over_or_the_task_fails() {
    let (_place, server, own, machine) = one_remote().await;
    let prefer = |fallback: &str| serde_json::json!({"guest": {"guest_interaction_proxy": "prefer", "preferred_servers": ["near"], "fallback": fallback}});
    server.change("j", prefer("backup-server")).await;
    drop(machine.off().await);
    seen(&server, "near", "offline").await;
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!((session.summary.result.as_deref(), served_by(&session)), (Some("success"), Some("backup-server")));
    server.change("j", prefer("none")).await;
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("failed"));
    let text = session.tasks[0].failure.clone().unwrap().text;
    assert!(text.contains("near") && text.contains("offline since"), "{text}");
    assert_eq!(own.orders().len(), 1);
}
