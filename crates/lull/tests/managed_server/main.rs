//! Machines become managed servers and stop being ones, on real guests: one with systemd, one without. An administrator's own login looks
//! at what is there before, between and after. Knows nothing of how the product works.
//!
//! Guests reach this machine's loopback at 10.0.2.2.

#[path = "../e2e/guest.rs"]
#[allow(dead_code, reason = "the scenarios of a whole job use more of it")]
mod guest;
#[path = "../e2e/program.rs"]
#[allow(dead_code, reason = "the scenarios of a whole job use more of it")]
mod program;

use guest::{Guest, files_below};
use lull_api::managed::ManagedServer;
use program::{Outcome, lull, signal, wait_for, wait_for_end};
use rustix::process::Signal;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// Where the guests' QEMU leads to this machine's loopback.
const HOST_FROM_GUEST: &str = "10.0.2.2";
/// Anything with our name on the guest's disks, and every process and unit of ours.
const OURS: &str = "find / -xdev -iname '*lull*' 2>/dev/null; find /run /dev/shm /tmp -iname '*lull*' 2>/dev/null; \
                    for p in /proc/[0-9]*; do case \"$(readlink $p/exe 2>/dev/null)\" in *lull*) echo process ${p#/proc/};; esac; done; \
                    grep -i lull /etc/passwd /etc/group; true";
/// Files written since the mark, but for what every login and every service writes, and the kernel's own file systems.
const SINCE: &str = "find / -xdev -newer /root/mark ! -type d ! -path '/var/log/*' ! -path '/run/*' ! -path '/proc/*' ! -path '/sys/*' \
                     ! -path '/tmp/*' ! -path '/root/mark' ! -path '/var/lib/systemd/*' ! -path '/var/lib/sudo/*' ! -path '/var/lib/postgresql/*' \
                     ! -path '/home/*/.*_history' 2>/dev/null; true";

/// A guest, a server, and what was told.
struct Bed {
    folder: PathBuf,
    guest: Guest,
    server: Option<Child>,
    /// Port for proxies.
    port: u16,
}

