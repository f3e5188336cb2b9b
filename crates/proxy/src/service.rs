//! Answers the calls of `proxy-wire` on one connection to the backup server.
//!
//! Does not know how the connection came to be: the embedded proxy gets an in-memory stream, a remote one a socket that
//! it dialled itself. Ends when the connection does, after every running task has come to its end.

use crate::access::{BadOrder, GuestAccess};
use crate::cancel::Cancel;
use crate::carried::{self, Image};
use crate::guest_session::{Connector, SshConnector};
use crate::networks;
use crate::order::{self, BackupSpec, TaskSpec, Work};
use crate::recover::{self, HypervisorSweep, Recovery};
use crate::reporter::{Reporter, Sent};
use crate::snapshotter::{QemuSnapshotter, Snapshotter};
use crate::task::{self, HoldWord, Task};
use crate::trial;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use lull_engine::failover::FailureClass;
use lull_engine::session::{Hop, TaskFailure};
use lull_hypervisor::QemuHost;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::proxy_server::{Proxy, ProxyServer};
use lull_proxy_wire::v1::task_event::Event;
use lull_proxy_wire::v1::to_task::Message as ToTask;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};
use tower::ServiceExt;

/// What a proxy must be told about itself.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Tasks that it works on at once; the default is `max(2, cores)`.
    pub slots: u32,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        ProxyConfig { slots: cores.max(2) }
    }
}

/// Serves `proxy-wire` on `io` until the other side closes it; tasks that still run are cancelled, and this returns once
/// their guests are thawed and swept. An error says how the connection broke.
pub async fn serve<IO>(io: IO, config: ProxyConfig) -> Result<(), hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let tasks = TaskTracker::new();
    let service = ProxyService { config, running: Arc::new(AtomicU32::new(0)), tasks: tasks.clone() };
    let service = ProxyServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let service = service.map_request(|request: hyper::Request<hyper::body::Incoming>| request.map(Body::new));
    let result = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(2 * STREAM_WINDOW_BYTES)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(service))
        .await;
    tasks.close();
    tasks.wait().await;
    result
}

/// Longest message from the server: an order with its settings, its scripts and its credential.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// HTTP/2 flow control: a stream may have this much under way.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

type Events = Pin<Box<dyn Stream<Item = Sent> + Send>>;

/// Words of a caller who holds that may wait to be read.
const HOLD_WORDS_WAITING_MAX: usize = 64;

#[derive(Clone)]
struct ProxyService {
    config: ProxyConfig,
    running: Arc<AtomicU32>,
    tasks: TaskTracker,
}

