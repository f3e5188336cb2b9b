//! Sessions and restore points as lists.

use super::table::{facts, or_dash, table};
use super::text::{list as sentence, one_line};
use super::{Look, Tone, session, units};
use lull_api::infrastructure::{RestorePoint, Verdict, Verification};
use lull_api::session::SessionSummary;

/// Sessions.
pub fn sessions(sessions: &[SessionSummary], look: &Look) -> String {
    let rows = sessions.iter().map(|summary| {
        let took = units::between_us(&summary.started_at, summary.ended_at.as_deref(), look);
        vec![
            summary.id.to_string(),
            summary.result.clone().unwrap_or_else(|| summary.state.clone()),
            session::purpose(summary),
            units::time(&summary.started_at, look),
            took.map(units::duration).unwrap_or_default(),
            sentence(&summary.vms),
        ]
    });
    table(look, &["session", "result", "of", "started", "took", "vms"], rows.collect(), "There is no session yet.")
}

/// Restore points.
pub fn restore_points(points: &[RestorePoint], look: &Look) -> String {
    let rows = points.iter().map(|point| {
        vec![
            point.id.to_string(),
            point.vm.clone(),
            units::time(&point.created_at, look),
            point.level.clone(),
            point.kind.clone(),
            units::bytes(point.bytes),
            or_dash(point.job.as_deref()),
            point.repository.clone(),
            state(point, look),
        ]
    });
    let titles = ["restore point", "vm", "taken", "level", "kind", "size", "job", "repository", "verified"];
    table(look, &titles, rows.collect(), "There is no restore point yet.")
}

/// One restore point.
pub fn restore_point(point: &RestorePoint, look: &Look) -> String {
    facts(
        look,
        &[
            ("restore point", point.id.to_string()),
            ("vm", point.vm.clone()),
            ("taken", units::time(&point.created_at, look)),
            ("level", point.level.clone()),
            ("reasons", point.level_reasons.join("\n")),
            ("kind", point.kind.clone()),
            ("builds on", or_dash(point.parent.map(|id| id.to_string()).as_deref())),
            ("full because", or_dash(point.full_because.as_deref())),
            ("size", units::bytes(point.bytes)),
            ("job", or_dash(point.job.as_deref())),
            ("session", point.session.to_string()),
            ("repository", point.repository.clone()),
            ("folder", point.directory.clone()),
            ("disks", point.disks.join("\n")),
            ("verified", state(point, look)),
        ],
    )
}

/// Whether it can be relied on, as far as known.
fn state(point: &RestorePoint, look: &Look) -> String {
    match point.verified.as_deref().and_then(|verified| verified.split_once(": ")) {
        _ if point.removing => "being removed".into(),
        Some((at, outcome)) => format!("{outcome}, {}", units::time(at, look)),
        None => or_dash(point.verified.as_deref()),
    }
}

/// What a verification found.
pub fn verification(verification: &Verification, look: &Look) -> String {
    let mut text = match verification.verdict {
        Verdict::Sound => look.paint(Tone::Good, "sound"),
        Verdict::Damaged => look.paint(Tone::Bad, "DAMAGED"),
        Verdict::NotChecked => look.paint(Tone::Warning, "NOT CHECKED"),
    };
    text.push('\n');
    for finding in &verification.findings {
        text.push_str(&format!("  {}\n", one_line(finding)));
    }
    for what in &verification.not_checked {
        text.push_str(&format!("  not checked: {}\n", one_line(what)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_session_counts_up() {
        let summary = SessionSummary {
            id: 3,
            kind: "rehearse".into(),
            job: None,
            scheduled_for: None,
            retry: None,
            state: "running".into(),
            result: None,
            started_at: "2026-03-01T11:59:58Z".into(),
            ended_at: None,
            vms: vec!["a".into(), "b".into()],
        };
        assert_eq!(
            sessions(&[summary], &Look::plain(None)),
            "\
SESSION  RESULT   OF                   STARTED              TOOK   VMS
3        running  rehearse of a and b  2026-03-01 11:59:58  2.0 s  a and b
"
        );
    }

    #[test]
    fn a_damaged_restore_point_is_loud() {
        let found = |verdict, findings: &[&str], not_checked: &[&str]| Verification {
            ok: verdict == Verdict::Sound,
            verdict,
            findings: findings.iter().map(ToString::to_string).collect(),
            not_checked: not_checked.iter().map(ToString::to_string).collect(),
        };
        let damaged = found(Verdict::Damaged, &["disk0.qcow2: 3 leaked clusters"], &[]);
        assert_eq!(verification(&damaged, &Look::plain(None)), "DAMAGED\n  disk0.qcow2: 3 leaked clusters\n");
        let unseen = found(Verdict::NotChecked, &["disk0.qcow2: sound"], &["disk1.qcow2: Permission denied"]);
        assert_eq!(
            verification(&unseen, &Look::plain(None)),
            "NOT CHECKED\n  disk0.qcow2: sound\n  not checked: disk1.qcow2: Permission denied\n"
        );
    }
}
