//! The kill matrix: one fault per case, and the time from the fault to the thaw of each file system.
//!
//! Every case gets a host of its own, freezes it with a lease of one second, checks that writes hang, and lets something die, stop,
//! or be cut. Then everything must take writes again in time, the label must be true, and nothing may be left.

use crate::bed::Bed;
use crate::client::{Component, send_signal};
use crate::deploy::{command_with_fence, deploy, serve_arguments, start, start_with_fence};
use lull_guest_wire::*;
use lull_runtime::kernel;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

const LEASE_MS: u64 = 1_000;
/// The promise: lease + 1 s after a fault.
const THAW_WITHIN_MS: u64 = LEASE_MS + 1_000;

/// Time from the fault to the last thaw, and what else is worth telling.
type Outcome = (u64, String);

type Case = (&'static str, fn() -> Outcome);

const CASES: [Case; 28] = [
    ("no renewal", no_renewal),
    ("budget used up although renewed", budget_used),
    ("SIGKILL of main", || killed(Victim::Main, libc::SIGKILL)),
    ("SIGSTOP of main", || killed(Victim::Main, libc::SIGSTOP)),
    ("SIGKILL of the watchdog", || killed(Victim::Watchdog, libc::SIGKILL)),
    ("SIGSTOP of the watchdog", || killed(Victim::Watchdog, libc::SIGSTOP)),
    ("SIGTERM, SIGHUP, SIGINT to both", harmless_signals),
    ("SIGKILL of main and watchdog at once", both_killed),
    ("SIGKILL of the watchdog before the freeze", watchdog_killed_before),
    ("SIGSTOP of the watchdog before the freeze", watchdog_stopped_before),
    ("standard input closed", || channel_cut(Cut::Input)),
    ("reader of standard output gone", || channel_cut(Cut::Output)),
    ("socket closed", || channel_cut(Cut::Socket)),
    ("socket half closed", || channel_cut(Cut::HalfSocket)),
    ("parent (sudo) killed, channel goes on", parent_killed),
    ("relaying parent killed", relay_killed),
    ("login's cgroup killed (logind)", cgroup_killed),
    ("lease expiry during a slow FIFREEZE", || slow(Fault::Expiry)),
    ("thaw ordered during a slow FIFREEZE", || slow(Fault::Thaw)),
    ("SIGKILL of main during a slow FIFREEZE", || slow(Fault::Main)),
    ("SIGSTOP of main during a slow FIFREEZE", || slow(Fault::MainStopped)),
    ("SIGKILL of the watchdog during a slow FIFREEZE", || slow(Fault::Watchdog)),
    ("channel cut during a slow FIFREEZE", || slow(Fault::Channel)),
    ("a newer task", || newer(Standing::Not)),
    ("a newer task during a slow FIFREEZE", || slow(Fault::Newer)),
    ("SIGSTOP of main, a newer task", || newer(Standing::Once)),
    ("main stopped for good, a newer task", || newer(Standing::ForGood)),
    ("main stopped for good, no watchdog, a newer task", || newer(Standing::ForGoodAlone)),
];

#[test]
fn kill_matrix() {
    let started = Instant::now();
    let next = Mutex::new(CASES.iter());
    let rows = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    // A thread of its own for each case: it moves into its own mount namespace.
                    let Some((name, case)) = next.lock().unwrap().next() else { return };
                    let outcome = std::thread::spawn(*case).join();
                    rows.lock().unwrap().push((*name, outcome.map_err(|panic| message(&*panic))));
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap();
    rows.sort_by_key(|(name, _)| CASES.iter().position(|(case, _)| case == name));
    println!("{:<50} {:>12}  what happened", "fault", "to thaw (ms)");
    for (name, outcome) in &rows {
        match outcome {
            Ok((thaw_ms, told)) => println!("{name:<50} {thaw_ms:>12}  {told}"),
            Err(why) => println!("{name:<50} {:>12}  {why}", "FAILED"),
        }
    }
    println!("{} cases in {:.1} s", rows.len(), started.elapsed().as_secs_f64());
    let failed: Vec<&str> = rows.iter().filter(|(_, outcome)| outcome.is_err()).map(|(name, _)| *name).collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
    assert_eq!(rows.len(), CASES.len());
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "a panic".into())
}

type Hanging = Vec<(String, Receiver<Instant>)>;

