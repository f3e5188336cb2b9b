//! Puts the runtime component into a guest and starts it, all in one elevated script.
//!
//! The script finds a folder that allows programs and has room, memory file systems first, receives the component over its
//! own stdin, checks it, and becomes it. The component then removes its file and folder and says [`Hello`]. What earlier
//! tasks left in those folders (after a power cut) is removed first, and reported.
//!
//! Knows nothing of SSH and nothing of what the component does. The folder's name is the contract with the component:
//! `lull-` and a suffix, after a dot the order's fence; the sweep takes only 16 hexadecimal digits and a fence, owned by root.

mod script;

use crate::carried::Image;
use crate::channel::{ChannelError, ElevatedStream, FailureKind, GuestChannel, Hop, Limits, Script, nonce};
use crate::runtime_client::{CallError, RuntimeClient};
use lull_guest_wire::Hello;
use script::{Line, Transfer};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

pub use script::{FOLDERS, sweep_script};

/// From the elevated script to the component's first word.
const DEPLOY_LIMIT: Duration = Duration::from_secs(120);
/// A line of the script is shorter than this, in bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// A component that runs.
#[derive(Debug)]
pub struct Deployed {
    /// Talks to it.
    pub client: RuntimeClient,
    /// What it said first.
    pub hello: Hello,
    /// Where it was.
    pub folder: String,
    /// Folders of earlier tasks that were removed.
    pub swept: Vec<String>,
    /// What a person may want to know, one sentence each.
    pub notes: Vec<String>,
}

/// Deploys and starts `image` for an order of this fence (0: none). On an error nothing of ours is left, as far as the guest can still
/// be reached.
pub async fn deploy(channel: &dyn GuestChannel, image: &Image, fence: u64) -> Result<Deployed, ChannelError> {
    let token = nonce();
    let result = tokio::time::timeout(DEPLOY_LIMIT, attempts(channel, image, &token, fence)).await;
    let error = match result {
        Ok(Ok(deployed)) => return Ok(deployed),
        Ok(Err(error)) => error,
        Err(_) => failed(channel, FailureKind::GuestSide, format!("it took longer than {} s", DEPLOY_LIMIT.as_secs())),
    };
    if error.kind == FailureKind::GuestSide {
        let sweep = script::remove_script(&token, fence);
        if let Err(e) = channel.exec_elevated(&sweep, b"", Limits::default()).await {
            tracing::warn!(guest = channel.describe(), "a folder lull-{token} may be left until the next task: {e}");
        }
    }
    Err(error)
}

/// Puts `image` into a memory file system, has it thaw what `words` say (mount points, as shell words), and removes it. One
/// line each: `thawed PLACE`, `free PLACE` or `failed PLACE WHY`.
pub async fn thaw(
    channel: &dyn GuestChannel,
    image: &Image,
    words: &[String],
    timeout: Duration,
) -> Result<String, ChannelError> {
    let limits = Limits { timeout, ..Limits::default() };
    let mut transfer = image.packed.as_ref().map_or(Transfer::Plain(&image.plain), Transfer::Packed);
    loop {
        let script = script::thaw_script(&nonce(), transfer, &words.join(" "));
        let output = channel.exec_elevated(&script, &transfer.payload().bytes, limits).await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (before, after) = said.split_once("=\n").unwrap_or((said.as_str(), ""));
        if before.lines().any(|line| script::parse(line) == Line::CannotUnpack) {
            transfer = Transfer::Plain(&image.plain);
            continue;
        }
        if after.is_empty() {
            let why = format!("no memory file system takes it to thaw: {} {}", before.trim(), output.stderr);
            return Err(failed(channel, FailureKind::GuestSide, why));
        }
        return Ok(after.lines().map(thawed_line).collect());
    }
}

/// A line of `lull-runtime thaw` in the words of the thaw by hand.
fn thawed_line(line: &str) -> String {
    if let Some(place) = line.strip_suffix(": thawed") {
        format!("thawed {place}\n")
    } else if let Some(place) = line.strip_suffix(": was not frozen") {
        format!("free {place}\n")
    } else {
        format!("failed {line}\n")
    }
}

/// A folder that filled up while it was written to costs what was sent; then the next ones are tried. Packed first, and
/// plain where the guest cannot unpack.
async fn attempts(
    channel: &dyn GuestChannel,
    image: &Image,
    token: &str,
    fence: u64,
) -> Result<Deployed, ChannelError> {
    let mut report = Report::default();
    let mut folders = FOLDERS.to_vec();
    let mut transfer = match &image.packed {
        Some(packed) => Transfer::Packed(packed),
        None => Transfer::Plain(&image.plain),
    };
    loop {
        let script = script::deploy_script(token, fence, &folders, transfer);
        match attempt(channel, &script, (token, fence), transfer, &mut report).await? {
            Attempt::Deployed(client, hello) => {
                let mut notes = report.notes;
                notes.extend(hello.leftovers.iter().map(|left| format!("the component could not remove {left}")));
                let (folder, swept) = (report.folder, report.swept);
                return Ok(Deployed { client: *client, hello, folder, swept, notes });
            }
            Attempt::CannotUnpack => transfer = Transfer::Plain(&image.plain),
            Attempt::NoFolder => {
                let tried = |folder: &str| report.refused.iter().any(|(refused, _)| refused == folder);
                let before = folders.len();
                folders.retain(|folder| !tried(folder));
                if folders.is_empty() || folders.len() == before {
                    return Err(no_folder(channel, &report));
                }
            }
        }
    }
}

