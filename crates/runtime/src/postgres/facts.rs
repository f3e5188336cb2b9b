//! What a server says about itself: one query, the same for every version from 10 on, and what speaks against the level `application`.
//! The query's text and the reading of its row; no connection.

use serde::{Deserialize, Serialize};

/// What a restore point keeps about a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Such as 150018.
    pub server_version_num: u32,
    /// Such as `15.18 (Debian 15.18-0+deb12u1)`.
    pub server_version: String,
    /// The cluster's identity; a standby has its primary's.
    pub system_identifier: u64,
    /// The timeline it writes (primary) or has replayed for sure (standby).
    pub timeline: u32,
    /// Whether it is a standby, or recovering from an archive.
    pub in_recovery: bool,
    /// A primary's current write position, a standby's last replayed one; `None` when a standby has replayed nothing yet.
    pub wal_position: Option<Lsn>,
    /// Where the latest checkpoint (on a standby: restartpoint) was written.
    pub checkpoint_position: Lsn,
    /// Where recovery would start.
    pub redo_position: Lsn,
    /// Setting `fsync`.
    pub fsync: bool,
    /// Setting `full_page_writes`.
    pub full_page_writes: bool,
    /// Setting `synchronous_commit` as the owner's session has it (roles and databases may differ).
    pub synchronous_commit: String,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
}

/// A position in the write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lsn(pub u64);

impl std::fmt::Display for Lsn {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// One row of text. A standby may call neither `pg_current_wal_lsn` nor `pg_walfile_name`, hence the CASEs. On a primary the control
/// file's timeline lags behind a promotion, the name of the present WAL file does not.
pub(super) const QUERY: &str = "\
SELECT pg_catalog.current_setting('server_version_num'), \
 pg_catalog.current_setting('server_version'), \
 system.system_identifier::pg_catalog.text, \
 CASE WHEN pg_catalog.pg_is_in_recovery() \
  THEN pg_catalog.to_hex(GREATEST(point.timeline_id, recovery.min_recovery_end_timeline)) \
  ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END, \
 pg_catalog.pg_is_in_recovery()::pg_catalog.text, \
 CASE WHEN pg_catalog.pg_is_in_recovery() \
  THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END::pg_catalog.text, \
 point.checkpoint_lsn::pg_catalog.text, \
 point.redo_lsn::pg_catalog.text, \
 pg_catalog.current_setting('fsync'), \
 pg_catalog.current_setting('full_page_writes'), \
 pg_catalog.current_setting('synchronous_commit'), \
 pg_catalog.current_setting('data_checksums') \
FROM pg_catalog.pg_control_system() AS system, \
 pg_catalog.pg_control_checkpoint() AS point, \
 pg_catalog.pg_control_recovery() AS recovery";

/// Reads the row that [`QUERY`] gives.
///
/// Errors: the name of the value that is missing or has no sense.
pub(super) fn parse(rows: &[Vec<Option<String>>]) -> Result<Facts, String> {
    let [row] = rows else {
        return Err(format!("{} rows instead of one", rows.len()));
    };
    let [version_num, version, system, timeline, recovery, wal, checkpoint, redo, fsync, pages, commit, checksums] =
        row.as_slice()
    else {
        return Err(format!("{} values instead of 12", row.len()));
    };
    let mut facts = Facts {
        server_version_num: read("server_version_num", version_num, |text| text.parse().ok())?,
        server_version: read("server_version", version, |text| Some(text.to_owned()))?,
        // The server has no unsigned type and prints large identifiers as negative numbers.
        system_identifier: read("system_identifier", system, |text| Some(text.parse::<i64>().ok()?.cast_unsigned()))?,
        timeline: read("timeline", timeline, |text| u32::from_str_radix(text, 16).ok())?,
        in_recovery: read("pg_is_in_recovery", recovery, switch)?,
        wal_position: None,
        checkpoint_position: read("checkpoint_lsn", checkpoint, lsn)?,
        redo_position: read("redo_lsn", redo, lsn)?,
        fsync: read("fsync", fsync, switch)?,
        full_page_writes: read("full_page_writes", pages, switch)?,
        synchronous_commit: read("synchronous_commit", commit, |text| Some(text.to_owned()))?,
        data_checksums: read("data_checksums", checksums, switch)?,
    };
    if wal.is_some() || !facts.in_recovery {
        facts.wal_position = Some(read("WAL position", wal, lsn)?);
    }
    Ok(facts)
}

/// What speaks against the level `application` for a cluster with these facts, however it is frozen; one sentence each.
pub(super) fn against_application(facts: &Facts) -> Vec<String> {
    let mut reasons = Vec::new();
    if !facts.fsync {
        let reason = "fsync is off: the server does not see to it that its log reaches the disk before its data, so its recovery is not \
             promised; set fsync = on";
        reasons.push(reason.to_owned());
    }
    reasons
}

fn read<T>(name: &str, value: &Option<String>, parse: impl Fn(&str) -> Option<T>) -> Result<T, String> {
    let text = value.as_deref().ok_or_else(|| format!("no {name}"))?;
    parse(text).ok_or_else(|| format!("{name} is {text:?}"))
}

fn switch(text: &str) -> Option<bool> {
    match text {
        "on" | "true" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    }
}

fn lsn(text: &str) -> Option<Lsn> {
    let (high, low) = text.split_once('/')?;
    let (high, low) = (u32::from_str_radix(high, 16).ok()?, u32::from_str_radix(low, 16).ok()?);
    Some(Lsn(u64::from(high) << 32 | u64::from(low)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn primary() -> Vec<Option<String>> {
        let row = ["150018", "15.18", "-7", "0000000A", "false", "1A/2B", "1A/2A", "1A/29", "on", "on", "local", "off"];
        row.into_iter().map(|text| Some(text.to_owned())).collect()
    }

    #[test]
    fn a_primary() {
        let facts = parse(&[primary()]).unwrap();
        assert_eq!((facts.timeline, facts.system_identifier), (10, u64::MAX - 6));
        assert_eq!(facts.wal_position.unwrap().to_string(), "1A/2B");
        assert_eq!((facts.fsync, facts.data_checksums, facts.in_recovery), (true, false, false));
        assert_eq!(against_application(&facts), Vec::<String>::new());
    }

    #[test]
    fn a_standby_may_have_replayed_nothing_but_a_primary_has_a_position() {
        let mut row = primary();
        row[5] = None;
        assert_eq!(parse(&[row.clone()]), Err("no WAL position".to_owned()));
        row[4] = Some("true".into());
        assert_eq!(parse(&[row]).unwrap().wal_position, None);
    }

    #[test]
    fn fsync_off_speaks_against_the_level() {
        let mut row = primary();
        row[8] = Some("off".into());
        let reasons = against_application(&parse(&[row]).unwrap());
        assert!(matches!(reasons.as_slice(), [one] if one.starts_with("fsync is off")));
    }

    #[test]
    fn an_unknown_value_is_named() {
        let mut row = primary();
        row[11] = Some("inprogress".into());
        assert_eq!(parse(&[row]), Err("data_checksums is \"inprogress\"".to_owned()));
        assert_eq!(parse(&[]), Err("0 rows instead of one".to_owned()));
    }

    proptest! {
        #[test]
        fn a_position_reads_back_as_it_was_printed(position: u64) {
            prop_assert_eq!(lsn(&Lsn(position).to_string()), Some(Lsn(position)));
        }
    }
}
