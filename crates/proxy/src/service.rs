//! Answers the calls of `proxy-wire` on one connection to the backup server.
//!
//! Does not know how the connection came to be: the embedded proxy gets an in-memory stream, a remote one a socket that
//! it dialled itself. Tasks are the [`desk`](crate::desk)'s, and outlive the connection; recoveries and tests belong to their call and are
//! cancelled when it ends: the desk knows when they are undone.

use crate::access::{BadOrder, GuestAccess};
use crate::cancel::Cancel;
use crate::carried::Image;
use crate::desk::{self, Desk, Events, Hands};
use crate::ground::{Ground, Machine};
use crate::journal;
use crate::manage::{self, Teller};
use crate::membership::{Dismissed, Membership, MembershipError};
use crate::order::{self, BackupSpec, TaskSpec, Work};
use crate::recover::{self, HypervisorSweep, Recovery};
use crate::reporter::Reporter;
use crate::snapshotter::{Snapshotter, WhileAllowed};
use crate::task::{self, Task};
use crate::trial;
use futures::{Stream, StreamExt};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use lull_hypervisor::QemuHost;
use lull_proxy_wire::GENERATION;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::proxy_server::{Proxy, ProxyServer};
use lull_proxy_wire::v1::task_event::Event;
use lull_proxy_wire::v1::to_task::Message as ToTask;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};
use tower::ServiceExt;
use tracing::Span;

/// Serves `proxy-wire` on this machine's ground, on the one connection there is, until the other side closes it; recoveries and tests that
/// still run are cancelled, and this returns once their guests are thawed and swept. Tasks go on at the desk. An error says how the
/// connection broke.
pub async fn serve<IO>(io: IO, desk: &Desk) -> Result<(), hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let result = serve_on(io, desk, Arc::new(Machine)).await;
    desk.calls_undone().await;
    result
}

/// The same on any ground, for a connection after which another one is made: it waits for nobody, since the desk's tasks wait for the
/// next connection.
pub async fn serve_on<IO>(io: IO, desk: &Desk, ground: Arc<dyn Ground>) -> Result<(), hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = ProxyService { desk: desk.clone(), ground };
    let service = ProxyServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let service = service.map_request(|request: hyper::Request<hyper::body::Incoming>| request.map(Body::new));
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(2 * STREAM_WINDOW_BYTES)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(service))
        .await
}

/// Longest message from the server: an order with its settings, its scripts and its credential.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// HTTP/2 flow control: a stream may have this much under way.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// Guest agents asked at a time.
const AGENTS_AT_A_TIME: usize = 32;

#[derive(Clone)]
struct ProxyService {
    desk: Desk,
    ground: Arc<dyn Ground>,
}

impl ProxyService {
    fn membership(&self) -> Result<&Membership, Status> {
        let none = || Status::failed_precondition("the embedded proxy has no certificate");
        self.desk.config().membership.as_deref().ok_or_else(none)
    }

    /// Runs `work` beside the call, and streams what it tells. The work is cancelled, never dropped, when nobody listens any
    /// more: it must thaw and sweep first. A panic in it ends this piece of work only.
    fn start<F>(&self, span: Span, cancel: Cancel, work: impl FnOnce(Reporter) -> F) -> Response<Events>
    where
        F: Future<Output = v1::Finished> + Send + 'static,
    {
        let (reporter, events) = Reporter::new();
        let counted = self.desk.count();
        let work = work(reporter.clone());
        let listener = {
            let (reporter, cancel) = (reporter.clone(), cancel.clone());
            tokio::spawn(async move {
                reporter.closed().await;
                cancel.cancel("the backup server's connection ended");
            })
        };
        let of_calls = self.desk.calls().clone();
        self.desk.calls().spawn(async move {
            let finished = match of_calls.spawn(work).await {
                Ok(finished) => finished,
                Err(e) => desk::broke_off(&e.to_string()),
            };
            reporter.tell(Event::Finished(finished));
            listener.abort();
            drop(counted);
        });
        Response::new(Box::pin(events.inspect(move |sent| {
            if let Ok(v1::TaskEvent { event: Some(event), .. }) = sent {
                span.in_scope(|| journal::tell(event));
            }
        })))
    }

    /// Which of these hosts have a folder of sockets that can be read here.
    async fn reached(&self, hosts: Vec<v1::HostProbe>) -> Vec<String> {
        let folder = |probe: v1::HostProbe| Some((probe.id, order::qemu("", probe.target?).ok()?.sockets_dir));
        let (ids, folders): (Vec<_>, Vec<_>) = hosts.into_iter().filter_map(folder).unzip();
        let readable = self.desk.readable(&folders).await;
        ids.into_iter().zip(readable).filter_map(|(id, readable)| readable.then_some(id)).collect()
    }
}

fn not_kept(error: MembershipError) -> Status {
    tracing::error!(error = &error as &dyn std::error::Error, "the proxy's identity cannot be kept");
    Status::internal(format!("the proxy cannot keep its identity: {error}"))
}

fn refuse(error: &BadOrder) -> Status {
    Status::invalid_argument(error.to_string())
}