/// Counts one piece of work while it lives.
struct Counted(Arc<AtomicU32>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ProxyService {
    /// Runs `work` beside the call, and streams what it tells. The work is cancelled, never dropped, when nobody listens any
    /// more: it must thaw and sweep first. A panic in it ends this piece of work only.
    fn start<F>(&self, cancel: Cancel, work: impl FnOnce(Reporter) -> F) -> Response<Events>
    where
        F: Future<Output = v1::Finished> + Send + 'static,
    {
        let (reporter, events) = Reporter::new();
        self.running.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(self.running.clone());
        let work = work(reporter.clone());
        let listener = {
            let (reporter, cancel) = (reporter.clone(), cancel.clone());
            tokio::spawn(async move {
                reporter.closed().await;
                cancel.cancel("the backup server's connection ended");
            })
        };
        let tasks = self.tasks.clone();
        self.tasks.spawn(async move {
            let finished = match tasks.spawn(work).await {
                Ok(finished) => finished,
                Err(e) => broke_off(&e.to_string()),
            };
            reporter.tell(Event::Finished(finished));
            listener.abort();
            drop(counted);
        });
        Response::new(Box::pin(events))
    }
}

fn broke_off(why: &str) -> v1::Finished {
    let failure = TaskFailure {
        step: None,
        hop: Hop::ServerToProxy,
        cause: format!("the proxy broke off: {why}"),
        remedy: "the guest thaws by itself; report this".into(),
        class: FailureClass::Internal,
    };
    failed(&failure)
}

fn failed(failure: &TaskFailure) -> v1::Finished {
    let failure_json = serde_json::to_string(failure).unwrap_or_default();
    v1::Finished { outcome: "failed".into(), failure_json, ..Default::default() }
}

fn refuse(error: &BadOrder) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Reads what comes after the order: cancellations, of the task or of its index, and the words of a caller who holds.
async fn listen(mut words: Streaming<v1::ToTask>, cancel: Cancel, stop_index: Cancel, hold: mpsc::Sender<HoldWord>) {
    loop {
        let word = match words.message().await {
            Ok(Some(v1::ToTask { message })) => message,
            // The caller has nothing more to say, but listens on.
            Ok(None) => return,
            Err(_) => return cancel.cancel("the backup server's connection ended"),
        };
        match word {
            Some(ToTask::Cancel(asked)) => cancel.cancel(asked.reason),
            Some(ToTask::StopIndex(asked)) => stop_index.cancel(asked.reason),
            Some(ToTask::Renew(_)) => drop(hold.try_send(HoldWord::Renew)),
            Some(ToTask::End(v1::HoldEnd { succeeded, detail })) => {
                drop(hold.send(HoldWord::End { succeeded, detail }).await);
            }
            Some(ToTask::Order(_)) => cancel.cancel("a second order came over the same call"),
            None => {}
        }
    }
}

async fn work(
    spec: TaskSpec,
    image: Image,
    hold: mpsc::Receiver<HoldWord>,
    reporter: Reporter,
    cancel: Cancel,
    stop_index: Cancel,
) -> v1::Finished {
    let connector = spec.guest.clone().map(SshConnector::new);
    let mut snapshotter = match (&spec.work, &spec.qemu) {
        (Work::Backup(backup), Some(qemu)) => {
            Some(QemuSnapshotter::new(qemu.clone(), BackupSpec::clone(backup), &spec.task_id, spec.epoch))
        }
        _ => None,
    };
    task::run(Task {
        spec,
        connector: connector.as_ref().map(|c| c as &dyn Connector),
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
    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Result<Response<v1::ProxyDescription>, Status> {
        let networks = networks::on_link()
            .map_err(|e| Status::internal(format!("the network interfaces cannot be listed: {e}")))?;
        Ok(Response::new(v1::ProxyDescription {
            version: env!("CARGO_PKG_VERSION").into(),
            platform: std::env::consts::OS.into(),
            slots: self.config.slots,
            networks: networks.iter().map(ToString::to_string).collect(),
            channels: vec!["ssh".into()],
            running_tasks: self.running.load(Ordering::Relaxed),
        }))
    }

    type RunTaskStream = Events;
    async fn run_task(&self, request: Request<Streaming<v1::ToTask>>) -> Result<Response<Events>, Status> {
        let mut words = request.into_inner();
        let first = words.message().await?.and_then(|first| first.message);
        let Some(ToTask::Order(order)) = first else {
            return Err(Status::invalid_argument("the first message of a task is its order"));
        };
        let spec = TaskSpec::from_wire(order).map_err(|e| refuse(&e))?;
        let image = carried::linux_x86_64().map_err(|e| Status::failed_precondition(e.to_string()))?;
        let (cancel, stop_index) = (Cancel::default(), Cancel::default());
        let (to_hold, hold) = mpsc::channel(HOLD_WORDS_WAITING_MAX);
        tokio::spawn(listen(words, cancel.clone(), stop_index.clone(), to_hold));
        Ok(self.start(cancel.clone(), |reporter| work(spec, image, hold, reporter, cancel, stop_index)))
    }

    type RecoverStream = Events;
    async fn recover(&self, request: Request<v1::RecoverOrder>) -> Result<Response<Events>, Status> {
        let order = request.into_inner();
        let guest = order.guest.map(|target| GuestAccess::from_wire(&order.vm_name, target)).transpose();
        let connector = guest.map_err(|e| refuse(&e))?.map(SshConnector::new);
        let qemu = order.hypervisor.map(|target| order::qemu(&order.vm_name, target)).transpose();
        let bitmaps_owed = order::bitmap_names(&order.bitmaps_owed).map_err(|e| refuse(&e))?;
        let repository_dir = order.repository_dir.into();
        let unrecorded = Some(order.restore_point_id).filter(|id| !id.is_empty());
        let unrecorded = unrecorded.map(|id| order::short_id(&id)).transpose().map_err(|e| refuse(&e))?;
        let sweep = |qemu| HypervisorSweep { qemu, repository_dir, bitmaps_owed, unrecorded };
        let hypervisor = qemu.map_err(|e| refuse(&e))?.map(sweep);
        let (vm_name, maybe_frozen, excluded_mount_points) =
            (order.vm_name, order.maybe_frozen, order.excluded_mount_points);
        let post_script = order.post_script.map(order::owed_script);
        let image = carried::linux_x86_64().map_err(|e| Status::failed_precondition(e.to_string()))?;
        let cancel = Cancel::default();
        Ok(self.start(cancel.clone(), |reporter| async move {
            let connector = connector.as_ref().map(|c| c as &dyn Connector);
            let image = &image;
            recover::run(
                Recovery { vm_name, connector, maybe_frozen, excluded_mount_points, image, post_script, hypervisor },
                reporter,
                cancel,
            )
            .await
        }))
    }

    type TestGuestStream = Events;
    async fn test_guest(&self, request: Request<v1::TestOrder>) -> Result<Response<Events>, Status> {
        let order = request.into_inner();
        let guest = order.guest.map(|target| GuestAccess::from_wire(&order.vm_name, target)).transpose();
        let connector = guest.map_err(|e| refuse(&e))?.map(SshConnector::new);
        let qemu = order.hypervisor.map(|target| order::qemu(&order.vm_name, target)).transpose();
        let qemu = qemu.map_err(|e| refuse(&e))?;
        let image = carried::linux_x86_64().map_err(|e| Status::failed_precondition(e.to_string()))?;
        let cancel = Cancel::default();
        Ok(self.start(cancel.clone(), |reporter| async move {
            let connector = connector.as_ref().map(|c| c as &dyn Connector);
            trial::run(&order.vm_name, connector, &image, qemu.as_ref(), reporter, cancel).await
        }))
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
        Ok(Response::new(v1::VmList { vms }))
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
