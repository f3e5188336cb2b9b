//! `cargo xtask bench`: measures Lull beside a named peer, and says whether the promised figures hold.
//!
//! Suggested reading order: [`figure`] (what comes out), [`statistics`], [`freeze_window`], [`ready`], [`incremental`], [`soak`],
//! [`catalog`], [`demo`], [`walk`], [`selection`], [`fleet`] (the benches), [`stage`] (what they stand on: a guest of the testbed under load and a backup server of their own). This file only
//! chooses which benches run and prints what they found; docs/performance.md says what each figure means.
//!
//! Every bench removes what it started: also after an error, on Ctrl-C and on SIGTERM.

use anyhow::{Context, Result};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

mod arguments;
mod bare_walk;
pub mod catalog;
mod demo;
mod figure;
mod fleet;
mod freeze_window;
mod guest_agent;
mod incremental;
mod lull_server;
mod machine;
mod ready;
mod running;
mod selection;
mod soak;
mod stage;
mod statistics;
mod testbed;
mod tree;
mod walk;

use arguments::{Arguments, Bench};
use figure::Figure;

/// Runs the benches that `words` name. Exit code 0: all were measured and no goal was missed; 1: a goal was missed or a bench failed;
/// 2: wrong usage.
pub fn run(words: &[&str]) -> ExitCode {
    let arguments = match Arguments::parse(words) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            println!("{}", arguments::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error:#}\n\n{}", arguments::USAGE);
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("starting the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Dropping the benches' future, as an interruption does, removes what they started.
    let interrupted = runtime.block_on(async {
        tokio::select! {
            outcome = all(&arguments) => Ok(outcome),
            cause = interruption() => Err(cause),
        }
    });
    match interrupted {
        Ok(outcome) => report(&arguments, &outcome),
        Err(cause) => {
            eprintln!("bench: ended by {cause}; what was started is removed");
            ExitCode::FAILURE
        }
    }
}

/// What the benches found, and how many could not be measured.
struct Outcome {
    figures: Vec<Figure>,
    failed: u32,
}

async fn all(arguments: &Arguments) -> Outcome {
    let mut outcome = Outcome { figures: Vec::new(), failed: 0 };
    for bench in &arguments.benches {
        eprintln!("== {}: {}", bench.name(), machine::state());
        match one(*bench, arguments).await {
            Ok(figures) => outcome.figures.extend(figures),
            Err(error) => {
                eprintln!("{}: {error:#}", bench.name());
                outcome.failed += 1;
            }
        }
        eprintln!("-- {}: over; {}", bench.name(), machine::state());
    }
    outcome
}

async fn one(bench: Bench, arguments: &Arguments) -> Result<Vec<Figure>> {
    match bench {
        Bench::FreezeWindow => freeze_window::measure(arguments).await,
        Bench::Ready => ready::measure(arguments).await,
        Bench::Incremental => incremental::measure(arguments).await,
        Bench::Soak => soak::measure(arguments).await,
        Bench::Catalog => catalog::measure(arguments).await,
        Bench::Demo => demo::measure(arguments).await,
        Bench::Walk => walk::measure(arguments).await,
        Bench::WalkMemory => walk::measure_memory(arguments).await,
        Bench::Selection => selection::measure(),
        Bench::Fleet => fleet::measure(arguments).await,
    }
    .with_context(|| format!("{} could not be measured", bench.name()))
}

fn report(arguments: &Arguments, outcome: &Outcome) -> ExitCode {
    if !outcome.figures.is_empty() {
        println!("{}", figure::table(&outcome.figures));
    }
    if arguments.json {
        match figure::json(&outcome.figures) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                eprintln!("bench: the figures cannot be written as JSON: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    let missed = outcome.figures.iter().filter(|figure| figure.met() == Some(false)).count();
    if missed > 0 || outcome.failed > 0 {
        eprintln!("bench: {missed} goals missed, {} benches could not be measured", outcome.failed);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Resolves with the name of the signal that asks us to end.
async fn interruption() -> &'static str {
    // Where a handler cannot be installed the signal keeps its default action, so there is nothing to wait for.
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
    }
}
