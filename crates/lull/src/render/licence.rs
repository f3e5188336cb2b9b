//! The licence in force.

use super::table::facts;
use super::text::one_line;
use super::{Look, Tone};
use lull_api::licence::LicenceStatus;

/// What it is, and what follows from it.
pub fn status(status: &LicenceStatus, look: &Look) -> String {
    let kind = match (&status.edition, status.sockets) {
        (Some(edition), Some(sockets)) => format!("{}, edition {edition}, {sockets} sockets", status.kind),
        _ => status.kind.clone(),
    };
    let held = match status.state.as_str() {
        "built-in" => "built-in: no licence file is installed".to_string(),
        state => state.replace('-', " "),
    };
    let valid = match (&status.valid_from, &status.valid_until) {
        (Some(from), Some(until)) => format!("{from} to {until}"),
        _ => String::new(),
    };
    let mut text = facts(
        look,
        &[
            ("licence", kind),
            ("state", held),
            ("licensee", status.licensee.clone().unwrap_or_default()),
            ("number", status.id.clone().unwrap_or_default()),
            ("valid", valid),
            ("issued by", status.issuer.clone().unwrap_or_default()),
            ("proxies", if status.admits_proxies { "may be used" } else { "not licensed" }.into()),
            ("means", status.meaning.join("\n")),
        ],
    );
    if let Some(warning) = &status.warning {
        text.push_str(&format!("{} {}\n", look.paint(Tone::Warning, "warning:"), one_line(warning)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_says_what_follows_from_it() {
        let sample = LicenceStatus {
            state: "expires-soon".into(),
            kind: "socket".into(),
            edition: Some("standard".into()),
            sockets: Some(4),
            id: Some("T-1".into()),
            licensee: Some("Example".into()),
            issuer: Some("Lull".into()),
            valid_from: Some("2026-01-01".into()),
            valid_until: Some("2026-12-31".into()),
            admits_proxies: false,
            meaning: vec!["the backup server does all guest interaction itself".into()],
            warning: Some("the licence ends in 20 days".into()),
        };
        assert_eq!(
            status(&sample, &Look::plain(None)),
            "\
licence    socket, edition standard, 4 sockets
state      expires soon
licensee   Example
number     T-1
valid      2026-01-01 to 2026-12-31
issued by  Lull
proxies    not licensed
means      the backup server does all guest interaction itself
warning: the licence ends in 20 days
"
        );
    }
}
