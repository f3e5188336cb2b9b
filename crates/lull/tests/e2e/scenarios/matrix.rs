//! The kill matrix on a real guest: who dies, stops or is cut, at which step of a backup, and bad luck in which nobody
//! dies; one line for each case.
//!
//! Where the guest is frozen it thaws in time; where it is not, it writes on. The session tells the truth, and nothing
//! stays behind. The proxy is embedded: whatever happens to the server happens to it.

use crate::events::Events;
use crate::guest::{Pulse, Shell, key_file};
use crate::relay::{At, Held, Relay};
use crate::scenarios::qmp::{LONGEST_WRITE, THAW_WITHIN};
use crate::scenarios::{hold, repository};
use crate::wire::Wire;
use crate::world::{VM, World, assert_clean_receipt, sentence, task};
use lull_api::session::{EventKind, Session};
use rustix::process::Signal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Server,
    Main,
    Watchdog,
    Both,
    /// The one that runs the component, in an account that is not root's.
    Sudo,
    Channel,
    Qmp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    Stop,
    Cut,
    /// The hypervisor executes what it got, and its answer is lost with the connection.
    AnswersLost,
    /// The connection stays, and nothing comes.
    Silent,
}

/// Step, as the session names it. `frozen` is the middle of the window: the snapshot was ordered.
type Step = &'static str;
const FROZEN: Step = "frozen";

type Case = (Victim, Step, Fault);

const CASES: &[Case] = &[
    (Victim::Server, "connect", Fault::Kill),
    (Victim::Server, "deploy", Fault::Kill),
    (Victim::Server, "inventory", Fault::Kill),
    (Victim::Server, "pre-script", Fault::Kill),
    (Victim::Server, "quiesce", Fault::Kill),
    (Victim::Server, FROZEN, Fault::Kill),
    (Victim::Server, FROZEN, Fault::Stop),
    (Victim::Server, "copy", Fault::Kill),
    (Victim::Server, "verify", Fault::Kill),
    (Victim::Main, "pre-script", Fault::Kill),
    (Victim::Main, "quiesce", Fault::Kill),
    (Victim::Main, FROZEN, Fault::Kill),
    (Victim::Main, FROZEN, Fault::Stop),
    (Victim::Main, "copy", Fault::Kill),
    (Victim::Main, "copy", Fault::Stop),
    (Victim::Watchdog, FROZEN, Fault::Kill),
    (Victim::Watchdog, FROZEN, Fault::Stop),
    (Victim::Both, FROZEN, Fault::Kill),
    (Victim::Sudo, FROZEN, Fault::Kill),
    (Victim::Channel, "connect", Fault::Cut),
    (Victim::Channel, "deploy", Fault::Cut),
    (Victim::Channel, "inventory", Fault::Cut),
    (Victim::Channel, "pre-script", Fault::Cut),
    (Victim::Channel, "quiesce", Fault::Cut),
    (Victim::Channel, FROZEN, Fault::Cut),
    (Victim::Channel, "copy", Fault::Cut),
    (Victim::Qmp, "inventory", Fault::Cut),
    (Victim::Qmp, FROZEN, Fault::Cut),
    (Victim::Qmp, FROZEN, Fault::AnswersLost),
    (Victim::Qmp, FROZEN, Fault::Silent),
    (Victim::Qmp, "copy", Fault::Cut),
];

/// Victim, step and fault in the table's words, and the scenario.
type Other = (&'static str, Step, &'static str, fn(&mut World));

/// Bad luck in which nobody dies; scenarios of their own, which assert what becomes of them.
const OTHERS: [Other; 2] =
    [("-", "freeze", "EBUSY", hold::frozen_by_somebody_else), ("repository", "copy", "full", repository::full)];

/// After this the snapshot itself is given up: 10 s; and a second for a write to get through and be told.
const SILENT_THAW_WITHIN: Duration = Duration::from_secs(10 + 1 + 1);
/// With component and watchdog dead nobody in the guest thaws; the ladder's third step must be reached.
const LADDER_WITHIN: Duration = Duration::from_secs(45);

struct Bed {
    relay: Relay,
    wire: Wire,
    shell: Shell,
}

