//! A real Debian guest that writes all the time. Its image comes from `testbed/guest/build.sh`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lull_hypervisor::{BackupOrder, Base, ErrorClass, QemuHost, SweepOrder, sweep};
use tempfile::TempDir;

use crate::bed::{MIB, copy, files_in, str, tool};
use crate::storage::small;

fn testbed(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testbed/guest").join(script).canonicalize().unwrap()
}

struct Guest {
    dir: TempDir,
    name: String,
}

impl Guest {
    /// Boots it with seven more disks and starts the writer, which uses the first and the last: their filters are put in farthest apart.
    fn start(name: &str) -> Guest {
        let name = format!("{name}{}", std::process::id());
        let built = tool(str(&testbed("build.sh")), &["pg"]);
        let image = built.lines().rev().find(|l| l.ends_with(".qcow2")).unwrap();
        let guest = Guest { dir: tempfile::Builder::new().prefix("lull-hv-").tempdir().unwrap(), name };
        let mut disks = Vec::new();
        for n in 1..=7 {
            let disk = guest.dir.path().join(format!("disk{n}"));
            tool("qemu-img", &["create", "-q", "-f", "qcow2", str(&disk), "16M"]);
            disks.extend(["--disk".to_owned(), str(&disk).to_owned()]);
        }
        let mut arguments = vec!["start", &guest.name, "--image", image, "--wait", "--timeout", "300"];
        arguments.extend(disks.iter().map(String::as_str));
        guest.vm(&arguments);
        for folder in ["repo", "fleece"] {
            std::fs::create_dir(guest.dir.path().join(folder)).unwrap();
        }
        guest.start_writer();
        guest.ssh("for i in $(seq 600); do [ -s /run/longest ] && exit 0; sleep 0.1; done; cat /run/waits; exit 1");
        guest
    }

    fn vm(&self, arguments: &[&str]) -> String {
        let host = self.dir.path().join("host");
        let mut all = arguments.to_vec();
        let before_command = all.iter().position(|a| *a == "--").unwrap_or(all.len());
        all.splice(before_command..before_command, ["--dir", str(&host)]);
        tool(str(&testbed("vm.sh")), &all)
    }

    fn ssh(&self, command: &str) -> String {
        self.vm(&["ssh", &self.name, "--", command])
    }

    fn start_writer(&self) {
        let program = self.dir.path().join("writer");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qemu/writer.rs");
        tool(
            "rustc",
            &[
                "--edition",
                "2024",
                "-O",
                "-C",
                "target-feature=+crt-static",
                "--target",
                "x86_64-unknown-linux-gnu",
                "-o",
                str(&program),
                str(&source),
            ],
        );
        let ssh = format!(
            "{} ssh {} --dir {} -- 'cat >/run/writer; chmod 755 /run/writer; setsid /run/writer >/run/waits 2>&1 </dev/null &' <{}",
            testbed("vm.sh").display(),
            self.name,
            self.dir.path().join("host").display(),
            program.display()
        );
        tool("sh", &["-c", &ssh]);
    }

