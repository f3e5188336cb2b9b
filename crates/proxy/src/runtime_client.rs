//! Talks to the runtime component: commands down, answers back by their number, notes in between.
//!
//! Nothing here runs by itself: bytes are read only while somebody awaits an answer, so a renewal can only come from code
//! that makes progress. Knows nothing of what a command does.

use crate::cancel::Cancel;
use lull_guest_wire::listing::COMPRESSED_BYTES_MAX;
use lull_guest_wire::{
    Answer, Command, Event, FrameError, FromRuntime, Held, Hello, ListingFrame, Refusal, ToRuntime, frame,
};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// What a component said before its channel broke is there, or nearly.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(1);

/// Why a command has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The component will not; it says why.
    #[error("{0}")]
    Refused(Refusal),
    /// Not in time. It may still be carried out.
    #[error("the runtime component did not answer within {after_ms} ms")]
    TimedOut {
        /// How long it was waited for.
        after_ms: u64,
    },
    /// The connection is gone. What was commanded may have been carried out.
    #[error("the connection to the runtime component broke: {0}")]
    Lost(String),
    /// It does not speak as it should.
    #[error("the runtime component answered what was not asked: {0}")]
    Protocol(String),
    /// A newer task's component came: this one has thawed, ended and gone.
    #[error("a newer task holds the guest")]
    Evicted,
}

impl CallError {
    /// True where the component itself said no, so that nothing is left open.
    pub fn is_refusal(&self) -> bool {
        matches!(self, CallError::Refused(_))
    }

    /// True where the component will not answer any more.
    pub fn ends_component(&self) -> bool {
        matches!(self, CallError::Lost(_) | CallError::Protocol(_) | CallError::Evicted)
    }
}

impl From<FrameError> for CallError {
    fn from(e: FrameError) -> Self {
        match e {
            FrameError::Closed => CallError::Lost("it was closed".into()),
            FrameError::Io(e) => CallError::Lost(e.to_string()),
            other => CallError::Protocol(other.to_string()),
        }
    }
}

/// What a component says while it lists files.
#[derive(Debug)]
pub enum Heard {
    /// The answer to the command with this number.
    Reply(u32, Box<Result<Answer, Refusal>>),
    /// A part of the listing, compressed.
    Listing(Vec<u8>),
}

/// One connection to one component.
pub struct RuntimeClient {
    reader: Box<dyn AsyncRead + Send + Sync + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    buffer: Vec<u8>,
    next_id: u32,
    /// Answers that came while another one was awaited.
    waiting: BTreeMap<u32, Result<Answer, Refusal>>,
    notes: Vec<String>,
    evicted: Cancel,
}

impl std::fmt::Debug for RuntimeClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuntimeClient").field("next_id", &self.next_id).finish_non_exhaustive()
    }
}

impl RuntimeClient {
    /// Speaks over these streams; the component's first frame has not been read yet.
    pub fn new(
        reader: Box<dyn AsyncRead + Send + Sync + Unpin>,
        writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    ) -> Self {
        let buffer = Vec::with_capacity(64 * 1024);
        let (waiting, notes, evicted) = (BTreeMap::new(), Vec::new(), Cancel::default());
        RuntimeClient { reader, writer, buffer, next_id: 1, waiting, notes, evicted }
    }

    /// Whom to tell when the component has to make room for a newer task's.
    pub fn on_eviction(&mut self, evicted: Cancel) {
        self.evicted = evicted;
    }

    /// Its first word; or who holds the guest instead of it.
    pub async fn hello(&mut self) -> Result<Result<Hello, Held>, CallError> {
        match self.message().await? {
            FromRuntime::Hello(hello) => Ok(Ok(hello)),
            FromRuntime::Held(held) => Ok(Err(held)),
            other => Err(CallError::Protocol(format!("{other:?} instead of its first word"))),
        }
    }

    /// Sends a command; its number is for [`RuntimeClient::answer`].
    pub async fn send(&mut self, command: Command) -> Result<u32, CallError> {
        let id = self.next_id;
        self.next_id += 1;
        let bytes = frame::encode(&ToRuntime { id, command })?;
        let write = async {
            self.writer.write_all(&bytes).await?;
            self.writer.flush().await
        };
        match write.await {
            Ok(()) => Ok(id),
            Err(e) => Err(self.last_word(CallError::Lost(e.to_string())).await),
        }
    }

    /// A component that takes no more commands may have said why.
    async fn last_word(&mut self, lost: CallError) -> CallError {
        let until = Instant::now() + LAST_WORD_LIMIT;
        loop {
            match tokio::time::timeout_at(until, self.message()).await {
                Ok(Ok(FromRuntime::Reply { id, result })) => drop(self.waiting.insert(id, result)),
                Ok(Ok(_)) => {}
                Ok(Err(CallError::Evicted)) => return CallError::Evicted,
                Ok(Err(_)) | Err(_) => return lost,
            }
        }
    }

    /// The answer to the command with this number. Dropping the future loses nothing: the answer can be awaited again.
    pub async fn answer(&mut self, id: u32) -> Result<Answer, CallError> {
        loop {
            if let Some(result) = self.waiting.remove(&id) {
                return result.map_err(CallError::Refused);
            }
            let (id, result) = self.any_reply().await?;
            self.waiting.insert(id, result);
        }
    }

    /// [`RuntimeClient::answer`] within a time.
    pub async fn answer_within(&mut self, id: u32, limit: Duration) -> Result<Answer, CallError> {
        match tokio::time::timeout(limit, self.answer(id)).await {
            Ok(result) => result,
            Err(_) => Err(CallError::TimedOut { after_ms: limit.as_millis() as u64 }),
        }
    }

