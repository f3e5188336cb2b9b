//! A changed host key: both fingerprints are shown, a person decides, and nobody else can.

use crate::fake::Fake;
use crate::run::{Outcome, answer_on_a_terminal, run};
use crate::samples::{failure, finished, vm};
use lull_api::infrastructure::Vm;
use std::process::{Command, Stdio};

fn fingerprint(letter: &str) -> String {
    format!("SHA256:{}", letter.repeat(43))
}

/// A guest whose pinned key is `aaa…` and that shows `bbb…`.
fn changed() -> Fake {
    let fake = Fake::start();
    let mut test = finished("test", "failed");
    test.tasks[0].failure = Some(failure());
    let refused = Vm { refused_host_key: Some(fingerprint("b")), ..vm() };
    fake.script.answer("GET /vms/shop", &refused).answer("POST /vms/shop/test", &test);
    fake.script.answer("POST /vms/shop/accept-host-key", &vm());
    fake
}

/// Runs `vm accept-host-key shop` on a terminal of its own, and answers its question.
fn answer(fake: &Fake, answer: &str) -> Outcome {
    answer_on_a_terminal(fake, "vm accept-host-key shop", answer, ("POST /vms/shop/test", 1))
}

#[test]
fn a_person_sees_both_fingerprints_and_accepts() {
    let fake = changed();
    let outcome = answer(&fake, "yes");
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stdout.contains(&format!("pinned: {}", fingerprint("a"))), "{outcome:?}");
    assert!(outcome.stdout.contains(&format!("now:    {}", fingerprint("b"))), "{outcome:?}");
    let accepted = &fake.script.requests_of("POST /vms/shop/accept-host-key")[0];
    assert_eq!(accepted.body["fingerprint"], fingerprint("b"));
}

#[test]
fn anything_but_yes_accepts_nothing() {
    let fake = changed();
    let outcome = answer(&fake, "y");
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(fake.script.requests_of("POST /vms/shop/accept-host-key").is_empty());
}

#[test]
fn without_a_terminal_the_command_to_give_is_named() {
    let fake = changed();
    let mut command = Command::new("setsid");
    command.args(["--wait", env!("CARGO_BIN_EXE_lull"), "vm", "accept-host-key", "shop"]).stdin(Stdio::null());
    command.env("LULL_SERVER", &fake.url).env("LULL_TOKEN_FILE", &fake.token_file);
    let outcome: Outcome = command.output().unwrap().into();
    assert_eq!(outcome.code, 2, "{outcome:?}");
    let remedy = format!("lull vm accept-host-key shop --fingerprint {}", fingerprint("b"));
    assert!(outcome.stderr.contains(&remedy), "{outcome:?}");
    assert!(outcome.stderr.contains(&fingerprint("a")), "{outcome:?}");
    assert!(fake.script.requests_of("POST /vms/shop/accept-host-key").is_empty());
}

#[test]
fn a_guest_with_the_pinned_key_needs_no_acceptance() {
    let fake = changed();
    fake.script.answer("GET /vms/shop", &vm()).answer("POST /vms/shop/test", &finished("test", "success"));
    let outcome = run(&fake, &["vm", "accept-host-key", "shop"]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
    assert!(outcome.stderr.contains("did not show another host key"), "{outcome:?}");
}