/// A host that is frozen with writes hanging.
fn frozen(bed: &Bed) -> (Component, Armed, Hanging) {
    let mut component = start(bed);
    let armed = freeze(&mut component);
    let hanging = bed.create_files_that_hang("fault");
    (component, armed, hanging)
}

fn freeze(component: &mut Component) -> Armed {
    let armed = component.arm(1, LEASE_MS, 30_000);
    component.freeze(1);
    armed
}

/// Waits until every hanging write went through: milliseconds since the fault, of the last.
fn thawed_after(fault: Instant, hanging: &Hanging, limit_ms: u64) -> u64 {
    let last = hanging.iter().map(|(place, when)| {
        let left = Duration::from_millis(limit_ms + 200).saturating_sub(fault.elapsed());
        when.recv_timeout(left).unwrap_or_else(|_| panic!("{place} still frozen after {limit_ms} ms"))
    });
    let took_ms = last.max().expect("at least one file system").saturating_duration_since(fault).as_millis() as u64;
    assert!(took_ms <= limit_ms, "thawed after {took_ms} ms, promised are {limit_ms}");
    took_ms
}

fn nothing_left(bed: &Bed) {
    let left = bed.leftovers();
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn assert_gap(thawed: &Thawed, expect: &str) {
    assert!(!thawed.no_gap && thawed.gaps.iter().any(|gap| gap.contains(expect)), "{thawed:?}");
}

fn no_renewal() -> Outcome {
    let bed = Bed::new();
    let (mut component, _, hanging) = frozen(&bed);
    component.renew(1).expect("still held");
    let fault = Instant::now();
    let took_ms = thawed_after(fault, &hanging, THAW_WITHIN_MS);
    assert!(took_ms >= LEASE_MS - 10, "thawed after {took_ms} ms, before the lease was over");
    std::thread::sleep(Duration::from_millis(1_300));
    assert_eq!(component.renew(1).unwrap_err().kind, RefusalKind::Expired, "an expired lease is never renewed");
    assert_gap(&component.thaw(1), "the lease was not renewed in time");
    component.bye();
    nothing_left(&bed);
    (took_ms, "main answers: expired".into())
}

fn budget_used() -> Outcome {
    let bed = Bed::new();
    let mut component = start(&bed);
    component.arm(1, LEASE_MS, 2_000);
    let fault = Instant::now();
    component.freeze(1);
    let hanging = bed.create_files_that_hang("fault");
    let refusal = loop {
        match component.renew(1) {
            Ok(_) => std::thread::sleep(Duration::from_millis(100)),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal.kind, RefusalKind::Expired);
    let took_ms = thawed_after(fault, &hanging, 3_000);
    assert!(took_ms >= 1_990);
    assert_gap(&component.thaw(1), "the freeze budget was used up");
    component.bye();
    nothing_left(&bed);
    (took_ms, "renewed every 100 ms, budget 2 s".into())
}

#[derive(PartialEq)]
enum Victim {
    Main,
    Watchdog,
}

fn killed(victim: Victim, signal: i32) -> Outcome {
    let bed = Bed::new();
    let (mut component, armed, hanging) = frozen(&bed);
    // A stopped watchdog is noticed while main goes on being renewed.
    let fault = Instant::now();
    match victim {
        Victim::Main => component.signal(signal),
        Victim::Watchdog => send_signal(armed.watchdog_pid, signal),
    }
    if victim == Victim::Watchdog && signal == libc::SIGSTOP {
        for _ in 0..25 {
            std::thread::sleep(Duration::from_millis(100));
            let _ = component.renew(1);
        }
    }
    let took_ms = thawed_after(fault, &hanging, THAW_WITHIN_MS);
    let told = match victim {
        Victim::Main => {
            assert!(component.channel_closes_within(Duration::from_secs(4)), "main must be gone");
            "channel closed, main gone".to_string()
        }
        Victim::Watchdog => {
            assert_eq!(component.renew(1).unwrap_err().kind, RefusalKind::WatchdogLost);
            assert_gap(&component.thaw(1), "the watchdog died or stood still");
            component.bye();
            "main thawed and says: watchdog lost".to_string()
        }
    };
    nothing_left(&bed);
    (took_ms, told)
}

fn harmless_signals() -> Outcome {
    let bed = Bed::new();
    let (mut component, armed, hanging) = frozen(&bed);
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGUSR1, libc::SIGPIPE] {
        send_signal(armed.watchdog_pid, signal);
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(hanging.iter().all(|(_, when)| when.try_recv().is_err()), "the watchdog ignores signals");
    let fault = Instant::now();
    component.signal(libc::SIGTERM);
    let took_ms = thawed_after(fault, &hanging, THAW_WITHIN_MS);
    assert!(component.channel_closes_within(Duration::from_secs(4)));
    nothing_left(&bed);
    (took_ms, "watchdog ignores all, main ends on SIGTERM".into())
}

fn both_killed() -> Outcome {
    let bed = Bed::new();
    let (component, armed, hanging) = frozen(&bed);
    let fault = Instant::now();
    // Two signals are never at once: stopped first, the watchdog cannot use the time in between.
    send_signal(armed.watchdog_pid, libc::SIGSTOP);
    component.signal(libc::SIGKILL);
    send_signal(armed.watchdog_pid, libc::SIGKILL);
    std::thread::sleep(Duration::from_millis(THAW_WITHIN_MS));
    for (place, when) in &hanging {
        assert!(when.try_recv().is_err(), "{place} thawed by itself: then this test tests nothing");
    }
    let ladder = Instant::now();
    let path = deploy(&bed);
    let output = bed.command(&path).arg("thaw").args(crate::bed::TARGETS).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "/: thawed\n/data: thawed\n/data/nested: thawed\n/inner: thawed\n"
    );
    let took_ms = thawed_after(ladder, &hanging, THAW_WITHIN_MS);
    std::fs::remove_dir_all(bed.path(&path).parent().unwrap()).unwrap();
    nothing_left(&bed);
    (fault.elapsed().as_millis() as u64, format!("frozen until the ladder's thaw command, then {took_ms} ms"))
}

fn watchdog_killed_before() -> Outcome {
    let bed = Bed::new();
    let mut component = start(&bed);
    let armed = component.arm(1, LEASE_MS, 30_000);
    send_signal(armed.watchdog_pid, libc::SIGKILL);
    let refusal = component.ask(Command::Freeze(FreezeId(1))).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::WatchdogLost);
    component.bye();
    nothing_left(&bed);
    (0, "refused".into())
}

