//! DuckDB reads our tables, with nothing but docs/catalog-format.md, and finds what we find.

#[path = "scenarios/trees.rs"]
#[allow(dead_code, reason = "shared with the scenarios, which use all of it")]
mod trees;

use lull_catalog::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use trees::*;

fn testbed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testbed/duckdb")
}

/// What a command prints; it must succeed.
fn printed(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

struct DuckDb {
    python: String,
    table: PathBuf,
}

impl DuckDb {
    /// The rows that a statement finds, one array each.
    fn ask(&self, sql: &str) -> Vec<Vec<serde_json::Value>> {
        serde_json::from_str(&self.line(sql)).unwrap()
    }

    fn line(&self, asked: &str) -> String {
        printed(Command::new(&self.python).arg(testbed().join("ask.py")).arg(&self.table).arg(asked))
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// A guest of some thousand files, different for each `number`.
fn guest(number: u64) -> Tree {
    let mut names: Vec<(Vec<u8>, Version)> = Vec::new();
    for n in 0..3_000u64 {
        // A few come, go and change from point to point.
        if (n + number).is_multiple_of(11) {
            continue;
        }
        let extension = ["conf", "so.6", "txt", "\u{e4}\n", "log"][n as usize % 5];
        let mut path = format!("/srv/{}/{}/file-{n}.{extension}", n % 13, n % 7).into_bytes();
        if n % 17 == 0 {
            path.extend_from_slice(b"\xff\xfe");
        }
        let change = if n % 19 == number % 19 { number } else { 0 };
        let mtime_us = 1_700_000_000_000_000 + (n * 7_919 % 1_000) as i64 * 1_000_003 + change as i64;
        let version = Version {
            kind: if n % 23 == 0 { Kind::Symlink } else { Kind::File },
            mode: 0o600 + (n % 3) as u32,
            uid: if n % 29 == 0 { u32::MAX - 1 } else { 1_000 },
            changed_after_freeze: n % 31 == 0,
            ..file(n * n + change, mtime_us)
        };
        names.push((path, version));
    }
    tree(&names.iter().map(|(path, version)| (path.as_slice(), *version)).collect::<Vec<_>>())
}

#[test]
fn duckdb_reads_our_tables_and_agrees_with_our_search() {
    let python = printed(&mut Command::new(testbed().join("venv.sh"))).trim().to_string();
    let folder = tempfile::tempdir().unwrap();
    let bounds = Bounds { group_rows_max: 700, ..Bounds::default() };
    let catalog = Catalog::open(folder.path()).unwrap().with_bounds(bounds);
    for number in 1..=6 {
        let unreadable = if number == 4 { BTreeSet::from([b"/srv/5".to_vec()]) } else { BTreeSet::new() };
        let walking = Walking { unreadable, ..Walking::default() };
        ingest_walked(&catalog, number, &guest(number.into()), &walking);
    }
    catalog.forget(VM, &[point_id(2)]).unwrap();
    let duck = DuckDb { python, table: folder.path().join(VM.to_string()).join("history.parquet") };

    // As a stranger's reader: header, checksums, points.
    let header: serde_json::Value = serde_json::from_str(&duck.line("--sums")).unwrap();
    let numbers: Vec<_> =
        header["points"].as_array().unwrap().iter().map(|point| point["number"].as_u64().unwrap()).collect();
    assert_eq!((numbers, header["format"].as_u64()), (vec![1, 3, 4, 5, 6], Some(1)));

    // Every row with every value, in our order.
    let columns = "hex(path), kind, size_bytes, epoch_us(mtime_us), mode, uid, gid, changed_after_freeze";
    let ours = |hits: Vec<Hit>| -> Vec<Vec<serde_json::Value>> {
        hits.iter()
            .map(|hit| {
                let v = &hit.version;
                vec![
                    hexadecimal(&hit.path).into(),
                    version::kind_code(v.kind).into(),
                    v.size_bytes.into(),
                    v.mtime_us.into(),
                    v.mode.into(),
                    v.uid.into(),
                    v.gid.into(),
                    v.changed_after_freeze.into(),
                ]
            })
            .collect()
    };
    let all = ours(search(&catalog, &everything()));
    assert!(all.len() > 4_000);
    assert_eq!(duck.ask(&format!("SELECT {columns} FROM history ORDER BY path, first")), all);
    assert_eq!(duck.ask(&format!("SELECT {columns} FROM history")), all, "the file is in that order");

    // Each restore point; in number 4 what is unknown, too.
    for number in [1, 3, 4, 5, 6] {
        let at = Query { point: Some(point_id(number)), ..everything() };
        let sql = format!("SELECT {columns} FROM history WHERE first <= {number} AND last >= {number} ORDER BY path");
        assert_eq!(duck.ask(&sql), ours(search(&catalog, &at)), "restore point {number}");
    }
    let unknown = search(&catalog, &Query { point: Some(point_id(4)), ..everything() });
    let unknown = unknown.iter().filter(|hit| hit.points.iter().any(|point| point.number == 4 && !point.known)).count();
    assert!(unknown > 10, "{unknown}: most are seen again in 5, so they were there");
    assert_eq!(
        duck.ask("SELECT count(*) FROM history WHERE last >= 4 AND first <= 4 AND seen < 4"),
        [[serde_json::Value::from(unknown)]]
    );

    // Patterns and filters, newest first.
    let by_time = "ORDER BY mtime_us DESC, path, first";
    let pattern = |how, what, text: &[u8]| Some(Pattern { how, what, text: text.to_vec(), ignore_case: false });
    for (query, condition) in [
        (
            Query { pattern: pattern(How::Substring, What::Path, b"5/file-1"), ..Query::default() },
            "regexp_matches(hex(path), '^(..)*352F66696C652D31')",
        ),
        (
            Query { pattern: pattern(How::Glob, What::Name, b"*.conf"), ..Query::default() },
            "regexp_matches(hex(path), '^(..)*2E636F6E66$')",
        ),
        (
            Query { pattern: pattern(How::Regex, What::Name, b"(?-u:\\xff\\xfe$)"), ..Query::default() },
            "regexp_matches(hex(path), '^(..)*FFFE$')",
        ),
        (Query { kinds: Some(vec![Kind::Symlink, Kind::Folder]), ..Query::default() }, "kind IN (1, 2)"),
        (
            Query { size_bytes_min: Some(1_000_000), size_bytes_max: Some(4_000_000), ..Query::default() },
            "size_bytes BETWEEN 1000000 AND 4000000",
        ),
        (
            Query { mtime_us_min: Some(1_700_000_500_000_000), ..Query::default() },
            "epoch_us(mtime_us) >= 1700000500000000",
        ),
    ] {
        let found = ours(search(&catalog, &query));
        assert!(found.len() > 20, "{query:?}");
        assert_eq!(
            duck.ask(&format!("SELECT {columns} FROM history WHERE {condition} {by_time}")),
            found,
            "{condition}"
        );
    }
}
