//! Starts servers in runtimes of their own, so that one can be killed like a process: everything it spawned ends at
//! once, and what it did not write down is gone.

use crate::fake::Fake;
use futures::StreamExt;
use lull_api::Client;
use lull_api::client::ClientError;
use lull_api::infrastructure::{Host, NewCredential, NewHost, NewRepository, Repository, Vm, VmChange};
use lull_api::job::{GuestSettings, NewJob, SavedJob};
use lull_api::session::{EventKind, Session, SessionEvent};
use lull_server::{CatalogPace, Clock, NotifyPace, ProxyPace, Ready, ServerConfig};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// Longest wait for anything in these tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Server {
    runtime: Option<Runtime>,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<oneshot::Receiver<Result<(), String>>>,
    pub ready: Ready,
    pub client: Client,
    pub token: String,
    pub clock: Clock,
}

impl Server {
    /// A server on this state folder with these proxies.
    pub async fn start(state_dir: &Path, fakes: &[Fake]) -> Server {
        Server::try_start(state_dir, fakes).await.unwrap()
    }

    pub async fn try_start(state_dir: &Path, fakes: &[Fake]) -> Result<Server, String> {
        Server::start_at(state_dir, fakes, Clock::system()).await
    }

    /// A server whose schedules go by this clock.
    pub async fn start_at(state_dir: &Path, fakes: &[Fake], clock: Clock) -> Result<Server, String> {
        Server::start_with(state_dir, fakes, clock, CatalogPace::default()).await
    }

