//! The file catalog over REST: searched, looked into, written out. Long answers are JSON lines that are sent as they are found.
//!
//! Knows names and words of callers; what is found and in which order, `lull-catalog` knows.

use super::answer::{Answer, Fault, bad_value};
use super::body::Params;
use crate::catalog::{ANSWERS_MAX, sentence};
use crate::instant::{from_us, rfc3339};
use crate::server::Server;
use crate::store::json;
use asked::{Known, Search, bytes, query};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use gaps::Listings;
use lull_api::Problem;
use lull_api::catalog::{
    CatalogEnd, CatalogLine, CatalogTable, FileAt, FileHit, FileVersion, FolderEntry, IndexedPoint, PendingPoint,
};
use lull_catalog::version::kind_name;
use lull_catalog::{Catalog, CatalogError, ExportFormat, Hit, Point, Presence, SearchReport};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

mod asked;
mod gaps;

/// Lines that may wait for a slow caller.
const LINES_WAITING_MAX: usize = 256;
/// Bytes of an export that are sent at once.
const EXPORT_BYTES: usize = 64 << 10;

/// Files of the guests' restore points, as JSON lines.
#[utoipa::path(get, path = "/catalog/search", tag = "catalog", params(Search),
    responses((status = 200, content_type = "application/x-ndjson", body = CatalogLine)))]
pub async fn search(State(server): State<Arc<Server>>, Params(asked): Params<Search>) -> Answer<Response> {
    let known = Known::read(&server).await?;
    let query = query(&known, asked)?;
    let listings = listings(&server)?;
    lines(&server, move |tables, tell| {
        let report = tables.search(&query, &mut |hit| tell(CatalogLine::Hit(hit_of(&known, hit))))?;
        let mut end = search_end(report, &known, listings.pending());
        match query.point {
            Some(point) => end.missing.extend(gaps::of_point(tables, &known, &listings, point)),
            None => end.unknown = gaps::of_vms(tables, &known, &listings, query.vms.as_deref()),
        }
        Ok(CatalogLine::End(end))
    })
    .await
}

/// A folder to look into.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Browse {
    /// Name or id of the VM.
    vm: String,
    /// Id of a restore point, its beginning or end, or `latest`; absent: all of them.
    restore_point: Option<String>,
    /// Absolute path of the folder.
    path: Option<String>,
    /// The path's bytes as hexadecimal digits, where it is no UTF-8.
    path_hex: Option<String>,
}

/// What lies in a folder, by name, as JSON lines; of a path that is no folder its versions.
#[utoipa::path(get, path = "/catalog/browse", tag = "catalog", params(Browse),
    responses((status = 200, content_type = "application/x-ndjson", body = CatalogLine)))]
pub async fn browse(State(server): State<Arc<Server>>, Params(asked): Params<Browse>) -> Answer<Response> {
    let known = Known::read(&server).await?;
    let vm = known.vm(&asked.vm)?;
    let point = asked.restore_point.as_deref().map(|wanted| known.point(Some(vm), wanted)).transpose()?;
    let path = bytes("path", asked.path, asked.path_hex)?.unwrap_or_else(|| b"/".to_vec());
    if path.first() != Some(&b'/') || path.contains(&0) {
        return Err(bad_value("path", "must be an absolute path in the guest, such as /etc"));
    }
    let listings = listings(&server)?;
    lines(&server, move |tables, tell| {
        let told = tables.browse(vm, point, &path, &mut |entry| {
            let versions = entry.versions.into_iter().map(|v| version(v.version, &v.points)).collect();
            tell(CatalogLine::Entry(entry_of(&entry.name, versions)))
        })?;
        let told = match told {
            // Not a folder with anything in it: then the thing itself.
            0 => {
                let mut versions = tables.versions(vm, &path)?;
                versions.retain(|version| point.is_none_or(|id| version.points.iter().any(|at| at.id == id)));
                let shown: Vec<FileVersion> = versions.into_iter().map(|v| version(v.version, &v.points)).collect();
                let found = u64::from(!shown.is_empty());
                if found == 1 && tell(CatalogLine::Entry(entry_of(&path, shown))).is_break() { 0 } else { found }
            }
            told => told,
        };
        let mut end = CatalogEnd { told, pending: listings.pending(), ..CatalogEnd::default() };
        match point {
            Some(point) => end.missing.extend(gaps::of_point(tables, &known, &listings, point)),
            None => end.unknown = gaps::of_vms(tables, &known, &listings, Some(&[vm])),
        }
        Ok(CatalogLine::End(end))
    })
    .await
}

