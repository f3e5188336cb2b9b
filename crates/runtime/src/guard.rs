//! A freeze under guard: descriptors, lock, watchdog, freezer, in the order in which they must come and go.
//!
//! Coming: everything that can wait or fail happens before the watchdog is forked, and the fork happens while main has a
//! single thread (a forked copy of a lock that another thread held would never open again). Going: freezer and pool end, main says that it
//! finishes, the watchdog ends and is reaped, descriptors and lock are let go. Knows nothing of the protocol's frames.

use crate::carriers::Carriers;
use crate::freeze::Freezer;
use crate::grace_periods;
use crate::guest_lock::{GuestLock, LockError};
use crate::inventory::{self, Storage};
use crate::kernel::{self, Bell};
use crate::memory;
use crate::mounts::Mounted;
use crate::plan::{self, Candidate, Plan};
use crate::shared::{Shared, Slot, Verdict};
use crate::thaw_pool::ThawPool;
use crate::watchdog;
use lull_guest_wire::{Lease, RefusalKind, Superblock};
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Most superblocks in one freeze: each costs two threads with locked stacks.
pub const SUPERBLOCKS_MAX: usize = 512;
/// The watchdog confirms within this time, in milliseconds, or there is no freeze.
const CONFIRM_WITHIN_MS: u64 = 10_000;
/// Threads that were joined are gone within this time, in milliseconds.
const SINGLE_WITHIN_MS: u64 = 5_000;
/// A finishing watchdog ends within this time, in milliseconds, or is killed (everything is thawed by then).
const EXIT_WITHIN_MS: u64 = 1_000;

/// Why nothing was armed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ArmError {
    /// What kind.
    pub kind: RefusalKind,
    /// What failed, on what, why.
    pub message: String,
}

impl ArmError {
    fn failed(message: String) -> ArmError {
        ArmError { kind: RefusalKind::Failed, message }
    }
}

/// One superblock that will be frozen.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its identity.
    pub superblock: Superblock,
    /// For people.
    pub mount_point: String,
}

/// The slow half of arming, done on a thread of its own: plan, descriptors, sync.
#[derive(Debug)]
pub struct Prepared {
    targets: Vec<Target>,
    fds: Arc<[OwnedFd]>,
    notes: Vec<String>,
}

/// Takes the guest's lock, or says who holds it.
pub fn take_lock(folder: &Path) -> Result<GuestLock, ArmError> {
    GuestLock::take(folder).map_err(|e| match e {
        LockError::Held(_) => ArmError { kind: RefusalKind::SomebodyElse, message: e.to_string() },
        _ => ArmError::failed(e.to_string()),
    })
}

/// Plans, opens every target and writes out what is dirty, on all file systems. `never_freeze` names superblocks that must
/// not be touched: a plan that holds one is refused.
pub fn prepare(storage: &Storage, excludes: &[String], never_freeze: &[Superblock]) -> Result<Prepared, ArmError> {
    let candidates: Vec<_> = storage.candidates.iter().map(|(candidate, _)| candidate.clone()).collect();
    let Plan { freeze, not_frozen, mut notes } = plan::plan(&candidates, excludes);
    if let Some(forbidden) = freeze.iter().find(|superblock| never_freeze.contains(superblock)) {
        let message = format!("superblock {forbidden} must never be frozen (--never-freeze), but the plan holds it");
        return Err(ArmError { kind: RefusalKind::BadOrder, message });
    }
    if freeze.len() > SUPERBLOCKS_MAX {
        let message = format!("{} file systems to freeze, at most {SUPERBLOCKS_MAX}; exclude some", freeze.len());
        return Err(ArmError { kind: RefusalKind::BadOrder, message });
    }
    let mounted = |superblock: Superblock| {
        candidates.iter().map(|candidate| &candidate.mounted).find(|mounted| mounted.superblock == superblock)
    };
    raise_descriptor_limit();
    let mut targets = Vec::with_capacity(freeze.len());
    let mut fds = Vec::with_capacity(freeze.len());
    for mounted in freeze.iter().copied().filter_map(mounted) {
        let (mount_point, fd) = open(mounted).map_err(ArmError::failed)?;
        targets.push(Target { superblock: mounted.superblock, mount_point });
        fds.push(fd);
    }
    for (superblock, reason) in not_frozen {
        let Some(mounted) = mounted(superblock) else { continue };
        notes.push(format!("{} is not frozen: {reason}", mounted.name()));
        if mounted.superblock_read_only {
            continue;
        }
        let synced = open(mounted).and_then(|(point, fd)| {
            kernel::syncfs(fd.as_fd()).map_err(|errno| format!("cannot sync {point}: {}", kernel::describe(errno)))
        });
        notes.extend(synced.err());
    }
    for (target, fd) in targets.iter().zip(&fds) {
        if let Err(errno) = kernel::syncfs(fd.as_fd()) {
            notes.push(format!("cannot sync {}: {}", target.mount_point, kernel::describe(errno)));
        }
    }
    Ok(Prepared { targets, fds: fds.into(), notes })
}

