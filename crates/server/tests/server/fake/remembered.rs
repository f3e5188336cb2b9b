//! A task on a fake's desk: it outlives the call that brought it. Knows nothing of what it tells.

use lull_proxy_wire::v1;
use lull_proxy_wire::v1::to_task::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// A task on a fake's desk: what it told so far, and the way to it.
#[derive(Clone)]
pub struct Remembered {
    words: mpsc::Sender<Message>,
    told: watch::Receiver<Vec<Result<v1::TaskEvent, Status>>>,
}

/// What comes down over one call, until it ends.
pub async fn passed_on(mut down: Streaming<v1::ToTask>, words: mpsc::Sender<Message>) {
    while let Ok(Some(v1::ToTask { message: Some(word) })) = down.message().await {
        let _ = words.send(word).await;
    }
}

impl Remembered {
    pub fn new(words: mpsc::Sender<Message>, mut events: mpsc::Receiver<Result<v1::TaskEvent, Status>>) -> Self {
        let (told, heard) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                told.send_modify(|told| told.push(event));
            }
        });
        Remembered { words, told: heard }
    }

    /// One call: its words go to the task, what the task tells after this event comes back.
    pub fn listened(
        self,
        down: Streaming<v1::ToTask>,
        after_seq: u64,
    ) -> impl Stream<Item = Result<v1::TaskEvent, Status>> + Send {
        tokio::spawn(passed_on(down, self.words));
        let mut told = self.told;
        let (tx, rx) = mpsc::channel(64);
        tokio::spawn(async move {
            let mut next = 0;
            loop {
                let events: Vec<_> = told.borrow_and_update()[next..].to_vec();
                next += events.len();
                let new = |event: &Result<v1::TaskEvent, Status>| {
                    event.as_ref().map_or(true, |e| e.seq == 0 || e.seq > after_seq)
                };
                for event in events.into_iter().filter(new) {
                    if tx.send(event).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = tx.closed() => return,
                    more = told.changed() => if more.is_err() { return },
                }
            }
        });
        ReceiverStream::new(rx)
    }
}
