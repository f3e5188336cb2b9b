//! Watching a session: lines, JSON lines, a live tree; a stream that is cut; Ctrl-C.

use crate::fake::Fake;
use crate::run::{Outcome, document, lull, run};
use crate::samples::*;
use lull_api::session::{EventKind, Session};
use std::process::{Command, Stdio};
use std::time::Duration;

fn whole_session() -> Vec<lull_api::session::SessionEvent> {
    vec![
        event(EventKind::SessionStarted),
        event(EventKind::ProxyChosen { explanation: explanation() }),
        step_started("connect"),
        step_ended("connect"),
        step_started("freeze"),
        step_ended("freeze"),
        event(EventKind::Thawed { window_us: 3_400, no_gap: true }),
        task_finished("success"),
        session_finished("success"),
    ]
}

/// A job that runs, whose events come at once.
fn fake_run() -> Fake {
    let fake = Fake::start();
    fake.script.answer_with("POST /jobs/nightly/run", 202, &running("backup"));
    fake.script.answer("GET /sessions/12", &finished("backup", "success"));
    fake.script.emit(whole_session());
    fake
}

#[test]
fn without_a_terminal_every_event_is_a_line() {
    let output = run(&fake_run(), &["job", "run", "nightly"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(
        output.stdout,
        "\
11:59:58.000  shop  session started
11:59:58.000  shop  proxy: backup-server (tier 4): the only proxy that is online
11:59:58.000  shop  connect …
11:59:58.000  shop  connect: ok, 2.1 ms, well
11:59:58.000  shop  freeze …
11:59:58.000  shop  freeze: ok, 2.1 ms, well
11:59:58.000  shop  thawed: frozen without a gap for 3.4 ms
11:59:58.000  shop  task success, level application
shop  success  level application  freeze window 3.4 ms
  receipt: nothing left in guest and hypervisor
11:59:58.000  session success
Session 12  backup of job nightly  success  2026-03-01 11:59:46, 14.2 s
"
    );
}

#[test]
fn json_is_one_document_and_with_follow_a_line_per_event() {
    let output = run(&fake_run(), &["job", "run", "nightly", "--json"]);
    assert_eq!(output.stderr, "");
    let session: Session = serde_json::from_value(document(&output.stdout)).unwrap();
    assert_eq!(session, finished("backup", "success"));
    for args in [&["job", "run", "nightly", "--follow", "--json"][..], &["session", "follow", "12", "--json"]] {
        let output = run(&fake_run(), args);
        let lines: Vec<serde_json::Value> =
            output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let numbers: Vec<u64> = lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (1..=9).collect::<Vec<_>>());
        assert!(lines.iter().all(|line| line["session"] == 12));
        assert_eq!(lines[8]["event"]["type"], "session-finished");
    }
}

#[test]
fn a_cut_stream_is_resumed_and_no_event_is_lost_or_doubled() {
    let fake = fake_run();
    fake.script.cut_after(3).cut_after(3).cut_after(7);
    let output = run(&fake, &["job", "run", "nightly", "--follow", "--json"]);
    assert_eq!(output.code, 0, "{output:?}");
    let numbers: Vec<u64> = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (1..=9).collect::<Vec<_>>());
    let opened: Vec<String> =
        fake.script.requests_of("GET /sessions/12/events").into_iter().map(|request| request.call).collect();
    let from = |after: u64| format!("GET /sessions/12/events?after={after}");
    assert_eq!(opened, [from(0), from(3), from(3), from(7)]);
}

#[test]
fn detached_runs_are_only_named() {
    let fake = fake_run();
    let output = run(&fake, &["job", "run", "nightly", "--detach"]);
    assert_eq!(output.code, 0);
    assert!(output.stdout.contains("`lull session follow 12` shows it."), "{output:?}");
    let output = run(&fake, &["job", "run", "nightly", "--detach", "--json"]);
    assert_eq!(document(&output.stdout)["id"], 12);
    assert!(fake.script.requests_of("GET").is_empty(), "nothing was waited for");
}

