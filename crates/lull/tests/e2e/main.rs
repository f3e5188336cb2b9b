//! The whole product on a real guest: the `lull` program as an operator uses it, a VM, and bad luck of every kind.
//!
//! One guest is booted for all scenarios; each undoes what it changed, and after each an independent look makes sure that
//! the guest writes, that nothing of ours is in guest and hypervisor, that no file lies in the repository that belongs to
//! no restore point, and that the first restore point is what it was. What a user is told is looked at too: hop, cause and
//! remedy in one sentence.
//!
//! A program of its own, since the scenarios share the guest: `cargo test … --test e2e -- FILTER…` runs those whose names
//! hold a FILTER, `-- --list` names one test, the whole, for runners that ask. Knows nothing of how the product works.

mod events;
mod guest;
mod program;
mod qemu;
mod relay;
mod scenarios;
mod told;
mod world;

use scenarios::{ALL, Scenario};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;
use world::World;

/// What a runner that asks for the names of tests is told: it would start a guest for each of them.
const ONE_TEST: &str = "the_whole_product_on_a_real_guest";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        if !arguments.iter().any(|argument| argument == "--ignored") {
            println!("{ONE_TEST}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|word| !word.starts_with("--") && *word != ONE_TEST).collect();
    let chosen: Vec<&Scenario> =
        ALL.iter().filter(|s| filters.is_empty() || filters.iter().any(|filter| s.name.contains(filter))).collect();
    if chosen.is_empty() {
        eprintln!("no scenario's name holds {}; there are:", filters.join(" or "));
        ALL.iter().for_each(|scenario| eprintln!("  {}", scenario.name));
        return ExitCode::FAILURE;
    }
    let began = Instant::now();
    world::end_with_signals();
    let mut world = World::begin();
    println!("guest, server and first restore point after {:.1} s", began.elapsed().as_secs_f64());
    let failed: Vec<&str> = chosen.iter().filter(|s| !holds(&mut world, s)).map(|s| s.name).collect();
    let took = began.elapsed().as_secs_f64();
    println!("{} scenarios held, {} failed, {took:.0} s in all", chosen.len() - failed.len(), failed.len());
    failed.iter().for_each(|name| println!("  FAILED {name}"));
    world.end(failed.is_empty());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
