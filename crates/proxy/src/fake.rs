//! A guest that is not there: a channel with failure knobs, for tests of whatever stands above a channel.
//!
//! Two kinds behind the knobs: [`FakeChannel::local`] runs scripts with this machine's `/bin/sh`, so that it can be held to the
//! contract of a channel; [`guest::FakeGuest`] answers by purpose and speaks the component's protocol itself, freezes included,
//! without a file system anywhere. Nothing here runs in production.

pub mod guest;
pub mod snapshotter;

use crate::channel::{
    ChannelError, ElevatedStream, ExecOutput, Exit, FailureKind, GuestChannel, Hop, Limits, Script, Tail,
};
use crate::guest_session::Connector;
use crate::ssh::HostKeySeen;
use async_trait::async_trait;
use guest::FakeGuest;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

/// What goes wrong on a channel.
#[derive(Debug, Clone, Default)]
pub struct Knobs {
    /// Every use is refused with this.
    pub refuse: Option<ChannelError>,
    /// The connection is cut after so many bytes from the guest, over all scripts together.
    pub cut_after_bytes: Option<u64>,
    /// The guest takes everything and says nothing.
    pub silent: bool,
    /// Each block from the guest comes so much later.
    pub delay: Duration,
}

#[derive(Clone)]
enum Behind {
    Shell,
    Guest(Arc<FakeGuest>),
}

/// A channel that does as its knobs say. Clones are one connection; a new login is a new one with its own count of bytes.
#[derive(Clone)]
pub struct FakeChannel {
    behind: Behind,
    knobs: Knobs,
    from_guest_bytes: Arc<Mutex<u64>>,
}

impl FakeChannel {
    /// Runs scripts here.
    pub fn local(knobs: Knobs) -> Self {
        FakeChannel { behind: Behind::Shell, knobs, from_guest_bytes: Arc::default() }
    }

    /// Reaches a fake guest.
    pub fn to(guest: Arc<FakeGuest>, knobs: Knobs) -> Self {
        FakeChannel { behind: Behind::Guest(guest), knobs, from_guest_bytes: Arc::default() }
    }

    /// The guest's end of a new stream; what goes wrong goes wrong in between.
    fn wire(&self) -> (DuplexStream, DuplexStream) {
        let (ours, proxy_side) = tokio::io::duplex(64 * 1024);
        let (guest_side, theirs) = tokio::io::duplex(64 * 1024);
        let this = self.clone();
        tokio::spawn(async move {
            let (mut from_proxy, mut to_proxy) = tokio::io::split(proxy_side);
            let (mut from_guest, mut to_guest) = tokio::io::split(guest_side);
            let down = async {
                let _ = tokio::io::copy(&mut from_proxy, &mut to_guest).await;
                let _ = to_guest.shutdown().await;
                std::future::pending::<()>().await
            };
            let up = async {
                this.upwards(&mut from_guest, &mut to_proxy).await;
                let _ = to_proxy.shutdown().await;
            };
            tokio::select! { () = down => {}, () = up => {} }
        });
        (ours, theirs)
    }

    async fn upwards(&self, from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
        let mut block = vec![0; 16 * 1024];
        loop {
            let Ok(n @ 1..) = from.read(&mut block).await else { return };
            if self.knobs.silent {
                continue;
            }
            tokio::time::sleep(self.knobs.delay).await;
            let passed = self.count(n as u64) as usize;
            if to.write_all(&block[..passed]).await.is_err() || to.flush().await.is_err() || passed < n {
                return;
            }
        }
    }

    /// How many of `n` more bytes still pass.
    fn count(&self, n: u64) -> u64 {
        let mut so_far = self.from_guest_bytes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let passed = self.knobs.cut_after_bytes.map_or(n, |cut| cut.saturating_sub(*so_far).min(n));
        *so_far += n;
        passed
    }

    fn is_cut(&self) -> bool {
        let so_far = self.from_guest_bytes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.knobs.cut_after_bytes.is_some_and(|cut| *so_far > cut)
    }

    fn broken(&self, script: &Script) -> ChannelError {
        let what = format!("the connection to the fake guest broke before we could {}", script.purpose);
        ChannelError::new(Hop::Exec, FailureKind::Unreachable, what, "none: it is a test")
    }
}

#[async_trait]
impl GuestChannel for FakeChannel {
    fn describe(&self) -> String {
        "a fake guest".into()
    }

