//! What a verification says of each restore point of a chain. Knows no files and no database: a report and rows come in, outcomes go out.
//!
//! Who verifies an increment checks everything under it. What is found there is said of the point that it was found in, since that one stays
//! when the increment goes, and others rest on it.

use crate::instant::rfc3339;
use crate::store::restore_points::{DAMAGED, RestorePointRow};
use crate::store::sessions::short_id;
use jiff::Timestamp;
use lull_hypervisor::VerifyReport;
use std::collections::BTreeSet;
use uuid::Uuid;

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// One line per finding, the point's own first.
    pub findings: Vec<String>,
    /// What is to be recorded of each restore point that the database knows.
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
pub fn judge(report: &VerifyReport, asked: &RestorePointRow, rows: &[RestorePointRow]) -> Verdict {
    let row_of = |short: &str| {
        let is_it = |row: &&RestorePointRow| row.repository == asked.repository && short_id(row.id) == short;
        rows.iter().find(is_it)
    };
    let own = report.metadata.restore_point.as_str();
    let whose = |point: &str| if point == own { String::new() } else { format!("restore point {point}, ") };
    let mut findings = Vec::new();
    let mut faulty: BTreeSet<&str> = BTreeSet::new();
    for file in &report.files {
        let point = file.restore_point.as_str();
        findings.push(format!("{}{}: {}", whose(point), file.file, file.fault.as_deref().unwrap_or("sound")));
        faulty.extend(file.fault.is_some().then_some(point));
    }
    for link in &report.broken_links {
        findings.push(link.to_string());
        faulty.insert(&link.restore_point);
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
        (row, faulty.contains(point.as_str()).then_some(answers))
    });
    let links: Vec<(Option<Uuid>, Option<Uuid>)> = links.collect();
    let damaged: BTreeSet<Uuid> = links.iter().filter_map(|(_, fault)| *fault).collect();
    let (mut outcomes, mut below) = (Vec::new(), Outcome::Sound);
    for (row, fault) in links.into_iter().rev() {
        if let Some(row) = row {
            outcomes.push((row, if damaged.contains(&row) { Outcome::Damaged } else { below }));
        }
        below = fault.map_or(below, Outcome::BuildsOn);
    }
    Verdict { findings, outcomes }
}
