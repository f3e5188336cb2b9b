//! The guest: booted by the testbed's scripts, looked into by a login of its own that Lull has no part in.

use crate::program::{Outcome, run, testbed, wait_for, wait_for_end};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Anything with our name: files on every local file system, processes (also by their deleted programs), mounts, sockets.
const LOOK: &str = r#"
{ find / -xdev -name "*lull*" 2>/dev/null
  find /run /dev/shm /tmp /var/tmp /mnt/scratch -name "*lull*" 2>/dev/null
  for p in /proc/[0-9]*; do
    case "$(cat $p/comm 2>/dev/null) $(readlink $p/exe 2>/dev/null)" in *lull*) echo "process ${p#/proc/} $(cat $p/comm)" ;; esac
  done
  grep lull /proc/self/mountinfo /proc/net/unix
  grep -qx 0 /sys/kernel/rcu_expedited || echo "the kernel's grace periods in a hurry"
  true
} | sort -u"#;

/// What a login prints before this line is its profile's noise.
const BEGINS: &str = "--begins--";

/// Creates a file, makes sure that it is on disk, removes it.
const WRITE: &str = "timeout 10 sh -c 'echo alive >/root/alive && sync /root/alive && rm /root/alive'";

pub struct Guest {
    pub name: &'static str,
    pub folder: PathBuf,
    pub port: u16,
}

impl Guest {
    /// Boots it: `pg` with a second disk, an ext4 at /mnt/scratch that holds nothing of the system's, others as they are.
    pub fn boot(name: &'static str, folder: PathBuf, image: &str) -> Guest {
        let with_scratch = image == "pg";
        let image = run(Command::new(testbed("guest/build.sh")).arg(image));
        let image = image.lines().last().expect("build.sh prints the image's path last").to_string();
        let scratch = folder.join("scratch.raw");
        let file = std::fs::File::create(&scratch).unwrap();
        file.set_len(64 << 20).unwrap();
        let mut start = Command::new(testbed("guest/vm.sh"));
        start.args(["start", name, "--image", &image, "--wait", "--dir"]).arg(&folder);
        if with_scratch {
            start.arg("--disk").arg(&scratch);
        }
        let mut guest = Guest { name, folder, port: 0 };
        run(&mut start);
        let port = std::fs::read_to_string(guest.folder.join(format!("{name}.port"))).unwrap();
        guest.port = port.trim().parse().unwrap();
        if with_scratch {
            guest.ssh(
                "mkfs.ext4 -q /dev/vdb && mkdir -p /mnt/scratch && mount /dev/vdb /mnt/scratch && touch /root/seen",
            );
        }
        guest
    }

    /// Waits until PostgreSQL answers: a server that is just starting is not at rest, and a job may fail for it.
    pub fn wait_for_postgres(&self) {
        let ask = "cd / && runuser -u postgres -- psql -XAtc 'select 1' pgbench";
        wait_for(120, "PostgreSQL answers", || (self.try_ssh(ask).code == 0).then_some(()));
    }

    /// A login of its own. OpenSSH itself, so that ending it ends all of it.
    fn command(&self, command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-p", &self.port.to_string(), "-i"]).arg(key_file());
        for option in [
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "BatchMode=yes",
            "ConnectTimeout=30",
        ] {
            ssh.args(["-o", option]);
        }
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        ssh.args(["root@127.0.0.1", &format!("echo; echo {BEGINS}; export {path}; {command}")]).stdin(Stdio::null());
        ssh
    }

    /// Runs a command as root, which must succeed; what it printed.
    pub fn ssh(&self, command: &str) -> String {
        let outcome = self.try_ssh(command);
        assert_eq!(outcome.code, 0, "{command}: {outcome:?}");
        outcome.stdout.trim().to_string()
    }