fn watchdog_stopped_before() -> Outcome {
    let bed = Bed::new();
    let mut component = start(&bed);
    let armed = component.arm(1, LEASE_MS, 30_000);
    send_signal(armed.watchdog_pid, libc::SIGSTOP);
    std::thread::sleep(Duration::from_millis(1_600));
    let refusal = component.ask(Command::Freeze(FreezeId(1))).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::WatchdogLost);
    component.bye();
    nothing_left(&bed);
    (0, "refused".into())
}

enum Cut {
    Input,
    Output,
    Socket,
    HalfSocket,
}

fn channel_cut(cut: Cut) -> Outcome {
    let bed = Bed::new();
    let path = deploy(&bed);
    let mut command = bed.command(&path);
    command.args(serve_arguments());
    let (mut component, socket) = match cut {
        Cut::Input | Cut::Output => (Component::over_pipes(command), None),
        Cut::Socket | Cut::HalfSocket => {
            let (ours, theirs) = UnixStream::pair().unwrap();
            command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs.try_clone().unwrap())));
            command.stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
            let process = command.spawn().unwrap();
            // The command holds the other end until it is gone.
            drop(command);
            let (to, from) = (ours.try_clone().unwrap(), ours.try_clone().unwrap());
            (Component::over(process, to.into(), from.into()), Some(ours))
        }
    };
    freeze(&mut component);
    let hanging = bed.create_files_that_hang("fault");
    let fault = Instant::now();
    match cut {
        Cut::Input => component.cut(),
        Cut::Output => component.drop_output(),
        Cut::Socket => socket.unwrap().shutdown(std::net::Shutdown::Both).unwrap(),
        Cut::HalfSocket => socket.unwrap().shutdown(std::net::Shutdown::Write).unwrap(),
    }
    let took_ms = thawed_after(fault, &hanging, LEASE_MS);
    nothing_left(&bed);
    (took_ms, "at once, and gone".into())
}

fn parent_killed() -> Outcome {
    let bed = Bed::new();
    let path = deploy(&bed);
    let mut command = bed.command("/bin/sh");
    command.args(["-c", "\"$@\"; exit $?", "sudo", &path]).args(serve_arguments());
    let mut component = Component::over_pipes(command);
    freeze(&mut component);
    let hanging = bed.create_files_that_hang("fault");
    component.process.kill().unwrap();
    component.process.wait().unwrap();
    for _ in 0..15 {
        component.renew(1).expect("the channel is still there, so the freeze goes on");
        std::thread::sleep(Duration::from_millis(100));
    }
    let fault = Instant::now();
    assert!(component.thaw(1).no_gap, "nothing of the freeze was touched");
    let took_ms = thawed_after(fault, &hanging, THAW_WITHIN_MS);
    assert_eq!(component.ask(Command::Bye), Ok(Answer::Done));
    nothing_left(&bed);
    (took_ms, "held on, thawed as ordered, no gap".into())
}

