//! A proxy that plays a script on a guest of its own, with knobs for everything that can go wrong. The guest outlives
//! the connection, so that what a killed server left behind can be seen.

mod answers;
mod remembered;

use crate::managed::FakeMachine;
pub use answers::failed;
use answers::{Gone, beside, clean, evidence, files, sent};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use lull_engine::failover::FailureClass;
use lull_engine::timeline::Step;
use lull_proxy::membership::{Dismissed, Membership};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::proxy_server::{Proxy, ProxyServer};
use lull_proxy_wire::v1::task_event::Event;
use lull_proxy_wire::v1::to_task::Message;
use lull_server::{LocalProxy, ServeProxy};
use remembered::{Remembered, passed_on};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};
use tower::ServiceExt;

/// What goes wrong, and where.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// The task fails at this step with this class.
    pub fail_at: Option<(Step, FailureClass)>,
    /// The connection to the proxy breaks at this step.
    pub die_at: Option<Step>,
    /// After so many events the proxy says nothing more, until it is cancelled.
    pub hang_after: Option<usize>,
    /// Pause before each event.
    pub pause_ms: u64,
    /// The host key that the guest shows.
    pub host_key: String,
    /// The guest's receipt names this.
    pub left_in_guest: Vec<String>,
    /// … and this, at the hypervisor.
    pub left_in_hypervisor: Vec<String>,
    /// So many recoveries fail first.
    pub recoveries_fail: u32,
    /// How a recovery's post-thaw script ends.
    pub script_outcome: &'static str,
    /// The task fails inside the window and its proxy cannot say that the guest is thawed; the guest looks clean.
    pub thaw_unconfirmed: bool,
    /// What kind of failure that is, where it is not the guest being out of reach.
    pub recoveries_fail_with: Option<FailureClass>,
    /// The task ends well, but a later login was refused.
    pub refused: String,
    /// The guest refuses the login, and the backup goes on without it.
    pub refused_at_login: bool,
    /// A backup that was to build on another is full, for this reason.
    pub falls_back: Option<String>,
    /// Pieces of the listing of the guest's files; nothing is listed where there are none.
    pub listing: Vec<Vec<u8>>,
    /// A hold ends when nobody renewed it for so long.
    pub hold_silence_ms: u64,
    /// It takes tasks and never asks for their leases.
    pub never_asks: bool,
    /// Its tasks go on when a call ends, and can be attached to.
    pub remembers: bool,
}

/// The guest and the hypervisor behind a proxy.
#[derive(Debug, Default)]
pub struct World {
    /// File systems are frozen.
    pub frozen: AtomicBool,
    /// The runtime component is there.
    pub deployed: AtomicBool,
    /// A partial backup file is there.
    pub partial: AtomicBool,
    /// Events of the last task that left the proxy, and those among them that begin or end a step.
    pub said: AtomicUsize,
    pub steps_said: AtomicUsize,
    /// Tasks whose lease was granted: only they are begun.
    pub begun: AtomicUsize,
    /// Renewals that arrived.
    pub renewals: AtomicU32,
    /// Post-thaw scripts that recoveries ran.
    pub scripts: Mutex<Vec<String>>,
    /// Why listings were to end.
    pub index_stops: Mutex<Vec<String>>,
}

/// A fake proxy; clones share everything.
#[derive(Clone)]
pub struct Fake {
    pub name: String,
    pub is_backup_server: bool,
    pub networks: Vec<String>,
    pub slots: u32,
    pub script: Arc<Mutex<Script>>,
    pub world: Arc<World>,
    pub silent: Arc<AtomicBool>,
    pub vms: Arc<Mutex<Vec<String>>>,
    /// What the VMs' guest agents say.
    pub agents: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
    pub orders: Arc<Mutex<Vec<v1::TaskOrder>>>,
    pub recoveries: Arc<Mutex<Vec<v1::RecoverOrder>>>,
    pub tests: Arc<Mutex<Vec<v1::TestOrder>>>,
    pub incarnation: String,
    pub desk: Arc<Mutex<BTreeMap<String, Remembered>>>,
    /// Who wanted to take a task up again.
    pub attached: Arc<Mutex<Vec<v1::Attach>>>,
    pub generation: Arc<AtomicU32>,
    /// What makes it a remote one.
    pub membership: Arc<Mutex<Option<Arc<Membership>>>>,
    pub renewals: Arc<AtomicU32>,
    /// What it was told when it was turned away.
    pub dismissals: Arc<Mutex<Vec<String>>>,
    /// What it does on other machines.
    pub machine: FakeMachine,
}

