//! The whole product on a real guest: the `lull` program as an operator uses it, a VM, and bad luck of every kind.
//!
//! One guest is booted for all scenarios; each undoes what it changed, and after each an independent look makes sure that
//! the guest writes, that nothing of ours is in guest and hypervisor, that no file lies in the repository that belongs to
//! no restore point, and that the first restore point is what it was. What a user is told is looked at too: hop, cause and
//! remedy in one sentence.
//!
//! A program of its own, since scenarios share a guest: `cargo test … --test e2e -- FILTER…` runs those whose names hold a
//! FILTER, `-- --list` names the groups, each of which boots one guest, for runners that ask. Knows nothing of how the product
//! works.

mod events;
#[path = "../../../hypervisor/tests/qemu/guard.rs"]
mod guard;
mod guest;
mod program;
mod qemu;
mod relay;
mod scenarios;
mod told;
mod wire;
mod world;

use scenarios::{GROUPS, Group, Scenario};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;
use world::World;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // What a runner that asks for the names of tests is told: it would start a guest for each of them.
    if arguments.iter().any(|argument| argument == "--list") {
        if !arguments.iter().any(|argument| argument == "--ignored") {
            GROUPS.iter().for_each(|group| println!("{}: test", group.test));
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| !word.starts_with("--")).collect();
    let chosen: Vec<(&Group, Vec<&Scenario>)> =
        GROUPS.iter().map(|group| (group, chosen(group, &filters))).filter(|(_, chosen)| !chosen.is_empty()).collect();
    if chosen.is_empty() {
        eprintln!("no scenario's name holds {}; there are:", filters.join(" or "));
        GROUPS.iter().flat_map(|group| group.scenarios).for_each(|scenario| eprintln!("  {}", scenario.name));
        return ExitCode::FAILURE;
    }
    world::end_with_signals();
    // Every group, also after one that failed.
    let failed = chosen.iter().filter(|(group, scenarios)| !all_hold(group, scenarios)).count();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The scenarios of a group that a filter names, or all where one names the group.
fn chosen<'a>(group: &'a Group, filters: &[&str]) -> Vec<&'a Scenario> {
    let whole = filters.is_empty() || filters.iter().any(|filter| group.test.contains(filter));
    group.scenarios.iter().filter(|s| whole || filters.iter().any(|filter| s.name.contains(filter))).collect()
}

/// Plays scenarios of one group on a guest of their own.
fn all_hold(group: &Group, scenarios: &[&Scenario]) -> bool {
    let began = Instant::now();
    let mut world = World::begin(group.image);
    println!("guest {}, server and first restore point after {:.1} s", group.image, began.elapsed().as_secs_f64());
    let failed: Vec<&str> = scenarios.iter().filter(|s| !holds(&mut world, s)).map(|s| s.name).collect();
    let took = began.elapsed().as_secs_f64();
    println!("{} scenarios held, {} failed, {took:.0} s in all", scenarios.len() - failed.len(), failed.len());
    failed.iter().for_each(|name| println!("  FAILED {name}"));
    world.end(failed.is_empty());
    failed.is_empty()
}

/// Plays one scenario, and looks at what it left. A failure is told by the panic that it is.
fn holds(world: &mut World, scenario: &Scenario) -> bool {
    let began = Instant::now();
    println!("-- {}", scenario.name);
    let played = catch_unwind(AssertUnwindSafe(|| (scenario.play)(world)));
    let calm = catch_unwind(AssertUnwindSafe(|| world.assert_calm()));
    let held = played.is_ok() && calm.is_ok();
    if !held {
        // The next scenario must not fail for what this one left.
        world.reset();
    }
    let verdict = if held { "held" } else { "FAILED" };
    println!("   {verdict}  {}  ({:.1} s)", scenario.name, began.elapsed().as_secs_f64());
    held
}
