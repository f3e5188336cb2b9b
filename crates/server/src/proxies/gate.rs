//! The port on which proxies call: takes connections, bounded in number and in the time that a greeting may take, and hands each to
//! whom it is for. Knows who is there only by the certificate.

use super::{arrival, joining};
use crate::server::Server;
use crate::trust::{read, tls};
use lull_proxy_wire::{ALPN_JOIN, ALPN_PROXY};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;

/// More connections than this wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4_096;
/// Greetings at once: each costs a signature.
const GREETINGS_MAX: usize = 64;
/// From the connection's beginning to the end of its greeting.
const GREETING_MS_MAX: u64 = 10_000;
/// After an error of the listener (no descriptor is left), the next try.
const RETRY_MS: u64 = 100;
/// What may wait in the kernel on its way to a proxy: little, so that a heartbeat does not wait behind much on a slow line.
const SEND_BYTES: usize = 256 << 10;

/// Takes connections until the server ends.
pub async fn run(server: &Arc<Server>, listener: TcpListener, config: Arc<rustls::ServerConfig>) {
    let (connections, greetings) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new(Semaphore::new(GREETINGS_MAX)));
    loop {
        let permit = connections.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((connection, from)) => {
                let (taking, config, greetings) = (server.clone(), config.clone(), greetings.clone());
                server.spawn(async move {
                    take(&taking, &config, &greetings, connection, from).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a proxy's connection was not accepted");
                tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
            }
        }
    }
}

async fn take(
    server: &Arc<Server>,
    config: &Arc<rustls::ServerConfig>,
    greetings: &Semaphore,
    connection: TcpStream,
    from: SocketAddr,
) {
    let _ = connection.set_nodelay(true);
    if let Err(error) = rustix::net::sockopt::set_socket_send_buffer_size(&connection, SEND_BYTES) {
        tracing::debug!(%error, "a connection keeps the system's buffer");
    }
    let greeted = async {
        // Who says nothing takes nobody's place.
        let hello = LazyConfigAcceptor::new(Acceptor::default(), connection).await?;
        let _permit = greetings.acquire().await;
        hello.into_stream(config.clone()).await
    };
    let stream = match tokio::time::timeout(Duration::from_millis(GREETING_MS_MAX), greeted).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::info!(%from, %error, "a connection did not come to terms over TLS"),
        Err(_) => return tracing::info!(%from, "a connection did not greet in time"),
    };
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first()).map(|der| read(der));
    match (session.alpn_protocol(), certificate) {
        (Some(ALPN_JOIN), _) => joining::answer(server, stream, from).await,
        (Some(ALPN_PROXY), Some(Ok(presented))) => arrival::admit(server, stream, presented, from).await,
        (Some(ALPN_PROXY), Some(Err(error))) => tracing::warn!(%from, %error, "a proxy was turned away"),
        (Some(ALPN_PROXY), None) => tracing::info!(%from, "a proxy showed no certificate"),
        _ => tracing::info!(%from, "a connection did not say what it wants"),
    }
}

/// TLS for the port, and the port itself.
pub use tls::config;