    /// Sends a command and awaits its answer, both within `limit`.
    pub async fn call(&mut self, command: Command, limit: Duration) -> Result<Answer, CallError> {
        let until = Instant::now() + limit;
        let timed_out = CallError::TimedOut { after_ms: limit.as_millis() as u64 };
        let Ok(id) = tokio::time::timeout_at(until, self.send(command)).await else { return Err(timed_out) };
        let id = id?;
        tokio::time::timeout_at(until, self.answer(id)).await.unwrap_or(Err(timed_out))
    }

    /// What the component noted since the last time.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    async fn any_reply(&mut self) -> Result<(u32, Result<Answer, Refusal>), CallError> {
        loop {
            match self.hear().await? {
                Heard::Reply(id, result) => return Ok((id, *result)),
                // Of a walk that was given up.
                Heard::Listing(_) => {}
            }
        }
    }

    /// The next answer or part of a listing. Dropping the future loses nothing.
    pub async fn hear(&mut self) -> Result<Heard, CallError> {
        loop {
            match self.message().await? {
                FromRuntime::Reply { id, result } => return Ok(Heard::Reply(id, Box::new(result))),
                FromRuntime::Listing(ListingFrame { compressed }) if compressed.len() > COMPRESSED_BYTES_MAX => {
                    return Err(CallError::Protocol(format!("a frame of {} bytes in a listing", compressed.len())));
                }
                FromRuntime::Listing(ListingFrame { compressed }) => return Ok(Heard::Listing(compressed)),
                FromRuntime::Event(Event::Note(note)) => {
                    // Bounded: a component gone mad must not fill our memory.
                    if self.notes.len() < 1000 {
                        self.notes.push(note);
                    }
                }
                FromRuntime::Hello(_) | FromRuntime::Held(_) => {
                    return Err(CallError::Protocol("a second first word".into()));
                }
                // It ends every wait for a message.
                FromRuntime::Evicted => return Err(CallError::Evicted),
            }
        }
    }

    /// Cancel-safe: what was read stays in the buffer.
    async fn message(&mut self) -> Result<FromRuntime, CallError> {
        loop {
            if let Some(message) = frame::take(&mut self.buffer)? {
                if message == FromRuntime::Evicted {
                    self.evicted.evict();
                    return Err(CallError::Evicted);
                }
                return Ok(message);
            }
            match self.reader.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(CallError::Lost("it was closed".into())),
                Ok(_) => {}
                Err(e) => return Err(CallError::Lost(e.to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_guest_wire::{RefusalKind, frame};

    /// A client, and the component's end of its connection.
    fn pair() -> (RuntimeClient, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (reader, writer) = tokio::io::split(ours);
        (RuntimeClient::new(Box::new(reader), Box::new(writer)), theirs)
    }

    async fn say(to: &mut tokio::io::DuplexStream, message: &FromRuntime) {
        to.write_all(&frame::encode(message).unwrap()).await.unwrap();
    }

    fn reply(id: u32, answer: Answer) -> FromRuntime {
        FromRuntime::Reply { id, result: Ok(answer) }
    }

    #[tokio::test]
    async fn answers_find_their_commands_in_any_order_and_notes_are_kept() {
        let (mut client, mut component) = pair();
        let first = client.send(Command::Inventory).await.unwrap();
        let second = client.send(Command::Renew(lull_guest_wire::FreezeId(1))).await.unwrap();
        say(&mut component, &reply(second, Answer::Renewed { remaining_ms: 7 })).await;
        say(&mut component, &FromRuntime::Event(Event::Note("slow disk".into()))).await;
        say(&mut component, &reply(first, Answer::Done)).await;
        assert_eq!(client.answer(first).await.unwrap(), Answer::Done);
        assert_eq!(client.answer(second).await.unwrap(), Answer::Renewed { remaining_ms: 7 });
        assert_eq!(client.take_notes(), ["slow disk"]);
    }

    #[tokio::test]
    async fn an_answer_that_was_given_up_can_be_awaited_again() {
        let (mut client, mut component) = pair();
        let id = client.send(Command::Status).await.unwrap();
        let late = client.answer_within(id, Duration::from_millis(10)).await;
        assert!(matches!(late, Err(CallError::TimedOut { after_ms: 10 })));
        let bytes = frame::encode(&reply(id, Answer::Done)).unwrap();
        component.write_all(&bytes[..3]).await.unwrap();
        assert!(client.answer_within(id, Duration::from_millis(10)).await.is_err());
        component.write_all(&bytes[3..]).await.unwrap();
        assert_eq!(client.answer(id).await.unwrap(), Answer::Done);
    }

    #[tokio::test]
    async fn a_refusal_a_cut_and_nonsense_are_told_apart() {
        let (mut client, mut component) = pair();
        let refusal = Refusal { kind: RefusalKind::NotNow, message: "frozen".into(), superblocks: vec![] };
        say(&mut component, &FromRuntime::Reply { id: 1, result: Err(refusal) }).await;
        assert!(client.call(Command::Inventory, Duration::from_secs(1)).await.unwrap_err().is_refusal());
        component.write_all(&[9, 0, 0, 0, 77, 1, 2, 3, 4, 5, 6, 7, 8]).await.unwrap();
        assert!(matches!(client.call(Command::Status, Duration::from_secs(1)).await, Err(CallError::Protocol(_))));
        drop(component);
        let (mut client, component) = pair();
        drop(component);
        assert!(matches!(client.call(Command::Status, Duration::from_secs(1)).await, Err(CallError::Lost(_))));
    }
}