async fn work(ground: Arc<dyn Ground>, spec: TaskSpec, image: Image, hands: Hands) -> v1::Finished {
    let Hands { hold, reporter, cancel, stop_index } = hands;
    let connector = spec.guest.clone().map(|access| ground.connector(access));
    let mut snapshotter = match (&spec.work, &spec.qemu) {
        (Work::Backup(backup), Some(qemu)) => {
            let vm = ground.snapshotter(qemu.clone(), BackupSpec::clone(backup), &spec.task_id, spec.epoch);
            Some(WhileAllowed(vm, cancel.clone()))
        }
        _ => None,
    };
    task::run(Task {
        spec,
        connector: connector.as_deref(),
        image: &image,
        snapshotter: snapshotter.as_mut().map(|s| s as &mut dyn Snapshotter),
        hold,
        reporter,
        cancel,
        stop_index,
    })
    .await
}

#[tonic::async_trait]
impl Proxy for ProxyService {
    async fn describe(&self, request: Request<v1::DescribeRequest>) -> Result<Response<v1::ProxyDescription>, Status> {
        let networks = self
            .ground
            .networks()
            .map_err(|e| Status::internal(format!("the network interfaces cannot be listed: {e}")))?;
        Ok(Response::new(v1::ProxyDescription {
            version: env!("CARGO_PKG_VERSION").into(),
            platform: std::env::consts::OS.into(),
            slots: self.desk.config().slots,
            networks: networks.iter().map(ToString::to_string).collect(),
            channels: vec!["ssh".into()],
            running_tasks: self.desk.running(),
            generation: GENERATION,
            incarnation: self.desk.incarnation().into(),
            hosts_reached: self.reached(request.into_inner().hosts).await,
        }))
    }

    type RunTaskStream = Events;
    async fn run_task(&self, request: Request<Streaming<v1::ToTask>>) -> Result<Response<Events>, Status> {
        let mut words = request.into_inner();
        let first = words.message().await?.and_then(|first| first.message);
        let order = match first {
            Some(ToTask::Order(order)) => order,
            Some(ToTask::Attach(attach)) => return self.desk.attach(&attach, words).map(Response::new),
            _ => return Err(Status::invalid_argument("the first message of a task is its order")),
        };
        let session = order.session_id;
        let spec = TaskSpec::from_wire(order).map_err(|e| refuse(&e))?;
        let image = self.ground.image().map_err(|e| Status::failed_precondition(e.to_string()))?;
        let (task_id, epoch) = (spec.task_id.clone(), spec.epoch);
        let ground = self.ground.clone();
        let span = tracing::info_span!("task", session, task = task_id, epoch, vm = spec.vm_name);
        let taken = span.in_scope(|| {
            tracing::info!("the backup server orders a task");
            self.desk.take(&task_id, epoch, words, move |hands| work(ground, spec, image, hands))
        });
        taken.map(Response::new)
    }

    async fn forget(&self, request: Request<v1::ForgetTask>) -> Result<Response<v1::Forgotten>, Status> {
        let v1::ForgetTask { task_id, epoch } = request.into_inner();
        self.desk.forget(&task_id, epoch).map(|()| Response::new(v1::Forgotten {}))
    }

