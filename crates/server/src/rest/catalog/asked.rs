//! What callers ask of the catalog, in its own words: names of VMs and restore points, patterns, filters. Finds nothing.

use crate::instant::us;
use crate::rest::answer::{Answer, bad_value};
use crate::rest::names::{Place, VmIndex, listed};
use crate::server::Server;
use crate::store::infrastructure::VmRow;
use crate::store::restore_points::RestorePointRow;
use jiff::Timestamp;
use lull_api::Problem;
use lull_catalog::version::kind_of_name;
use lull_catalog::{How, Order, PageToken, Pattern, Query, What};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Hits of a page unless told otherwise.
const LIMIT_DEFAULT: usize = 100;

/// What is searched for.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
pub struct Search {
    /// What the name (or path) has to look like; absent: everything.
    pattern: Option<String>,
    /// The pattern's bytes as hexadecimal digits, where it is no UTF-8.
    pattern_hex: Option<String>,
    /// `substring` (default), `glob` or `regex`.
    how: Option<String>,
    /// What is compared: `name` (default) or `path`.
    what: Option<String>,
    /// `a` is `A`.
    ignore_case: bool,
    /// Name or id of a VM; several are separated by commas.
    vm: Option<String>,
    /// Id of a restore point, its beginning or end, or `latest` (then with one VM).
    restore_point: Option<String>,
    /// At least so many bytes.
    size_min: Option<u64>,
    /// At most so many bytes.
    size_max: Option<u64>,
    /// Changed at this time or later (RFC 3339).
    modified_after: Option<String>,
    /// Changed at this time or before (RFC 3339).
    modified_before: Option<String>,
    /// `file`, `folder`, `symlink`, `fifo`, `socket`, `char-device`, `block-device`; several are separated by commas.
    kind: Option<String>,
    /// `newest-first` (default) or `path`.
    order: Option<String>,
    /// At most so many hits: 100 unless told, ordered by time at most 10000, and fewer where their paths are very long; with `order=path` 0 means all of them.
    limit: Option<usize>,
    /// Where the page begins: `next_page` of the page before.
    page: Option<String>,
}

/// The names that callers use. VMs that are no longer in the infrastructure are known by their restore points.
pub struct Known {
    names: BTreeMap<Uuid, String>,
    vms: Arc<[VmRow]>,
    /// Newest first.
    pub points: Vec<RestorePointRow>,
}

impl Known {
    pub async fn read(server: &Server) -> Answer<Known> {
        let vms = server.store.vms().await?;
        let points = server.store.restore_points(None).await?;
        let mut names: BTreeMap<Uuid, String> =
            points.iter().rev().map(|point| (point.vm, point.vm_name.clone())).collect();
        let index = VmIndex::new(&vms);
        names.extend(vms.iter().filter_map(|vm| Some((vm.id, index.shortest_name(vm.id)?))));
        Ok(Known { names, vms, points })
    }

    pub fn name(&self, vm: Uuid) -> String {
        self.names.get(&vm).cloned().unwrap_or_else(|| vm.to_string())
    }

    pub fn vm(&self, wanted: &str) -> Answer<Uuid> {
        match VmIndex::new(&self.vms).find(Place::Body, wanted) {
            Ok(vm) => Ok(vm.id),
            Err(fault) if fault.0.code == "unknown-vm" => {
                let id = wanted.parse::<Uuid>().ok();
                let gone = self.points.iter().find(|point| Some(point.vm) == id || point.vm_name == wanted);
                gone.map(|point| point.vm).ok_or(fault)
            }
            Err(fault) => Err(fault),
        }
    }

