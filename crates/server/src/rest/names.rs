//! Names and ids of callers: which thing is meant, and where none is, what there is. Pure.

use super::answer::{Fault, bad_value};
use super::shortened;
use crate::store::infrastructure::VmRow;
use lull_api::Problem;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Names listed where a name is unknown.
const LISTED_MAX: usize = 10;
/// Longest name, in characters.
const NAME_CHARS_MAX: usize = 64;

/// A kind of thing, as people and programs call it.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// `hypervisor host`
    pub words: &'static str,
    /// `unknown-host`
    pub code: &'static str,
    /// How to make one.
    pub add: &'static str,
}

/// Hosts.
pub const HOST: Kind =
    Kind { words: "hypervisor host", code: "unknown-host", add: "add one: lull host add NAME --qemu DIR" };
/// VMs.
pub const VM: Kind =
    Kind { words: "VM", code: "unknown-vm", add: "add the host that it runs on: lull host add NAME --qemu DIR" };
/// Credentials.
pub const CREDENTIAL: Kind =
    Kind { words: "credential", code: "unknown-credential", add: "add one: lull credential add NAME --user USER" };
/// Repositories.
pub const REPOSITORY: Kind =
    Kind { words: "repository", code: "unknown-repository", add: "add one: lull repository add NAME PATH" };
/// Jobs.
pub const JOB: Kind = Kind { words: "job", code: "unknown-job", add: "create one: lull job create NAME" };
/// Managed servers.
pub const SERVER: Kind = Kind { words: "managed server", code: "unknown-server", add: "see lull proxy list" };

/// Where the name stood: a path that leads nowhere is 404, a reference in a body 422.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the path.
    Path,
    /// In the body or the query string.
    Body,
}

/// The thing of this name or id.
pub fn find<T>(
    kind: Kind,
    place: Place,
    wanted: &str,
    things: Vec<T>,
    key: impl Fn(&T) -> (Uuid, String),
) -> Result<T, Fault> {
    let keys: Vec<(Uuid, String)> = things.iter().map(key).collect();
    let id = wanted.parse::<Uuid>().ok();
    let found = keys.iter().position(|(known, name)| Some(*known) == id || name == wanted);
    match found.and_then(|index| things.into_iter().nth(index)) {
        Some(thing) => Ok(thing),
        None => Err(unknown(kind, place, wanted, keys.into_iter().map(|(_, name)| name).collect())),
    }
}

/// VMs by every name that may be used for them.
pub struct VmIndex<'a> {
    vms: &'a [VmRow],
    exact: BTreeMap<String, usize>,
    by_name: BTreeMap<&'a str, Vec<usize>>,
}

impl<'a> VmIndex<'a> {
    /// Of all VMs.
    pub fn new(vms: &'a [VmRow]) -> Self {
        let (mut exact, mut by_name) = (BTreeMap::new(), BTreeMap::<&str, Vec<usize>>::new());
        for (index, vm) in vms.iter().enumerate() {
            exact.insert(vm.id.to_string(), index);
            exact.insert(full_name(vm), index);
            by_name.entry(&vm.name).or_default().push(index);
        }
        VmIndex { vms, exact, by_name }
    }

    /// A VM's name, with its host's where two hosts have that name.
    pub fn shortest_name(&self, id: Uuid) -> Option<String> {
        let vm = &self.vms[*self.exact.get(&id.to_string())?];
        let alone = self.by_name.get(vm.name.as_str()).is_some_and(|several| several.len() == 1);
        Some(if alone { vm.name.clone() } else { full_name(vm) })
    }

    /// The VM of this name, `HOST/NAME` or id.
    pub fn find(&self, place: Place, wanted: &str) -> Result<&'a VmRow, Fault> {
        if let Some(index) = self.exact.get(wanted) {
            return Ok(&self.vms[*index]);
        }
        match self.by_name.get(wanted).map(Vec::as_slice) {
            Some([index]) => Ok(&self.vms[*index]),
            None | Some([]) => {
                let names = self.by_name.keys().map(|name| name.to_string()).collect();
                Err(unknown(VM, place, wanted, names))
            }
            Some(several) => {
                let names: Vec<String> = several.iter().map(|index| full_name(&self.vms[*index])).collect();
                let problem = Problem::new(409, "ambiguous-vm", format!("{} hosts have a VM {wanted}", names.len()))
                    .remedy(format!("say which: {}", listed(&names)));
                Err(problem.into())
            }
        }
    }
}

/// The VM of this name, `HOST/NAME` or id, where only one is looked for.
pub fn find_vm(place: Place, wanted: &str, vms: &[VmRow]) -> Result<VmRow, Fault> {
    VmIndex::new(vms).find(place, wanted).cloned()
}

fn full_name(vm: &VmRow) -> String {
    format!("{}/{}", vm.host_name, vm.name)
}

/// What is unknown and what there is, nearest names first.
pub fn unknown(kind: Kind, place: Place, wanted: &str, mut names: Vec<String>) -> Fault {
    let status = if place == Place::Path { 404 } else { 422 };
    let wanted = shortened(wanted);
    names.sort_by_cached_key(|name| (distance(&wanted, name), name.clone()));
    names.dedup();
    let problem = Problem::new(status, kind.code, format!("there is no {} \"{wanted}\"", kind.words));
    if names.is_empty() {
        return problem.why(format!("there is no {} at all yet", kind.words)).remedy(kind.add).into();
    }
    problem.why(format!("there is: {}", listed(&names))).remedy("use one of these names").into()
}

