//! Finds versions of files over all tables, by a scan: no index is kept beside the tables.
//!
//! Of each row group it reads the paths; the other columns only where a path fits. A table that is damaged is set aside, one that cannot be
//! read is named, and the search goes on with the others. Knows nothing of who asks.

use crate::catalog::Catalog;
use crate::error::{CatalogError, SetAside};
use crate::pattern::Matcher;
use crate::point::{Point, presence};
use crate::query::{Found, Hit, NEWEST_FIRST_BYTES_MAX, Order, PageToken, Place, Query};
use crate::table::paths::Paths;
use crate::table::read::{Table, Which};
use crate::version::{Interval, Version};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::ControlFlow;
use std::rc::Rc;
use uuid::Uuid;

/// How a search went.
#[derive(Debug, Default)]
pub struct SearchReport {
    /// Hits that were told.
    pub hits: u64,
    /// Where the next page begins; nothing where this was the last one.
    pub next: Option<PageToken>,
    /// Tables that were looked into.
    pub tables: u64,
    /// Rows whose path was looked at.
    pub rows: u64,
    /// Tables that were found damaged: what they held is not among the hits, as far as it could not be read.
    pub set_aside: Vec<SetAside>,
    /// Tables that could not be read, and why.
    pub unreadable: Vec<(Uuid, CatalogError)>,
}

impl Catalog {
    /// Tells `hit` what `query` finds, in its order, until it breaks off.
    ///
    /// # Errors
    /// When the query cannot be asked, or the catalog's folder cannot be read. Trouble with single tables is in the report.
    pub fn search(
        &self,
        query: &Query,
        hit: &mut dyn FnMut(Hit) -> ControlFlow<()>,
    ) -> Result<SearchReport, CatalogError> {
        let mut vms = match &query.vms {
            Some(vms) => vms.clone(),
            None => self.vms()?,
        };
        vms.sort();
        vms.dedup();
        let mut search = Search {
            query,
            matcher: Matcher::new(query.pattern.as_ref())?,
            after: query.place_after()?,
            page_hits: query.page_hits()?,
            report: SearchReport::default(),
            last: None,
            newest: BinaryHeap::new(),
            newest_bytes: 0,
            passed_over: None,
            paths: Paths::default(),
            hit,
        };
        for vm in vms {
            let mut damaged = None;
            let scanned = self.table(vm).and_then(|table| {
                let Some(table) = table else { return Ok(ControlFlow::Continue(())) };
                let scanned = search.scan(vm, &table);
                if matches!(scanned, Err(CatalogError::Damaged { .. })) {
                    damaged = Some(table);
                }
                scanned
            });
            match scanned {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Ok(search.report),
                Err(CatalogError::Damaged { reason, .. }) => {
                    search.report.set_aside.extend(self.set_aside(vm, damaged.as_ref(), reason)?);
                }
                Err(error @ (CatalogError::Io { .. } | CatalogError::Format { .. })) => {
                    search.report.unreadable.push((vm, error));
                }
                Err(error) => return Err(error),
            }
        }
        search.tell_newest()
    }
}

struct Search<'q> {
    query: &'q Query,
    matcher: Matcher,
    after: Option<Place>,
    page_hits: usize,
    report: SearchReport,
    /// Ordered by path: the place of the last hit that was told.
    last: Option<Place>,
    /// Ordered by time: the newest so far, as many as the page holds; the last of them on top.
    newest: BinaryHeap<Candidate>,
    /// Bytes of their paths.
    newest_bytes: usize,
    /// The first place for which the page had no room: it belongs to the next page, and so does everything after it.
    passed_over: Option<Place>,
    paths: Paths,
    hit: &'q mut dyn FnMut(Hit) -> ControlFlow<()>,
}

struct Candidate {
    found: Found,
    points: Rc<[Point]>,
}

