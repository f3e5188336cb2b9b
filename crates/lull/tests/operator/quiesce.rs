//! `lull quiesce`: exit codes, renewals, facts, signals, and a guest that does not wait.

use crate::fake::Fake;
use crate::run::{Outcome, document, lull, run};
use crate::samples::*;
use lull_api::Problem;
use lull_api::session::{EventKind, SessionEvent};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn ready() -> SessionEvent {
    let facts = [("LULL_VM", "shop"), ("LULL_FREEZE_ID", "7"), ("LD_PRELOAD", "/evil.so")];
    let facts = facts.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    event(EventKind::HoldReady { facts })
}

fn thawed(no_gap: bool) -> SessionEvent {
    event(EventKind::Thawed { window_us: 250_000, no_gap })
}

/// A guest that comes to rest, and thaws when the end of the hold is told.
fn holding() -> Fake {
    let fake = Fake::start();
    fake.script.answer_with("POST /vms/shop/quiesce", 202, &running("quiesce"));
    fake.script.answer_with("POST /sessions/12/renew", 204, &());
    fake.script.answer_with("POST /sessions/12/end", 204, &());
    fake.script.answer("GET /sessions/12", &finished("quiesce", "success"));
    fake.script.on("POST /vms/shop/quiesce", |script| {
        script.emit(vec![step_started("freeze"), event(EventKind::Frozen { file_systems: 2 }), ready()]);
    });
    fake.script.on("POST /sessions/12/end", |script| {
        script.emit(vec![thawed(true), task_finished("success"), session_finished("success")]);
    });
    fake
}

fn start(fake: &Fake, args: &[&str]) -> Child {
    let mut command = lull(fake);
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap().success());
}