impl Bed {
    fn begin(image: &str) -> Bed {
        let folder = std::env::temp_dir().join(format!("lull-ms-{}-{image}", std::process::id()));
        for name in ["", "state", "vms", "secrets"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        let guest = Guest::boot("m1", folder.join("vms"), image);
        guest.ssh("date >/root/mark; sync");
        // Time stamps of files are coarser than a moment.
        guest.ssh("sleep 1");
        let mut bed = Bed { folder, guest, server: None, port: 0 };
        bed.start_server();
        bed
    }

    fn start_server(&mut self) {
        let log = std::fs::File::create(self.folder.join("server.log")).unwrap();
        let mut child = lull()
            .args(["--json", "server", "--listen", "127.0.0.1:0", "--proxy-listen", "127.0.0.1:0", "--log", "trace"])
            .arg("--state-dir")
            .arg(self.folder.join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let word = |name: &str| ready[name].as_str().unwrap_or_else(|| panic!("{ready}")).to_string();
        self.port = word("proxy_address").rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
        std::fs::write(self.folder.join("url"), word("url")).unwrap();
        self.server = Some(child);
    }

    fn lull(&self, arguments: &[&str]) -> Outcome {
        let url = std::fs::read_to_string(self.folder.join("url")).unwrap();
        let child = lull()
            .args(["--server", &url, "--state-dir"])
            .arg(self.folder.join("state"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_end(child, 900)
    }

    /// A file that holds a secret, for an option.
    fn secret(&self, name: &str, secret: &str) -> String {
        let path = self.folder.join("secrets").join(name);
        std::fs::write(&path, secret).unwrap();
        path.display().to_string()
    }

    /// `managed-server add` for the guest; `more` are its other options.
    fn add(&self, more: &[&str]) -> Outcome {
        let (ssh, server) = (self.guest.port.to_string(), self.server_address());
        let mut arguments = vec!["managed-server", "add", "linux", "127.0.0.1", "--port", &ssh];
        if !more.contains(&"--server-address") {
            arguments.extend(["--server-address", &server]);
        }
        arguments.extend(more);
        self.lull(&arguments)
    }

    fn server_address(&self) -> String {
        format!("{HOST_FROM_GUEST}:{}", self.port)
    }

    /// The fingerprint on the machine's console.
    fn host_key(&self) -> String {
        let line = self.guest.ssh("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub");
        line.split(' ').nth(1).unwrap_or_else(|| panic!("{line}")).to_string()
    }

    fn shown(&self, name: &str) -> ManagedServer {
        self.lull(&["--json", "managed-server", "show", name]).ok().json()
    }

    fn assert_nothing_of_ours(&self) {
        let found = self.guest.ssh(OURS);
        assert_eq!(found, "", "left on the machine");
    }

    fn assert_no_secret_was_kept(&self, secrets: &[&str]) {
        let holds = |path: &Path, secret: &str| {
            let bytes = std::fs::read(path).unwrap_or_default();
            bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
        };
        let files = files_below(&self.folder.join("state")).into_iter().chain([self.folder.join("server.log")]);
        for file in files {
            for secret in secrets {
                assert!(!holds(&file, secret), "{} holds {secret}", file.display());
            }
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            signal(&server, Signal::TERM);
            let _ = server.wait();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
            let words = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
            words.for_each(|line| eprintln!("{line}"));
        }
        self.guest.stop();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What an administrator is told: all of it in one sentence and a remedy.
fn told(outcome: &Outcome, code: i32, expect: &[&str]) {
    assert_eq!(outcome.code, code, "{outcome:?}");
    let words = outcome.words();
    for expected in expect {
        assert!(words.contains(expected), "{expected:?} is not told: {words}");
    }
    assert!(words.contains("do: "), "what to do is not told: {words}");
}

#[test]
fn a_machine_with_systemd_becomes_a_hardened_proxy_and_is_left_as_it_was() {
    let bed = Bed::begin("systemd");
    let key = bed.host_key();
    let (right, wrong) = (bed.secret("right", "lull-test"), bed.secret("wrong", "s3cret-wrong"));
    let admin = ["--user", "admin", "--host-key", &key, "--yes"];
    let attempts =
        || bed.guest.ssh("journalctl -q --no-pager -u ssh | grep -c -e 'Failed ' -e 'Accepted password'; true");

    println!("-- without a terminal the host key stops it, before anything secret is sent");
    let before = attempts();
    told(&bed.add(&["--user", "admin", "--password-file", &right]), 2, &[&key, &format!("--host-key {key}")]);
    let other = format!("SHA256:{}", "A".repeat(43));
    told(&bed.add(&["--user", "admin", "--password-file", &right, "--host-key", &other, "--yes"]), 3, &[&key, &other]);
    assert_eq!(attempts(), before);

    println!("-- a wrong password is tried once");
    let with_wrong = [&admin[..], &["--password-file", &wrong, "--sudo"]].concat();
    told(&bed.add(&with_wrong), 3, &["refuses the login of admin", "tried once"]);
    let tried = bed.guest.ssh("journalctl -q --no-pager -u ssh | grep -c 'Failed password for admin'; true");
    assert_eq!(tried, "1");

    println!("-- a wrong password for sudo is tried once");
    let with_sudo = [&admin[..], &["--password-file", &right, "--sudo", "--elevation-password-file", &wrong]].concat();
    told(&bed.add(&with_sudo), 3, &["sudo refused the password of admin", "log in as root, or give the password"]);
    println!("-- an account that is not root and does not become root");
    told(&bed.add(&[&admin[..], &["--password-file", &right]].concat()), 3, &["admin is not root", "--sudo"]);

    let good = [&admin[..], &["--password-file", &right, "--sudo"]].concat();
    println!("-- no way back to the backup server");
    let closed = format!("{HOST_FROM_GUEST}:9");
    let no_way = bed.add(&[&good[..], &["--server-address", &closed]].concat());
    told(&no_way, 1, &["the backup server is not reached from there at 10.0.2.2:9", "open that port"]);
    println!("-- a full disk");
    bed.guest.ssh("fallocate -l $(($(df -Pk / | tail -n 1 | awk '{print $4}') - 20000))K /root/ballast");
    told(&bed.add(&good), 1, &["MB are free at", "MB are needed for /usr/local/lib/lull", "make room"]);
    bed.guest.ssh("rm /root/ballast");
    bed.assert_nothing_of_ours();

    println!("-- it is added");
    let added = bed.add(&[&good[..], &["--name", "m1", "--slots", "3"]].concat()).ok();
    println!("{}\n{}", added.stderr, added.stdout);
    for listed in
        ["This will be changed there", "/usr/local/lib/lull/bin/lull", "/var/lib/lull-proxy", "lull-proxy.service"]
    {
        assert!(added.stderr.contains(listed), "{listed}: {added:?}");
    }
    let server = bed.shown("m1");
    assert_eq!((server.state.as_str(), server.kind.as_str(), server.slots), ("online", "linux", 3), "{server:?}");
    assert_eq!(server.networks, ["10.0.2.0/24"]);
    let machine = server.machine.expect("Lull installed it");
    assert!(machine.service && machine.host_key == key, "{machine:?}");
    println!("-- a second one of the same name, or on the same machine, is refused");
    told(&bed.add(&[&good[..], &["--name", "m1"]].concat()), 1, &["installed already", "which is the proxy m1"]);

    println!("-- it has no rights to speak of");
    let user = bed.guest.ssh("ps -o user= -p $(systemctl show -P MainPID lull-proxy)");
    assert!(user != "root" && !user.is_empty(), "{user}");
    let capabilities = bed.guest.ssh("grep -h ^CapEff /proc/$(systemctl show -P MainPID lull-proxy)/status");
    assert!(capabilities.ends_with("0000000000000000"), "{capabilities}");
    let exposure = bed.guest.ssh("systemd-analyze security lull-proxy.service --no-pager | tail -n 1");
    println!("   {exposure}");
    let level: f64 =
        exposure.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("{exposure}"));
    assert!(level < 2.0, "{exposure}");
    assert_eq!(bed.guest.ssh("stat -L -c %a /var/lib/lull-proxy"), "700");
    assert_eq!(bed.guest.ssh("systemctl is-enabled lull-proxy.service"), "enabled");

    println!("-- repaired, after it was broken");
    bed.guest.ssh("systemctl stop lull-proxy; rm -rf /usr/local/lib/lull /etc/systemd/system/lull-proxy.service /var/lib/private/lull-proxy/proxy");
    let work = ["--user", "admin", "--password-file", &right, "--sudo", "--yes"];
    bed.lull(&[&["managed-server", "repair", "m1"][..], &work].concat()).ok();
    assert_eq!(bed.shown("m1").state, "online");

    println!("-- upgraded: another process, the same proxy");
    let pid = || bed.guest.ssh("systemctl show -P MainPID lull-proxy");
    let before = pid();
    bed.lull(&[&["managed-server", "upgrade", "m1"][..], &work].concat()).ok();
    assert_ne!(pid(), before);
    assert_eq!(bed.shown("m1").state, "online");

    println!("-- another host key than the accepted one is refused");
    bed.guest.ssh("cp -a /etc/ssh /root/ssh && rm /etc/ssh/ssh_host_* && ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key && systemctl reload ssh");
    let changed = bed.lull(&[&["managed-server", "upgrade", "m1"][..], &work].concat());
    told(&changed, 1, &["shows another host key", &key, "--host-key"]);
    bed.guest.ssh("cp -a /root/ssh/ssh_host_* /etc/ssh/ && rm -r /root/ssh && systemctl reload ssh");

    println!("-- removed: nothing is left");
    bed.lull(&[&["managed-server", "remove", "m1"][..], &work].concat()).ok();
    bed.assert_nothing_of_ours();
    let units = bed.guest.ssh(
        "systemctl list-units --all --plain --no-legend 'lull*'; systemctl list-unit-files --no-legend 'lull*'; true",
    );
    assert_eq!(units, "");
    let since = bed.guest.ssh(SINCE);
    // The test's own keys, and what sudo notes of its use: no less than a log does.
    let others = |line: &str| line.starts_with("/etc/ssh/") || line.ends_with("/.sudo_as_admin_successful");
    let ours: Vec<&str> = since.lines().filter(|line| !others(line)).collect();
    assert!(ours.is_empty(), "written since, and still there: {ours:#?}");
    let list: Vec<ManagedServer> = bed.lull(&["--json", "managed-server", "list"]).ok().json();
    assert!(list.iter().all(|server| server.name != "m1"), "{list:?}");
    bed.assert_no_secret_was_kept(&["lull-test", "s3cret-wrong"]);
}

#[test]
fn a_machine_without_systemd_gets_everything_but_the_service() {
    let bed = Bed::begin("tiny");
    let key = bed.host_key();
    let identity = guest::key_file().display().to_string();
    let root = ["--host-key", &key, "--key", &identity, "--yes"];
    let added = bed.add(&[&root[..], &["--name", "small"]].concat()).ok();
    let run = "/usr/local/lib/lull/bin/lull --state-dir /var/lib/lull-proxy proxy run";
    assert!(added.words().contains(run), "{added:?}");
    let server = bed.shown("small");
    assert_eq!(server.machine.and_then(|machine| machine.run_instead).as_deref(), Some(run));

    bed.guest.ssh(&format!("setsid {run} >/dev/null 2>&1 </dev/null &"));
    wait_for(120, "the proxy comes", || (bed.shown("small").state == "online").then_some(()));

    // The proxy runs on with the program before until somebody starts it again; a repair ends it. Both say so.
    let again = format!("{run} --slots 3");
    let repair = ["managed-server", "repair", "small", "--key", &identity, "--yes", "--slots", "3"];
    let repaired = bed.lull(&repair).ok();
    for says in ["end the running proxy (process", "is ended", &format!("start it: {again}")] {
        assert!(repaired.words().contains(says), "{says}: {repaired:?}");
    }
    let upgraded = bed.lull(&["managed-server", "upgrade", "small", "--key", &identity, "--yes"]).ok();
    assert!(upgraded.words().contains(&format!("start it again: {again}")), "{upgraded:?}");

    bed.lull(&["managed-server", "remove", "small", "--key", &identity, "--yes"]).ok();
    bed.assert_nothing_of_ours();
    let since = bed.guest.ssh(SINCE);
    assert_eq!(since, "", "written since, and still there");
}
