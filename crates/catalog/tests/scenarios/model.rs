//! Random histories of random guests, held against a naive model in memory, and against the guests themselves.

use crate::trees::*;
use lull_catalog::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// What one restore point is made of.
#[derive(Debug, Clone)]
struct Step {
    tree: Tree,
    walking: Walking,
    /// Points without an index before this one.
    gap: u32,
    /// Which of the points until then expire after it.
    forget: Vec<prop::sample::Index>,
}

fn a_name() -> impl Strategy<Value = Vec<u8>> {
    let names: [&[u8]; 9] = [b"a", b"a-", b"a0", b"ab", b"b", b"\xff", b"\n", b"\xc3\xa4", &[b'n'; 255]];
    prop::sample::select(names.map(<[u8]>::to_vec).to_vec())
}

fn a_path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(a_name(), 1..4)
        .prop_map(|names| names.iter().flat_map(|name| [b"/", name.as_slice()].concat()).collect())
}

fn a_tree() -> impl Strategy<Value = Tree> {
    prop::collection::vec((a_path(), 0u64..2, any::<bool>()), 0..14).prop_map(|files| {
        let mut all = Tree::new();
        for (path, size_bytes, is_folder) in files {
            // Whatever is in the way of a folder makes room.
            let version = if is_folder { folder() } else { file(size_bytes, 0) };
            for (at, _) in path.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/') {
                all.insert(path[..at].to_vec(), folder());
            }
            if all.get(&path).is_none_or(|there| there.kind != Kind::Folder) {
                all.insert(path, version);
            }
        }
        all
    })
}

fn a_step() -> impl Strategy<Value = Step> {
    let folders = || prop::collection::btree_set(prop_oneof![9 => a_path(), 1 => Just(b"/".to_vec())], 0..3);
    let walking = (folders(), folders(), 0usize..3);
    let walking = walking.prop_map(|(unreadable, unentered, piece)| Walking { unreadable, unentered, piece });
    let forget = prop::collection::vec(any::<prop::sample::Index>(), 0..2);
    (a_tree(), walking, 0u32..2, forget).prop_map(|(tree, walking, gap, forget)| Step { tree, walking, gap, forget })
}

/// A version with its first, last, and last seen point.
type Row = (Version, u32, u32, u32);
/// Path, version, and its points with whether they are known.
type Told = (Vec<u8>, Version, Vec<(u32, bool)>);

/// For each path its versions, the rules, one path at a time, with nothing clever.
#[derive(Default)]
struct Model {
    rows: BTreeMap<Vec<u8>, Vec<Row>>,
    points: BTreeSet<u32>,
}

impl Model {
    fn ingest(&mut self, number: u32, seen: &Tree, unknown: &[Vec<u8>]) {
        let newest = self.points.last().copied();
        let paths: BTreeSet<Vec<u8>> = self.rows.keys().chain(seen.keys()).cloned().collect();
        for path in paths {
            let is_unknown =
                unknown.iter().any(|folder| folder == b"/" || path.starts_with(&[folder.as_slice(), b"/"].concat()));
            let rows = self.rows.entry(path.clone()).or_default();
            let open = rows.iter_mut().find(|row| newest.is_some_and(|newest| row.2 >= newest));
            match (seen.get(&path), open) {
                (Some(version), Some(row)) if row.0 == *version => (row.2, row.3) = (number, number),
                (Some(version), _) => rows.push((*version, number, number, number)),
                (None, Some(row)) if is_unknown => row.2 = number,
                (None, _) => {}
            }
        }
        self.points.insert(number);
    }

    fn forget(&mut self, number: u32) {
        self.points.remove(&number);
        for rows in self.rows.values_mut() {
            rows.retain(|row| self.points.range(row.1..=row.2).next().is_some());
        }
    }

    fn hits(&self) -> Vec<Told> {
        let mut hits = Vec::new();
        for (path, rows) in &self.rows {
            for (version, first, last, seen) in rows {
                let points = self.points.range(first..=last).map(|number| (*number, number <= seen)).collect();
                hits.push((path.clone(), *version, points));
            }
        }
        hits
    }
}

fn hits(catalog: &Catalog) -> Vec<Told> {
    let hits = search(catalog, &everything()).into_iter();
    hits.map(|hit| (hit.path, hit.version, hit.points.iter().map(|p| (p.number, p.known)).collect())).collect()
}

fn browsed(catalog: &Catalog, number: u32, folder: &[u8]) -> Tree {
    let mut tree = Tree::new();
    catalog
        .browse(VM, Some(point_id(number)), folder, &mut |entry| {
            assert!(entry.versions.len() <= 1);
            for found in entry.versions {
                let path = if folder == b"/" {
                    [b"/", entry.name.as_slice()].concat()
                } else {
                    [folder, b"/", &entry.name].concat()
                };
                assert_eq!(tree.insert(path, found.version), None);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn every_history_is_told_as_it_was(steps in prop::collection::vec(a_step(), 1..6), group_rows_max in 1usize..9, folder in a_path()) {
        let place = place();
        // Small bounds, so that small guests reach them.
        let bounds = Bounds { sort_bytes_max: 700, group_rows_max, ..Bounds::default() };
        let catalog = Catalog::open(place.path()).unwrap().with_bounds(bounds);
        let mut model = Model::default();
        let mut whole: BTreeMap<u32, Tree> = BTreeMap::new();
        let mut number = 0;
        for step in steps {
            number += 1 + step.gap;
            ingest_walked(&catalog, number, &step.tree, &step.walking);
            let (seen, unknown) = step.walking.sees(&step.tree);
            model.ingest(number, &seen, &unknown);
            if unknown.is_empty() {
                whole.insert(number, step.tree);
            }
            for index in step.forget {
                if !model.points.is_empty() {
                    let expired = *index.get(&model.points.iter().copied().collect::<Vec<_>>());
                    catalog.forget(VM, &[point_id(expired)]).unwrap();
                    model.forget(expired);
                    whole.remove(&expired);
                }
            }
            prop_assert_eq!(hits(&catalog), model.hits());
            prop_assert_eq!(catalog.check(VM).unwrap().problems, Vec::<String>::new());
            for (number, tree) in &whole {
                prop_assert_eq!(&existed(&catalog, *number, true), tree, "point {} as searched", number);
                for folder in [b"/".as_slice(), &folder] {
                    let mut inside = tree.clone();
                    inside.retain(|path, _| parent(path) == folder);
                    prop_assert_eq!(browsed(&catalog, *number, folder), inside, "point {} as browsed", number);
                }
            }
        }
    }
}
