//! What the command line of `cargo xtask bench` asks for. Pure.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// Printed for `--help` and after a usage error.
pub const USAGE: &str = "usage: cargo xtask bench [NAME...] [--json] [--pairs N] [--points N] [--profile P | --lull FILE] [--tree DIR]

  freeze-window  the freeze window of a job, beside a plain script with qemu-ga (30 pairs)
  ready          from task start to runtime ready, beside one OpenSSH login (15 rounds)
  incremental    an incremental backup, beside a full one of the same guest (5 pairs), by name only
  soak           restore points under load, each booted and verified (30 points); takes an hour or so, by name only
  catalog        size, ingest and search of the file catalog on a real tree, beside plocate's database; by name only
  demo           fresh clone to the end of ./demo --check, and once more when built; by name only
  walk           the runtime component lists half a million files, beside find and fd (5 rounds); by name only
  walk-memory    its memory on five million entries; takes minutes to make them, by name only
  selection      100 000 tasks among 1 000 proxies: seconds for one plan, and how even it is; by name only
  fleet          a server, 200 proxies over TLS, 2 000 guests in memory: dispatch under load, tasks each second, memory; by name only

  --json         the last line is an array of {name, unit, value, peer, ratio, goal, met}
  --pairs N      pairs of freeze-window and incremental, rounds of ready and walk; with fewer than the goal asks for, no goal counts as met or missed
  --points N     restore points of soak; likewise
  --profile P    cargo's profile to build Lull in; default dev, as ./demo does
  --lull FILE    measures this binary and builds nothing (not for demo)
  --tree DIR     the tree that walk lists (default: one made for it) or catalog takes in (default /, of one file system); with fewer than
                 500 000 entries some goals count neither way

Without a name: freeze-window and ready. Guests need QEMU (testbed/install.sh) and root or sudo to be built.";

/// One bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bench {
    /// See `freeze_window`.
    FreezeWindow,
    /// See `ready`.
    Ready,
    /// See `incremental`.
    Incremental,
    /// See `soak`.
    Soak,
    /// See `catalog`.
    Catalog,
    /// See `demo`.
    Demo,
    /// See `walk`.
    Walk,
    /// See `walk`.
    WalkMemory,
    /// See `selection`.
    Selection,
    /// See `fleet`.
    Fleet,
}

impl Bench {
    const ALL: [Bench; 10] = [
        Bench::FreezeWindow,
        Bench::Ready,
        Bench::Incremental,
        Bench::Soak,
        Bench::Catalog,
        Bench::Demo,
        Bench::Walk,
        Bench::WalkMemory,
        Bench::Selection,
        Bench::Fleet,
    ];
    /// The quick ones.
    const UNNAMED: [Bench; 2] = [Bench::FreezeWindow, Bench::Ready];

    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Bench::FreezeWindow => "freeze-window",
            Bench::Ready => "ready",
            Bench::Incremental => "incremental",
            Bench::Soak => "soak",
            Bench::Catalog => "catalog",
            Bench::Demo => "demo",
            Bench::Walk => "walk",
            Bench::WalkMemory => "walk-memory",
            Bench::Selection => "selection",
            Bench::Fleet => "fleet",
        }
    }
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// Benches to run, in this order.
    pub benches: Vec<Bench>,
    /// Whether the last line is JSON.
    pub json: bool,
    /// Pairs or rounds, where told.
    pub pairs: Option<usize>,
    /// Restore points, where told.
    pub points: Option<usize>,
    /// Cargo's profile.
    pub profile: String,
    /// A binary to measure instead of building one.
    pub lull: Option<PathBuf>,
    /// A tree to walk, or for the catalog to take in, instead of the default.
    pub tree: Option<PathBuf>,
}

impl Arguments {
    /// `None`: help was asked for.
    ///
    /// # Errors
    /// An unknown name or option, or a value that is missing or no number from 1.
    pub fn parse(words: &[&str]) -> Result<Option<Arguments>> {
        let mut arguments = Arguments {
            benches: Vec::new(),
            json: false,
            pairs: None,
            points: None,
            profile: "dev".to_string(),
            lull: None,
            tree: None,
        };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            let mut value = || words.next().copied().with_context(|| format!("{word} wants a value"));
            match word {
                "--help" | "-h" => return Ok(None),
                "--json" => arguments.json = true,
                "--pairs" => arguments.pairs = Some(count(word, value()?)?),
                "--points" => arguments.points = Some(count(word, value()?)?),
                "--profile" => arguments.profile = value()?.to_string(),
                "--lull" => arguments.lull = Some(PathBuf::from(value()?)),
                "--tree" => arguments.tree = Some(PathBuf::from(value()?)),
                _ if word.starts_with('-') => bail!("unknown option {word}"),
                _ => arguments.benches.push(named(word)?),
            }
        }
        if arguments.benches.is_empty() {
            arguments.benches = Bench::UNNAMED.to_vec();
        }
        Ok(Some(arguments))
    }
}

fn named(word: &str) -> Result<Bench> {
    Bench::ALL
        .into_iter()
        .find(|bench| bench.name() == word)
        .with_context(|| format!("no bench is named {word}; there are: {}", Bench::ALL.map(Bench::name).join(", ")))
}

fn count(option: &str, value: &str) -> Result<usize> {
    match value.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => bail!("{option} wants a number from 1, not {value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Arguments {
        Arguments::parse(words).unwrap().unwrap()
    }

    #[test]
    fn nothing_named_means_the_quick_ones() {
        let arguments = parsed(&[]);
        assert_eq!(arguments.benches, [Bench::FreezeWindow, Bench::Ready]);
        assert_eq!((arguments.json, arguments.pairs, arguments.profile.as_str()), (false, None, "dev"));
    }

    #[test]
    fn names_and_options_come_in_any_order() {
        let arguments = parsed(&["soak", "--points", "3", "--json", "demo", "--profile", "release"]);
        assert_eq!(arguments.benches, [Bench::Soak, Bench::Demo]);
        assert_eq!((arguments.json, arguments.points, arguments.profile.as_str()), (true, Some(3), "release"));
        assert_eq!(parsed(&["ready", "--lull", "/x/lull"]).lull, Some(PathBuf::from("/x/lull")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (words, expect) in [
            (&["--pairs"][..], "--pairs wants a value"),
            (&["--pairs", "0"], "--pairs wants a number from 1, not 0"),
            (&["--pairs", "many"], "--pairs wants a number from 1, not many"),
            (&["--quick"], "unknown option --quick"),
        ] {
            assert_eq!(Arguments::parse(words).unwrap_err().to_string(), expect);
        }
        assert_eq!(Arguments::parse(&["ready", "--help"]).unwrap(), None);
    }

    #[test]
    fn an_unknown_bench_is_answered_with_those_there_are() {
        let said = Arguments::parse(&["freeze"]).unwrap_err().to_string();
        assert!(said.starts_with("no bench is named freeze; there are: freeze-window, "), "{said}");
        for bench in Bench::ALL {
            assert!(said.contains(bench.name()), "{said} does not name {}", bench.name());
        }
    }
}