/// A VM's history to write out.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// Name or id of the VM.
    vm: String,
    /// Id of a restore point, its beginning or end, or `latest`; absent: all of them.
    restore_point: Option<String>,
    /// `csv` (default) or `json-lines`.
    format: Option<String>,
}

/// Everything that the catalog knows of a VM, in the order of the paths. An answer that breaks off ends without its last chunk.
#[utoipa::path(get, path = "/catalog/export", tag = "catalog", params(Export),
    responses((status = 200, content_type = "text/csv", body = String)))]
pub async fn export(State(server): State<Arc<Server>>, Params(asked): Params<Export>) -> Answer<Response> {
    let known = Known::read(&server).await?;
    let vm = known.vm(&asked.vm)?;
    let point = asked.restore_point.as_deref().map(|wanted| known.point(Some(vm), wanted)).transpose()?;
    let (format, content_type) = match asked.format.as_deref() {
        None | Some("csv") => (ExportFormat::Csv, "text/csv; charset=utf-8"),
        Some("json-lines") => (ExportFormat::JsonLines, "application/x-ndjson"),
        Some(_) => return Err(bad_value("format", "must be csv or json-lines")),
    };
    let turn = turn(&server).await?;
    let (to_caller, mut chunks) = mpsc::channel::<io::Result<Bytes>>(8);
    let tables = server.catalog.tables.clone();
    let (failed, first_failure) = tokio::sync::oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let mut to = io::BufWriter::with_capacity(EXPORT_BYTES, ToCaller(to_caller.clone()));
        if let Err(error) = tables.export(vm, point, format, &mut to) {
            // Whatever waits in the buffer is no whole export.
            let (ToCaller(_), _) = to.into_parts();
            let _ = to_caller.blocking_send(Err(io::Error::other(sentence(&error))));
            let _ = failed.send(error);
        }
    });
    let first = chunks.recv().await;
    if let Some(Err(_)) = &first
        && let Ok(error) = first_failure.await
    {
        return Err(fault(&error));
    }
    let rest = tokio_stream::iter(first).chain(ReceiverStream::new(chunks));
    Ok(([(CONTENT_TYPE, content_type)], Body::from_stream(rest)).into_response())
}

/// Which tables.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Tables {
    /// Name or id of a VM.
    vm: Option<String>,
}

/// What the catalog knows of each VM: its indexed restore points, and what waits.
#[utoipa::path(get, path = "/catalog", tag = "catalog", params(Tables),
    responses((status = 200, body = Vec<CatalogTable>)))]