enum Attempt {
    Deployed(Box<RuntimeClient>, Hello),
    /// The report says which and why.
    NoFolder,
    CannotUnpack,
}

async fn attempt(
    channel: &dyn GuestChannel,
    script: &Script,
    (token, fence): (&str, u64),
    transfer: Transfer<'_>,
    report: &mut Report,
) -> Result<Attempt, ChannelError> {
    let ElevatedStream { reader, mut writer, stderr } = channel.open_elevated(script).await?;
    let mut reader = BufReader::new(reader);
    let send = async {
        writer.write_all(&transfer.payload().bytes).await?;
        writer.flush().await
    };
    // Sending and reading at once: a script that gives up says why while we still send.
    let (sent, started) = tokio::join!(send, read_report(&mut reader, report));
    let explain = |why: String| {
        let words = stderr.text();
        let words = if words.is_empty() { String::new() } else { format!(" (the guest said: {words})") };
        format!("{why}{words}")
    };
    match started {
        Ok(End::Started) => {}
        Ok(End::CannotUnpack) => return Ok(Attempt::CannotUnpack),
        Ok(End::Closed) if report.refused.is_empty() => {
            return Err(failed(channel, FailureKind::GuestSide, explain("the script ended early".into())));
        }
        Ok(End::Closed) => return Ok(Attempt::NoFolder),
        Err(e) => return Err(failed(channel, FailureKind::Unreachable, explain(format!("the connection broke: {e}")))),
    }
    if let Err(e) = sent {
        return Err(failed(channel, FailureKind::Unreachable, explain(format!("the connection broke: {e}"))));
    }
    let mut client = RuntimeClient::new(Box::new(reader), writer);
    let hello = match client.hello().await {
        Ok(Ok(hello)) => hello,
        Ok(Err(held)) => {
            let kind = if held.fence > fence { FailureKind::Evicted } else { FailureKind::GuestSide };
            return Err(failed(channel, kind, held.message));
        }
        Err(CallError::Evicted) => return Err(failed(channel, FailureKind::Evicted, CallError::Evicted.to_string())),
        Err(CallError::Lost(_)) if forbidden(&stderr.text()) => {
            channel.exec_elevated(&script::remove_script(token, fence), b"", Limits::default()).await?;
            let folder = report.folder.rsplit_once('/').map_or("", |(folder, _)| folder);
            report.refused.push((folder.into(), "noexec (programs are forbidden there)".into()));
            return Ok(Attempt::NoFolder);
        }
        Err(CallError::Lost(e)) => {
            let why = format!("the component was put into {} but did not start: {e}", report.folder);
            return Err(failed(channel, FailureKind::GuestSide, explain(why)));
        }
        Err(e) => return Err(failed(channel, FailureKind::GuestSide, explain(e.to_string()))),
    };
    Ok(Attempt::Deployed(Box::new(client), hello))
}

/// Whether the shell's last word was that it may not run the component.
fn forbidden(stderr: &str) -> bool {
    let last_word = stderr.rsplit("lull-runtime: ").next().unwrap_or_default();
    last_word.len() < stderr.len() && (last_word.contains("denied") || last_word.contains("not permitted"))
}

/// What the script said before it became the component.
#[derive(Debug, Default)]
struct Report {
    refused: Vec<(String, String)>,
    swept: Vec<String>,
    notes: Vec<String>,
    folder: String,
}

/// How the script's report ended.
enum End {
    /// The component follows.
    Started,
    /// The guest has no gzip.
    CannotUnpack,
    /// It ended without one.
    Closed,
}

async fn read_report(reader: &mut (impl AsyncBufReadExt + Unpin), report: &mut Report) -> std::io::Result<End> {
    loop {
        let mut bytes = Vec::new();
        if (&mut *reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).await? == 0 {
            return Ok(End::Closed);
        }
        match script::parse(&String::from_utf8_lossy(&bytes)) {
            Line::Refused { folder, why } => report.refused.push((folder, why)),
            Line::Swept(folder) => report.swept.push(folder),
            Line::Note(note) => report.notes.push(note),
            Line::Chosen(folder) => report.folder = folder,
            Line::CannotUnpack => return Ok(End::CannotUnpack),
            Line::Started => return Ok(End::Started),
            Line::Unknown => {}
        }
    }
}

fn no_folder(channel: &dyn GuestChannel, report: &Report) -> ChannelError {
    let tried = report.refused.iter().map(|(folder, why)| format!("{folder} ({why})")).collect::<Vec<_>>().join(", ");
    ChannelError::new(
        Hop::Deploy,
        FailureKind::GuestSide,
        format!("no folder on {} takes the runtime component: {tried}", channel.describe()),
        "make room in one of them, or mount one without noexec; where a policy such as fapolicyd forbids it, allow programs in /run/lull-*",
    )
}

fn failed(channel: &dyn GuestChannel, kind: FailureKind, why: String) -> ChannelError {
    let remedy = match kind {
        FailureKind::Evicted => "see what became of the newer task",
        _ => "see the guest's log; the next task removes what this one may have left",
    };
    let what = format!("the runtime component was not started on {}: {why}", channel.describe());
    ChannelError::new(Hop::Deploy, kind, what, remedy)
}
