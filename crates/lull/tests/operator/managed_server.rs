//! Adding a Linux server: nothing is sent to a machine before its host key was accepted, nothing changed before the list was.

use crate::fake::{Fake, Request};
use crate::run::{Outcome, answer_on_a_terminal, document, run};
use lull_api::Problem;
use lull_api::managed::{Machine, MachineCheck, MachineFinding, ManagedLine, ManagedServer, ShownHostKey};
use std::process::{Command, Stdio};
use uuid::Uuid;

const ADD: &str = "POST /managed-servers";
const CHECK: &str = "POST /managed-servers/check";
const HOST_KEY: &str = "POST /managed-servers/host-key";

fn key(letter: &str) -> String {
    format!("SHA256:{}", letter.repeat(43))
}

fn server() -> ManagedServer {
    ManagedServer {
        id: Uuid::nil(),
        name: "m1".into(),
        kind: "linux".into(),
        is_backup_server: false,
        state: "online".into(),
        licensed: true,
        problem: None,
        version: "0.1.0".into(),
        upgrade: false,
        networks: vec!["192.0.2.0/24".into()],
        channels: vec!["ssh".into()],
        slots: 4,
        hosts: vec!["here".into()],
        machine: Some(Machine {
            host: "192.0.2.7".into(),
            port: 22,
            host_key: key("a"),
            server_address: "192.0.2.1:7421".into(),
            slots: 0,
            service: true,
            run_instead: None,
        }),
    }
}

fn check(level: &str) -> MachineCheck {
    MachineCheck {
        hostname: "m1".into(),
        server_address: "192.0.2.1:7421".into(),
        findings: vec![MachineFinding {
            check: "space".into(),
            level: level.into(),
            what: "3 MB are free".into(),
            remedy: Some("make room there".into()),
        }],
        changes: vec!["put /usr/local/lib/lull/bin/lull".into()],
        passed: level != "error",
    }
}

/// A server that shows key `aaa…` and lets everything be done.
fn willing() -> Fake {
    let fake = Fake::start();
    fake.script
        .answer(HOST_KEY, &ShownHostKey { algorithm: "ssh-ed25519".into(), fingerprint: key("a") })
        .answer(CHECK, &check("ok"))
        .answer(ADD, &ManagedLine::Done { server: Some(Box::new(server())) });
    fake
}

/// What was asked to be added; a check is asked for below the same path.
fn added(fake: &Fake) -> Vec<Request> {
    fake.script.requests_of(ADD).into_iter().filter(|request| request.call == ADD).collect()
}

fn add(fake: &Fake, more: &[&str]) -> Outcome {
    let password = fake.folder().join("password");
    std::fs::write(&password, "s3cret\n").unwrap();
    let password = password.display().to_string();
    let mut arguments = vec!["managed-server", "add", "linux", "192.0.2.7", "--password-file", &password];
    arguments.extend(more);
    let mut command = Command::new("setsid");
    command.args(["--wait", env!("CARGO_BIN_EXE_lull")]).args(arguments).stdin(Stdio::null());
    command.env("LULL_SERVER", &fake.url).env("LULL_TOKEN_FILE", &fake.token_file);
    command.output().unwrap().into()
}

