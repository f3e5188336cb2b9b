//! Asks the QEMU guest agent of a VM for the guest's addresses, over the host's socket `VM.qga`.
//!
//! The socket serves one client at a time, who may be somebody else, and whoever answers is the guest: everything is bounded in time
//! and length, and nothing but addresses is taken from the answer.

use serde::Deserialize;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Longest time for all of it, in milliseconds: a guest without an agent never answers, and a host has many VMs.
pub const ASK_MS_MAX: u64 = 1_000;
/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Most addresses of one guest.
const ADDRESSES_MAX: usize = 64;
/// Ends whatever somebody else left unread or unfinished in the channel.
const DELIMITER: u8 = 0xff;

/// Why the guest's addresses are not known.
#[derive(Debug, thiserror::Error)]
pub enum GuestAgentError {
    /// Nobody listens.
    #[error("the guest agent's socket cannot be reached ({0})")]
    Unreachable(#[from] std::io::Error),
    /// No answer in time.
    #[error(
        "the guest agent did not answer within {ASK_MS_MAX} ms: none runs in the guest, or somebody else is connected to its socket"
    )]
    Silent,
    /// It answered something else.
    #[error("the guest agent's answer cannot be used ({0})")]
    Answer(String),
}

/// The guest's addresses that say something about its network, in the agent's order.
///
/// # Errors
/// If the agent cannot be asked, does not answer within [`ASK_MS_MAX`], or refuses.
pub async fn addresses(socket: &Path) -> Result<Vec<IpAddr>, GuestAgentError> {
    let asked = timeout(Duration::from_millis(ASK_MS_MAX), ask(socket)).await;
    asked.unwrap_or(Err(GuestAgentError::Silent))
}

async fn ask(socket: &Path) -> Result<Vec<IpAddr>, GuestAgentError> {
    let stream = UnixStream::connect(socket).await?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read.take(ANSWER_BYTES_MAX));
    let number: u32 = rand::random();
    let mut call = vec![DELIMITER];
    call.extend(format!("{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{number}}}}}\n").bytes());
    write.write_all(&call).await?;
    loop {
        // What comes before the delimiter was meant for somebody else; an earlier answer of this kind may be too.
        let skipped = read.read_until(DELIMITER, &mut Vec::new()).await?;
        if skipped == 0 || read.get_ref().limit() == 0 {
            return Err(GuestAgentError::Answer("it ended, or never came to an end".into()));
        }
        if matches!(answer::<u32>(&mut read).await, Ok(answered) if answered == number) {
            break;
        }
    }
    write.write_all(b"{\"execute\":\"guest-network-get-interfaces\"}\n").await?;
    let interfaces = answer::<Vec<Interface>>(&mut read).await?;
    let all = interfaces.into_iter().flat_map(|interface| interface.addresses);
    let mut usable: Vec<IpAddr> = Vec::new();
    for address in all.filter_map(|address| address.text.parse().ok()).filter(counts) {
        if !usable.contains(&address) && usable.len() < ADDRESSES_MAX {
            usable.push(address);
        }
    }
    Ok(usable)
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default, rename = "ip-addresses")]
    addresses: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    #[serde(rename = "ip-address")]
    text: String,
}

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(rename = "return")]
    returned: Option<T>,
    error: Option<Refused>,
}

#[derive(Deserialize)]
struct Refused {
    desc: String,
}

async fn answer<T: serde::de::DeserializeOwned>(
    read: &mut (impl tokio::io::AsyncBufRead + Unpin),
) -> Result<T, GuestAgentError> {
    let mut line = Vec::new();
    read.read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(GuestAgentError::Answer("the connection was closed".into()));
    }
    let wrong = |what: String| GuestAgentError::Answer(what.chars().take(200).collect());
    let answer: Answer<T> = serde_json::from_slice(&line).map_err(|error| wrong(error.to_string()))?;
    match (answer.returned, answer.error) {
        (Some(returned), _) => Ok(returned),
        (None, Some(refused)) => Err(wrong(refused.desc)),
        (None, None) => Err(wrong("neither a result nor an error".into())),
    }
}

/// Loopback and link-local addresses exist in every guest.
fn counts(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixListener;

    /// An agent that says this before it answers the sync, and then this.
    async fn agent(before: &[u8], then: &'static str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.qga");
        let listener = UnixListener::bind(&path).unwrap();
        let before = before.to_vec();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let length = stream.read(&mut asked).await.unwrap();
            assert_eq!(asked[0], DELIMITER);
            let call: serde_json::Value = serde_json::from_slice(&asked[1..length]).unwrap();
            stream.write_all(&before).await.unwrap();
            let sync = format!("{{\"return\": {}}}\n", call["arguments"]["id"]);
            stream.write_all(&[&[DELIMITER], sync.as_bytes()].concat()).await.unwrap();
            let length = stream.read(&mut asked).await.unwrap();
            assert!(String::from_utf8_lossy(&asked[..length]).contains("guest-network-get-interfaces"));
            stream.write_all(then.as_bytes()).await.unwrap();
            let _ = stream.read(&mut asked).await;
        });
        (dir, path)
    }

    const INTERFACES: &str = r#"{"return": [
        {"name": "lo", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "127.0.0.1", "prefix": 8}]},
        {"name": "eth0", "hardware-address": "52:54:00:12:34:56", "ip-addresses": [
            {"ip-address-type": "ipv4", "ip-address": "192.0.2.7", "prefix": 24},
            {"ip-address-type": "ipv6", "ip-address": "2001:db8::7", "prefix": 64},
            {"ip-address-type": "ipv6", "ip-address": "fe80::1", "prefix": 64},
            {"ip-address-type": "ipv4", "ip-address": "no address", "prefix": 24}]},
        {"name": "down0"}]}"#;

    fn one_line(text: &str) -> &'static str {
        (text.replace('\n', " ") + "\n").leak()
    }

    #[tokio::test]
    async fn the_addresses_that_say_something_are_taken() {
        let (_dir, path) = agent(b"", one_line(INTERFACES)).await;
        let expect: Vec<IpAddr> = vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        assert_eq!(addresses(&path).await.unwrap(), expect);
    }

    #[tokio::test]
    async fn what_somebody_else_left_in_the_channel_is_passed_over() {
        let (_dir, path) = agent(b"{\"return\": {\"half\": \xff{\"return\": 4711}\n", one_line(INTERFACES)).await;
        assert_eq!(addresses(&path).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_refusal_and_nonsense_are_errors() {
        let refused = r#"{"error": {"class": "CommandNotFound", "desc": "the command is disabled"}}"#;
        let (_dir, path) = agent(b"", one_line(refused)).await;
        assert!(addresses(&path).await.unwrap_err().to_string().contains("the command is disabled"));
        let (_dir, path) = agent(b"", "[1, 2]\n").await;
        assert!(matches!(addresses(&path).await, Err(GuestAgentError::Answer(_))));
    }

    #[tokio::test]
    async fn who_does_not_answer_is_not_waited_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.qga");
        assert!(matches!(addresses(&path).await, Err(GuestAgentError::Unreachable(_))));
        let _held = UnixListener::bind(&path).unwrap();
        let since = std::time::Instant::now();
        assert!(matches!(addresses(&path).await, Err(GuestAgentError::Silent)));
        assert!(since.elapsed().as_millis() >= u128::from(ASK_MS_MAX));
    }

    #[tokio::test]
    async fn a_guest_that_never_stops_talking_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.qga");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
        });
        assert!(matches!(addresses(&path).await, Err(GuestAgentError::Answer(_) | GuestAgentError::Silent)));
    }
}