    /// A server whose catalog takes so much of the disk, and tries so often.
    pub async fn start_with(
        state_dir: &Path,
        fakes: &[Fake],
        clock: Clock,
        catalog: CatalogPace,
    ) -> Result<Server, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let config = ServerConfig {
            state_dir: state_dir.to_path_buf(),
            listen: "127.0.0.1:0".parse().unwrap(),
            metrics_listen: Some("127.0.0.1:0".parse().unwrap()),
            proxy_listen: Some("127.0.0.1:0".parse().unwrap()),
            proxies: fakes.iter().map(Fake::local).collect(),
            // Who comes back is known by its next heartbeat, two seconds later.
            pace: ProxyPace { return_within_ms: 4_000, gather_ms: 2_000, come_ms: 10_000 },
            clock: clock.clone(),
            notify: NotifyPace { webhook_ms: 500, pauses_ms: vec![100, 200, 300], command_ms: 1_500 },
            catalog,
            ready: Some(ready),
        };
        runtime.spawn(async move {
            let result = lull_server::run(config, async { drop(stopped.await) }).await;
            let _ = end.send(result.map_err(|e| e.to_string()));
        });
        tokio::select! {
            ready = is_ready => match ready {
                Ok(ready) => {
                    let token = std::fs::read_to_string(&ready.token_file).unwrap().trim().to_string();
                    let client = Client::new(&format!("http://{}", ready.address), &token).unwrap();
                    Ok(Server { runtime: Some(runtime), stop: Some(stop), ended: Some(ended), ready, client, token, clock })
                }
                Err(_) => {
                    let error = ended.await.unwrap().unwrap_err();
                    runtime.shutdown_background();
                    Err(error)
                }
            },
        }
    }

    /// Ends everything of it at once, without a word to anybody.
    pub async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5))).await.unwrap();
    }

    /// Asks it to stop and waits for its end.
    pub async fn stop(mut self) -> Result<(), String> {
        let _ = self.stop.take().unwrap().send(());
        let result = tokio::time::timeout(PATIENCE, self.ended.take().unwrap()).await.unwrap().unwrap();
        self.kill().await;
        result
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/api/v1{path}", self.ready.address)
    }

    pub async fn run(&self, job: &str) -> Session {
        self.client.post(&format!("/jobs/{job}/run"), &()).await.unwrap()
    }

    pub async fn session(&self, id: i64) -> Session {
        self.client.get(&format!("/sessions/{id}")).await.unwrap()
    }

    pub async fn change(&self, job: &str, change: serde_json::Value) -> SavedJob {
        self.client.patch(&format!("/jobs/{job}"), &change).await.unwrap()
    }

    pub fn set_clock(&self, now: &str) {
        self.clock.set(now.parse().unwrap());
    }

    /// Waits until there is a session of this number.
    pub async fn begins(&self, id: i64) {
        let since = Instant::now();
        while self.client.get::<Session>(&format!("/sessions/{id}")).await.is_err() {
            assert!(since.elapsed() < PATIENCE, "session {id} did not begin");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until there is a session of this number, and until it is over.
    pub async fn begun(&self, id: i64) -> Session {
        self.begins(id).await;
        self.finished(id).await
    }

    /// Waits until the session is over.
    pub async fn finished(&self, id: i64) -> Session {
        self.until(id, "it is over", |session| session.summary.state == "finished").await
    }

    pub async fn until(&self, id: i64, what: &str, holds: impl Fn(&Session) -> bool) -> Session {
        let since = Instant::now();
        loop {
            let session = self.session(id).await;
            if holds(&session) {
                return session;
            }
            assert!(since.elapsed() < PATIENCE, "session {id} did not come to where {what}: {session:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All stored events of a finished session.
    pub async fn events(&self, id: i64) -> Vec<SessionEvent> {
        let events = self.client.events(id, 0).map(Result::unwrap).filter(|event| std::future::ready(event.seq > 0));
        events.collect().await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A state folder and a repository.
pub struct Place {
    pub dir: TempDir,
    pub repository: PathBuf,
    pub state: PathBuf,
}

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let (repository, state) = (dir.path().join("repository"), dir.path().join("state"));
        std::fs::create_dir(&repository).unwrap();
        Place { repository, state, dir }
    }
}

/// Host `h`, its VMs, credential `c`, repository `r` and job `j` with these VMs in scope.
pub async fn furnish(server: &Server, place: &Place, vms: &[&str], guest: GuestSettings) {
    let client = &server.client;
    let host = NewHost { name: "h".into(), qemu_dir: "/run/vms".into(), fleecing_dir: None };
    let _: Host = client.post("/hosts", &host).await.unwrap();
    let credential = NewCredential {
        name: "c".into(),
        user: "root".into(),
        password: Some("s3cret-password".into()),
        private_key: None,
        passphrase: None,
        elevation: Default::default(),
        elevation_password: None,
    };
    let _: serde_json::Value = client.post("/credentials", &credential).await.unwrap();
    for (n, vm) in vms.iter().enumerate() {
        let change = VmChange {
            addresses: Some(vec![format!("192.0.2.{}", n + 10)]),
            credential: Some("c".into()),
            guest_os: Some("linux".into()),
            connect: None,
        };
        let _: Vm = client.patch(&format!("/vms/{vm}"), &change).await.unwrap();
    }
    let repository = NewRepository { name: "r".into(), path: place.repository.display().to_string() };
    let _: Repository = client.post("/repositories", &repository).await.unwrap();
    let vms = vms.iter().map(|vm| vm.to_string()).collect();
    let job = NewJob { name: "j".into(), vms, repository: "r".into(), guest, ..NewJob::default() };
    let _: SavedJob = client.post("/jobs", &job).await.unwrap();
}

/// A server with one fake proxy and job `j` on VM `db`.
pub async fn one_vm() -> (Place, Fake, Server) {
    let (place, fake) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    (place, fake, server)
}

/// The same with a clock that says this time.
pub async fn one_vm_at(now: &str) -> (Place, Fake, Server) {
    let (place, fake) = (Place::new(), Fake::embedded());
    let server = Server::start_at(&place.state, std::slice::from_ref(&fake), clock_at(now)).await.unwrap();
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    (place, fake, server)
}

pub fn clock_at(now: &str) -> Clock {
    let clock = Clock::system();
    clock.set(now.parse().unwrap());
    clock
}

/// The problem that a call must end with.
pub fn problem<T: std::fmt::Debug>(result: Result<T, ClientError>) -> lull_api::Problem {
    match result {
        Err(ClientError::Problem(problem)) => problem,
        other => panic!("expected a problem, got {other:?}"),
    }
}

/// The kinds of a session's events, with what tells them apart.
pub fn kinds(events: &[SessionEvent]) -> Vec<String> {
    events
        .iter()
        .map(|event| match &event.event {
            EventKind::StepStarted { step, .. } => format!("{step}…"),
            EventKind::StepEnded { step, state, .. } => format!("{step}: {state}"),
            EventKind::TaskFinished { result, .. } => format!("task {result}"),
            EventKind::SessionFinished { result } => format!("session {result}"),
            other => serde_json::to_value(other).unwrap()["type"].as_str().unwrap().to_string(),
        })
        .collect()
}
