//! What the guest interaction proxies did over time.

use super::answer::{Answer, bad_value};
use super::body::Params;
use super::names::{Place, SERVER, unknown};
use crate::load::{DAY_S, HOUR_S, Span, report};
use crate::server::Server;
use axum::Json;
use axum::extract::State;
use jiff::{SignedDuration, Timestamp};
use lull_api::proxy_tier::LoadReport;
use serde::Deserialize;
use std::sync::Arc;

/// Looked back so far unless told otherwise, in hours.
const LOOKED_BACK_H: i64 = 24 * 7;
/// Looked back at most so far, in hours.
const LOOKED_BACK_H_MAX: i64 = 24 * 366;
/// Past this, buckets are days unless told otherwise; hours are refused past [`HOURLY_H_MAX`].
const HOURLY_H: i64 = 48;
const HOURLY_H_MAX: i64 = 24 * 31;

/// Of what, and from when on.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Name of a managed server, also of one that is gone; without it, all.
    proxy: Option<String>,
    /// RFC 3339; without it, a week ago. At most 366 days ago.
    since: Option<String>,
    /// `hour` or `day`; without it, hours up to two days and days past that.
    bucket: Option<String>,
}

/// Tasks, busy time, tiers and failovers of each proxy, by hour or by day.
#[utoipa::path(get, path = "/proxies/load", tag = "proxies", params(Wanted),
    responses((status = 200, body = LoadReport)))]
pub async fn load(State(server): State<Arc<Server>>, Params(wanted): Params<Wanted>) -> Answer<Json<LoadReport>> {
    let until = Timestamp::now();
    let span = span(&wanted, until)?;
    let known: Vec<String> = server.store.servers().await?.into_iter().map(|server| server.name).collect();
    let dispatches = server.store.dispatches(span.first(), until).await?;
    let mut report = report(&dispatches, &known, span);
    if let Some(name) = &wanted.proxy {
        let names: Vec<String> = report.proxies.iter().map(|proxy| proxy.proxy.clone()).collect();
        report.proxies.retain(|proxy| proxy.proxy == *name);
        if report.proxies.is_empty() {
            return Err(unknown(SERVER, Place::Body, name, names));
        }
    }
    Ok(Json(report))
}

fn span(wanted: &Wanted, until: Timestamp) -> Answer<Span> {
    let since = match &wanted.since {
        None => until.checked_sub(SignedDuration::from_hours(LOOKED_BACK_H)).unwrap_or(Timestamp::MIN),
        Some(text) => {
            text.parse::<Timestamp>().map_err(|_| bad_value("since", "must be a time as in 2026-03-01T00:00:00Z"))?
        }
    };
    let hours = until.duration_since(since).as_hours();
    if since > until || hours > LOOKED_BACK_H_MAX {
        return Err(bad_value("since", format!("must lie within the last {} days", LOOKED_BACK_H_MAX / 24)));
    }
    let bucket_s = match wanted.bucket.as_deref() {
        None if hours <= HOURLY_H => HOUR_S,
        None | Some("day") => DAY_S,
        Some("hour") if hours <= HOURLY_H_MAX => HOUR_S,
        Some("hour") => return Err(bad_value("bucket", format!("hours only up to {} days", HOURLY_H_MAX / 24))),
        Some(_) => return Err(bad_value("bucket", "must be hour or day")),
    };
    Ok(Span { since, until, bucket_s })
}
