//! The bounds of guest processing settings. Knows no job: only one set of settings at a time.

use super::{GuestProcessing, Indexing, Scripts, TransactionLogs};
use std::ops::RangeInclusive;

// Shorter than two renewals, a lease would expire on one lost packet.
const LEASE_MS: RangeInclusive<u64> = 2_000..=60_000;
// VSS writers stay frozen for at most 60 s; nothing of ours holds longer.
const FREEZE_BUDGET_MS: RangeInclusive<u64> = 1_000..=60_000;
const SCRIPT_TIMEOUT_MS: RangeInclusive<u64> = 1_000..=3_600_000;
const CHECKPOINT_TIMEOUT_MS: RangeInclusive<u64> = 1_000..=600_000;
// An order to the component holds all of them.
const INDEXED_PATHS: RangeInclusive<u64> = 1..=256;
const SCRIPT_BYTES_MAX: usize = 64 * 1024;
// `PATH_MAX` on Linux.
const PATH_BYTES_MAX: usize = 4_096;

/// A setting that cannot be honoured: which, with what value, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum SettingError {
    /// A number outside its bounds.
    #[error("{field} is {value}: it must lie between {min} and {max}")]
    OutOfBounds {
        /// The field's path, for example `checkpoint.timeout_ms`.
        field: String,
        /// The value that was given.
        value: u64,
        /// The smallest value allowed.
        min: u64,
        /// The largest value allowed.
        max: u64,
    },
    /// A text that does not have the form it needs.
    #[error("{field} is \"{value}\": {rule}")]
    Malformed {
        /// The field's path.
        field: String,
        /// The value, shortened.
        value: String,
        /// What it must look like.
        rule: String,
    },
    /// A setting of the product that this release does not act upon.
    #[error("{field} is \"{value}\", which this release cannot do yet: leave it at \"{instead}\"")]
    NotInThisRelease {
        /// The field's path.
        field: String,
        /// The value that was given.
        value: String,
        /// The value this release honours.
        instead: String,
    },
}

/// All errors of one set of settings, in the order of its fields.
pub(super) fn check(settings: &GuestProcessing) -> Vec<SettingError> {
    let mut errors = Vec::new();
    scripts("scripts.linux", &settings.scripts.linux, true, &mut errors);
    scripts("scripts.windows", &settings.scripts.windows, false, &mut errors);
    within("lease_ms", settings.lease_ms, LEASE_MS, &mut errors);
    within("freeze_budget_ms", settings.freeze_budget_ms, FREEZE_BUDGET_MS, &mut errors);
    within("checkpoint.timeout_ms", settings.checkpoint.timeout_ms, CHECKPOINT_TIMEOUT_MS, &mut errors);
    for (index, path) in settings.excluded_mount_points.iter().enumerate() {
        if !is_absolute(path) {
            errors.push(SettingError::Malformed {
                field: format!("excluded_mount_points[{index}]"),
                value: shortened(path),
                rule: "a mount point is an absolute path such as /srv/scratch or D:\\".into(),
            });
        }
    }
    if let Some(Indexing::Only { paths }) = &settings.indexing {
        indexed_paths(paths, &mut errors);
    }
    let logs = match &settings.transaction_logs {
        TransactionLogs::LeaveAlone => None,
        TransactionLogs::Truncate => Some("truncate"),
        TransactionLogs::BackUp { .. } => Some("back-up"),
    };
    if let Some(value) = logs {
        let (field, instead) = ("transaction_logs".into(), "leave-alone".into());
        errors.push(SettingError::NotInThisRelease { field, value: value.into(), instead });
    }
    errors
}

fn indexed_paths(paths: &[String], errors: &mut Vec<SettingError>) {
    within("indexing.paths (how many)", paths.len() as u64, INDEXED_PATHS, errors);
    for (index, path) in paths.iter().enumerate() {
        if !is_absolute(path) {
            errors.push(SettingError::Malformed {
                field: format!("indexing.paths[{index}]"),
                value: shortened(path),
                rule: "a folder to index is an absolute path such as /srv or D:\\Data".into(),
            });
        } else {
            let field = format!("indexing.paths[{index}] (bytes)");
            within(&field, path.len() as u64, 1..=PATH_BYTES_MAX as u64, errors);
        }
    }
}

fn scripts(path: &str, scripts: &Scripts, needs_shebang: bool, errors: &mut Vec<SettingError>) {
    for (name, script) in [("pre", &scripts.pre), ("post", &scripts.post)] {
        let Some(text) = script else { continue };
        let field = format!("{path}.{name}");
        if text.len() > SCRIPT_BYTES_MAX {
            errors.push(SettingError::OutOfBounds {
                field: format!("{field} (bytes)"),
                value: text.len() as u64,
                min: 1,
                max: SCRIPT_BYTES_MAX as u64,
            });
        } else if needs_shebang && !text.starts_with("#!") {
            errors.push(SettingError::Malformed {
                field,
                value: shortened(text),
                rule: "a script for Linux begins with #! and its interpreter, such as #!/bin/sh".into(),
            });
        } else if text.trim().is_empty() {
            errors.push(SettingError::Malformed {
                field,
                value: shortened(text),
                rule: "leave it out where no script is to run".into(),
            });
        }
    }
    within(&format!("{path}.timeout_ms"), scripts.timeout_ms, SCRIPT_TIMEOUT_MS, errors);
}

fn within(field: &str, value: u64, bounds: RangeInclusive<u64>, errors: &mut Vec<SettingError>) {
    if !bounds.contains(&value) {
        errors.push(SettingError::OutOfBounds { field: field.into(), value, min: *bounds.start(), max: *bounds.end() });
    }
}

fn is_absolute(path: &str) -> bool {
    let drive = path.as_bytes();
    let windows = drive.len() >= 2 && drive[0].is_ascii_alphabetic() && drive[1] == b':';
    (path.starts_with('/') || windows) && !path.contains('\0')
}

fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 40;
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CHARS_MAX).collect();
    if text.chars().nth(CHARS_MAX).is_some() { line + "…" } else { line }
}
