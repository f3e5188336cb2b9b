//! What a verification says of each restore point of a chain. Knows no files and no database: a report and rows come in, outcomes go out.
//!
//! Who verifies an increment checks everything under it. What is found there is said of the point that it was found in, since that one stays
//! when the increment goes, and others rest on it.

use crate::instant::rfc3339;
use crate::store::restore_points::{DAMAGED, RestorePointRow};
use crate::store::sessions::short_id;
use jiff::Timestamp;
use lull_api::infrastructure::Verdict;
use lull_hypervisor::VerifyReport;
use lull_hypervisor::verify::{Finding, VerifiedFile};
use std::collections::BTreeSet;
use uuid::Uuid;

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What is known of the restore point that was asked for.
    pub verdict: Verdict,
    /// One line per finding, the point's own first.
    pub findings: Vec<String>,
    /// What could not be looked at, and why.
    pub not_checked: Vec<String>,
    /// What is to be recorded of each restore point that the database knows. Of what could not be checked nothing is.
    pub outcomes: Vec<(Uuid, Outcome)>,
}

/// What is recorded of one restore point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It and all that it builds on can be read.
    Sound,
    /// It is damaged itself, or what it builds on is missing and unknown.
    Damaged,
    /// Nothing is wrong with it, but one that it builds on is damaged.
    BuildsOn(Uuid),
}

impl Outcome {
    /// As it is recorded.
    pub fn text(self, at: Timestamp) -> String {
        let at = rfc3339(at);
        match self {
            Outcome::Sound => format!("{at}: sound"),
            Outcome::Damaged => format!("{at}{DAMAGED}"),
            Outcome::BuildsOn(other) => format!("{at}: builds on {other}, which is damaged"),
        }
    }
}

/// Judges the chain of `asked`. `rows`: restore points of its VM.
pub fn judge(report: &VerifyReport, asked: &RestorePointRow, rows: &[RestorePointRow]) -> Verified {
    let row_of = |short: &str| {
        let is_it = |row: &&RestorePointRow| row.repository == asked.repository && short_id(row.id) == short;
        rows.iter().find(is_it)
    };
    let own = report.chain.first();
    let whose = |point: &String| if Some(point) == own { String::new() } else { format!("restore point {point}, ") };
    let (mut findings, mut not_checked) = (Vec::new(), Vec::new());
    let (mut faulty, mut unseen): (BTreeSet<&str>, BTreeSet<&str>) = Default::default();
    for VerifiedFile { restore_point, file, finding } in &report.files {
        let what = format!("{}{file}", whose(restore_point));
        match finding {
            Finding::Sound => findings.push(format!("{what}: sound")),
            Finding::Damaged(why) => {
                findings.push(format!("{what}: {why}"));
                faulty.insert(restore_point);
            }
            Finding::NotChecked(why) => {
                not_checked.push(format!("{what}: {why}"));
                unseen.insert(restore_point);
            }
        }
    }
    for link in &report.broken_links {
        findings.push(link.to_string());
        faulty.insert(&link.restore_point);
    }
    if let Some(link) = &report.not_followed {
        not_checked.push(link.to_string());
        unseen.insert(&link.restore_point);
    }
    for point in &report.chain {
        let named: Vec<&str> =
            report.files.iter().filter(|f| f.restore_point == *point).map(|f| f.file.as_str()).collect();
        // A description that cannot be read at all is said above.
        let known = row_of(point).filter(|_| !named.is_empty()).map_or(&[][..], |row| &row.disks);
        for disk in known.iter().filter(|disk| !named.contains(&disk.as_str())) {
            findings.push(format!("{}{disk}: not named in the restore point's own list", whose(point)));
            faulty.insert(point);
        }
    }
    // For one that the database does not know, the next point that rests on it answers.
    let mut answers = asked.id;
    let links = report.chain.iter().map(|point| {
        let row = row_of(point).map(|row| row.id);
        answers = row.unwrap_or(answers);
        (point.as_str(), row, faulty.contains(point.as_str()).then_some(answers))
    });
    let links: Vec<(&str, Option<Uuid>, Option<Uuid>)> = links.collect();
    let damaged: BTreeSet<Uuid> = links.iter().filter_map(|(.., fault)| *fault).collect();
    let (mut outcomes, mut below) = (Vec::new(), Some(Outcome::Sound));
    for (point, row, fault) in links.into_iter().rev() {
        // What rests on something that nobody saw is not known to be sound.
        below = below.filter(|below| *below != Outcome::Sound || !unseen.contains(point));
        if let Some(row) = row {
            let outcome = if damaged.contains(&row) { Some(Outcome::Damaged) } else { below };
            outcomes.extend(outcome.map(|outcome| (row, outcome)));
        }
        below = fault.map_or(below, |fault| Some(Outcome::BuildsOn(fault)));
    }
    let verdict = match (faulty.is_empty(), unseen.is_empty()) {
        (true, true) => Verdict::Sound,
        (true, false) => Verdict::NotChecked,
        (false, _) => Verdict::Damaged,
    };
    Verified { verdict, findings, not_checked, outcomes }
}