    /// Runs a command as root. One that hangs in the guest ends the scenario, not the tests.
    pub fn try_ssh(&self, command: &str) -> Outcome {
        let child = self.command(command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let outcome = wait_for_end(child, 120);
        let after_noise = outcome.stdout.split_once(&format!("{BEGINS}\n")).map(|(_, said)| said.to_string());
        Outcome { stdout: after_noise.unwrap_or_default(), ..outcome }
    }

    /// Lines of the guest's log that hold `pattern`.
    pub fn log_count(&self, pattern: &str) -> usize {
        self.ssh(&format!("grep -c -- '{pattern}' /var/log/syslog; true")).parse().unwrap()
    }

    /// The guest writes within seconds, and nothing of ours is in it.
    pub fn assert_calm(&self) {
        let found = self.ssh(&format!("{WRITE} || echo 'it does not write'; {LOOK}"));
        assert_eq!(found, "", "left in the guest");
    }

    /// Starts a writer in the guest that tells of every write that got through.
    pub fn pulse(&self) -> Pulse {
        let script = "while echo x >/root/pulse && echo .; do sleep 0.1; done";
        let mut child = self.command(script).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let beats = Arc::new(Mutex::new(Vec::new()));
        let told = beats.clone();
        std::thread::spawn(move || {
            for line in lines.lines() {
                let Ok(_) = line else { return };
                told.lock().unwrap().push(Instant::now());
            }
        });
        let pulse = Pulse { child, beats };
        wait_for(30, "the guest's writer begins", || (pulse.beats.lock().unwrap().len() > 3).then_some(()));
        pulse
    }

    /// A shell of root's that is open before the guest is frozen: a new login may hang then.
    pub fn shell(&self) -> Shell {
        let mut command = self.command("exec sh");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut shell = Shell { child, to, from };
        shell.ask(":");
        shell
    }

    /// Ends it; its disks go with its folder.
    pub fn stop(&self) {
        let _ = Command::new(testbed("guest/vm.sh")).args(["stop", self.name, "--dir"]).arg(&self.folder).output();
    }
}

/// A login that stays. While the guest is frozen it must be told nothing but what a shell does by itself.
pub struct Shell {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Shell {
    /// What the lines say that a script prints.
    pub fn ask(&mut self, script: &str) -> Vec<String> {
        const END: &str = "-- that was all --";
        writeln!(self.to, "{script}\necho '{END}'").unwrap();
        let mut said = Vec::new();
        loop {
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "the shell in the guest ended at: {script}");
            match line.trim_end() {
                END => return said,
                line => said.push(line.to_string()),
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The times at which a write to the guest's root file system got through, ten in a second while it is not frozen.
pub struct Pulse {
    child: Child,
    beats: Arc<Mutex<Vec<Instant>>>,
}

impl Pulse {
    fn last(&self) -> Instant {
        *self.beats.lock().unwrap().last().expect("it began")
    }

    /// Asserts that writes to the root file system hang now.
    pub fn assert_frozen(&self) {
        // What was on its way may still arrive.
        std::thread::sleep(Duration::from_millis(700));
        let before = self.last();
        std::thread::sleep(Duration::from_millis(800));
        assert_eq!(before, self.last(), "a write got through while the guest should be frozen");
    }

    /// From `fault` to the first write that gets through.
    pub fn thaw_after(&self, fault: Instant) -> Duration {
        wait_for(60, "a write gets through again", || {
            self.beats.lock().unwrap().iter().find(|beat| **beat > fault).map(|beat| *beat - fault)
        })
    }

    /// The longest time without a write since `since`.
    pub fn longest_gap(&self, since: Instant) -> Duration {
        let beats = self.beats.lock().unwrap();
        let after: Vec<Instant> = beats.iter().copied().filter(|beat| *beat >= since).chain([Instant::now()]).collect();
        after.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(Duration::MAX)
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The private key that opens every account of the guest.
pub fn key_file() -> PathBuf {
    std::env::var_os("LULL_TESTBED").map_or_else(|| testbed("../.testbed"), PathBuf::from).join("keys/id_test")
}

/// What is below a folder, files only.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
        .collect()
}
