//! Search, browse and export, as a person asks.

use crate::trees::*;
use lull_catalog::*;
use std::ops::ControlFlow;
use uuid::Uuid;

const OTHER: Uuid = Uuid::from_u128(0x22);

/// Two VMs; the first with three restore points.
fn catalog() -> (tempfile::TempDir, Catalog) {
    let folder = place();
    let bounds = Bounds { group_rows_max: 4, ..Bounds::default() };
    let catalog = Catalog::open(folder.path()).unwrap().with_bounds(bounds);
    let base: Vec<(&[u8], Version)> = vec![
        (b"/etc/app.conf", file(100, 10)),
        (b"/etc/app.conf.d/a.conf", file(200, 20)),
        (b"/home/\xff/m\nn.txt", file(5_000, 30)),
        (b"/srv/data/big.img", file(9_000_000_000, 5)),
    ];
    ingest(&catalog, 1, &tree(&base));
    let mut changed = base.clone();
    changed[0].1 = file(101, 40);
    ingest(&catalog, 2, &tree(&changed));
    ingest(&catalog, 3, &tree(&changed[..3]));
    let elsewhere = Walking::default().listings(&tree(&[(b"/etc/app.conf", file(7, 35))]));
    ingest_frames(&catalog, OTHER, 1, frames(elsewhere, 9));
    (folder, catalog)
}

fn named(how: How, text: &[u8]) -> Query {
    let pattern = Pattern { how, what: What::Name, text: text.to_vec(), ignore_case: false };
    Query { pattern: Some(pattern), ..Query::default() }
}

/// Each hit as `vm path size: points`.
fn told(catalog: &Catalog, query: &Query) -> Vec<String> {
    search(catalog, query).iter().map(line).collect()
}

fn line(hit: &Hit) -> String {
    let points: Vec<String> = hit.points.iter().map(|point| point.number.to_string()).collect();
    format!("{:x} {} {}: {}", hit.vm.as_u128(), hit.path.escape_ascii(), hit.version.size_bytes, points.join(" "))
}

#[test]
fn hits_come_newest_first_with_version_and_restore_points() {
    let (_folder, catalog) = catalog();
    let conf = named(How::Glob, b"app.conf");
    assert_eq!(
        told(&catalog, &conf),
        ["11 /etc/app.conf 101: 2 3", "22 /etc/app.conf 7: 1", "11 /etc/app.conf 100: 1"]
    );
    assert_eq!(
        told(&catalog, &Query { order: Order::Path, ..conf }),
        ["11 /etc/app.conf 100: 1", "11 /etc/app.conf 101: 2 3", "22 /etc/app.conf 7: 1"]
    );
}

#[test]
fn filters_narrow_a_search() {
    let (_folder, catalog) = catalog();
    let all = Query { kinds: Some(vec![Kind::File]), ..everything() };
    assert_eq!(told(&catalog, &all).len(), 6);
    let only = |query: Query| told(&catalog, &Query { kinds: Some(vec![Kind::File]), order: Order::Path, ..query });
    assert_eq!(only(Query { vms: Some(vec![OTHER]), ..Query::default() }), ["22 /etc/app.conf 7: 1"]);
    assert_eq!(only(Query { vms: Some(vec![]), ..Query::default() }).len(), 0);
    assert_eq!(
        only(Query { size_bytes_min: Some(9_000_000_000), ..Query::default() }),
        ["11 /srv/data/big.img 9000000000: 1 2"]
    );
    assert_eq!(only(Query { size_bytes_max: Some(7), ..Query::default() }), ["22 /etc/app.conf 7: 1"]);
    assert_eq!(
        only(Query { mtime_us_min: Some(35), mtime_us_max: Some(35), ..Query::default() }),
        ["22 /etc/app.conf 7: 1"]
    );
    assert_eq!(only(Query { point: Some(point_id(3)), ..Query::default() }).len(), 3);
    let folders = Query { kinds: Some(vec![Kind::Folder]), vms: Some(vec![VM]), ..everything() };
    assert_eq!(told(&catalog, &folders).len(), 6);
    assert_eq!(told(&catalog, &Query { point: Some(Uuid::from_u128(99)), ..everything() }).len(), 0);
}

#[test]
fn names_that_are_no_text_are_found_and_told_as_they_are() {
    let (_folder, catalog) = catalog();
    for query in [named(How::Substring, b"m\nn"), named(How::Glob, b"m*n.txt"), named(How::Regex, b"^m.n\\.txt$")] {
        assert_eq!(told(&catalog, &query), ["11 /home/\\xff/m\\nn.txt 5000: 1 2 3"]);
    }
    assert_eq!(told(&catalog, &named(How::Substring, b"\xff")), ["11 /home/\\xff 4096: 1 2 3"]);
}

