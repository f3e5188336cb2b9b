//! What goes wrong, and what is said: three lines or one document on stderr, the right exit code, nothing on stdout.

use crate::fake::Fake;
use crate::run::{Outcome, bare, document, lull, run};
use crate::samples::{finished, vm};
use lull_api::Problem;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

#[test]
fn an_unknown_vm_ends_with_3_and_says_what_exists() {
    let fake = Fake::start();
    let problem = Problem::new(404, "unknown-vm", "there is no VM \"shup\"")
        .why("the hosts have shop and web1")
        .remedy("`lull vm list` shows them all");
    fake.script.refuse("GET /vms/shup", problem.clone());
    let Outcome { code, stdout, stderr } = run(&fake, &["vm", "show", "shup"]);
    assert_eq!((code, stdout.as_str()), (3, ""));
    assert_eq!(
        stderr,
        "lull: there is no VM \"shup\"\n   why: the hosts have shop and web1\n    do: `lull vm list` shows them all\n"
    );
    let Outcome { code, stdout, stderr } = run(&fake, &["vm", "show", "shup", "--json"]);
    assert_eq!((code, stdout.as_str()), (3, ""));
    assert_eq!(serde_json::from_value::<Problem>(document(&stderr)).unwrap(), problem);
}

#[test]
fn no_server_ends_with_4_and_names_the_address() {
    let fake = Fake::start();
    // A port that was free a moment ago; nobody listens on it.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output: Outcome =
        lull(&fake).args(["vm", "list", "--server", &format!("http://{free}")]).output().unwrap().into();
    assert_eq!(output.code, 4, "{output:?}");
    assert!(output.stderr.contains(&format!("no answer from the backup server at http://{free}")), "{output:?}");
    assert!(output.stderr.contains("onnection refused"), "{output:?}");
    assert!(output.stderr.contains("`lull server`"), "{output:?}");
    assert_eq!(output.stderr.lines().count(), 3, "{output:?}");
}

#[test]
fn a_wrong_or_missing_token_ends_with_5() {
    let fake = Fake::start();
    let wrong = fake.folder().join("wrong");
    std::fs::write(&wrong, "another\n").unwrap();
    let output: Outcome = lull(&fake).args(["vm", "list", "--token-file"]).arg(&wrong).output().unwrap().into();
    assert_eq!(output.code, 5, "{output:?}");
    let output: Outcome =
        lull(&fake).args(["vm", "list", "--token-file"]).arg(fake.folder().join("none")).output().unwrap().into();
    assert_eq!(output.code, 5, "{output:?}");
    assert!(output.stderr.contains("there is no such file"), "{output:?}");
    assert_eq!(fake.script.requests().len(), 1, "without a token nothing is sent");
}

#[test]
fn the_token_is_found_in_the_state_folder() {
    let fake = Fake::start();
    fake.script.answer("GET /vms", &[vm()]);
    let mut command = bare();
    command.env("LULL_SERVER", &fake.url).args(["vm", "list", "--state-dir"]).arg(fake.folder());
    let output: Outcome = command.output().unwrap().into();
    assert_eq!(output.code, 0, "{output:?}");
}

#[test]
fn a_wrong_command_line_ends_with_2_and_asks_nothing() {
    let fake = Fake::start();
    for args in [
        &["nonsense"][..],
        &["vm"],
        &["vm", "set", "shop"],
        &["vm", "set", "shop", "--address", "10.0.0.256"],
        &["vm", "set", "shop", "--connect", "shop"],
        &["vm", "accept-host-key", "shop", "--fingerprint", "MD5:aa"],
        &["job", "create", "nightly"],
        &["job", "create", "nightly", "--vm", "shop", "--repository", "local", "--lease", "5"],
        &["job", "edit", "nightly"],
        &["job", "run", "nightly", "--follow", "--detach"],
        &["session", "show", "0"],
        &["session", "show", "twelve"],
        &["session", "list", "--limit", "100000"],
        &["credential", "set", "app"],
        &["quiesce", "shop"],
        &["quiesce", "shop", "--application-aware", "disabled", "--", "true"],
        &["quiesce", "shop", "--no-pre-freeze-script", "--", "true"],
        &["vm", "list", "--server", "ftp://backup"],
    ] {
        let output = run(&fake, args);
        assert_eq!(output.code, 2, "{args:?} {output:?}");
        assert_eq!(output.stdout, "", "{args:?}");
    }
    assert!(fake.script.requests().is_empty());
}

