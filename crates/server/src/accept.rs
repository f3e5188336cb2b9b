//! Takes the REST interface's connections: bounded in number, and in the time that a request's head may take.
//!
//! Whoever reaches the port is not yet known, so nothing here may be held for ever. Knows nothing of paths or tokens.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// More connections than this wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 512;
/// From a connection's beginning, or the answer before, to the end of a request's head.
const HEAD_MS_MAX: u64 = 30_000;
/// After an error of the listener (no descriptor is left), the next try.
const RETRY_MS: u64 = 100;

/// Answers requests until `stopped`, then lets those under way come to their ends.
pub async fn serve(listener: TcpListener, router: Router, stopped: CancellationToken) {
    serve_within(listener, router, stopped, Duration::from_millis(HEAD_MS_MAX)).await;
}

async fn serve_within(listener: TcpListener, router: Router, stopped: CancellationToken, head_max: Duration) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let open = TaskTracker::new();
    loop {
        let accepted = async {
            let permit = room.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            () = stopped.cancelled() => break,
        };
        match accepted {
            Ok((connection, _)) => {
                let answered = answer(connection, router.clone(), stopped.clone(), head_max);
                open.spawn(async move {
                    answered.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
            }
        }
    }
    open.close();
    open.wait().await;
}

async fn answer(connection: TcpStream, router: Router, stopped: CancellationToken, head_max: Duration) {
    // Events are small and waited for.
    let _ = connection.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head_max);
    let serving = builder.serve_connection(TokioIo::new(connection), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stopped.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_head_that_never_ends_is_cut_off_and_others_are_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        let stopped = CancellationToken::new();
        let serving = tokio::spawn(serve_within(listener, router, stopped.clone(), Duration::from_millis(200)));

        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nX-Slow: ").await.unwrap();
        let mut other = TcpStream::connect(address).await.unwrap();
        other.write_all(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        other.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
        let mut rest = Vec::new();
        let cut = tokio::time::timeout(Duration::from_secs(20), slow.read_to_end(&mut rest)).await;
        assert!(cut.is_ok(), "it is still open");

        stopped.cancel();
        serving.await.unwrap();
    }
}
