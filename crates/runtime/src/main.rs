//! `lull-runtime`: the command line, nothing else.

use lull_guest_wire::Superblock;
use lull_runtime::{guest_lock, kernel, serve};
use std::os::fd::AsFd;
use std::process::ExitCode;

const USAGE: &str = "usage:
  lull-runtime serve [--never-freeze MAJOR:MINOR]...   serve a proxy on standard input and output
  lull-runtime thaw MOUNTPOINT...                      thaw these file systems (not frozen is fine)
  lull-runtime version";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["version"] => {
            println!("lull-runtime {} (protocol {})", env!("CARGO_PKG_VERSION"), lull_guest_wire::PROTOCOL_VERSION);
            ExitCode::SUCCESS
        }
        ["thaw", first, rest @ ..] => thaw(first, rest),
        ["serve", options @ ..] => match serve_options(options) {
            Some(options) => serve::run(options),
            None => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn serve_options(mut arguments: &[&str]) -> Option<serve::Options> {
    let mut never_freeze = Vec::new();
    while let ["--never-freeze", superblock, rest @ ..] = arguments {
        let (major, minor) = superblock.split_once(':')?;
        never_freeze.push(Superblock { major: major.parse().ok()?, minor: minor.parse().ok()? });
        arguments = rest;
    }
    arguments.is_empty().then(|| serve::Options { never_freeze, lock_folder: guest_lock::LOCK_FOLDER.into() })
}

/// The last rung of the ladder: works without the component that froze, and without util-linux.
fn thaw(first: &str, rest: &[&str]) -> ExitCode {
    let mut failed = false;
    for mount_point in std::iter::once(&first).chain(rest) {
        let result = std::fs::File::open(mount_point).map_err(|e| e.to_string()).and_then(|place| {
            match kernel::thaw(place.as_fd()) {
                Ok(()) => Ok("thawed"),
                Err(libc::EINVAL) => Ok("was not frozen"),
                Err(errno) => Err(kernel::describe(errno)),
            }
        });
        match result {
            Ok(what) => println!("{mount_point}: {what}"),
            Err(e) => {
                failed = true;
                eprintln!("{mount_point}: cannot thaw: {e}");
            }
        }
    }
    // A component and watchdog that were killed together leave the lock's folder; held by nobody, it can go.
    if let Ok(lock) = guest_lock::GuestLock::take(guest_lock::LOCK_FOLDER.as_ref()) {
        let _ = lock.release();
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