    async fn exec_elevated(&self, script: &Script, stdin: &[u8], limits: Limits) -> Result<ExecOutput, ChannelError> {
        let whole = async {
            let ElevatedStream { mut reader, mut writer, stderr } = self.open_elevated(script).await?;
            let feed = async {
                let _ = writer.write_all(stdin).await;
                let _ = writer.shutdown().await;
            };
            let mut stdout = Vec::new();
            let mut limited = (&mut reader).take(limits.stdout_bytes_max as u64 + 1);
            let (read, ()) = tokio::join!(limited.read_to_end(&mut stdout), feed);
            if read.is_err() || self.is_cut() {
                return Err(self.broken(script));
            }
            if stdout.len() > limits.stdout_bytes_max {
                let what = format!("the fake guest wrote more than {} bytes", limits.stdout_bytes_max);
                return Err(ChannelError::new(Hop::Exec, FailureKind::GuestSide, what, "none: it is a test"));
            }
            // The shell's exit code comes as its own last line.
            let (stdout, exit) = match self.behind {
                Behind::Guest(_) => (stdout, Exit::Code(0)),
                Behind::Shell => take_exit(stdout).ok_or_else(|| self.broken(script))?,
            };
            Ok(ExecOutput { exit, stdout, stderr: stderr.text() })
        };
        tokio::time::timeout(limits.timeout, whole).await.unwrap_or_else(|_| {
            let what = format!("the fake guest did not {} within {} s", script.purpose, limits.timeout.as_secs());
            Err(ChannelError::new(Hop::Exec, FailureKind::GuestSide, what, "none: it is a test"))
        })
    }

    async fn open_elevated(&self, script: &Script) -> Result<ElevatedStream, ChannelError> {
        if let Some(refusal) = &self.knobs.refuse {
            return Err(refusal.clone());
        }
        if self.is_cut() {
            return Err(self.broken(script));
        }
        let (ours, theirs) = self.wire();
        let stderr = Tail::default();
        match &self.behind {
            Behind::Guest(guest) => guest.clone().run(script, theirs),
            Behind::Shell => shell(script, theirs, stderr.clone()).map_err(|e| {
                ChannelError::new(Hop::Exec, FailureKind::GuestSide, format!("no shell here: {e}"), "none")
            })?,
        }
        let (reader, writer) = tokio::io::split(ours);
        Ok(ElevatedStream { reader: Box::new(reader), writer: Box::new(writer), stderr })
    }

    async fn close(&self) {}
}

/// Opens channels to one fake guest: the first as its knobs say, later ones as `later` says.
pub struct FakeConnector {
    /// The guest.
    pub guest: Arc<FakeGuest>,
    /// For the first connection.
    pub first: Knobs,
    /// For every later one.
    pub later: Knobs,
    /// Connections that were asked for.
    pub connects: Mutex<u32>,
}

impl FakeConnector {
    /// Every connection works.
    pub fn new(guest: Arc<FakeGuest>) -> Self {
        FakeConnector { guest, first: Knobs::default(), later: Knobs::default(), connects: Mutex::new(0) }
    }
}

#[async_trait]
impl Connector for FakeConnector {
    async fn connect(&self) -> Result<(Box<dyn GuestChannel>, Option<HostKeySeen>), ChannelError> {
        let knobs = {
            let mut connects = self.connects.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *connects += 1;
            if *connects == 1 { &self.first } else { &self.later }
        };
        if let Some(refusal) = &knobs.refuse {
            return Err(refusal.clone());
        }
        Ok((Box::new(FakeChannel::to(self.guest.clone(), knobs.clone())), None))
    }

    fn thaw_command(&self, mount_points: &[String]) -> String {
        format!("thaw {} by hand", mount_points.join(" "))
    }

    fn rightly_remains(&self) -> Vec<String> {
        vec!["nothing: it is a fake".into()]
    }
}

const EXIT_MARK: &str = "fake-exit:";

fn take_exit(mut stdout: Vec<u8>) -> Option<(Vec<u8>, Exit)> {
    let at = stdout.windows(EXIT_MARK.len()).rposition(|window| window == EXIT_MARK.as_bytes())?;
    let code = std::str::from_utf8(&stdout[at + EXIT_MARK.len()..]).ok()?.trim().parse().ok()?;
    stdout.truncate(at);
    Some((stdout, Exit::Code(code)))
}

/// Runs the script here; its stdout, then its exit code.
fn shell(script: &Script, io: DuplexStream, tail: Tail) -> std::io::Result<()> {
    let mut child = tokio::process::Command::new("/bin/sh")
        .args(["-c", script.text()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (mut from, mut to) = tokio::io::split(io);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = tokio::spawn(async move {
        if let Some(mut stdin) = stdin {
            let _ = tokio::io::copy(&mut from, &mut stdin).await;
        }
    });
    tokio::spawn(async move {
        let out = async {
            if let Some(mut stdout) = stdout {
                let _ = tokio::io::copy(&mut stdout, &mut to).await;
            }
        };
        let err = async {
            let mut words = [0; 1024];
            if let Some(mut stderr) = stderr {
                while let Ok(n @ 1..) = stderr.read(&mut words).await {
                    tail.push(&words[..n]);
                }
            }
        };
        let ((), (), status) = tokio::join!(out, err, child.wait());
        feed.abort();
        let code = status.ok().and_then(|status| status.code()).unwrap_or(255);
        let _ = to.write_all(format!("{EXIT_MARK}{code}\n").as_bytes()).await;
        let _ = to.shutdown().await;
    });
    Ok(())
}
