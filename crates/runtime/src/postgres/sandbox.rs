//! Decides whether a process lives in the same world as we do, so that its paths and its socket mean to us what they mean to it.
//!
//! A container or a chroot is out: another pid or user namespace, or another root directory. A mount namespace of its own alone is not: a hardened
//! service (`PrivateTmp=`, `ProtectSystem=`) has one and still stands on the same root directory. Its files are then looked up through its
//! own root and its own mount table, and its socket must be the very file that we see.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::UnreachableBecause;

/// How a process is placed that shares our root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// The same mount namespace.
    Ours,
    /// A mount namespace of its own.
    Private,
}

/// Compares namespaces and root directory of process `pid` with ours.
pub(super) fn view_of(proc_root: &Path, pid: u32) -> Result<View, UnreachableBecause> {
    let ours = proc_root.join("self");
    let theirs = proc_root.join(pid.to_string());
    for namespace in ["pid", "user"] {
        let name = Path::new("ns").join(namespace);
        if !same_link(&ours.join(&name), &theirs.join(&name)).map_err(not_readable)? {
            return Err(UnreachableBecause::Container { namespace: namespace.to_owned() });
        }
    }
    let our_root = std::fs::metadata(ours.join("root")).map_err(not_readable)?;
    let their_root = std::fs::metadata(theirs.join("root")).map_err(not_readable)?;
    if !same_file(&our_root, &their_root) {
        return Err(UnreachableBecause::OtherRoot);
    }
    let mount = Path::new("ns/mnt");
    let same = same_link(&ours.join(mount), &theirs.join(mount)).map_err(not_readable)?;
    Ok(if same { View::Ours } else { View::Private })
}

/// Makes sure that a socket in the file system is the same file for us and for process `pid`.
pub(super) fn socket_is_shared(
    proc_root: &Path,
    pid: u32,
    socket_dir: &str,
    socket: &Path,
) -> Result<(), UnreachableBecause> {
    let relative = socket.strip_prefix("/").unwrap_or(socket);
    let theirs: PathBuf = proc_root.join(pid.to_string()).join("root").join(relative);
    let shared = match (std::fs::symlink_metadata(socket), std::fs::symlink_metadata(theirs)) {
        (Ok(ours), Ok(theirs)) => same_file(&ours, &theirs),
        _ => false,
    };
    if shared { Ok(()) } else { Err(UnreachableBecause::PrivateSocket { socket_dir: socket_dir.to_owned() }) }
}

fn same_file(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn same_link(one: &Path, other: &Path) -> io::Result<bool> {
    Ok(std::fs::read_link(one)? == std::fs::read_link(other)?)
}

fn not_readable(error: io::Error) -> UnreachableBecause {
    UnreachableBecause::NotReadable { detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A process whose namespaces are `[pid, user, mnt]`.
    fn process(proc_root: &Path, name: &str, namespaces: [u32; 3], root: &Path) {
        let dir = proc_root.join(name);
        std::fs::create_dir_all(dir.join("ns")).unwrap();
        for (kind, number) in ["pid", "user", "mnt"].into_iter().zip(namespaces) {
            symlink(format!("{kind}:[{number}]"), dir.join("ns").join(kind)).unwrap();
        }
        symlink(root, dir.join("root")).unwrap();
    }

    #[test]
    fn only_a_process_on_our_root_in_our_pid_and_user_namespace_is_reachable() {
        let temp = tempfile::tempdir().unwrap();
        let (proc_root, other_root) = (temp.path(), temp.path().join("other"));
        std::fs::create_dir(&other_root).unwrap();
        let root = Path::new("/");
        process(proc_root, "self", [1, 2, 3], root);
        process(proc_root, "10", [1, 2, 3], root);
        process(proc_root, "11", [9, 2, 3], root);
        process(proc_root, "12", [1, 9, 3], root);
        process(proc_root, "13", [1, 2, 9], root);
        process(proc_root, "14", [1, 2, 3], &other_root);
        process(proc_root, "15", [1, 2, 9], &other_root);

        let container = |namespace: &str| Err(UnreachableBecause::Container { namespace: namespace.into() });
        assert_eq!(view_of(proc_root, 10), Ok(View::Ours));
        assert_eq!(view_of(proc_root, 11), container("pid"));
        assert_eq!(view_of(proc_root, 12), container("user"));
        assert_eq!(view_of(proc_root, 13), Ok(View::Private));
        assert_eq!(view_of(proc_root, 14), Err(UnreachableBecause::OtherRoot));
        assert_eq!(view_of(proc_root, 15), Err(UnreachableBecause::OtherRoot));
        assert!(matches!(view_of(proc_root, 99), Err(UnreachableBecause::NotReadable { .. })));
    }
}
