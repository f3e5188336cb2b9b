//! What main and watchdog hold while frozen: locked memory, no faults, few descriptors, nobody's session.

use crate::bed::Bed;
use crate::deploy::start;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const CAP_SYS_RESOURCE: u64 = 1 << 24;

fn status(pid: u32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_string(), value.trim().to_string())).collect()
}

fn kib(status: &BTreeMap<String, String>, name: &str) -> u64 {
    status[name].split_whitespace().next().unwrap().parse().unwrap()
}

/// Fields of /proc/PID/stat after the name: index 0 is the state.
fn stat(pid: u32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    text.rsplit_once(')').unwrap().1.split_whitespace().map(str::to_string).collect()
}

/// Minor and major page faults of all its threads.
fn faults(pid: u32) -> (u64, u64) {
    let stat = stat(pid);
    (stat[7].parse().unwrap(), stat[9].parse().unwrap())
}

#[test]
fn the_watchdog_is_a_process_apart_and_locked_in_memory() {
    let bed = Bed::new();
    let mut component = start(&bed);
    let armed = component.arm(1, 5_000, 30_000);
    let watchdog = status(armed.watchdog_pid);
    assert_eq!(watchdog["Name"], "lull-watchdog");
    assert_eq!(watchdog["Threads"], "5", "itself and one for each superblock");
    assert!(kib(&watchdog, "VmLck") >= kib(&watchdog, "VmRSS"), "{watchdog:?}");
    assert!(kib(&status(component.hello.pid), "VmLck") > 0);
    let session = stat(armed.watchdog_pid)[3].clone();
    assert_eq!(session, armed.watchdog_pid.to_string(), "a session of its own");
    let oom = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", armed.watchdog_pid)).unwrap();
    // A machine that withholds the capability (some build machines do) gets a note instead.
    if u64::from_str_radix(&watchdog["CapEff"], 16).unwrap() & CAP_SYS_RESOURCE != 0 {
        assert_eq!(oom.trim(), "-1000");
        assert!(armed.notes.is_empty(), "{:?}", armed.notes);
    } else {
        assert_eq!(armed.notes.len(), 1, "{:?}", armed.notes);
        assert!(armed.notes[0].contains("out-of-memory killer"), "{:?}", armed.notes);
    }
    let blocked = u64::from_str_radix(&watchdog["SigBlk"], 16).unwrap();
    let open = !blocked & !(1 << (libc::SIGKILL - 1)) & !(1 << (libc::SIGSTOP - 1));
    assert_eq!(open & 0x7fff_fffe, 0, "every signal is blocked that can be");
    let fds = std::fs::read_dir(format!("/proc/{}/fd", armed.watchdog_pid)).unwrap().count();
    // In, out; four file systems; main's life, its own; two bells; the lock.
    assert_eq!(fds, 11);
    component.bye();
    assert!(bed.leftovers().is_empty(), "{:?}", bed.leftovers());
}

#[test]
fn no_page_fault_happens_while_frozen() {
    let bed = Bed::new();
    let mut component = start(&bed);
    let armed = component.arm(1, 5_000, 30_000);
    let both = [component.hello.pid, armed.watchdog_pid];
    let before = both.map(faults);
    component.freeze(1);
    for _ in 0..20 {
        component.renew(1).unwrap();
        component.status();
        std::thread::sleep(Duration::from_millis(20));
    }
    let after = both.map(faults);
    assert!(component.thaw(1).no_gap);
    assert_eq!(before, after, "faults (minor, major) of main and watchdog");
    component.bye();
}

#[test]
fn forty_windows_one_after_another_have_no_gap() {
    let bed = Bed::new();
    let mut component = start(&bed);
    let mut windows_us = Vec::new();
    let mut overheads_us = Vec::new();
    for freeze in 1..=40 {
        component.arm(freeze, 20_000, 60_000);
        let began = Instant::now();
        component.freeze(freeze);
        let thawed = component.thaw(freeze);
        let window_us = began.elapsed().as_micros() as u64;
        assert!(thawed.no_gap);
        windows_us.push(window_us);
        overheads_us.push(window_us.saturating_sub(thawed.frozen_us));
    }
    windows_us.sort_unstable();
    overheads_us.sort_unstable();
    println!(
        "window of 4 idle file systems: median {} us; outside the frozen time (order sent, answer received): median {} us",
        windows_us[20], overheads_us[20]
    );
    component.bye();
}
