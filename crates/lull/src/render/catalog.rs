//! Files of the catalog: versions, folders, tables.

use super::table::table;
use super::text::{one_line, pad};
use super::{Look, Tone, units};
use lull_api::catalog::{CatalogTable, FileHit, FileVersion, FolderEntry};

/// Of many restore points only the first and last are named.
const POINTS_NAMED_MAX: usize = 3;

/// A version that a search found: the path, and below it what it was and where.
pub fn hit(hit: &FileHit, look: &Look) -> String {
    let head = format!("{}:{}", one_line(&hit.vm), path(&hit.path));
    format!("{}\n{}", look.paint(Tone::Title, &head), version(&hit.version, look))
}

/// An entry of a folder with its versions.
pub fn entry(entry: &FolderEntry, look: &Look) -> String {
    let folder = entry.versions.first().is_none_or(|version| version.kind == "folder");
    let name = format!("{}{}", path(&entry.name), if folder { "/" } else { "" });
    let mut text = format!("{}\n", look.paint(Tone::Title, &name));
    for one in &entry.versions {
        text.push_str(&version(one, look));
    }
    text
}

/// `  file    1.5 KiB  rw-r--r--  0:0  changed 2026-…`, and a line that says where.
fn version(version: &FileVersion, look: &Look) -> String {
    let what = format!(
        "  {} {}  {}  {}:{}  changed {}{}\n",
        pad(&version.kind, 7),
        pad(&units::bytes(version.size_bytes), 8),
        permissions(version.mode),
        version.uid,
        version.gid,
        units::time(&version.modified_at, look),
        if version.changed_after_freeze { ", after the freeze" } else { "" },
    );
    format!("{what}{}", look.paint(Tone::Faint, &places(version, look)))
}

/// In which restore points.
fn places(version: &FileVersion, look: &Look) -> String {
    let points = &version.restore_points;
    let one = |at: &lull_api::catalog::FileAt| {
        let unknown = if at.known { "" } else { " (not looked at there)" };
        format!("    in {} of {}{unknown}\n", at.id, units::time(&at.taken_at, look))
    };
    if points.len() <= POINTS_NAMED_MAX {
        return points.iter().map(one).collect();
    }
    match points.as_slice() {
        [first, between @ .., last] => format!("{}    … and {} between\n{}", one(first), between.len(), one(last)),
        _ => String::new(),
    }
}

/// A path on one line; what would break the line is escaped.
fn path(path: &str) -> String {
    one_line(&path.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t"))
}

/// `rwxr-xr-x`, with setuid, setgid and sticky as `ls` shows them.
fn permissions(mode: u32) -> String {
    let bit = |shift: u32| mode >> shift & 1 == 1;
    let triple = |shift: u32, special: bool, letter: char| {
        let execute = match (bit(shift), special) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        };
        [if bit(shift + 2) { 'r' } else { '-' }, if bit(shift + 1) { 'w' } else { '-' }, execute]
    };
    [triple(6, bit(11), 's'), triple(3, bit(10), 's'), triple(0, bit(9), 't')].iter().flatten().collect()
}

/// What the catalog knows of each VM.
pub fn tables(tables: &[CatalogTable], look: &Look) -> String {
    let rows = tables.iter().map(|vm| {
        let newest = vm.restore_points.last();
        let newest_at = newest.map(|point| units::time(&point.taken_at, look));
        let state = newest.map(|point| match (&point.stopped_because, point.unreadable) {
            (Some(why), _) => format!("not complete: {why}"),
            (None, 0) => "complete".to_string(),
            (None, unreadable) => format!("complete, {unreadable} unreadable"),
        });
        vec![
            vm.vm.clone(),
            vm.restore_points.len().to_string(),
            newest_at.unwrap_or_else(|| "-".into()),
            newest.map_or_else(|| "-".into(), |point| point.entries.to_string()),
            state.unwrap_or_else(|| "-".into()),
            vm.pending.len().to_string(),
            units::bytes(vm.bytes),
        ]
    });
    let titles = ["vm", "points", "newest", "files", "listing", "waiting", "size"];
    let mut text =
        table(look, &titles, rows.collect(), "Nothing is in the catalog yet: the first backup puts it there.");
    for vm in tables {
        let waiting =
            vm.pending.iter().filter_map(|p| Some(format!("restore point {}: {}", p.id, p.trouble.as_ref()?)));
        for problem in vm.problems.iter().cloned().chain(waiting) {
            let line = format!("{}: {}", one_line(&vm.vm), one_line(&problem));
            text.push_str(&format!("{}\n", look.paint(Tone::Warning, &line)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_api::catalog::FileAt;
    use uuid::Uuid;

    fn look() -> Look {
        let now = jiff::Timestamp::UNIX_EPOCH;
        Look { width: None, color: false, now, zone: jiff::tz::TimeZone::UTC }
    }

    fn at(n: u128, known: bool) -> FileAt {
        FileAt { id: Uuid::from_u128(n), taken_at: format!("2026-11-0{n}T02:00:00Z"), known }
    }

    fn of(points: Vec<FileAt>) -> FileVersion {
        FileVersion {
            kind: "file".into(),
            size_bytes: 1_536,
            modified_at: "2026-10-31T23:59:59.5Z".into(),
            mode: 0o4755,
            uid: 0,
            gid: 33,
            changed_after_freeze: false,
            restore_points: points,
        }
    }

    #[test]
    fn a_hit_says_what_it_was_and_where() {
        let version = of(vec![at(1, true), at(2, false)]);
        let (vm, path) = ("shop".to_string(), "/srv/a\nb".to_string());
        let found = FileHit { vm, vm_id: Uuid::nil(), path, path_hex: None, version };
        assert_eq!(
            hit(&found, &look()),
            "shop:/srv/a\\nb\n  file    1.5 KiB   rwsr-xr-x  0:33  changed 2026-10-31 23:59:59\n    \
             in 00000000-0000-0000-0000-000000000001 of 2026-11-01 02:00:00\n    \
             in 00000000-0000-0000-0000-000000000002 of 2026-11-02 02:00:00 (not looked at there)\n"
        );
    }

    #[test]
    fn of_many_restore_points_the_first_and_the_last_are_named() {
        let text = places(&of((1..=9).map(|n| at(n, true)).collect()), &look());
        assert!(
            text.contains("2026-11-01") && text.contains("… and 7 between") && text.contains("2026-11-09"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn permissions_are_those_of_ls() {
        for (mode, text) in [(0o644, "rw-r--r--"), (0o1777, "rwxrwxrwt"), (0o2640, "rw-r-S---"), (0, "---------")] {
            assert_eq!(permissions(mode), text);
        }
    }
}