#[test]
fn a_wrong_command_line_is_told_as_every_error() {
    let fake = Fake::start();
    // Arguments, what, remedy.
    for (args, what, remedy) in [
        (&["job", "craete", "x"][..], "unrecognized subcommand 'craete'", "lull job"),
        (&["vm", "list", "--nonsense"], "unexpected argument '--nonsense'", "lull vm list"),
        (&["vm", "show"], "<VM>", "lull vm show"),
        (&["job", "create", "nightly"], "--repository", "lull job create"),
        (&["session", "show", "twelve"], "'twelve'", "lull help"),
        (&["job"], "requires a subcommand", "lull job"),
    ] {
        let output = run(&fake, &[args, &["--json"]].concat());
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{args:?} {output:?}");
        let problem = document(&output.stderr);
        assert_eq!((&problem["status"], &problem["code"]), (&0.into(), &"usage".into()), "{problem}");
        assert!(problem["what"].as_str().unwrap().contains(what), "{problem}");
        assert!(problem["remedy"].as_str().unwrap().contains(remedy), "{problem}");
        let output = run(&fake, args);
        assert!(output.stderr.starts_with("lull: ") && output.stderr.contains("    do: "), "{output:?}");
        assert!(output.stderr.lines().count() <= 3, "{output:?}");
    }
    // What follows `--` is not ours.
    let output = run(&fake, &["quiesce", "shop", "--nonsense", "--", "backup", "--json"]);
    assert!(output.stderr.starts_with("lull: "), "{output:?}");
    for answered in [&["--help"][..], &["--version"], &["job", "--help", "--json"]] {
        let output = run(&fake, answered);
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{answered:?} {output:?}");
    }
}

#[test]
fn a_server_that_fails_or_raves_ends_with_8() {
    let fake = Fake::start();
    fake.script.refuse("GET /vms", Problem::new(500, "internal", "the store does not answer"));
    assert_eq!(run(&fake, &["vm", "list"]).code, 8);
    fake.script.answer("GET /vms", &"not a list");
    let output = run(&fake, &["vm", "list"]);
    assert_eq!(output.code, 8);
    assert!(output.stderr.contains("was not understood"), "{output:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let fake = Fake::start();
    fake.script.answer("GET /vms", &vec![vm(); 5_000]);
    let mut child = lull(&fake).args(["vm", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let output: Outcome = child.wait_with_output().unwrap().into();
    assert_eq!((output.code, output.stderr.as_str()), (141, ""));
}

#[test]
fn the_exit_codes_are_told_by_the_program() {
    let fake = Fake::start();
    let document = include_str!("../../../../docs/exit-codes.md");
    let output = run(&fake, &["exit-codes", "--json"]);
    let codes: Vec<serde_json::Value> = serde_json::from_str(&output.stdout).unwrap();
    assert!(codes.len() > 10);
    for row in codes {
        let line = format!("| {} | {} |", row["code"], row["meaning"].as_str().unwrap());
        assert!(document.contains(&line), "{line}");
    }
    assert!(run(&fake, &["help", "exit-codes"]).stdout.contains("124  quiesce:"));
}

#[test]
fn the_result_of_a_session_is_the_exit_code() {
    for (result, code) in [("success", 0), ("warning", 6), ("failed", 1), ("cancelled", 7)] {
        let fake = Fake::start();
        fake.script.answer("POST /jobs/nightly/run", &finished("backup", result));
        fake.script.answer("GET /sessions/12", &finished("backup", result));
        fake.script.emit(vec![crate::samples::session_finished(result)]);
        assert_eq!(run(&fake, &["job", "run", "nightly", "--json"]).code, code, "{result}");
        assert_eq!(run(&fake, &["job", "run", "nightly"]).code, code, "{result}");
    }
}
