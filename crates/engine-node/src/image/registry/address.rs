//! Which addresses a registry may lead us to.
//!
//! Promises: a name, a redirect or a DNS answer from outside never makes this process connect
//! to the machine itself, its network or a cloud's metadata service. Checked when connecting,
//! so an answer that changes between check and use gains nothing. Does not know HTTP.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// How far a registry may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Public addresses.
    Public,
    /// These, and the machine itself: the registry is on it.
    Loopback,
    /// Private networks too: the operator trusts the registry. Still no link-local
    /// addresses: cloud metadata lives there.
    Trusted,
}

/// An address out of reach.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub(super) host: String,
    pub(super) address: IpAddr,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has the address {}, which is out of reach", self.host, self.address)
    }
}

impl std::error::Error for Refused {}

impl Reach {
    fn allows(self, address: IpAddr) -> bool {
        let address = plain(address);
        if address.is_unspecified() || address.is_multicast() || is_metadata(address) {
            return false;
        }
        match self {
            Self::Trusted => true,
            Self::Loopback => address.is_loopback() || is_public(address),
            Self::Public => is_public(address),
        }
    }

    /// Checks a URL whose host is written as an address: no resolver sees those.
    pub(super) fn check(self, url: &Url) -> Result<(), Refused> {
        let host = url.host_str().unwrap_or_default();
        match host.trim_start_matches('[').trim_end_matches(']').parse() {
            Ok(address) if !self.allows(address) => Err(Refused { host: host.to_owned(), address }),
            _ => Ok(()),
        }
    }
}

/// The IPv4 address inside an IPv6 one that only wraps it (mapped, NAT64, 6to4).
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let s = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

/// Link-local addresses, and the one that Amazon's metadata service has besides.
fn is_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local() || v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
        }
    }
}

/// Not one of IANA's special-purpose addresses (RFC 6890 and its registries).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_documentation()
                || a == 0
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (18..20).contains(&b))
                || a >= 240)
        }
        // Only 2000::/3 is handed out; documentation lies within it.
        IpAddr::V6(v6) => {
            (v6.segments()[0] & 0xe000) == 0x2000 && v6.segments()[..2] != [0x2001, 0xdb8]
        }
    }
}

/// Resolves names with the system's resolver and drops what is out of reach.
pub(super) struct Guarded(pub(super) Reach);

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0;
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let answers: Vec<SocketAddr> =
                tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let (good, bad): (Vec<_>, Vec<_>) =
                answers.into_iter().partition(|answer| reach.allows(answer.ip()));
            match (good.is_empty(), bad.first()) {
                (true, Some(answer)) => Err(Refused { host, address: answer.ip() }.into()),
                _ => Ok(Box::new(good.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_is_public() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.0.170",
            "192.0.2.1",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
        ] {
            assert!(!Reach::Public.allows(address.parse().unwrap()), "{address}");
        }
        for address in ["1.1.1.1", "172.15.0.1", "100.128.0.1", "2606:4700::1", "::ffff:8.8.8.8"] {
            assert!(Reach::Public.allows(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_wider_reach_still_has_ends() {
        let allows = |reach: Reach, address: &str| reach.allows(address.parse().unwrap());
        assert!(allows(Reach::Loopback, "127.0.0.1") && allows(Reach::Loopback, "::1"));
        assert!(!allows(Reach::Loopback, "10.0.0.1"));
        assert!(allows(Reach::Trusted, "10.0.0.1") && allows(Reach::Trusted, "fd12::1"));
        for metadata in ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254"] {
            assert!(!allows(Reach::Trusted, metadata), "{metadata}");
        }
    }

    #[test]
    fn addresses_in_disguise_are_seen_through() {
        for url in
            ["http://2130706433/", "http://0x7f.1/", "http://[::ffff:7f00:1]/", "http://127.1/"]
        {
            assert!(Reach::Public.check(&url.parse().unwrap()).is_err(), "{url}");
        }
    }

    #[tokio::test]
    async fn names_are_judged_by_what_they_resolve_to() {
        let resolve = async |reach| Guarded(reach).resolve("localhost".parse().unwrap()).await;
        assert!(resolve(Reach::Loopback).await.is_ok_and(|addresses| addresses.count() > 0));
        let error = resolve(Reach::Public).await.err().unwrap();
        assert!(error.downcast_ref::<Refused>().unwrap().address.is_loopback());
    }
}
