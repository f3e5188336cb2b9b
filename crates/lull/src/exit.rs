//! Exit codes: one table, shown by `lull exit-codes` and kept word for word in `docs/exit-codes.md`.
//!
//! Knows nothing of how a command came to its end.

/// How a command ended. The numbers are a promise to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The task, session, verification or local step failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The server refused the request: unknown object, bad value, or a state that does not allow it.
    Refused = 3,
    /// The server cannot be reached, or the connection to it was lost for good.
    Unreachable = 4,
    /// The server does not accept the token, or there is none.
    NotAuthenticated = 5,
    /// Done, with warnings.
    Warning = 6,
    /// The session was cancelled.
    Cancelled = 7,
    /// The server failed at the request, or its answer made no sense.
    ServerError = 8,
    /// `quiesce`: COMMAND succeeded inside the quiet moment, the session failed afterwards.
    QuiesceEndedBadly = 123,
    /// `quiesce`: the guest was not at rest all the time that COMMAND ran, or this is not known.
    NotAtRest = 124,
    /// `quiesce`: the guest was not brought to rest, COMMAND was not run.
    NotQuiesced = 125,
    /// `quiesce`: COMMAND could not be started.
    CommandNotExecutable = 126,
    /// `quiesce`: COMMAND was not found.
    CommandNotFound = 127,
    /// Ctrl-C; what the server was doing goes on.
    Interrupted = 130,
    /// Nobody read the output any more.
    BrokenPipe = 141,
}

/// Every code with its meaning, in order.
pub const TABLE: &[(Exit, &str)] = &[
    (Exit::Ok, "Done. A session that was waited for ended with success."),
    (
        Exit::Failed,
        "Failed: the session that was waited for, the verification, a doctor's finding, or a step on this side.",
    ),
    (Exit::Usage, "The command line is wrong; nothing was done."),
    (
        Exit::Refused,
        "The server refused: unknown object, bad value, or something else is in the way. Nothing was changed.",
    ),
    (Exit::Unreachable, "The server cannot be reached, or the connection to it was lost for good."),
    (
        Exit::NotAuthenticated,
        "The server did not accept the token, or no token could be read. `proxy run`: the backup server revoked this proxy or does not know it.",
    ),
    (Exit::Warning, "Done with warnings: the session ended with a warning, or the doctor found one."),
    (Exit::Cancelled, "The session that was waited for was cancelled."),
    (Exit::ServerError, "The server failed at the request, or its answer was not understood."),
    (Exit::QuiesceEndedBadly, "quiesce: COMMAND succeeded inside the quiet moment, but the session failed afterwards."),
    (
        Exit::NotAtRest,
        "quiesce: the guest was not at rest all the time that COMMAND ran (it thawed early, or this is not known); do not trust what COMMAND took.",
    ),
    (Exit::NotQuiesced, "quiesce: the guest was not brought to rest; COMMAND was not run."),
    (Exit::CommandNotExecutable, "quiesce: COMMAND could not be started."),
    (Exit::CommandNotFound, "quiesce: COMMAND was not found."),
    (Exit::Interrupted, "Interrupted by Ctrl-C while waiting; what the server was doing goes on."),
    (Exit::BrokenPipe, "Whoever read the output closed it."),
];

/// What follows the table: how `quiesce` passes on the exit code of its command.
pub const QUIESCE_RULE: &str = "\
`lull quiesce VM -- COMMAND` ends with COMMAND's own exit code (128 + N if signal N killed it) whenever the guest was at \
rest from before COMMAND started until after it ended. The codes 123 to 127 above take precedence; a COMMAND that itself \
uses them cannot be told apart by the code alone, `--json` tells.";

/// The table as text for a terminal.
pub fn table_text() -> String {
    let mut text = String::from("Exit codes of lull:\n\n");
    for (exit, meaning) in TABLE {
        text.push_str(&format!("  {:>3}  {meaning}\n", *exit as u8));
    }
    text.push('\n');
    text.push_str(QUIESCE_RULE);
    text.push('\n');
    text
}

/// Exit code for the result of a session: `success`, `warning`, `failed` or `cancelled`.
pub fn of_result(result: Option<&str>) -> Exit {
    match result {
        Some("success") => Exit::Ok,
        Some("warning") => Exit::Warning,
        Some("cancelled") => Exit::Cancelled,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_holds_every_code_with_its_meaning() {
        let document = include_str!("../../../docs/exit-codes.md");
        for (exit, meaning) in TABLE {
            let row = format!("| {} | {meaning} |", *exit as u8);
            assert!(document.contains(&row), "docs/exit-codes.md lacks the row\n{row}");
        }
        let rows = document.lines().filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit());
        assert_eq!(rows.count(), TABLE.len(), "docs/exit-codes.md has rows that the program does not know");
        assert!(document.contains(QUIESCE_RULE));
    }

    #[test]
    fn only_success_ends_with_0() {
        assert_eq!(of_result(Some("success")), Exit::Ok);
        assert_eq!(of_result(Some("warning")), Exit::Warning);
        assert_eq!(of_result(Some("cancelled")), Exit::Cancelled);
        assert_eq!(of_result(Some("failed")), Exit::Failed);
        assert_eq!(of_result(Some("something new")), Exit::Failed);
        assert_eq!(of_result(None), Exit::Failed);
    }
}
