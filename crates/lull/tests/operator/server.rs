//! `lull server` as an operator starts and stops it; the commands talk to it, not to a fake.

use crate::run::{Outcome, bare, document};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A server on a free port with a state folder of its own, and the line that it printed when it was ready.
fn start(state_dir: &Path, flags: &[&str]) -> (Child, String) {
    let mut command = bare();
    command
        .args(["server", "--listen", "127.0.0.1:0", "--proxy-listen", "127.0.0.1:0", "--state-dir"])
        .arg(state_dir)
        .args(flags);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

fn stop(mut child: Child, signal: &str) -> i32 {
    assert!(Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap().success());
    child.wait().unwrap().code().unwrap_or(-1)
}

#[test]
fn it_says_when_it_is_ready_answers_and_ends_at_a_signal() {
    for signal in ["TERM", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("state");
        let (server, line) = start(&state_dir, &["--json"]);
        let url = document(&line)["url"].as_str().unwrap().to_string();
        let mut list = bare();
        list.args(["proxy", "list", "--json", "--server", &url, "--state-dir"]).arg(&state_dir);
        let listed: Outcome = list.output().unwrap().into();
        assert_eq!(listed.code, 0, "{listed:?}");
        assert_eq!(document(&listed.stdout)[0]["is_backup_server"], true, "the embedded proxy");
        assert_eq!(stop(server, signal), 0, "{signal}");
    }
}

#[test]
fn the_ready_line_is_for_people_too() {
    let folder = tempfile::tempdir().unwrap();
    let (server, line) = start(folder.path(), &[]);
    let token_file = folder.path().join("admin-token");
    assert!(line.starts_with("lull server is ready on http://127.0.0.1:"), "{line}");
    assert!(line.ends_with(&format!(", token in {}\n", token_file.display())), "{line}");
    assert_eq!(stop(server, "TERM"), 0);
}

#[test]
fn an_address_that_others_reach_is_refused_and_so_is_a_taken_port() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for (listen, why) in [("0.0.0.0:0".to_string(), "needs TLS"), (taken.local_addr().unwrap().to_string(), "in use")] {
        let mut command = bare();
        let outcome: Outcome = command
            .args(["server", "--listen", &listen, "--proxy-listen", "none", "--state-dir"])
            .arg(folder.path())
            .output()
            .unwrap()
            .into();
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(outcome.stderr.contains(why), "{outcome:?}");
        assert_eq!(outcome.stdout, "");
    }
}

#[test]
fn a_taken_port_is_named_with_whom_it_was_for() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (option, whose) in [
        ("--listen", "the REST interface cannot listen on"),
        ("--metrics-listen", "metrics cannot be served on"),
        ("--proxy-listen", "proxies cannot be listened for on"),
    ] {
        let mut command = bare();
        command.arg("server").arg("--state-dir").arg(folder.path());
        for other in ["--listen", "--proxy-listen"].iter().filter(|other| **other != option) {
            command.args([other, "127.0.0.1:0"]);
        }
        let outcome: Outcome = command.args([option, &address]).output().unwrap().into();
        assert_eq!(outcome.code, 1, "{outcome:?}");
        let text = format!("{whose} {address}");
        assert!(outcome.stderr.contains(&text) && outcome.stderr.contains(option), "{text}: {outcome:?}");
        assert!(!outcome.stderr.contains("  do without"), "{outcome:?}");
    }
}