fn relay_killed() -> Outcome {
    let bed = Bed::new();
    let path = deploy(&bed);
    let mut command = bed.command("/bin/sh");
    command.args(["-c", "cat | \"$@\" | cat", "relay", &path]).args(serve_arguments());
    let mut component = Component::over_pipes(command);
    freeze(&mut component);
    let hanging = bed.create_files_that_hang("fault");
    let relays: Vec<u32> = bed.processes().into_iter().filter(|(_, name)| name == "cat").map(|(pid, _)| pid).collect();
    assert_eq!(relays.len(), 2);
    let fault = Instant::now();
    relays.iter().for_each(|pid| send_signal(*pid, libc::SIGKILL));
    let took_ms = thawed_after(fault, &hanging, LEASE_MS);
    nothing_left(&bed);
    (took_ms, "at once, and gone".into())
}

fn cgroup_killed() -> Outcome {
    let bed = Bed::new();
    let session = bed.session_cgroup();
    let path = deploy(&bed);
    let mut command = bed.command("/bin/sh");
    command.args(["-c", "echo 0 > \"$0/cgroup.procs\"; exec \"$@\"", &session, &path]).args(serve_arguments());
    let mut component = Component::over_pipes(command);
    let armed = freeze(&mut component);
    let inside = std::fs::read_to_string(bed.path(&format!("{session}/cgroup.procs"))).unwrap();
    assert_eq!(inside.split_whitespace().collect::<Vec<_>>(), [component.hello.pid.to_string()], "the watchdog left");
    assert!(armed.notes.iter().all(|note| !note.contains("cgroup")), "{:?}", armed.notes);
    let hanging = bed.create_files_that_hang("fault");
    let fault = Instant::now();
    std::fs::write(bed.path(&format!("{session}/cgroup.kill")), "1").unwrap();
    let took_ms = thawed_after(fault, &hanging, THAW_WITHIN_MS);
    assert!(component.channel_closes_within(Duration::from_secs(4)));
    nothing_left(&bed);
    (took_ms, "watchdog had left it, thawed".into())
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Expiry,
    Thaw,
    Main,
    MainStopped,
    Watchdog,
    Channel,
    Newer,
}

/// How main stands still when a newer task's component comes.
#[derive(Clone, Copy, PartialEq)]
enum Standing {
    Not,
    Once,
    /// However often somebody has it go on.
    ForGood,
    /// And nobody watches.
    ForGoodAlone,
}

/// A lease of half a minute, which must not be what thaws.
fn newer(standing: Standing) -> Outcome {
    let bed = Bed::new();
    let mut old = start_with_fence(&bed, 7);
    let armed = old.arm(1, 30_000, 30_000);
    old.freeze(1);
    let hanging = bed.create_files_that_hang("fault");
    let main = old.hello.pid;
    match standing {
        Standing::Not => {}
        Standing::Once => send_signal(main, libc::SIGSTOP),
        Standing::ForGood | Standing::ForGoodAlone => stop_for_good(main),
    }
    if standing == Standing::ForGoodAlone {
        send_signal(armed.watchdog_pid, libc::SIGKILL);
    }
    let fault = Instant::now();
    let mut new = start_with_fence(&bed, 8);
    let took_ms = thawed_after(fault, &hanging, 15_000);
    new.status();
    let notes = new.notes.join("; ");
    let (expect, told) = match standing {
        Standing::Not | Standing::Once => ("was asked to go", "asked, thawed, gone"),
        Standing::ForGood => ("did not go within 10 s: killed", "asked, killed after 10 s, thawed by its watchdog"),
        Standing::ForGoodAlone => {
            ("a component that was killed: thawed", "asked, killed after 10 s, thawed by the newer")
        }
    };
    assert!(notes.contains(expect), "{notes}");
    let quick = matches!(standing, Standing::Not | Standing::Once);
    assert!(!quick || took_ms <= THAW_WITHIN_MS, "{took_ms} ms");
    assert_eq!(old.last_words().last() == Some(&FromRuntime::Evicted), quick, "who was killed says nothing");
    new.arm(2, LEASE_MS, 30_000);
    new.freeze(2);
    assert!(new.thaw(2).no_gap, "the newer task freezes as if nothing had been");
    new.bye();
    nothing_left(&bed);
    (took_ms, told.into())
}

