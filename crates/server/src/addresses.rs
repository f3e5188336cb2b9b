//! Where a guest can be reached, and who says so: an administrator (addresses or DNS names), or the guest agent. Asks nobody.

use crate::resolver::{Resolved, Resolver};
use crate::store::infrastructure::VmRow;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Who says that a guest has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// An administrator.
    Hand,
    /// DNS, for a name that an administrator gave.
    Name(String),
    /// The QEMU guest agent, when its host was looked at.
    GuestAgent,
}

/// The addresses of a guest that count. What an administrator says wins: the agent's count only where he says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Each with who says so.
    pub addresses: Vec<(IpAddr, From)>,
    /// Names that lead nowhere, one sentence each.
    pub problems: Vec<String>,
}

/// The DNS names among what an administrator said of these VMs.
pub fn names<'a>(vms: impl IntoIterator<Item = &'a VmRow>) -> BTreeSet<String> {
    let all = vms.into_iter().flat_map(|vm| &vm.addresses);
    all.filter(|text| text.parse::<IpAddr>().is_err()).cloned().collect()
}

/// What is known of a VM's guest.
pub fn known(vm: &VmRow, resolver: &Resolver) -> Known {
    let mut known = Known::default();
    for text in &vm.addresses {
        match text.parse() {
            Ok(address) => known.addresses.push((address, From::Hand)),
            Err(_) => match resolver.get(text) {
                Resolved::To(found) => {
                    known.addresses.extend(found.into_iter().map(|address| (address, From::Name(text.clone()))));
                }
                Resolved::Not(why) => known.problems.push(format!("{text} cannot be resolved: {why}")),
            },
        }
    }
    if vm.addresses.is_empty() {
        let seen = vm.agent_addresses.iter().filter_map(|text| text.parse().ok());
        known.addresses.extend(seen.map(|address| (address, From::GuestAgent)));
    }
    known
}

/// Whether a text may be a DNS name: letters, digits and hyphens in parts of 1 to 63, 253 in all, and no number in the last part.
pub fn is_name(text: &str) -> bool {
    let part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let last_is_word = name.rsplit('.').next().is_some_and(|last| last.bytes().any(|byte| byte.is_ascii_alphabetic()));
    name.len() <= 253 && name.split('.').all(part) && last_is_word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_mistyped_address() {
        for name in ["db1", "db1.example", "a-b.c3.example.", "xn--bcher-kva.example", "1and1.example"] {
            assert!(is_name(name), "{name}");
        }
        for wrong in ["", ".", "10.0.0", "10.0.0.256", "a..b", "-a", "a-", "a b", "a/b", "bücher.example", "1.2.3.4:22"]
        {
            assert!(!is_name(wrong), "{wrong}");
        }
        assert!(!is_name(&"a".repeat(64)) && !is_name(&["a"; 200].join(".")));
    }
}
