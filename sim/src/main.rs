//! `lull-sim`: simulates seed after seed and says how it went; a seed that fails is named with the command that replays it.

use lull_sim::{Fleet, Rule, Totals, run};
use std::process::ExitCode;

const USAGE: &str =
    "usage: cargo run -p lull-sim -- [--seeds N] [--from SEED] [--large] [--vms N] [--proxies N] [--break RULE]
       cargo run -p lull-sim -- --seed SEED [--trace] [the fleet as above]

  --seeds N      so many seeds, one after another (1 000)
  --from SEED    the first one (0)
  --seed SEED    this one alone
  --trace        with --seed: everything that happened
  --large        10 000 VMs and 200 proxies; otherwise the fleet of CI
  --vms N, --proxies N   another size
  --break RULE   breaks a rule on purpose (lease, fence, thaw, epoch, entry, waiting): the checks must notice";

/// Of a seed that fails, without `--trace`.
const LINES_SHOWN: usize = 40;

struct Arguments {
    seeds: u64,
    from: u64,
    trace: bool,
    fleet: Fleet,
    broken: Option<Rule>,
    said: Vec<String>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match parse(&words) {
        Ok(arguments) => simulate(&arguments),
        Err(error) => {
            eprintln!("lull-sim: {error}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(words: &[String]) -> Result<Arguments, String> {
    let large = words.iter().any(|word| word == "--large");
    let fleet = if large { Fleet::LARGE } else { Fleet::SMALL };
    let mut arguments = Arguments { seeds: 1_000, from: 0, trace: false, fleet, broken: None, said: Vec::new() };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        let number = |text: &String| text.parse::<u64>().map_err(|_| format!("{word} wants a number, not {text}"));
        match word.as_str() {
            "--seeds" => arguments.seeds = number(value()?)?,
            "--from" => arguments.from = number(value()?)?,
            "--seed" => (arguments.from, arguments.seeds) = (number(value()?)?, 1),
            "--trace" => arguments.trace = true,
            "--large" => arguments.said.push(word.clone()),
            "--vms" | "--proxies" => {
                let text = value()?;
                let count = usize::try_from(number(text)?).map_err(|error| error.to_string())?;
                let least = if word == "--vms" { 1 } else { 2 };
                if count < least {
                    return Err(format!("{word} wants at least {least}"));
                }
                let size = if word == "--vms" { &mut arguments.fleet.vms } else { &mut arguments.fleet.proxies };
                *size = count;
                arguments.said.push(format!("{word} {text}"));
            }
            "--break" => {
                let name = value()?;
                let rule = Rule::ALL.into_iter().find(|rule| rule.name() == name);
                arguments.broken = Some(rule.ok_or_else(|| format!("no rule is named {name}"))?);
                arguments.said.push(format!("{word} {name}"));
            }
            _ => return Err(format!("unknown option {word}")),
        }
    }
    Ok(arguments)
}

/// What this thread has taken of its core, in milliseconds: what else runs on the machine does not count.
fn core_ms() -> f64 {
    let taken = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    taken.tv_sec as f64 * 1e3 + taken.tv_nsec as f64 / 1e6
}

fn simulate(arguments: &Arguments) -> ExitCode {
    let begun_ms = core_ms();
    let mut totals = Totals::default();
    for seed in arguments.from..arguments.from.saturating_add(arguments.seeds) {
        let outcome = run(seed, arguments.fleet, arguments.broken, false);
        totals = totals.plus(outcome.totals);
        if outcome.violation.is_none() && !arguments.trace {
            continue;
        }
        // The same again, now with its lines.
        let again = run(seed, arguments.fleet, arguments.broken, true);
        let shown = if arguments.trace { again.trace.len() } else { LINES_SHOWN };
        for line in again.trace.iter().skip(again.trace.len().saturating_sub(shown)) {
            println!("{line}");
        }
        let Some(violation) = again.violation else { continue };
        println!("seed {seed} fails: {violation}");
        let mut said = vec![format!("--seed {seed} --trace")];
        said.extend(arguments.said.iter().cloned());
        println!("replay it: cargo run -p lull-sim -- {}", said.join(" "));
        return ExitCode::FAILURE;
    }
    let minutes = (core_ms() - begun_ms) / 60_000.0;
    let Totals { steps, tasks, restore_points, dispatches, failovers, crashes, restarts, partitions, own_thaws } =
        totals;
    println!(
        "{tasks} tasks, {restore_points} restore points, {dispatches} dispatches, {failovers} tasks went to another proxy; \
         {crashes} proxies died or stood still, {restarts} restarts of the server, {partitions} cut lines, \
         {own_thaws} guests thawed by themselves; {steps} steps"
    );
    println!(
        "{} seeds ({} VMs, {} proxies), nothing wrong: {:.0} seeds per minute and core",
        arguments.seeds,
        arguments.fleet.vms,
        arguments.fleet.proxies,
        arguments.seeds as f64 / minutes
    );
    ExitCode::SUCCESS
}
