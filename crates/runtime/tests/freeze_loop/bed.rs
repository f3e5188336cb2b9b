//! A host of its own on the machine's kernel: `pivot_root` into an ext4 image, with an xfs at /data, an ext4 nested in it, a bind
//! mount of it, an ext4 at /inner whose image lies in /data; and, for tests that ask for them, a file system at /slow whose disk
//! can be stopped, or a btrfs with a subvolume at /btrfs.
//!
//! The guard: no file system of this machine's own can be seen in there; [`Bed::new`] checks it, and every component is told
//! the machine's superblocks as untouchable. Everything is mounted in private namespaces, so it is gone with the processes.

use lull_guest_wire::Superblock;
use lull_runtime::{kernel, mounts};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

pub const TARGETS: [&str; 4] = ["/", "/data", "/data/nested", "/inner"];

/// Where the file systems lie that only some tests ask for.
pub const SLOW: &str = "/slow";
pub const BTRFS: &str = "/btrfs";

pub struct Bed {
    holder: Child,
    scratch: tempfile::TempDir,
    /// Opened while everything was well: for the harness to freeze and thaw as somebody else, and to clean up.
    pub places: Vec<(String, File)>,
    /// The file system that holds the disk of /slow.
    pub under_slow: Option<File>,
    root: PathBuf,
}

/// Every superblock of this machine's own, seen from its first process.
pub fn machine_superblocks() -> Vec<Superblock> {
    let text = std::fs::read("/proc/1/mountinfo").unwrap();
    let own = mounts::on_block_devices(&mounts::parse(&text).0);
    assert!(own.iter().any(|mounted| mounted.is_root), "this machine's root is not on a block device");
    own.iter().map(|mounted| mounted.superblock).collect()
}

impl Bed {
    pub fn new() -> Bed {
        Bed::build(None)
    }

    pub fn with_slow_disk() -> Bed {
        Bed::build(Some(SLOW))
    }

    pub fn with_btrfs() -> Bed {
        Bed::build(Some(BTRFS))
    }

