//! One step of the catalog's bench in a process of its own, so that its CPU time and its memory are its alone: this program again,
//! as `xtask bench-step WHAT ...`. It prints one line of JSON.

use super::spool::Spool;
use anyhow::{Context, Result, bail};
use lull_catalog::{Catalog, How, IngestOutcome, NewPoint, Pattern, Query, What};
use lull_guest_wire::listing::IndexSummary;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::process::Command;

/// All tables of the bench are of one VM.
const VM: u128 = 1;
/// Each search runs so often; the median counts.
const ROUNDS: usize = 15;

/// What an ingest cost.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ingested {
    /// CPU time of the whole process, reading the spool included.
    pub cpu_seconds: f64,
    /// Its largest resident memory.
    pub peak_bytes: u64,
    /// Size of the table.
    pub table_bytes: u64,
}

/// What searches took, by the wall clock.
#[derive(Debug, Serialize, Deserialize)]
pub struct Searched {
    /// In the table of one restore point.
    pub over_one_ms: f64,
    /// In the table of many.
    pub over_many_ms: f64,
    /// In the second.
    pub hits: u64,
    /// Rows of the first.
    pub rows_one: u64,
    /// Rows of the second.
    pub rows_many: u64,
}

/// Writes what lies below `tree` to `spool`. Says how many entries.
pub async fn walk(tree: &Path, spool: &Spool) -> Result<u64> {
    step(&["walk".as_ref(), tree.as_os_str(), spool.path().as_os_str()]).await
}

/// Writes `before` with a hundredth of its files changed to `after`. Says how many.
pub async fn change(before: &Spool, after: &Spool, number: u32) -> Result<u64> {
    let number = number.to_string();
    step(&["change".as_ref(), before.path().as_os_str(), after.path().as_os_str(), number.as_ref()]).await
}

/// Writes so many entries of `spool` to `filled`.
pub async fn fill(spool: &Spool, filled: &Spool, entries: u64) -> Result<()> {
    let entries = entries.to_string();
    step(&["fill".as_ref(), spool.path().as_os_str(), filled.path().as_os_str(), entries.as_ref()]).await
}

/// Takes `spool` into the catalog at `folder`, as restore point `number`.
pub async fn ingest(folder: &Path, spool: &Spool, number: u32) -> Result<Ingested> {
    let number = number.to_string();
    step(&["ingest".as_ref(), folder.as_os_str(), spool.path().as_os_str(), number.as_ref()]).await
}

/// Searches the catalogs at `one` and `many` in turns.
pub async fn search(one: &Path, many: &Path) -> Result<Searched> {
    step(&["search".as_ref(), one.as_os_str(), many.as_os_str()]).await
}

async fn step<T: DeserializeOwned>(words: &[&OsStr]) -> Result<T> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bench-step").args(words).stderr(std::process::Stdio::inherit()).kill_on_drop(true);
    let output = command.output().await?;
    if !output.status.success() {
        bail!("bench-step {}: {}", words[0].display(), output.status);
    }
    serde_json::from_slice(&output.stdout).context("reading what a step printed")
}

/// The step itself.
///
/// # Errors
/// When it fails, or is none of ours.
pub fn run(words: &[&str]) -> Result<()> {
    let spool = |path: &str| Spool::at(PathBuf::from(path));
    let line = match words {
        ["walk", tree, to] => spool(to).walk(Path::new(tree))?.to_string(),
        ["change", from, to, number] => spool(from).change(&spool(to), number.parse()?)?.to_string(),
        ["fill", from, to, entries] => serde_json::to_string(&spool(from).fill(&spool(to), entries.parse()?)?)?,
        ["ingest", folder, from, number] => {
            serde_json::to_string(&run_ingest(Path::new(folder), &spool(from), number.parse()?)?)?
        }
        ["search", one, many] => serde_json::to_string(&run_search(Path::new(one), Path::new(many))?)?,
        _ => bail!("no such step"),
    };
    println!("{line}");
    Ok(())
}

fn run_ingest(folder: &Path, spool: &Spool, number: u32) -> Result<Ingested> {
    let catalog = Catalog::open(folder)?;
    let point = NewPoint { id: uuid::Uuid::from_u128(number.into()), number, taken_at_us: number.into() };
    let mut frames = spool.frames()?;
    let summary = IndexSummary { complete: true, ..IndexSummary::default() };
    let outcome = catalog.ingest(uuid::Uuid::from_u128(VM), &point, &mut frames, &summary)?;
    let IngestOutcome::Ingested(report) = outcome else { bail!("restore point {number} was there before") };
    if let Some(reason) = report.point.walk.stopped_because {
        bail!("not everything was taken in: {reason}");
    }
    eprintln!("catalog: restore point {number}: {:?}, {} runs", report.counts, report.runs);
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    Ok(Ingested {
        cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
        peak_bytes: peak_bytes()?,
        table_bytes: report.table_bytes,
    })
}

/// The largest resident memory of this process so far.
fn peak_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("/proc/self/status has no VmHWM")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().context("reading VmHWM")?;
    Ok(kilobytes * 1_024)
}

fn run_search(one: &Path, many: &Path) -> Result<Searched> {
    let (one, many) = (Catalog::open(one)?, Catalog::open(many)?);
    let pattern = Pattern { how: How::Substring, what: What::Name, text: b"passwd".to_vec(), ignore_case: false };
    let query = Query { pattern: Some(pattern), ..Query::default() };
    let search = |catalog: &Catalog| -> Result<(f64, u64, u64)> {
        let began = Instant::now();
        let report = catalog.search(&query, &mut |_| ControlFlow::Continue(()))?;
        Ok((began.elapsed().as_secs_f64() * 1e3, report.hits, report.rows))
    };
    let (mut times_one, mut times_many) = (Vec::new(), Vec::new());
    let (mut rows_one, mut rows_many, mut hits) = (0, 0, 0);
    for _ in 0..ROUNDS {
        let (time, _, rows) = search(&one)?;
        times_one.push(time);
        rows_one = rows;
        let time;
        (time, hits, rows_many) = search(&many)?;
        times_many.push(time);
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    Ok(Searched { over_one_ms: median(times_one), over_many_ms: median(times_many), hits, rows_one, rows_many })
}
