//! The namespaces a Sandbox owns: userns, netns, IPC and UTS, and a second netns when asked.
//!
//! They are born with a short-lived child and kept by descriptor. All belong to the new userns,
//! so a Container's root has no power over anything else. Does not know about links and
//! addresses: `serve` sets those up through the routing socket opened here.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use stead_holder::wire::Slot;

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

/// Ports of connections that slot A opens, and those of slot B. The two share an address: were
/// they to choose the same port towards the same place, the host could not tell them apart.
const PORTS_A: &str = "32768 49151";
const PORTS_B: &str = "49152 65535";

/// What a Sandbox owns.
pub(crate) struct Namespaces {
    pub(crate) user: OwnedFd,
    /// The netns of slot A.
    net: OwnedFd,
    /// The netns of slot B, once it was asked for.
    second: Option<OwnedFd>,
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
        let all = Self {
            user: open(child, "user")?,
            net: open(child, "net")?,
            second: None,
            ipc: open(child, "ipc")?,
            uts: open(child, "uts")?,
            first_id,
        };
        let routing = settle(all.net.as_fd(), Slot::A)?;
        Ok((all, routing))
    }

    /// The netns of a slot. Slot B has one once it was [made](Self::make_slot).
    pub(crate) fn net(&self, slot: Slot) -> Option<BorrowedFd<'_>> {
        match slot {
            Slot::A => Some(self.net.as_fd()),
            Slot::B => self.second.as_ref().map(AsFd::as_fd),
        }
    }

    /// The netns of a slot, made if there is none yet, and a routing socket inside it.
    pub(crate) fn make_slot(&mut self, slot: Slot) -> io::Result<(BorrowedFd<'_>, OwnedFd)> {
        let net = match (slot, &mut self.second) {
            (Slot::A, _) => &self.net,
            (Slot::B, Some(second)) => second,
            (Slot::B, second) => second.insert(new_netns(self.user.as_fd())?),
        };
        Ok((net.as_fd(), settle(net.as_fd(), slot)?))
    }
}

fn open(child: i32, kind: &str) -> io::Result<OwnedFd> {
    Ok(fs::File::open(format!("/proc/{child}/ns/{kind}"))?.into())
}

/// A further netns of this userns. A namespace belongs to the userns its maker is in, so the
/// maker is a child that has joined it.
fn new_netns(user: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (wait, hold) = sys::pipe()?;
    let (told, tell) = sys::pipe()?;
    let child = sys::clone(0, None)?;
    if child == 0 {
        drop((hold, told));
        let made = sys::join(user, libc::CLONE_NEWUSER).and_then(|()| sys::unshare_net());
        let errno = made.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        let _ = sys::write(tell.as_fd(), &errno.to_ne_bytes());
        let _ = sys::read(wait.as_fd(), &mut [0]);
        sys::exit(0);
    }
    drop(tell);
    let mut errno = [0; 4];
    let made = match sys::read(told.as_fd(), &mut errno) {
        Ok(4) => match i32::from_ne_bytes(errno) {
            0 => open(child, "net"),
            errno => Err(io::Error::from_raw_os_error(errno)),
        },
        Ok(_) => Err(io::Error::from_raw_os_error(libc::ECHILD)),
        Err(error) => Err(error),
    };
    drop(hold);
    sys::reap(child);
    made
}

/// Does something inside a netns. The holder has one thread, so nobody else is moved.
pub(crate) fn inside<T>(net: BorrowedFd<'_>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let home = OwnedFd::from(fs::File::open("/proc/self/ns/net")?);
    sys::join(net, libc::CLONE_NEWNET)?;
    let done = act();
    sys::join(home.as_fd(), libc::CLONE_NEWNET)?;
    done
}

/// Applies the settings inside a netns and opens a routing socket there.
fn settle(net: BorrowedFd<'_>, slot: Slot) -> io::Result<OwnedFd> {
    let ports = (
        "ip_local_port_range",
        match slot {
            Slot::A => PORTS_A,
            Slot::B => PORTS_B,
        },
    );
    inside(net, || {
        NETWORK_SETTINGS
            .iter()
            .chain([&ports])
            .try_for_each(|(name, value)| fs::write(format!("/proc/sys/net/ipv4/{name}"), value))
            .and_then(|()| sys::netlink_socket(libc::NETLINK_ROUTE))
    })
}
