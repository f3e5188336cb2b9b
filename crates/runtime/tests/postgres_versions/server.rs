//! Real PostgreSQL servers for scenarios: made in a temporary folder, run as an unprivileged user, ended and removed with the value.
//! Knows how to start and steer servers; asserts nothing about the code under test.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lull_runtime::postgres::session::{Rows, Session};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// The user that runs all servers: present everywhere, and nobody's data is at stake.
pub const OWNER: &str = "nobody";
/// Its user id, and the group id used with it.
pub const OWNER_ID: u32 = 65534;

/// A folder on a second file system for WAL and tablespaces.
pub const OTHER_DISK: &str = "/dev/shm";

const START_MAX: Duration = Duration::from_secs(90);

/// One cluster, running or not.
pub struct Server {
    pub major: u32,
    /// Holds everything of this cluster; the data directory is `data`, sockets lie in `s`.
    pub dir: TempDir,
    pub data: PathBuf,
    pub port: u16,
    programs: PathBuf,
    running: Option<Child>,
}

/// How the cluster is made.
#[derive(Default)]
pub struct Make<'a> {
    pub superuser: Option<&'a str>,
    pub wal_dir: Option<&'a Path>,
    pub checksums: bool,
    /// Lines of postgresql.conf.
    pub config: &'a [&'a str],
    /// Lines of pg_hba.conf; empty leaves everybody in.
    pub hba: &'a [&'a str],
}

/// The folder with `bin/postgres` of a major version, reachable for the owner.
pub fn programs(major: u32) -> PathBuf {
    assert!(rustix::process::geteuid().is_root(), "these tests start servers as another user: run them as root");
    let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testbed/postgres/fetch.sh");
    let output = Command::new(fetch).arg(major.to_string()).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "no server of version {major}");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// A folder of the owner's, removed at the end. Short names: a socket's path has at most 107 bytes.
pub fn folder_in(parent: &Path) -> TempDir {
    let dir = tempfile::Builder::new().prefix("lull-pg-").tempdir_in(parent).unwrap();
    chown(dir.path(), Some(OWNER_ID), Some(OWNER_ID)).unwrap();
    dir
}

impl Server {
    /// Makes a cluster, without starting it.
    pub fn make(major: u32, port: u16, make: &Make<'_>) -> Self {
        let dir = folder_in(&std::env::temp_dir());
        let mut programs = programs(major);
        if !reachable(&programs) {
            let copy = dir.path().join("programs");
            run(Command::new("cp").arg("-a").arg(&programs).arg(&copy));
            programs = copy;
        }
        let data = dir.path().join("data");
        let mut initdb = as_owner(programs.join("bin/initdb"), dir.path());
        initdb.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
        initdb.arg("-U").arg(make.superuser.unwrap_or(OWNER)).arg("-D").arg(&data);
        if let Some(wal_dir) = make.wal_dir {
            initdb.arg("--waldir").arg(wal_dir);
        }
        match (make.checksums, major) {
            (true, ..=17) => drop(initdb.arg("--data-checksums")),
            (false, 18..) => drop(initdb.arg("--no-data-checksums")),
            _ => {}
        }
        run(&mut initdb);
        let server = Self { major, data, dir, port, programs, running: None };
        server.after_init(make);
        server
    }

    /// A copy of this cluster, which must be stopped.
    pub fn copy(&self, port: u16) -> Self {
        assert!(self.running.is_none());
        let dir = folder_in(&std::env::temp_dir());
        let data = dir.path().join("data");
        run(Command::new("cp").arg("-a").arg(&self.data).arg(&data));
        fs::create_dir(dir.path().join("s")).unwrap();
        chown(dir.path().join("s"), Some(OWNER_ID), Some(OWNER_ID)).unwrap();
        Self { major: self.major, data, dir, port, programs: self.programs.clone(), running: None }
    }

    fn after_init(&self, make: &Make<'_>) {
        fs::create_dir(self.socket_dir()).unwrap();
        chown(self.socket_dir(), Some(OWNER_ID), Some(OWNER_ID)).unwrap();
        self.configure(&["log_connections = on", "shared_buffers = 16MB"]);
        self.configure(make.config);
        if !make.hba.is_empty() {
            self.admit(make.hba);
        }
    }

    /// Appends lines to postgresql.conf.
    pub fn configure(&self, lines: &[&str]) {
        let mut file = fs::OpenOptions::new().append(true).open(self.data.join("postgresql.conf")).unwrap();
        for line in lines {
            writeln!(file, "{line}").unwrap();
        }
    }

    /// Replaces pg_hba.conf.
    pub fn admit(&self, lines: &[&str]) {
        self.write("pg_hba.conf", &(lines.join("\n") + "\n"));
    }

    /// Makes it a standby of `primary` when started next.
    pub fn follow(&self, primary: &Server) {
        let from =
            format!("primary_conninfo = 'host={} port={} user={OWNER}'", primary.socket_dir().display(), primary.port);
        if self.major >= 12 {
            self.write("standby.signal", "");
            self.configure(&[&from]);
        } else {
            self.write("recovery.conf", &format!("standby_mode = on\n{from}\n"));
        }
    }