#[test]
fn the_commands_exit_code_and_output_are_passed_on() {
    for code in [0, 1, 3, 77, 255] {
        let fake = holding();
        let script = format!("echo out; echo err >&2; exit {code}");
        let output = run(&fake, &["quiesce", "shop", "--lease", "3s", "--", "sh", "-c", &script]);
        assert_eq!((output.code, output.stdout.as_str()), (code, "out\n"), "{output:?}");
        assert!(output.stderr.contains("err\n"), "{output:?}");
        assert!(output.stderr.contains(&format!("COMMAND: exit code {code} after ")), "{output:?}");
        assert!(output.stderr.contains(", inside the quiet moment\n"), "{output:?}");
        assert!(output.stderr.contains("level: application\n"), "{output:?}");
        let end = &fake.script.requests_of("POST /sessions/12/end")[0];
        assert_eq!(end.body["succeeded"], code == 0);
        assert_eq!(fake.script.requests_of("POST /vms/shop/quiesce")[0].body["guest"]["lease_ms"], 3000);
    }
    let output = run(&holding(), &["quiesce", "shop", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(output.code, 137);
}

#[test]
fn facts_are_in_the_commands_environment_and_only_facts() {
    let output =
        run(&holding(), &["quiesce", "shop", "--", "sh", "-c", "echo $LULL_VM $LULL_FREEZE_ID ${LD_PRELOAD:-none}"]);
    assert_eq!(output.stdout, "shop 7 none\n", "{output:?}");
}

#[test]
fn json_is_one_document_and_the_commands_output_goes_to_stderr() {
    let output = run(&holding(), &["quiesce", "shop", "--json", "--", "sh", "-c", "echo out; exit 3"]);
    assert_eq!(output.code, 3);
    assert!(output.stderr.contains("out\n"), "{output:?}");
    let verdict = document(&output.stdout);
    assert_eq!(verdict["inside"], true);
    assert_eq!(verdict["command_exit_code"], 3);
    assert_eq!(verdict["exit_code"], 3);
    assert_eq!(verdict["level"], "application");
    assert_eq!(verdict["freeze_window_us"], 3_400);
    assert_eq!(verdict["receipt"], "nothing left in guest and hypervisor");
}

#[test]
fn the_hold_is_renewed_every_second_until_the_command_ends() {
    let fake = holding();
    let output = run(&fake, &["quiesce", "shop", "--", "sleep", "2.5"]);
    assert_eq!(output.code, 0, "{output:?}");
    let renewals = fake.script.requests_of("POST /sessions/12/renew");
    assert_eq!(renewals.len(), 3, "at once, after 1 s and after 2 s");
    for pair in renewals.windows(2) {
        let apart = pair[1].at - pair[0].at;
        assert!((800..1_500).contains(&apart.as_millis()), "{apart:?}");
    }
    let end = &fake.script.requests_of("POST /sessions/12/end")[0];
    assert!(renewals.iter().all(|renewal| renewal.at < end.at));
}

#[test]
fn a_stopped_client_renews_no_more_and_says_so_when_it_goes_on() {
    let fake = holding();
    let child = start(&fake, &["quiesce", "shop", "--", "sleep", "4"]);
    fake.script.wait_for("POST /sessions/12/renew", 1);
    signal(child.id(), "STOP");
    std::thread::sleep(Duration::from_millis(100));
    let before = fake.script.requests_of("POST /sessions/12/renew").len();
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(fake.script.requests_of("POST /sessions/12/renew").len(), before, "a stopped client renewed");
    // What a server does when the lease ran out.
    fake.script.refuse("POST /sessions/12/renew", Problem::new(409, "hold-over", "the lease of this hold ran out"));
    fake.script.on("POST /sessions/12/end", |_| {});
    fake.script.emit(vec![thawed(false), task_finished("failed"), session_finished("failed")]);
    signal(child.id(), "CONT");
    let output: Outcome = child.wait_with_output().unwrap().into();
    assert_eq!(output.code, 124, "{output:?}");
    assert!(output.stderr.contains("NOT inside the quiet moment"), "{output:?}");
    assert!(output.stderr.contains("do not trust"), "{output:?}");
}

#[test]
fn a_killed_client_renews_no_more() {
    let fake = holding();
    let mut child = start(&fake, &["quiesce", "shop", "--", "sleep", "3"]);
    fake.script.wait_for("POST /sessions/12/renew", 1);
    signal(child.id(), "KILL");
    child.wait().unwrap();
    let before = fake.script.requests().len();
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(fake.script.requests().len(), before);
}

#[test]
fn a_guest_that_thaws_early_ends_with_124_whatever_the_command_says() {
    let fake = holding();
    let child = start(&fake, &["quiesce", "shop", "--json", "--", "sleep", "1.5"]);
    fake.script.wait_for("POST /sessions/12/renew", 1);
    fake.script.emit(vec![thawed(true)]);
    let output: Outcome = child.wait_with_output().unwrap().into();
    assert_eq!(output.code, 124, "{output:?}");
    let verdict = document(&output.stdout);
    assert_eq!((&verdict["inside"], &verdict["command_exit_code"]), (&false.into(), &0.into()));
    assert_eq!(verdict["why_not_inside"], "the guest thawed");
}

#[test]
fn a_gap_or_a_silent_guest_is_never_called_inside() {
    for (events, why) in [
        (vec![thawed(false), session_finished("warning")], "was not frozen all the time"),
        (vec![session_finished("success")], "did not confirm"),
    ] {
        let fake = holding();
        fake.script.on("POST /sessions/12/end", move |script| script.emit(events.clone()));
        let output = run(&fake, &["quiesce", "shop", "--", "true"]);
        assert_eq!(output.code, 124, "{output:?}");
        assert!(output.stderr.contains(why), "{output:?}");
    }
}

#[test]
fn an_end_that_is_refused_means_that_the_hold_was_over_before() {
    let fake = holding();
    fake.script.refuse("POST /sessions/12/end", Problem::new(409, "no-hold", "session 12 holds no guest"));
    let output = run(&fake, &["quiesce", "shop", "--", "true"]);
    assert_eq!(output.code, 124, "{output:?}");
    assert!(output.stderr.contains("the hold was over before COMMAND ended"), "{output:?}");
}

#[test]
fn a_session_that_fails_after_the_command_ends_with_123() {
    let fake = holding();
    fake.script.answer("GET /sessions/12", &finished("quiesce", "failed"));
    assert_eq!(run(&fake, &["quiesce", "shop", "--", "true"]).code, 123);
    let fake = holding();
    fake.script.answer("GET /sessions/12", &finished("quiesce", "failed"));
    assert_eq!(run(&fake, &["quiesce", "shop", "--", "sh", "-c", "exit 9"]).code, 9);
}

#[test]
fn what_goes_wrong_before_the_quiet_moment_ends_with_125_and_runs_nothing() {
    let touched = |fake: &Fake| fake.folder().join("touched");
    // The guest cannot be brought to rest.
    let fake = holding();
    fake.script.answer("GET /sessions/12", &finished("quiesce", "failed"));
    fake.script.on("POST /vms/shop/quiesce", |script| {
        script.emit(vec![step_started("connect"), task_finished("failed"), session_finished("failed")]);
    });
    let output = run(&fake, &["quiesce", "shop", "--", "touch", touched(&fake).to_str().unwrap()]);
    assert_eq!(output.code, 125, "{output:?}");
    assert!(output.stderr.contains("why: backup-server could not connect to 10.0.0.5:22"), "{output:?}");
    assert!(output.stderr.contains("do: see whether sshd runs"), "{output:?}");
    assert!(!touched(&fake).exists());
    // Unknown VM, wrong token, no server.
    let fake = Fake::start();
    fake.script.refuse("POST /vms/shup/quiesce", Problem::new(404, "unknown-vm", "there is no VM \"shup\""));
    let command = touched(&fake);
    let command = ["--", "touch", command.to_str().unwrap()];
    assert_eq!(run(&fake, &[&["quiesce", "shup"], &command[..]].concat()).code, 125);
    assert_eq!(run(&fake, &[&["quiesce", "shop", "--token-file", "/none"], &command[..]].concat()).code, 125);
    assert_eq!(run(&fake, &[&["quiesce", "shop", "--server", "127.0.0.1:1"], &command[..]].concat()).code, 125);
    assert!(!touched(&fake).exists());
}

#[test]
fn a_command_that_cannot_start_thaws_the_guest_at_once() {
    for (program, code) in [("/does/not/exist", 127), ("/etc/passwd", 126)] {
        let fake = holding();
        let output = run(&fake, &["quiesce", "shop", "--", program]);
        assert_eq!(output.code, code, "{output:?}");
        let end = &fake.script.requests_of("POST /sessions/12/end")[0];
        assert_eq!(end.body["succeeded"], false);
    }
}

#[test]
fn a_signal_reaches_the_command_and_the_guest_thaws_at_once() {
    for name in ["INT", "TERM"] {
        let fake = holding();
        // The command takes its time to obey; the guest does not wait for it.
        let script = "trap 'sleep 1; exit 5' INT TERM; echo go; while :; do sleep 0.1; done";
        let child = start(&fake, &["quiesce", "shop", "--", "sh", "-c", script]);
        fake.script.wait_for("POST /sessions/12/renew", 1);
        std::thread::sleep(Duration::from_millis(300));
        let sent = Instant::now();
        signal(child.id(), name);
        let end = fake.script.wait_for("POST /sessions/12/end", 1)[0].clone();
        assert!(end.at - sent < Duration::from_millis(800), "{name}: {:?}", end.at - sent);
        assert_eq!(end.body["succeeded"], false);
        let output: Outcome = child.wait_with_output().unwrap().into();
        assert_eq!(output.code, 124, "{name}: what the command took is not quiet: {output:?}");
        assert!(output.stderr.contains("COMMAND: exit code 5"), "{name}: {output:?}");
        let after = fake.script.requests_of("POST /sessions/12/renew").into_iter().filter(|r| r.at > end.at).count();
        assert_eq!(after, 0, "{name}: nothing is renewed after the end");
    }
}

#[test]
fn ctrl_c_before_the_quiet_moment_cancels_and_runs_nothing() {
    let fake = holding();
    fake.script.on("POST /vms/shop/quiesce", |script| script.emit(vec![step_started("connect")]));
    fake.script.answer("POST /sessions/12/cancel", &running("quiesce"));
    fake.script.on("POST /sessions/12/cancel", |script| {
        script.emit(vec![ready(), task_finished("cancelled"), session_finished("cancelled")]);
    });
    fake.script.answer("GET /sessions/12", &finished("quiesce", "cancelled"));
    let file = fake.folder().join("touched");
    let child = start(&fake, &["quiesce", "shop", "--", "touch", file.to_str().unwrap()]);
    fake.script.wait_for("GET /sessions/12/events", 1);
    std::thread::sleep(Duration::from_millis(200));
    signal(child.id(), "INT");
    let output: Outcome = child.wait_with_output().unwrap().into();
    assert_eq!(output.code, 125, "{output:?}");
    assert!(output.stderr.contains("the session ended: cancelled"), "{output:?}");
    assert!(!file.exists());
}