/// Time from the fault to the first write that gets through, where the guest was frozen; and what became of it.
type Outcome = (Option<Duration>, String);

pub fn play(world: &mut World) {
    let wire = Wire::to(world.guest.port);
    world.lull(&["vm", "set", VM, "--connect", &wire.address]).ok();
    let (wait, after) = (world.folder.join("wait.sh"), world.folder.join("after.sh"));
    std::fs::write(&wait, "#!/bin/sh\nn=0; while [ -e /run/wait ] && [ $n -lt 150 ]; do sleep 0.1; n=$((n+1)); done\n")
        .unwrap();
    std::fs::write(&after, "#!/bin/sh\necho x >>/run/post-ran\n").unwrap();
    let (wait, after) = (wait.display().to_string(), after.display().to_string());
    let flags = ["--pre-freeze-script", &wait, "--post-thaw-script", &after];
    world.make_job("matrix", &flags);
    // Slow enough that a fault strikes while data is copied.
    world.make_job("matrix-slow", &[&flags[..], &["--full-every", "1", "--copy-limit", "256MiB"]].concat());
    let key = key_file().display().to_string();
    world.lull(&["credential", "remove", "ops"]);
    world.lull(&["credential", "add", "ops", "--user", "ops", "--sudo-nopasswd", "--key", &key]).ok();
    let mut bed = Bed { relay: Relay::before(&world.guest), wire, shell: world.guest.shell() };
    let mut rows: Vec<Row> = Vec::new();
    for case in CASES {
        let (victim, step, fault) = case;
        println!("   {victim:?} at {step}, {fault:?}");
        let played = catch_unwind(AssertUnwindSafe(|| one(world, &mut bed, *case)));
        if played.is_err() {
            world.reset();
            world.lull(&["vm", "set", VM, "--connect", &bed.wire.address]).ok();
            bed.shell = world.guest.shell();
        }
        rows.push(Row { words: words(*case), outcome: played.map_err(|panic| message(&*panic)) });
    }
    drop(bed);
    world.lull(&["job", "remove", "matrix"]).ok();
    world.lull(&["job", "remove", "matrix-slow"]).ok();
    let connect = world.address();
    world.lull(&["vm", "set", VM, "--connect", &connect]).ok();
    world.lull(&["credential", "remove", "ops"]).ok();
    for (victim, step, fault, play) in OTHERS {
        println!("   {victim} at {step}, {fault}");
        let played = catch_unwind(AssertUnwindSafe(|| {
            play(world);
            world.assert_calm();
        }));
        if played.is_err() {
            world.reset();
        }
        let outcome = played.map(|()| (None, "refused or failed as it should, nothing left".to_string()));
        let words = (victim.to_string(), step, fault);
        rows.push(Row { words, outcome: outcome.map_err(|panic| message(&*panic)) });
    }
    print(&rows);
    let failed: Vec<_> = rows.iter().filter(|row| row.outcome.is_err()).map(|row| &row.words).collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// Victim, step and fault in the table's words.
type Words = (String, Step, &'static str);

struct Row {
    words: Words,
    outcome: Result<Outcome, String>,
}

fn words((victim, step, fault): Case) -> Words {
    let fault = match fault {
        Fault::Kill => "SIGKILL",
        Fault::Stop => "SIGSTOP",
        Fault::Cut => "cut",
        Fault::AnswersLost => "answers lost",
        Fault::Silent => "silent",
    };
    (format!("{victim:?}").to_lowercase(), step, fault)
}

fn print(rows: &[Row]) {
    println!("   {:<10} {:<11} {:<12} {:>12}  result", "victim", "step", "fault", "to thaw (ms)");
    for Row { words: (victim, step, fault), outcome } in rows {
        let (thawed, told) = match outcome {
            Ok((Some(thawed), told)) => (thawed.as_millis().to_string(), told.as_str()),
            Ok((None, told)) => ("-".into(), told.as_str()),
            Err(why) => ("FAILED".into(), why.as_str()),
        };
        println!("   {victim:<10} {step:<11} {fault:<12} {thawed:>12}  {told}");
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "a panic".into())
}

fn one(world: &mut World, bed: &mut Bed, case: Case) -> Outcome {
    let (victim, step, _) = case;
    let frozen = step == FROZEN;
    let credential = if victim == Victim::Sudo { "ops" } else { "root-key" };
    world.lull(&["vm", "set", VM, "--credential", credential]).ok();
    bed.shell.ask("rm -f /run/post-ran /run/wait");
    let held = stops_at(bed, case);
    let pulse = world.guest.pulse();
    // From here on whoever is on the wire is this task's.
    bed.wire.cut();
    let (id, events) = world.start_job(if step == "copy" { "matrix-slow" } else { "matrix" });
    reach(&events, step, held.as_ref());
    if (victim, step) == (Victim::Channel, "connect") {
        bed.wire.wait_for_somebody();
    }
    if frozen {
        pulse.assert_frozen();
    }
    let at = strike(world, bed, case, held, &pulse);
    let session = world.finished(id);
    if !frozen {
        let longest = pulse.longest_gap(at.fault);
        assert!(longest < LONGEST_WRITE, "the guest stood still for {longest:?}");
    }
    drop((events, pulse));
    judge(world, case, &session);
    if owes_post_script(case) {
        let ran = bed.shell.ask("cat /run/post-ran 2>/dev/null");
        assert_ne!(ran, Vec::<String>::new(), "the post-thaw script did not run");
    }
    bed.shell.ask("rm -f /run/post-ran");
    world.assert_calm();
    let told = match session.summary.result.as_deref() {
        Some("failed") => sentence(&session),
        other => format!("{}, level {}", other.unwrap_or("none"), task(&session).level.as_deref().unwrap_or("none")),
    };
    (at.thawed, told)
}

/// The pre-freeze script ran, so the other one must, whoever died in between.
fn owes_post_script((_, step, _): Case) -> bool {
    ["pre-script", "quiesce", FROZEN, "copy", "verify"].contains(&step)
}

/// What makes the task wait at the step, where it would pass it too quickly.
fn stops_at(bed: &mut Bed, (victim, step, fault): Case) -> Option<Held> {
    match (step, victim, fault) {
        ("pre-script", ..) => drop(bed.shell.ask("echo >/run/wait")),
        ("quiesce", ..) => drop(bed.shell.ask("kill -STOP $(pgrep -f '[p]ostgres: checkpointer')")),
        (FROZEN, Victim::Qmp, Fault::AnswersLost) => return Some(bed.relay.hold(At::AnswersLost, "transaction")),
        (FROZEN, ..) => return Some(bed.relay.hold(At::Before, "transaction")),
        ("inventory", Victim::Qmp, _) => return Some(bed.relay.hold(At::After, "blockdev-add")),
        ("inventory", Victim::Channel, _) => return Some(bed.relay.hold(At::Before, "blockdev-add")),
        ("copy", Victim::Qmp, _) => return Some(bed.relay.hold(At::AnswersLost, "blockdev-backup")),
        _ => {}
    }
    None
}

fn reach(events: &Events, step: Step, held: Option<&Held>) {
    match (held, step) {
        (Some(held), _) => held.wait(),
        (None, "copy") => {
            events.until(120, "progress", |event| matches!(event, EventKind::Progress { done_bytes: 1.., .. }));
        }
        (None, step) => {
            events.until_step(step);
            // Into the step, not only to its threshold.
            if ["pre-script", "quiesce"].contains(&step) {
                std::thread::sleep(Duration::from_millis(500));
            }
        }
    }
}

struct Struck {
    fault: Instant,
    thawed: Option<Duration>,
}

/// The fault, the thaw after it, and everything let go that was held for the case.
fn strike(world: &mut World, bed: &mut Bed, (victim, step, fault): Case, held: Option<Held>, pulse: &Pulse) -> Struck {
    let frozen = step == FROZEN;
    let mut held = held;
    let at = match (victim, fault) {
        (Victim::Server, Fault::Stop) => {
            let at = Instant::now();
            world.signal_server(Signal::STOP);
            at
        }
        (Victim::Server, _) => {
            let at = Instant::now();
            world.kill_server();
            at
        }
        (Victim::Channel, _) => bed.wire.cut(),
        // It has what it waits for already: silence.
        (Victim::Qmp, Fault::Silent) => Instant::now(),
        (Victim::Qmp, _) => held.take().expect("it is held at the hypervisor").cut(),
        _ => in_guest(&mut bed.shell, victim, fault),
    };
    let thawed = frozen.then(|| {
        let thawed = pulse.thaw_after(at);
        let within = match (victim, fault) {
            (Victim::Both, _) => LADDER_WITHIN,
            (_, Fault::Silent) => SILENT_THAW_WITHIN,
            _ => THAW_WITHIN,
        };
        assert!(thawed <= within, "thawed after {thawed:?}, promised are {within:?}");
        thawed
    });
    match step {
        "pre-script" => drop(bed.shell.ask("rm -f /run/wait")),
        "quiesce" => drop(bed.shell.ask("kill -CONT $(pgrep -f '[p]ostgres: checkpointer')")),
        _ => {}
    }
    if let Some(held) = held {
        held.go_on();
    }
    match (victim, fault) {
        (Victim::Server, Fault::Stop) => world.signal_server(Signal::CONT),
        (Victim::Server, _) => world.start_server(),
        _ => {}
    }
    Struck { fault: at, thawed }
}

/// Kills or stops the component, its watchdog, or both. By what a shell can do itself: the root may be frozen.
fn in_guest(shell: &mut Shell, victim: Victim, fault: Fault) -> Instant {
    let found = shell.ask(
        "for p in /proc/[0-9]*; do { read -r n <$p/comm; } 2>/dev/null && case $n in *lull*|sudo) echo $n ${p#/proc/};; esac; done",
    );
    let pid_of = |name: &str| {
        let mut of_name = found.iter().filter_map(|line| line.split_once(' ')).filter(|(found, _)| *found == name);
        of_name.next().unwrap_or_else(|| panic!("no {name} in {found:?}")).1.to_string()
    };
    let signal = if fault == Fault::Stop { "STOP" } else { "KILL" };
    let line = match victim {
        // Two signals are never at once: stopped first, the watchdog cannot use the time in between.
        Victim::Both => {
            let (main, watchdog) = (pid_of("lull-runtime"), pid_of("lull-watchdog"));
            format!("kill -STOP {watchdog}; kill -KILL {main} {watchdog}")
        }
        // Where it has a monitor of its own there are two.
        Victim::Sudo => {
            pid_of("sudo");
            let all = found.iter().filter_map(|line| line.strip_prefix("sudo "));
            format!("kill -KILL {}", all.collect::<Vec<_>>().join(" "))
        }
        Victim::Watchdog => format!("kill -{signal} {}", pid_of("lull-watchdog")),
        _ => format!("kill -{signal} {}", pid_of("lull-runtime")),
    };
    let at = Instant::now();
    shell.ask(&line);
    at
}

fn judge(world: &World, (victim, step, _): Case, session: &Session) {
    let result = session.summary.result.as_deref().unwrap_or("none");
    let task = task(session);
    // Once the snapshot was taken inside, the backup needs neither the component nor the channel any more. And a login by
    // key that breaks off is tried again: no account is locked by one.
    let survives = match victim {
        Victim::Main => step == "copy",
        Victim::Channel => ["connect", "copy"].contains(&step),
        _ => false,
    };
    if survives {
        assert!(["success", "warning"].contains(&result), "{session:#?}");
        assert_eq!(task.level.as_deref(), Some("application"), "{session:#?}");
        assert!(task.restore_point.is_some(), "{session:#?}");
    } else {
        assert_eq!(result, "failed", "{session:#?}");
        assert_eq!(task.restore_point, None, "{session:#?}");
        assert_ne!(task.level.as_deref(), Some("application"), "{session:#?}");
        // One sentence: where, why, what to do.
        let said = sentence(session);
        assert!(said.contains(": ") && said.contains("; "), "{said}");
    }
    assert_clean_receipt(session);
    if let Some(point) = task.restore_point {
        world.lull(&["restore-point", "verify", &point.to_string()]).ok();
    }
}
