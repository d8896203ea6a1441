//! Netlink messages, built and answered by hand.
//!
//! Promises: what is queued is sent in one datagram and every message of it that asks for it is
//! acknowledged before [`Socket::commit`] returns. Does not know families; `links` and `nftables` do.
//! The hot path of a Sandbox goes through here, where a general library costs ten times as much.
//!
//! Layout: `struct nlmsghdr` (16 bytes), a fixed header of the family, then attributes
//! (`struct nlattr`: length, type, value padded to four bytes). See netlink(7).
// The standard library does not know this kind of socket; every block says why it is sound.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
const ACKNOWLEDGE: u16 = 4;
/// Flag: make it, and it is an error if it exists (`NLM_F_CREATE | NLM_F_EXCL`).
pub(crate) const NEW: u16 = 0x400 | 0x200;
/// Flag: make it, or take what exists (`NLM_F_CREATE`).
pub(crate) const CREATE: u16 = 0x400;
/// Flag: make it, replacing what exists (`NLM_F_CREATE | NLM_F_REPLACE`).
pub(crate) const REPLACE: u16 = 0x400 | 0x100;
/// Flag: after what exists (`NLM_F_CREATE | NLM_F_APPEND`).
pub(crate) const APPEND: u16 = 0x400 | 0x800;
/// Flag of a request that asks for everything (`NLM_F_ROOT | NLM_F_MATCH`).
pub(crate) const DUMP: u16 = 0x300;

const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A netlink socket and what is queued on it.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: OwnedFd,
    sequence: u32,
    queue: Vec<u8>,
    /// How many of the queued messages ask for an acknowledgement.
    pending: usize,
}

impl Socket {
    /// A socket of one of netlink's families, `NETLINK_ROUTE` or `NETLINK_NETFILTER`.
    pub(crate) fn open(protocol: i32) -> io::Result<Self> {
        // SAFETY: no pointers.
        let socket = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol)
        };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        Ok(Self::adopt(unsafe { OwnedFd::from_raw_fd(socket) }))
    }

    /// A socket opened by somebody else, perhaps in another netns, which it goes on talking to.
    pub(crate) fn adopt(socket: OwnedFd) -> Self {
        let on = 1i32;
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK] {
            // SAFETY: the value is live and as long as stated. Without these options answers are
            // only longer and errors shorter.
            unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_NETLINK,
                    option,
                    (&raw const on).cast(),
                    size_of::<i32>() as libc::socklen_t,
                );
            }
        }
        Self { socket, sequence: 1, queue: Vec::with_capacity(1024), pending: 0 }
    }

    /// Queues one message: type, extra flags, the family's header, then attributes.
    pub(crate) fn queue(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        attributes: impl FnOnce(&mut Vec<u8>),
    ) {
        self.pending += 1;
        self.append(kind, flags | ACKNOWLEDGE, header, attributes);
    }

    /// Queues a message that is not acknowledged: the begin or end of a batch. Kernels before
    /// 6.10 never acknowledge those, asked or not.
    pub(crate) fn queue_bracket(&mut self, kind: u16, header: &[u8]) {
        self.append(kind, 0, header, |_| {});
    }

    fn append(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        attributes: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.queue.len();
        self.queue.extend_from_slice(&[0; HEADER]);
        self.queue.extend_from_slice(header);
        pad(&mut self.queue);
        attributes(&mut self.queue);
        let length = (self.queue.len() - start) as u32;
        let head = &mut self.queue[start..start + HEADER];
        head[0..4].copy_from_slice(&length.to_ne_bytes());
        head[4..6].copy_from_slice(&kind.to_ne_bytes());
        head[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        head[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.sequence += 1;
    }

    /// Sends what is queued and waits for all acknowledgements.
    ///
    /// # Errors
    /// The first refusal, with the kernel's own words if it has any. The later messages of the
    /// datagram are carried out all the same, except in an nf_tables batch.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        let mut pending = self.send()?;
        let mut refusal = None;
        while pending > 0 {
            let answer = self.receive()?;
            for message in Messages(&answer).filter(|message| message.kind == ERROR) {
                pending = pending.saturating_sub(1);
                refusal = refusal.or(refused(&message));
            }
            // To a refused batch nf_tables gives fewer answers than asked for, or more. None may
            // stay unread, or the next commit takes it for its own.
            if refusal.is_some() {
                pending = usize::from(!self.nothing_waits());
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Sends one queued request and returns the payloads of its answers.
    pub(crate) fn ask(&mut self) -> io::Result<Vec<Vec<u8>>> {
        self.send()?;
        let mut found = Vec::new();
        loop {
            let answer = self.receive()?;
            for message in Messages(&answer) {
                match message.kind {
                    DONE => return Ok(found),
                    ERROR => return refused(&message).map_or(Ok(found), Err),
                    _ => found.push(message.payload.to_vec()),
                }
            }
        }
    }

    /// Sends what is queued; how many acknowledgements it asks for.
    fn send(&mut self) -> io::Result<usize> {
        // SAFETY: the queue is live and as long as stated.
        let sent = unsafe {
            libc::send(self.socket.as_raw_fd(), self.queue.as_ptr().cast(), self.queue.len(), 0)
        };
        let pending = std::mem::take(&mut self.pending);
        self.queue.clear();
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(pending) }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            // SAFETY: the buffer is live and as long as stated.
            let got = unsafe {
                libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
            };
            if got >= 0 {
                buffer.truncate(got as usize);
                return Ok(buffer);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Has the kernel nothing more to say? It answers before `send` returns.
    fn nothing_waits(&self) -> bool {
        let mut byte = 0u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: one live byte.
        unsafe { libc::recv(self.socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags) < 0 }
    }
}

/// One message of an answer.
struct Message<'a> {
    kind: u16,
    payload: &'a [u8],
    /// Of an acknowledgement: attributes follow the error number at once (`NLM_F_CAPPED`).
    capped: bool,
}

struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let head = self.0.get(..HEADER)?;
        let length = number(&head[0..4]) as usize;
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let flags = u16::from_ne_bytes([head[6], head[7]]);
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, payload, capped: flags & 0x100 != 0 })
    }
}

