//! A proxy served over an in-memory stream, as the embedded one is, and what its events say.

use hyper_util::rt::TokioIo;
use lull_engine::task_lease::TASK_LEASE_MS;
use lull_proxy::desk::{Desk, ProxyConfig};
use lull_proxy::ground::Machine;
use lull_proxy::service::{serve, serve_on};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::proxy_client::ProxyClient;
use lull_proxy_wire::v1::task_event::Event;
use lull_proxy_wire::v1::to_task::Message;
use std::sync::Arc;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// A client on one end of an in-memory stream, and the proxy that serves the other.
pub async fn embedded(config: ProxyConfig) -> (ProxyClient<Channel>, tokio::task::JoinHandle<()>) {
    connected(&Desk::new(config)).await
}

/// A connection to a proxy with this desk.
pub async fn connected(desk: &Desk) -> (ProxyClient<Channel>, tokio::task::JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    // How the connection ended is the client's business here; that `serve` returns is the test's.
    let desk = desk.clone();
    let proxy = tokio::spawn(async move { drop(serve(theirs, &desk).await) });
    (client(ours).await, proxy)
}

/// A connection to a proxy with this desk, after which it would make another one.
pub async fn on_line(desk: &Desk) -> (ProxyClient<Channel>, tokio::task::JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let desk = desk.clone();
    let line = tokio::spawn(async move { drop(serve_on(theirs, &desk, Arc::new(Machine)).await) });
    (client(ours).await, line)
}

async fn client(ours: DuplexStream) -> ProxyClient<Channel> {
    let mut ours = Some(ours);
    let channel = Endpoint::from_static("http://proxy")
        .connect_with_connector(tower::service_fn(move |_| {
            let io = ours.take().ok_or_else(|| std::io::Error::other("one connection only"));
            async move { io.map(TokioIo::new) }
        }))
        .await
        .unwrap();
    ProxyClient::new(channel)
}

/// A task under way.
pub struct Running {
    pub words: mpsc::Sender<v1::ToTask>,
    events: tonic::Streaming<v1::TaskEvent>,
    pub told: Vec<Event>,
    seq: u64,
}

impl Running {
    pub async fn start(client: &mut ProxyClient<Channel>, order: v1::TaskOrder) -> Running {
        let (words, receiver) = mpsc::channel(16);
        words.send(v1::ToTask { message: Some(Message::Order(order)) }).await.unwrap();
        let events = client.run_task(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Running { words, events, told: vec![], seq: 0 }
    }

    pub fn listen(events: tonic::Streaming<v1::TaskEvent>) -> Running {
        Running { words: mpsc::channel(1).0, events, told: vec![], seq: 0 }
    }

    /// The next event; the sequence has no gap. Leases are granted and frames kept as they come.
    pub async fn next(&mut self) -> Option<Event> {
        let v1::TaskEvent { seq, event, .. } = self.events.message().await.unwrap()?;
        let event = event.unwrap();
        let answer = match &event {
            Event::LeaseAsked(asked) => {
                Some(Message::LeaseGranted(v1::LeaseGranted { number: asked.number, lease_ms: TASK_LEASE_MS }))
            }
            Event::IndexFrame(frame) => Some(Message::FramesKept(v1::FramesKept { number: frame.number })),
            Event::Progress(_) => None,
            _ => {
                self.seq += 1;
                assert_eq!(seq, self.seq);
                None
            }
        };
        if answer.is_some() {
            assert_eq!(seq, 0);
            // Who ended already needs no answer.
            let _ = self.words.send(v1::ToTask { message: answer }).await;
        }
        self.told.push(event.clone());
        Some(event)
    }

    /// Reads on until an event that `matches`; what came before is in `told`.
    pub async fn until(&mut self, matches: impl Fn(&Event) -> bool) -> Event {
        while let Some(event) = self.next().await {
            if matches(&event) {
                return event;
            }
        }
        panic!("it never came; what came: {:#?}", self.told);
    }

    pub async fn until_step(&mut self, step: &str) {
        self.until(|event| matches!(event, Event::StepStarted(started) if started.step == step)).await;
    }

    /// The end, which is the last event.
    pub async fn finished(&mut self) -> v1::Finished {
        let Event::Finished(finished) = self.until(|event| matches!(event, Event::Finished(_))).await else { panic!() };
        assert!(self.events.message().await.unwrap().is_none(), "finished is the last");
        finished
    }

    /// The files of the restore point that it told of.
    pub fn restore_point(&self) -> Option<v1::RestorePointFiles> {
        self.told.iter().find_map(|event| match event {
            Event::RestorePointDone(done) => done.files.clone(),
            _ => None,
        })
    }

    /// Each step with how it ended: `connect ok, deploy ok, …`.
    pub fn steps(&self) -> String {
        let ended = self.told.iter().filter_map(|event| match event {
            Event::StepEnded(ended) => Some(format!("{} {}", ended.step, ended.outcome)),
            _ => None,
        });
        ended.collect::<Vec<_>>().join(", ")
    }

    /// All lines and notes, for assertions on words and for a look when one fails.
    pub fn words_told(&self) -> String {
        let line = |event: &Event| match event {
            Event::StepEnded(e) => format!("{} {} ({} us): {}", e.step, e.outcome, e.took_us, e.detail),
            Event::Note(note) => format!("{}: {}", note.level, note.text),
            other => format!("{other:?}"),
        };
        self.told.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}
