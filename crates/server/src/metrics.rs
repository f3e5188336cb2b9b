//! What monitoring asks for, as OpenMetrics text: counters of what was written down, and gauges of how things are at the moment of asking.
//! Also serves any such text over HTTP; decides nothing.

use crate::infrastructure::snapshot;
use crate::runner::preview;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::writes::Write;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::future::BoxFuture;
use lull_api::session::EventKind;
use lull_engine::infrastructure::ServerState;
use lull_engine::session::TaskState;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Upper ends of the freeze window's buckets, in seconds: from what a healthy guest takes to the longest that is ever allowed.
const WINDOW_BUCKETS_S: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0];
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Label = [(&'static str, String); 1];
type Counters = Family<Label, Counter>;
type Gauges = Family<Label, Gauge>;

/// Counters since this server started.
pub struct Metrics {
    choices: Counters,
    failovers: Counter,
    tasks: Counters,
    sessions: Counters,
    freeze_window: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            choices: Counters::default(),
            failovers: Counter::default(),
            tasks: Counters::default(),
            sessions: Counters::default(),
            freeze_window: Histogram::new(WINDOW_BUCKETS_S),
        }
    }
}

impl Metrics {
    /// Counts and logs what was written down for a session, once it is on disk.
    pub fn observe(&self, session: i64, writes: &[Write]) {
        for write in writes {
            match write {
                Write::Dispatched { task, name, tier, epoch, .. } => {
                    let label = tier.map_or("none".to_string(), |tier| tier.to_string());
                    self.choices.get_or_create(&[("tier", label)]).inc();
                    tracing::info!(session, %task, epoch, proxy = name, tier, "a proxy gets the task");
                }
                Write::DispatchEnded { task, end, epoch } => {
                    tracing::info!(session, %task, epoch, end, "the proxy is done with the task");
                }
                Write::HandedOn { task } => {
                    self.failovers.inc();
                    tracing::info!(session, %task, "another proxy takes the task over");
                }
                Write::Event { task, event } => self.observe_event(session, task.as_ref().map(|(_, vm)| vm), event),
                _ => {}
            }
        }
    }

    fn observe_event(&self, session: i64, vm: Option<&String>, event: &EventKind) {
        match event {
            EventKind::Thawed { window_us, .. } if *window_us > 0 => {
                self.freeze_window.observe(*window_us as f64 / 1e6);
            }
            EventKind::TaskFinished { result, level, failure } => {
                self.tasks.get_or_create(&[("result", result.clone())]).inc();
                let failure = failure.as_ref().map(|failure| failure.text.as_str());
                tracing::info!(session, vm, result, level, failure, "the task is over");
            }
            EventKind::SessionFinished { result } => {
                self.sessions.get_or_create(&[("result", result.clone())]).inc();
                tracing::info!(session, result, "the session is over");
            }
            _ => {}
        }
    }
}

/// Everything, as text.
pub async fn text(server: &Server) -> Result<String, StoreError> {
    let metrics = &server.metrics;
    let mut registry = Registry::with_prefix("lull");
    let build = Gauges::default();
    build.get_or_create(&[("version", env!("CARGO_PKG_VERSION").to_string())]).set(1);
    registry.register("build_info", "Version of the backup server; always 1", build);
    registry.register(
        "proxy_choices",
        "Tasks given to a proxy, by tier (1 is best; none: no way into the guest was needed)",
        metrics.choices.clone(),
    );
    registry.register("failovers", "Tasks that another proxy had to take over", metrics.failovers.clone());
    registry.register("tasks_finished", "Tasks that ended, by result", metrics.tasks.clone());
    registry.register("sessions_finished", "Sessions that ended, by result", metrics.sessions.clone());
    registry.register_with_unit(
        "freeze_window",
        "From freeze sent to thaw answered",
        Unit::Seconds,
        metrics.freeze_window.clone(),
    );

    let tasks = Gauges::default();
    for state in ["waiting", "running", "recovering"] {
        tasks.get_or_create(&[("state", state.to_string())]).set(0);
    }
    for open in server.book.open_tasks().await {
        let state = match open.row.state {
            TaskState::Waiting { .. } => "waiting",
            TaskState::Dispatched { .. } | TaskState::Running { .. } => "running",
            TaskState::Recovering { .. } => "recovering",
            TaskState::Finished { .. } => continue,
        };
        tasks.get_or_create(&[("state", state.to_string())]).inc();
    }
    registry.register("tasks_open", "Tasks that are not over; waiting is the queue", tasks);

    let (slots, running, online) = (Gauges::default(), Gauges::default(), Gauges::default());
    let states = Family::<[(&'static str, String); 2], Gauge>::default();
    for proxy in snapshot(server).await?.servers {
        let label = [("proxy", proxy.name.clone())];
        slots.get_or_create(&label).set(proxy.slots.into());
        running.get_or_create(&label).set(proxy.running_tasks.into());
        online.get_or_create(&label).set(i64::from(proxy.state == ServerState::Online));
        let state = preview::state(&proxy).to_string();
        states.get_or_create(&[("proxy", proxy.name.clone()), ("state", state)]).set(1);
    }
    registry.register("proxy_slots", "Task slots", slots);
    registry.register("proxy_tasks", "Tasks that the proxy works on", running);
    registry.register("proxy_online", "1: it takes tasks; 0: it is offline, draining or disabled", online);
    registry.register("proxy_state", "1 for the state that the proxy is in", states);

    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &registry);
    Ok(text)
}

/// What is served at `GET /metrics`; an error is answered as such.
pub type MetricsText = Arc<dyn Fn() -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// Answers `GET /metrics` on this listener until `stopped`. Asks nobody who he is: the address is chosen for that.
pub async fn serve(listener: TcpListener, text: MetricsText, stopped: CancellationToken) {
    let router = Router::new().route("/metrics", get(move || answer(text.clone())));
    crate::accept::serve(listener, router, stopped).await;
}

/// The same for as long as the program runs.
pub async fn serve_for_good(listener: TcpListener, text: MetricsText) {
    serve(listener, text, CancellationToken::new()).await;
}

async fn answer(text: MetricsText) -> Response {
    match text().await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, why).into_response(),
    }
}
