//! The simulation itself: it replays, it notices what is broken on purpose, and a handful of seeds goes well.

use lull_sim::{Fleet, Rule, Totals, run};

#[test]
fn a_seed_replays_exactly() {
    for seed in [7, 2_633] {
        let (first, again) = (run(seed, Fleet::SMALL, None, true), run(seed, Fleet::SMALL, None, true));
        assert_eq!(first, again);
        // Whether it is watched changes nothing.
        let unwatched = run(seed, Fleet::SMALL, None, false);
        assert_eq!((unwatched.digest, unwatched.totals), (first.digest, first.totals));
        assert!(!first.trace.is_empty());
    }
    assert_ne!(run(7, Fleet::SMALL, None, false).digest, run(8, Fleet::SMALL, None, false).digest);
}

#[test]
fn a_broken_rule_is_noticed() {
    for rule in Rule::ALL {
        let found = (0..200).find_map(|seed| Some((seed, run(seed, Fleet::SMALL, Some(rule), false).violation?)));
        let (seed, violation) = found.unwrap_or_else(|| panic!("nobody noticed that {rule:?} is broken"));
        let again = run(seed, Fleet::SMALL, Some(rule), true);
        assert_eq!(again.violation.as_deref(), Some(violation.as_str()), "{rule:?}: the seed replays it");
        assert!(again.trace.iter().any(|line| line.contains("WRONG")), "{rule:?}: the trace shows it");
    }
}

#[test]
fn bad_luck_of_every_kind_loses_no_task_and_does_none_twice() {
    let mut totals = Totals::default();
    for seed in 0..100 {
        let outcome = run(seed, Fleet::SMALL, None, false);
        assert_eq!(outcome.violation, None, "seed {seed}");
        totals = totals.plus(outcome.totals);
    }
    // What must not be untested by chance.
    let Totals { tasks, restore_points, failovers, crashes, restarts, partitions, own_thaws, .. } = totals;
    assert_eq!(tasks, 100 * (Fleet::SMALL.vms * Fleet::SMALL.rounds) as u64);
    assert!(restore_points * 10 > tasks * 9, "{restore_points} of {tasks}");
    assert!([failovers, crashes, restarts, partitions, own_thaws].iter().all(|times| *times > 10), "{totals:?}");
}

#[test]
fn another_size_of_fleet_goes_as_well() {
    let fleet = Fleet { vms: 300, proxies: 20, sites: 5, rounds: 1, faults: 40 };
    for seed in 0..5 {
        assert_eq!(run(seed, fleet, None, false).violation, None, "seed {seed}");
    }
    let smallest = Fleet { vms: 1, proxies: 2, sites: 1, rounds: 2, faults: 3 };
    for seed in 0..100 {
        assert_eq!(run(seed, smallest, None, false).violation, None, "seed {seed}");
    }
}
