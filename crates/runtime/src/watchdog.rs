//! The watchdog: a process of its own that thaws when main does not.
//!
//! ```text
//! start ─▶ confirm ─▶ watch ──main finishes──▶ exit
//!                       │ lease, budget, channel gone, main dead, main late
//!                       ▼
//!                     thaw repeatedly ─▶ all thawed, freezer back, main finishes within a second ──▶ exit
//!                         │ main silent for a second, or too late
//!                         ▼
//!                     SIGKILL main ─▶ main dead ─▶ one more FITHAW each ─▶ exit
//! ```
//!
//! Main survives an expired lease if it answers: it then tells the proxy what happened and still runs the post-thaw
//! script. A main that is stopped, hung or gone is killed, since a stopped process would stay behind. Either way the
//! freezer cannot freeze again: an ended lease is final (shared.rs).
//!
//! Death is seen by a pipe that only the other process holds open: it closes when the last thread of main is gone, so
//! "main is dead" also means "nobody is inside `FIFREEZE`". That works on kernels without pidfd too.
//!
//! Reads nothing from the channel, writes nothing to it. Knows nothing of the protocol.

use crate::guest_lock::GuestLock;
use crate::kernel::{self, Bell};
use crate::memory;
use crate::shared::{End, Shared, Slot, Verdict};
use crate::thaw_pool::ThawPool;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// It shows at least this often that it runs, in milliseconds.
pub const BEAT_EVERY_MS: u64 = 200;
/// After a thaw on its own decision, main may answer for this long, in milliseconds.
const ANSWER_WITHIN_MS: u64 = 1_000;
/// How often it looks while it waits, in milliseconds.
const LOOK_EVERY_MS: u64 = 20;
/// Last line of its confirmation.
pub const READY: &str = "ready";

/// Everything that the new process needs; nothing else stays open in it.
pub struct Setup {
    /// Lease and slots.
    pub shared: Arc<Shared>,
    /// One per slot.
    pub fds: Arc<[OwnedFd]>,
    /// Closes when main is dead.
    pub main_alive: OwnedFd,
    /// Held open for main: closes when the watchdog is dead.
    pub watchdog_alive: OwnedFd,
    /// Rung by main when it finishes.
    pub finished: Arc<Bell>,
    /// Notes and confirmation go here.
    pub confirm: OwnedFd,
    /// The guest's lock, held together with main.
    pub lock: Arc<GuestLock>,
    /// Process to kill.
    pub main_pid: libc::pid_t,
}

/// Runs in the forked process, and ends it.
pub fn run(setup: Setup) -> ! {
    let mut notes = Vec::new();
    // SAFETY: no pointers; the forked process is no group leader, so it cannot fail.
    unsafe { libc::setsid() };
    // SAFETY: the name ends with a zero byte.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"lull-watchdog".as_ptr()) };
    ignore_signals();
    kernel::hurry();
    if let Err(e) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        notes.push(format!("the watchdog could be chosen by the out-of-memory killer: {e}"));
    }
    notes.extend(leave_cgroups());
    close_others(&setup);
    if let Err(e) = memory::lock() {
        notes.push(format!("the watchdog's memory could not be locked: {e}"));
    }
    let bell = Bell::new().map(Arc::new);
    let pool = bell.and_then(|bell| Ok((ThawPool::new(setup.shared.clone(), setup.fds.clone(), bell.clone())?, bell)));
    let (pool, bell) = match pool {
        Ok(pool) => pool,
        // Without its threads it does not confirm, and main does not freeze.
        Err(_) => exit(1),
    };
    let mut text = notes.join("\n");
    text.push_str(if text.is_empty() { READY } else { "\nready" });
    if File::from(setup.confirm.try_clone().unwrap_or_else(|_| exit(1))).write_all(text.as_bytes()).is_err() {
        exit(1);
    }
    watch(setup, &pool, &bell)
}

fn exit(code: i32) -> ! {
    // SAFETY: ends the process; nothing of main's (buffers, handlers) may run here.
    unsafe { libc::_exit(code) }
}

fn watch(setup: Setup, pool: &ThawPool, bell: &Bell) -> ! {
    let Setup { shared, main_alive, finished, confirm, lock, main_pid, watchdog_alive, fds } = setup;
    drop(confirm);
    let _held = (watchdog_alive, fds);
    let mut polled = [
        kernel::waiting(main_alive.as_raw_fd(), 0),
        kernel::waiting(0, libc::POLLRDHUP),
        kernel::waiting(1, libc::POLLRDHUP),
        kernel::waiting(finished.raw(), libc::POLLIN),
    ];
    loop {
        shared.watchdog_beat();
        if shared.main_finishes() {
            leave(&lock, &shared);
        }
        let now_ms = kernel::now_ms();
        let late = shared.deadline_ms().is_some_and(|deadline| now_ms >= deadline);
        match shared.check(now_ms) {
            Some(end) if end.is_orderly() && !late => {}
            Some(_) => break,
            None => {}
        }
        let until_deadline = shared.deadline_ms().map_or(BEAT_EVERY_MS, |deadline| deadline.saturating_sub(now_ms));
        kernel::poll(&mut polled, Some(until_deadline.min(BEAT_EVERY_MS)));
        if kernel::hung_up(&polled[0]) {
            shared.end(End::MainDied, kernel::now_ms());
            break;
        }
        if kernel::hung_up(&polled[1]) || kernel::hung_up(&polled[2]) {
            shared.end(End::Channel, kernel::now_ms());
            break;
        }
    }
    pool.start();
    let mut waiting = Waiting { shared: &shared, main_alive: &main_alive, pool, bell, main_dead: false };
    // A main that is stopped inside FIFREEZE never says that it is back: then nothing settles before it is killed.
    let mut main = MainSeen::new(&shared);
    waiting.until(|waiting| waiting.pool.settled() || main.silent(&shared));
    if !waiting.main_dead {
        let give_up_ms = kernel::now_ms() + if pool.settled() { ANSWER_WITHIN_MS } else { 0 };
        waiting.until(|waiting| shared.main_finishes() || waiting.main_dead || kernel::now_ms() >= give_up_ms);
    }
    if !waiting.main_dead && shared.decide(Verdict::WatchdogKills) == Verdict::MainFinishes {
        leave(&lock, &shared);
    }
    if !waiting.main_dead {
        kill_main(main_pid);
        // However long a thread of it hangs in the kernel: before it is dead nothing is certain. The pool goes on thawing.
        waiting.until(|waiting| waiting.main_dead);
    }
    waiting.until(|waiting| waiting.pool.settled());
    pool.start();
    waiting.until(|waiting| waiting.pool.settled());
    leave(&lock, &shared)
}

