//! The networks on which this machine is itself: the on-link prefixes of its interfaces.
//!
//! Does not know what they are compared with. Loopback and link-local addresses never count as a network.

use ipnet::IpNet;
use nix::net::if_::InterfaceFlags;
use std::net::IpAddr;

/// The on-link prefixes of all interfaces that are up, sorted, each once. An interface list that cannot be read gives
/// an error of the operating system.
pub fn on_link() -> std::io::Result<Vec<IpNet>> {
    let mut networks = Vec::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        if !interface.flags.contains(InterfaceFlags::IFF_UP) {
            continue;
        }
        let (Some(address), Some(mask)) = (interface.address, interface.netmask) else { continue };
        let pair = match (address.as_sockaddr_in(), mask.as_sockaddr_in()) {
            (Some(address), Some(mask)) => Some((IpAddr::V4(address.ip()), IpAddr::V4(mask.ip()))),
            _ => match (address.as_sockaddr_in6(), mask.as_sockaddr_in6()) {
                (Some(address), Some(mask)) => Some((IpAddr::V6(address.ip()), IpAddr::V6(mask.ip()))),
                _ => None,
            },
        };
        networks.extend(pair.and_then(|(address, mask)| network_of(address, mask)));
    }
    networks.sort();
    networks.dedup();
    Ok(networks)
}

/// The prefix that `address` lies in, or nothing where it does not count as a network.
fn network_of(address: IpAddr, mask: IpAddr) -> Option<IpNet> {
    let counts = match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    };
    let network = IpNet::with_netmask(address, mask).ok()?.trunc();
    counts.then_some(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, mask: &str, expect: Option<&str>) {
        let got = network_of(address.parse().unwrap(), mask.parse().unwrap()).map(|n| n.to_string());
        assert_eq!(got.as_deref(), expect, "{address}/{mask}");
    }

    #[test]
    fn an_address_stands_for_its_on_link_prefix() {
        check("192.0.2.77", "255.255.255.0", Some("192.0.2.0/24"));
        check("2001:db8::7", "ffff:ffff:ffff:ffff::", Some("2001:db8::/64"));
        check("10.1.2.3", "255.255.255.255", Some("10.1.2.3/32"));
    }

    #[test]
    fn loopback_and_link_local_never_count() {
        check("127.0.0.1", "255.0.0.0", None);
        check("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None);
        check("169.254.3.4", "255.255.0.0", None);
        check("fe80::1", "ffff:ffff:ffff:ffff::", None);
    }

    #[test]
    fn the_machine_s_own_list_can_be_read_and_holds_no_loopback() {
        let networks = on_link().unwrap();
        assert!(networks.iter().all(|n| !n.addr().is_loopback()), "{networks:?}");
    }
}
