//! What the scenarios share: the guest, the server, and the first restore point; how they are begun, looked at and ended.
//!
//! Everything lies in one folder of its own and is removed at the end; only processes that were started here are ended.

use crate::events::Events;
use crate::guest::{Guest, files_below, key_file};
use crate::program::{Outcome, lull, signal};
use crate::qemu::Qmp;
use lull_api::infrastructure::{Proxy, RestorePoint, Vm};
use lull_api::session::{Session, SessionSummary, Task};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::signal::unix::{self, SignalKind};

/// Name of the VM.
pub const VM: &str = "shop";
/// Name of the job that always stands.
pub const JOB: &str = "nightly";

/// A file as it was: path, bytes, when it was written.
type FileSeen = (PathBuf, u64, SystemTime);

pub struct World {
    pub folder: PathBuf,
    pub guest: Guest,
    server: Option<Child>,
    listen: String,
    proxy_listen: String,
    /// The first restore point, with its files as they were.
    first: Option<(RestorePoint, Vec<FileSeen>)>,
}

/// What a signal to the tests must end: folder of the guest, process id of the server.
static STARTED: Mutex<(Option<PathBuf>, Option<u32>)> = Mutex::new((None, None));

fn started<T>(with: impl FnOnce(&mut (Option<PathBuf>, Option<u32>)) -> T) -> T {
    with(&mut STARTED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Ctrl-C or SIGTERM ends the guest and the server too.
pub fn end_with_signals() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut interrupt = unix::signal(SignalKind::interrupt()).unwrap();
            let mut terminate = unix::signal(SignalKind::terminate()).unwrap();
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        });
        let (folder, server) = started(std::mem::take);
        if let Some(pid) = server.and_then(|pid| Pid::from_raw(pid as i32)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if let Some(folder) = folder {
            Guest { name: VM, folder: folder.join("vms"), port: 0 }.stop();
            let _ = std::fs::remove_dir_all(&folder);
        }
        std::process::exit(130);
    });
}

impl World {
    /// Boots the guest, starts the server, and takes the first restore point.
    pub fn begin(image: &str) -> World {
        // Short, since sockets lie in it.
        let folder = std::env::temp_dir().join(format!("lull-e2e-{}-{image}", std::process::id()));
        for name in ["", "state", "repository", "vms", "fleecing"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        started(|it| it.0 = Some(folder.clone()));
        let guest = Guest::boot(VM, folder.join("vms"), image);
        guest.wait_for_postgres();
        let mut world = World {
            folder,
            guest,
            server: None,
            listen: "127.0.0.1:0".into(),
            proxy_listen: "127.0.0.1:0".into(),
            first: None,
        };
        world.start_server();
        let path = |name: &str| world.folder.join(name).display().to_string();
        let (vms, fleecing, repository) = (path("vms"), path("fleecing"), path("repository"));
        let key = key_file().display().to_string();
        let connect = world.address();
        let steps: [&[&str]; 5] = [
            &["host", "add", "here", "--qemu", &vms, "--fleecing", &fleecing],
            &["credential", "add", "root-key", "--user", "root", "--key", &key],
            &["vm", "set", VM, "--address", "127.0.0.1", "--connect", &connect, "--credential", "root-key"],
            &["repository", "add", "local", &repository],
            &["job", "create", JOB, "--vm", VM, "--repository", "local"],
        ];
        for step in steps {
            world.lull(step).ok();
        }
        let session = world.run_job(JOB);
        assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
        let point = world.points().pop().expect("a restore point");
        let files = files_of(&point);
        assert!(!files.is_empty(), "{point:?}");
        world.first = Some((point, files));
        world
    }

    /// Where the guest's sshd answers.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.guest.port)
    }

    // --- the server ---

