//! `walk` and `walk-memory`: how fast the runtime component lists files, beside `find` and `fd`, and in how much memory.
//!
//! The component is the one that is put into guests, and is asked as a proxy asks it: over pipes, everything compressed. What comes is
//! thrown away. `find` prints the same fields; `fd` prints paths and looks at nothing else. Their output is thrown away too. Beside
//! them the system calls alone ([`super::bare_walk`]): no walker that looks at every entry is quicker. All read a tree that was read
//! before.
//!
//! Knows how trees are walked, not how they are made ([`super::tree`]).

use super::arguments::Arguments;
use super::bare_walk;
use super::figure::{Figure, Goal};
use super::running::output;
use super::statistics::median;
use super::testbed::checkout;
use super::tree::Tree;
use anyhow::{Context, Result, bail, ensure};
use lull_guest_wire::{Answer, Command as Order, FromRuntime, IndexOrder, IndexScope, IndexSummary, ToRuntime, frame};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// Fewest rounds for which a goal counts.
const ROUNDS_MIN: usize = 5;
/// Fewest entries for which a goal counts.
const ENTRIES_MIN: u64 = 500_000;
/// Entries of the tree that memory is measured on; one folder holds a million of them.
const MANY_ENTRIES: u64 = 5_000_000;
/// What the component may have resident then, in MiB.
const RESIDENT_MIB_MAX: f64 = 64.0;

/// One walk of the component.
struct Walked {
    took_ms: f64,
    summary: IndexSummary,
    sent_bytes: u64,
    resident_mib: f64,
}

/// Beside `find` and `fd`.
///
/// # Errors
/// When the tree cannot be made, or a program is missing or fails.
pub async fn measure(arguments: &Arguments) -> Result<Vec<Figure>> {
    let rounds = arguments.pairs.unwrap_or(ROUNDS_MIN);
    let component = component().await?;
    let fd = fd().await?;
    let tree = match &arguments.tree {
        Some(tree) => Tree::existing(tree)?,
        None => Tree::like_this_machine(ENTRIES_MIN).await?,
    };
    let (mut ours, mut finds, mut fds, mut bares) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    // The first round warms the caches and does not count.
    for round in 0..=rounds {
        let walked = walk(&component, tree.path()).await?;
        let find = timed(find(tree.path()), "find").await?;
        let fd = timed(list(&fd, tree.path()), "fd").await?;
        let bare = bare_walk::timed(tree.path())?;
        eprintln!(
            "round {round}: walk {:.0} ms, find {find:.0} ms, fd {fd:.0} ms, system calls alone {bare:.0} ms",
            walked.took_ms
        );
        if round > 0 {
            ours.push(walked.took_ms);
            finds.push(find);
            fds.push(fd);
            bares.push(bare);
        }
        last = Some(walked);
    }
    let Some(Walked { summary, sent_bytes, resident_mib, .. }) = last else { bail!("nothing was measured") };
    let entries = summary.entries;
    eprintln!("{entries} entries in {} folders", summary.folders);
    let counts = rounds >= ROUNDS_MIN && entries >= ENTRIES_MIN;
    let ours = median(&ours);
    Ok(vec![
        Figure::new("walk, beside find -printf, median", "ms", ours)
            .beside(median(&finds))
            .goal(Goal::RatioAtMost(0.5), counts),
        Figure::new("walk, beside fd -u -j2, median", "ms", ours)
            .beside(median(&fds))
            .goal(Goal::RatioAtMost(1.0), counts),
        Figure::new("walk, beside its system calls alone, median", "ms", ours).beside(median(&bares)),
        Figure::new("walk: sent for each entry", "bytes", sent_bytes as f64 / entries as f64),
        Figure::new("walk: resident", "MiB", resident_mib),
    ])
}

/// On five million entries.
///
/// # Errors
/// When the tree cannot be made, or the component fails.
pub async fn measure_memory(_: &Arguments) -> Result<Vec<Figure>> {
    let component = component().await?;
    let tree = Tree::of_links(MANY_ENTRIES).await?;
    let walked = walk(&component, tree.path()).await?;
    ensure!(walked.summary.entries >= MANY_ENTRIES, "only {} entries were listed", walked.summary.entries);
    eprintln!("{} entries in {:.0} ms", walked.summary.entries, walked.took_ms);
    Ok(vec![
        Figure::new("walk: resident on 5 million entries", "MiB", walked.resident_mib)
            .goal(Goal::ValueAtMost(RESIDENT_MIB_MAX), true),
        Figure::new("walk: sent for each of them", "bytes", walked.sent_bytes as f64 / walked.summary.entries as f64),
    ])
}

