//! Whose guest it is: each component carries the fence of its order in the name of its folder (`lull-SUFFIX.FENCE`), and the kernel's list
//! of processes is the lock.
//!
//! ```text
//! newcomer: looks ──a greater fence──► says so and ends
//!                 ──smaller or equal──► asks them to go ──10 s──► kills their main processes ──60 s──► says so and ends
//!                 ──none──► works
//! ```
//!
//! A process is there before it looks, so of two newcomers at least one sees the other. Nothing can be left behind: the lock is gone
//! with the process. Nobody but root can take it or take it away: a process counts only with root's real user, and only root can signal it (a
//! socket with an abstract name could be squatted, or flooded, by any user). A guest is what has the same root folder.
//!
//! Whoever is asked to go only notes it here, in a signal handler: nothing is allocated, read or written for it, so it is as good while
//! file systems are frozen. Its control loop then does what it does when its channel closes. The watchdog is never asked nor killed: it
//! thaws when its main process is gone. Knows nothing of freezing.

use crate::deployment;
use crate::kernel::{self, Bell};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

/// Asks a component to go.
pub const GO: i32 = libc::SIGUSR2;
/// Name of a watchdog's process.
pub const WATCHDOG: &str = "lull-watchdog";
/// It thaws, ends scripts and applications' connections within this time, in milliseconds, or is killed.
const GO_WITHIN_MS: u64 = 10_000;
/// A killed one's watchdog thaws at once, unless a `FIFREEZE` is in flight.
const GONE_WITHIN_MS: u64 = 60_000;
const LOOK_EVERY_MS: u64 = 20;

static EVICTED: AtomicBool = AtomicBool::new(false);
static BELL: AtomicI32 = AtomicI32::new(-1);

/// A process of a component with a fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    /// Its process.
    pub pid: u32,
    /// Its order's fence.
    pub fence: u64,
    /// A watchdog, which is left alone.
    pub is_watchdog: bool,
}

/// Why a component does not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// By a newer one.
    Newer {
        /// Its fence.
        fence: u64,
    },
    /// By an older one that does not go.
    Stuck {
        /// Its fence.
        fence: u64,
        /// Its processes.
        pids: Vec<u32>,
    },
    /// It was asked to go itself, or its proxy is gone.
    Over,
}

/// How the guest became free.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entered {
    /// For people, one sentence each.
    pub notes: Vec<String>,
    /// A main process was killed, so nobody's word says what is frozen.
    pub killed: bool,
}

/// From now on a wish that this component goes rings `bell`, for as long as the process lives.
pub fn heed(bell: Arc<Bell>) {
    BELL.store(bell.raw(), SeqCst);
    // Rung at any time: it must never be closed.
    std::mem::forget(bell);
    // SAFETY: the handler only stores and writes to a descriptor that is never closed; the action is zeroed but for what is set.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = asked_to_go as extern "C" fn(i32) as libc::sighandler_t;
        libc::sigaction(GO, &action, std::ptr::null_mut());
    }
}

extern "C" fn asked_to_go(_: i32) {
    EVICTED.store(true, SeqCst);
    let one = 1u64;
    let errno = kernel::last_errno();
    // SAFETY: writes eight bytes of a live u64 to an eventfd, and puts errno back; both are allowed in a signal handler.
    unsafe {
        libc::write(BELL.load(SeqCst), (&raw const one).cast(), 8);
        *libc::__errno_location() = errno;
    }
}

/// Whether this component was asked to go.
pub fn evicted() -> bool {
    EVICTED.load(SeqCst)
}