    /// Writes a file of the data directory as the owner would: the server renames or rewrites some of them.
    fn write(&self, name: &str, content: &str) {
        let path = self.data.join(name);
        fs::write(&path, content).unwrap();
        chown(path, Some(OWNER_ID), Some(OWNER_ID)).unwrap();
    }

    pub fn socket_dir(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// The path of its server program.
    pub fn program(&self) -> PathBuf {
        self.programs.join("bin/postgres")
    }

    /// Its own copy of the programs, so that a test may damage them.
    pub fn own_programs(&mut self) {
        let copy = self.dir.path().join("own-programs");
        run(Command::new("cp").arg("-a").arg(&self.programs).arg(&copy));
        self.programs = copy;
    }

    /// Arguments that run this cluster in the foreground.
    pub fn arguments(&self) -> Vec<String> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let fixed = ["-h".to_owned(), String::new(), "-p".to_owned(), self.port.to_string()];
        [vec!["-D".to_owned(), text(&self.data), "-k".to_owned(), text(&self.socket_dir())], fixed.to_vec()].concat()
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self) {
        let mut command = as_owner(self.program(), self.dir.path());
        command.args(self.arguments());
        self.start_by(command);
    }

    /// Starts it by a command that ends in the server, and waits until it is ready.
    pub fn start_by(&mut self, mut command: Command) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // A server that was killed leaves its file behind, which still says "ready".
        let pid_file = || fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let stale = pid_file();
        self.running = Some(command.spawn().unwrap());
        self.wait("a server that is ready", || {
            let now = pid_file();
            now != stale && matches!(now.lines().nth(7).map(str::trim), Some("ready" | "standby"))
        });
    }

    /// Waits until `condition` holds; fails with the server's log when it does not, or when the server ended.
    pub fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            let dead =
                self.running.as_ref().is_some_and(|child| !Path::new(&format!("/proc/{}/cwd", child.id())).exists());
            if dead || start.elapsed() > START_MAX {
                panic!("waited in vain for {what}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("the server runs").id()
    }

    /// Ends it by a fast shutdown.
    pub fn stop(&mut self) {
        let Some(mut child) = self.running.take() else {
            return;
        };
        signal(child.id(), Signal::CONT);
        signal(child.id(), Signal::INT);
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > Duration::from_secs(30) {
                signal(child.id(), Signal::QUIT);
                child.wait().unwrap();
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Takes note of the postmaster's end, which somebody else brought about.
    pub fn wait_until_dead(&mut self) {
        self.running.take().expect("the server ran").wait().unwrap();
    }

    /// Whether any process still works in the data directory.
    pub fn has_processes(&self) -> bool {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut working = processes.filter_map(|process| fs::read_link(process.path().join("cwd")).ok());
        working.any(|dir| dir == self.data)
    }

    /// The process among its children whose title contains `title`, as soon as it has it.
    pub fn child(&self, title: &str) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.pid());
        let titled =
            |pid: &&str| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(title));
        let mut found = None;
        self.wait(&format!("a child with the title {title}"), || {
            let children = fs::read_to_string(&children).unwrap();
            found = children.split_whitespace().find(titled).map(|pid| pid.parse().unwrap());
            found.is_some()
        });
        found.unwrap()
    }

    /// Runs a statement as the superuser in `database`, by a connection of its own from this process (root).
    pub fn sql(&self, database: &str, statement: &str) -> Rows {
        let mut session = self.session(database, OWNER);
        session.query(statement, Instant::now() + Duration::from_secs(60)).unwrap()
    }

    /// A session from this process (root); pg_hba.conf must let it in.
    pub fn session(&self, database: &str, user: &str) -> Session {
        let socket = self.socket_dir().join(format!(".s.PGSQL.{}", self.port));
        let stream = UnixStream::connect(socket).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        Session::login(stream, user, database, &[("application_name", "the test")], deadline).expect("a session")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Everything the server logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// How many connections it has logged so far.
    pub fn connections_logged(&self) -> usize {
        self.log().matches("connection received").count()
    }

    /// System identifier and position of the latest checkpoint, from the bytes of the control file (the same places in 10 to 18).
    pub fn control_file(&self) -> (u64, u64) {
        let bytes = fs::read(self.data.join("global/pg_control")).unwrap();
        let number = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        (number(0), number(32))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A command that runs as the owner in `dir`.
pub fn as_owner(program: impl AsRef<OsStr>, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.uid(OWNER_ID).gid(OWNER_ID).current_dir(dir).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
    command
}

/// Runs a command to its end; fails with its output.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Sends a signal to a process that this test started.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    // Gone is as good.
    let _ = rustix::process::kill_process(pid, signal);
}

/// Whether every folder up to the root lets strangers through.
fn reachable(path: &Path) -> bool {
    path.ancestors().all(|dir| fs::metadata(dir).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0))
}

/// `st_dev` of a path, as `(major, minor)`.
pub fn st_dev(path: &Path) -> (u32, u32) {
    let dev = fs::metadata(path).unwrap().dev();
    (rustix::fs::major(dev), rustix::fs::minor(dev))
}
