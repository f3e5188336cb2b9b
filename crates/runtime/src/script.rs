//! Runs one script: from memory, in a session of its own, with a time limit, its output kept, and nothing of it left after a kill.
//!
//! The body lies in an anonymous memory file and is given to the interpreter of its `#!` line (without one: /bin/sh) as
//! `/proc/self/fd/N`. So it needs no folder that allows exec, and no file can stay behind. Where the kernel has no
//! `memfd_create`, an unnamed file on a memory file system serves.
//!
//! The component becomes the subreaper while the script runs: whatever the script starts, daemons included, ends up as its
//! descendant. On timeout or cancel all of them are killed. A script that ended by itself may leave what it started, since a
//! post-thaw script that starts a database means it; those are named in a note.
//!
//! Knows nothing of the freeze.

use crate::kernel::{self, Bell};
use lull_guest_wire::{SCRIPT_OUTPUT_BYTES_MAX, ScriptEnd, ScriptOrder, ScriptResult, ScriptStage};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};

/// Between SIGTERM and SIGKILL, so that a script's trap can undo what it did, in milliseconds.
const TERM_GRACE_MS: u64 = 2_000;
/// A process that does not end after SIGKILL hangs in the kernel; it is waited for this long, in milliseconds.
const KILL_WITHIN_MS: u64 = 5_000;
/// Within this time after a cancel, [`run`] returns, in milliseconds.
pub const END_WITHIN_MS: u64 = TERM_GRACE_MS + KILL_WITHIN_MS + 1_000;
/// How often the end of the script is looked for, in milliseconds.
const LOOK_EVERY_MS: u64 = 20;
/// The script's own descriptor in the interpreter.
const SCRIPT_FD: i32 = 3;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a script could not be run at all.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// Not a script.
    #[error("this is a program, not a script; give a script that starts it")]
    Program,
    /// The body could not be put anywhere.
    #[error("the script could not be stored in memory: {0}")]
    Store(io::Error),
    /// Its interpreter could not be started.
    #[error("the script could not be started with {interpreter}: {source}")]
    Start {
        /// From the `#!` line.
        interpreter: String,
        /// Why not.
        source: io::Error,
    },
}

/// Runs the script and waits for it. `cancel` ends it. Also returns notes for the session's log.
pub fn run(order: &ScriptOrder, cancel: &Bell) -> Result<(ScriptResult, Vec<String>), ScriptError> {
    let began_ms = kernel::now_ms();
    if order.body.starts_with(b"\x7fELF") {
        return Err(ScriptError::Program);
    }
    let body = store(&order.body).map_err(ScriptError::Store)?;
    let (output, write_end) = kernel::pipe().map_err(ScriptError::Store)?;
    let errors = write_end.try_clone().map_err(ScriptError::Store)?;
    let (program, argument) = interpreter(&order.body);
    let mut command = Command::new(OsStr::from_bytes(&program));
    command.args(argument.as_deref().map(OsStr::from_bytes)).arg(SELF);
    command.current_dir("/").env_clear().envs(environment(order));
    command.stdin(Stdio::null()).stdout(write_end).stderr(errors);
    let source_fd = body.as_raw_fd();
    // SAFETY: between fork and exec only calls that are safe there: setsid, dup2, fcntl, sigprocmask.
    unsafe { command.pre_exec(move || enter_session(source_fd)) };
    set_subreaper(true);
    let spawned = command.spawn();
    // Closes the write ends that the command holds: the pipe must end with the script.
    drop(command);
    let result = match spawned {
        Ok(child) => Ok(wait(child.id() as libc::pid_t, order.timeout_ms, cancel, output, began_ms)),
        Err(source) => Err(ScriptError::Start { interpreter: String::from_utf8_lossy(&program).into_owned(), source }),
    };
    set_subreaper(false);
    result
}

/// How the interpreter reaches the script.
const SELF: &str = "/proc/self/fd/3";

/// Program and its one argument, as the kernel reads a `#!` line.
fn interpreter(body: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let line = body.strip_prefix(b"#!").and_then(|rest| rest.split(|byte| *byte == b'\n').next()).unwrap_or_default();
    let line = line.trim_ascii();
    let end = line.iter().position(|byte| byte.is_ascii_whitespace()).unwrap_or(line.len());
    let argument = line[end..].trim_ascii();
    match end {
        0 => (b"/bin/sh".to_vec(), None),
        _ => (line[..end].to_vec(), (!argument.is_empty()).then(|| argument.to_vec())),
    }
}

/// A clean environment, then what the order adds.
fn environment(order: &ScriptOrder) -> BTreeMap<String, String> {
    let stage = match order.stage {
        ScriptStage::PreFreeze => "pre-freeze",
        ScriptStage::PostThaw => "post-thaw",
    };
    let fixed = [
        ("PATH", PATH),
        ("HOME", "/root"),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("SHELL", "/bin/sh"),
        ("LANG", "C.UTF-8"),
        ("LULL_STAGE", stage),
    ];
    let mut environment: BTreeMap<String, String> =
        fixed.into_iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    environment.extend(order.environment.iter().cloned());
    environment
}