/// Makes the guest this fence's, or says why it is not.
pub fn enter(fence: u64) -> Result<Entered, Held> {
    let began_ms = kernel::now_ms();
    let mut entered = Entered::default();
    let mut asked = BTreeSet::new();
    loop {
        let others = residents();
        let newer = others.iter().map(|other| other.fence).filter(|other| *other > fence).max();
        if let Some(fence) = newer {
            return Err(Held::Newer { fence });
        }
        let Some(oldest) = others.iter().map(|other| other.fence).min() else { return Ok(entered) };
        for other in others.iter().filter(|other| asked.insert(other.pid)) {
            if !other.is_watchdog {
                entered.notes.push(format!("an older task's component (process {}) was asked to go", other.pid));
                signal(other, GO);
            }
            // One that stands still could not hear.
            signal(other, libc::SIGCONT);
        }
        let waited_ms = kernel::now_ms() - began_ms;
        if waited_ms >= GO_WITHIN_MS + GONE_WITHIN_MS {
            return Err(Held::Stuck { fence: oldest, pids: others.iter().map(|other| other.pid).collect() });
        }
        if waited_ms >= GO_WITHIN_MS && !entered.killed {
            for other in others.iter().filter(|other| !other.is_watchdog) {
                let within_s = GO_WITHIN_MS / 1_000;
                let note = format!("process {} of an older task did not go within {within_s} s: killed", other.pid);
                entered.notes.push(note);
                entered.killed = true;
                signal(other, libc::SIGKILL);
            }
        }
        let mut polled = [kernel::waiting(1, libc::POLLRDHUP)];
        kernel::poll(&mut polled, Some(LOOK_EVERY_MS));
        if evicted() || kernel::hung_up(&polled[0]) {
            return Err(Held::Over);
        }
    }
}

/// Sends a signal, if the process still is what it was.
fn signal(resident: &Resident, signal: i32) {
    if own_root().and_then(|root| resident_of(resident.pid, root)).as_ref() == Some(resident) {
        // SAFETY: no pointers.
        unsafe { libc::kill(resident.pid as libc::pid_t, signal) };
    }
}

/// The other components with a fence in this guest.
pub fn residents() -> Vec<Resident> {
    let (own, Some(root)) = (std::process::id(), own_root()) else { return Vec::new() };
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != own).filter_map(|pid| resident_of(pid, root)).collect()
}

/// What the guest is: device and number of its root folder.
fn own_root() -> Option<(u64, u64)> {
    root_of("self")
}

fn root_of(process: &str) -> Option<(u64, u64)> {
    let root = std::fs::metadata(format!("/proc/{process}/root")).ok()?;
    Some((root.dev(), root.ino()))
}

fn resident_of(pid: u32, root: (u64, u64)) -> Option<Resident> {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let fence = deployment::fence(&program)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    // SAFETY: no pointers.
    let own = unsafe { libc::geteuid() };
    if root_of(&pid.to_string())? != root || !is_only(&status, own) {
        return None;
    }
    let name = status.lines().next().and_then(|line| line.strip_prefix("Name:")).unwrap_or_default();
    Some(Resident { pid, fence, is_watchdog: name.trim() == WATCHDOG })
}

/// Whether a process has no user but this one: of a program that changes its user when it is started, the real one is who started it.
fn is_only(status: &str, user: u32) -> bool {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    users.is_some_and(|users| users.split_whitespace().all(|own| own.parse() == Ok(user)))
}

/// The running component's own fence; `None` where its proxy gave none.
pub fn own() -> Option<u64> {
    deployment::fence(&std::fs::read_link(Path::new("/proc/self/exe")).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_that_is_root_throughout_counts() {
        assert!(is_only("Name:\tlull-runtime\nUid:\t0\t0\t0\t0\n", 0));
        assert!(!is_only("Name:\tlull-runtime\nUid:\t1000\t0\t0\t0\n", 0), "a setuid program that a user started");
        assert!(!is_only("Name:\tlull-runtime\n", 0));
    }

    #[test]
    fn this_test_is_no_component() {
        assert_eq!(own(), None);
        assert!(own_root().is_some_and(|root| resident_of(std::process::id(), root).is_none()));
    }
}
