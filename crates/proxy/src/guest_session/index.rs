//! The listing of the guest's files: ordered, its frames passed on, watched, ended.
//!
//! Frames are passed on as they come, neither unpacked nor checked: whoever keeps the catalog does that. A frame that finds no
//! room upwards waits here, and then nothing more is read from the component, whose walk waits too. However the walk ends, it is no
//! error of the task. Knows nothing of what a listing holds.

use super::GuestSession;
use crate::cancel::Cancel;
use crate::failure::Stop;
use crate::reporter::{Reporter, counted};
use crate::runtime_client::{CallError, Heard, RuntimeClient};
use lull_guest_wire::{Answer, Command, IndexOrder, IndexSummary};
use lull_proxy_wire::v1;
use std::time::Duration;
use tokio::time::Instant;

/// A component that says nothing is asked how it does.
const ASK_AFTER: Duration = Duration::from_secs(20);
/// Then it answers within this time, or it counts as lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// A walk that brings nothing for so long hangs: on a disk that does not answer, say.
const STALL_LIMIT: Duration = Duration::from_secs(15 * 60);
/// A walk that is told to end does so within this time, or is left to the end of the component.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// How a listing ended.
#[derive(Debug, Clone, Default)]
pub struct IndexEnd {
    /// What the component said of it; nothing where it was lost.
    pub summary: Option<IndexSummary>,
    /// Why not everything that could be read is listed.
    pub stopped_because: Option<String>,
    /// Frames that were passed on.
    pub frames: u64,
    /// Bytes of those.
    pub bytes: u64,
}

impl IndexEnd {
    fn not(why: impl Into<String>) -> IndexEnd {
        IndexEnd { stopped_because: Some(why.into()), ..IndexEnd::default() }
    }

    /// What could not be read.
    pub fn examples(&self) -> &[String] {
        self.summary.as_ref().map_or(&[], |summary| &summary.examples)
    }
}

impl std::fmt::Display for IndexEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(summary) = &self.summary else {
            return f.write_str(self.stopped_because.as_deref().unwrap_or_default());
        };
        let unreadable = summary.unreadable_folders + summary.unreadable_entries;
        let entries = counted(summary.entries as usize, "file");
        write!(f, "{entries} in {}, {} KiB", counted(summary.folders as usize, "folder"), self.bytes.div_ceil(1024))?;
        for (count, what) in [(unreadable, "unreadable"), (summary.vanished, "gone meanwhile")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        match &self.stopped_because {
            Some(why) => write!(f, "; {why}"),
            None => Ok(()),
        }
    }
}

impl From<IndexEnd> for v1::IndexEnded {
    fn from(end: IndexEnd) -> Self {
        let summary = end.summary.unwrap_or_default();
        v1::IndexEnded {
            complete: end.stopped_because.is_none(),
            stopped_because: end.stopped_because.unwrap_or_default(),
            began_us: summary.began_us,
            ended_us: summary.ended_us,
            folders: summary.folders,
            entries: summary.entries,
            unreadable_folders: summary.unreadable_folders,
            unreadable_entries: summary.unreadable_entries,
            vanished: summary.vanished,
            examples: summary.examples,
            frames: end.frames,
            bytes: end.bytes,
        }
    }
}

/// What happens next in a walk.
enum Next {
    Heard(Result<Heard, CallError>),
    Stop(String),
    Quiet,
}

/// One walk, as it is followed.
struct Walk<'a> {
    reporter: &'a Reporter,
    cancel: &'a Cancel,
    stop: &'a Cancel,
    index: u32,
    end: IndexEnd,
    heard: Instant,
    brought: Instant,
    /// Why it was told to end, and until when it ought to have.
    stopping: Option<(String, Instant)>,
}

impl GuestSession<'_> {
    /// Lists the guest's files until all are listed, `stop` or the task is cancelled, or the component is lost.
    pub async fn index(&mut self, order: IndexOrder, stop: &Cancel) -> IndexEnd {
        self.settle().await;
        if self.component.is_none()
            && let Err(e) = self.redeploy().await
        {
            return IndexEnd::not(format!("there is no component in the guest: {e}"));
        }
        let (reporter, cancel) = (self.reporter.clone(), self.cancel.clone());
        let Some((client, _)) = &mut self.component else { return IndexEnd::not("there is no component in the guest") };
        let (end, lost) = match client.send(Command::Index(order)).await {
            Ok(index) => Walk::new(index, &reporter, &cancel, stop).follow(client).await,
            Err(e) => (IndexEnd::not(e.to_string()), true),
        };
        for note in client.take_notes() {
            reporter.info(note);
        }
        if lost {
            self.component = None;
        }
        end
    }
}

