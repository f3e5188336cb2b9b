//! What callers send: bodies and query strings, bounded and strict, with errors that name the member.

use super::answer::Fault;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use futures::StreamExt;
use lull_api::Problem;
use serde::de::DeserializeOwned;

/// Longest body, in bytes: two scripts and everything else.
const BODY_BYTES_MAX: usize = 1 << 20;
/// A body longer than this is not even read to its end, in bytes.
const DRAINED_BYTES_MAX: usize = 16 << 20;

/// A JSON body.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _: &S) -> Result<Self, Fault> {
        let bytes = read(request.into_body()).await?;
        parse(&bytes).map(Body).map_err(Fault::from)
    }
}

/// The whole body. One that is too long is still read to its end (within reason): a caller that is cut off while it
/// writes never sees the answer.
async fn read(body: axum::body::Body) -> Result<Vec<u8>, Problem> {
    let (mut chunks, mut bytes, mut length) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk =
            chunk.map_err(|error| Problem::new(422, "malformed", "the body broke off").why(error.to_string()))?;
        length += chunk.len();
        if length <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&chunk);
        } else if length > DRAINED_BYTES_MAX {
            break;
        }
    }
    if length > BODY_BYTES_MAX {
        let what = format!("the body is longer than {BODY_BYTES_MAX} bytes");
        return Err(Problem::new(413, "too-long", what));
    }
    Ok(bytes)
}

/// A document of the caller's.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // Without this, an array would do, its members taken in the order in which the type happens to have them.
    if let Some(first) = bytes.iter().find(|byte| !byte.is_ascii_whitespace()).filter(|byte| **byte != b'{') {
        let why = format!("it begins with {:?} and must be a JSON object", char::from(*first));
        return Err(Problem::new(422, "malformed", "the body is no JSON object").why(why));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let member = error.path().to_string();
        let cause = error.into_inner();
        let (code, what) = match cause.classify() {
            serde_json::error::Category::Data if member == "." => ("bad-value", "the body does not fit".to_string()),
            serde_json::error::Category::Data => ("bad-value", format!("{member} does not fit")),
            _ => ("malformed", "the body is no whole JSON document".to_string()),
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
        check("", "malformed", "no whole JSON");
        check("{\"name\": ", "malformed", "no whole JSON");
        check("[1]", "malformed", "must be a JSON object");
        check("null", "malformed", "must be a JSON object");
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