impl Fake {
    /// The backup server's own proxy.
    pub fn embedded() -> Self {
        Fake::named("backup-server", true)
    }

    pub fn named(name: &str, is_backup_server: bool) -> Self {
        Fake {
            name: name.into(),
            is_backup_server,
            networks: Vec::new(),
            slots: 4,
            script: Arc::new(Mutex::new(Script {
                host_key: "SHA256:first".into(),
                script_outcome: "ok",
                ..Script::default()
            })),
            world: Arc::default(),
            silent: Arc::default(),
            vms: Arc::new(Mutex::new(vec!["db".into(), "web".into()])),
            agents: Arc::default(),
            orders: Arc::default(),
            recoveries: Arc::default(),
            tests: Arc::default(),
            desk: Arc::default(),
            attached: Arc::default(),
            incarnation: uuid::Uuid::new_v4().to_string(),
            generation: Arc::new(AtomicU32::new(lull_proxy_wire::GENERATION)),
            membership: Arc::default(),
            renewals: Arc::default(),
            dismissals: Arc::default(),
            machine: FakeMachine::default(),
        }
    }

    pub fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    pub fn orders(&self) -> Vec<v1::TaskOrder> {
        self.orders.lock().unwrap().clone()
    }

    pub fn recoveries(&self) -> Vec<v1::RecoverOrder> {
        self.recoveries.lock().unwrap().clone()
    }

    /// As the server is given it.
    pub fn local(&self) -> LocalProxy {
        let fake = self.clone();
        let serve: ServeProxy = Arc::new(move |io| {
            let fake = fake.clone();
            Box::pin(async move { drop(fake.serve(io).await) })
        });
        LocalProxy { name: self.name.clone(), is_backup_server: self.is_backup_server, serve }
    }
}

impl Fake {
    /// Answers calls on a connection until it ends.
    pub async fn serve<IO>(&self, io: IO) -> Result<(), hyper::Error>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let service = ProxyServer::new(self.clone())
            .map_request(|request: hyper::Request<hyper::body::Incoming>| request.map(Body::new));
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(service))
            .await
    }

    fn member(&self) -> Result<Arc<Membership>, Status> {
        let member = self.membership.lock().unwrap().clone();
        member.ok_or_else(|| Status::failed_precondition("the fake has no certificate"))
    }
}

/// Sends numbered events; `None` once the script says that nothing more comes.
struct Up {
    tx: mpsc::Sender<Result<v1::TaskEvent, Status>>,
    script: Script,
    sent: usize,
    world: Arc<World>,
}

impl Up {
    /// False when the proxy fell silent or the server is gone.
    async fn event(&mut self, event: Event) -> bool {
        if self.script.hang_after == Some(self.sent) {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(self.script.pause_ms)).await;
        self.sent += 1;
        let of_step = matches!(event, Event::StepStarted(_) | Event::StepEnded(_));
        let message = v1::TaskEvent { seq: self.sent as u64, at_us: 0, event: Some(event) };
        let was_sent = self.tx.send(Ok(message)).await.is_ok();
        self.world.steps_said.fetch_add(of_step.into(), Ordering::SeqCst);
        self.world.said.store(self.sent, Ordering::SeqCst);
        was_sent
    }

