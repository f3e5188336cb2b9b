//! Clusters that ought to run and do not: the data directories that Debian's and Red Hat's packages know of, less those that run.
//!
//! A cluster that nobody starts by itself (`start.conf` says manual or disabled, its unit is not enabled: what an upgrade leaves behind)
//! is none of them. Places that no package knows of are not searched. Logs in nowhere and changes nothing.

use std::path::{Path, PathBuf};

use super::view::ProcessView;
use super::{Place, STOPPED_MAX, Stopped, places, small_file};

const CONFIGURATION_BYTES_MAX: u64 = 1024 * 1024;
const VERSION_BYTES_MAX: u64 = 64;
/// Below Debian's folder lie versions, below those the names of clusters.
const DEBIAN: &str = "etc/postgresql";
const RED_HAT: &str = "var/lib/pgsql";
const ENABLED_UNITS: &str = "etc/systemd/system/multi-user.target.wants";

/// All that are not among `running` (data directories without symlinks), of the guest whose root is `root`, and the notes on
/// those that nobody starts.
pub(super) fn find(proc_root: &Path, root: &Path, running: &[&str]) -> (Vec<Stopped>, Vec<String>) {
    let mut stopped = Vec::new();
    let mut notes = Vec::new();
    for known in debian(root).into_iter().chain(red_hat(root)) {
        let Ok(data_dir) = known.data_dir.canonicalize() else { continue };
        let Ok(version) = small_file::read(&data_dir.join("PG_VERSION"), VERSION_BYTES_MAX) else { continue };
        let shown = Path::new("/").join(data_dir.strip_prefix(root).unwrap_or(&data_dir));
        let Some(shown) = shown.to_str() else { continue };
        if running.contains(&shown) || stopped.iter().any(|stopped: &Stopped| stopped.data_dir == shown) {
            continue;
        }
        let version = String::from_utf8_lossy(&version).trim().to_owned();
        if let Some(why) = known.left_alone {
            notes.push(format!("PostgreSQL {version} in {shown} does not run and is not to be started ({why})"));
            continue;
        }
        if stopped.len() == STOPPED_MAX {
            notes.push(format!("more than {STOPPED_MAX} PostgreSQL clusters do not run"));
            break;
        }
        stopped.push(Stopped { version, data_dir: shown.to_owned(), places: places_of(proc_root, shown) });
    }
    (stopped, notes)
}

/// What is known is told: a directory that cannot be looked up has no place, and its level is then not known.
fn places_of(proc_root: &Path, data_dir: &str) -> Vec<Place> {
    let own = ProcessView::of(proc_root, std::process::id());
    own.ok().and_then(|view| places::find(&view, Path::new(data_dir)).ok()).unwrap_or_default()
}

/// A cluster that a package knows of.
struct Known {
    data_dir: PathBuf,
    /// Why nobody starts it.
    left_alone: Option<String>,
}

fn debian(root: &Path) -> Vec<Known> {
    let mut known = Vec::new();
    for version in folders(&root.join(DEBIAN)) {
        for cluster in folders(&version) {
            let read = |name: &str| small_file::read(&cluster.join(name), CONFIGURATION_BYTES_MAX);
            let Ok(configuration) = read("postgresql.conf") else { continue };
            let configured = data_directory(&String::from_utf8_lossy(&configuration));
            let usual = || {
                let below = cluster.strip_prefix(root.join(DEBIAN)).unwrap_or(&cluster);
                Path::new("/var/lib/postgresql").join(below)
            };
            let data_dir = root.join(configured.unwrap_or_else(usual).strip_prefix("/").unwrap_or(Path::new("")));
            let start = read("start.conf").map(|text| start_word(&String::from_utf8_lossy(&text)));
            let start = start.ok().flatten().filter(|word| word != "auto");
            known.push(Known { data_dir, left_alone: start.map(|word| format!("start.conf: {word}")) });
        }
    }
    known
}

fn red_hat(root: &Path) -> Vec<Known> {
    let base = root.join(RED_HAT);
    let versioned = folders(&base).into_iter().map(|version| {
        let unit = format!("postgresql-{}.service", version.file_name().unwrap_or_default().to_string_lossy());
        (version.join("data"), unit)
    });
    let all = std::iter::once((base.join("data"), "postgresql.service".to_owned())).chain(versioned);
    all.map(|(data_dir, unit)| {
        let enabled = root.join(ENABLED_UNITS).join(&unit).symlink_metadata().is_ok();
        Known { data_dir, left_alone: (!enabled).then(|| format!("{unit} is not enabled")) }
    })
    .collect()
}