    /// Starts it (anew: on the same state, at the same address) and waits until it answers.
    pub fn start_server(&mut self) {
        assert!(self.server.is_none(), "it runs");
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("server.log")).unwrap();
        let mut child = lull()
            .args(["--json", "server", "--listen", &self.listen, "--proxy-listen", &self.proxy_listen, "--state-dir"])
            .arg(self.folder.join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        started(|it| it.1 = Some(child.id()));
        self.server = Some(child);
        BufReader::new(out).read_line(&mut line).unwrap();
        let ready: serde_json::Value =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}; see server.log"));
        self.listen = ready["url"].as_str().unwrap().trim_start_matches("http://").to_string();
        self.proxy_listen = ready["proxy_address"].as_str().unwrap().to_string();
    }

    /// Where proxies call.
    pub fn proxy_address(&self) -> &str {
        &self.proxy_listen
    }

    pub fn signal_server(&self, with: Signal) {
        signal(self.server.as_ref().expect("it runs"), with);
    }

    /// Kills it as nothing can be held back from.
    pub fn kill_server(&mut self) {
        self.signal_server(Signal::KILL);
        self.end_server();
    }

    fn end_server(&mut self) {
        let Some(mut child) = self.server.take() else { return };
        // Not waited for yet, so its id is still its own; one that is stopped or dead is killed all the same.
        let _ = child.kill();
        started(|it| it.1 = None);
        let _ = child.wait();
    }

    /// Where its REST interface answers.
    pub fn listen_address(&self) -> &str {
        &self.listen
    }

    // --- commands ---

    /// `lull` that talks to this server.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = lull();
        command.env("LULL_SERVER", format!("http://{}", self.listen)).env("LULL_STATE_DIR", self.folder.join("state"));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `lull --json …` to its end.
    pub fn lull(&self, arguments: &[&str]) -> Outcome {
        self.command(&["--json"]).args(arguments).output().unwrap().into()
    }

    /// Runs a job to its end; the session.
    pub fn run_job(&self, name: &str) -> Session {
        self.lull(&["job", "run", name]).json()
    }

    /// Makes a job on the VM that differs by these flags; replaces one of that name.
    pub fn make_job(&self, name: &str, flags: &[&str]) {
        self.lull(&["job", "remove", name]);
        let mut arguments = vec!["job", "create", name, "--vm", VM];
        if !flags.contains(&"--repository") {
            arguments.extend(["--repository", "local"]);
        }
        self.lull(&[&arguments, flags].concat()).ok();
    }

    /// Starts a job and follows it: its session's number and events.
    pub fn start_job(&self, name: &str) -> (i64, Events) {
        let session: Session = self.lull(&["job", "run", name, "--detach"]).ok().json();
        (session.summary.id, self.follow(session.summary.id))
    }

    /// The events of a session, from its first on.
    pub fn follow(&self, session: i64) -> Events {
        Events::of(self.command(&["--json", "session", "follow", &session.to_string()]))
    }

    pub fn session(&self, id: i64) -> Session {
        self.lull(&["session", "show", &id.to_string()]).ok().json()
    }

    /// The newest session's number.
    pub fn newest_session(&self) -> i64 {
        let sessions: Vec<SessionSummary> = self.lull(&["session", "list"]).ok().json();
        sessions.iter().map(|session| session.id).max().unwrap_or(0)
    }

    /// Waits for a session's end.
    pub fn finished(&self, id: i64) -> Session {
        let until = Instant::now() + Duration::from_secs(300);
        loop {
            let session = self.session(id);
            if session.summary.state == "finished" {
                return session;
            }
            assert!(Instant::now() < until, "it did not end within 300 s: {session:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn points(&self) -> Vec<RestorePoint> {
        self.lull(&["restore-point", "list"]).ok().json()
    }

    pub fn vm(&self) -> Vm {
        self.lull(&["vm", "show", VM]).ok().json()
    }

    pub fn qmp(&self) -> Qmp {
        Qmp::connect(&self.guest.folder.join(format!("{VM}.qmp")))
    }

    // --- what must hold after whatever happened ---

    /// Nothing is open, the guest writes, nothing of ours is where it does not belong, the first restore point is whole.
    pub fn assert_calm(&self) {
        let sessions: Vec<SessionSummary> = self.lull(&["session", "list"]).ok().json();
        let open: Vec<&SessionSummary> = sessions.iter().filter(|session| session.state != "finished").collect();
        assert!(open.is_empty(), "still open: {open:?}");
        self.guest.assert_calm();
        let points = self.points();
        let mut qmp = self.qmp();
        assert_eq!(qmp.run_state(), "running");
        let owed = bitmaps_owed(&points);
        let left: Vec<String> = qmp.ours().into_iter().filter(|name| !owed.contains(name)).collect();
        assert!(left.is_empty(), "left in the hypervisor: {left:?}");
        assert_eq!(files_below(&self.folder.join("fleecing")), Vec::<PathBuf>::new(), "left of the fleecing");
        let stray: Vec<PathBuf> = files_below(&self.folder.join("repository"))
            .into_iter()
            .filter(|file| !points.iter().any(|point| file.starts_with(&point.directory)))
            .collect();
        assert!(stray.is_empty(), "files of no restore point: {stray:?}");
        let (first, files) = self.first.as_ref().expect("it was taken at the beginning");
        assert!(points.iter().any(|point| point.id == first.id && point.level == first.level), "{points:?}");
        assert_eq!(&files_of(first), files, "the first restore point was touched");
    }

    pub fn verify_first(&self) {
        let first = &self.first.as_ref().expect("it was taken at the beginning").0;
        self.lull(&["restore-point", "verify", &first.id.to_string()]).ok();
    }

    /// After a scenario that failed: a server that runs, and the VM and the guest as they were.
    pub fn reset(&mut self) {
        self.end_server();
        self.guest.try_ssh("fsfreeze -u / ; fsfreeze -u /mnt/scratch; kill -CONT $(pgrep -f '[p]ostgres:'); true");
        self.start_server();
        std::thread::sleep(Duration::from_secs(1));
        let proxies: Vec<Proxy> = self.lull(&["proxy", "list"]).ok().json();
        for proxy in proxies.iter().filter(|proxy| !proxy.is_backup_server) {
            self.lull(&["proxy", "revoke", &proxy.name]).ok();
        }
        for session in 1..=self.newest_session() {
            if self.session(session).summary.state != "finished" {
                self.lull(&["session", "cancel", &session.to_string()]);
            }
        }
        let connect = self.address();
        self.lull(&["vm", "set", VM, "--connect", &connect, "--credential", "root-key"]).ok();
    }

    /// Ends server and guest. The folder stays for a look where a scenario failed.
    pub fn end(mut self, remove: bool) {
        self.stop();
        if remove {
            let _ = std::fs::remove_dir_all(&self.folder);
        } else {
            for name in ["repository", "vms"] {
                let _ = std::fs::remove_dir_all(self.folder.join(name));
            }
            println!("the server's log and state are in {}; remove it after a look", self.folder.display());
        }
    }

    fn stop(&mut self) {
        self.end_server();
        self.guest.stop();
    }
}

/// Where a panic comes before the end, nothing must go on running either.
impl Drop for World {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The one task of a session.
pub fn task(session: &Session) -> &Task {
    assert_eq!(session.tasks.len(), 1, "{session:?}");
    &session.tasks[0]
}

/// The sentence that the user of a session that failed is told.
pub fn sentence(session: &Session) -> String {
    assert_eq!(session.summary.result.as_deref(), Some("failed"), "{session:#?}");
    task(session).failure.as_ref().unwrap_or_else(|| panic!("no failure is told: {session:#?}")).text.clone()
}

/// The receipt says that guest and hypervisor were looked at and nothing was found.
pub fn assert_clean_receipt(session: &Session) {
    let receipt = task(session).receipt.as_ref().unwrap_or_else(|| panic!("no receipt: {session:#?}"));
    assert!(receipt.guest_checked, "{receipt:?}");
    assert!(receipt.left_in_guest.is_empty() && receipt.left_in_hypervisor.is_empty(), "{receipt:?}");
}

/// The bitmaps that may be there: of the newest restore point in each repository, and of the one that it replaced, which
/// goes once the newer one is recorded, with the next task. `points` are sorted, the newest first.
fn bitmaps_owed(points: &[RestorePoint]) -> Vec<String> {
    let repositories: BTreeSet<&str> = points.iter().map(|point| point.repository.as_str()).collect();
    let of = |repository| points.iter().filter(move |point| point.repository == repository).take(2);
    repositories.into_iter().flat_map(of).map(|point| format!("lull-{}", folder_name(point))).collect()
}

fn folder_name(point: &RestorePoint) -> String {
    PathBuf::from(&point.directory).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn files_of(point: &RestorePoint) -> Vec<FileSeen> {
    let mut files: Vec<_> = files_below(&PathBuf::from(&point.directory))
        .into_iter()
        .map(|file| {
            let data = std::fs::metadata(&file).unwrap();
            (file, data.len(), data.modified().unwrap())
        })
        .collect();
    files.sort();
    files
}