/// Whoever has it go on finds it standing still: a debugger holds its control thread.
fn stop_for_good(main: u32) {
    // SAFETY: no pointers are followed by these two requests; a process that this test started.
    let stopped = unsafe {
        let none = std::ptr::null_mut::<libc::c_void>();
        libc::ptrace(libc::PTRACE_SEIZE, main as i32, none, none) == 0
            && libc::ptrace(libc::PTRACE_INTERRUPT, main as i32, none, none) == 0
    };
    assert!(stopped, "{}", std::io::Error::last_os_error());
}

/// The disk under /slow stands still while its file system is being frozen; /data and /data/nested may be frozen already.
fn slow(fault: Fault) -> Outcome {
    let bed = Bed::with_slow_disk();
    let mut component = start_with_fence(&bed, 7);
    let armed = component.arm(1, LEASE_MS, 30_000);
    assert!(armed.plan.contains(&bed.superblock("/slow")));
    bed.dirty_slow();
    bed.stop_slow_disk();
    let freezing = component.send(Command::Freeze(FreezeId(1)));
    std::thread::sleep(Duration::from_millis(300));
    let status = component.status();
    assert_eq!(status.phase, Phase::Freezing, "FIFREEZE must be slow, or this tests nothing");
    component.renew(1).expect("served during FIFREEZE");
    let nested = bed.create_file("/data/nested/while-frozen");
    std::thread::sleep(Duration::from_millis(100));
    assert!(nested.try_recv().is_err(), "/data/nested is frozen before /slow");
    let others: Hanging = vec![("/data/nested".into(), nested)];
    let fault_at = Instant::now();
    let (mut thaw, mut newer) = (None, None);
    match fault {
        Fault::Expiry => {}
        Fault::Thaw => thaw = Some(component.send(Command::Thaw(FreezeId(1)))),
        Fault::Main => component.signal(libc::SIGKILL),
        Fault::MainStopped => component.signal(libc::SIGSTOP),
        Fault::Watchdog => send_signal(armed.watchdog_pid, libc::SIGKILL),
        Fault::Channel => component.cut(),
        Fault::Newer => {
            // Its first word comes when the older one has gone, and that when its disk answers.
            let command = command_with_fence(&bed, 8);
            newer = Some(std::thread::spawn(move || Component::over_pipes(command)));
        }
    }
    let others_ms = thawed_after(fault_at, &others, THAW_WITHIN_MS);
    // Long enough for a watchdog that gives up after one FITHAW to be gone.
    std::thread::sleep(Duration::from_millis(1_500));
    bed.start_slow_disk();
    let disk_back = Instant::now();
    std::thread::sleep(Duration::from_millis(50));
    let slow_ms = thawed_after(disk_back, &vec![("/slow".to_string(), bed.create_file("/slow/after"))], 1_000);
    match fault {
        Fault::Expiry | Fault::Thaw | Fault::Watchdog => {
            let refusal = component.answer_to(freezing).unwrap_err();
            let kind = match fault {
                Fault::Expiry => RefusalKind::Expired,
                Fault::Watchdog => RefusalKind::WatchdogLost,
                _ => RefusalKind::FreezeFailed,
            };
            assert_eq!(refusal.kind, kind, "{refusal:?}");
            match thaw {
                Some(id) => {
                    let Ok(Answer::Thawed(thawed)) = component.answer_to(id) else { panic!("no answer to thaw") };
                    assert_gap(&thawed, "ordered before everything was frozen");
                }
                None => assert!(!component.thaw(1).no_gap),
            }
            component.bye();
        }
        Fault::Main | Fault::MainStopped | Fault::Channel | Fault::Newer => {
            assert!(component.channel_closes_within(Duration::from_secs(5)), "main must be gone");
        }
    }
    if let Some(newer) = newer {
        newer.join().unwrap().bye();
    }
    for (place, file) in &bed.places {
        assert_eq!(kernel::thaw(file.as_fd()), Err(libc::EINVAL), "{place} was left frozen");
    }
    nothing_left(&bed);
    (others_ms, format!("/slow {slow_ms} ms after its disk came back"))
}
