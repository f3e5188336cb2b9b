//! The listing of a guest's files, from the call to a proxy into its file. Whatever goes wrong with it ends the listing, not the backup.
//! Knows nothing of what is in a listing.

use super::actions::record;
use super::book::Happening;
use crate::catalog::spool::Spool;
use crate::server::Server;
use crate::store::sessions::TaskRow;
use lull_api::session::EventKind;
use lull_catalog::IndexSummary;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::to_task::Message;
use std::sync::Arc;
use tokio::sync::mpsc;

/// The proxy is told of every so many frames that they are kept.
const FRAMES_TOLD_EVERY: u64 = 4;

/// One listing.
#[derive(Default)]
pub enum Listing {
    /// Nothing came yet.
    #[default]
    Awaited,
    /// An earlier run of the server may have begun it.
    Resumed,
    /// It is coming in; the number of its last frame.
    Coming(Spool, u64),
    /// Nothing more is taken.
    Ended,
}

impl Listing {
    /// Keeps a frame, or has the listing ended.
    pub async fn frame(
        &mut self,
        server: &Arc<Server>,
        task: &TaskRow,
        frame: v1::IndexFrame,
        to_proxy: &mpsc::Sender<Message>,
    ) {
        let kept = match self.begun(server, task).await {
            Ok(Some((_, last))) if frame.number <= *last => Ok(()),
            Ok(Some((_, last))) if frame.number > *last + 1 => {
                Err(format!("pieces {} to {} of the listing were lost", *last + 1, frame.number - 1))
            }
            Ok(Some((spool, last))) => spool.frame(&frame.compressed).await.map(|()| *last = frame.number),
            Ok(None) => Ok(()),
            Err(why) => Err(why),
        };
        let Err(reason) = kept else {
            if frame.number.is_multiple_of(FRAMES_TOLD_EVERY) {
                // Where it cannot be told now, the next one says so too.
                let _ = to_proxy.try_send(Message::FramesKept(v1::FramesKept { number: frame.number }));
            }
            return;
        };
        // What came so far counts: it ends where the disk did.
        if let Listing::Coming(spool, _) = std::mem::replace(self, Listing::Ended) {
            let stopped = IndexSummary { stopped_because: Some(reason.clone()), ..IndexSummary::default() };
            if let Err(error) = spool.end(&stopped).await {
                tracing::warn!(task = %task.id, error, "a listing has no end");
            }
        }
        // The proxy says in the session why the listing ended. Where it cannot be told, its frames are passed over.
        if to_proxy.try_send(Message::StopIndex(v1::StopIndex { reason: reason.clone() })).is_err() {
            warn(server, task, reason).await;
        }
    }

    /// The walk ended.
    pub async fn end(&mut self, server: &Arc<Server>, task: &TaskRow, end: v1::IndexEnded) {
        let begun = self.begun(server, task).await.map(drop);
        let ended = match std::mem::replace(self, Listing::Ended) {
            Listing::Coming(spool, _) => begun.and(spool.end(&summary(end)).await),
            Listing::Awaited | Listing::Resumed | Listing::Ended => begun,
        };
        if let Err(why) = ended {
            warn(server, task, why).await;
        }
    }

    /// The number of the last frame that is kept.
    pub async fn kept(&mut self, server: &Arc<Server>, task: &TaskRow) -> u64 {
        if matches!(self, Listing::Resumed) && self.begun(server, task).await.is_err() {
            // It is told when the first frame comes.
            *self = Listing::Awaited;
        }
        match self {
            Listing::Coming(_, last) => *last,
            Listing::Awaited | Listing::Resumed => 0,
            // None is wanted any more.
            Listing::Ended => u64::MAX,
        }
    }

    async fn begun(&mut self, server: &Arc<Server>, task: &TaskRow) -> Result<Option<(&mut Spool, &mut u64)>, String> {
        let cannot = |error: std::io::Error| format!("the backup server cannot keep it: {error}");
        match (&*self, &task.work.backup) {
            (Listing::Awaited, Some(backup)) => {
                *self = Listing::Coming(server.catalog.begin(backup.restore_point.0).await.map_err(cannot)?, 0);
            }
            (Listing::Resumed, Some(backup)) => {
                *self = match server.catalog.resume(backup.restore_point.0).await.map_err(cannot)? {
                    Some((spool, last)) => Listing::Coming(spool, last),
                    None => Listing::Ended,
                };
            }
            _ => {}
        }
        match self {
            Listing::Coming(spool, last) => Ok(Some((spool, last))),
            Listing::Awaited | Listing::Resumed | Listing::Ended => Ok(None),
        }
    }
}

fn summary(end: v1::IndexEnded) -> IndexSummary {
    IndexSummary {
        began_us: end.began_us,
        ended_us: end.ended_us,
        folders: end.folders,
        entries: end.entries,
        unreadable_folders: end.unreadable_folders,
        unreadable_entries: end.unreadable_entries,
        vanished: end.vanished,
        complete: end.complete,
        stopped_because: Some(end.stopped_because).filter(|why| !why.is_empty()),
        examples: end.examples,
    }
}

async fn warn(server: &Arc<Server>, task: &TaskRow, why: String) {
    let text = format!("the guest's files were not all listed: {why}");
    let told = vec![EventKind::Note { level: "warning".into(), text }];
    record(server, task.id, Happening { told, ..Default::default() }).await;
}
