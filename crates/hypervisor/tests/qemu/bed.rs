//! A VM of its own for each test: a QEMU process, its disks, a host folder, a repository and a fleecing folder, all in a temporary folder.
//! Knows nothing of what is tested.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lull_hypervisor::{
    BackupOrder, PreparedBackup, QemuHost, QemuVm, QmpClient, QmpLimits, SweepOrder, SweepReport, sweep,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const MIB: u64 = 1 << 20;
/// What disks hold before anything is written by a test.
pub const OLD: u8 = 0x11;

/// How a disk is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// `-blockdev` qcow2, virtio-blk.
    Blockdev,
    /// `-blockdev` qcow2, virtio-blk in an I/O thread.
    IoThread,
    /// `-blockdev` raw, virtio-scsi.
    ScsiRaw,
    /// `-drive if=virtio` qcow2 without any id.
    Drive,
    /// `-blockdev` qcow2 over a backing image, virtio-blk.
    Overlay,
    /// `-blockdev` qcow2 of the old version, which cannot keep a bitmap, virtio-blk.
    OldQcow2,
}

pub struct Disk {
    pub style: Style,
    pub file: PathBuf,
    pub bytes: u64,
}

impl Disk {
    pub fn format(&self) -> &'static str {
        if self.style == Style::ScsiRaw { "raw" } else { "qcow2" }
    }
}

pub struct Bed {
    pub dir: TempDir,
    pub host: QemuHost,
    pub control: Arc<QmpClient>,
    pub disks: Vec<Disk>,
    pub repository: PathBuf,
    pub fleecing: PathBuf,
    child: Child,
    extra: Vec<String>,
}

impl Bed {
    /// A running VM whose disks hold 8 MiB of [`OLD`] at 4 MiB each, the rest unallocated.
    pub async fn start(styles: &[Style]) -> Bed {
        Bed::start_sized(styles, 64 * MIB, &[]).await
    }

    pub async fn start_sized(styles: &[Style], bytes: u64, extra: &[&str]) -> Bed {
        let dir = tempfile::Builder::new().prefix("lull-hv-").tempdir().unwrap();
        let sockets = dir.path().join("host");
        let (repository, fleecing) = (dir.path().join("repo"), dir.path().join("fleece"));
        for folder in [&sockets, &repository, &fleecing] {
            std::fs::create_dir(folder).unwrap();
        }
        let disks: Vec<Disk> = styles.iter().enumerate().map(|(n, s)| create_disk(dir.path(), n, *s, bytes)).collect();
        let child = start_process(dir.path(), &disks, extra);
        let control = connect(&sockets.join("vm.control"), dir.path()).await;
        let extra = extra.iter().map(|a| (*a).to_owned()).collect();
        Bed { host: QemuHost::new(sockets), control, disks, repository, fleecing, child, extra, dir }
    }