/// The component as it is carried: built like it, in the same folder.
async fn component() -> Result<PathBuf> {
    if let Some(file) = std::env::var_os("LULL_RUNTIME_LINUX") {
        return Ok(file.into());
    }
    let checkout = checkout()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    // Its carrier's build script knows how.
    build.current_dir(&checkout).args(["build", "--quiet", "--locked", "--package", "lull-proxy"]);
    output(&mut build, "building the runtime component").await?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout.join("target"), PathBuf::from);
    Ok(checkout.join(target).join("runtime-build/x86_64-unknown-linux-gnu/runtime/lull-runtime"))
}

/// Debian calls it `fdfind`.
async fn fd() -> Result<String> {
    for name in ["fdfind", "fd"] {
        let version = Command::new(name).arg("--version").output().await;
        if version.is_ok_and(|version| version.status.success() && version.stdout.starts_with(b"fd")) {
            return Ok(name.to_string());
        }
    }
    bail!("fd is missing: apt-get install fd-find")
}

fn find(tree: &Path) -> Command {
    let mut find = Command::new("find");
    find.arg(tree).args(["-printf", "%y %s %T@ %m %U %G %p\n"]);
    find
}

fn list(fd: &str, tree: &Path) -> Command {
    let mut list = Command::new(fd);
    list.args(["-u", "-j2", "."]).arg(tree);
    list
}

async fn timed(mut command: Command, what: &str) -> Result<f64> {
    let began = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).status().await;
    let took_ms = began.elapsed().as_secs_f64() * 1_000.0;
    let status = status.with_context(|| format!("running {what}"))?;
    ensure!(status.success(), "{what} ended with {status}");
    Ok(took_ms)
}

/// From the component's start to the answer that everything is listed.
async fn walk(component: &Path, tree: &Path) -> Result<Walked> {
    let mut command = Command::new(component);
    let began = Instant::now();
    let mut process = command.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let scope = IndexScope::Only(vec![tree.as_os_str().as_bytes().to_vec()]);
    let order = Order::Index(IndexOrder { scope, cross_mounts: false, flag_ctime_after_us: None });
    let mut to = process.stdin.take().context("no way to the component")?;
    to.write_all(&frame::encode(&ToRuntime { id: 1, command: order })?).await?;
    let mut from = BufReader::with_capacity(256 * 1024, process.stdout.take().context("no way from the component")?);
    let mut sent_bytes = 0;
    let mut body = Vec::new();
    let summary = loop {
        let mut header = [0; frame::HEADER_BYTES];
        from.read_exact(&mut header).await.context("the component ended before it had listed everything")?;
        body.resize(frame::body_length(header)?, 0);
        from.read_exact(&mut body).await?;
        match frame::decode_body(&body)? {
            FromRuntime::Reply { result: Ok(Answer::Indexed(summary)), .. } => break summary,
            FromRuntime::Reply { result, .. } => bail!("the component answered {result:?}"),
            FromRuntime::Listing(_) => sent_bytes += (header.len() + body.len()) as u64,
            FromRuntime::Hello(_) | FromRuntime::Event(_) => {}
            FromRuntime::Held(held) => bail!("another component holds this machine: {}", held.message),
            FromRuntime::Evicted => bail!("another component took this machine over"),
        }
    };
    let took_ms = began.elapsed().as_secs_f64() * 1_000.0;
    ensure!(summary.complete && summary.examples.is_empty(), "the walk was not complete: {summary:?}");
    let resident_mib = resident_mib(&process)?;
    drop(to);
    process.wait().await?;
    Ok(Walked { took_ms, summary, sent_bytes, resident_mib })
}

/// The most that was resident since its start.
fn resident_mib(process: &Child) -> Result<f64> {
    let id = process.id().context("the component ended")?;
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
