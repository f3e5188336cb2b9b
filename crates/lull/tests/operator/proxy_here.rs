//! This machine as a proxy, as far as that goes without a backup server: what is refused at once, and in which words.

use crate::run::{Outcome, bare};
use lull_proxy::membership::{NewKey, save};
use std::path::Path;
use std::process::Command;

fn proxy(state_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = bare();
    command.arg("--state-dir").arg(state_dir).arg("proxy").args(arguments);
    command
}

fn outcome(command: &mut Command) -> Outcome {
    command.output().unwrap().into()
}

#[test]
fn a_proxy_whose_port_for_metrics_is_taken_ends_with_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let identity = NewKey::make().unwrap().certified("id", "p1", "127.0.0.1:1", b"cert", b"ca");
    save(folder.path(), &identity, false).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = outcome(&mut proxy(folder.path(), &["run", "--metrics-listen", &address]));
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains(&format!("metrics cannot be served on {address}")), "{ended:?}");
    assert!(ended.stderr.contains("--metrics-listen") && !ended.stderr.contains("started again"), "{ended:?}");
}

#[test]
fn what_is_no_address_of_a_backup_server_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for address in ["http://127.0.0.1:17420", "", ":7421", "backup.example:port"] {
        let ended = outcome(&mut proxy(folder.path(), &["join", address, "--token", "lull1-00"]));
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(ended.stderr.contains("HOST or HOST:PORT"), "{ended:?}");
    }
}

#[test]
fn the_administrator_s_token_is_no_join_token() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("admin-token");
    std::fs::write(&file, "0123456789abcdef\n").unwrap();
    // Its variable does not count here: the join token is asked for.
    let asked = outcome(proxy(folder.path(), &["join", "127.0.0.1:1"]).env("LULL_TOKEN_FILE", &file));
    assert_eq!(asked.code, 2, "{asked:?}");
    assert!(asked.stderr.contains("the join token is missing") && asked.stderr.contains("--token-file"), "{asked:?}");
    let given = outcome(proxy(folder.path(), &["join", "127.0.0.1:1", "--token-file"]).arg(&file));
    assert_eq!(given.code, 2, "{given:?}");
    let named = format!("{} holds no join token", file.display());
    assert!(given.stderr.contains(&named) && given.stderr.contains("lull proxy token"), "{given:?}");
    let help = outcome(&mut proxy(folder.path(), &["join", "--help"]));
    assert!(help.stdout.contains("Read the token from this file") && !help.stdout.contains("admin-token"), "{help:?}");
}