/// Ends well. The watchdog removes the lock's folder, main only where the watchdog ended otherwise: if both did, the second could
/// remove the folder of the next freezer. Where a thaw was given up the folder stays: it tells whoever looks that somebody
/// else must thaw.
fn leave(lock: &GuestLock, shared: &Shared) -> ! {
    if !shared.slots().iter().any(Slot::may_be_frozen) {
        // A failure leaves an empty folder, which the next task takes over and removes.
        let _ = lock.remove_folder();
    }
    exit(0)
}

/// What goes on while the watchdog waits for something.
struct Waiting<'a> {
    shared: &'a Shared,
    main_alive: &'a OwnedFd,
    pool: &'a ThawPool,
    bell: &'a Bell,
    main_dead: bool,
}

impl Waiting<'_> {
    /// Waits, and sees main die meanwhile.
    fn until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        loop {
            self.shared.watchdog_beat();
            self.bell.hush();
            if done(self) {
                return;
            }
            let alive = if self.main_dead { -1 } else { self.main_alive.as_raw_fd() };
            let mut polled = [kernel::waiting(self.bell.raw(), libc::POLLIN), kernel::waiting(alive, 0)];
            kernel::poll(&mut polled, Some(LOOK_EVERY_MS));
            if !self.main_dead && kernel::hung_up(&polled[1]) {
                self.main_dead = true;
                self.pool.freezer_died();
            }
        }
    }
}

/// When main's control thread was last seen running.
struct MainSeen {
    beats: u32,
    at_ms: u64,
}

impl MainSeen {
    fn new(shared: &Shared) -> MainSeen {
        MainSeen { beats: shared.main_beats(), at_ms: kernel::now_ms() }
    }

    fn silent(&mut self, shared: &Shared) -> bool {
        if shared.main_beats() != self.beats {
            *self = MainSeen::new(shared);
        }
        kernel::now_ms() >= self.at_ms + ANSWER_WITHIN_MS
    }
}

fn kill_main(main_pid: libc::pid_t) {
    // The parent changes when main dies, so this never reaches a stranger with main's number.
    // SAFETY: no pointers.
    if unsafe { libc::getppid() } == main_pid {
        // SAFETY: no pointers.
        unsafe { libc::kill(main_pid, libc::SIGKILL) };
    }
}

/// Ignores and blocks every signal that can be; only SIGKILL and SIGSTOP are left.
fn ignore_signals() {
    for signal in 1..=64 {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            // SAFETY: SIG_IGN is a valid disposition; the two reserved real-time signals are refused, which is harmless.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }
    // SAFETY: fills and applies a signal set on the stack.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
    }
}

/// Moves to the root of every cgroup hierarchy: whoever ends the login's cgroup (logind does) must not end the watchdog.
fn leave_cgroups() -> Vec<String> {
    let Ok(text) = std::fs::read("/proc/self/mountinfo") else {
        return vec!["the watchdog stays in the login's cgroup: /proc/self/mountinfo cannot be read".into()];
    };
    let (mounts, _) = crate::mounts::parse(&text);
    let hierarchies = mounts.iter().filter(|mount| matches!(mount.fs_type.as_str(), "cgroup" | "cgroup2"));
    hierarchies
        .filter_map(|mount| {
            let procs = mount.mount_point.join("cgroup.procs");
            let error = std::fs::write(&procs, "0").err()?;
            Some(format!("the watchdog stays in the login's cgroup under {}: {error}", mount.mount_point.display()))
        })
        .collect()
}

/// Closes everything but the channel's two ends and what `setup` holds; also standard error, which nobody may write to now.
fn close_others(setup: &Setup) {
    let mut keep: Vec<RawFd> = setup.fds.iter().map(AsRawFd::as_raw_fd).collect();
    keep.extend([0, 1, setup.finished.raw(), setup.lock.raw()]);
    keep.extend([&setup.main_alive, &setup.watchdog_alive, &setup.confirm].map(AsRawFd::as_raw_fd));
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> = open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| !keep.contains(fd)) {
        // SAFETY: nothing in this process uses it: everything that does is in `keep`.
        unsafe { libc::close(fd) };
    }
}
