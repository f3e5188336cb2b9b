//! Puts the search together: from each server process to a [`Cluster`], or to the reason why it is none that we can speak for.
//! Logs in nowhere and changes nothing.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::postmaster_pid::{self, NotAPostmaster, PostmasterPid};
use super::processes::{self, ServerProcess};
use super::sandbox::{self, View};
use super::stopped;
use super::view::ProcessView;
use super::{
    CLUSTERS_MAX, Cluster, Discovery, OLDEST_MAJOR, Place, Unreachable, UnreachableBecause, owner, places, small_file,
};

const VERSION_BYTES_MAX: u64 = 64;

/// Finds every running cluster by the processes in `proc_root` (`/proc`; another folder serves tests).
///
/// Never fails as a whole: what could not be seen is in [`Discovery::unreachable`] or [`Discovery::incomplete`]. Needs root to see the
/// servers of all users; says so in `incomplete` otherwise.
pub fn discover(proc_root: &Path) -> Discovery {
    let mut discovery = Discovery::default();
    if !rustix::process::geteuid().is_root() {
        let only = "not run as root: only the servers of this user were looked at";
        discovery.incomplete.push(only.to_owned());
    }
    let found = match processes::find(proc_root) {
        Ok(found) => found,
        Err(error) => {
            discovery
                .incomplete
                .push(format!("{} cannot be read ({error}): no cluster could be found", proc_root.display()));
            return discovery;
        }
    };
    if found.unreadable > 0 {
        let unseen = found.unreadable;
        discovery.incomplete.push(format!("of {unseen} processes it could not be seen which program they run"));
    }
    if found.roots.len() > CLUSTERS_MAX {
        let more = found.roots.len() - CLUSTERS_MAX;
        discovery.incomplete.push(format!("{more} more server processes were not looked at ({CLUSTERS_MAX} were)"));
    }
    let passwd = small_file::read(Path::new("/etc/passwd"), owner::PASSWD_BYTES_MAX).unwrap_or_else(|error| {
        discovery.incomplete.push(format!("/etc/passwd cannot be read ({error}): no owner has a name"));
        Vec::new()
    });
    for process in found.roots.iter().take(CLUSTERS_MAX) {
        match examine(proc_root, process, &passwd) {
            Ok(cluster) => discovery.clusters.push(cluster),
            Err(because) => discovery.unreachable.push(unreachable(proc_root, process.pid, because)),
        }
    }
    discovery.clusters.sort_by(|one, other| one.data_dir.cmp(&other.data_dir));
    let reachable = discovery.clusters.iter().map(|cluster| cluster.data_dir.as_str());
    // A container's paths are not this guest's.
    let not_elsewhere = |because: &UnreachableBecause| {
        !matches!(because, UnreachableBecause::Container { .. } | UnreachableBecause::OtherRoot)
    };
    let unreachable = discovery.unreachable.iter().filter(|unreachable| not_elsewhere(&unreachable.because));
    let running: Vec<&str> =
        reachable.chain(unreachable.filter_map(|unreachable| unreachable.data_dir.as_deref())).collect();
    (discovery.stopped, discovery.left_alone) = stopped::find(proc_root, Path::new("/"), &running);
    discovery
}

/// The places of a cluster that was found before, as they are now.
pub(super) fn places_now(proc_root: &Path, pid: u32, data_dir: &str) -> Result<Vec<Place>, String> {
    let view = ProcessView::of(proc_root, pid).map_err(|error| format!("its mount table: {error}"))?;
    places::find(&view, Path::new(data_dir)).map_err(|error| error.to_string())
}

