//! `demo`: how long a person waits from a fresh clone to the end of `./demo --check`, and again when everything is built.
//!
//! The clone is of what is committed here; its build folder and its testbed are new. Downloads depend on the line, so they are timed apart
//! and do not count: what `./demo` reports as fetched by cargo, and what the testbed's scripts say about packages. Installing what the
//! machine lacks counts where it was necessary.

use super::arguments::Arguments;
use super::figure::{Figure, Goal};
use super::running::{Running, output, tail_of_file};
use super::stage;
use super::testbed::checkout;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::process::Command;

/// Longest way from a fresh clone to the end, in minutes, on two cores.
const FRESH_MINUTES_MAX: f64 = 12.0;
/// Longest way when everything is built, in minutes.
const BUILT_MINUTES_MAX: f64 = 2.0;
/// How long `./demo` may take to remove what it started.
const END_GRACE: Duration = Duration::from_secs(60);

/// The last line of `./demo --check`, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Summary {
    ok: bool,
    proofs: u32,
    failed: u32,
    ms: Times,
}

#[derive(Debug, Deserialize)]
struct Times {
    cargo_fetch: f64,
}

/// One run, in minutes.
struct Run {
    work: f64,
    downloads: f64,
}

/// Runs the bench.
///
/// # Errors
/// When the clone cannot be made or `./demo --check` fails.
pub async fn measure(arguments: &Arguments) -> Result<Vec<Figure>> {
    ensure!(
        arguments.lull.is_none() && arguments.profile == "dev",
        "./demo builds Lull itself, in the profile dev: leave --lull and --profile out"
    );
    let clone = Clone::of(&checkout()?).await?;
    let fresh = clone.run_demo("fresh").await?;
    let built = clone.run_demo("again").await?;
    Ok(vec![
        Figure::new("./demo --check, fresh clone, without downloads", "min", fresh.work)
            .goal(Goal::ValueAtMost(FRESH_MINUTES_MAX), true),
        Figure::new("./demo --check, fresh clone, downloads", "min", fresh.downloads),
        Figure::new("./demo --check, when built", "min", built.work).goal(Goal::ValueAtMost(BUILT_MINUTES_MAX), true),
    ])
}

/// A fresh clone; removed when dropped.
struct Clone {
    folder: PathBuf,
}

impl Drop for Clone {
    fn drop(&mut self) {
        stage::remove(&self.folder);
    }
}

impl Clone {
    async fn of(checkout: &Path) -> Result<Clone> {
        // On a disk: /tmp may be memory, and a build folder is large.
        let clone = Clone { folder: PathBuf::from(format!("/var/tmp/lull-clone-{}", std::process::id())) };
        std::fs::create_dir(&clone.folder).with_context(|| format!("creating {}", clone.folder.display()))?;
        let mut git = Command::new("git");
        git.args(["clone", "--quiet", "--no-hardlinks"]).arg(checkout).arg(clone.checkout());
        output(&mut git, "cloning").await?;
        Ok(clone)
    }

    fn checkout(&self) -> PathBuf {
        self.folder.join("lull")
    }

    async fn run_demo(&self, name: &str) -> Result<Run> {
        let log = self.folder.join(format!("{name}.log"));
        let words = std::fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut demo = Command::new(self.checkout().join("demo"));
        demo.arg("--check").current_dir(self.checkout()).stdout(words.try_clone()?).stderr(words);
        // Nothing that is built or downloaded elsewhere may help, and no server of somebody else's may be asked.
        for variable in ["CARGO_TARGET_DIR", "LULL_TESTBED", "LULL_STATE_DIR", "LULL_SERVER", "LULL_TOKEN_FILE"] {
            demo.env_remove(variable);
        }
        let began = Instant::now();
        let mut running = Running::start(&mut demo, "./demo --check", END_GRACE)?;
        let status = running.wait().await?;
        let took = began.elapsed().as_secs_f64();
        ensure!(status.success(), "./demo --check: {status}: {}", tail_of_file(&log));
        let said = std::fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
        let summary = summary(&said)?;
        ensure!(summary.ok && summary.failed == 0, "{} of {} proofs failed", summary.failed, summary.proofs);
        let downloads = summary.ms.cargo_fetch / 1000.0 + testbed_downloads_s(&said);
        eprintln!("{name}: {took:.1} s in all, of which downloads {downloads:.1} s; {} proofs held", summary.proofs);
        Ok(Run { work: (took - downloads) / 60.0, downloads: downloads / 60.0 })
    }
}

fn summary(said: &str) -> Result<Summary> {
    let Some(line) = said.lines().last() else { bail!("./demo --check printed nothing") };
    serde_json::from_str(line).with_context(|| format!("the last line of ./demo --check is {line:?}"))
}

/// Seconds in lines like `packages: downloads 12.3 s (…)` of the testbed's scripts.
fn testbed_downloads_s(said: &str) -> f64 {
    said.lines().filter_map(|line| line.split_once(": downloads ")?.1.split_once(" s")?.0.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_are_what_the_scripts_say() {
        let said = "kernel 6.1.0: downloads 3.5 s\nbuilt in 70.1 s (downloads 9.0 s): lull 0.1\n\
                    packages: downloads 12.3 s (110 packages, 60 MB)\npackages: cached\n";
        assert_eq!(testbed_downloads_s(said), 15.8);
    }

    #[test]
    fn the_last_line_is_the_summary() {
        let line = r#"{"ok":true,"proofs":8,"failed":0,"level":"application","ms":{"install":1,"cargo_fetch":1500,"total":9}}"#;
        let summary = summary(&format!("text\n{line}\n")).unwrap();
        assert_eq!((summary.ok, summary.proofs, summary.ms.cargo_fetch), (true, 8, 1500.0));
        assert!(super::summary("").is_err());
        assert!(super::summary("demo: it failed\n").is_err());
    }
}
