//! A backup server that is none: scripted answers, a scripted stream of events, and a record of every request.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use lull_api::Problem;
use lull_api::session::SessionEvent;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The token that the fake accepts.
pub const TOKEN: &str = "fake-token";

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// `POST /jobs/nightly/run`, without `/api/v1`.
    pub call: String,
    /// Body, `null` where there was none.
    pub body: Value,
    /// When it came.
    pub at: Instant,
}

type Hook = Arc<dyn Fn(&Script) + Send + Sync>;

/// What the fake does.
#[derive(Default)]
pub struct Script {
    answers: Mutex<BTreeMap<String, (u16, String)>>,
    hooks: Mutex<BTreeMap<String, Hook>>,
    requests: Mutex<Vec<Request>>,
    events: Mutex<Vec<SessionEvent>>,
    cuts: Mutex<VecDeque<u64>>,
    changed: Notify,
}

/// A running fake.
pub struct Fake {
    /// Its address.
    pub url: String,
    /// File with its token.
    pub token_file: PathBuf,
    /// Its script; may be changed while it runs.
    pub script: Arc<Script>,
    folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    pub fn start() -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("admin-token");
        std::fs::write(&token_file, TOKEN).unwrap();
        let script = Arc::new(Script::default());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(script.clone());
        runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Fake { url, token_file, script, folder, _runtime: runtime }
    }

    /// A folder for files of the test.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }
}

impl Script {
    /// `call` as `GET /vms`; answered with 200 and `body`.
    pub fn answer(&self, call: &str, body: &impl Serialize) -> &Self {
        self.answer_with(call, 200, body)
    }

    pub fn answer_with(&self, call: &str, status: u16, body: &impl Serialize) -> &Self {
        // A whole line, since some answers are read by lines.
        let body = serde_json::to_string(body).unwrap() + "\n";
        self.answers.lock().unwrap().insert(call.into(), (status, body));
        self
    }

    /// Answers with these documents, a line each.
    pub fn answer_lines(&self, call: &str, lines: &[impl Serialize]) -> &Self {
        let lines: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        self.answers.lock().unwrap().insert(call.into(), (200, lines));
        self
    }

    /// Refuses `call` with a problem.
    pub fn refuse(&self, call: &str, problem: Problem) -> &Self {
        self.answer_with(call, problem.status, &problem)
    }

    /// Does something when `call` comes, before it is answered.
    pub fn on(&self, call: &str, hook: impl Fn(&Script) + Send + Sync + 'static) -> &Self {
        self.hooks.lock().unwrap().insert(call.into(), Arc::new(hook));
        self
    }

    /// Adds events to the stream; their numbers follow each other.
    pub fn emit(&self, events: Vec<SessionEvent>) {
        let mut all = self.events.lock().unwrap();
        for mut event in events {
            event.seq = all.len() as u64 + 1;
            all.push(event);
        }
        drop(all);
        self.changed.notify_waiters();
    }

    /// The next connection to the stream is cut after event `seq`.
    pub fn cut_after(&self, seq: u64) -> &Self {
        self.cuts.lock().unwrap().push_back(seq);
        self
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The requests that begin with `call`.
    pub fn requests_of(&self, call: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.call.starts_with(call)).collect()
    }

    /// Waits until `call` came at least `times` times.
    pub fn wait_for(&self, call: &str, times: usize) -> Vec<Request> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let came = self.requests_of(call);
            if came.len() >= times {
                return came;
            }
            assert!(Instant::now() < deadline, "{call} came {} times only: {:?}", came.len(), self.requests());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

async fn answer(
    State(script): State<Arc<Script>>,
    method: Method,
    uri: Uri,
    headers: axum::http::HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let call = format!("{method} {}", path.strip_prefix("/api/v1").unwrap_or(path));
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    script.requests.lock().unwrap().push(Request { call: call.clone(), body, at: Instant::now() });
    if headers.get(header::AUTHORIZATION).is_none_or(|value| value != &format!("Bearer {TOKEN}")) {
        let problem = Problem::new(401, "not-authenticated", "the token is not known to this server");
        return json(401, serde_json::to_string(&problem).unwrap());
    }
    let hook = script.hooks.lock().unwrap().get(&call).cloned();
    if let Some(hook) = hook {
        hook(&script);
    }
    if method == Method::GET && call.contains("/events?after=") {
        return events(script, call.rsplit_once('=').unwrap().1.parse().unwrap());
    }
    match script.answers.lock().unwrap().get(&call) {
        Some((status, body)) => json(*status, body.clone()),
        None => {
            let problem = Problem::new(404, "unknown-path", format!("the fake has no answer for {call}"));
            json(404, serde_json::to_string(&problem).unwrap())
        }
    }
}

fn json(status: u16, body: String) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    if status == StatusCode::NO_CONTENT {
        return status.into_response();
    }
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The stream from event `after` on, to the end of the session or to the cut.
fn events(script: Arc<Script>, after: u64) -> Response {
    let cut = script.cuts.lock().unwrap().pop_front();
    let stream = futures::stream::unfold((script, after, false), move |(script, last, over)| async move {
        if over {
            return None;
        }
        if cut == Some(last) {
            // The connection breaks in the middle of the body, once what was written before has left.
            tokio::time::sleep(Duration::from_millis(100)).await;
            return Some((Err(std::io::Error::other("cut")), (script, last, true)));
        }
        loop {
            let changed = script.changed.notified();
            let next = script.events.lock().unwrap().get(last as usize).cloned();
            if let Some(event) = next {
                let over = matches!(event.event, lull_api::session::EventKind::SessionFinished { .. });
                let text = format!("id: {}\ndata: {}\n\n", event.seq, serde_json::to_string(&event).unwrap());
                return Some((Ok(text), (script.clone(), last + 1, over)));
            }
            // An event that comes between the look and the wait is found by the next look.
            let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
}