/// Thaws whatever a component may have left frozen that had to be killed and whose watchdog was killed too: nobody's word says what. Where
/// its watchdog lived, it thawed and took the lock's folder along. One sentence each for people.
pub fn thaw_after_kill(folder: &Path, never_freeze: &[Superblock]) -> Vec<String> {
    if !folder.exists() {
        return Vec::new();
    }
    let lock = match GuestLock::take(folder) {
        Ok(lock) => lock,
        Err(e) => return vec![e.to_string()],
    };
    let storage = match inventory::storage() {
        Ok(storage) => storage,
        Err(why) => return vec![format!("nothing could be thawed after an older task's component was killed: {why}")],
    };
    let candidates: Vec<_> = storage.candidates.into_iter().map(|(candidate, _)| candidate).collect();
    let mut notes = Vec::new();
    let mut unsure = false;
    // Outermost first: one that lies in another's file may need that one.
    for superblock in plan::plan(&candidates, &[]).freeze.iter().rev().filter(|one| !never_freeze.contains(one)) {
        let Some(Candidate { mounted, .. }) = candidates.iter().find(|one| one.mounted.superblock == *superblock)
        else {
            continue;
        };
        let thawed = open(mounted).and_then(|(point, fd)| match kernel::thaw(fd.as_fd()) {
            Ok(()) => Ok(Some(format!("{point} had been left frozen by a component that was killed: thawed"))),
            Err(libc::EINVAL) => Ok(None),
            Err(errno) => Err(format!("{point} cannot be thawed: {}", kernel::describe(errno))),
        });
        unsure |= thawed.is_err();
        notes.extend(thawed.unwrap_or_else(Some));
    }
    // A folder that stays tells whoever looks that somebody else must thaw.
    if !unsure {
        notes.extend(lock.release().err().map(|e| format!("{} stays: {e}", folder.display())));
    }
    notes
}

/// Opens the first of its mount points that still shows this superblock (another mount may cover it).
fn open(mounted: &Mounted) -> Result<(String, OwnedFd), String> {
    let mut problem = format!("no mount point of {} shows it: each is covered by another mount", mounted.superblock);
    for (_, path) in &mounted.mounts {
        let Ok(name) = CString::new(path.as_os_str().as_bytes()) else { continue };
        // O_NONBLOCK and no O_DIRECTORY: a bind mount may be of a single file.
        let flags = libc::O_RDONLY | libc::O_NOATIME | libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        // SAFETY: the path ends with a zero byte.
        let fd = match unsafe { libc::open(name.as_ptr(), flags) } {
            -1 => {
                problem = format!("cannot open {}: {}", path.display(), std::io::Error::last_os_error());
                continue;
            }
            // SAFETY: just opened, belongs to nobody else.
            fd => unsafe { OwnedFd::from_raw_fd(fd) },
        };
        if mount_of(&fd).is_some_and(|mount| mounted.mounts.iter().any(|(id, _)| *id == mount)) {
            return Ok((path.to_string_lossy().into_owned(), fd));
        }
    }
    Err(problem)
}

