//! The watcher over real processes: this test program started again, as parent or as worker.

use lull_proxy::watcher::{self, NEEDS_A_PERSON, Pace};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const ROLE: &str = "LULL_TEST_ROLE";
/// Folder in which each worker leaves a file with its process for a name.
const FOLDER: &str = "LULL_TEST_FOLDER";
const PACE: Pace = Pace {
    silence: Duration::from_secs(4),
    pause_min: Duration::from_millis(100),
    pause_max: Duration::from_millis(400),
    steady_after: Duration::from_secs(60),
};

/// This program again, which runs nothing but [`a_worker_that_nobody_watches_says_so`].
fn again(role: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let only = ["--exact", "a_worker_that_nobody_watches_says_so", "--test-threads=1", "--nocapture"];
    command.args(only).env(ROLE, role).env(FOLDER, folder);
    command
}

#[test]
fn a_worker_that_nobody_watches_says_so() {
    let folder = || PathBuf::from(std::env::var_os(FOLDER).unwrap());
    match std::env::var(ROLE).as_deref() {
        Ok("parent") => {
            let code = watcher::run(|| again("worker", &folder()), PACE).unwrap();
            std::process::exit(code.into());
        }
        Ok(_) => work(&folder()),
        Err(_) => {
            // A test's standard input is no socket.
            let error = watcher::sign_of_life().unwrap_err().to_string();
            assert!(error.contains("lull proxy run"), "{error}");
        }
    }
}

fn work(folder: &Path) -> ! {
    let signs = watcher::sign_of_life().unwrap();
    std::fs::write(folder.join(std::process::id().to_string()), "").unwrap();
    if folder.join("end-badly").exists() {
        std::process::exit(1);
    }
    if folder.join("end-for-good").exists() {
        std::process::exit(NEEDS_A_PERSON.into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::spawn(signs.give());
        let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        loop {
            tokio::select! {
                _ = stop.recv() => std::process::exit(0),
                () = tokio::time::sleep(Duration::from_millis(50)) => if folder.join("hang").exists() {
                    // A runtime that hangs.
                    std::thread::sleep(Duration::from_secs(1_000));
                },
            }
        }
    })
}

/// A parent with its workers; all are gone after the test.
struct Watched {
    parent: Child,
    folder: tempfile::TempDir,
}

impl Watched {
    fn start() -> Watched {
        let folder = tempfile::tempdir().unwrap();
        let again = again("parent", folder.path());
        // The program has a thread besides, the test harness's, which must not take the signals.
        let mut parent = Command::new("env");
        parent.arg("--block-signal=TERM,INT,CHLD").arg(again.get_program()).args(again.get_args());
        parent.env(ROLE, "parent").env(FOLDER, folder.path());
        Watched { parent: parent.spawn().unwrap(), folder }
    }

    /// Every worker that was started so far, once there are so many.
    fn workers(&self, at_least: usize) -> Vec<i32> {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let files = std::fs::read_dir(self.folder.path()).unwrap().flatten();
            let pids: Vec<i32> = files.filter_map(|file| file.file_name().to_str()?.parse().ok()).collect();
            if pids.len() >= at_least {
                return pids;
            }
            assert!(Instant::now() < until, "only {} workers were started", pids.len());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The parent's exit code; it has a while to end.
    fn ended(&mut self) -> Option<i32> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.parent.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "the parent does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn tell(&self, what: &str) {
        std::fs::write(self.folder.path().join(what), "").unwrap();
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.parent.kill();
        let _ = self.parent.wait();
        self.workers(0).into_iter().for_each(|pid| signal(pid, nix::sys::signal::Signal::SIGKILL));
    }
}

/// To a process that these tests started; one that is gone is fine.
fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    if is_ours(pid) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
    }
}

fn is_ours(pid: i32) -> bool {
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.contains("a_worker_that_nobody_watches_says_so")
}

fn gone_within(pid: i32, limit: Duration) -> Duration {
    let began = Instant::now();
    while is_ours(pid) {
        assert!(began.elapsed() < limit, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
    began.elapsed()
}

#[test]
fn a_worker_that_stands_still_is_killed_and_started_again() {
    let watched = Watched::start();
    let first = watched.workers(1)[0];
    std::thread::sleep(PACE.silence + Duration::from_secs(1));
    assert!(is_ours(first), "one that lives is left alone");
    signal(first, nix::sys::signal::Signal::SIGSTOP);
    let took = gone_within(first, Duration::from_secs(15));
    assert!(took > Duration::from_secs(2), "{took:?}");
    let second = *watched.workers(2).iter().find(|pid| **pid != first).unwrap();
    watched.tell("hang");
    gone_within(second, Duration::from_secs(15));
    watched.workers(3);
}

#[test]
fn a_worker_does_not_outlive_its_parent() {
    let mut watched = Watched::start();
    let worker = watched.workers(1)[0];
    watched.parent.kill().unwrap();
    watched.parent.wait().unwrap();
    gone_within(worker, Duration::from_secs(3));
}

#[test]
fn a_worker_that_ends_is_started_again_with_growing_pauses_until_the_parent_is_told_to_stop() {
    let began = Instant::now();
    let mut watched = Watched::start();
    watched.tell("end-badly");
    signal(watched.workers(1)[0], nix::sys::signal::Signal::SIGKILL);
    watched.workers(5);
    assert!(began.elapsed() >= Duration::from_millis(100 + 200 + 400 + 400), "{:?}", began.elapsed());
    signal(watched.parent.id() as i32, nix::sys::signal::Signal::SIGTERM);
    assert_eq!(watched.ended(), Some(1));
}

#[test]
fn a_worker_that_is_told_to_stop_ends_in_order_and_its_parent_with_it() {
    let mut watched = Watched::start();
    watched.workers(1);
    // It listens once it works.
    std::thread::sleep(Duration::from_millis(500));
    signal(watched.parent.id() as i32, nix::sys::signal::Signal::SIGTERM);
    assert_eq!(watched.ended(), Some(0));
    assert_eq!(watched.workers(1).len(), 1);
}

#[test]
fn a_worker_that_needs_a_person_is_not_started_again() {
    let mut watched = Watched::start();
    watched.tell("end-for-good");
    signal(watched.workers(1)[0], nix::sys::signal::Signal::SIGKILL);
    assert_eq!(watched.ended(), Some(NEEDS_A_PERSON.into()));
}
