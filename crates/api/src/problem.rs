//! What an error looks like: to a program by its `code`, to a person by three sentences.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of every answer with a status of 400 or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{what}")]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Stable word for programs: `unknown-vm`, `name-taken`, `in-use`, `bad-value`, `not-authenticated`, …
    pub code: String,
    /// What failed, one sentence.
    pub what: String,
    /// Why, where more is known than `what` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Problem {
    /// A problem that only says what failed.
    pub fn new(status: u16, code: impl Into<String>, what: impl Into<String>) -> Self {
        Problem { status, code: code.into(), what: what.into(), why: None, remedy: None }
    }

    /// Says why.
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// Says what to do.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}