/// The error of a negative acknowledgement, with the kernel's explanation.
fn refused(message: &Message<'_>) -> Option<io::Error> {
    let errno = -(number(message.payload.get(..4)?) as i32);
    if errno == 0 {
        return None;
    }
    let error = io::Error::from_raw_os_error(errno);
    let said = message
        .capped
        .then(|| message.payload.get(4 + HEADER..))
        .flatten()
        .and_then(|rest| attributes(rest).find(|(kind, _)| *kind == 1))
        .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    Some(match said {
        Some(said) => io::Error::new(error.kind(), Refusal { errno, said }),
        None => error,
    })
}

/// A refusal that the kernel explained.
#[derive(Debug, thiserror::Error)]
#[error("{} ({said})", io::Error::from_raw_os_error(*errno))]
struct Refusal {
    errno: i32,
    said: String,
}

/// The error number, whichever way the error was made.
pub(crate) fn errno(error: &io::Error) -> Option<i32> {
    let refusal = error.get_ref().and_then(|inner| inner.downcast_ref::<Refusal>());
    refusal.map(|refusal| refusal.errno).or(error.raw_os_error())
}

/// The attributes of a payload: type and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A native-endian number of four bytes; 0 if there are fewer.
pub(crate) fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// Adds one attribute.
pub(crate) fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    pad(to);
}

/// Adds a text, terminated as the kernel wants it.
pub(crate) fn text(to: &mut Vec<u8>, kind: u16, value: &str) {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    attribute(to, kind, &bytes);
}

/// Adds an attribute made of attributes.
pub(crate) fn nest(to: &mut Vec<u8>, kind: u16, inner: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    to.extend_from_slice(&[0; 4]);
    inner(to);
    let length = (to.len() - start) as u16;
    to[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    to[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut bytes = Vec::new();
        text(&mut bytes, 3, "eth0");
        nest(&mut bytes, 18, |inner| attribute(inner, 1, &7u32.to_ne_bytes()));
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read[0], (3, &b"eth0\0"[..]));
        let inner: Vec<_> = attributes(read[1].1).collect();
        assert_eq!((inner[0].0, number(inner[0].1)), (1, 7));
    }

    #[test]
    fn a_cut_off_answer_ends_the_walk() {
        assert_eq!(attributes(&[200, 0, 1, 0, 5]).count(), 0);
        assert!(Messages(&[0; 10]).next().is_none());
    }

    #[test]
    fn a_refusal_keeps_its_number() {
        let mut socket = Socket::open(libc::NETLINK_ROUTE).unwrap();
        // Deletes a link that does not exist.
        let mut header = [0u8; 16];
        header[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        socket.queue(libc::RTM_DELLINK, 0, &header, |_| {});
        assert_eq!(errno(&socket.commit().unwrap_err()), Some(libc::ENODEV));
    }
}