impl<'a> Walk<'a> {
    fn new(index: u32, reporter: &'a Reporter, cancel: &'a Cancel, stop: &'a Cancel) -> Self {
        let now = Instant::now();
        Walk { reporter, cancel, stop, index, end: IndexEnd::default(), heard: now, brought: now, stopping: None }
    }

    /// How it ended, and whether the component counts as lost.
    async fn follow(mut self, client: &mut RuntimeClient) -> (IndexEnd, bool) {
        loop {
            let asked = match self.next(client).await {
                Next::Heard(Err(e)) => return self.lost(e.to_string()),
                Next::Heard(Ok(Heard::Reply(id, result))) if id == self.index => return self.ended(*result),
                Next::Heard(Ok(heard)) => {
                    self.heard = Instant::now();
                    if let Heard::Listing(compressed) = heard {
                        self.pass_on(compressed).await;
                    }
                    continue;
                }
                Next::Stop(why) => {
                    self.stopping = Some((why, Instant::now() + STOP_LIMIT));
                    Command::CancelIndex
                }
                Next::Quiet => match self.judge_silence() {
                    Ok(command) => command,
                    Err(why) => return self.lost(why),
                },
            };
            // A component that does not even read is lost.
            match tokio::time::timeout(ANSWER_LIMIT, client.send(asked)).await {
                Ok(Ok(_)) => {}
                Ok(Err(e)) => return self.lost(e.to_string()),
                Err(_) => return self.lost(silent()),
            }
        }
    }

    async fn next(&self, client: &mut RuntimeClient) -> Next {
        let stopping = self.stopping.is_some();
        let quiet = match &self.stopping {
            Some((_, until)) => *until,
            None => Instant::now() + ASK_AFTER,
        };
        tokio::select! {
            biased;
            why = self.told_to_stop(), if !stopping => Next::Stop(why),
            heard = client.hear() => Next::Heard(heard),
            () = tokio::time::sleep_until(quiet) => Next::Quiet,
        }
    }

    async fn told_to_stop(&self) -> String {
        let stopped = tokio::select! {
            // A person's wish says more than what followed from it.
            biased;
            () = self.cancel.cancelled() => self.cancel.stop(),
            () = self.stop.cancelled() => self.stop.stop(),
        };
        match stopped {
            Stop::Cancelled(why) => why,
            Stop::Failed(failure) => failure.to_string(),
        }
    }

    /// Waits for room; a walk that is told to end drops what it brings.
    async fn pass_on(&mut self, compressed: Vec<u8>) {
        let bytes = compressed.len() as u64;
        if self.stopping.is_none() {
            tokio::select! {
                biased;
                () = self.reporter.index_frame(compressed) => {
                    self.end.frames += 1;
                    self.end.bytes += bytes;
                }
                // It is seen to next.
                _ = self.told_to_stop() => {}
            }
        }
        // The time that was waited for room is not the component's.
        self.heard = Instant::now();
        self.brought = self.heard;
    }

    /// What to ask a component that said nothing for a while, or why it is given up.
    fn judge_silence(&mut self) -> Result<Command, String> {
        if let Some((why, _)) = &self.stopping {
            return Err(format!("{why}; the component did not end its walk within {} s", STOP_LIMIT.as_secs()));
        }
        if self.heard.elapsed() >= ANSWER_LIMIT {
            return Err(silent());
        }
        if self.brought.elapsed() >= STALL_LIMIT {
            let why = format!("the walk brought nothing for {} minutes", STALL_LIMIT.as_secs() / 60);
            self.stopping = Some((why, Instant::now() + STOP_LIMIT));
            return Ok(Command::CancelIndex);
        }
        Ok(Command::Status)
    }

    fn lost(mut self, why: String) -> (IndexEnd, bool) {
        self.end.stopped_because = Some(why);
        (self.end, true)
    }

    fn ended(mut self, result: Result<Answer, lull_guest_wire::Refusal>) -> (IndexEnd, bool) {
        match result {
            Ok(Answer::Indexed(summary)) => {
                let own = summary.stopped_because.clone().filter(|_| !summary.complete);
                let incomplete = (!summary.complete).then(|| "the component did not say why".to_string());
                self.end.stopped_because = self.stopping.map(|(why, _)| why).or(own).or(incomplete);
                self.end.summary = Some(summary);
                (self.end, false)
            }
            Ok(other) => {
                let other: String = format!("{other:?}").chars().take(200).collect();
                self.lost(CallError::Protocol(other).to_string())
            }
            Err(refusal) => {
                self.end.stopped_because = Some(refusal.to_string());
                (self.end, false)
            }
        }
    }
}

fn silent() -> String {
    format!("the component said nothing for {} s", ANSWER_LIMIT.as_secs())
}
