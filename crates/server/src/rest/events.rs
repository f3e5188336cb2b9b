//! The events of a session as a stream that can break anywhere: whoever comes back with the last number it saw gets
//! every later event, once, in order. Live events are only a hint; the store has them all.

use super::answer::Answer;
use super::body::Params;
use super::view;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use lull_api::session::{EventKind, SessionEvent};
use serde::Deserialize;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Events read from the store at once.
const PAGE: u32 = 500;
/// A silent stream says this often that it lives.
const KEEP_ALIVE_MS: u64 = 5_000;

/// Where to go on.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// Number of the last event seen; 0 or absent for all of them.
    after: Option<u64>,
}

/// The session's events, from the store and then live, to its last one.
#[utoipa::path(get, path = "/sessions/{session}/events", tag = "sessions",
    params(("session" = String, Path, description = "number"), From,
        ("Last-Event-ID" = Option<u64>, Header, description = "serves as `after` where that is absent")),
    responses((status = 200, content_type = "text/event-stream", body = SessionEvent,
        description = "each event as one `data:` line, its number as `id:`")))]
pub async fn events(
    State(server): State<Arc<Server>>,
    Path(session): Path<String>,
    Params(from): Params<From>,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Event, StoreError>>>> {
    let row = view::find(&server, &session).await?;
    let header = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let after = from.after.or(header).unwrap_or(0);
    let follower = Follower::new(server, row.id, after);
    let stream = futures::stream::unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        Some((item.map(sent), follower))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_millis(KEEP_ALIVE_MS))))
}

fn sent(event: SessionEvent) -> Event {
    let data = Event::default().data(json(&event));
    // Progress has no number to come back to.
    if event.seq == 0 { data } else { data.id(event.seq.to_string()) }
}

struct Follower {
    server: Arc<Server>,
    session: i64,
    last: u64,
    live: broadcast::Receiver<SessionEvent>,
    read: VecDeque<SessionEvent>,
    /// Whether the store may have events that were not read yet.
    behind: bool,
    over: bool,
}

impl Follower {
    fn new(server: Arc<Server>, session: i64, last: u64) -> Self {
        // Before the store is read, so that nothing falls between the two.
        let live = server.hub.follow(session);
        Follower { server, session, last, live, read: VecDeque::new(), behind: true, over: false }
    }

    /// The next event; `None` after the last one, or when the server stops.
    async fn next(&mut self) -> Option<Result<SessionEvent, StoreError>> {
        loop {
            if self.over {
                return None;
            }
            if let Some(event) = self.read.pop_front() {
                self.last = event.seq;
                self.over = matches!(event.event, EventKind::SessionFinished { .. });
                return Some(Ok(event));
            }
            if self.behind {
                match self.server.store.events(self.session, self.last, PAGE).await {
                    Ok(page) => {
                        self.behind = page.len() == PAGE as usize;
                        self.read.extend(page);
                        if self.read.is_empty() && self.is_finished().await {
                            return None;
                        }
                    }
                    Err(error) => {
                        self.over = true;
                        return Some(Err(error));
                    }
                }
                continue;
            }
            let (stopping, killed) = (self.server.stopped.clone(), self.server.killed.clone());
            let event = tokio::select! {
                event = self.live.recv() => event,
                () = stopping.cancelled() => return None,
                () = killed.cancelled() => return None,
            };
            match event {
                Ok(event) if event.seq == 0 => return Some(Ok(event)),
                Ok(event) if event.seq <= self.last => {}
                Ok(event) if event.seq == self.last + 1 => self.read.push_back(event),
                // Events of two tasks can overtake each other, and a slow reader loses some: the store has them.
                Ok(_) | Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Whether the session is over, so that nothing more can come.
    async fn is_finished(&self) -> bool {
        let row = self.server.store.session(self.session).await;
        row.is_ok_and(|row| row.is_none_or(|row| row.ended.is_some() && row.last_event <= self.last))
    }
}
