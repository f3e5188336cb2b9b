//! Brings one cluster to a checkpoint: log in once as its owner, read the facts, `CHECKPOINT` with a deadline, read them again, leave.
//! Decides no level and holds nothing afterwards.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::discover::places_now;
use super::login::{connect_as_owner, millis};
use super::session::{Session, SessionError};
use super::{Cluster, ClusterName, Facts, PgCause, PgError, QuiesceOptions, Quiesced, facts};

/// How long the server may take to confirm a cancelled checkpoint.
const CANCEL_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Should we die, the server itself gives our statement up this much after our own deadline.
const STATEMENT_MARGIN_MS: u64 = 5_000;

const CONNECTING: &str = "logging in";
const READING: &str = "reading its state";
const CHECKPOINTING: &str = "CHECKPOINT";

/// Logs in to `cluster` as its owner, over its Unix socket and without a password, reads its facts and issues a `CHECKPOINT` if asked.
///
/// One login only: after a refusal nothing is tried again. Blocks for at most about four times `connect_timeout_ms` plus `checkpoint_timeout_ms` plus a second.
/// Needs root, or to run as the owner.
///
/// Errors: always with the cluster's name and a [`PgCause`]. After [`PgCause::CheckpointTooSlow`] the facts are known and the cluster is as usable as
/// before: what that means for the level is the caller's decision.
pub fn quiesce(cluster: &Cluster, options: &QuiesceOptions) -> Result<Quiesced, PgError> {
    attempt(cluster, options).map_err(|cause| {
        let name = ClusterName { major: cluster.major, port: cluster.port, data_dir: cluster.data_dir.clone() };
        PgError { cluster: name, cause }
    })
}

fn attempt(cluster: &Cluster, options: &QuiesceOptions) -> Result<Quiesced, PgCause> {
    let start = Instant::now();
    let mut session = log_in(cluster, options)?;
    let mut facts = read_facts(cluster, &mut session, options)?;
    let mut checkpoint_ms = None;
    if options.checkpoint {
        checkpoint_ms = Some(checkpoint(cluster, &mut session, options, &facts)?);
        facts = read_facts(cluster, &mut session, options)?;
    }
    session.close();
    let places = places_now(Path::new("/proc"), cluster.pid, &cluster.data_dir)
        .map_err(|detail| PgCause::PlacesUnknown { detail })?;
    let against_application = facts::against_application(&facts);
    Ok(Quiesced { facts, checkpoint_ms, elapsed_ms: millis(start.elapsed()), places, against_application })
}

/// The second database is tried only when the server let us in and the first is not there: that is no second attempt at a refused login.
fn log_in(cluster: &Cluster, options: &QuiesceOptions) -> Result<Session, PgCause> {
    match log_in_to(cluster, "postgres", options)? {
        Ok(session) => Ok(session),
        Err(_) => log_in_to(cluster, "template1", options)?.map_err(|detail| PgCause::NoDatabase { detail }),
    }
}

/// The inner error is the server's word that this database does not exist or takes no connections.
fn log_in_to(cluster: &Cluster, database: &str, options: &QuiesceOptions) -> Result<Result<Session, String>, PgCause> {
    let timeout = Duration::from_millis(u64::from(options.connect_timeout_ms.max(1)));
    let deadline = Instant::now() + timeout;
    let stream = connect_as_owner(cluster, timeout)?;
    let statement_timeout =
        u64::from(options.checkpoint_timeout_ms.max(options.connect_timeout_ms)) + STATEMENT_MARGIN_MS;
    let statement_timeout = statement_timeout.min(i32::MAX as u64).to_string();
    let settings = [
        ("application_name", "lull-runtime"),
        ("client_encoding", "UTF8"),
        // A role's own settings must neither cut a checkpoint short nor lead a name elsewhere.
        ("statement_timeout", statement_timeout.as_str()),
        ("search_path", "pg_catalog"),
    ];
    let refused = |detail: String| PgCause::AuthenticationRefused { owner: cluster.owner.clone(), detail };
    match Session::login(stream, &cluster.owner, database, &settings, deadline) {
        Ok(session) => Ok(Ok(session)),
        Err(SessionError::ProofAsked(what)) => Err(refused(format!("it asks for {what}"))),
        Err(SessionError::Server { sqlstate, message }) => match sqlstate.as_str() {
            // invalid_catalog_name; object_not_in_prerequisite_state (the database takes no connections).
            "3D000" | "55000" => Ok(Err(message)),
            // Class 28: invalid authorization. 42501: not permitted to connect to the database.
            code if code.starts_with("28") || code == "42501" => Err(refused(message)),
            // Class 53: out of connections, memory or disk. Class 57: starting, stopping, or no hot standby.
            code if code.starts_with("53") || code.starts_with("57") => {
                Err(PgCause::NotAccepting { sqlstate, detail: message })
            }
            _ => Err(PgCause::Failed { step: CONNECTING.to_owned(), sqlstate, detail: message }),
        },
        Err(error) => Err(cause_of(error, cluster, CONNECTING, timeout)),
    }
}