    fn build(another: Option<&'static str>) -> Bed {
        enter_private_mounts();
        let scratch = tempfile::Builder::new().prefix("lull-bed-").tempdir_in("/dev/shm").unwrap();
        let dir = scratch.path();
        let tree = dir.join("tree");
        for folder in "proc sys dev run data inner bind slow btrfs old tmp bin etc root".split(' ') {
            std::fs::create_dir_all(tree.join(folder)).unwrap();
        }
        let busybox = "/bin/busybox";
        assert!(Path::new(busybox).exists(), "{busybox} is missing: apt-get install busybox-static");
        std::fs::copy(busybox, tree.join("bin/busybox")).unwrap();
        for applet in "sh cat sleep touch setsid dd umount kill printf mkdir env ls".split(' ') {
            std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
        }
        std::fs::write(tree.join("etc/os-release"), "PRETTY_NAME=\"Test host 1\"\nID=test\nVERSION_ID=1\n").unwrap();
        copy_libraries(&tree);
        run(&format!("cd {0} && truncate -s 96M root.img && mkfs.ext4 -q -F -d tree root.img", dir.display()));
        run(&format!("cd {0} && truncate -s 512M data.img && mkfs.xfs -q data.img", dir.display()));
        run(&format!("cd {0} && truncate -s 48M nested.img && mkfs.ext4 -q -F nested.img", dir.display()));
        let mut under_slow = None;
        if another == Some(SLOW) {
            run(&format!(
                "cd {0} && truncate -s 128M under.img && mkfs.ext4 -q -F under.img && mkdir under && mount -o loop under.img under \
                 && truncate -s 64M under/slow.img && mkfs.ext4 -q -F under/slow.img && sync -f under",
                dir.display()
            ));
            under_slow = Some(File::open(dir.join("under")).unwrap());
        }
        let mount_another = match another {
            Some(SLOW) => "mount -o loop under/slow.img m/slow",
            Some(_) => {
                "truncate -s 256M btrfs.img; mkfs.btrfs -q btrfs.img >/dev/null; mount -o loop btrfs.img m/btrfs; \
                 btrfs -q subvolume create m/btrfs/subvolume >/dev/null"
            }
            None => ":",
        };
        let script = format!(
            "set -e; cd {0}; mkdir m; mount -o loop root.img m
             mount -t proc proc m/proc; mount -t sysfs sysfs m/sys; mount -t cgroup2 cgroup2 m/sys/fs/cgroup; mount -t devtmpfs dev m/dev
             mount -t tmpfs -o mode=755 tmpfs m/run
             echo 0 >rcu_expedited; mount --bind rcu_expedited m/sys/kernel/rcu_expedited
             mount -o loop data.img m/data; mkdir -p m/data/nested m/data/sub; mount -o loop nested.img m/data/nested
             mount --bind m/data/sub m/bind; {mount_another}
             truncate -s 32M m/data/inner.img; mkfs.ext4 -q -F m/data/inner.img; mount -o loop m/data/inner.img m/inner
             cd m; pivot_root . old; exec /bin/sh -c 'umount -l /old; echo ready; exec sleep 100000'",
            dir.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
        // SAFETY: only unshare between fork and exec; the private propagation is inherited from this thread's namespace.
        unsafe {
            command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNS) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            })
        };
        let mut holder = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the test host did not come up");
        let root = PathBuf::from(format!("/proc/{}/root", holder.id()));
        let mut bed = Bed { holder, scratch, places: Vec::new(), under_slow, root };
        bed.guard();
        let targets = TARGETS.iter().copied().chain(another);
        bed.places = targets.map(|place| (place.to_string(), File::open(bed.path(place)).unwrap())).collect();
        bed
    }

    /// Nothing of this machine's own may be visible in the host, let alone be frozen there.
    fn guard(&self) {
        let text = std::fs::read(format!("/proc/{}/mountinfo", self.holder.id())).unwrap();
        let seen = mounts::on_block_devices(&mounts::parse(&text).0);
        let machine = machine_superblocks();
        let shared: Vec<_> = seen.iter().filter(|mounted| machine.contains(&mounted.superblock)).collect();
        assert!(shared.is_empty(), "the test host sees this machine's own file systems: {shared:?}");
        assert!(seen.len() >= TARGETS.len());
    }

    /// Superblock mounted at `place`.
    pub fn superblock(&self, place: &str) -> Superblock {
        let text = std::fs::read(format!("/proc/{}/mountinfo", self.holder.id())).unwrap();
        let (all, _) = mounts::parse(&text);
        all.iter().rev().find(|mount| mount.mount_point == Path::new(place)).unwrap().superblock
    }

    /// A path of the host as seen from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// A command that runs inside the host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let namespace = File::open(format!("/proc/{}/ns/mnt", self.holder.id())).unwrap();
        // SAFETY: setns and chdir only; the child has a single thread, as setns asks.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) != 0 || libc::chdir(c"/".as_ptr()) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            })
        };
        command
    }

    /// The kernel's switch for hurried grace periods, which the host has for itself.
    pub fn grace_periods(&self) -> String {
        std::fs::read_to_string(self.path("/sys/kernel/rcu_expedited")).unwrap().trim().to_string()
    }

    /// A cgroup of its own, as a login session has: its folder in the host.
    pub fn session_cgroup(&self) -> String {
        let folder = format!("/sys/fs/cgroup/lull-test-{}", self.holder.id());
        std::fs::create_dir(self.path(&folder)).unwrap();
        folder
    }

    pub fn place(&self, name: &str) -> &File {
        &self.places.iter().find(|(place, _)| place == name).unwrap().1
    }

    /// Creates a file in the host and says when that was done: at once, or at the thaw.
    pub fn create_file(&self, inside: &str) -> Receiver<Instant> {
        let (done, when) = channel();
        let path = self.path(inside);
        std::thread::spawn(move || {
            File::create(path).unwrap();
            let _ = done.send(Instant::now());
        });
        when
    }

    /// One file per file system; asserts that each hangs.
    pub fn create_files_that_hang(&self, tag: &str) -> Vec<(String, Receiver<Instant>)> {
        let all: Vec<_> = self
            .places
            .iter()
            .map(|(place, _)| (place.clone(), self.create_file(&format!("{place}/while-frozen-{tag}"))))
            .collect();
        std::thread::sleep(Duration::from_millis(120));
        for (place, when) in &all {
            assert!(when.try_recv().is_err(), "{place} takes writes although it should be frozen");
        }
        all
    }

    /// Dirty data at /slow, so that its freeze has something to write.
    pub fn dirty_slow(&self) {
        let bytes = vec![7u8; 4 << 20];
        std::fs::write(self.path("/slow/dirty"), bytes).unwrap();
    }

    /// Stops the disk under /slow: what is written to it waits.
    pub fn stop_slow_disk(&self) {
        kernel::freeze(self.under_slow.as_ref().unwrap().as_fd()).unwrap();
    }

    pub fn start_slow_disk(&self) {
        kernel::thaw(self.under_slow.as_ref().unwrap().as_fd()).unwrap();
    }

    /// Makes every later write to this ext4 fail, its freeze too.
    pub fn break_file_system(&self, place: &str) {
        /// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, u32)`.
        const SHUTDOWN: libc::Ioctl = 0x8004_587D_u32 as libc::Ioctl;
        let without_log_flush = 2u32;
        // SAFETY: the ioctl reads one u32.
        let done = unsafe { libc::ioctl(self.place(place).as_raw_fd(), SHUTDOWN, &raw const without_log_flush) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// Processes in the host other than its holder: pid and name.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let own = std::fs::read_link(format!("/proc/{}/ns/mnt", self.holder.id())).unwrap();
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| *pid != self.holder.id())
            .filter(|pid| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|ns| ns == own))
            .map(|pid| {
                (pid, std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_string())
            })
            .collect()
    }

    /// What a component left in the host; waits a little for the last process to go.
    pub fn leftovers(&self) -> Vec<String> {
        let give_up = Instant::now() + Duration::from_secs(4);
        loop {
            let mut left: Vec<String> =
                self.processes().iter().map(|(pid, name)| format!("process {name} ({pid})")).collect();
            let run = std::fs::read_dir(self.path("/run")).unwrap().flatten();
            left.extend(run.map(|entry| format!("file /run/{}", entry.file_name().to_string_lossy())));
            if self.grace_periods() != "0" {
                left.push("the kernel's grace periods in a hurry".into());
            }
            if left.is_empty() || Instant::now() > give_up {
                return left;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // Whatever a failed test left frozen: nothing may hang after it.
        for file in self.under_slow.iter().chain(self.places.iter().map(|(_, file)| file)) {
            let _ = kernel::thaw(file.as_fd());
        }
        for (pid, name) in self.processes() {
            if name.starts_with("lull-") || name == "sleep" || name == "sh" {
                // SAFETY: no pointers; processes of this host, which this test made.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            }
        }
        for file in self.under_slow.iter().chain(self.places.iter().map(|(_, file)| file)) {
            let _ = kernel::thaw(file.as_fd());
        }
        self.places.clear();
        let _ = std::fs::remove_dir(self.path(&format!("/sys/fs/cgroup/lull-test-{}", self.holder.id())));
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        self.under_slow = None;
        // Lazily: the loop device of /slow may hold it a moment longer, and its folder must go now.
        run(&format!("umount -l {0}/under 2>/dev/null || true", self.scratch.path().display()));
    }
}

/// This thread gets mounts of its own; what it mounts is gone with it.
fn enter_private_mounts() {
    // SAFETY: plain system calls on this thread.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "needs root: {}", std::io::Error::last_os_error());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        assert_eq!(libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()), 0);
    }
}

pub fn run(script: &str) {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The component under test: the static one where given, else this build's with its libraries.
pub fn component() -> PathBuf {
    match std::env::var_os("LULL_RUNTIME_LINUX") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_BIN_EXE_lull-runtime")),
    }
}

fn copy_libraries(tree: &Path) {
    let mut output = String::new();
    let mut ldd = Command::new("ldd").arg(component()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    ldd.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    let _ = ldd.wait();
    for library in output.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = tree.join(library.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(library, to).unwrap();
    }
}