fn folders(parent: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders.truncate(2 * STOPPED_MAX);
    folders
}

/// The first word that is no comment.
fn start_word(text: &str) -> Option<String> {
    let mut lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.find(|line| !line.is_empty()).map(str::to_owned)
}

/// The last setting counts, as the server reads it.
fn data_directory(configuration: &str) -> Option<PathBuf> {
    let set = |line: &str| {
        let rest = line.trim_start().strip_prefix("data_directory")?.trim_start();
        let value = rest.strip_prefix('=').unwrap_or(rest).trim_start().strip_prefix('\'')?;
        Some(PathBuf::from(value.split_once('\'')?.0))
    };
    configuration.lines().filter_map(set).next_back().filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    /// A guest's root with one Debian cluster in `data`, and what `start.conf` says.
    fn debian_guest(data: &str, configuration: &str, start: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/postgresql/15/main");
        let data = root.path().join(data);
        [&etc, &data].iter().for_each(|folder| create_dir_all(folder).unwrap());
        write(data.join("PG_VERSION"), "15\n").unwrap();
        write(etc.join("postgresql.conf"), configuration).unwrap();
        start
            .into_iter()
            .for_each(|word| write(etc.join("start.conf"), format!("# Automatic startup\n\n{word}\n")).unwrap());
        root
    }

    fn found(root: &tempfile::TempDir, running: &[&str]) -> (Vec<String>, Vec<String>) {
        let root = root.path().canonicalize().unwrap();
        let (stopped, notes) = find(Path::new("/proc"), &root, running);
        (stopped.into_iter().map(|stopped| format!("{} {}", stopped.version, stopped.data_dir)).collect(), notes)
    }

    #[test]
    fn a_cluster_that_ought_to_run_and_does_not_is_found_where_its_configuration_says() {
        let usual = "var/lib/postgresql/15/main";
        for start in [None, Some("auto")] {
            let guest = debian_guest(usual, "port = 5432\n", start);
            assert_eq!(found(&guest, &[]), (vec!["15 /var/lib/postgresql/15/main".to_owned()], vec![]));
            assert_eq!(found(&guest, &["/var/lib/postgresql/15/main"]), (vec![], vec![]));
        }
        let configuration = "#data_directory = '/no'\ndata_directory = '/fast/pg'\t# moved\n";
        let guest = debian_guest("fast/pg", configuration, Some("auto"));
        assert_eq!(found(&guest, &[]).0, ["15 /fast/pg"]);
    }

    #[test]
    fn what_an_upgrade_left_behind_is_a_note() {
        let guest = debian_guest("var/lib/postgresql/15/main", "", Some("manual"));
        let (stopped, notes) = found(&guest, &[]);
        assert!(stopped.is_empty());
        let note =
            "PostgreSQL 15 in /var/lib/postgresql/15/main does not run and is not to be started (start.conf: manual)";
        assert_eq!(notes, [note]);
    }

    #[test]
    fn a_cluster_of_red_hats_counts_when_its_unit_is_enabled() {
        let root = tempfile::tempdir().unwrap();
        let (data, wants) = (root.path().join("var/lib/pgsql/16/data"), root.path().join(ENABLED_UNITS));
        [&data, &wants].iter().for_each(|folder| create_dir_all(folder).unwrap());
        write(data.join("PG_VERSION"), "16\n").unwrap();
        assert!(found(&root, &[]).1[0].ends_with("(postgresql-16.service is not enabled)"));
        std::os::unix::fs::symlink("/lib/systemd/system/postgresql-16.service", wants.join("postgresql-16.service"))
            .unwrap();
        assert_eq!(found(&root, &[]), (vec!["16 /var/lib/pgsql/16/data".to_owned()], vec![]));
    }

    #[test]
    fn a_guest_without_packages_has_none() {
        assert_eq!(found(&tempfile::tempdir().unwrap(), &[]), (vec![], vec![]));
    }
}
