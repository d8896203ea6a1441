//! Which connections a netns has, asked of the kernel (sock_diag(7)).
//!
//! The socket belongs to the netns it was opened in, wherever its descriptor has gone. Does not
//! know who is at the other end, only whether it is somebody outside.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;

use super::Ips;
use super::netlink::{DUMP, Socket};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;

// States of TCP: linux/tcp_states.h.
const ESTABLISHED: u8 = 1;
const SYN_RECEIVED: u8 = 3;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;

/// A socket of `NETLINK_SOCK_DIAG`.
#[derive(Debug)]
pub(crate) struct Sockets(Socket);

impl Sockets {
    pub(crate) fn adopt(socket: OwnedFd) -> Self {
        Self(Socket::adopt(socket))
    }

    /// How many TCP connections that somebody outside has opened are still being served: those
    /// to a port that is listened on, from an address that is neither loopback nor one of `own`,
    /// until both sides or the server have said their last.
    pub(crate) fn inbound(&mut self, own: Ips) -> io::Result<usize> {
        let mut ports = HashSet::new();
        let mut served = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            for found in self.list(family)? {
                match found.state {
                    LISTEN => drop(ports.insert(found.port)),
                    _ => served.push(found),
                }
            }
        }
        let is_outside = |ip: IpAddr| !ip.is_loopback() && own.all().all(|own| own != ip);
        let counts = |found: &&Found| ports.contains(&found.port) && is_outside(found.peer);
        Ok(served.iter().filter(counts).count())
    }

    /// The kernel lists connections with IPv4 to a socket of IPv6 as those of IPv6.
    fn list(&mut self, family: i32) -> io::Result<Vec<Found>> {
        let states = [ESTABLISHED, SYN_RECEIVED, CLOSE_WAIT, LISTEN];
        let states: u32 = states.iter().map(|state| 1 << state).sum();
        // `struct inet_diag_req_v2`; an id of zeros is any.
        let mut request = [0; 56];
        request[0] = family as u8;
        request[1] = libc::IPPROTO_TCP as u8;
        request[4..8].copy_from_slice(&states.to_ne_bytes());
        self.0.queue(BY_FAMILY, DUMP, &request, |_| {});
        Ok(self.0.ask()?.iter().filter_map(|answer| Found::parse(answer)).collect())
    }
}

#[derive(Debug, Clone, Copy)]
struct Found {
    state: u8,
    port: u16,
    peer: IpAddr,
}

impl Found {
    /// `struct inet_diag_msg`.
    fn parse(answer: &[u8]) -> Option<Self> {
        let peer: [u8; 16] = *answer.get(24..40)?.first_chunk()?;
        let peer = match i32::from(answer[0]) {
            libc::AF_INET => IpAddr::from(*peer.first_chunk::<4>()?),
            _ => Ipv6Addr::from(peer).to_canonical(),
        };
        Some(Self { state: answer[1], port: u16::from_be_bytes([answer[4], answer[5]]), peer })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_came_from_here_is_not_from_outside() {
        let mut sockets = Sockets(Socket::open(libc::NETLINK_SOCK_DIAG).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let own = Ips { v4: Ipv4Addr::new(192, 0, 2, 1), v6: None };
        let found = sockets.list(libc::AF_INET).unwrap();
        let of_ours = |state| found.iter().filter(|f| f.port == port && f.state == state).count();
        assert_eq!((of_ours(LISTEN), of_ours(ESTABLISHED)), (1, 1));
        sockets.inbound(own).unwrap();
    }

    #[test]
    fn a_peer_with_ipv4_is_seen_through_a_socket_of_ipv6() {
        let mut answer = [0; 72];
        answer[..2].copy_from_slice(&[libc::AF_INET6 as u8, ESTABLISHED]);
        answer[4..6].copy_from_slice(&80u16.to_be_bytes());
        answer[24..40].copy_from_slice(&Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
        let found = Found::parse(&answer).unwrap();
        assert_eq!((found.port, found.peer), (80, IpAddr::from(Ipv4Addr::LOCALHOST)));
        assert!(Found::parse(&answer[..30]).is_none());
    }
}
