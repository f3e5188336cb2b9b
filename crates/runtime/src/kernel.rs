//! The few system calls that the standard library does not have, each as a function with a typed result.
//!
//! Nothing here allocates, so all of it may be called while file systems are frozen. Knows nothing of leases or plans.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `_IOWR('X', 119, int)`; the argument is ignored by the kernel.
const FIFREEZE: libc::Ioctl = 0xC004_5877_u32 as libc::Ioctl;
/// `_IOWR('X', 120, int)`.
const FITHAW: libc::Ioctl = 0xC004_5878_u32 as libc::Ioctl;

/// A system call's number of the error, as in `errno.h`.
pub type Errno = i32;

/// Freezes the superblock of `fd`. Blocks until everything dirty is on the disk.
pub fn freeze(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    freeze_ioctl(fd, FIFREEZE)
}

/// Thaws the superblock of `fd`. `EINVAL` where it was not frozen; blocks behind an unfinished freeze.
pub fn thaw(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    freeze_ioctl(fd, FITHAW)
}

fn freeze_ioctl(fd: BorrowedFd<'_>, request: libc::Ioctl) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for the length of the borrow; the kernel does not touch the argument.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, 0) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// `errno` of the last call of this thread.
pub fn last_errno() -> Errno {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The kernel's sentence for an error.
pub fn describe(errno: Errno) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}

/// `CLOCK_MONOTONIC` in microseconds.
pub fn now_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec. The clock exists on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

/// `CLOCK_MONOTONIC` in milliseconds.
pub fn now_ms() -> u64 {
    now_us() / 1_000
}

/// Writes what is dirty on the superblock of `fd`, and waits for it.
pub fn syncfs(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for the length of the borrow.
    match unsafe { libc::syncfs(fd.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Waits until one of `fds` is ready or `timeout_ms` passed (`None`: for ever). A signal counts as "nothing ready".
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: Option<u64>) {
    let timeout = timeout_ms.map_or(-1, |ms| ms.min(i32::MAX as u64) as i32);
    for fd in fds.iter_mut() {
        fd.revents = 0;
    }
    // SAFETY: the slice is a valid array of pollfd of the given length.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
}

/// What to wait for on one descriptor. Errors and hang-ups are always reported.
pub fn waiting(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// True when the other end of the polled descriptor is gone.
pub fn hung_up(polled: &libc::pollfd) -> bool {
    polled.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLRDHUP | libc::POLLNVAL) != 0
}

/// Both ends of a pipe, close-on-exec: read end, write end.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: writes two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just opened and belong to nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Something that one thread or process rings and another polls.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// An eventfd, close-on-exec and non-blocking.
    pub fn new() -> io::Result<Bell> {
        // SAFETY: no pointers.
        match unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: just opened, belongs to nobody else.
            fd => Ok(Bell(unsafe { OwnedFd::from_raw_fd(fd) })),
        }
    }

    /// Makes the bell readable.
    pub fn ring(&self) {
        let one = 1u64;
        // SAFETY: writes eight bytes of a live u64. It fails only when 2^64-2 rings wait, and then it is readable.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Makes the bell silent again.
    pub fn hush(&self) {
        let mut rings = 0u64;
        // SAFETY: reads at most eight bytes into a live u64; EAGAIN means that it was silent.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut rings).cast(), 8) };
    }

    /// For [`poll`].
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Sleeps this long.
pub fn sleep_ms(ms: u64) {
    std::thread::sleep(std::time::Duration::from_millis(ms));
}

/// The nice value of whoever hurries: the best there is.
pub const NICE_HURRIED: i32 = -20;

/// This thread, and those it creates, run before ordinary ones: a freeze window under load is as long as its slowest wake-up.
pub fn hurry() {
    set_nice(0, NICE_HURRIED);
}

/// Takes [`hurry`] back.
pub fn stop_hurrying() {
    set_nice(0, 0);
}

/// Sets the nice value of a process with one thread; 0 is the calling thread.
pub fn set_nice(pid: libc::pid_t, nice: i32) {
    // SAFETY: no pointers. Where it is refused, nothing but speed is lost.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, pid as libc::id_t, nice) };
}

/// The nice value of whoever may wait: the worst there is.
const NICE_PATIENT: i32 = 19;
/// `IOPRIO_CLASS_IDLE` in the place where `ioprio_set` wants the class.
const IOPRIO_IDLE: libc::c_int = 3 << 13;
/// `IOPRIO_WHO_PROCESS`: one thread, in spite of its name.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// This thread is the last to get a processor and the disk. Not [`hurry`]'s opposite: it is never taken back.
pub fn step_back() {
    set_nice(0, NICE_PATIENT);
    // SAFETY: no pointers. Where it is refused, the disk's scheduler treats this thread like any other.
    unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE) };
}