    /// How many numbers were written, and the longest wait for one, in ms.
    fn written(&self) -> (u64, u64) {
        let said = self.ssh("cat /run/longest");
        let mut numbers =
            said.split_whitespace().map(|n| n.parse::<u64>().unwrap_or_else(|_| panic!("the writer says {said}")));
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    fn host(&self) -> QemuHost {
        QemuHost::new(self.dir.path().join("host"))
    }

    fn order(&self, restore_point: &str) -> BackupOrder {
        let mut order =
            BackupOrder::new(restore_point, "task", self.dir.path().join("repo"), self.dir.path().join("fleece"));
        order.min_free_fleecing_bytes = Some(0);
        order
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let host = self.dir.path().join("host");
        let _ = Command::new(testbed("vm.sh")).args(["stop", &self.name, "--dir", str(&host)]).status();
    }
}

/// The numbers in the first 4096 blocks of an image.
fn numbers(qcow2: &Path) -> Vec<u64> {
    let raw = qcow2.with_extension("raw");
    tool("qemu-img", &["convert", "-O", "raw", str(qcow2), str(&raw)]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes.chunks(512).take(4096).map(|block| u64::from_le_bytes(block[..8].try_into().unwrap())).collect()
}

/// The last number written before the instant that both disks show; panics if they do not show one instant.
fn instant(disks: [&Path; 2]) -> u64 {
    let found = disks.map(numbers);
    let last = *found.iter().flatten().max().unwrap();
    let mut expected = [vec![0; 4096], vec![0; 4096]];
    for n in last.saturating_sub(4 * 4096)..=last {
        expected[usize::try_from(n % 2).unwrap()][usize::try_from(n / 2 % 4096).unwrap()] = n;
    }
    for (disk, (found, expected)) in found.iter().zip(&expected).enumerate() {
        for (block, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert_eq!(found, expected, "disk {disk}, block {block}: not what it was when {last} had been written");
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_guests_disks_show_one_instant_and_the_restore_point_boots() {
    let guest = Guest::start("instant");
    let mut last = 0;
    let mut owed: Vec<String> = Vec::new();
    let mut parent = None;
    for round in 0..6 {
        let point = format!("rp{round}");
        let vm = guest.host().open(&guest.name).await.unwrap();
        let mut order = guest.order(&point);
        // Full, and then a chain: what boots at the end lies over four others.
        if let Some(dir) = parent.take().filter(|_| round > 1) {
            order.base = Base::Parent { restore_point: format!("rp{}", round - 1), dir };
        }
        let mut backup = vm.prepare(order).await.unwrap();
        assert_eq!(backup.parent().is_some(), round > 1, "{:?}", backup.full_because());
        let taken = backup.snapshot(false).await.unwrap();
        assert!(taken.atomic && taken.vm_was_stopped);
        let done = copy(&mut backup).await.unwrap();
        let files = backup.finish().await.unwrap();
        parent = Some(files.dir.clone());
        owed.push(taken.bitmap);
        assert_eq!(vm.residue(&owed).await.unwrap(), Vec::<String>::new());
        let seen = instant([&files.disks[1], &files.disks[7]]);
        println!(
            "{point}: window {} us, {} MiB read, {} MiB in {} ms, instant {seen}",
            taken.window_us,
            done.read_bytes / MIB,
            done.stored_bytes / MIB,
            done.took_ms
        );
        assert!(seen > last);
        last = seen;
    }
    let (written, longest_ms) = guest.written();
    println!("{written} numbers, the longest wait {longest_ms} ms");
    assert!(written > last - 256);
    assert!(longest_ms < 3000, "writes waited: {}", guest.ssh("cat /run/waits"));

    let disk = files_in(&guest.dir.path().join("repo")).into_iter().find(|f| f.ends_with("rp5/disk0.qcow2")).unwrap();
    let clones = guest.dir.path().join("clone");
    let name = format!("clone{}", std::process::id());
    tool(str(&testbed("vm.sh")), &["boot-restore", str(&disk), "--name", &name, "--dir", str(&clones), "--wait"]);
    let said = tool(str(&testbed("vm.sh")), &["ssh", &name, "--dir", str(&clones), "--", "cat /proc/mounts"]);
    tool(str(&testbed("vm.sh")), &["stop", &name, "--dir", str(&clones)]);
    assert!(said.contains("/dev/vda / ext4 rw"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_repository_does_not_hold_up_a_real_guest() {
    let guest = Guest::start("repofull");
    let repository = guest.dir.path().join("repo");
    let _small = small(&repository, 24);
    let vm = guest.host().open(&guest.name).await.unwrap();
    let mut backup = vm.prepare(guest.order("rp1")).await.unwrap();
    drop(vm);
    backup.snapshot(false).await.unwrap();
    let error = copy(&mut backup).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Repository, "{error}");
    let (before, _) = guest.written();
    assert_eq!(backup.abandon().await.unwrap().remaining, Vec::<String>::new());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (after, longest_ms) = guest.written();
    assert!(after > before && longest_ms < 3000, "{before} {after} {longest_ms}");
    assert_eq!(files_in(&repository), Vec::<PathBuf>::new());
    let fleecing_dir = guest.dir.path().join("fleece");
    let order = SweepOrder { bitmaps_owed: vec![], fleecing_dir, repository_dir: repository, unrecorded: None };
    let swept = sweep(&guest.host(), &guest.name, &order).await.unwrap();
    assert_eq!((swept.removed, swept.remaining, swept.continued), (vec![], vec![], false));
}