#[test]
fn pages_tell_everything_once_in_either_order() {
    let (_folder, catalog) = catalog();
    for order in [Order::NewestFirst, Order::Path] {
        let whole = told(&catalog, &Query { order, ..Query::default() });
        for limit in 1..=whole.len() + 1 {
            let mut paged = Vec::new();
            let mut query = Query { order, limit: Some(limit), ..Query::default() };
            let mut pages = 0;
            loop {
                let mut page = Vec::new();
                let report = catalog.search(&query, &mut |hit| {
                    page.push(line(&hit));
                    ControlFlow::Continue(())
                });
                paged.extend(page);
                pages += 1;
                query.after = report.unwrap().next;
                if query.after.is_none() {
                    break;
                }
            }
            assert_eq!((paged, pages), (whole.clone(), whole.len().div_ceil(limit)), "{order:?} by {limit}");
        }
    }
}

#[test]
fn a_page_keeps_its_place_when_restore_points_come_and_go() {
    for order in [Order::NewestFirst, Order::Path] {
        let (_folder, catalog) = catalog();
        let query = Query { order, limit: Some(3), ..Query::default() };
        let mut paged = Vec::new();
        let report = catalog.search(&query, &mut |hit| {
            paged.push((hit.path, hit.version));
            ControlFlow::Continue(())
        });
        let before: Vec<_> = search(&catalog, &Query { order, ..Query::default() })
            .into_iter()
            .map(|hit| (hit.path, hit.version))
            .collect();
        // All versions that there are go on in a new point, and the first point goes: version 100 of app.conf with it.
        ingest(&catalog, 4, &existed(&catalog, 3, true));
        catalog.forget(VM, &[point_id(1)]).unwrap();
        let rest = Query { order, after: report.unwrap().next, ..Query::default() };
        paged.extend(search(&catalog, &rest).into_iter().map(|hit| (hit.path, hit.version)));
        let expected: Vec<_> = before
            .into_iter()
            .filter(|(_, version)| paged.iter().any(|(_, v)| v == version) || version.size_bytes != 100)
            .collect();
        assert_eq!(paged, expected, "{order:?}");
    }
}

/// Ten thousand of the longest paths would be 320 MB.
#[test]
fn a_page_of_very_long_paths_ends_before_its_limit_and_the_next_ones_tell_the_rest() {
    let folder = place();
    let catalog = Catalog::open(folder.path()).unwrap();
    let deep = [b"/".as_slice(), &[b'x'; 250]].concat().repeat(120);
    let names: Vec<(Vec<u8>, Version)> =
        (0..1_000).map(|n: i64| entry(format!("{n:04}").as_bytes(), &file(1, n * 7 % 1_000))).collect();
    let listing = FolderListing { path: deep, error: None, more: false, entries: names };
    ingest_frames(&catalog, VM, 1, vec![frame(vec![listing])]);
    let mut query = Query { limit: Some(900), ..Query::default() };
    let (mut times, mut pages) = (Vec::new(), 0);
    loop {
        let mut bytes = 0;
        let report = catalog.search(&query, &mut |hit| {
            bytes += hit.path.len();
            times.push(hit.version.mtime_us);
            ControlFlow::Continue(())
        });
        pages += 1;
        assert!(bytes <= lull_catalog::query::NEWEST_FIRST_BYTES_MAX, "{bytes}");
        query.after = report.unwrap().next;
        if query.after.is_none() {
            break;
        }
    }
    assert_eq!((pages, times), (2, (0..1_000).rev().collect::<Vec<_>>()));
}