/// The number of the mount through which a descriptor was opened.
pub(crate) fn mount_of(fd: &OwnedFd) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

fn raise_descriptor_limit() {
    // SAFETY: reads and writes one rlimit on the stack.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// An armed freeze.
pub struct Guard {
    /// Lease and slots.
    pub shared: Arc<Shared>,
    /// One per slot, in the order of freezing.
    pub targets: Vec<Target>,
    /// The thread that freezes and thaws in order.
    pub freezer: Freezer,
    /// Threads that thaw at once.
    pub pool: ThawPool,
    /// Process of the watchdog.
    pub watchdog_pid: libc::pid_t,
    /// What could not be done; none of it breaks the promise.
    pub notes: Vec<String>,
    watchdog_alive: OwnedFd,
    /// Closing it tells the watchdog that main is dead: held to the very end.
    _main_alive: OwnedFd,
    finished: Arc<Bell>,
    lock: Arc<GuestLock>,
    reaped: bool,
    /// Dropping it takes their hurry back.
    _carriers: Carriers,
}

/// Locks memory, forks the watchdog, waits for its word, creates the threads. Main must have a single thread. `bell` rings when
/// freezer or pool have news.
pub fn arm(prepared: Prepared, lock: GuestLock, lease: Lease, bell: Arc<Bell>) -> Result<Guard, ArmError> {
    let Prepared { targets, fds, mut notes } = prepared;
    let lock = Arc::new(lock);
    let armed = arm_locked(targets, fds, lock.clone(), lease, bell, &mut notes);
    match armed {
        Ok(mut guard) => {
            notes.extend(grace_periods::hurry(guard.lock.folder()).err());
            guard.notes = notes;
            Ok(guard)
        }
        Err(message) => {
            let _ = lock.remove_folder();
            memory::unlock();
            kernel::stop_hurrying();
            Err(ArmError::failed(message))
        }
    }
}

fn arm_locked(
    targets: Vec<Target>,
    fds: Arc<[OwnedFd]>,
    lock: Arc<GuestLock>,
    lease: Lease,
    bell: Arc<Bell>,
    notes: &mut Vec<String>,
) -> Result<Guard, String> {
    wait_for_a_single_thread()?;
    memory::reserve();
    if let Err(e) = memory::lock() {
        notes.push(format!("the component's memory could not be locked: {e}"));
    }
    let io = |e: std::io::Error| format!("the watchdog could not be started: {e}");
    let shared = Arc::new(Shared::new(targets.len(), lease).map_err(io)?);
    let (main_dead, main_alive) = kernel::pipe().map_err(io)?;
    let (watchdog_dead, watchdog_alive) = kernel::pipe().map_err(io)?;
    let (confirmed, confirm) = kernel::pipe().map_err(io)?;
    let finished = Arc::new(Bell::new().map_err(io)?);
    // SAFETY: no pointers, cannot fail.
    let main_pid = unsafe { libc::getpid() };
    // SAFETY: this process has a single thread, so the child may do whatever it likes.
    let watchdog_pid = match unsafe { libc::fork() } {
        -1 => return Err(io(std::io::Error::last_os_error())),
        0 => watchdog::run(watchdog::Setup {
            shared,
            fds,
            main_alive: main_dead,
            watchdog_alive,
            finished,
            confirm,
            lock,
            main_pid,
        }),
        pid => pid,
    };
    drop((main_dead, watchdog_alive, confirm));
    kernel::hurry();
    let mut guard = match confirmation(confirmed) {
        Ok(said) => {
            notes.extend(said);
            let freezer = Freezer::new(shared.clone(), fds.clone(), bell.clone());
            let pool = ThawPool::new(shared.clone(), fds, bell);
            match (freezer, pool) {
                (Ok(freezer), Ok(pool)) => Guard {
                    shared,
                    targets,
                    freezer,
                    pool,
                    watchdog_pid,
                    notes: Vec::new(),
                    watchdog_alive: watchdog_dead,
                    _main_alive: main_alive,
                    finished,
                    lock,
                    reaped: false,
                    _carriers: Carriers::hurry(),
                },
                (Err(e), _) | (_, Err(e)) => {
                    kill_and_reap(watchdog_pid);
                    return Err(format!("threads could not be started: {e}"));
                }
            }
        }
        Err(message) => {
            kill_and_reap(watchdog_pid);
            return Err(message);
        }
    };
    // Again: the fork left main's pages to be copied at the next write, which would be a fault in the window.
    if memory::lock().is_ok() {
        memory::reserve();
    }
    guard.notes.clear();
    Ok(guard)
}

/// A thread that was joined may still be listed for a moment: the kernel tells the joiner before it removes the thread.
fn wait_for_a_single_thread() -> Result<(), String> {
    let give_up_ms = kernel::now_ms() + SINGLE_WITHIN_MS;
    loop {
        match std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count) {
            1 => return Ok(()),
            _ if kernel::now_ms() < give_up_ms => kernel::sleep_ms(1),
            threads => {
                return Err(format!(
                    "the component has {threads} threads where it must have one, so the watchdog cannot be started"
                ));
            }
        }
    }
}