/// At most [`LISTED_MAX`] names and how many more there are.
pub fn listed(names: &[String]) -> String {
    let shown = names.iter().take(LISTED_MAX).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// A name that a caller gives to something new.
pub fn checked(member: &str, name: String) -> Result<String, Fault> {
    let problem = if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
        format!("must have 1 to {NAME_CHARS_MAX} characters")
    } else if name.trim() != name || name.starts_with('-') {
        "must begin and end with a letter, digit or sign, and not begin with a hyphen".into()
    } else if name.contains(['/', '\\']) || name.chars().any(char::is_control) || name.chars().all(|c| c == '.') {
        "must not contain slashes or control characters".into()
    } else if name.parse::<Uuid>().is_ok() {
        "must not look like an id".into()
    } else {
        return Ok(name);
    };
    Err(bad_value(member, problem))
}

/// A text of a caller's that is stored: at most so many bytes, without control characters.
pub fn bounded(member: &str, text: String, bytes_max: usize) -> Result<String, Fault> {
    if text.is_empty() || text.len() > bytes_max || text.chars().any(char::is_control) {
        let what = format!("must have 1 to {bytes_max} bytes and no control characters");
        return Err(bad_value(member, what));
    }
    Ok(text)
}

/// How many characters must be changed to get from one name to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().take(NAME_CHARS_MAX).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().take(NAME_CHARS_MAX).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn things(names: &[&str]) -> Vec<(Uuid, String)> {
        names.iter().map(|name| (Uuid::now_v7(), name.to_string())).collect()
    }

    fn vm(host: &str, name: &str) -> VmRow {
        VmRow {
            id: Uuid::now_v7(),
            host: Uuid::nil(),
            host_name: host.into(),
            name: name.into(),
            guest_os: None,
            addresses: vec![],
            agent_addresses: vec![],
            connect: None,
            credential: None,
            state: String::new(),
            disks: vec![],
        }
    }

    #[test]
    fn a_name_and_an_id_serve_alike() {
        let jobs = things(&["daily", "weekly"]);
        let id = jobs[1].0;
        assert_eq!(find(JOB, Place::Path, "weekly", jobs.clone(), Clone::clone).unwrap().0, id);
        assert_eq!(find(JOB, Place::Path, &id.to_string(), jobs, Clone::clone).unwrap().0, id);
    }

    #[test]
    fn an_unknown_name_says_what_there_is_nearest_first() {
        let jobs = things(&["monthly", "daily", "weekly"]);
        let fault = find(JOB, Place::Path, "dayly", jobs, Clone::clone).unwrap_err();
        assert_eq!((fault.0.status, fault.0.code.as_str()), (404, "unknown-job"));
        assert_eq!(fault.0.what, "there is no job \"dayly\"");
        assert_eq!(fault.0.why.unwrap(), "there is: daily, weekly, monthly");

        let many: Vec<String> = (0..500).map(|n| format!("vm{n}")).collect();
        let why = unknown(VM, Place::Body, &"x".repeat(100_000), many).0.why.unwrap();
        assert!(why.ends_with("and 490 more") && why.len() < 300, "{why}");
        let none = unknown(HOST, Place::Path, "h", vec![]).0;
        assert!(none.remedy.unwrap().contains("lull host add"));
    }

    #[test]
    fn two_hosts_may_have_a_vm_of_the_same_name() {
        let vms = vec![vm("a", "db"), vm("b", "db"), vm("b", "web")];
        assert_eq!(find_vm(Place::Path, "web", &vms).unwrap().host_name, "b");
        assert_eq!(find_vm(Place::Path, "b/db", &vms).unwrap().id, vms[1].id);
        assert_eq!(find_vm(Place::Path, &vms[0].id.to_string(), &vms).unwrap().host_name, "a");
        let fault = find_vm(Place::Path, "db", &vms).unwrap_err();
        assert_eq!((fault.0.status, fault.0.remedy.unwrap().as_str()), (409, "say which: a/db, b/db"));
    }

    #[test]
    fn names_that_could_be_mistaken_are_refused() {
        for wrong in ["", " x", "x ", "a/b", "-x", "a\nb", "..", "0b0b0b0b-0000-7000-8000-000000000000"] {
            assert!(checked("name", wrong.into()).is_err(), "{wrong:?}");
        }
        assert!(checked("name", "x".repeat(65)).is_err());
        for right in ["db1", "Täglich 22 Uhr", "a.b-c_d", &"x".repeat(64)] {
            assert!(checked("name", right.into()).is_ok(), "{right:?}");
        }
    }

    proptest! {
        #[test]
        fn distance_is_a_metric(a in "[a-c]{0,6}", b in "[a-c]{0,6}", c in "[a-c]{0,6}") {
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert!(distance(&a, &c) <= distance(&a, &b) + distance(&b, &c));
        }
    }
}
