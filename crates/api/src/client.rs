//! A typed client of the REST interface: one connection pool, one token, every error a [`ClientError`].
//!
//! Knows the paths and the stream of events with its reconnects; knows nothing of terminals.

use crate::problem::Problem;
use futures::{Stream, StreamExt};
use reqwest::{Method, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

use crate::session::{EventKind, SessionEvent};

/// Longest line of a stream, in bytes.
const LINE_BYTES_MAX: usize = 4 << 20;
/// A server that says nothing for this long is taken for gone: an event stream shows every 5 s that it lives, and every answer but
/// those of [`Client::post_and_wait`] takes less.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The server closes a connection that is idle for 30 s; it must not be used just then.
const IDLE_MAX: Duration = Duration::from_secs(15);
/// An event stream that breaks is opened again this often, with growing pauses, before it is an error.
const RECONNECTS_MAX: u32 = 10;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with a problem.
    #[error(transparent)]
    Problem(Problem),
    /// The server could not be reached.
    #[error("no answer from the backup server at {server}")]
    Unreachable {
        /// Its address.
        server: String,
        /// Cause.
        source: reqwest::Error,
    },
    /// A stream of events broke off.
    #[error("the backup server at {server} ended the stream of events")]
    Ended {
        /// Its address.
        server: String,
    },
    /// The server's answer was not understood.
    #[error("the backup server at {server} gave an answer that was not understood: {why}")]
    Malformed {
        /// Its address.
        server: String,
        /// What was wrong.
        why: String,
    },
}

/// A client of one backup server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// For answers that may take long.
    patient: reqwest::Client,
    server: String,
    token: String,
}

impl Client {
    /// `server` as `http://127.0.0.1:7420`; `token` as in the file `admin-token`.
    pub fn new(server: &str, token: &str) -> Result<Self, ClientError> {
        Client::that_waits(server, token, SILENCE_MAX)
    }