fn read_facts(cluster: &Cluster, session: &mut Session, options: &QuiesceOptions) -> Result<Facts, PgCause> {
    let timeout = Duration::from_millis(u64::from(options.connect_timeout_ms.max(1)));
    let rows = session
        .query(facts::QUERY, Instant::now() + timeout)
        .map_err(|error| cause_of(error, cluster, READING, timeout))?;
    facts::parse(&rows).map_err(|detail| PgCause::BadAnswer { step: READING.to_owned(), detail })
}

/// Returns how long it took, milliseconds.
fn checkpoint(
    cluster: &Cluster,
    session: &mut Session,
    options: &QuiesceOptions,
    facts: &Facts,
) -> Result<u32, PgCause> {
    let start = Instant::now();
    let timeout = Duration::from_millis(u64::from(options.checkpoint_timeout_ms.max(1)));
    match session.query("CHECKPOINT", start + timeout) {
        Ok(_) => Ok(millis(start.elapsed())),
        Err(SessionError::Timeout) => {
            let elapsed_ms = millis(start.elapsed());
            let cancel_confirmed = cancel(cluster, session);
            Err(PgCause::CheckpointTooSlow { elapsed_ms, cancel_confirmed, facts: Box::new(facts.clone()) })
        }
        Err(error) => Err(cause_of(error, cluster, CHECKPOINTING, timeout)),
    }
}

/// Asks the server to end our waiting statement, and waits until it says so. The checkpointer itself cannot be cancelled.
fn cancel(cluster: &Cluster, session: &mut Session) -> bool {
    let deadline = Instant::now() + CANCEL_TIMEOUT;
    let Some(packet) = session.cancel_packet() else {
        return false;
    };
    let Ok(mut stream) = connect_as_owner(cluster, CANCEL_TIMEOUT) else {
        return false;
    };
    if stream.set_write_timeout(Some(CANCEL_TIMEOUT)).is_err() || stream.write_all(&packet).is_err() {
        return false;
    }
    // The statement may also have ended by itself just now: either way it no longer waits.
    matches!(session.finish(deadline), Ok(_) | Err(SessionError::Server { .. }))
}

fn cause_of(error: SessionError, cluster: &Cluster, step: &str, timeout: Duration) -> PgCause {
    let step = step.to_owned();
    match error {
        SessionError::Timeout => PgCause::NoAnswer { step, elapsed_ms: millis(timeout) },
        SessionError::Lost(detail) => PgCause::ConnectionLost { step, detail },
        SessionError::Bad(detail) => PgCause::BadAnswer { step, detail },
        SessionError::ProofAsked(what) => PgCause::BadAnswer { step, detail: format!("it asks for {what}") },
        SessionError::Server { sqlstate, message } if sqlstate == "42501" => {
            PgCause::NotPermitted { owner: cluster.owner.clone(), step, detail: message }
        }
        SessionError::Server { sqlstate, message } => PgCause::Failed { step, sqlstate, detail: message },
    }
}
