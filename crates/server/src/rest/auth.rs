//! Who may call: whoever presents the token. Looks at nothing else of a request.

use super::answer::Fault;
use crate::server::Server;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use lull_api::Problem;
use secrecy::ExposeSecret;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Lets a request with the token pass.
pub async fn require_token(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let presented = request.headers().get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let expected = server.token.expose_secret().as_bytes();
    // Takes the same time wherever the two differ; only the length can be learned, and that is known.
    let known = presented.is_some_and(|presented| bool::from(presented.ct_eq(expected)));
    if known {
        return next.run(request).await;
    }
    let why = if presented.is_some() { "the token is not this server's" } else { "the call has no bearer token" };
    let problem = Problem::new(401, "not-authenticated", "the backup server does not know who is calling")
        .why(why)
        .remedy(format!("present the token of {}/admin-token", server.state_dir.display()));
    Fault::from(problem).into_response()
}