fn examine(proc_root: &Path, process: &ServerProcess, passwd: &[u8]) -> Result<Cluster, UnreachableBecause> {
    let pid = process.pid;
    let view = sandbox::view_of(proc_root, pid)?;
    // The server's working directory is its data directory, whatever its command line or configuration say.
    let working_dir = proc_root.join(pid.to_string()).join("cwd");
    let major = major_version(&working_dir)?;
    let postmaster = postmaster_of(process, &working_dir)?;
    let owner = owner_of(process, &working_dir, passwd)?;

    let data_dir = std::fs::read_link(&working_dir)
        .map_err(|error| UnreachableBecause::NoDataDirectory { detail: error.to_string() })?;
    let data_dir = data_dir.to_str().ok_or_else(|| no_places("the data directory's path is not UTF-8".to_owned()))?;
    let places = places_now(proc_root, pid, data_dir).map_err(no_places)?;
    let data_dir = places[0].path.clone();

    let socket_dir = absolute_socket_dir(&postmaster.socket_dir, &data_dir)?;
    if view == View::Private && !socket_dir.starts_with('@') {
        let socket = PathBuf::from(socket_path(&socket_dir, postmaster.port));
        sandbox::socket_is_shared(proc_root, pid, &socket_dir, &socket)?;
    }
    Ok(Cluster {
        pid,
        major,
        data_dir,
        port: postmaster.port,
        socket_dir,
        uid: process.uid,
        gid: process.gid,
        owner,
        state: postmaster.state,
        started_unix_s: postmaster.started_unix_s,
        places,
    })
}

/// Path of the socket of a server in `socket_dir`; with a leading `@` in the abstract name space.
pub(super) fn socket_path(socket_dir: &str, port: u16) -> String {
    format!("{}/.s.PGSQL.{port}", socket_dir.trim_end_matches('/'))
}

fn absolute_socket_dir(written: &str, data_dir: &str) -> Result<String, UnreachableBecause> {
    match written {
        "" => Err(UnreachableBecause::NoSocket),
        absolute if absolute.starts_with(['/', '@']) => Ok(absolute.to_owned()),
        relative => Ok(format!("{data_dir}/{relative}")),
    }
}

fn major_version(working_dir: &Path) -> Result<u32, UnreachableBecause> {
    let text = small_file::read(&working_dir.join("PG_VERSION"), VERSION_BYTES_MAX)
        .map_err(|error| UnreachableBecause::NoDataDirectory { detail: format!("PG_VERSION: {error}") })?;
    let text = String::from_utf8_lossy(&text);
    // Before 10 the major version was a pair such as 9.6, which is no number here.
    let major = text.trim().parse().ok().filter(|major| *major >= OLDEST_MAJOR);
    major.ok_or_else(|| UnreachableBecause::Version { version: text.trim().to_owned() })
}

fn postmaster_of(process: &ServerProcess, working_dir: &Path) -> Result<PostmasterPid, UnreachableBecause> {
    let content = match small_file::read(&working_dir.join("postmaster.pid"), postmaster_pid::BYTES_MAX) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(UnreachableBecause::StillStarting);
        }
        Err(error) => {
            return Err(UnreachableBecause::PostmasterPid { detail: error.to_string() });
        }
    };
    match postmaster_pid::parse(&content) {
        Ok(postmaster) if postmaster.pid == process.own_pid => Ok(postmaster),
        Ok(postmaster) => Err(UnreachableBecause::Orphan { postmaster_pid: postmaster.pid }),
        Err(NotAPostmaster::StandAlone(_)) => Err(UnreachableBecause::StandAlone),
        Err(NotAPostmaster::StillStarting) => Err(UnreachableBecause::StillStarting),
        Err(NotAPostmaster::BadLine(at)) => {
            Err(UnreachableBecause::PostmasterPid { detail: format!("line {at} makes no sense") })
        }
    }
}

fn owner_of(process: &ServerProcess, working_dir: &Path, passwd: &[u8]) -> Result<String, UnreachableBecause> {
    let meta = std::fs::metadata(working_dir)
        .map_err(|error| UnreachableBecause::NoDataDirectory { detail: error.to_string() })?;
    if meta.uid() != process.uid || process.uid == 0 {
        return Err(UnreachableBecause::Owner { uid: process.uid, data_dir_uid: meta.uid() });
    }
    owner::name_of(passwd, process.uid).ok_or(UnreachableBecause::OwnerWithoutName { uid: process.uid })
}

