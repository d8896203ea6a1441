//! Whole messages, with descriptors attached, over a `SOCK_SEQPACKET` Unix socket.
//!
//! Promises: a message arrives whole or not at all; received descriptors are close-on-exec and
//! owned. Does not know what the messages mean. Neither call waits when the socket is set to
//! non-blocking.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Most descriptors in one message.
pub const MAX_DESCRIPTORS: usize = 4;

/// Longest message in bytes: room for a large environment.
pub const MAX_MESSAGE: usize = 1 << 20;

/// The socket buffer that lets [`MAX_MESSAGE`] through in one piece.
static SOCKET_BUFFER: libc::c_int = 2 * MAX_MESSAGE as libc::c_int;

/// Makes room in the socket's send buffer for the longest message.
///
/// # Errors
/// What `setsockopt` reports: `EPERM` without `CAP_NET_ADMIN`.
pub fn widen(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the pointer and length name a live integer.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            (&raw const SOCKET_BUFFER).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends one message with the descriptors given.
///
/// # Errors
/// `WouldBlock` when the socket is full and non-blocking, `InvalidInput` for a message that is
/// too long, `BrokenPipe` when the other end is gone.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if message.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = [0u64; 8];
    let mut part = libc::iovec { iov_base: message.as_ptr() as *mut _, iov_len: message.len() };
    // SAFETY: all-zero is a valid msghdr; the pointers set below outlive the call, and the
    // control buffer is aligned and large enough for MAX_DESCRIPTORS descriptors.
    let sent = unsafe {
        let mut header: libc::msghdr = zeroed();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if !descriptors.is_empty() {
            let bytes = (descriptors.len() * size_of::<RawFd>()) as libc::c_uint;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(bytes) as _;
            let data: *mut RawFd = libc::CMSG_DATA(first).cast();
            for (at, descriptor) in descriptors.iter().enumerate() {
                data.add(at).write_unaligned(descriptor.as_raw_fd());
            }
        }
        libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one message and its descriptors; `None` when the other end has closed.
///
/// # Errors
/// `WouldBlock` when nothing is there and the socket is non-blocking.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    // SAFETY: a null buffer of length zero is allowed with MSG_PEEK | MSG_TRUNC.
    let length = unsafe {
        libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), 0, libc::MSG_PEEK | libc::MSG_TRUNC)
    };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut message = vec![0u8; length as usize];
    let mut control = [0u64; 8];
    let mut part = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: message.len() };
    let mut descriptors = Vec::new();
    // SAFETY: as in `send`; the kernel fills in the control buffer, which CMSG_* walk within its
    // length, and every descriptor found there is new and ours.
    let received = unsafe {
        let mut header: libc::msghdr = zeroed();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control) as _;
        let received = libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC);
        if received >= 0 {
            let mut entry = libc::CMSG_FIRSTHDR(&raw const header);
            while !entry.is_null() {
                if (*entry).cmsg_level == libc::SOL_SOCKET && (*entry).cmsg_type == libc::SCM_RIGHTS
                {
                    let bytes = (*entry).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                    let data: *const RawFd = libc::CMSG_DATA(entry).cast();
                    for at in 0..bytes / size_of::<RawFd>() {
                        descriptors.push(OwnedFd::from_raw_fd(data.add(at).read_unaligned()));
                    }
                }
                entry = libc::CMSG_NXTHDR(&raw const header, entry);
            }
        }
        received
    };
    match received {
        0 if descriptors.is_empty() => Ok(None),
        n if n < 0 => Err(io::Error::last_os_error()),
        n => {
            message.truncate(n as usize);
            Ok(Some((message, descriptors)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let mut ends = [0; 2];
        // SAFETY: the array has room for both descriptors.
        let made =
            unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr()) };
        assert_eq!(made, 0);
        // SAFETY: both were just made and belong to nobody else.
        unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) }
    }

    #[test]
    fn a_message_and_its_descriptor_arrive_together() {
        let (left, right) = pair();
        let (mut reader, mut writer) = io::pipe().unwrap();
        send(left.as_fd(), b"take this", &[reader.as_fd()]).unwrap();
        let (message, descriptors) = receive(right.as_fd()).unwrap().unwrap();
        assert_eq!(message, b"take this");
        writer.write_all(b"x").unwrap();
        let mut byte = [0];
        std::fs::File::from(descriptors.into_iter().next().unwrap()).read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        drop(writer);
        assert_eq!(reader.read(&mut byte).unwrap(), 0);
    }

    #[test]
    fn a_large_message_is_not_cut_and_a_closed_end_is_seen() {
        let (left, right) = pair();
        widen(left.as_fd()).unwrap();
        let large = vec![7; 700_000];
        let sender = std::thread::spawn(move || send(left.as_fd(), &large, &[]).unwrap());
        assert_eq!(receive(right.as_fd()).unwrap().unwrap().0.len(), 700_000);
        sender.join().unwrap();
        assert!(receive(right.as_fd()).unwrap().is_none());
    }
}
