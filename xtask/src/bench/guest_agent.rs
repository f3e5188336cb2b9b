//! A client of the QEMU guest agent's socket: the peer's way to freeze and thaw a guest.
//!
//! The agent serves one client at a time and speaks lines of JSON. A connection begins with `guest-sync-delimited`, so that what
//! an earlier client left half-sent or unread is not taken for ours. Knows nothing of Lull.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Longest answer, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// How long an answer may take. A freeze under load takes seconds at worst.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Byte that resets the agent's parser, and that precedes its answer to `guest-sync-delimited`.
const SENTINEL: u8 = 0xff;

/// A connection in step with the agent.
pub struct GuestAgent<S = UnixStream> {
    stream: BufReader<S>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

impl GuestAgent {
    /// Connects to a `VM.qga` socket.
    ///
    /// # Errors
    /// When nobody listens, or the agent does not come into step within 30 s.
    pub async fn connect(socket: &Path) -> Result<GuestAgent> {
        let stream = UnixStream::connect(socket).await.with_context(|| format!("opening {}", socket.display()))?;
        GuestAgent::over(stream).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuestAgent<S> {
    /// Comes into step with the agent at the other end of `stream`.
    ///
    /// # Errors
    /// As [`GuestAgent::connect`].
    pub async fn over(stream: S) -> Result<GuestAgent<S>> {
        let mut agent = GuestAgent { stream: BufReader::new(stream) };
        let id = u64::from(std::process::id());
        agent.send(&[SENTINEL], "guest-sync-delimited", json!({ "id": id })).await?;
        let answer = tokio::time::timeout(ANSWER_LIMIT, async {
            agent.skip_to_sentinel().await?;
            agent.answer().await
        });
        match answer.await.context("the guest agent does not answer; does another client hold its socket?")?? {
            answered if answered == json!(id) => Ok(agent),
            other => bail!("the guest agent answered {other} to a synchronisation with {id}"),
        }
    }

    /// Freezes every file system that the agent can; returns how many.
    ///
    /// # Errors
    /// What the agent says. The guest may be frozen in part: thaw it.
    pub async fn freeze(&mut self) -> Result<u64> {
        self.count("guest-fsfreeze-freeze").await
    }

    /// Thaws all of them; returns how many.
    ///
    /// # Errors
    /// What the agent says.
    pub async fn thaw(&mut self) -> Result<u64> {
        self.count("guest-fsfreeze-thaw").await
    }

    async fn count(&mut self, command: &str) -> Result<u64> {
        let answer = self.ask(command).await?;
        answer.as_u64().with_context(|| format!("{command}: the guest agent answered {answer}, not a number"))
    }

    async fn ask(&mut self, command: &str) -> Result<Value> {
        self.send(&[], command, json!({})).await?;
        let answer = tokio::time::timeout(ANSWER_LIMIT, self.answer()).await;
        answer
            .unwrap_or_else(|_| bail!("the guest agent did not answer within {} s", ANSWER_LIMIT.as_secs()))
            .with_context(|| command.to_string())
    }

    /// One write, so that no half of a command waits for the other.
    async fn send(&mut self, prefix: &[u8], command: &str, arguments: Value) -> Result<()> {
        let mut line = prefix.to_vec();
        line.extend(json!({ "execute": command, "arguments": arguments }).to_string().bytes());
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).await.context("writing to the guest agent")
    }

    async fn skip_to_sentinel(&mut self) -> Result<()> {
        while self.stream.read_u8().await.context("the guest agent closed the connection")? != SENTINEL {}
        Ok(())
    }

    async fn answer(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        (&mut self.stream)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .await
            .context("reading from the guest agent")?;
        if line.last() != Some(&b'\n') {
            bail!("the guest agent closed the connection after {} bytes of an answer", line.len());
        }
        let answer: Answer = serde_json::from_slice(&line).context("the guest agent's answer is no JSON")?;
        match (answer.value, answer.error) {
            (Some(value), None) => Ok(value),
            (_, Some(refusal)) => bail!("the guest agent refused: {} ({})", refusal.desc, refusal.class),
            (None, None) => bail!("the guest agent's answer holds neither a result nor an error"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    /// An agent that says `before`, then answers each command with the next of `answers`.
    fn agent(
        before: &'static [u8],
        answers: Vec<&'static str>,
    ) -> (DuplexStream, tokio::task::JoinHandle<Vec<String>>) {
        let (ours, theirs) = duplex(4096);
        let heard = tokio::spawn(async move {
            let mut theirs = BufReader::new(theirs);
            let mut heard = Vec::new();
            theirs.get_mut().write_all(before).await.unwrap();
            for answer in answers {
                let mut line = Vec::new();
                theirs.read_until(b'\n', &mut line).await.unwrap();
                let sync = line.first() == Some(&SENTINEL);
                let command: Value = serde_json::from_slice(&line[usize::from(sync)..]).unwrap();
                heard.push(command["execute"].as_str().unwrap().to_string());
                let id = command["arguments"]["id"].to_string();
                if sync {
                    theirs.get_mut().write_all(&[SENTINEL]).await.unwrap();
                }
                theirs.get_mut().write_all(answer.replace("ID", &id).as_bytes()).await.unwrap();
            }
            heard
        });
        (ours, heard)
    }

    #[tokio::test]
    async fn what_an_earlier_client_left_is_skipped() {
        let left = b"{\"return\": 7}\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n";
        let (stream, heard) = agent(left, vec!["{\"return\": ID}\n", "{\"return\": 2}\n", "{\"return\": 2}\n"]);
        let mut agent = GuestAgent::over(stream).await.unwrap();
        assert_eq!(agent.freeze().await.unwrap(), 2);
        assert_eq!(agent.thaw().await.unwrap(), 2);
        assert_eq!(heard.await.unwrap(), ["guest-sync-delimited", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]);
    }

    #[tokio::test]
    async fn a_refusal_and_a_lost_connection_are_errors() {
        let refusal = "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"it is disabled\"}}\n";
        let (stream, _) = agent(b"", vec!["{\"return\": ID}\n", refusal, "{\"return\""]);
        let mut agent = GuestAgent::over(stream).await.unwrap();
        let text = format!("{:#}", agent.freeze().await.unwrap_err());
        assert_eq!(text, "guest-fsfreeze-freeze: the guest agent refused: it is disabled (CommandNotFound)");
        let text = format!("{:#}", agent.thaw().await.unwrap_err());
        assert!(text.contains("closed the connection after 9 bytes"), "{text}");
    }

    #[tokio::test]
    async fn somebody_elses_answer_is_not_ours() {
        let (stream, _) = agent(b"", vec!["{\"return\": 0}\n"]);
        assert!(GuestAgent::over(stream).await.is_err());
    }
}
