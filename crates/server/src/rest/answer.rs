//! How errors become answers. Knows no endpoint.

use crate::secrets::SecretError;
use crate::store::StoreError;
use crate::store::sessions::BeginError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lull_api::Problem;

/// What a handler answers.
pub type Answer<T> = Result<T, Fault>;

/// A problem as an answer.
#[derive(Debug)]
pub struct Fault(pub Box<Problem>);

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Fault(Box::new(problem))
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        let problem = match &error {
            StoreError::Taken { kind, what } => Problem::new(409, "name-taken", error.to_string())
                .remedy(format!("choose another {what} for this {kind}")),
            StoreError::InUse { .. } => {
                Problem::new(409, "in-use", error.to_string()).remedy("remove what refers to it first")
            }
            StoreError::Missing { kind } => Problem::new(404, "gone", format!("this {kind} was removed meanwhile")),
            StoreError::TooNew { .. }
            | StoreError::NotOurs { .. }
            | StoreError::Damaged { .. }
            | StoreError::Database { .. } => {
                tracing::error!(error = &error as &dyn std::error::Error, "a request failed");
                let problem = Problem::new(500, "internal", error.to_string());
                match std::error::Error::source(&error) {
                    Some(source) => problem.why(source.to_string()),
                    None => problem,
                }
            }
        };
        problem.into()
    }
}

impl From<SecretError> for Fault {
    fn from(error: SecretError) -> Self {
        Problem::new(500, "internal", error.to_string()).into()
    }
}

impl From<BeginError> for Fault {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Store(error) => error.into(),
            BeginError::Busy { .. } => Problem::new(409, "vm-busy", format!("nothing was started: {error}"))
                .remedy("wait for that session, or cancel it: lull session cancel NUMBER")
                .into(),
            BeginError::Running { session, .. } => Problem::new(
                409,
                "job-running",
                format!("nothing was started: {error}"),
            )
            .why("a job does not overlap with itself")
            .remedy(format!(
                "follow that session: lull session follow {session}; or cancel it: lull session cancel {session}"
            ))
            .into(),
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A value that cannot be: names the member and what it must be.
pub fn bad_value(member: &str, what: impl Into<String>) -> Fault {
    Problem::new(422, "bad-value", format!("{member}: {}", what.into())).into()
}
