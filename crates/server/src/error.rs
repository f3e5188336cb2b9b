//! Why the server does not start or stops. Errors of single requests are [`lull_api::Problem`]s.

/// Why the server could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It could not start.
    #[error("the backup server cannot start: {what}")]
    Starting {
        /// What is missing.
        what: String,
    },
}
