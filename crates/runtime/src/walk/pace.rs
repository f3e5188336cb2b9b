//! How many walkers: as many as there are processors while they compute, more while they wait for the disk.
//!
//! A walker that waits for a processor (it is the last to get one) is no reason for more. Knows nothing of what walkers do.

use std::collections::BTreeMap;
use std::time::Instant;

/// A walk begins with so many.
pub const WALKERS_MIN: usize = 2;
/// No walk has more: each costs some memory, and disks answer no more questions at once usefully.
pub const WALKERS_MAX: usize = 16;

/// What the walkers did since the last look.
pub struct Load {
    processors: usize,
    looked: Instant,
    /// Nanoseconds in which a thread ran or would have.
    runnable_ns: BTreeMap<i32, u64>,
}

impl Default for Load {
    fn default() -> Self {
        Load::new()
    }
}

impl Load {
    /// Nothing was seen yet.
    pub fn new() -> Load {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Load { processors, looked: Instant::now(), runnable_ns: BTreeMap::new() }
    }

    /// How many there ought to be. `busy`: there is work for more, and nobody waits for room.
    pub fn walkers_wanted(&mut self, threads: impl Iterator<Item = i32>, busy: bool) -> usize {
        let passed_ns = self.looked.elapsed().as_nanos() as u64;
        self.looked = Instant::now();
        let now: BTreeMap<i32, u64> = threads.filter_map(|thread| Some((thread, runnable_ns(thread)?))).collect();
        let ran = now.iter().filter_map(|(thread, ns)| Some(ns.saturating_sub(*self.runnable_ns.get(thread)?)));
        let shares: Vec<f64> = ran.map(|ns| ns as f64 / passed_ns.max(1) as f64).collect();
        let running = now.len();
        self.runnable_ns = now;
        if !busy || shares.is_empty() {
            return 0;
        }
        wanted(running, self.processors, shares.iter().sum::<f64>() / shares.len() as f64)
    }
}

/// `runnable`: the share of time, 0 to 1, in which a walker computed or waited for a processor, not for a disk.
fn wanted(running: usize, processors: usize, runnable: f64) -> usize {
    let wanted = if runnable < 0.5 { running + 2 } else { running.max(processors) };
    wanted.clamp(WALKERS_MIN, WALKERS_MAX)
}

/// Time on a processor and time waiting for one, as the kernel counts it where it does.
fn runnable_ns(thread: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    text.split_ascii_whitespace().take(2).map(|number| number.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_the_disk_asks_for_more_and_waiting_for_a_processor_does_not() {
        let check = |running, processors, runnable, expect| {
            assert_eq!(wanted(running, processors, runnable), expect, "{running} {processors} {runnable}");
        };
        check(2, 1, 1.0, 2);
        check(2, 8, 0.9, 8);
        check(2, 64, 0.9, WALKERS_MAX);
        check(2, 1, 0.1, 4);
        check(15, 2, 0.1, WALKERS_MAX);
        check(6, 2, 0.9, 6);
    }

    #[test]
    fn a_thread_that_computes_is_seen_to() {
        let mut load = Load::new();
        // SAFETY: no pointers, cannot fail.
        let thread = unsafe { libc::gettid() };
        assert_eq!(load.walkers_wanted([thread].into_iter(), true), 0, "nothing to compare with yet");
        let until = Instant::now() + std::time::Duration::from_millis(50);
        while Instant::now() < until {
            std::hint::black_box(until);
        }
        let processors = load.processors;
        assert_eq!(load.walkers_wanted([thread].into_iter(), true), processors.clamp(WALKERS_MIN, WALKERS_MAX));
        assert_eq!(load.walkers_wanted([thread].into_iter(), false), 0);
    }
}
