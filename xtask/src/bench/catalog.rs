//! The file catalog on a real tree: bytes per path beside plocate's database, what a second restore point adds, CPU and memory of an
//! ingest, and a search over thirty restore points beside one over one.
//!
//! Walks the tree once, into a spool of listing frames like those that a guest sends ([`spool`]); a further restore point is the one
//! before with every hundredth file changed. Each step runs in a process of its own ([`step`]): it measures itself, and ends with the
//! bench. Everything lies in one temporary folder, which goes at the end.

use super::arguments::Arguments;
use super::figure::{Figure, Goal};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use tokio::process::Command;

mod spool;
pub mod step;

use spool::Spool;
use step::{Ingested, Searched};

/// The promise is about a tree of at least so many files.
const ENTRIES_MIN: u64 = 500_000;
const MILLION: u64 = 1_000_000;
const POINTS: u32 = 30;

/// Measures all figures of the catalog.
///
/// # Errors
/// When the tree cannot be walked, or a step fails.
pub async fn measure(arguments: &Arguments) -> Result<Vec<Figure>> {
    let tree = arguments.tree.clone().unwrap_or_else(|| PathBuf::from("/"));
    let scratch = Scratch::new()?;
    let spool = |name: &str| Spool::at(scratch.0.join(name));

    let first = spool("first");
    let entries = step::walk(&tree, &first).await?;
    let is_large = entries >= ENTRIES_MIN;
    eprintln!("catalog: {entries} entries below {} (of one file system)", tree.display());

    let table = scratch.0.join("growing");
    let one = step::ingest(&table, &first, 1).await?;
    let per_path = one.table_bytes as f64 / entries as f64;
    let mut size = Figure::new("catalog, first restore point", "B/path", per_path);
    match plocate(&scratch.0, &tree).await? {
        Some(bytes_per_path) => size = size.beside(bytes_per_path),
        None => eprintln!("catalog: no peer: updatedb.plocate is not installed (Debian's package plocate)"),
    }
    let mut figures = vec![size.goal(Goal::ValueAtMost(10.0), is_large)];

    let (mut before, mut after) = (first, spool("second"));
    let changed = step::change(&before, &after, 2).await?;
    let two = step::ingest(&table, &after, 2).await?;
    let growth = (two.table_bytes as f64 - one.table_bytes as f64) / one.table_bytes as f64 * 100.0;
    eprintln!("catalog: {changed} entries changed; {} bytes, then {}", one.table_bytes, two.table_bytes);
    figures.push(Figure::new("catalog, growth by 1 % changed", "%", growth).goal(Goal::ValueAtMost(5.0), is_large));

    let million = spool("million");
    step::fill(&before, &million, MILLION).await?;
    let Ingested { cpu_seconds, peak_bytes, .. } = step::ingest(&scratch.0.join("million-table"), &million, 1).await?;
    figures.extend([
        Figure::new("ingest of a million paths, CPU", "s", cpu_seconds).goal(Goal::ValueAtMost(3.0), true),
        Figure::new("ingest of a million paths, memory", "MB", peak_bytes as f64 / 1e6)
            .goal(Goal::ValueAtMost(200.0), true),
    ]);
    std::fs::remove_file(million.path())?;

    let single = scratch.0.join("single");
    step::ingest(&single, &before, 1).await?;
    for number in 3..=POINTS {
        std::mem::swap(&mut before, &mut after);
        step::change(&before, &after, number).await?;
        step::ingest(&table, &after, number).await?;
    }
    let Searched { over_one_ms, over_many_ms, hits, rows_one, rows_many } = step::search(&single, &table).await?;
    eprintln!("catalog: {hits} hits in {rows_many} rows of {POINTS} restore points, {rows_one} of one");
    figures.extend([
        Figure::new("search over 30 restore points", "ms", over_many_ms)
            .beside(over_one_ms)
            .goal(Goal::RatioAtMost(1.2), is_large),
        Figure::new("search, per million paths", "ms", over_one_ms * MILLION as f64 / rows_one as f64),
    ]);
    Ok(figures)
}

/// Bytes per path of plocate's database of the same tree, where plocate is there.
async fn plocate(scratch: &Path, tree: &Path) -> Result<Option<f64>> {
    let search = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(search).collect();
    let program = |name: &str| folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file());
    let (Some(updatedb), Some(locate)) = (program("updatedb.plocate"), program("plocate")) else { return Ok(None) };
    let database = scratch.join("plocate.db");
    let made = Command::new(updatedb)
        .args(["--require-visibility", "no", "--prunenames", "", "--prunepaths", "/proc /sys /dev"])
        .args(["--prune-bind-mounts", "yes", "--prunefs", "proc sysfs devtmpfs tmpfs overlay fuse 9p virtiofs"])
        .arg("--output")
        .arg(&database)
        .arg("--database-root")
        .arg(tree)
        .kill_on_drop(true)
        .status()
        .await
        .context("starting updatedb.plocate")?;
    if !made.success() {
        bail!("updatedb.plocate: {made}");
    }
    let counted = Command::new(locate).arg("--database").arg(&database).args(["--count", "/"]).output().await?;
    let paths: f64 = String::from_utf8_lossy(&counted.stdout).trim().parse().context("counting plocate's paths")?;
    let bytes = std::fs::metadata(&database)?.len();
    eprintln!("catalog: plocate: {paths} paths in {bytes} bytes");
    Ok(Some(bytes as f64 / paths))
}

/// A folder that goes when the bench ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let folder = std::env::temp_dir().join(format!("lull-bench-catalog-{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Scratch(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("catalog: {} stays: {error}", self.0.display());
        }
    }
}
