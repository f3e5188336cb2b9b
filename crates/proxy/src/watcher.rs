//! The proxy's watcher: a small parent process that kills a worker that stands still, and starts it again.
//!
//! ```text
//! parent: starts ──► hears a byte each second ──ended──► pause of 1 s, 2 s … 30 s ──► starts
//!                        └──20 s without──► SIGKILL ──┘
//! ```
//!
//! A worker that is stopped, or whose threads all hang, still holds its VMs' monitors: only its end frees them. The bytes come over the
//! worker's standard input, a socket: where the parent dies the worker dies too, by the kernel's signal and, should that fail, by the socket's
//! end. The parent runs no async code and shares nothing with the worker, so whatever stops the one does not stop the other. Knows nothing
//! of what the worker does.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, kill_process};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A worker that ends with this code has no use for another start: the server does not accept it, and that needs a person.
pub const NEEDS_A_PERSON: u8 = 5;
/// The exit code where there is no better one.
const FAILURE: u8 = 1;
/// From one sign of life to the next.
const SIGN_EVERY: Duration = Duration::from_secs(1);
/// How often the parent looks, at least.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How patient the parent is.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// A worker without a sign of life for so long is killed.
    pub silence: Duration,
    /// From the first worker's end to the next one's start; twice as long each time.
    pub pause_min: Duration,
    /// The longest.
    pub pause_max: Duration,
    /// After a worker that lived so long the pauses begin anew.
    pub steady_after: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            silence: Duration::from_secs(20),
            pause_min: Duration::from_secs(1),
            pause_max: Duration::from_secs(30),
            steady_after: Duration::from_secs(60),
        }
    }
}

/// Starts the worker, and starts it again whenever it ends, until it ends well, with [`NEEDS_A_PERSON`], or after SIGTERM or SIGINT, which
/// are handed on to it; the exit code is the worker's. The worker calls [`sign_of_life`]. To be called from the program's only thread: the signals are blocked
/// in it.
pub fn run(worker: impl Fn() -> Command, pace: Pace) -> io::Result<u8> {
    let wanted = watched_signals();
    wanted.thread_block()?;
    let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut watcher = Watcher { signals, pace, told_to_stop: false };
    let mut pause = pace.pause_min;
    loop {
        let began = Instant::now();
        let status = watcher.one_life(worker())?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        match code {
            Some(code @ (0 | NEEDS_A_PERSON)) => return Ok(code),
            code if watcher.told_to_stop => return Ok(code.unwrap_or(FAILURE)),
            _ => {}
        }
        if began.elapsed() >= pace.steady_after {
            pause = pace.pause_min;
        }
        tracing::error!("the worker ended ({status}); it is started again in {} s", pause.as_secs());
        if watcher.rests(pause)? {
            return Ok(FAILURE);
        }
        pause = (pause * 2).min(pace.pause_max);
    }
}

fn watched_signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect()
}

struct Watcher {
    signals: SignalFd,
    pace: Pace,
    told_to_stop: bool,
}

impl Watcher {
    /// One worker from its start to its end.
    fn one_life(&mut self, mut command: Command) -> io::Result<ExitStatus> {
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut worker = command.stdin(OwnedFd::from(theirs)).spawn()?;
        // It holds the worker's end.
        drop(command);
        let (mut silent_for, mut looked, mut open) = (Duration::ZERO, Instant::now(), true);
        loop {
            let socket = open.then_some(&ours);
            wait(&self.signals, socket, LOOK_EVERY.min(self.pace.silence))?;
            self.hand_on(Some(&worker))?;
            if let Some(status) = worker.try_wait()? {
                return Ok(status);
            }
            // A parent that stood still itself, with its whole machine, has not seen the worker be silent meanwhile.
            silent_for += looked.elapsed().min(2 * LOOK_EVERY);
            looked = Instant::now();
            match ours.read(&mut [0; 64]) {
                Ok(1..) => silent_for = Duration::ZERO,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Ok(0) | Err(_) => open = false,
            }
            if silent_for >= self.pace.silence {
                let silence_s = self.pace.silence.as_secs_f32();
                tracing::error!(pid = worker.id(), "the worker gave no sign of life for {silence_s} s: it is killed");
                worker.kill()?;
                return worker.wait();
            }
        }
    }

    /// Reads signals; those that ask to stop are handed on.
    fn hand_on(&mut self, worker: Option<&Child>) -> io::Result<()> {
        while let Some(info) = self.signals.read_signal()? {
            let signal = match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGTERM) => rustix::process::Signal::TERM,
                Ok(Signal::SIGINT) => rustix::process::Signal::INT,
                _ => continue,
            };
            self.told_to_stop = true;
            if let Some(pid) = worker.and_then(|worker| Pid::from_raw(worker.id() as i32)) {
                // It is our child and not waited for, so its number is its own; that it has ended is seen next.
                let _ = kill_process(pid, signal);
            }
        }
        Ok(())
    }

    /// Waits; true when it is told to stop meanwhile.
    fn rests(&mut self, pause: Duration) -> io::Result<bool> {
        let until = Instant::now() + pause;
        while !self.told_to_stop && Instant::now() < until {
            wait(&self.signals, None, until.saturating_duration_since(Instant::now()))?;
            self.hand_on(None)?;
        }
        Ok(self.told_to_stop)
    }
}

/// Until there is something to read, or the time is over.
fn wait(signals: &SignalFd, socket: Option<&UnixStream>, at_most: Duration) -> io::Result<()> {
    let mut polled = vec![PollFd::new(signals, PollFlags::IN)];
    polled.extend(socket.map(|socket| PollFd::new(socket, PollFlags::IN)));
    let at_most = at_most.try_into().map_err(io::Error::other)?;
    match poll(&mut polled, Some(&at_most)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The worker's side, not yet at work.
#[derive(Debug)]
pub struct SignsOfLife(UnixStream);

/// Makes this process a worker that lives no longer than its parent. To be called first of all, from the thread in which `main` runs. An error
/// where no watcher started it.
pub fn sign_of_life() -> io::Result<SignsOfLife> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let socket = UnixStream::from(rustix::stdio::stdin().try_clone_to_owned()?);
    let not_watched = |e: io::Error| {
        let why = "it is no worker: its standard input does not come from a watcher; use `lull proxy run`";
        io::Error::new(e.kind(), format!("{why} ({e})"))
    };
    socket.peer_addr().map_err(not_watched)?;
    // What the worker starts must not hold the socket open.
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    socket.set_nonblocking(true)?;
    // What the parent blocks for itself is inherited.
    watched_signals().thread_unblock()?;
    Ok(SignsOfLife(socket))
}

impl SignsOfLife {
    /// Gives one each second, from a task of the runtime that works: a runtime that hangs gives none. Where the parent is gone the process ends
    /// at once.
    pub async fn give(self) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::net::UnixStream::from_std(self.0)?.into_split();
        let mut every = tokio::time::interval(SIGN_EVERY);
        loop {
            let alive = tokio::select! {
                _ = every.tick() => writer.write_all(&[1]).await.is_ok(),
                read = reader.read_u8() => read.is_ok(),
            };
            if !alive {
                // Killed, not ended in order: nobody watches, and whoever starts the parent again starts a worker too.
                std::process::abort();
            }
        }
    }
}
