//! The namespaces a Sandbox owns: userns, netns, IPC and UTS.
//!
//! They are born with a short-lived child and kept by descriptor. All belong to the new userns,
//! so a Container's root has no power over anything else. Does not know about links and
//! addresses: `serve` sets those up through the routing socket opened here.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::sys;

/// Ids mapped into each Sandbox: 0 to 65535.
pub(crate) const MAPPED_IDS: u32 = 65_536;

/// Settings of the Sandbox's own network stack, path under `/proc/sys/net/ipv4` and value.
const NETWORK_SETTINGS: [(&str, &str); 3] = [
    // A kept netns would keep TIME_WAIT too, and the next version of an App trips over it.
    ("tcp_max_tw_buckets", "0"),
    // Root inside is nobody outside, so low ports protect nothing.
    ("ip_unprivileged_port_start", "0"),
    ("ping_group_range", "0 65535"),
];

/// What a Sandbox owns.
pub(crate) struct Namespaces {
    pub(crate) user: OwnedFd,
    pub(crate) net: OwnedFd,
    pub(crate) ipc: OwnedFd,
    pub(crate) uts: OwnedFd,
    /// The first host id of the range mapped to 0… inside.
    pub(crate) first_id: u32,
}

impl Namespaces {
    /// Makes them, and a routing socket inside the netns.
    pub(crate) fn new(first_id: u32) -> io::Result<(Self, OwnedFd)> {
        let kinds =
            libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        // The child waits on this pipe, so it also ends should this process be killed.
        let (wait, hold) = sys::pipe()?;
        let child = sys::clone(kinds, None)?;
        if child == 0 {
            drop(hold);
            let _ = sys::read(wait.as_fd(), &mut [0]);
            sys::exit(0);
        }
        let made = Self::adopt(child, first_id);
        drop(hold);
        sys::reap(child);
        made
    }

    fn adopt(child: i32, first_id: u32) -> io::Result<(Self, OwnedFd)> {
        let map = format!("0 {first_id} {MAPPED_IDS}");
        fs::write(format!("/proc/{child}/uid_map"), &map)?;
        fs::write(format!("/proc/{child}/gid_map"), &map)?;
        let open = |kind: &str| -> io::Result<OwnedFd> {
            Ok(fs::File::open(format!("/proc/{child}/ns/{kind}"))?.into())
        };
        let all = Self {
            user: open("user")?,
            net: open("net")?,
            ipc: open("ipc")?,
            uts: open("uts")?,
            first_id,
        };
        let routing = all.settle_network()?;
        Ok((all, routing))
    }

    /// Applies the settings inside the netns and opens a routing socket there.
    fn settle_network(&self) -> io::Result<OwnedFd> {
        let home = OwnedFd::from(fs::File::open("/proc/self/ns/net")?);
        sys::join(self.net.as_fd(), libc::CLONE_NEWNET)?;
        let settled = NETWORK_SETTINGS
            .iter()
            .try_for_each(|(name, value)| fs::write(format!("/proc/sys/net/ipv4/{name}"), value))
            .and_then(|()| sys::netlink_route_socket());
        sys::join(home.as_fd(), libc::CLONE_NEWNET)?;
        settled
    }
}