pub async fn tables(
    State(server): State<Arc<Server>>,
    Params(asked): Params<Tables>,
) -> Answer<Json<Vec<CatalogTable>>> {
    let known = Known::read(&server).await?;
    let only = asked.vm.as_deref().map(|wanted| known.vm(wanted)).transpose()?;
    let waiting = server.catalog.pending().map_err(unreadable_folder)?;
    let mut pending: BTreeMap<Uuid, Vec<PendingPoint>> = BTreeMap::new();
    for waiting in waiting {
        // One whose restore point is not recorded is still being made.
        if let Some(point) = known.points.iter().find(|point| point.id == waiting.restore_point) {
            let shown = PendingPoint { id: waiting.restore_point, trouble: waiting.trouble };
            pending.entry(point.vm).or_default().push(shown);
        }
    }
    let mut given_up: BTreeMap<Uuid, Vec<String>> = BTreeMap::new();
    for (id, why) in server.catalog.given_up() {
        if let Some(point) = known.points.iter().find(|point| point.id == id) {
            given_up.entry(point.vm).or_default().push(format!("restore point {id} has no index: {why}"));
        }
    }
    let mut vms = server.catalog.ask(|tables| tables.folders()).await.map_err(|error| fault(&error))?;
    vms.extend(pending.keys().chain(given_up.keys()));
    vms.extend(only);
    vms.sort();
    vms.dedup();
    vms.retain(|vm| only.is_none_or(|only| only == *vm));
    let looked = server.catalog.ask(move |tables| Ok(vms.into_iter().map(|vm| look(tables, vm)).collect::<Vec<_>>()));
    let looked = looked.await.map_err(|error| fault(&error))?;
    let shown = looked.into_iter().map(|Looked { vm, points, bytes, problems }| CatalogTable {
        vm: known.name(vm),
        vm_id: vm,
        restore_points: points.into_iter().map(indexed).collect(),
        bytes,
        pending: pending.remove(&vm).unwrap_or_default(),
        problems: problems.into_iter().chain(given_up.remove(&vm).unwrap_or_default()).collect(),
    });
    let mut shown: Vec<CatalogTable> = shown.collect();
    shown.sort_by(|a, b| a.vm.cmp(&b.vm));
    Ok(Json(shown))
}

struct Looked {
    vm: Uuid,
    points: Vec<Point>,
    bytes: u64,
    problems: Vec<String>,
}

fn look(tables: &Catalog, vm: Uuid) -> Looked {
    let mut problems = Vec::new();
    let mut told = |error: CatalogError| problems.push(sentence(&error));
    let points = tables.points(vm).unwrap_or_else(|error| {
        told(error);
        Vec::new()
    });
    let bytes = tables.table_bytes(vm).unwrap_or_else(|error| {
        told(error);
        0
    });
    match tables.damaged_tables(vm) {
        Ok(aside) => problems.extend(aside.iter().map(|path| format!("damaged, and set aside: {}", path.display()))),
        Err(error) => problems.push(sentence(&error)),
    }
    Looked { vm, points, bytes, problems }
}

fn indexed(point: Point) -> IndexedPoint {
    IndexedPoint {
        id: point.id,
        taken_at: time(point.taken_at_us),
        entries: point.walk.entries,
        complete: point.walk.complete,
        stopped_because: point.walk.stopped_because,
        unreadable: point.walk.unreadable_folders + point.walk.unreadable_entries,
        examples: point.walk.examples,
    }
}

fn search_end(report: SearchReport, known: &Known, pending: Vec<Uuid>) -> CatalogEnd {
    let aside = report.set_aside.iter().map(|aside| {
        let vm = known.name(aside.vm);
        let path = aside.path.display();
        format!(
            "the catalog of {vm} is damaged and was set aside as {path}; its next backup begins it anew: {}",
            aside.reason
        )
    });
    let unreadable = report.unreadable.iter().map(|(vm, error)| format!("{}: {}", known.name(*vm), sentence(error)));
    CatalogEnd {
        told: report.hits,
        next_page: report.next.map(|token| token.0),
        missing: aside.chain(unreadable).collect(),
        pending,
        ..CatalogEnd::default()
    }
}

fn listings(server: &Server) -> Answer<Listings> {
    Listings::look(&server.catalog).map_err(unreadable_folder)
}

fn unreadable_folder(error: io::Error) -> Fault {
    Problem::new(500, "catalog-unreadable", "the folder of the listings that wait cannot be read")
        .why(error.to_string())
        .remedy("see the state folder's catalog/incoming")
        .into()
}

async fn turn(server: &Server) -> Answer<OwnedSemaphorePermit> {
    server.catalog.turn().await.ok_or_else(|| {
        Problem::new(503, "catalog-busy", "the catalog is busy")
            .why(format!("{ANSWERS_MAX} other searches, folders or exports are being answered, and none of them ended"))
            .remedy("try again; an answer ends when its caller has read all of it, or goes")
            .into()
    })
}

