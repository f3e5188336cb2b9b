//! `freeze-window`: how long a job holds the guest frozen, beside a plain script that does the same with the guest agent.
//!
//! One VM under one pgbench write load; job and script take turns, and who begins changes from pair to pair. Both measure from
//! *freeze* sent to *thaw* answered by this machine's monotonic clock. The script does what a careful administrator would:
//! everything slow before the freeze (hypervisor prepared, agent connected, `CHECKPOINT` last), then qemu-ga freeze, the same QMP
//! commands by the same library, qemu-ga thaw. It copies to a repository like the job does, so that both leave the same disk and
//! cache to their successor.

use super::arguments::Arguments;
use super::figure::{Figure, Goal};
use super::guest_agent::GuestAgent;
use super::stage::{GUEST, Scene, Stage};
use super::statistics::{median, quantile, ratios};
use anyhow::{Context, Result};
use lull_api::session::Task;
use lull_hypervisor::{BackupOrder, ErrorClass, PreparedBackup, QemuHost, QemuVm};
use std::fmt;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Fewest pairs for which the goal counts.
const PAIRS_MIN: usize = 30;
/// The median of the job's windows over the script's may be at most this.
const RATIO_MAX: f64 = 1.05;
/// Calm between two measurements, so that none sees its predecessor's disk writes.
const SETTLE: Duration = Duration::from_secs(3);
/// Longest turn, for the length of the load.
const TURN_SECONDS_MAX: u64 = 120;
/// How long the script waits for the hypervisor's socket, which serves one client: the job's proxy may just be leaving.
const SOCKET_LIMIT: Duration = Duration::from_secs(10);

/// Runs the bench.
///
/// # Errors
/// When a job or the script fails, or the load ends.
pub async fn measure(arguments: &Arguments) -> Result<Vec<Figure>> {
    let pairs = arguments.pairs.unwrap_or(PAIRS_MIN);
    let mut stage = Stage::set_up(arguments).await?;
    stage.put_under_load(Duration::from_secs(TURN_SECONDS_MAX * 2 * (pairs as u64 + 2))).await?;
    // The first turn of each pays for what is new (host key, caches): it does not count.
    let (mut jobs, mut scripts) = (Vec::new(), Vec::new());
    for pair in 0..=pairs {
        let (job, script) = if pair % 2 == 0 {
            let job = job(&mut stage).await?;
            (job, script(&mut stage, pair).await?)
        } else {
            let script = script(&mut stage, pair).await?;
            (job(&mut stage).await?, script)
        };
        eprintln!("pair {pair} of {pairs}: job {job}; script {script}{}", if pair == 0 { " (to warm up)" } else { "" });
        if pair > 0 {
            jobs.push(job);
            scripts.push(script);
        }
    }
    let (parts_of_jobs, parts_of_scripts) = (medians(&jobs), medians(&scripts));
    eprintln!("medians of the parts: job {parts_of_jobs}; script {parts_of_scripts}");
    let (jobs, scripts) = (totals(&jobs), totals(&scripts));
    eprintln!("median of each pair's ratio: {:.3}", median(&ratios(&jobs, &scripts)));
    Ok(vec![
        Figure::new("freeze window, median", "ms", median(&jobs))
            .beside(median(&scripts))
            .goal(Goal::RatioAtMost(RATIO_MAX), pairs >= PAIRS_MIN),
        Figure::new("freeze window, p99", "ms", quantile(&jobs, 0.99)).beside(quantile(&scripts, 0.99)),
    ])
}

/// A freeze window and what it consists of.
#[derive(Debug, Clone, Copy)]
struct Window {
    /// From *freeze* sent to *thaw* answered.
    total_ms: f64,
    /// From *freeze* sent to *frozen*.
    freeze_ms: f64,
    /// The hypervisor's part.
    snapshot_ms: f64,
    /// From *thaw* sent to *thawed*.
    thaw_ms: f64,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Window { total_ms, freeze_ms, snapshot_ms, thaw_ms } = self;
        write!(f, "{total_ms:.1} ms (freeze {freeze_ms:.1}, snapshot {snapshot_ms:.1}, thaw {thaw_ms:.1})")
    }
}

fn totals(windows: &[Window]) -> Vec<f64> {
    windows.iter().map(|window| window.total_ms).collect()
}

