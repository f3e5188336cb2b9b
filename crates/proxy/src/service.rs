//! Answers the calls of `proxy-wire` on one connection to the backup server.
//!
//! Does not know how the connection came to be: the embedded proxy gets an in-memory stream, a remote one a socket that
//! it dialled itself. Ends when the connection does, after every running task has come to its end.

use crate::networks;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::proxy_server::{Proxy, ProxyServer};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::{AsyncRead, AsyncWrite};
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

type Events = Pin<Box<dyn Stream<Item = Result<v1::TaskEvent, Status>> + Send>>;

struct ProxyService {
    config: ProxyConfig,
    running: Arc<AtomicU32>,
    #[expect(dead_code, reason = "tasks are tracked from the next step on")]
    tasks: TaskTracker,
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
    async fn run_task(&self, _: Request<Streaming<v1::ToTask>>) -> Result<Response<Events>, Status> {
        Err(Status::unimplemented("this proxy cannot run tasks yet"))
    }

    type RecoverStream = Events;
    async fn recover(&self, _: Request<v1::RecoverOrder>) -> Result<Response<Events>, Status> {
        Err(Status::unimplemented("this proxy cannot recover guests yet"))
    }

    type TestGuestStream = Events;
    async fn test_guest(&self, _: Request<v1::TestOrder>) -> Result<Response<Events>, Status> {
        Err(Status::unimplemented("this proxy cannot test guests yet"))
    }

    async fn list_vms(&self, _: Request<v1::HypervisorTarget>) -> Result<Response<v1::VmList>, Status> {
        Err(Status::unimplemented("this proxy cannot list VMs yet"))
    }
}