    async fn renew_identity(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::CertificateRequest>, Status> {
        let der = self.membership()?.renew().map_err(not_kept)?;
        Ok(Response::new(v1::CertificateRequest { der }))
    }

    async fn install_identity(&self, request: Request<v1::Identity>) -> Result<Response<v1::Installed>, Status> {
        let v1::Identity { certificate, authority } = request.into_inner();
        match self.membership()?.install(&certificate, &authority).map_err(not_kept)? {
            true => Ok(Response::new(v1::Installed {})),
            false => Err(Status::failed_precondition("no certificate was asked for")),
        }
    }

    async fn dismiss(&self, request: Request<v1::Dismissal>) -> Result<Response<v1::Dismissed>, Status> {
        let v1::Dismissal { why, for_good } = request.into_inner();
        self.membership()?.dismiss(Dismissed { why, for_good });
        Ok(Response::new(v1::Dismissed {}))
    }

    type RecoverStream = Events;
    async fn recover(&self, request: Request<v1::RecoverOrder>) -> Result<Response<Events>, Status> {
        let order = request.into_inner();
        let guest = order.guest.map(|target| GuestAccess::from_wire(&order.vm_name, target)).transpose();
        let connector = guest.map_err(|e| refuse(&e))?.map(|access| self.ground.connector(access));
        let qemu = order.hypervisor.map(|target| order::qemu(&order.vm_name, target)).transpose();
        let bitmaps_owed = order::bitmap_names(&order.bitmaps_owed).map_err(|e| refuse(&e))?;
        let repository_dir = order.repository_dir.into();
        let unrecorded = Some(order.restore_point_id).filter(|id| !id.is_empty());
        let unrecorded = unrecorded.map(|id| order::short_id(&id)).transpose().map_err(|e| refuse(&e))?;
        let sweep = |qemu| HypervisorSweep { qemu, repository_dir, bitmaps_owed, unrecorded };
        let hypervisor = qemu.map_err(|e| refuse(&e))?.map(sweep);
        let (fence, vm_name) = (order.fence, order.vm_name);
        let (maybe_frozen, excluded_mount_points) = (order.maybe_frozen, order.excluded_mount_points);
        let post_script = order.post_script.map(order::owed_script);
        let image = self.ground.image().map_err(|e| Status::failed_precondition(e.to_string()))?;
        let cancel = Cancel::default();
        let span = tracing::info_span!("recovery", session = order.session_id, task = order.task_id, vm = vm_name);
        Ok(self.start(span, cancel.clone(), |reporter| async move {
            let connector = connector.as_deref();
            let image = &image;
            let guest = Recovery {
                fence,
                vm_name,
                connector,
                maybe_frozen,
                excluded_mount_points,
                image,
                post_script,
                hypervisor,
            };
            recover::run(guest, reporter, cancel).await
        }))
    }

    type TestGuestStream = Events;
    async fn test_guest(&self, request: Request<v1::TestOrder>) -> Result<Response<Events>, Status> {
        let order = request.into_inner();
        let guest = order.guest.map(|target| GuestAccess::from_wire(&order.vm_name, target)).transpose();
        let connector = guest.map_err(|e| refuse(&e))?.map(|access| self.ground.connector(access));
        let qemu = order.hypervisor.map(|target| order::qemu(&order.vm_name, target)).transpose();
        let qemu = qemu.map_err(|e| refuse(&e))?;
        let image = self.ground.image().map_err(|e| Status::failed_precondition(e.to_string()))?;
        let cancel = Cancel::default();
        let span = tracing::info_span!("test", session = order.session_id, vm = order.vm_name);
        Ok(self.start(span, cancel.clone(), |reporter| async move {
            let connector = connector.as_deref();
            trial::run(&order.vm_name, connector, &image, qemu.as_ref(), reporter, cancel).await
        }))
    }

    type ManageServerStream = Pin<Box<dyn Stream<Item = Result<v1::ManageEvent, Status>> + Send>>;
    async fn manage_server(
        &self,
        request: Request<v1::ManageOrder>,
    ) -> Result<Response<Self::ManageServerStream>, Status> {
        if self.desk.config().membership.is_some() {
            return Err(Status::failed_precondition("only the backup server's own proxy changes other machines"));
        }
        let order = manage::Order::from_wire(request.into_inner()).map_err(|e| refuse(&e))?;
        let (to, told) = mpsc::unbounded_channel();
        // Half an installation serves nobody: it comes to its end, or undoes itself, whoever listens.
        self.desk.calls().spawn(manage::run(order, Teller::new(to)));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(told).map(Ok))))
    }

    async fn list_vms(&self, request: Request<v1::HypervisorTarget>) -> Result<Response<v1::VmList>, Status> {
        let qemu = order::qemu("", request.into_inner()).map_err(|e| refuse(&e))?;
        let host = QemuHost::new(&qemu.sockets_dir);
        let names = host.vms().map_err(|e| {
            let folder = qemu.sockets_dir.display();
            Status::not_found(format!(
                "the folder {folder} cannot be read ({e}); give the folder that holds the VMs' .qmp sockets"
            ))
        })?;
        let mut vms = Vec::with_capacity(names.len());
        for name in names {
            vms.push(vm_entry(&host, name).await);
        }
        // Where no agent runs nobody answers: all are asked together, and none is waited for long.
        let running = |vm: &v1::VmEntry| (vm.state == "running").then(|| host.guest_agent(&vm.name));
        let asked: Vec<_> = vms.iter().map(|vm| guest_addresses(running(vm))).collect();
        let addresses: Vec<Vec<String>> = futures::stream::iter(asked).buffered(AGENTS_AT_A_TIME).collect().await;
        for (vm, addresses) in vms.iter_mut().zip(addresses) {
            vm.addresses = addresses;
        }
        Ok(Response::new(v1::VmList { vms }))
    }
}

/// What the guest agent behind this socket says, where one answers.
async fn guest_addresses(socket: Option<PathBuf>) -> Vec<String> {
    let Some(socket) = socket.filter(|socket| socket.exists()) else { return Vec::new() };
    match lull_hypervisor::guest_agent::addresses(&socket).await {
        Ok(addresses) => addresses.iter().map(ToString::to_string).collect(),
        Err(error) => {
            tracing::debug!(socket = %socket.display(), %error, "the guest's addresses are not known");
            Vec::new()
        }
    }
}

/// One VM as its own process reports it. One that does not answer is listed with the reason.
async fn vm_entry(host: &QemuHost, name: String) -> v1::VmEntry {
    let facts = async { host.open(&name).await?.facts().await };
    match facts.await {
        Ok(facts) => v1::VmEntry {
            uuid: facts.uuid.clone().unwrap_or_default(),
            state: facts.run_state.clone(),
            disks: facts.disks_to_back_up().map(|disk| disk.name.clone()).collect(),
            name,
            ..Default::default()
        },
        Err(e) => v1::VmEntry { name, error: format!("{}; {}", e.cause, e.remedy), ..Default::default() },
    }
}
