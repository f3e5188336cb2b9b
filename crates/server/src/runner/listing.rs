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

/// One listing.
#[derive(Default)]
pub enum Listing {
    /// Nothing came yet.
    #[default]
    Awaited,
    /// It is coming in.
    Coming(Spool),
    /// Nothing more is taken.
    Ended,
}

impl Listing {
    /// Keeps a frame, or has the listing ended.
    pub async fn frame(
        &mut self,
        server: &Arc<Server>,
        task: &TaskRow,
        compressed: &[u8],
        to_proxy: &mpsc::Sender<Message>,
    ) {
        let kept = match self.begun(server, task).await {
            Ok(Some(spool)) => spool.frame(compressed).await,
            Ok(None) => Ok(()),
            Err(why) => Err(why),
        };
        let Err(reason) = kept else { return };
        // What came so far counts: it ends where the disk did.
        if let Listing::Coming(spool) = std::mem::replace(self, Listing::Ended) {
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
            Listing::Coming(spool) => begun.and(spool.end(&summary(end)).await),
            Listing::Awaited | Listing::Ended => begun,
        };
        if let Err(why) = ended {
            warn(server, task, why).await;
        }
    }

    async fn begun(&mut self, server: &Arc<Server>, task: &TaskRow) -> Result<Option<&mut Spool>, String> {
        if let (Listing::Awaited, Some(backup)) = (&*self, &task.work.backup) {
            let begun = server.catalog.begin(backup.restore_point.0).await;
            *self = Listing::Coming(begun.map_err(|error| format!("the backup server cannot keep it: {error}"))?);
        }
        match self {
            Listing::Coming(spool) => Ok(Some(spool)),
            Listing::Awaited | Listing::Ended => Ok(None),
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