    /// Ends the VM's process, in order or by SIGKILL, and starts it again.
    pub async fn restart(&mut self, in_order: bool) {
        if in_order {
            self.shut_down().await;
        } else {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
        let extra: Vec<&str> = self.extra.iter().map(String::as_str).collect();
        self.child = start_process(self.dir.path(), &self.disks, &extra);
        self.control = connect(&self.host.dir().join("vm.control"), self.dir.path()).await;
    }

    pub async fn open(&self) -> QemuVm {
        self.host.open("vm").await.unwrap()
    }

    pub fn order(&self, restore_point: &str) -> BackupOrder {
        let mut order = BackupOrder::new(restore_point, "task", &self.repository, &self.fleecing);
        order.min_free_fleecing_bytes = Some(0);
        order
    }

    pub fn sweep_order(&self, owed: &[&str]) -> SweepOrder {
        SweepOrder {
            bitmaps_owed: owed.iter().map(|b| (*b).to_owned()).collect(),
            fleecing_dir: self.fleecing.clone(),
            repository_dir: self.repository.clone(),
            unrecorded: None,
        }
    }

    pub async fn sweep(&self, owed: &[&str]) -> SweepReport {
        sweep(&self.host, "vm", &self.sweep_order(owed)).await.unwrap()
    }

    /// Prepared and taken, as if of a frozen guest.
    pub async fn taken(&self, order: BackupOrder) -> PreparedBackup {
        let mut backup = self.open().await.prepare(order).await.unwrap();
        backup.snapshot(true).await.unwrap();
        backup
    }

    /// A command over the second monitor.
    pub async fn control(&self, command: &'static str, arguments: Value) -> Value {
        self.control.execute(command, arguments).await.unwrap()
    }

    pub async fn run_state(&self) -> String {
        self.control("query-status", Value::Null).await["status"].as_str().unwrap().to_owned()
    }

    /// The guest writes; returns how long it waited for it.
    pub async fn write(&self, disk: usize, pattern: u8, offset: u64, bytes: u64) -> Duration {
        guest_write(&self.control, self.disks[disk].style, disk, pattern, offset, bytes).await
    }

    /// The guest writes 1 MiB after the other, round and round over all disks, until the load is stopped.
    pub fn load(&self) -> Load {
        let (control, stop) = (self.control.clone(), Arc::new(AtomicBool::new(false)));
        let disks: Vec<(Style, u64)> = self.disks.iter().map(|d| (d.style, d.bytes)).collect();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut writes, mut longest) = (0u64, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                for (disk, (style, bytes)) in disks.iter().enumerate() {
                    let offset = (writes * MIB) % (bytes - MIB);
                    let pattern = 0x40 + u8::try_from(writes % 100).unwrap();
                    longest = longest.max(guest_write(&control, *style, disk, pattern, offset, MIB).await);
                }
                writes += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (writes, longest)
        });
        Load { task, stop }
    }

    /// The disks' content at this instant, which the caller makes sure is one (the VM is stopped).
    pub fn reference(&self) -> Vec<PathBuf> {
        let copy = |n: usize, disk: &Disk| {
            let to = self.dir.path().join(format!("reference{n}.raw"));
            tool("qemu-img", &["convert", "-U", "-f", disk.format(), "-O", "raw", str(&disk.file), str(&to)]);
            to
        };
        self.disks.iter().enumerate().map(|(n, d)| copy(n, d)).collect()
    }

    /// Everything of ours, anywhere: in the VM's process, in the folders.
    pub async fn left_behind(&self, bitmaps_owed: &[&str]) -> Vec<String> {
        let owed: Vec<String> = bitmaps_owed.iter().map(|b| (*b).to_owned()).collect();
        let mut left = self.open().await.residue(&owed).await.unwrap();
        for folder in [&self.repository, &self.fleecing] {
            left.extend(files_in(folder).iter().map(|f| f.display().to_string()));
        }
        left
    }

    /// What the process of the VM says about itself is as it was: running, its own drives in front, writable.
    pub async fn assert_as_before(&self) {
        assert_eq!(self.run_state().await, "running");
        assert_eq!(self.left_behind(&[]).await, Vec::<String>::new());
        let block = self.control("query-block", Value::Null).await;
        for drive in block.as_array().unwrap() {
            let node = drive["inserted"]["node-name"].as_str().unwrap_or("none");
            assert!(!node.starts_with("lull-"), "{node} is still in front");
        }
        for disk in 0..self.disks.len() {
            self.write(disk, 0x77, 0, 4096).await;
        }
    }

    /// Ends the VM's process in order, so that its images are closed.
    pub async fn shut_down(&mut self) {
        self.control("quit", Value::Null).await;
        self.child.wait().unwrap();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Load {
    task: JoinHandle<(u64, Duration)>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Ends it: number of rounds and the longest wait of a single write.
    pub async fn stop(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

fn start_process(dir: &Path, disks: &[Disk], extra: &[&str]) -> Child {
    let mut command = Command::new(std::env::var("LULL_QEMU").unwrap_or("qemu-system-x86_64".into()));
    command.args(std::env::var("LULL_QEMU_ARGS").unwrap_or_default().split_whitespace());
    command.args([
        "-name",
        "vm",
        "-machine",
        "q35",
        "-accel",
        "tcg,thread=multi",
        "-m",
        "32",
        "-nodefaults",
        "-no-user-config",
    ]);
    command.args(["-display", "none", "-device", "virtio-scsi-pci,id=scsi", "-object", "iothread,id=io"]);
    for (n, disk) in disks.iter().enumerate() {
        command.args(disk_arguments(n, disk));
    }
    for name in ["vm.qmp", "vm.control"] {
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", dir.join("host").join(name).display()));
    }
    let errors = std::fs::File::create(dir.join("qemu.log")).unwrap();
    command.args(extra).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().unwrap()
}

fn create_disk(dir: &Path, n: usize, style: Style, bytes: u64) -> Disk {
    let disk = Disk { style, file: dir.join(format!("disk{n}")), bytes };
    let size = bytes.to_string();
    let fill = format!("write -P {OLD} 4M 8M");
    if style == Style::Overlay {
        let base = dir.join(format!("base{n}"));
        tool("qemu-img", &["create", "-q", "-f", "qcow2", str(&base), &size]);
        tool("qemu-io", &["-f", "qcow2", "-c", &fill, str(&base)]);
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(&base), str(&disk.file)]);
    } else {
        let options = if style == Style::OldQcow2 { "compat=0.10" } else { "nocow=off" };
        tool("qemu-img", &["create", "-q", "-f", disk.format(), "-o", options, str(&disk.file), &size]);
        tool("qemu-io", &["-f", disk.format(), "-c", &fill, str(&disk.file)]);
    }
    disk
}

fn disk_arguments(n: usize, disk: &Disk) -> Vec<String> {
    let file = disk.file.display();
    let node = format!("driver={},node-name=disk{n},file.driver=file,file.filename={file}", disk.format());
    let arguments = match disk.style {
        Style::Blockdev | Style::Overlay | Style::OldQcow2 => {
            vec!["-blockdev", &node, "-device", "virtio-blk-pci,drive=diskN,id=vdN"]
        }
        Style::IoThread => vec!["-blockdev", &node, "-device", "virtio-blk-pci,drive=diskN,id=vdN,iothread=io"],
        Style::ScsiRaw => vec!["-blockdev", &node, "-device", "scsi-hd,bus=scsi.0,drive=diskN,id=vdN"],
        Style::Drive => return vec!["-drive".into(), format!("if=virtio,format=qcow2,file={file}")],
    };
    arguments
        .iter()
        .map(|a| {
            if a.starts_with("driver=") {
                (*a).to_owned()
            } else {
                a.replace("diskN", &format!("disk{n}")).replace("vdN", &format!("vd{n}"))
            }
        })
        .collect()
}

/// The path by which a monitor finds the guest device's block backend.
async fn backend(control: &QmpClient, style: Style, n: usize) -> String {
    if style != Style::Drive {
        return if style == Style::ScsiRaw {
            format!("vd{n}")
        } else {
            format!("/machine/peripheral/vd{n}/virtio-backend")
        };
    }
    // Without an id QEMU counts: the n-th anonymous drive is not known by anything but its place.
    let block = control.execute("query-block", Value::Null).await.unwrap();
    let anonymous = block.as_array().unwrap().iter().find(|d| d["qdev"].as_str().is_some_and(|q| q.contains("anon")));
    anonymous.unwrap()["qdev"].as_str().unwrap().to_owned()
}

async fn guest_write(control: &QmpClient, style: Style, disk: usize, pattern: u8, offset: u64, bytes: u64) -> Duration {
    let backend = backend(control, style, disk).await;
    let line = format!("qemu-io -d {backend} \"write -P {pattern} {offset} {bytes}\"");
    let began = Instant::now();
    let answer = control.execute("human-monitor-command", json!({"command-line": line})).await.unwrap();
    let said = answer.as_str().unwrap_or_default();
    assert!(!said.to_lowercase().contains("error") && !said.contains("failed"), "{line}: {said}");
    began.elapsed()
}

async fn connect(socket: &Path, dir: &Path) -> Arc<QmpClient> {
    let began = Instant::now();
    loop {
        match QmpClient::connect(socket, QmpLimits::default()).await {
            Ok(client) => return Arc::new(client),
            Err(e) if began.elapsed() > Duration::from_secs(20) => {
                panic!("{e}: {}", std::fs::read_to_string(dir.join("qemu.log")).unwrap_or_default())
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Copies without looking at the progress and without being cancelled.
pub async fn copy(backup: &mut PreparedBackup) -> Result<lull_hypervisor::CopyDone, lull_hypervisor::HypervisorError> {
    backup.copy(|_| (), CancellationToken::new()).await
}

/// Runs a program; it must succeed.
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}

/// Both images hold the same bytes.
pub fn assert_same(raw: &Path, qcow2: &Path) {
    tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", str(raw), str(qcow2)]);
}

pub fn files_in(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        // A mounted ext4 has a lost+found of its own.
        if path.is_dir() && !path.ends_with("lost+found") {
            found.extend(files_in(&path))
        } else if path.is_file() {
            found.push(path)
        }
    }
    found.sort();
    found
}

pub fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}