/// Sends lines as they are found. What fails before the first line is an answer of its own.
async fn lines(
    server: &Server,
    question: impl FnOnce(&Catalog, &mut dyn FnMut(CatalogLine) -> ControlFlow<()>) -> Result<CatalogLine, CatalogError>
    + Send
    + 'static,
) -> Answer<Response> {
    let turn = turn(server).await?;
    let (to_caller, mut told) = mpsc::channel::<Result<CatalogLine, CatalogError>>(LINES_WAITING_MAX);
    let tables = server.catalog.tables.clone();
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let mut tell = |line| match to_caller.blocking_send(Ok(line)) {
            Ok(()) => ControlFlow::Continue(()),
            // The caller hung up.
            Err(_) => ControlFlow::Break(()),
        };
        let end = question(&tables, &mut tell);
        let _ = to_caller.blocking_send(end);
    });
    let first = match told.recv().await {
        Some(Err(error)) => return Err(fault(&error)),
        first => first,
    };
    let line = |line: Result<CatalogLine, CatalogError>| {
        let line = line.unwrap_or_else(|error| CatalogLine::Failed(*fault(&error).0));
        Ok::<Bytes, Infallible>(Bytes::from(json(&line) + "\n"))
    };
    let stream = tokio_stream::iter(first).chain(ReceiverStream::new(told)).map(line);
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response())
}

fn fault(error: &CatalogError) -> Fault {
    let text = sentence(error);
    let problem = match error {
        CatalogError::NoTable(_) | CatalogError::NoPoint { .. } => Problem::new(404, "not-indexed", text)
            .remedy("see `lull catalog status`; files are listed where a job's indexing is not disabled"),
        CatalogError::Pattern(_) | CatalogError::Token | CatalogError::Limit { .. } => {
            Problem::new(422, "bad-value", text)
        }
        CatalogError::Damaged { .. } => Problem::new(500, "catalog-damaged", text)
            .remedy("the next search or backup sets the table aside; the next backup begins it anew"),
        _ => Problem::new(500, "catalog-failed", text).remedy("see the backup server's log and disk"),
    };
    problem.into()
}

/// Bytes as text, and as hexadecimal digits where they are no UTF-8.
fn text(bytes: &[u8]) -> (String, Option<String>) {
    match String::from_utf8_lossy(bytes) {
        std::borrow::Cow::Borrowed(text) => (text.to_string(), None),
        std::borrow::Cow::Owned(text) => (text, Some(lull_catalog::hexadecimal_digits(bytes))),
    }
}

fn hit_of(known: &Known, hit: Hit) -> FileHit {
    let (path, path_hex) = text(&hit.path);
    FileHit { vm: known.name(hit.vm), vm_id: hit.vm, path, path_hex, version: version(hit.version, &hit.points) }
}

fn entry_of(name: &[u8], versions: Vec<FileVersion>) -> FolderEntry {
    let (name, name_hex) = text(name);
    FolderEntry { name, name_hex, versions }
}

fn version(version: lull_catalog::Version, points: &[Presence]) -> FileVersion {
    let at = |at: &Presence| FileAt { id: at.id, taken_at: time(at.taken_at_us), known: at.known };
    FileVersion {
        kind: kind_name(version.kind).into(),
        size_bytes: version.size_bytes,
        modified_at: time(version.mtime_us),
        mode: version.mode,
        uid: version.uid,
        gid: version.gid,
        changed_after_freeze: version.changed_after_freeze,
        restore_points: points.iter().map(at).collect(),
    }
}

/// A time of a guest may be any: one that no calendar has is shown as microseconds.
fn time(us: i64) -> String {
    from_us(us).map_or_else(|_| format!("{us} µs"), rfc3339)
}

/// Hands an export on, piece by piece.
struct ToCaller(mpsc::Sender<io::Result<Bytes>>);

impl Write for ToCaller {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
