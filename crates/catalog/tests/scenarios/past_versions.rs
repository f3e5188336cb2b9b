//! Tables of past formats, kept as they were written: each is read as ever.
//!
//! `LULL_WRITE_CATALOG=1` writes the one of the format under development anew. A change that makes the old file unreadable needs a new
//! format, and a file of its own beside this one.

use crate::trees::*;
use lull_catalog::table::FORMAT;
use lull_catalog::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn kept(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/v{format}.parquet"))
}

fn first() -> Tree {
    let special = Version {
        kind: Kind::Socket,
        size_bytes: u64::MAX,
        mtime_us: i64::MIN,
        mode: 0o7777,
        uid: u32::MAX,
        gid: 1 << 31,
        changed_after_freeze: true,
    };
    let long = [b"/".as_slice(), &[b'l'; 255]].concat().repeat(16);
    tree(&[
        (b"/etc/app.conf", file(100, 1_700_000_000_000_000)),
        (b"/etc/gone", file(1, 1)),
        (b"/home/\xff/m\nn", special),
        (b"/hidden/f", file(3, 3)),
        (&long, file(4, 4)),
    ])
}

fn second() -> Tree {
    let mut tree = first();
    tree.remove(b"/etc/gone".as_slice());
    tree.insert(b"/etc/app.conf".to_vec(), file(101, 1_700_000_001_000_000));
    tree
}

#[test]
fn version_1_is_read_as_ever() {
    let folder = place();
    if std::env::var_os("LULL_WRITE_CATALOG").is_some() {
        let catalog = Catalog::open(folder.path()).unwrap();
        ingest(&catalog, 1, &first());
        let walking = Walking { unreadable: BTreeSet::from([b"/hidden".to_vec()]), ..Walking::default() };
        ingest_walked(&catalog, 3, &second(), &walking);
        let written = folder.path().join(VM.to_string()).join("history.parquet");
        std::fs::create_dir_all(kept(FORMAT).parent().unwrap()).unwrap();
        std::fs::copy(written, kept(FORMAT)).unwrap();
        std::fs::remove_dir_all(folder.path().join(VM.to_string())).unwrap();
    }
    std::fs::create_dir(folder.path().join(VM.to_string())).unwrap();
    std::fs::copy(kept(1), folder.path().join(VM.to_string()).join("history.parquet")).unwrap();
    let catalog = Catalog::open(folder.path()).unwrap();
    check_is_clean(&catalog, VM);
    assert_eq!(existed(&catalog, 1, true), first());
    assert_eq!(existed(&catalog, 3, true), second());
    assert_eq!(points_of(&catalog, b"/hidden/f"), [[1, -3]]);
    assert_eq!(points_of(&catalog, b"/etc/app.conf"), [[3], [1]]);
    assert_eq!(catalog.points(VM).unwrap().iter().map(|point| point.number).collect::<Vec<_>>(), [1, 3]);
    // And goes on.
    ingest(&catalog, 4, &second());
    assert_eq!(points_of(&catalog, b"/hidden/f"), [[1, 3, 4]]);
    check_is_clean(&catalog, VM);
}
