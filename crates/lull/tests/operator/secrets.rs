//! Secrets reach the server in a request's body, and nothing else: no argument, no output.

use crate::fake::Fake;
use crate::run::{Outcome, lull, run};
use crate::samples::credential;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

const SECRET: &str = "Sup3r-s3cret-passphrase";

/// Runs a command that takes long enough to be looked at, with the secret on its stdin; returns its arguments and
/// environment as the system shows them, its outcome, and what the server got.
fn add(flags: &[&str], files: &[(&str, &str)]) -> (String, Outcome, Value) {
    let fake = Fake::start();
    fake.script.answer_with("POST /credentials", 201, &credential());
    // Long enough to look at the process while it waits for the answer.
    fake.script.on("POST /credentials", |_| std::thread::sleep(Duration::from_millis(300)));
    for (name, content) in files {
        std::fs::write(fake.folder().join(name), content).unwrap();
    }
    let mut command: Command = lull(&fake);
    command.current_dir(fake.folder()).args(["credential", "add", "app", "--user", "backup"]).args(flags);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that needs no stdin may be gone before it is written.
    let _ = writeln!(child.stdin.take().unwrap(), "{SECRET}");
    fake.script.wait_for("POST /credentials", 1);
    let read =
        |what| String::from_utf8_lossy(&std::fs::read(format!("/proc/{}/{what}", child.id())).unwrap()).into_owned();
    let visible = read("cmdline") + &read("environ");
    let outcome = Outcome::from(child.wait_with_output().unwrap());
    let body = fake.script.requests()[0].body.clone();
    (visible, outcome, body)
}

fn check(flags: &[&str], files: &[(&str, &str)], expect: Value) {
    let (visible, outcome, body) = add(flags, files);
    assert!(visible.contains("credential"), "the process was looked at while it ran");
    assert!(!visible.contains(SECRET));
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(!outcome.stdout.contains(SECRET) && !outcome.stderr.contains(SECRET));
    let mut whole = json!({"name": "app", "user": "backup", "password": null, "private_key": null, "passphrase": null,
        "elevation": "none", "elevation_password": null});
    whole.as_object_mut().unwrap().extend(expect.as_object().unwrap().clone());
    assert_eq!(body, whole);
}

const PLAIN_KEY: &str = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n";
const LOCKED_KEY: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIE\n-----END ENCRYPTED PRIVATE KEY-----\n";

#[test]
fn a_password_comes_from_stdin_or_a_file() {
    check(&["--password-stdin", "--sudo"], &[], json!({"password": SECRET, "elevation": "sudo"}));
    check(&["--password-file", "p"], &[("p", &format!("{SECRET}\n"))], json!({"password": SECRET}));
}

#[test]
fn a_key_with_and_without_a_passphrase() {
    check(
        &["--key", "k", "--sudo-nopasswd"],
        &[("k", PLAIN_KEY)],
        json!({"private_key": PLAIN_KEY, "elevation": "sudo-nopasswd"}),
    );
    check(
        &["--key", "k", "--passphrase-stdin"],
        &[("k", LOCKED_KEY)],
        json!({"private_key": LOCKED_KEY, "passphrase": SECRET}),
    );
    check(
        &["--key", "k", "--su", "--elevation-password-stdin"],
        &[("k", PLAIN_KEY)],
        json!({"private_key": PLAIN_KEY, "elevation": "su", "elevation_password": SECRET}),
    );
}

#[test]
fn a_secret_as_an_argument_is_refused_with_the_reason() {
    let fake = Fake::start();
    for flag in ["--password", "--passphrase", "--elevation-password"] {
        for args in [vec![flag.to_string(), SECRET.into()], vec![format!("{flag}={SECRET}")]] {
            let mut command = lull(&fake);
            let outcome: Outcome =
                command.args(["credential", "add", "app", "--user", "u"]).args(&args).output().unwrap().into();
            assert_eq!(outcome.code, 2, "{outcome:?}");
            assert!(outcome.stderr.contains("every user of this machine can read"), "{outcome:?}");
            assert!(outcome.stderr.contains(&format!("{flag}-stdin")), "{outcome:?}");
            assert!(!outcome.stderr.contains(SECRET), "{outcome:?}");
        }
    }
    assert!(fake.script.requests().is_empty());
}

#[test]
fn what_is_missing_or_wrong_is_said_before_anything_is_sent() {
    let fake = Fake::start();
    let file = |name: &str, content: &str| {
        let path = fake.folder().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_string()
    };
    let (public, text, locked) = (file("a", "ssh-ed25519 AAAA x"), file("b", "hello"), file("c", LOCKED_KEY));
    for (flags, what) in [
        (vec!["--password-file", "/does/not/exist"], "could not be read from /does/not/exist"),
        (vec!["--key", &public], "holds a public key"),
        (vec!["--key", &text], "holds no private key"),
        (vec!["--password-stdin"], "is empty"),
        (
            vec!["--key", &locked, "--passphrase-stdin", "--elevation-password-stdin", "--su"],
            "only one secret can come from stdin",
        ),
    ] {
        let outcome = run(&fake, &[&["credential", "add", "app", "--user", "u"], &flags[..]].concat());
        assert!(outcome.code == 1 || outcome.code == 2, "{outcome:?}");
        assert!(outcome.stderr.contains(what), "{flags:?} {outcome:?}");
    }
    // Without a terminal there is nobody to ask.
    let mut command = Command::new("setsid");
    command.args(["--wait", env!("CARGO_BIN_EXE_lull"), "credential", "add", "app", "--user", "u"]);
    command.env("LULL_SERVER", &fake.url).env("LULL_TOKEN_FILE", &fake.token_file).stdin(Stdio::null());
    let outcome: Outcome = command.output().unwrap().into();
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("there is no terminal to ask on"), "{outcome:?}");
    assert!(fake.script.requests().is_empty());
}

#[test]
fn on_a_terminal_the_password_is_asked_for_without_echo() {
    let fake = Fake::start();
    fake.script.answer_with("POST /credentials", 201, &credential());
    // `script` gives the command a terminal and copies what appears on it to stdout.
    let mut command = Command::new("script");
    let line = format!("{} credential add app --user backup", env!("CARGO_BIN_EXE_lull"));
    command.args(["-qec", &line, "/dev/null"]).env("LULL_SERVER", &fake.url).env("LULL_TOKEN_FILE", &fake.token_file);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut keyboard = child.stdin.take().unwrap();
    // What is typed before the question is thrown away by it: type when it stands there.
    std::thread::sleep(Duration::from_millis(500));
    keyboard.write_all(format!("{SECRET}\n").as_bytes()).unwrap();
    fake.script.wait_for("POST /credentials", 1);
    drop(keyboard);
    let screen = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(screen.contains("Password of backup: "), "{screen}");
    assert!(!screen.contains(SECRET), "{screen}");
    assert_eq!(fake.script.requests()[0].body["password"], SECRET);
}
