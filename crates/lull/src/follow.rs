//! Showing a session while it runs: a growing tree on a terminal, a line per event elsewhere, JSON lines for programs.
//!
//! Knows the stream of events; knows nothing of what started the session.

mod fold;
mod live;

use crate::calls;
use crate::commands::job::WatchArgs;
use crate::exit::{self, Exit};
use crate::render::{event, session as tree};
use crate::screen::Screen;
use crate::trouble::{Result, Trouble};
use futures::StreamExt;
use live::Live;
use lull_api::Client;
use lull_api::session::{EventKind, Session, SessionEvent};
use serde::Serialize;
use std::pin::pin;

/// How a session is shown.
enum View {
    /// Nothing until the end.
    Silent,
    /// Every event as a line of JSON.
    JsonLines,
    /// Every event as a line of text.
    Lines,
    /// A tree that grows.
    Live(Box<Live>),
}

/// An event with its session's number, so that a line says by itself what it is about.
#[derive(Serialize)]
struct NumberedEvent<'a> {
    session: i64,
    #[serde(flatten)]
    event: &'a SessionEvent,
}

/// After a session was started: shows it to its end, or only names it with `--detach`.
pub async fn started(client: &Client, screen: &Screen, session: Session, watch: &WatchArgs) -> Result<Exit> {
    if watch.detach {
        let id = session.summary.id;
        screen.show(&session, |session, look| {
            format!("{}\n`lull session follow {id}` shows it.\n", tree::headline(&session.summary, look))
        })?;
        return Ok(Exit::Ok);
    }
    if screen.json && !watch.follow {
        let session = quietly(client, screen, session).await?;
        screen.json_line(&session)?;
        return Ok(exit::of_result(session.summary.result.as_deref()));
    }
    to_the_end(client, screen, session).await
}

/// Shows a session to its end; the exit code is its result.
pub async fn to_the_end(client: &Client, screen: &Screen, session: Session) -> Result<Exit> {
    let view = if screen.json {
        View::JsonLines
    } else if !screen.is_live() {
        View::Lines
    } else if session.summary.state == "finished" {
        screen.text(&tree::tree(&session, &screen.look(), false))?;
        return Ok(exit::of_result(session.summary.result.as_deref()));
    } else {
        View::Live(Box::new(Live::new(&session, screen.look())?))
    };
    let session = watch(client, screen, session, view).await?;
    Ok(exit::of_result(session.summary.result.as_deref()))
}

/// Waits for the end of a session without showing anything.
pub async fn quietly(client: &Client, screen: &Screen, session: Session) -> Result<Session> {
    watch(client, screen, session, View::Silent).await
}

async fn watch(client: &Client, screen: &Screen, mut session: Session, mut view: View) -> Result<Session> {
    let id = session.summary.id;
    if session.summary.state == "finished" && matches!(view, View::Silent) {
        return Ok(session);
    }
    // Lines begin with the first event, so that a log is whole; the tree already holds what happened so far.
    let after = if matches!(view, View::Live(_) | View::Silent) { session.last_event } else { 0 };
    let mut events = pin!(client.events(id, after));
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tokio::signal::ctrl_c() => {
                drop(view);
                screen.remark(&format!(
                    "Session {id} goes on: `lull session follow {id}` shows it, `lull session cancel {id}` cancels it."
                ));
                return Err(Trouble { exit: Exit::Interrupted, problem: None });
            }
        };
        let Some(event) = event.transpose()? else { break };
        fold::apply(&mut session, &event);
        if matches!(event.event, EventKind::TaskFinished { .. }) {
            // The receipt and the reasons are in no event.
            refresh_task(client, &mut session, &event).await?;
        }
        view.show(screen, &session, &event)?;
        if matches!(event.event, EventKind::SessionFinished { .. }) {
            break;
        }
    }
    let session = calls::session(client, id).await?;
    view.end(screen, &session)?;
    Ok(session)
}

async fn refresh_task(client: &Client, session: &mut Session, event: &SessionEvent) -> Result<()> {
    let newest = calls::session(client, session.summary.id).await?;
    let same = |id| event.task.is_some_and(|task| task == id);
    if let Some(finished) = newest.tasks.into_iter().find(|task| same(task.id)) {
        match session.tasks.iter_mut().find(|task| same(task.id)) {
            Some(known) => *known = finished,
            None => session.tasks.push(finished),
        }
    }
    Ok(())
}

impl View {
    fn show(&mut self, screen: &Screen, session: &Session, event: &SessionEvent) -> Result<()> {
        let finished = matches!(event.event, EventKind::TaskFinished { .. });
        let task = session.tasks.iter().find(|task| event.task == Some(task.id));
        match self {
            View::Silent => Ok(()),
            View::JsonLines => screen.json_line(&NumberedEvent { session: session.summary.id, event }),
            View::Lines => {
                let look = screen.look();
                let mut text = event::line(event, &look).map(|line| line + "\n").unwrap_or_default();
                if let (true, Some(task)) = (finished, task) {
                    text.push_str(&event::task_summary(task, &look));
                }
                screen.text(&text)
            }
            View::Live(live) => live.show(task, finished, screen.look()),
        }
    }

    fn end(self, screen: &Screen, session: &Session) -> Result<()> {
        match self {
            View::Silent | View::JsonLines => Ok(()),
            View::Lines => screen.text(&format!("{}\n", tree::headline(&session.summary, &screen.look()))),
            View::Live(live) => {
                drop(live);
                screen.text(&format!("{}\n", tree::headline(&session.summary, &screen.look())))
            }
        }
    }
}