#[test]
fn a_machine_is_added_by_options_alone() {
    let fake = willing();
    let outcome = add(&fake, &["--host-key", &key("a"), "--yes", "--slots", "4", "--sudo"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stderr.contains("put /usr/local/lib/lull/bin/lull"), "{outcome:?}");
    assert!(outcome.stdout.contains("192.0.2.0/24") && outcome.stdout.contains("online"), "{outcome:?}");
    let sent = &added(&fake)[0].body;
    // Named as the machine calls itself.
    assert_eq!((&sent["name"], &sent["slots"], &sent["host_key"]), (&"m1".into(), &4.into(), &key("a").into()));
    assert_eq!((&sent["login"]["user"], &sent["login"]["password"]), (&"root".into(), &"s3cret".into()));
    assert_eq!(sent["login"]["elevation"], "sudo");
}

#[test]
fn without_a_terminal_the_option_to_give_is_named() {
    let fake = willing();
    let outcome = add(&fake, &["--yes"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains(&format!("--host-key {}", key("a"))), "{outcome:?}");
    assert!(fake.script.requests_of(CHECK).is_empty(), "nobody logs in");

    let outcome = add(&fake, &["--host-key", &key("a")]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("--yes"), "{outcome:?}");
    assert!(added(&fake).is_empty(), "nothing is changed");
}

#[test]
fn another_host_key_than_the_one_given_is_refused_before_anybody_logs_in() {
    let fake = willing();
    let outcome = add(&fake, &["--host-key", &key("b"), "--yes"]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
    assert!(outcome.stderr.contains(&key("a")) && outcome.stderr.contains(&key("b")), "{outcome:?}");
    assert!(fake.script.requests_of(CHECK).is_empty());
}

#[test]
fn a_person_who_does_not_accept_the_host_key_is_asked_nothing_more() {
    let fake = willing();
    let outcome = answer_on_a_terminal(&fake, "managed-server add linux 192.0.2.7", "no", (HOST_KEY, 1));
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stdout.contains(&key("a")), "{outcome:?}");
    assert!(fake.script.requests_of(CHECK).is_empty());
}

#[test]
fn what_stands_in_the_way_stops_it_with_what_to_do() {
    let fake = willing();
    fake.script.answer(CHECK, &check("error"));
    let outcome = add(&fake, &["--host-key", &key("a"), "--yes"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("3 MB are free") && outcome.stderr.contains("do: make room there"), "{outcome:?}");
    assert!(added(&fake).is_empty());
}

#[test]
fn an_installation_that_fails_says_so() {
    let fake = willing();
    let problem = Problem::new(409, "machine", "it went wrong; everything was undone").remedy("mend it");
    fake.script.answer(ADD, &ManagedLine::Failed(problem));
    let outcome = add(&fake, &["--host-key", &key("a"), "--yes"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("everything was undone") && outcome.stderr.contains("do: mend it"), "{outcome:?}");
}

#[test]
fn windows_is_refused_in_clear_words() {
    let fake = willing();
    let outcome = run(&fake, &["managed-server", "add", "windows", "w1"]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
    assert!(outcome.stderr.contains("comes with the support of Windows"), "{outcome:?}");
    assert!(fake.script.requests().is_empty());
}

#[test]
fn the_list_has_both_kinds_and_an_old_machine_s_new_key_is_asked_for_only_where_it_moved() {
    let fake = willing();
    let windows = ManagedServer { name: "w1".into(), kind: "windows".into(), machine: None, ..server() };
    fake.script.answer("GET /managed-servers", &[server(), windows]).answer("GET /managed-servers/m1", &server());
    let list = run(&fake, &["managed-server", "list"]).stdout;
    assert!(list.contains("linux") && list.contains("windows") && list.contains("192.0.2.7"), "{list}");

    fake.script.answer("POST /managed-servers/m1/upgrade", &ManagedLine::Done { server: Some(Box::new(server())) });
    let identity = fake.folder().join("id");
    std::fs::write(&identity, "-----BEGIN PRIVATE KEY-----\nx\n").unwrap();
    let identity = identity.display().to_string();
    let upgraded = run(&fake, &["managed-server", "upgrade", "m1", "--key", &identity, "--yes"]);
    assert_eq!(upgraded.code, 0, "{upgraded:?}");
    assert!(fake.script.requests_of(HOST_KEY).is_empty(), "the server asks for the key that was accepted");
}

fn work(fake: &Fake, arguments: &[&str]) -> Outcome {
    let identity = fake.folder().join("id");
    std::fs::write(&identity, "-----BEGIN PRIVATE KEY-----\nx\n").unwrap();
    let mut command = Command::new("setsid");
    command.args(["--wait", env!("CARGO_BIN_EXE_lull"), "managed-server"]).args(arguments);
    command.arg("--key").arg(identity).stdin(Stdio::null());
    command.env("LULL_SERVER", &fake.url).env("LULL_TOKEN_FILE", &fake.token_file);
    command.output().unwrap().into()
}

fn without_systemd() -> ManagedServer {
    let mut server = server();
    let machine = server.machine.as_mut().unwrap();
    (machine.service, machine.run_instead) = (false, Some("/usr/local/lib/lull/bin/lull proxy run --slots 3".into()));
    server
}

#[test]
fn what_would_be_changed_is_listed_before_anybody_has_to_accept_it() {
    let fake = willing();
    fake.script.answer("GET /managed-servers/m1", &server());
    let upgrade = work(&fake, &["upgrade", "m1"]);
    assert_eq!(upgrade.code, 2, "{upgrade:?}");
    for line in ["This will be changed there", "/usr/local/lib/lull/bin/lull", "lull-proxy.service", "read the list"] {
        assert!(upgrade.stderr.contains(line), "{line}: {upgrade:?}");
    }
    let remove = work(&fake, &["remove", "m1"]);
    assert!(remove.stderr.contains("the service lull-proxy.service, stopped and disabled"), "{remove:?}");
    fake.script.answer("GET /managed-servers/m1", &without_systemd());
    let remove = work(&fake, &["remove", "m1"]);
    assert!(remove.stderr.contains("the running proxy, which is ended"), "{remove:?}");
    assert!(!remove.stderr.contains("lull-proxy.service"), "there is none: {remove:?}");
    let changed = |request: &Request| request.call.ends_with("/upgrade") || request.call.ends_with("/remove");
    assert!(!fake.script.requests().iter().any(changed), "nothing is changed");
}

#[test]
fn as_json_the_check_and_the_plan_are_had_before_anything_is_changed() {
    let fake = willing();
    let outcome = add(&fake, &["--host-key", &key("a"), "--json"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    let plan = document(&outcome.stdout);
    assert_eq!(plan["changes"], serde_json::json!(["put /usr/local/lib/lull/bin/lull"]));
    assert_eq!(plan["findings"][0]["what"], "3 MB are free");
    assert!(document(&outcome.stderr)["remedy"].as_str().unwrap().contains("--yes"), "{outcome:?}");
    assert!(added(&fake).is_empty(), "nothing is changed");

    fake.script.answer("GET /managed-servers/m1", &server());
    for doing in ["upgrade", "remove"] {
        let outcome = work(&fake, &[doing, "m1", "--json"]);
        assert_eq!(outcome.code, 2, "{outcome:?}");
        let plan = document(&outcome.stdout);
        assert!(plan["changes"][0].is_string() && plan["changes"].as_array().unwrap().len() == 3, "{plan}");
    }
    fake.script.answer(CHECK, &check("error"));
    let outcome = add(&fake, &["--host-key", &key("a"), "--yes", "--json"]);
    assert_eq!((outcome.code, document(&outcome.stdout)["passed"].as_bool()), (1, Some(false)), "{outcome:?}");
}

#[test]
fn what_is_left_to_do_by_hand_is_in_the_json_too() {
    let fake = willing();
    let by_hand = "end the proxy there and start it again: /usr/local/lib/lull/bin/lull proxy run --slots 3";
    let told = [
        ManagedLine::Step { step: "service".into(), outcome: "warning".into(), detail: by_hand.into() },
        ManagedLine::Done { server: Some(Box::new(without_systemd())) },
    ];
    fake.script.answer("GET /managed-servers/m1", &without_systemd());
    fake.script.answer_lines("POST /managed-servers/m1/upgrade", &told);
    let outcome = work(&fake, &["upgrade", "m1", "--yes", "--json"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let done = document(&outcome.stdout);
    assert_eq!((done["name"].as_str(), done["warnings"][0].as_str()), (Some("m1"), Some(by_hand)));
}

#[test]
fn what_a_removal_or_an_upgrade_does_not_use_is_refused() {
    let fake = willing();
    for doing in ["upgrade", "remove"] {
        for ignored in [["--slots", "3"], ["--server-address", "b:1"]] {
            let outcome = work(&fake, &[doing, "m1", ignored[0], ignored[1], "--yes"]);
            assert_eq!(outcome.code, 2, "{outcome:?}");
        }
    }
    assert!(fake.script.requests().is_empty());
}

#[test]
fn a_server_that_the_licence_does_not_admit_is_listed_as_not_licensed() {
    let fake = willing();
    fake.script.answer("GET /managed-servers", &[ManagedServer { licensed: false, ..server() }]);
    let list = run(&fake, &["managed-server", "list"]).stdout;
    assert!(list.contains("online, not licensed"), "{list}");
}