impl Search<'_> {
    fn scan(&mut self, vm: Uuid, table: &Table) -> Result<ControlFlow<()>, CatalogError> {
        let header = table.header();
        let number = match self.query.point.map(|id| header.point(id)) {
            Some(None) => return Ok(ControlFlow::Continue(())),
            Some(Some(point)) => Some(point.number),
            None => None,
        };
        self.report.tables += 1;
        let points: Rc<[Point]> = header.points.as_slice().into();
        for (index, group) in header.groups.iter().enumerate() {
            if number.is_some_and(|number| number < group.first_min || group.last_max < number) {
                continue;
            }
            if let (Order::Path, Some(after)) = (self.query.order, &self.after)
                && (vm, group.path_last.as_slice()) < (after.vm, after.path.as_slice())
            {
                continue;
            }
            let reader = table.group(index)?;
            reader.paths(&mut self.paths)?;
            self.report.rows += self.paths.len() as u64;
            let rows = self.fitting_rows();
            if rows.is_empty() {
                continue;
            }
            let intervals = reader.intervals(Which::These(&rows))?;
            let versions = reader.versions(Which::These(&rows))?;
            for ((row, interval), version) in rows.into_iter().zip(intervals).zip(versions) {
                if number.is_some_and(|number| !interval.contains(number)) {
                    continue;
                }
                if self.query.admits(&version) && self.take(vm, row, version, interval, &points)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn fitting_rows(&self) -> Vec<usize> {
        self.paths.runs().filter(|run| self.matcher.fits(self.paths.get(run.start))).flatten().collect()
    }

    fn take(
        &mut self,
        vm: Uuid,
        row: usize,
        version: Version,
        interval: Interval,
        points: &Rc<[Point]>,
    ) -> Result<ControlFlow<()>, CatalogError> {
        let mtime_us = (self.query.order == Order::NewestFirst).then_some(Reverse(version.mtime_us));
        if self.passed_over.as_ref().is_some_and(|passed_over| mtime_us > passed_over.mtime_us) {
            return Ok(ControlFlow::Continue(()));
        }
        let place = Place { mtime_us, vm, path: self.paths.get(row).to_vec(), first: interval.first };
        if self.after.as_ref().is_some_and(|after| place <= *after) {
            return Ok(ControlFlow::Continue(()));
        }
        let found = Found { place, version, interval };
        match self.query.order {
            Order::Path => self.tell(found, points),
            Order::NewestFirst => {
                self.keep(Candidate { found, points: points.clone() });
                Ok(ControlFlow::Continue(()))
            }
        }
    }

    /// Keeps a candidate unless the page ends before it; those that it displaces belong to the next page.
    fn keep(&mut self, candidate: Candidate) {
        if self.passed_over.as_ref().is_some_and(|passed_over| candidate.found.place > *passed_over) {
            return;
        }
        self.newest_bytes += candidate.found.place.path.len();
        self.newest.push(candidate);
        // One always stays, so that each page goes on; unless no hits were asked for.
        while self.newest.len() > self.page_hits || self.newest.len() > 1 && self.newest_bytes > NEWEST_FIRST_BYTES_MAX
        {
            let Some(last) = self.newest.pop() else { return };
            self.newest_bytes -= last.found.place.path.len();
            self.passed_over = Some(last.found.place);
        }
    }

    fn tell_newest(mut self) -> Result<SearchReport, CatalogError> {
        for Candidate { found, points } in std::mem::take(&mut self.newest).into_sorted_vec() {
            if self.tell(found, &points)?.is_break() {
                return Ok(self.report);
            }
        }
        if self.passed_over.is_some() {
            self.report.next = self.next()?;
        }
        Ok(self.report)
    }

    /// Where the next page begins. A page of no hits begins where the search began.
    fn next(&self) -> Result<Option<PageToken>, CatalogError> {
        match &self.last {
            Some(last) => Ok(Some(last.token()?)),
            None => Ok(self.query.after.clone()),
        }
    }

    /// Tells one hit, unless the page is full: then it says where the next one begins.
    fn tell(&mut self, found: Found, points: &[Point]) -> Result<ControlFlow<()>, CatalogError> {
        if self.report.hits as usize == self.page_hits {
            self.report.next = self.next()?;
            return Ok(ControlFlow::Break(()));
        }
        self.report.hits += 1;
        let Found { place, version, interval } = found;
        let told =
            (self.hit)(Hit { vm: place.vm, path: place.path.clone(), version, points: presence(points, interval) });
        self.last = Some(place);
        if told.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Candidate) -> Ordering {
        self.found.place.cmp(&other.found.place)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Candidate) -> bool {
        self.found.place == other.found.place
    }
}

impl Eq for Candidate {}
