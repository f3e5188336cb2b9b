//! The processes that carry our channel: the login session's own sshd, and what lies between it and us (a shell, sudo).
//!
//! Right after the thaw the whole guest wants to run again, and the answer to *thaw* leaves through these: on a guest with one processor
//! they would wait behind the load. So they run as fast as we do, from arm to finish. The sshd that listens is none of them: a
//! login that it takes meanwhile must not inherit anything.
//!
//! Knows process names and parents; nothing of freezing. A priority that is not taken back (we were killed) ends with the login session.

use crate::kernel;
use std::fs;

/// Chains longer than this are nobody's login.
const ANCESTORS_MAX: usize = 32;

/// One process on the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: i32,
    name: String,
    nice: i32,
    /// With the number, who it is: numbers are used again.
    started: u64,
}

/// What hurries, and how fast each was before.
#[derive(Debug, Default)]
pub struct Carriers(Vec<Process>);

impl Carriers {
    /// Hurries those of this process.
    pub fn hurry() -> Carriers {
        let carriers = between_us_and_the_listener(ancestors());
        for process in &carriers {
            kernel::set_nice(process.pid, kernel::NICE_HURRIED);
        }
        Carriers(carriers)
    }
}

impl Drop for Carriers {
    fn drop(&mut self) {
        for before in &self.0 {
            if read(before.pid).is_some_and(|(now, _)| now.started == before.started) {
                kernel::set_nice(before.pid, before.nice);
            }
        }
    }
}

/// Nearest first, without init.
fn ancestors() -> Vec<Process> {
    // SAFETY: no pointers, cannot fail.
    let mut pid = unsafe { libc::getppid() };
    let mut found = Vec::new();
    while pid > 1 && found.len() < ANCESTORS_MAX {
        let Some((process, parent)) = read(pid) else { break };
        found.push(process);
        pid = parent;
    }
    found
}

/// All up to the last of the first run of sshds, which listens. Nothing where there is none: whose child we are then is not known.
fn between_us_and_the_listener(mut ancestors: Vec<Process>) -> Vec<Process> {
    let is_sshd = |process: &Process| process.name.starts_with("sshd");
    let Some(first) = ancestors.iter().position(is_sshd) else { return Vec::new() };
    let run = ancestors[first..].iter().take_while(|process| is_sshd(process)).count();
    ancestors.truncate(first + run - 1);
    if run == 1 { Vec::new() } else { ancestors }
}

/// A process and its parent.
fn read(pid: i32) -> Option<(Process, i32)> {
    parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(pid: i32, stat: &str) -> Option<(Process, i32)> {
    // A name may hold blanks and parentheses; the last one closes it.
    let (left, right) = stat.rsplit_once(')')?;
    let name = left.split_once('(')?.1.to_string();
    // From the third field of proc(5) on: parent is the 4th, nice the 19th, start the 22nd.
    let fields: Vec<&str> = right.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3);
    let process = Process { pid, name, nice: field(19)?.parse().ok()?, started: field(22)?.parse().ok()? };
    Some((process, field(4)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str], expect: &[&str]) {
        let process = |name: &&str| Process { pid: 7, name: name.to_string(), nice: 0, started: 1 };
        let hurried = between_us_and_the_listener(names.iter().map(process).collect());
        assert_eq!(hurried.iter().map(|process| process.name.as_str()).collect::<Vec<_>>(), expect, "of {names:?}");
    }

    #[test]
    fn the_session_hurries_and_the_listener_never() {
        check(&["sshd", "sshd"], &["sshd"]);
        check(&["sshd-session", "sshd"], &["sshd-session"]);
        check(&["sh", "sudo", "sshd", "sshd", "sshd", "init"], &["sh", "sudo", "sshd", "sshd"]);
        // One sshd per connection, started by init: it cannot be told from one that listens.
        check(&["sshd"], &[]);
        // A login inside a login: the outer one is somebody else's.
        check(&["sshd", "sshd", "sh", "sshd", "sshd"], &["sshd"]);
        check(&["sh", "cargo"], &[]);
        check(&[], &[]);
    }

    #[test]
    fn a_line_of_proc_is_read_whatever_the_name() {
        let stat = "812 (sshd: (x) y) S 700 812 812 0 -1 4194560 1 0 0 0 0 0 0 0 20 -5 1 0 5531 1 1 1";
        let (process, parent) = parse(812, stat).unwrap();
        assert_eq!((process.name.as_str(), process.nice, process.started, parent), ("sshd: (x) y", -5, 5531, 700));
        assert!(parse(1, "1 (init) S").is_none());
        let (own, _) = read(std::process::id() as i32).unwrap();
        assert!(own.started > 0);
    }
}
