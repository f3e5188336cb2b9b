//! A guest of the testbed, run for this test, and logins to it by OpenSSH.

use crate::client::Component;
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Everything that a login prints before this line is noise.
const SENTINEL: &str = "lull-test-begins";
/// A write every so often; a pause of three of them means frozen.
const PROBE_EVERY_MS: u64 = 100;

pub struct Guest {
    folder: tempfile::TempDir,
    key: PathBuf,
    port: String,
    /// A shell of root's, open from the start: a new login may hang while the root is frozen.
    shell: Option<RefCell<Shell>>,
}

struct Shell {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_string()
}

impl Guest {
    pub fn boot(variant: &str) -> Guest {
        let scripts = checkout().join("testbed/guest");
        let image = run(Command::new(scripts.join("build.sh")).arg(variant));
        let image = image.lines().last().unwrap().to_string();
        let testbed = std::env::var_os("LULL_TESTBED").map_or_else(|| checkout().join(".testbed"), PathBuf::from);
        let folder = tempfile::Builder::new().prefix("lull-guest-").tempdir().unwrap();
        let key = testbed.join("keys/id_test");
        // Before the start, so that a guest that does not come up is stopped too.
        let mut guest = Guest { key, folder, port: String::new(), shell: None };
        let start = ["start", "guest", "--image", &image, "--wait", "--timeout", "300", "--dir"];
        run(Command::new(scripts.join("vm.sh")).args(start).arg(guest.folder.path()));
        guest.port = std::fs::read_to_string(guest.folder.path().join("guest.port")).unwrap().trim().to_string();
        guest.shell = Some(RefCell::new(guest.open_shell()));
        guest
    }

    fn open_shell(&self) -> Shell {
        let mut process = self.login("root", "exec sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut from = process.stdout.take().unwrap();
        skip_noise(&mut from);
        Shell { to: process.stdin.take().unwrap(), from: BufReader::new(from), process }
    }

    fn login(&self, user: &str, script: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-q", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        ssh.arg("-i").arg(&self.key).args(["-p", &self.port, &format!("{user}@127.0.0.1")]);
        ssh.arg(format!("echo; echo {SENTINEL}; {script}")).stderr(Stdio::null());
        ssh
    }

    /// What a command of root's says, in the shell that is open.
    pub fn sh(&self, script: &str) -> String {
        let mut shell = self.shell.as_ref().expect("opened at boot").borrow_mut();
        writeln!(shell.to, "{script}\necho; echo {SENTINEL}").unwrap();
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert!(shell.from.read_line(&mut line).unwrap() > 0, "the shell in the guest ended at: {script}");
            if line.trim_end() == SENTINEL {
                return said.trim_end().to_string();
            }
            said.push_str(&line);
        }
    }

    fn deploy(&self) -> String {
        let folder = "/dev/shm/lull-test01";
        let put = format!("umask 077; mkdir {folder} && cat >{folder}/lull-runtime && chmod 700 {folder}/lull-runtime");
        let program = std::env::var_os("LULL_RUNTIME_LINUX")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_lull-runtime")), PathBuf::from);
        let program = std::fs::File::open(program).unwrap();
        let done = self.login("root", &put).stdin(program).stdout(Stdio::null()).status().unwrap();
        assert!(done.success());
        format!("{folder}/lull-runtime")
    }

    /// A component at work in the guest, started by this user (others than root by sudo).
    pub fn component(&self, user: &str) -> Component {
        let path = self.deploy();
        let elevate = if user == "root" { "" } else { "sudo -n " };
        let mut ssh = self.login(user, &format!("exec {elevate}{path} serve"));
        let mut process = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut from = process.stdout.take().unwrap();
        skip_noise(&mut from);
        let to = process.stdin.take().unwrap();
        Component::over(process, to.into(), from.into())
    }

    /// The ladder's third step: everything by new logins.
    pub fn thaw_by_a_new_login(&self, mount_point: &str) -> String {
        let path = self.deploy();
        let folder = Path::new(&path).parent().unwrap().display();
        let said = run(&mut self.login("root", &format!("{path} thaw {mount_point}; rm -r {folder}")));
        said.split_once(&format!("{SENTINEL}\n")).map(|(_, said)| said.to_string()).unwrap_or_default()
    }

    /// How long a new login takes.
    pub fn login_takes(&self) -> Duration {
        let began = Instant::now();
        run(&mut self.login("root", "true"));
        began.elapsed()
    }

    /// Something in the guest that writes to its root all the time and tells.
    pub fn prober(&self) -> Prober {
        let seconds = PROBE_EVERY_MS as f64 / 1_000.0;
        let script = format!("while :; do : >/root/probe && echo written; sleep {seconds}; done");
        let mut process = self.login("root", &script).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut from = process.stdout.take().unwrap();
        skip_noise(&mut from);
        let (send, writes) = channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(from).lines();
            while let Some(Ok(_)) = lines.next() {
                if send.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        Prober { process, writes }
    }

    /// A fresh look into the guest: no process, file or folder of the component's. The last process may need a moment.
    pub fn nothing_left(&self) {
        let look = "for i in $(seq 50); do left=$(pgrep -l lull-; ls -d /run/lull* /dev/shm/lull* 2>/dev/null); \
                    [ -z \"$left\" ] && break; sleep 0.1; done; echo \"$left\"";
        assert_eq!(self.sh(look), "");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(shell) = &self.shell {
            let mut shell = shell.borrow_mut();
            let _ = shell.process.kill();
            let _ = shell.process.wait();
        }
        let script = checkout().join("testbed/guest/vm.sh");
        let _ = Command::new(script).args(["stop", "guest", "--dir"]).arg(self.folder.path()).status();
    }
}

fn skip_noise(from: &mut impl Read) {
    let mut line = Vec::new();
    let mut byte = [0];
    while line != SENTINEL.as_bytes() {
        from.read_exact(&mut byte).expect("the login ended before its command began");
        match byte[0] {
            b'\n' => line.clear(),
            byte => line.push(byte),
        }
        if line == SENTINEL.as_bytes() {
            from.read_exact(&mut byte).expect("the end of the line");
        }
    }
}

pub struct Prober {
    process: Child,
    writes: Receiver<Instant>,
}

impl Prober {
    /// Waits until no write has gone through for a while.
    pub fn stops(&mut self) {
        let give_up = Instant::now() + Duration::from_secs(5);
        while self.writes.recv_timeout(Duration::from_millis(8 * PROBE_EVERY_MS)).is_ok() {
            assert!(Instant::now() < give_up, "the root takes writes although it should be frozen");
        }
    }

    pub fn stays_stopped(&mut self, time: Duration) {
        assert!(self.writes.recv_timeout(time).is_err(), "a write went through");
    }

    /// Time from `fault` to the next write that goes through.
    pub fn writes_again(&mut self, fault: Instant, within: Duration) -> Duration {
        let left = within.saturating_sub(fault.elapsed());
        let when = self.writes.recv_timeout(left).unwrap_or_else(|_| panic!("no write within {within:?}"));
        when.saturating_duration_since(fault)
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
