//! `incremental`: what an incremental backup reads, stores and takes, beside a full one of the same guest.
//!
//! One VM under one pgbench write load. In each pair a full backup, then some seconds of load, then an incremental one on it; both are timed from the
//! beginning of their preparation to the durable restore point, by the same library as a job's. The guest is not frozen: that is what
//! `freeze-window` measures.
//!
//! At the end both kinds are proved: the VM is paused, the restore point is taken, and while the VM still stands still the restored disk is
//! compared with the VM's own, byte for byte.

use super::arguments::Arguments;
use super::figure::{Figure, Goal};
use super::stage::{GUEST, Scene};
use super::statistics::{median, ratios};
use super::testbed::Testbed;
use anyhow::{Context, Result, bail, ensure};
use lull_hypervisor::{BackupOrder, Base, QemuHost, QemuVm, RestorePointFiles, SweepOrder, sweep};
use serde_json::Value;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// Pairs, where not told.
const PAIRS: usize = 5;
/// Load between a full backup and the increment on it.
const LOAD_BETWEEN: Duration = Duration::from_secs(20);
/// Longest pair, for the length of the load.
const PAIR_SECONDS_MAX: u64 = 600;
const MIB: f64 = (1 << 20) as f64;

/// Runs the bench.
///
/// # Errors
/// When a backup fails, the load ends, or a restore point is not what the disk was.
pub async fn measure(arguments: &Arguments) -> Result<Vec<Figure>> {
    let pairs = arguments.pairs.unwrap_or(PAIRS);
    let scene = Scene::new(Testbed::of_this_checkout()?)?;
    let image = scene.testbed.image("pg").await?;
    scene.testbed.start(GUEST, &image, &scene.vms()).await?;
    let log = scene.server_log();
    let mut load = scene.testbed.load(GUEST, &scene.vms(), PAIR_SECONDS_MAX * (pairs as u64 + 2), &log)?;
    let (mut fulls, mut increments) = (Vec::new(), Vec::new());
    for pair in 1..=pairs {
        let (full, files) = backup(&scene, &format!("full{pair}"), None, State::Running).await?;
        tokio::time::sleep(LOAD_BETWEEN).await;
        load.still_runs(&log)?;
        let (increment, _) = backup(&scene, &format!("inc{pair}"), Some(&files), State::Running).await?;
        eprintln!("pair {pair} of {pairs}: full {full}; incremental {increment}");
        fulls.push(full);
        increments.push(increment);
        clear(&scene).await?;
    }
    let (_, full) = backup(&scene, "proof1", None, State::Paused).await.context("the proof of a full backup")?;
    tokio::time::sleep(LOAD_BETWEEN).await;
    load.still_runs(&log)?;
    backup(&scene, "proof2", Some(&full), State::Paused).await.context("the proof of an incremental backup")?;
    eprintln!("full and incremental: equal to the disk of the VM that was paused for them");
    let of = |all: &[Measured], part: fn(&Measured) -> f64| all.iter().map(part).collect::<Vec<f64>>();
    let figure = |name: &str, unit, part: fn(&Measured) -> f64| {
        let (value, peer) = (of(&increments, part), of(&fulls, part));
        eprintln!("{name}: median of each pair's ratio {:.4}", median(&ratios(&value, &peer)));
        Figure::new(format!("incremental: {name}, median"), unit, median(&value)).beside(median(&peer))
    };
    Ok(vec![
        figure("read", "MiB", |m| m.read_mib),
        figure("stored", "MiB", |m| m.stored_mib),
        figure("from preparing to durable", "s", |m| m.total_s),
        figure("of that the copy", "s", |m| m.copy_s),
        Figure::new("incremental: proved equal, of full and incremental", "restore points", 2.0)
            .beside(2.0)
            .goal(Goal::AllOfPeer, true),
    ])
}

/// What one backup cost.
#[derive(Debug, Clone, Copy)]
struct Measured {
    read_mib: f64,
    stored_mib: f64,
    total_s: f64,
    copy_s: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measured { read_mib, stored_mib, total_s, copy_s } = self;
        write!(f, "{read_mib:.1} MiB read, {stored_mib:.1} MiB stored in {total_s:.2} s (copy {copy_s:.2} s)")
    }
}

/// What the VM does while it is backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// It stands still from the snapshot until what was restored has been compared with its disk.
    Paused,
}

async fn backup(
    scene: &Scene,
    id: &str,
    parent: Option<&RestorePointFiles>,
    state: State,
) -> Result<(Measured, RestorePointFiles)> {
    let vm = QemuHost::new(scene.vms()).open(GUEST).await?;
    let mut order = BackupOrder::new(id, "bench", scene.repository(), scene.fleecing());
    if let Some(parent) = parent {
        let restore_point = parent.metadata.restore_point.clone();
        order.base = Base::Parent { restore_point, dir: parent.dir.clone() };
    }
    let result = steps(&vm, order, parent.is_some(), state).await;
    if state == State::Paused {
        vm.client().execute("cont", Value::Null).await?;
    }
    vm.client().close().await;
    result
}

async fn steps(
    vm: &QemuVm,
    order: BackupOrder,
    incremental: bool,
    state: State,
) -> Result<(Measured, RestorePointFiles)> {
    let began = Instant::now();
    let mut backup = vm.prepare(order).await?;
    if let Some(because) = backup.full_because().filter(|_| incremental) {
        let because = because.to_string();
        backup.abandon().await?;
        bail!("it could not be incremental: {because}");
    }
    if state == State::Paused {
        vm.client().execute("stop", Value::Null).await?;
    }
    backup.snapshot(state == State::Paused).await?;
    let copied = backup.copy(|_| {}, CancellationToken::new()).await?;
    let files = backup.finish().await?;
    let total_s = began.elapsed().as_secs_f64();
    if state == State::Paused {
        for (image, disk) in files.disks.iter().zip(&files.metadata.disks) {
            same(image, &disk.source_format, Path::new(&disk.source_file)).await?;
        }
    }
    let measured = Measured {
        read_mib: copied.read_bytes as f64 / MIB,
        stored_mib: copied.stored_bytes as f64 / MIB,
        total_s,
        copy_s: copied.took_ms as f64 / 1000.0,
    };
    Ok((measured, files))
}

/// Fails unless the restored disk equals the VM's.
async fn same(restored: &Path, format: &str, disk: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["compare", "-U", "-f", "qcow2", "-F", format]).arg(restored).arg(disk).kill_on_drop(true);
    let output = command.output().await.context("starting qemu-img")?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success(),
        "{} is not {}: {}",
        restored.display(),
        disk.display(),
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

/// Removes all bitmaps of restore points, and their files.
async fn clear(scene: &Scene) -> Result<()> {
    let order = SweepOrder {
        bitmaps_owed: Vec::new(),
        fleecing_dir: scene.fleecing(),
        repository_dir: scene.repository(),
        unrecorded: None,
    };
    let swept = sweep(&QemuHost::new(scene.vms()), GUEST, &order).await?;
    ensure!(swept.remaining.is_empty(), "left in the VM: {}", swept.remaining.join(", "));
    for entry in std::fs::read_dir(scene.repository()).context("listing the repository")? {
        let path = entry.context("listing the repository")?.path();
        std::fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}