    fn that_waits(server: &str, token: &str, silence: Duration) -> Result<Self, ClientError> {
        let server = server.trim_end_matches('/').to_string();
        let builder = || {
            reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).pool_idle_timeout(IDLE_MAX).no_proxy()
        };
        let failed = |source| ClientError::Unreachable { server: server.clone(), source };
        let http = builder().read_timeout(silence).build().map_err(failed)?;
        let patient = builder().build().map_err(failed)?;
        Ok(Client { http, patient, server, token: token.trim().to_string() })
    }

    /// Address of the server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// `GET /api/v1{path}`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.answer(self.send(Method::GET, path, None::<&()>).await?).await
    }

    /// `POST /api/v1{path}` with a body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.answer(self.send(Method::POST, path, Some(body)).await?).await
    }

    /// The same, for what may take minutes, such as reading a restore point to its end.
    pub async fn post_and_wait<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.answer(self.send_by(&self.patient, Method::POST, path, Some(body)).await?).await
    }

    /// `PATCH /api/v1{path}` with a body.
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.answer(self.send(Method::PATCH, path, Some(body)).await?).await
    }

    /// `DELETE /api/v1{path}`.
    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.send(Method::DELETE, path, None::<&()>).await.map(drop)
    }

    /// The same, where what remains is answered.
    pub async fn delete_and_read<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.answer(self.send(Method::DELETE, path, None::<&()>).await?).await
    }

    /// `GET /api/v1{path}`, answered by JSON lines, each as it comes.
    pub async fn lines<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<T, ClientError>> + Send + use<T>, ClientError> {
        self.lines_of(self.send_by(&self.patient, Method::GET, path, None::<&()>).await?)
    }

    /// `POST /api/v1{path}` with a body, answered by JSON lines, each as it comes.
    pub async fn post_lines<T: DeserializeOwned, B: Serialize>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<impl Stream<Item = Result<T, ClientError>> + Send + use<T, B>, ClientError> {
        self.lines_of(self.send_by(&self.patient, Method::POST, path, Some(body)).await?)
    }

    fn lines_of<T: DeserializeOwned>(
        &self,
        response: Response,
    ) -> Result<impl Stream<Item = Result<T, ClientError>> + Send + use<T>, ClientError> {
        let reader = LineReader { chunks: Box::pin(response.bytes_stream()), buffer: Vec::new() };
        Ok(futures::stream::unfold((self.clone(), Some(reader)), |(client, reader)| async move {
            let mut reader = reader?;
            match reader.line(&client).await {
                Ok(line) => {
                    let item = serde_json::from_slice(&line).map_err(|e| client.malformed(e.to_string()));
                    Some((item, (client, Some(reader))))
                }
                // Whoever reads knows which line is the last one.
                Err(ClientError::Ended { .. }) => None,
                Err(error) => Some((Err(error), (client, None))),
            }
        }))
    }

    /// `GET /api/v1{path}`, answered by bytes.
    pub async fn bytes(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<bytes::Bytes, ClientError>> + Send + use<>, ClientError> {
        let response = self.send_by(&self.patient, Method::GET, path, None::<&()>).await?;
        let client = self.clone();
        Ok(response.bytes_stream().map(move |chunk| chunk.map_err(|source| client.unreachable(source))))
    }

    /// The events of a session after number `after`, to its last one; a connection that breaks is opened again where
    /// it was, so that none is lost and none comes twice.
    pub fn events(&self, session: i64, after: u64) -> impl Stream<Item = Result<SessionEvent, ClientError>> + Send {
        let state = EventStream { client: self.clone(), session, last: after, body: None, failures: 0, over: false };
        futures::stream::unfold(state, |mut state| async move {
            let item = state.next().await?;
            Some((item, state))
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<Response, ClientError> {
        self.send_by(&self.http, method, path, body).await
    }

    async fn send_by(
        &self,
        http: &reqwest::Client,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<Response, ClientError> {
        let mut request = http.request(method, format!("{}/api/v1{path}", self.server)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        Err(match serde_json::from_str::<Problem>(&text) {
            Ok(problem) => ClientError::Problem(problem),
            Err(_) => self.malformed(format!("status {status}, {} bytes that are no problem document", text.len())),
        })
    }

    async fn answer<T: DeserializeOwned>(&self, response: Response) -> Result<T, ClientError> {
        if response.status() == StatusCode::NO_CONTENT {
            return serde_json::from_str("null").map_err(|e| self.malformed(e.to_string()));
        }
        response.json().await.map_err(|e| self.malformed(e.to_string()))
    }

    fn unreachable(&self, source: reqwest::Error) -> ClientError {
        ClientError::Unreachable { server: self.server.clone(), source }
    }

    fn malformed(&self, why: String) -> ClientError {
        ClientError::Malformed { server: self.server.clone(), why }
    }
}

struct EventStream {
    client: Client,
    session: i64,
    last: u64,
    body: Option<LineReader>,
    failures: u32,
    over: bool,
}

impl EventStream {
    /// The next event; `None` after the last one.
    async fn next(&mut self) -> Option<Result<SessionEvent, ClientError>> {
        while !self.over {
            let attempt = match &mut self.body {
                None => open(&self.client, self.session, self.last).await.map(|body| {
                    self.body = Some(body);
                    None
                }),
                Some(body) => body.event(&self.client).await,
            };
            match attempt {
                Ok(None) => {}
                Ok(Some(event)) if event.seq <= self.last && event.seq != 0 => {}
                Ok(Some(event)) => {
                    self.failures = 0;
                    self.last = self.last.max(event.seq);
                    self.over = matches!(event.event, EventKind::SessionFinished { .. });
                    return Some(Ok(event));
                }
                Err(error @ (ClientError::Problem(_) | ClientError::Malformed { .. })) => {
                    self.over = true;
                    return Some(Err(error));
                }
                Err(error) => {
                    self.body = None;
                    self.failures += 1;
                    if self.failures > RECONNECTS_MAX {
                        self.over = true;
                        return Some(Err(error));
                    }
                    pause_before_reconnect(self.failures).await;
                }
            }
        }
        None
    }
}

async fn open(client: &Client, session: i64, after: u64) -> Result<LineReader, ClientError> {
    let path = format!("/sessions/{session}/events?after={after}");
    let response = client.send(Method::GET, &path, None::<&()>).await?;
    Ok(LineReader { chunks: Box::pin(response.bytes_stream()), buffer: Vec::new() })
}

/// Pause before the n-th reconnect: 0.2 s, doubling, at most 5 s.
async fn pause_before_reconnect(failures: u32) {
    let pause_ms = (200u64 << failures.min(6)).min(5_000);
    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
}

type Chunks = std::pin::Pin<Box<dyn Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>;

struct LineReader {
    chunks: Chunks,
    buffer: Vec<u8>,
}

impl LineReader {
    /// The next `data:` line as an event; `Ok(None)` for other lines.
    async fn event(&mut self, client: &Client) -> Result<Option<SessionEvent>, ClientError> {
        let line = self.line(client).await?;
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(None) };
        serde_json::from_slice(data).map(Some).map_err(|e| client.malformed(e.to_string()))
    }

    /// The next line, with its end.
    async fn line(&mut self, client: &Client) -> Result<Vec<u8>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                return Ok(self.buffer.drain(..=end).collect());
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(client.malformed(format!("a line longer than {LINE_BYTES_MAX} bytes")));
            }
            match self.chunks.next().await {
                Some(Ok(chunk)) => self.buffer.extend_from_slice(&chunk),
                Some(Err(source)) => return Err(client.unreachable(source)),
                None => return Err(ClientError::Ended { server: client.server.clone() }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_server_that_accepts_and_never_answers_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let silent = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                held.push(connection);
            }
        });
        let client = Client::that_waits(&server, "token", Duration::from_millis(200)).unwrap();
        let answer = client.get::<serde_json::Value>("/jobs").await;
        assert!(matches!(answer, Err(ClientError::Unreachable { .. })), "{answer:?}");
        silent.abort();
    }
}