/// The watchdog's notes, once it said that it is ready.
fn confirmation(from: OwnedFd) -> Result<Vec<String>, String> {
    let give_up_ms = kernel::now_ms() + CONFIRM_WITHIN_MS;
    let mut text = Vec::new();
    let mut file = std::fs::File::from(from);
    loop {
        let mut polled = [kernel::waiting(file.as_raw_fd(), libc::POLLIN)];
        kernel::poll(&mut polled, Some(give_up_ms.saturating_sub(kernel::now_ms())));
        let mut piece = [0; 4096];
        match polled[0].revents {
            0 if kernel::now_ms() >= give_up_ms => {
                return Err(format!("the watchdog did not confirm within {CONFIRM_WITHIN_MS} ms"));
            }
            0 => continue,
            _ => match file.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => text.extend_from_slice(&piece[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("the watchdog's confirmation could not be read: {e}")),
            },
        }
    }
    let text = String::from_utf8_lossy(&text);
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    match lines.pop() {
        Some(last) if last == watchdog::READY => Ok(lines),
        _ => Err("the watchdog ended before it was ready".into()),
    }
}

fn kill_and_reap(pid: libc::pid_t) {
    // SAFETY: no pointers; our own child, not yet reaped, so the number is still its.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
}

impl Guard {
    /// For polling: hangs up when the watchdog is dead.
    pub fn watchdog_fd(&self) -> i32 {
        self.watchdog_alive.as_raw_fd()
    }

    /// Ends the watchdog and lets the lock go. To be called once nothing is frozen and the freezer is back. False where the watchdog
    /// had already decided to kill this process.
    pub fn finish(mut self) -> bool {
        if self.shared.decide(Verdict::MainFinishes) == Verdict::WatchdogKills {
            return false;
        }
        self.finished.ring();
        let left_well = reap_within(self.watchdog_pid, EXIT_WITHIN_MS);
        self.reaped = true;
        if !left_well && !self.shared.slots().iter().any(Slot::may_be_frozen) {
            let _ = self.lock.remove_folder();
        }
        drop(self);
        memory::unlock();
        kernel::stop_hurrying();
        true
    }
}

/// Reaps the watchdog; true when it ended by itself, having removed the lock's folder.
fn reap_within(pid: libc::pid_t, limit_ms: u64) -> bool {
    let give_up_ms = kernel::now_ms() + limit_ms;
    loop {
        let mut status = 0;
        // SAFETY: writes one int.
        match unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } {
            0 if kernel::now_ms() < give_up_ms => kernel::sleep_ms(1),
            0 => {
                kill_and_reap(pid);
                return false;
            }
            -1 => return false,
            _ => return libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.reaped && self.shared.decide(Verdict::MainFinishes) == Verdict::MainFinishes {
            kill_and_reap(self.watchdog_pid);
            let _ = self.lock.remove_folder();
        }
    }
}
