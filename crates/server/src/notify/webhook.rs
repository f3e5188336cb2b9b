//! Posts a session's report to an address, signed where there is a secret. Knows neither when nor how often.
//!
//! The address may hold a token of its own: it is sealed until it is used, and people see its scheme and host.

use crate::server::Server;
use crate::store::notifications::Notification;
use axum::body::Body;
use hyper::{Request, StatusCode, Uri, header};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;
use lull_api::notify::SessionReport;
use ring::hmac;
use secrecy::ExposeSecret;
use std::net::IpAddr;
use std::time::Duration;

/// Longest address, in bytes.
const URL_BYTES_MAX: usize = 2_048;
/// Under this name addresses are sealed.
pub const ADDRESS_FIELD: &str = "notify_url";
/// Under this name secrets are sealed.
pub const SECRET_FIELD: &str = "notify_secret";
/// HMAC-SHA256 of the body under the job's secret.
const SIGNATURE: &str = "X-Lull-Signature";
/// The same for each attempt at telling the same.
const DELIVERY: &str = "X-Lull-Delivery";

/// An address to which a report may go; the error continues "must …".
///
/// # Errors
/// What is wrong with it.
pub fn checked(text: &str) -> Result<Uri, &'static str> {
    if text.len() > URL_BYTES_MAX {
        return Err("have at most 2048 bytes");
    }
    let url: Uri = text.parse().map_err(|_| "be an address such as https://monitor.example/lull")?;
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("hold no account: the receiver knows a report by its signature");
    }
    match url.scheme_str() {
        Some("https") => Ok(url),
        // What a report says is nobody else's business.
        Some("http") if is_loopback(&url) => Ok(url),
        Some("http") => Err("begin with https:// unless it is on the backup server itself"),
        Some(_) => Err("begin with https://"),
        None => Err("be an address such as https://monitor.example/lull"),
    }
}

fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The address without what may be secret in it.
pub fn shown(url: &Uri) -> String {
    match (url.scheme_str(), url.authority()) {
        (Some(scheme), Some(authority)) => format!("{scheme}://{authority}"),
        _ => "the webhook".into(),
    }
}

/// One attempt: what was answered, or why it counts as not told. Redirections are not followed.
pub async fn post(server: &Server, owed: &Notification, report: &SessionReport) -> Result<String, String> {
    let sealed = owed.address.as_deref().ok_or("its address is not there")?;
    let opened = server.secrets.open(owed.job, ADDRESS_FIELD, sealed).map_err(|error| error.to_string())?;
    let url = checked(opened.expose_secret()).map_err(|rule| format!("its address must {rule}"))?;
    let in_clear = url.scheme_str() == Some("http");
    let body = serde_json::to_vec(report).map_err(|error| error.to_string())?;
    let mut request = Request::post(url)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("lull/", env!("CARGO_PKG_VERSION")))
        .header(DELIVERY, owed.id);
    if let Some(sealed) = &owed.secret {
        let secret = server.secrets.open(owed.job, SECRET_FIELD, sealed).map_err(|error| error.to_string())?;
        request = request.header(SIGNATURE, signature(secret.expose_secret(), &body));
    }
    let request = request.body(Body::from(body)).map_err(|error| error.to_string())?;
    let limit = Duration::from_millis(server.notify.webhook_ms);
    let answer = async {
        if in_clear {
            return send(HttpConnector::new(), request).await;
        }
        let provider = rustls::crypto::ring::default_provider();
        let tls = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider);
        let tls = tls.map_err(|error| format!("the system's certificates could not be used: {error}"))?;
        send(tls.https_only().enable_http1().build(), request).await
    };
    match tokio::time::timeout(limit, answer).await {
        Err(_) => Err(format!("it did not answer within {} ms", limit.as_millis())),
        Ok(Err(why)) => Err(why),
        Ok(Ok(status)) if status.is_success() => Ok(format!("it answered {status}")),
        Ok(Ok(status)) => Err(format!("it answered {status}")),
    }
}

async fn send<C>(connector: C, request: Request<Body>) -> Result<StatusCode, String>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let client = Client::builder(TokioExecutor::new()).build(connector);
    client.request(request).await.map(|answer| answer.status()).map_err(|error| sentence(&error))
}

fn signature(secret: &str, body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body);
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

/// An error with its causes, in one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_leaves_the_machine_over_tls_only() {
        let check = |text: &str, expect: Option<&str>| assert_eq!(checked(text).err(), expect, "{text}");
        for right in ["https://monitor.example/lull?x=1", "http://127.0.0.1:9/", "http://[::1]/", "http://localhost/a"]
        {
            check(right, None);
        }
        check("http://monitor.example/", Some("begin with https:// unless it is on the backup server itself"));
        check("http://127.0.0.1.example/", Some("begin with https:// unless it is on the backup server itself"));
        check("ftp://monitor.example/", Some("begin with https://"));
        check("https://u:p@monitor.example/", Some("hold no account: the receiver knows a report by its signature"));
        check("monitor", Some("be an address such as https://monitor.example/lull"));
        check(&format!("https://a/{}", "x".repeat(2_048)), Some("have at most 2048 bytes"));
    }

    #[test]
    fn people_see_the_host_and_no_token() {
        let url = checked("https://hooks.example:8443/services/T0/s3cret?k=s3cret").unwrap();
        assert_eq!(shown(&url), "https://hooks.example:8443");
    }

    // RFC 4231, test case 2.
    #[test]
    fn the_signature_is_the_standard_one() {
        let expect = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature("Jefe", b"what do ya want for nothing?"), expect);
    }
}