fn unreachable(proc_root: &Path, pid: u32, because: UnreachableBecause) -> Unreachable {
    let working_dir = proc_root.join(pid.to_string()).join("cwd");
    let data_dir = std::fs::read_link(&working_dir).ok().map(|path| path.to_string_lossy().into_owned());
    Unreachable { pid, data_dir, major: major_version(&working_dir).ok(), because }
}

fn no_places(detail: String) -> UnreachableBecause {
    UnreachableBecause::Places { detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const PID: u32 = 50;

    /// A `/proc` with one server process of user `uid` in our own namespaces, and its data directory.
    struct FakeProc(tempfile::TempDir);

    impl FakeProc {
        fn new(uid: u32, version: &str) -> Self {
            let temp = tempfile::tempdir().unwrap();
            for process in ["self", "50"] {
                let dir = temp.path().join(process);
                std::fs::create_dir_all(dir.join("ns")).unwrap();
                symlink("/", dir.join("root")).unwrap();
                ["pid", "user", "mnt"].iter().for_each(|kind| symlink("same", dir.join("ns").join(kind)).unwrap());
            }
            let dir = temp.path().join("50");
            symlink("/usr/bin/postgres", dir.join("exe")).unwrap();
            std::fs::write(dir.join("status"), format!("PPid:\t1\nUid:\t{uid}\t{uid}\nGid:\t1\t1\nNSpid:\t50\n"))
                .unwrap();
            let data = temp.path().join("data");
            std::fs::create_dir(&data).unwrap();
            symlink(&data, dir.join("cwd")).unwrap();
            std::fs::write(data.join("PG_VERSION"), version).unwrap();
            Self(temp)
        }

        fn because(&self) -> UnreachableBecause {
            let discovery = discover(self.0.path());
            assert_eq!(discovery.clusters, []);
            let [one] = discovery.unreachable.as_slice() else { panic!("{discovery:?}") };
            assert_eq!(one.pid, PID);
            one.because.clone()
        }

        fn postmaster_pid(&self) -> PathBuf {
            self.0.path().join("data/postmaster.pid")
        }
    }

    #[test]
    fn a_server_older_than_ten_is_named_with_its_version() {
        let because = FakeProc::new(7, "9.6\n").because();
        assert_eq!(because, UnreachableBecause::Version { version: "9.6".to_owned() });
    }

    #[test]
    fn what_cannot_be_trusted_is_not_guessed() {
        let ours = rustix::process::geteuid().as_raw();
        let fake = FakeProc::new(ours + 1, "15\n");
        assert_eq!(fake.because(), UnreachableBecause::StillStarting);

        std::fs::write(fake.postmaster_pid(), "51\n/d\n1\n5432\n/tmp\n\n 1 2\nready\n").unwrap();
        assert_eq!(fake.because(), UnreachableBecause::Orphan { postmaster_pid: 51 });

        std::fs::write(fake.postmaster_pid(), "50\n/d\n1\n5432\n/tmp\n\n 1 2\nready\n").unwrap();
        assert_eq!(fake.because(), UnreachableBecause::Owner { uid: ours + 1, data_dir_uid: ours });

        std::fs::remove_file(fake.postmaster_pid()).unwrap();
        symlink("/etc/passwd", fake.postmaster_pid()).unwrap();
        assert!(matches!(fake.because(), UnreachableBecause::PostmasterPid { .. }));
    }

    #[test]
    fn a_program_that_only_has_the_name_is_not_silently_left_out() {
        let fake = FakeProc::new(7, "15\n");
        std::fs::remove_file(fake.0.path().join("data/PG_VERSION")).unwrap();
        assert!(matches!(fake.because(), UnreachableBecause::NoDataDirectory { .. }));
    }

    #[test]
    fn an_unreadable_proc_is_said() {
        let discovery = discover(Path::new("/nonexistent"));
        assert!(discovery.incomplete.iter().any(|why| why.contains("no cluster could be found")), "{discovery:?}");
    }
}
