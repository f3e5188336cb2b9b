//! What callers send: bodies and query strings, bounded and strict, with errors that name the member.

use super::answer::Fault;
use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use lull_api::Problem;
use serde::de::DeserializeOwned;

/// Longest body, in bytes: two scripts and everything else.
const BODY_BYTES_MAX: usize = 1 << 20;

/// A JSON body.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _: &S) -> Result<Self, Fault> {
        let bytes = to_bytes(request.into_body(), BODY_BYTES_MAX).await.map_err(|error| {
            Problem::new(413, "too-long", format!("the body cannot be read or is longer than {BODY_BYTES_MAX} bytes"))
                .why(error.to_string())
        })?;
        parse(&bytes).map(Body).map_err(Fault::from)
    }
}

/// A document of the caller's.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let member = error.path().to_string();
        let cause = error.into_inner();
        let (code, what) = match cause.classify() {
            serde_json::error::Category::Data if member == "." => ("bad-value", "the body does not fit".to_string()),
            serde_json::error::Category::Data => ("bad-value", format!("{member} does not fit")),
            _ => ("malformed", "the body is no JSON document".to_string()),
        };
        Problem::new(422, code, what).why(cause.to_string())
    })?;
    let trailing = |e: serde_json::Error| {
        Problem::new(422, "malformed", "the body goes on after its JSON document").why(e.to_string())
    };
    reader.end().map_err(trailing)?;
    Ok(value)
}

/// A query string.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        Query::try_from_uri(&parts.uri).map(|Query(params)| Params(params)).map_err(|error| {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Problem::new(422, "bad-value", "the query string does not fit").why(why).into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use lull_api::job::NewJob;

    fn check(body: &str, code: &str, says: &str) {
        let problem = parse::<NewJob>(body.as_bytes()).unwrap_err();
        let text = format!("{} {}", problem.what, problem.why.unwrap_or_default());
        assert_eq!(problem.code, code, "{body}: {text}");
        assert!(text.contains(says), "{body}: {text}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        check("", "malformed", "no JSON");
        check("{\"name\": ", "malformed", "no JSON");
        check("[1]", "bad-value", "expected struct NewJob");
        check("{}", "bad-value", "name");
        check(r#"{"name": 7, "vms": [], "repository": "r"}"#, "bad-value", "name does not fit");
        check(r#"{"name": "j", "vms": ["a", 3], "repository": "r"}"#, "bad-value", "vms[1] does not fit");
        check(r#"{"name": "j", "vms": [], "repository": "r", "gest": {}}"#, "bad-value", "unknown field `gest`");
        check(
            r#"{"name": "j", "vms": [], "repository": "r", "guest": {"lease_ms": -1}}"#,
            "bad-value",
            "guest.lease_ms does not fit",
        );
        check(r#"{"name": "j", "vms": [], "repository": "r"} x"#, "malformed", "goes on");
    }
}