    pub fn point(&self, vm: Option<Uuid>, wanted: &str) -> Answer<Uuid> {
        let of_vm = || self.points.iter().filter(|point| vm.is_none_or(|vm| vm == point.vm));
        if wanted == "latest" {
            if vm.is_none() {
                return Err(bad_value("restore_point", "latest needs one VM"));
            }
            let newest = of_vm().next().map(|point| point.id);
            return newest
                .ok_or_else(|| Problem::new(422, "unknown-restore-point", "this VM has no restore point yet").into());
        }
        let wanted = wanted.to_ascii_lowercase();
        let fits = |point: &&RestorePointRow| {
            let id = point.id.to_string();
            id == wanted || (wanted.len() >= 4 && (id.starts_with(&wanted) || id.ends_with(&wanted)))
        };
        let fitting: Vec<Uuid> = of_vm().filter(fits).map(|point| point.id).collect();
        match fitting.as_slice() {
            [one] => Ok(*one),
            [] => {
                let ids: Vec<String> = of_vm().map(|point| point.id.to_string()).collect();
                let what = format!("there is no restore point \"{}\"", crate::rest::shortened(&wanted));
                let problem = Problem::new(422, "unknown-restore-point", what);
                Err(match ids.is_empty() {
                    true => problem.why("there is no restore point yet").remedy("run a job: lull job run NAME"),
                    false => problem.why(format!("the newest are: {}", listed(&ids))).remedy("use one of these ids"),
                }
                .into())
            }
            several => {
                let ids: Vec<String> = several.iter().map(Uuid::to_string).collect();
                let what = format!("{} restore points begin or end with \"{wanted}\"", several.len());
                Err(Problem::new(422, "ambiguous-restore-point", what)
                    .remedy(format!("say which: {}", listed(&ids)))
                    .into())
            }
        }
    }
}

/// The search in the catalog's words.
pub fn query(known: &Known, asked: Search) -> Answer<Query> {
    let how = match asked.how.as_deref() {
        None | Some("substring") => How::Substring,
        Some("glob") => How::Glob,
        Some("regex") => How::Regex,
        Some(_) => return Err(bad_value("how", "must be substring, glob or regex")),
    };
    let what = match asked.what.as_deref() {
        None | Some("name") => What::Name,
        Some("path") => What::Path,
        Some(_) => return Err(bad_value("what", "must be name or path")),
    };
    let pattern = bytes("pattern", asked.pattern, asked.pattern_hex)?
        .filter(|text| !text.is_empty())
        .map(|text| Pattern { how, what, text, ignore_case: asked.ignore_case });
    let words = |words: Option<String>| -> Option<Vec<String>> {
        words.map(|words| words.split(',').map(str::trim).filter(|word| !word.is_empty()).map(String::from).collect())
    };
    let vms = match words(asked.vm) {
        Some(names) => Some(names.iter().map(|name| known.vm(name)).collect::<Answer<Vec<Uuid>>>()?),
        None => None,
    };
    let only = vms.as_deref().and_then(|vms| if let [vm] = vms { Some(*vm) } else { None });
    let kinds = match words(asked.kind) {
        Some(names) => {
            let kind = |name: &String| {
                let all = "must be file, folder, symlink, fifo, socket, char-device or block-device";
                kind_of_name(name).ok_or_else(|| bad_value("kind", all))
            };
            Some(names.iter().map(kind).collect::<Answer<Vec<_>>>()?)
        }
        None => None,
    };
    let order = match asked.order.as_deref() {
        None | Some("newest-first") => Order::NewestFirst,
        Some("path") => Order::Path,
        Some(_) => return Err(bad_value("order", "must be newest-first or path")),
    };
    let at = |member: &str, text: Option<String>| match text.map(|text| text.parse::<Timestamp>()) {
        None => Ok(None),
        Some(Ok(at)) => Ok(Some(us(at))),
        Some(Err(error)) => Err(bad_value(member, format!("must be a time such as 2026-11-01T00:00:00Z: {error}"))),
    };
    Ok(Query {
        point: asked.restore_point.as_deref().map(|wanted| known.point(only, wanted)).transpose()?,
        vms,
        pattern,
        size_bytes_min: asked.size_min,
        size_bytes_max: asked.size_max,
        mtime_us_min: at("modified_after", asked.modified_after)?,
        mtime_us_max: at("modified_before", asked.modified_before)?,
        kinds,
        order,
        limit: match (asked.limit, order) {
            (Some(0), Order::Path) => None,
            (limit, _) => Some(limit.unwrap_or(LIMIT_DEFAULT)),
        },
        after: asked.page.map(PageToken),
    })
}

/// Bytes that a caller gave as text or as hexadecimal digits.
pub fn bytes(member: &str, text: Option<String>, hex: Option<String>) -> Answer<Option<Vec<u8>>> {
    match (text, hex) {
        (Some(_), Some(_)) => Err(bad_value(member, format!("give either {member} or {member}_hex"))),
        (text, None) => Ok(text.map(String::into_bytes)),
        (None, Some(hex)) => {
            let bytes = lull_catalog::of_hexadecimal_digits(&hex);
            bytes.map(Some).ok_or_else(|| bad_value(&format!("{member}_hex"), "must be pairs of hexadecimal digits"))
        }
    }
}