#[test]
fn a_search_can_be_broken_off() {
    let (_folder, catalog) = catalog();
    for order in [Order::NewestFirst, Order::Path] {
        let mut hits = 0;
        let report = catalog.search(&Query { order, ..Query::default() }, &mut |_| {
            hits += 1;
            if hits == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!((hits, report.unwrap().hits), (2, 2));
    }
}

#[test]
fn a_search_goes_on_in_the_table_that_it_opened() {
    let (folder, catalog) = catalog();
    let whole = told(&catalog, &everything());
    let mut hits = Vec::new();
    catalog
        .search(&everything(), &mut |hit| {
            match hits.len() {
                0 => drop(ingest(&catalog, 4, &tree(&[(b"/new", file(1, 1))]))),
                1 => drop(catalog.forget(VM, &[point_id(1), point_id(2), point_id(3)]).unwrap()),
                2 => std::fs::remove_dir_all(folder.path().join(VM.to_string())).unwrap(),
                _ => {}
            }
            hits.push(line(&hit));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(hits, whole);
    assert_eq!(told(&catalog, &everything()).len(), 2, "the other VM's");
}

/// Each entry as `name size: points | size: points`.
fn browsed(catalog: &Catalog, point: Option<Uuid>, folder: &[u8]) -> Vec<String> {
    let mut entries = Vec::new();
    let told = catalog.browse(VM, point, folder, &mut |entry| {
        let versions: Vec<String> = entry
            .versions
            .iter()
            .map(|found| {
                let points: Vec<String> = found.points.iter().map(|point| point.number.to_string()).collect();
                format!("{}: {}", found.version.size_bytes, points.join(" "))
            })
            .collect();
        entries.push(format!("{} {}", entry.name.escape_ascii(), versions.join(" | ")));
        ControlFlow::Continue(())
    });
    assert_eq!(told.unwrap(), entries.len() as u64);
    entries
}

#[test]
fn a_folder_is_browsed_one_level_deep_with_versions_and_restore_points() {
    let (_folder, catalog) = catalog();
    assert_eq!(browsed(&catalog, None, b"/"), ["etc 4096: 1 2 3", "home 4096: 1 2 3", "srv 4096: 1 2"]);
    assert_eq!(browsed(&catalog, Some(point_id(3)), b"/"), ["etc 4096: 1 2 3", "home 4096: 1 2 3"]);
    assert_eq!(browsed(&catalog, None, b"/etc"), ["app.conf 101: 2 3 | 100: 1", "app.conf.d 4096: 1 2 3"]);
    assert_eq!(browsed(&catalog, Some(point_id(1)), b"/etc/"), ["app.conf 100: 1", "app.conf.d 4096: 1 2 3"]);
    assert_eq!(browsed(&catalog, None, b"/home/\xff"), ["m\\nn.txt 5000: 1 2 3"]);
    assert_eq!(browsed(&catalog, None, b"/nothing"), Vec::<String>::new());
    assert_eq!(browsed(&catalog, None, b"/etc/app.conf"), Vec::<String>::new());
}

#[test]
fn folders_above_what_was_indexed_are_browsed_too() {
    let folder = place();
    let catalog = Catalog::open(folder.path()).unwrap().with_bounds(Bounds { group_rows_max: 2, ..Bounds::default() });
    let whole =
        tree(&[(b"/a/b/f", file(1, 1)), (b"/a/b-c/f", file(1, 1)), (b"/a/b/z/g", file(1, 1)), (b"/x/y", file(1, 1))]);
    let mut listings = Walking::default().listings(&whole);
    listings.retain(|listing| listing.path.starts_with(b"/a/b") || listing.path == b"/x");
    ingest_frames(&catalog, VM, 1, frames(listings, 9));
    assert_eq!(browsed(&catalog, None, b"/"), ["a ", "x "]);
    assert_eq!(browsed(&catalog, None, b"/a"), ["b-c ", "b "]);
    assert_eq!(browsed(&catalog, None, b"/a/b"), ["f 1: 1", "z 4096: 1"]);
}

#[test]
fn an_export_says_every_row_and_every_byte_of_its_path() {
    let (_folder, catalog) = catalog();
    let export = |vm, point, format| {
        let mut written = Vec::new();
        let rows = catalog.export(vm, point, format, &mut written).unwrap();
        (rows, String::from_utf8(written).unwrap())
    };
    let (rows, csv) = export(VM, Some(point_id(3)), ExportFormat::Csv);
    assert_eq!(rows, 7);
    let line = format!(
        "\"/home/\u{fffd}/m\nn.txt\",2f686f6d652fff2f6d0a6e2e747874,file,5000,30,420,0,0,false,{},{},3,0\r\n",
        point_id(1),
        point_id(3)
    );
    assert!(csv.contains(&line), "{csv}");
    assert!(csv.starts_with("path,path_hex,kind,"), "{csv}");
    let (rows, json) = export(OTHER, None, ExportFormat::JsonLines);
    assert_eq!((rows, json.lines().count()), (2, 2));
    let conf: serde_json::Value = serde_json::from_str(json.lines().nth(1).unwrap()).unwrap();
    assert_eq!((&conf["path"], &conf["path_hex"]), (&"/etc/app.conf".into(), &serde_json::Value::Null));
    assert_eq!((&conf["size_bytes"], &conf["mode"], &conf["points"]), (&7.into(), &0o644.into(), &1.into()));
    let error = catalog.export(VM, None, ExportFormat::Csv, &mut Full).unwrap_err();
    assert!(matches!(error, CatalogError::Export(_)), "{error}");
}

struct Full;

impl std::io::Write for Full {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::StorageFull.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