    async fn step(&mut self, step: Step) -> bool {
        let name = step.name().to_string();
        let started = v1::StepStarted { step: name.clone(), detail: format!("{name} begins") };
        if !self.event(Event::StepStarted(started)).await {
            return false;
        }
        let ended = v1::StepEnded { step: name, outcome: "ok".into(), detail: "done".into(), took_us: 1_000 };
        self.event(Event::StepEnded(ended)).await
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::TaskEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Proxy for Fake {
    async fn describe(&self, request: Request<v1::DescribeRequest>) -> Result<Response<v1::ProxyDescription>, Status> {
        if self.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(v1::ProxyDescription {
            version: "0.1.0".into(),
            platform: "linux".into(),
            slots: self.slots,
            networks: self.networks.clone(),
            channels: vec!["ssh".into()],
            running_tasks: 0,
            generation: self.generation.load(Ordering::SeqCst),
            incarnation: self.incarnation.clone(),
            hosts_reached: request.into_inner().hosts.into_iter().map(|host| host.id).collect(),
        }))
    }

    async fn renew_identity(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::CertificateRequest>, Status> {
        let der = self.member()?.renew().unwrap();
        Ok(Response::new(v1::CertificateRequest { der }))
    }

    async fn install_identity(&self, request: Request<v1::Identity>) -> Result<Response<v1::Installed>, Status> {
        let v1::Identity { certificate, authority } = request.into_inner();
        assert!(self.member()?.install(&certificate, &authority).unwrap());
        self.renewals.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(v1::Installed {}))
    }

    async fn dismiss(&self, request: Request<v1::Dismissal>) -> Result<Response<v1::Dismissed>, Status> {
        let v1::Dismissal { why, for_good } = request.into_inner();
        self.dismissals.lock().unwrap().push(why.clone());
        self.member()?.dismiss(Dismissed { why, for_good });
        Ok(Response::new(v1::Dismissed {}))
    }

    type RunTaskStream = Events;

    async fn run_task(&self, request: Request<Streaming<v1::ToTask>>) -> Result<Response<Events>, Status> {
        let mut down = request.into_inner();
        let order = match down.message().await?.and_then(|message| message.message) {
            Some(Message::Order(order)) => order,
            Some(Message::Attach(attach)) => {
                self.attached.lock().unwrap().push(attach.clone());
                let known = self.desk.lock().unwrap().get(&attach.task_id).cloned();
                let known = known.ok_or_else(|| Status::not_found("there is no such task"))?;
                return Ok(Response::new(Box::pin(known.listened(down, attach.after_seq))));
            }
            _ => return Err(Status::invalid_argument("the first message must be the order")),
        };
        self.orders.lock().unwrap().push(order.clone());
        let (tx, rx) = mpsc::channel(64);
        let (words, heard) = mpsc::channel(64);
        let (fake, id, remembers) = (self.clone(), order.task_id.clone(), self.script.lock().unwrap().remembers);
        tokio::spawn(async move { fake.play(order, heard, tx).await });
        if remembers {
            let known = Remembered::new(words, rx);
            self.desk.lock().unwrap().insert(id, known.clone());
            return Ok(Response::new(Box::pin(known.listened(down, 0))));
        }
        tokio::spawn(passed_on(down, words));
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn forget(&self, request: Request<v1::ForgetTask>) -> Result<Response<v1::Forgotten>, Status> {
        self.desk.lock().unwrap().remove(&request.into_inner().task_id);
        Ok(Response::new(v1::Forgotten {}))
    }

    type ManageServerStream = Pin<Box<dyn Stream<Item = Result<v1::ManageEvent, Status>> + Send>>;

    async fn manage_server(
        &self,
        request: Request<v1::ManageOrder>,
    ) -> Result<Response<Self::ManageServerStream>, Status> {
        let events = self.machine.manage(request.into_inner()).await;
        Ok(Response::new(Box::pin(tokio_stream::iter(events.into_iter().map(Ok)))))
    }

    type RecoverStream = Events;

    async fn recover(&self, request: Request<v1::RecoverOrder>) -> Result<Response<Events>, Status> {
        let order = request.into_inner();
        self.recoveries.lock().unwrap().push(order.clone());
        let (tx, rx) = mpsc::channel(64);
        let fails = {
            let mut script = self.script.lock().unwrap();
            let fails = script.recoveries_fail > 0;
            script.recoveries_fail = script.recoveries_fail.saturating_sub(1);
            fails
        };
        if !fails && order.guest.is_some() {
            self.world.frozen.store(false, Ordering::SeqCst);
            self.world.deployed.store(false, Ordering::SeqCst);
        }
        if !fails && order.hypervisor.is_some() && !order.restore_point_id.is_empty() {
            self.world.partial.store(false, Ordering::SeqCst);
        }
        let receipt = v1::Receipt {
            guest_checked: order.guest.is_some(),
            hypervisor_checked: order.hypervisor.is_some(),
            ..Default::default()
        };
        let end = if fails {
            let class = self.script.lock().unwrap().recoveries_fail_with;
            failed(Step::Connect, class.unwrap_or(FailureClass::GuestUnreachable))
        } else {
            v1::Finished { outcome: "success".into(), receipt: Some(receipt), ..Default::default() }
        };
        let key = beside(Step::Connect, &self.script.lock().unwrap().clone()).filter(|_| order.guest.is_some());
        let script = order.post_script.as_ref().filter(|_| !fails).map(|script| {
            self.world.scripts.lock().unwrap().push(script.body.clone());
            let outcome = self.script.lock().unwrap().script_outcome.into();
            Event::StepEnded(v1::StepEnded { step: Step::PostScript.name().into(), outcome, ..Default::default() })
        });
        for (seq, event) in (1..).zip(key.into_iter().chain(script).chain([Event::Finished(end)])) {
            let _ = tx.send(Ok(v1::TaskEvent { seq, at_us: 0, event: Some(event) })).await;
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    type TestGuestStream = Events;

    async fn test_guest(&self, request: Request<v1::TestOrder>) -> Result<Response<Events>, Status> {
        self.tests.lock().unwrap().push(request.into_inner());
        let (tx, rx) = mpsc::channel(64);
        let (script, world) = (self.script.lock().unwrap().clone(), self.world.clone());
        tokio::spawn(async move {
            let fail_at = script.fail_at;
            let mut up = Up { tx, script, sent: 0, world };
            if !up.step(Step::Connect).await {
                up.tx.closed().await;
            }
            let end = match fail_at {
                Some((step, class)) => failed(step, class),
                None => v1::Finished { outcome: "success".into(), ..Default::default() },
            };
            up.event(Event::Finished(end)).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn list_vms(&self, request: Request<v1::HypervisorTarget>) -> Result<Response<v1::VmList>, Status> {
        let Some(v1::hypervisor_target::Kind::Qemu(qemu)) = request.into_inner().kind else {
            return Err(Status::invalid_argument("no target"));
        };
        if qemu.sockets_dir.contains("missing") {
            return Err(Status::not_found(format!("{} is not there", qemu.sockets_dir)));
        }
        let agents = self.agents.lock().unwrap();
        let entry = |name: &String| v1::VmEntry {
            addresses: agents.get(name).cloned().unwrap_or_default(),
            name: name.clone(),
            state: "running".into(),
            disks: vec!["disk0".into()],
            ..Default::default()
        };
        Ok(Response::new(v1::VmList { vms: self.vms.lock().unwrap().iter().map(entry).collect() }))
    }
}

impl Fake {
    /// One task, from the order to the end.
    async fn play(
        &self,
        order: v1::TaskOrder,
        mut down: mpsc::Receiver<Message>,
        tx: mpsc::Sender<Result<v1::TaskEvent, Status>>,
    ) {
        let script = self.script.lock().unwrap().clone();
        self.world.said.store(0, Ordering::SeqCst);
        self.world.steps_said.store(0, Ordering::SeqCst);
        if self.script.lock().unwrap().never_asks {
            return tx.closed().await;
        }
        let asked = v1::TaskEvent { seq: 0, at_us: 0, event: Some(Event::LeaseAsked(v1::LeaseAsked { number: 1 })) };
        let _ = tx.send(Ok(asked)).await;
        loop {
            match down.recv().await {
                Some(Message::LeaseGranted(_)) => break,
                Some(Message::Cancel(_)) => {
                    let end =
                        v1::Finished { outcome: "cancelled".into(), receipt: Some(clean()), ..Default::default() };
                    let end = v1::TaskEvent { seq: 1, at_us: 0, event: Some(Event::Finished(end)) };
                    return drop(tx.send(Ok(end)).await);
                }
                Some(_) => {}
                None => return,
            }
        }
        self.world.begun.fetch_add(1, Ordering::SeqCst);
        let mut up = Up { tx: tx.clone(), script, sent: 0, world: self.world.clone() };
        let cancelled = tokio::select! {
            done = self.steps(&order, &mut up) => match done {
                Ok(end) => {
                    let hold = matches!(order.work, Some(v1::task_order::Work::Hold(_)));
                    let end = if hold { self.hold(&mut down, &mut up).await } else { end };
                    if !up.event(Event::Finished(end)).await {
                        self.cancellation(&mut down).await
                    } else {
                        return;
                    }
                }
                Err(Gone::Dead) => {
                    let _ = tx.send(Err(Status::unavailable("connection reset"))).await;
                    return;
                }
                Err(Gone::Silent) => self.cancellation(&mut down).await,
            },
            cancelled = self.cancellation(&mut down) => cancelled,
        };
        if cancelled {
            self.undo();
            up.script.hang_after = None;
            let end = v1::Finished { outcome: "cancelled".into(), receipt: Some(clean()), ..Default::default() };
            up.event(Event::Finished(end)).await;
        }
    }

    /// True for a cancellation, false when the server is gone.
    async fn cancellation(&self, down: &mut mpsc::Receiver<Message>) -> bool {
        loop {
            match down.recv().await {
                Some(Message::Cancel(_)) => return true,
                Some(Message::StopIndex(stop)) => self.world.index_stops.lock().unwrap().push(stop.reason),
                Some(_) => {}
                None => return false,
            }
        }
    }

    fn undo(&self) {
        self.world.frozen.store(false, Ordering::SeqCst);
        self.world.deployed.store(false, Ordering::SeqCst);
        self.world.partial.store(false, Ordering::SeqCst);
    }

    async fn steps(&self, order: &v1::TaskOrder, up: &mut Up) -> Result<v1::Finished, Gone> {
        let backup = match &order.work {
            Some(v1::task_order::Work::Backup(backup)) => Some(backup.clone()),
            _ => None,
        };
        let refused = up.script.refused_at_login && order.guest.is_some();
        let guest = order.guest.is_some() && !refused;
        if refused {
            let (step, detail) = (Step::Connect.name().to_string(), String::new());
            let started = v1::StepStarted { step: step.clone(), detail };
            let ended = v1::StepEnded { step, outcome: "failed".into(), ..Default::default() };
            let left = v1::GuestLeftAlone { refused: "login: no".into(), untouched: true };
            for event in [Event::StepStarted(started), Event::StepEnded(ended), Event::GuestLeftAlone(left)] {
                sent(up.event(event).await)?;
            }
        }
        let evidence_json = match (&backup, refused) {
            (Some(_), true) => {
                serde_json::json!({"snapshot": {"taken": true, "atomic": true}, "left_alone": "login: no"}).to_string()
            }
            (Some(_), false) if guest => evidence(),
            _ => String::new(),
        };
        for step in Step::ALL {
            let in_guest = !matches!(step, Step::Snapshot | Step::Copy | Step::Verify | Step::Inventory);
            let at_hypervisor = matches!(step, Step::Snapshot | Step::Copy | Step::Verify);
            if (in_guest && !guest) || (at_hypervisor && backup.is_none()) {
                continue;
            }
            if up.script.die_at == Some(step) {
                return Err(Gone::Dead);
            }
            if let Some((_, class)) = up.script.fail_at.filter(|(at, _)| *at == step) {
                let name = step.name().to_string();
                let started = v1::StepStarted { step: name.clone(), detail: String::new() };
                let ended = v1::StepEnded { step: name, outcome: "failed".into(), ..Default::default() };
                sent(up.event(Event::StepStarted(started)).await)?;
                sent(up.event(Event::StepEnded(ended)).await)?;
                self.undo();
                return Ok(failed(step, class));
            }
            if up.script.thaw_unconfirmed && step == Step::Snapshot {
                let receipt = v1::Receipt { thaw_confirmed: false, ..clean() };
                return Ok(v1::Finished { receipt: Some(receipt), ..failed(step, FailureClass::Hypervisor) });
            }
            match step {
                Step::Deploy => self.world.deployed.store(true, Ordering::SeqCst),
                Step::Freeze => self.world.frozen.store(true, Ordering::SeqCst),
                Step::Copy => self.world.partial.store(true, Ordering::SeqCst),
                Step::Thaw => self.world.frozen.store(false, Ordering::SeqCst),
                Step::Remove => self.world.deployed.store(false, Ordering::SeqCst),
                _ => {}
            }
            sent(up.step(step).await)?;
            if let Some(event) = beside(step, &up.script) {
                sent(up.event(event).await)?;
            }
            if step == Step::Index && !up.script.listing.is_empty() {
                let mut ended = v1::IndexEnded { complete: true, began_us: 1, ended_us: 2, ..Default::default() };
                for compressed in up.script.listing.clone() {
                    ended.frames += 1;
                    sent(up.event(Event::IndexFrame(v1::IndexFrame { compressed, number: ended.frames })).await)?;
                }
                sent(up.event(Event::IndexEnded(ended)).await)?;
            }
            if let (Step::Verify, Some(backup)) = (step, &backup) {
                self.world.partial.store(false, Ordering::SeqCst);
                let files = Some(files(backup, up.script.falls_back.as_deref()));
                let evidence_json = evidence_json.clone();
                sent(up.event(Event::RestorePointDone(v1::RestorePointDone { files, evidence_json })).await)?;
            }
            if step == Step::Copy {
                let progress = v1::Progress { step: "copy".into(), done_bytes: 50, total_bytes: 100 };
                sent(up.event(Event::Progress(progress)).await)?;
            }
            if matches!(order.work, Some(v1::task_order::Work::Hold(_))) && step == Step::Freeze {
                break;
            }
        }
        let mut receipt = clean();
        receipt.left_in_guest = up.script.left_in_guest.clone();
        receipt.left_in_hypervisor = up.script.left_in_hypervisor.clone();
        Ok(v1::Finished {
            outcome: "success".into(),
            evidence_json,
            inventory_json: r#"{"os":"Debian GNU/Linux 12"}"#.into(),
            receipt: Some(receipt),
            refused: if refused { "login: no".into() } else { up.script.refused.clone() },
            ..Default::default()
        })
    }

    /// At rest until the caller is done or silent.
    async fn hold(&self, down: &mut mpsc::Receiver<Message>, up: &mut Up) -> v1::Finished {
        let facts = [("LULL_VM".to_string(), "db".to_string())].into_iter().collect();
        up.event(Event::HoldReady(v1::HoldReady { facts })).await;
        let silence = Duration::from_millis(up.script.hold_silence_ms.max(1));
        let outcome = loop {
            let message = if up.script.hold_silence_ms == 0 {
                Ok(down.recv().await)
            } else {
                tokio::time::timeout(silence, down.recv()).await
            };
            match message {
                Ok(Some(Message::Renew(_))) => {
                    self.world.renewals.fetch_add(1, Ordering::SeqCst);
                }
                Ok(Some(Message::End(end))) => {
                    break if end.succeeded { "success" } else { "warning" };
                }
                _ => break "cancelled",
            }
        };
        self.undo();
        let thawed = v1::Thawed { freeze_id: 1, no_gap: true, window_us: 5_000 };
        up.event(Event::Thawed(thawed)).await;
        v1::Finished { outcome: outcome.into(), receipt: Some(clean()), ..Default::default() }
    }
}