#[test]
fn tests_and_rehearsals_are_watched_like_jobs() {
    let fake = fake_run();
    fake.script.answer_with("POST /vms/shop/test", 202, &running("test"));
    fake.script.answer_with("POST /vms/shop/rehearse", 202, &running("rehearse"));
    assert!(run(&fake, &["vm", "test", "shop"]).stdout.contains("connect: ok"));
    assert!(run(&fake, &["vm", "rehearse", "shop", "--lease", "2s"]).stdout.contains("thawed"));
    let request = &fake.script.requests_of("POST /vms/shop/rehearse")[0];
    assert_eq!(request.body, serde_json::json!({"guest": {"lease_ms": 2000}}));
}

#[test]
fn ctrl_c_stops_watching_and_the_session_goes_on() {
    let fake = Fake::start();
    fake.script.answer_with("POST /jobs/nightly/run", 202, &running("backup"));
    fake.script.emit(whole_session()[..3].to_vec());
    let child =
        lull(&fake).args(["job", "run", "nightly"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fake.script.wait_for("GET /sessions/12/events", 1);
    std::thread::sleep(Duration::from_millis(300));
    signal(child.id(), "INT");
    let output: Outcome = child.wait_with_output().unwrap().into();
    assert_eq!(output.code, 130, "{output:?}");
    assert!(output.stderr.contains("Session 12 goes on"), "{output:?}");
    assert!(output.stdout.contains("connect …"), "{output:?}");
    assert!(fake.script.requests_of("POST /sessions").is_empty(), "nothing was cancelled");
}

#[test]
fn on_a_terminal_the_tree_grows_and_stays() {
    let fake = Fake::start();
    fake.script.answer_with("POST /jobs/nightly/run", 202, &running("backup"));
    fake.script.answer("GET /sessions/12", &finished("backup", "success"));
    fake.script.emit(vec![step_started("connect"), step_ended("connect"), step_started("copy")]);
    let mut command = Command::new("script");
    // The first tells the terminal's size, which decides how lines are wrapped.
    let line = format!("stty rows 40 cols 100; {} job run nightly", env!("CARGO_BIN_EXE_lull"));
    command.args(["-qec", &line, "/dev/null"]).env("LULL_SERVER", &fake.url).env("LULL_TOKEN_FILE", &fake.token_file);
    command.env("TERM", "xterm").env("TZ", "UTC").env_remove("NO_COLOR");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    fake.script.wait_for("GET /sessions/12/events", 1);
    std::thread::sleep(Duration::from_millis(400));
    fake.script.emit(vec![event(EventKind::Progress {
        step: "copy".into(),
        done_bytes: 1 << 20,
        total_bytes: 4 << 20,
    })]);
    std::thread::sleep(Duration::from_millis(400));
    fake.script.emit(vec![step_ended("copy"), task_finished("success"), session_finished("success")]);
    let output: Outcome = child.wait_with_output().unwrap().into();
    assert_eq!(output.code, 0, "{output:?}");
    let plain = without_colours(&output.stdout);
    assert!(plain.contains("1.00 MiB of 4.00 MiB"), "a bar with its bytes: {plain}");
    assert!(output.stdout.contains("\x1b[32m✓"), "colours: {:?}", output.stdout);
    let last = plain.rfind("└─ shop  success").expect("the finished task's tree stays");
    assert!(plain[last..].contains("✓ freeze             2.1 ms  2 file systems"), "{plain}");
    assert!(plain[last..].contains("nothing left in guest and hypervisor"), "{plain}");
    assert!(plain[last..].contains("Session 12  backup of job nightly  success"), "{plain}");
}

/// Sends a signal to a process that this test started.
fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap().success());
}

fn without_colours(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\x1b') {
        plain.push_str(&rest[..at]);
        let end = rest[at + 1..].find(|c: char| c.is_ascii_alphabetic()).map_or(rest.len(), |end| at + 2 + end);
        rest = &rest[end..];
    }
    plain + rest
}
