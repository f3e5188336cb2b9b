//! Finds the processes that run PostgreSQL's server program and were not started by another one: postmasters, stand-alone backends and
//! orphans of a dead postmaster. Reads `/proc` only; which of them is a cluster is decided elsewhere.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::small_file;

/// Names of the server program: upstream, its old link name, the EDB edition, and the Nix wrapper.
const PROGRAM_NAMES: [&str; 4] = ["postgres", "postmaster", "edb-postgres", ".postgres-wrapped"];
const STATUS_BYTES_MAX: u64 = 64 * 1024;

/// A process that runs the server program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerProcess {
    pub(super) pid: u32,
    pub(super) parent_pid: u32,
    /// Its pid as it sees itself: differs from `pid` in a pid namespace of its own.
    pub(super) own_pid: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// What a walk over `/proc` gave.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Without a parent that runs the server program, by pid.
    pub(super) roots: Vec<ServerProcess>,
    /// Processes of which it could not be seen what they run.
    pub(super) unreadable: u32,
}

/// Walks `/proc` (at `proc_root`). A process that ends meanwhile is left out.
///
/// Errors: `proc_root` itself cannot be read.
pub(super) fn find(proc_root: &Path) -> io::Result<Found> {
    let mut servers = HashMap::new();
    let mut unreadable = 0;
    for entry in std::fs::read_dir(proc_root)? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        match server_process(&entry.path(), pid) {
            Ok(Some(server)) => {
                servers.insert(pid, server);
            }
            // Gone, a zombie, or a kernel thread: they have no program.
            Ok(None) => {}
            Err(_) => unreadable += 1,
        }
    }
    let mut roots: Vec<_> = servers.values().filter(|one| !servers.contains_key(&one.parent_pid)).cloned().collect();
    roots.sort_by_key(|one| one.pid);
    Ok(Found { roots, unreadable })
}

fn server_process(dir: &Path, pid: u32) -> io::Result<Option<ServerProcess>> {
    let gone = |error: &io::Error| {
        error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
    };
    let program = match std::fs::read_link(dir.join("exe")) {
        Ok(program) => program,
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !is_server_program(&program) {
        return Ok(None);
    }
    let status = match small_file::read(&dir.join("status"), STATUS_BYTES_MAX) {
        Ok(status) => status,
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    parse_status(pid, &status).map(Some).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// After an upgrade of the package the kernel adds " (deleted)" to the program of a server that still runs the old one.
fn is_server_program(program: &Path) -> bool {
    let Some(name) = program.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    PROGRAM_NAMES.contains(&name.strip_suffix(" (deleted)").unwrap_or(name))
}

fn parse_status(pid: u32, status: &[u8]) -> Option<ServerProcess> {
    let status = String::from_utf8_lossy(status);
    let field = |key: &str, nth: usize| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().nth(nth)?.parse::<u32>().ok()
    };
    let own_pid = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    Some(ServerProcess {
        pid,
        parent_pid: field("PPid:", 0)?,
        // Kernels before 4.1 have no NSpid line; then the sandbox check alone decides.
        own_pid: match own_pid {
            Some(line) => line.split_whitespace().last()?.parse().ok()?,
            None => pid,
        },
        uid: field("Uid:", 1)?,
        gid: field("Gid:", 1)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(root: &Path, pid: u32, parent: u32, exe: &str) {
        let dir = root.join(pid.to_string());
        std::fs::create_dir(&dir).unwrap();
        std::os::unix::fs::symlink(exe, dir.join("exe")).unwrap();
        let status = format!("Name:\tx\nPPid:\t{parent}\nUid:\t7\t8\t9\t10\nGid:\t17\t18\t19\t20\nNSpid:\t{pid}\t3\n");
        std::fs::write(dir.join("status"), status).unwrap();
    }

    #[test]
    fn postmasters_are_those_without_a_server_as_parent() {
        let root = tempfile::tempdir().unwrap();
        process(root.path(), 1, 0, "/usr/lib/systemd/systemd");
        process(root.path(), 50, 1, "/usr/lib/postgresql/15/bin/postgres (deleted)");
        process(root.path(), 51, 50, "/usr/lib/postgresql/15/bin/postgres (deleted)");
        process(root.path(), 52, 51, "/usr/lib/postgresql/15/bin/postgres");
        process(root.path(), 60, 7, "/opt/pg/bin/postmaster");
        process(root.path(), 70, 1, "/usr/bin/postgres_exporter");
        process(root.path(), 71, 1, "/usr/bin/not (deleted)");
        std::fs::create_dir(root.path().join("80")).unwrap();
        std::fs::create_dir(root.path().join("irq")).unwrap();

        let found = find(root.path()).unwrap();
        let pids: Vec<_> = found.roots.iter().map(|one| one.pid).collect();
        assert_eq!((pids, found.unreadable), (vec![50, 60], 0));
        assert_eq!(found.roots[0], ServerProcess { pid: 50, parent_pid: 1, own_pid: 3, uid: 8, gid: 18 });
    }

    #[test]
    fn a_server_whose_status_makes_no_sense_counts_as_unreadable() {
        let root = tempfile::tempdir().unwrap();
        process(root.path(), 50, 1, "/bin/postgres");
        std::fs::write(root.path().join("50/status"), "PPid:\tx\n").unwrap();
        let found = find(root.path()).unwrap();
        assert_eq!((found.roots.len(), found.unreadable), (0, 1));
    }
}
