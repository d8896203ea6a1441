//! The connection to one holder: requests out, answers and news in.
//!
//! Promises: each request gets its own answer or learns that the holder is gone; news are told in
//! the order in which they happened. One task reads, anybody asks.
// The standard library does not know this kind of socket; every block says why it is sound.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use stead_holder::channel;
use stead_holder::wire::{Answer, Command, Exit, Failure, Message, Request};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

/// What came back on a request.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) result: Result<Answer, Failure>,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Of a program that was started: tells its end.
    pub(crate) exit: Option<oneshot::Receiver<Exit>>,
}

/// The holder is gone, or has hung up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// What a holder says of its own accord.
#[derive(Debug)]
pub(crate) enum News {
    /// A Container ended.
    Exited { container: String, exit: Exit },
    /// Nothing more will come.
    Gone,
}

/// A connection to a holder.
#[derive(Debug)]
pub(crate) struct Link {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    /// `None` once the holder is gone.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Reply>>>>,
}

impl Link {
    /// Takes over a connected socket.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Arc<Self>> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        channel::widen(socket.as_fd())?;
        let waiting = Mutex::new(Some(HashMap::new()));
        Ok(Arc::new(Self { socket: watch(socket)?, next: AtomicU64::new(1), waiting }))
    }

    /// Connects to the holder of a Sandbox by its folder. Also returns its process number.
    pub(crate) fn connect(folder: &Path) -> io::Result<(Arc<Self>, i32)> {
        // By way of the open folder, because an address holds only 107 bytes.
        let folder = std::fs::File::open(folder)?;
        let path = format!("/proc/self/fd/{}/ctl", folder.as_raw_fd());
        let socket = seqpacket_connect(&path)?;
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        Ok((Self::new(socket)?, peer.pid.as_raw_nonzero().get()))
    }

    /// The first message of a new holder: its netns and a routing socket in it.
    pub(crate) async fn hello(&self) -> Result<(OwnedFd, OwnedFd), Option<Failure>> {
        match self.receive().await {
            Ok(Some((Message::Hello, descriptors))) => {
                <[OwnedFd; 2]>::try_from(descriptors).map(<(_, _)>::from).map_err(|_| None)
            }
            Ok(Some((Message::Answer { result: Err(failure), .. }, _))) => Err(Some(failure)),
            _ => Err(None),
        }
    }

    /// Asks the holder something. Needs somebody to [`listen`](Self::listen).
    pub(crate) async fn ask(
        &self,
        command: Command,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Reply, Gone> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let request =
            serde_json::to_vec(&Request { id, command }).expect("the messages have text keys only");
        let (sender, answer) = oneshot::channel();
        self.with_waiting(|waiting| waiting.insert(id, sender)).ok_or(Gone)?;
        let sent = loop {
            match channel::send(self.socket.as_fd(), &request, descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let Ok(mut ready) = self.socket.writable().await else { break Err(Gone) };
                    ready.clear_ready();
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    let text = "the environment is too large: at most 1 MiB".to_owned();
                    self.with_waiting(|waiting| waiting.remove(&id));
                    let result = Err(Failure::NotUnderstood(text));
                    return Ok(Reply { result, descriptors: Vec::new(), exit: None });
                }
                Err(_) => break Err(Gone),
                Ok(()) => break Ok(()),
            }
        };
        if let Err(gone) = sent {
            self.with_waiting(|waiting| waiting.remove(&id));
            return Err(gone);
        }
        answer.await.map_err(|_| Gone)
    }

    /// Asks a holder that nobody listens to. Also returns the news that came meanwhile.
    pub(crate) async fn ask_alone(&self, command: Command) -> Result<(Reply, Vec<News>), Gone> {
        let mut news = Vec::new();
        let reply = tokio::select! {
            biased;
            reply = self.ask(command, &[]) => reply,
            () = self.listen(|told| news.push(told)) => Err(Gone),
        };
        reply.map(|reply| (reply, news))
    }

    /// Reads until the holder is gone, passing answers to those who asked and news to `tell`.
    pub(crate) async fn listen(&self, mut tell: impl FnMut(News)) {
        let mut running: HashMap<i32, oneshot::Sender<Exit>> = HashMap::new();
        while let Ok(Some((message, descriptors))) = self.receive().await {
            match message {
                Message::Answer { id, result } => {
                    let exit = match result {
                        Ok(Answer::Executing { pid }) => {
                            let (sender, exit) = oneshot::channel();
                            running.insert(pid, sender);
                            Some(exit)
                        }
                        _ => None,
                    };
                    let asker = self.with_waiting(|waiting| waiting.remove(&id)).flatten();
                    if let Some(asker) = asker {
                        // An asker that has given up needs no answer.
                        let _ = asker.send(Reply { result, descriptors, exit });
                    }
                }
                Message::Exited { container, exit } => tell(News::Exited { container, exit }),
                Message::ExecExited { pid, exit } => {
                    if let Some(sender) = running.remove(&pid) {
                        let _ = sender.send(exit);
                    }
                }
                Message::Hello => {}
            }
        }
        // Dropping the senders tells everybody who waits.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        tell(News::Gone);
    }

    async fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        loop {
            match channel::receive(self.socket.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.socket.readable().await?.clear_ready();
                    // Something may have come just before.
                    match channel::receive(self.socket.as_fd()) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        other => return parse(other?),
                    }
                }
                other => return parse(other?),
            }
        }
    }

    fn with_waiting<T>(
        &self,
        act: impl FnOnce(&mut HashMap<u64, oneshot::Sender<Reply>>) -> T,
    ) -> Option<T> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.as_mut().map(act)
    }
}

/// Has the runtime watch a descriptor.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open file for as long as it lives.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}

type Received = Option<(Message, Vec<OwnedFd>)>;

fn parse(received: Option<(Vec<u8>, Vec<OwnedFd>)>) -> io::Result<Received> {
    received
        .map(|(text, descriptors)| Ok((serde_json::from_slice(&text)?, descriptors)))
        .transpose()
}

/// A pair of connected sockets that keep messages whole.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    Ok(socketpair(AddressFamily::UNIX, kind, flags, None)?)
}

fn seqpacket_connect(path: &str) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is new and ours.
    let socket = unsafe {
        let socket = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(socket)
    };
    // SAFETY: all-zero is a valid address of no family.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if path.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(path.bytes()) {
        *to = from as libc::c_char;
    }
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address is live, terminated and as long as stated.
    let done = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}