/// An unnamed file in memory that holds the body.
fn store(body: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with a zero byte.
    let mut fd = unsafe { libc::memfd_create(c"lull-script".as_ptr(), libc::MFD_CLOEXEC) };
    for folder in [c"/dev/shm", c"/run"] {
        if fd < 0 {
            // SAFETY: the path ends with a zero byte.
            fd = unsafe { libc::open(folder.as_ptr(), libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC, 0o700) };
        }
    }
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, belongs to nobody else.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(body)?;
    // The script gets a descriptor that cannot write, at the beginning of the file.
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}

/// In the child: a session of its own, default signals, and the script at its descriptor.
fn enter_session(source_fd: i32) -> io::Result<()> {
    // SAFETY: no pointers but a signal set on the stack; the child owns all its descriptors.
    unsafe {
        if libc::setsid() == -1 {
            return Err(io::Error::last_os_error());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let done = if source_fd == SCRIPT_FD {
            libc::fcntl(SCRIPT_FD, libc::F_SETFD, 0)
        } else {
            libc::dup2(source_fd, SCRIPT_FD)
        };
        if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn set_subreaper(on: bool) {
    // SAFETY: no pointers. Kernels before 3.4 refuse; then only the script's session is killed.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, libc::c_ulong::from(on)) };
}

/// The last bytes of an output.
#[derive(Default)]
struct Tail {
    kept: VecDeque<u8>,
    dropped_bytes: u64,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
        let over = self.kept.len().saturating_sub(SCRIPT_OUTPUT_BYTES_MAX);
        self.kept.drain(..over);
        self.dropped_bytes += over as u64;
    }

    /// Takes what is there without waiting; false once the pipe ended.
    fn drain(&mut self, from: &mut File) -> bool {
        let mut piece = [0; 16 * 1024];
        loop {
            match from.read(&mut piece) {
                Ok(0) => return false,
                Ok(n) => self.push(&piece[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }
}

fn wait(
    script: libc::pid_t,
    timeout_ms: u64,
    cancel: &Bell,
    output: OwnedFd,
    began_ms: u64,
) -> (ScriptResult, Vec<String>) {
    // SAFETY: the descriptor is open and ours alone.
    unsafe { libc::fcntl(output.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    let mut output = File::from(output);
    let mut output_open = true;
    let mut tail = Tail::default();
    let mut stopping: Option<(ScriptEnd, u64)> = None;
    let mut ended = None;
    loop {
        if output_open {
            output_open = tail.drain(&mut output);
        }
        for (pid, status) in reap() {
            if pid == script {
                ended = Some(status);
            }
        }
        let now_ms = kernel::now_ms();
        match (stopping, ended) {
            (None, Some(_)) => break,
            (None, None) => {
                let mut polled = [kernel::waiting(cancel.raw(), libc::POLLIN)];
                kernel::poll(&mut polled, Some(0));
                let late = now_ms.saturating_sub(began_ms) >= timeout_ms;
                if polled[0].revents != 0 || late {
                    let end = if late { ScriptEnd::TimedOut } else { ScriptEnd::Cancelled };
                    stopping = Some((end, now_ms));
                    signal_all(script, libc::SIGTERM);
                }
            }
            (Some((_, since_ms)), _) => {
                let left = descendants();
                if left.is_empty() || now_ms.saturating_sub(since_ms) >= TERM_GRACE_MS + KILL_WITHIN_MS {
                    break;
                }
                if now_ms.saturating_sub(since_ms) >= TERM_GRACE_MS {
                    signal_all(script, libc::SIGKILL);
                }
            }
        }
        let mut polled = [
            kernel::waiting(if output_open { output.as_raw_fd() } else { -1 }, libc::POLLIN),
            kernel::waiting(if stopping.is_none() { cancel.raw() } else { -1 }, libc::POLLIN),
        ];
        kernel::poll(&mut polled, Some(LOOK_EVERY_MS));
    }
    if output_open {
        tail.drain(&mut output);
    }
    let end = match (stopping, ended) {
        (Some((end, _)), _) => end,
        (None, Some(status)) => match (status.code(), status.signal()) {
            (Some(code), _) => ScriptEnd::Exited(code),
            (None, signal) => ScriptEnd::Signalled(signal.unwrap_or(0)),
        },
        // Left the loop without an end: only after a kill, which the first arm covers.
        (None, None) => ScriptEnd::TimedOut,
    };
    let result = ScriptResult {
        end,
        output: tail.kept.into(),
        dropped_bytes: tail.dropped_bytes,
        took_ms: kernel::now_ms().saturating_sub(began_ms),
    };
    (result, note_survivors(stopping.is_some()))
}

/// Reaps every child that ended.
fn reap() -> Vec<(libc::pid_t, ExitStatus)> {
    let mut reaped = Vec::new();
    loop {
        let mut status = 0;
        // SAFETY: writes one int. Nothing else of this process has children while a script runs.
        match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
            pid if pid > 0 => reaped.push((pid, ExitStatus::from_raw(status))),
            _ => return reaped,
        }
    }
}

/// To the script's process group and to everything that descends from the component.
fn signal_all(script: libc::pid_t, signal: i32) {
    // SAFETY: no pointers. The group's number is not reused while members of it live; ESRCH is fine.
    unsafe { libc::kill(-script, signal) };
    for (pid, _) in descendants() {
        // SAFETY: as above; a descendant is reaped by this thread only, so its number is still its own.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Every living process below the component, with its name.
fn descendants() -> Vec<(libc::pid_t, String)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<libc::pid_t>().ok());
    let all: Vec<Process> =
        pids.filter_map(|pid| parse_stat(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)).collect();
    below(std::process::id() as libc::pid_t, &all)
}

struct Process {
    pid: libc::pid_t,
    name: String,
    state: char,
    parent: libc::pid_t,
}

/// `pid (name) state parent …`; the name may hold anything, parentheses too (proc(5)).
fn parse_stat(stat: &[u8]) -> Option<Process> {
    let text = String::from_utf8_lossy(stat);
    let (open, close) = (text.find('(')?, text.rfind(')')?);
    let mut rest = text.get(close + 1..)?.split_ascii_whitespace();
    Some(Process {
        pid: text.get(..open)?.trim().parse().ok()?,
        name: text.get(open + 1..close)?.to_string(),
        state: rest.next()?.chars().next()?,
        parent: rest.next()?.parse().ok()?,
    })
}

/// All that descend from `root`, dead ones left out.
fn below(root: libc::pid_t, all: &[Process]) -> Vec<(libc::pid_t, String)> {
    let mut found = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|process| process.parent == parent && process.pid != root) {
            if process.state != 'Z' && process.state != 'X' {
                found.push((process.pid, process.name.clone()));
            }
            parents.push(process.pid);
        }
    }
    found
}

fn note_survivors(killed: bool) -> Vec<String> {
    let left: Vec<String> = descendants().into_iter().map(|(pid, name)| format!("{name} ({pid})")).collect();
    match (left.is_empty(), killed) {
        (true, _) => Vec::new(),
        (false, true) => vec![format!(
            "these processes of the script could not be killed, they hang in the kernel: {}",
            left.join(", ")
        )],
        (false, false) => vec![format!("the script ended and left these processes running: {}", left.join(", "))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(body: &str, program: &str, argument: Option<&str>) {
        assert_eq!(
            interpreter(body.as_bytes()),
            (program.into(), argument.map(|text| text.as_bytes().to_vec())),
            "{body}"
        );
    }

    #[test]
    fn the_interpreter_line_is_read_as_the_kernel_reads_it() {
        check("#!/bin/bash\necho", "/bin/bash", None);
        check("#! /usr/bin/env  python3 -u \nprint()", "/usr/bin/env", Some("python3 -u"));
        check("echo no line", "/bin/sh", None);
        check("#!\n", "/bin/sh", None);
        check("", "/bin/sh", None);
    }

    #[test]
    fn names_with_parentheses_do_not_hide_the_parent() {
        let process = parse_stat(b"42 (a) b (c) S 7 42 42 0 -1").unwrap();
        assert_eq!((process.pid, process.name.as_str(), process.state, process.parent), (42, "a) b (c", 'S', 7));
    }

    #[test]
    fn all_descendants_are_found_and_the_dead_left_out() {
        let process = |pid, state, parent| Process { pid, name: format!("p{pid}"), state, parent };
        let all = [process(1, 'S', 0), process(5, 'S', 1), process(6, 'Z', 5), process(7, 'S', 6), process(8, 'S', 1)];
        let found: Vec<_> = below(5, &all).into_iter().map(|(pid, _)| pid).collect();
        assert_eq!(found, [7]);
    }

    proptest! {
        #[test]
        fn the_tail_is_the_end_of_everything(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40_000), 0..6)) {
            let mut tail = Tail::default();
            pieces.iter().for_each(|piece| tail.push(piece));
            let all: Vec<u8> = pieces.concat();
            let kept: Vec<u8> = tail.kept.into();
            prop_assert!(kept.len() <= SCRIPT_OUTPUT_BYTES_MAX);
            prop_assert!(all.ends_with(&kept));
            prop_assert_eq!(tail.dropped_bytes as usize + kept.len(), all.len());
        }
    }
}
