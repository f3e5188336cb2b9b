//! `soak`: does every restore point taken under a write load really come back?
//!
//! One VM under one pgbench write load; each turn runs the job, boots the restore point as an isolated clone, lets PostgreSQL recover, and has
//! the balances compared and every table and index verified (`testbed/pg-check.sh --amcheck`). A turn that fails is counted and said; it
//! ends nothing. Each restore point is removed when the next one is there.

use super::arguments::Arguments;
use super::figure::{Figure, Goal};
use super::lull_server::Finished;
use super::stage::Stage;
use anyhow::{Context, Result, ensure};
use lull_api::infrastructure::RestorePoint;
use std::path::Path;
use std::time::Duration;

/// Fewest restore points for which the goal counts.
const POINTS_MIN: usize = 30;
/// Longest turn, for the length of the load.
const TURN_SECONDS_MAX: u64 = 300;
/// Name of the clone.
const CLONE: &str = "proof";

/// Runs the bench.
///
/// # Errors
/// When the stage cannot be set up, the load ends, or not one restore point was taken.
pub async fn measure(arguments: &Arguments) -> Result<Vec<Figure>> {
    let points = arguments.points.unwrap_or(POINTS_MIN);
    let mut stage = Stage::set_up(arguments).await?;
    stage.put_under_load(Duration::from_secs(TURN_SECONDS_MAX * points as u64)).await?;
    let (mut taken, mut restored, mut application) = (0u32, 0u32, 0u32);
    for turn in 1..=points {
        let point = match take(&mut stage).await {
            Ok(point) => point,
            Err(error) => {
                eprintln!("point {turn} of {points}: NOT TAKEN: {error:#}");
                stage.load_goes_on()?;
                continue;
            }
        };
        taken += 1;
        application += u32::from(point.level == "application");
        match restore(&stage, &point).await {
            Ok(transactions) => {
                restored += 1;
                eprintln!("point {turn} of {points}: level {}, restored with {transactions} transactions", point.level);
            }
            Err(error) => eprintln!("point {turn} of {points}: level {}, NOT RESTORED: {error:#}", point.level),
        }
        stage.server.keep_only(point.id.to_string()).await?;
        stage.load_goes_on()?;
    }
    ensure!(taken > 0, "no restore point was taken");
    let enough = taken as usize >= POINTS_MIN;
    Ok(vec![
        Figure::new("soak: restored, of those taken", "restore points", f64::from(restored))
            .beside(f64::from(taken))
            .goal(Goal::AllOfPeer, enough),
        Figure::new("soak: taken, of those asked for", "restore points", f64::from(taken)).beside(points as f64),
        Figure::new("soak: level application, of those taken", "restore points", f64::from(application))
            .beside(f64::from(taken)),
    ])
}

async fn take(stage: &mut Stage) -> Result<RestorePoint> {
    let finished = stage.server.run_job().await?;
    let id = left_point(&finished).with_context(|| stage.server.last_words())?;
    stage.server.restore_point(&id).await
}

fn left_point(finished: &Finished) -> Result<String> {
    let task = finished.succeeded()?;
    Ok(task.restore_point.context("the task left no restore point")?.to_string())
}

/// Boots the restore point and has PostgreSQL checked; returns its transactions.
async fn restore(stage: &Stage, point: &RestorePoint) -> Result<u64> {
    let scene = &stage.scene;
    let [disk] = point.disks.as_slice() else { anyhow::bail!("it has {} disks, the guest one", point.disks.len()) };
    let image = Path::new(&point.directory).join(disk);
    let booted = scene.testbed.boot_restore(CLONE, &image, &scene.clones()).await;
    let checked = match booted {
        Ok(()) => scene.testbed.check_postgres(CLONE, &scene.clones()).await,
        Err(error) => Err(error),
    };
    scene.testbed.stop(CLONE, &scene.clones()).await?;
    let checked = checked?;
    ensure!(checked.ok, "PostgreSQL is not well: {}", checked.error.unwrap_or_else(|| "see the balances above".into()));
    Ok(checked.transactions)
}