/// The median of each part by itself: they need not add up.
fn medians(windows: &[Window]) -> Window {
    let of = |part: fn(&Window) -> f64| median(&windows.iter().map(part).collect::<Vec<f64>>());
    Window {
        total_ms: of(|w| w.total_ms),
        freeze_ms: of(|w| w.freeze_ms),
        snapshot_ms: of(|w| w.snapshot_ms),
        thaw_ms: of(|w| w.thaw_ms),
    }
}

/// What a job's session says of its window. The step *freeze* begins with what is done ahead, so its part is what the others leave.
fn window_of(task: &Task) -> Result<Window> {
    let total_us = task.freeze_window_us.context("the task says nothing of its freeze window")?;
    let took_ms = |name: &str| {
        let step = task.steps.iter().find(|step| step.step == name).and_then(|step| step.took_us);
        step.map(|us| us as f64 / 1000.0).with_context(|| format!("the task says nothing of its step {name}"))
    };
    let (total_ms, snapshot_ms, thaw_ms) = (total_us as f64 / 1000.0, took_ms("snapshot")?, took_ms("thaw")?);
    Ok(Window { total_ms, freeze_ms: total_ms - snapshot_ms - thaw_ms, snapshot_ms, thaw_ms })
}

/// One run of the job.
async fn job(stage: &mut Stage) -> Result<Window> {
    settled(stage).await?;
    let finished = stage.server.run_job().await?;
    let left = (|| {
        let task = finished.succeeded()?;
        anyhow::Ok((window_of(task)?, task.restore_point.context("the task left no restore point")?))
    })();
    let (window, point) = left.with_context(|| stage.server.last_words())?;
    stage.load_goes_on()?;
    stage.server.keep_only(point.to_string()).await?;
    Ok(window)
}

/// One run of the plain script.
async fn script(stage: &mut Stage, turn: usize) -> Result<Window> {
    settled(stage).await?;
    let window = plain_script(&stage.scene, turn).await.context("the plain script")?;
    stage.load_goes_on()?;
    Ok(window)
}

async fn settled(stage: &mut Stage) -> Result<()> {
    tokio::time::sleep(SETTLE).await;
    stage.load_goes_on()
}

/// The peer: see the module.
async fn plain_script(scene: &Scene, turn: usize) -> Result<Window> {
    let vm = open(scene).await?;
    let order = BackupOrder::new(format!("peer{turn}"), "peer", scene.peer_repository(), scene.peer_fleecing());
    let mut backup = vm.prepare(order).await?;
    let outcome = window(scene, &mut backup).await;
    if outcome.is_ok() {
        backup.copy(|_| {}, CancellationToken::new()).await?;
    }
    let report = backup.abandon().await?;
    vm.client().close().await;
    anyhow::ensure!(report.remaining.is_empty(), "the script left {} in the VM", report.remaining.join(", "));
    outcome
}

async fn window(scene: &Scene, backup: &mut PreparedBackup) -> Result<Window> {
    let mut agent = GuestAgent::connect(&scene.vms().join(format!("{GUEST}.qga"))).await?;
    scene.psql("CHECKPOINT").await?;
    let began = Instant::now();
    let frozen = agent.freeze().await;
    let freeze_took = began.elapsed();
    let taken = match &frozen {
        Ok(_) => Some(backup.snapshot(true).await),
        Err(_) => None,
    };
    let until_thaw = began.elapsed();
    // Whatever happened before: a guest that the script froze is thawed.
    let thawed = agent.thaw().await;
    let total = began.elapsed();
    let frozen = frozen?;
    taken.transpose()?;
    let thawed = thawed?;
    anyhow::ensure!(frozen > 0 && thawed == frozen, "the agent froze {frozen} file systems and thawed {thawed}");
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    Ok(Window {
        total_ms: ms(total),
        freeze_ms: ms(freeze_took),
        snapshot_ms: ms(until_thaw - freeze_took),
        thaw_ms: ms(total - until_thaw),
    })
}

async fn open(scene: &Scene) -> Result<QemuVm> {
    let host = QemuHost::new(scene.vms());
    let began = Instant::now();
    loop {
        match host.open(GUEST).await {
            Err(error) if error.class == ErrorClass::Busy && began.elapsed() < SOCKET_LIMIT => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            opened => return Ok(opened?),
        }
    }
}
