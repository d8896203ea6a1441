//! The holder's loop: requests, ended children and output, one at a time.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use stead_holder::channel;
use stead_holder::wire::{Answer, Command, Exit, Failure, Message, Request, Slot};

use crate::container::{Container, decode};
use crate::failure::{Context, Result};
use crate::log::CHUNK;
use crate::namespaces::{self, Namespaces};
use crate::sys;

/// A program started by `exec`.
struct Visitor {
    pid: i32,
    started: u64,
}

/// Everything a holder holds.
pub(crate) struct Holder {
    listener: OwnedFd,
    children: OwnedFd,
    connection: Option<OwnedFd>,
    namespaces: Namespaces,
    containers: Vec<Container>,
    visitors: Vec<Visitor>,
    chunk: Vec<u8>,
}

/// What a poll entry stands for.
#[derive(Clone, Copy)]
enum Source {
    Listener,
    Children,
    Connection,
    Output { container: usize, stream: usize },
}

impl Holder {
    pub(crate) fn new(listener: OwnedFd, children: OwnedFd, namespaces: Namespaces) -> Self {
        Self {
            listener,
            children,
            connection: None,
            namespaces,
            containers: Vec::new(),
            visitors: Vec::new(),
            chunk: vec![0; CHUNK],
        }
    }

    /// Runs until told to quit.
    pub(crate) fn run(mut self, connection: OwnedFd) -> ! {
        self.connection = Some(connection);
        loop {
            let (mut entries, sources) = self.sources();
            sys::poll(&mut entries);
            let ready = entries.iter().zip(&sources).filter(|(entry, _)| entry.revents != 0);
            for source in ready.map(|(_, source)| *source).collect::<Vec<_>>() {
                match source {
                    Source::Output { container, stream } => {
                        self.containers[container].log.pump(stream, &mut self.chunk);
                    }
                    Source::Children => {
                        self.reap();
                        break; // what the other entries stand for may have changed
                    }
                    Source::Listener => {
                        if let Some(connection) = sys::accept(self.listener.as_fd()) {
                            let _ = channel::widen(connection.as_fd());
                            self.connection = Some(connection);
                        }
                        break;
                    }
                    Source::Connection => {
                        self.serve();
                        break;
                    }
                }
            }
        }
    }

    /// Output first: a log line that is there is written before an end is reported.
    fn sources(&self) -> (Vec<libc::pollfd>, Vec<Source>) {
        let mut entries = Vec::new();
        let mut sources = Vec::new();
        let mut add = |descriptor: BorrowedFd<'_>, source| {
            let fd = descriptor.as_raw_fd();
            entries.push(libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
            sources.push(source);
        };
        for (container, held) in self.containers.iter().enumerate() {
            for stream in 0..held.log.streams.len() {
                if let Some(pipe) = held.log.pipe(stream) {
                    add(pipe.as_fd(), Source::Output { container, stream });
                }
            }
        }
        add(self.children.as_fd(), Source::Children);
        if let Some(connection) = &self.connection {
            add(connection.as_fd(), Source::Connection);
        }
        add(self.listener.as_fd(), Source::Listener);
        (entries, sources)
    }

    fn serve(&mut self) {
        let Some(connection) = &self.connection else { return };
        match channel::receive(connection.as_fd()) {
            Ok(Some((message, descriptors))) => self.obey(&message, &descriptors),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // `serve` is gone. It comes back through the listener.
            Ok(None) | Err(_) => self.connection = None,
        }
    }

    fn obey(&mut self, message: &[u8], descriptors: &[OwnedFd]) {
        let request: Request = match serde_json::from_slice(message) {
            Ok(request) => request,
            Err(error) => {
                /// The part of a request that every version has.
                #[derive(serde::Deserialize)]
                struct Numbered {
                    id: u64,
                }
                let id = serde_json::from_slice(message).map_or(0, |Numbered { id }| id);
                let result = Err(Failure::NotUnderstood(error.to_string()));
                return self.say(&Message::Answer { id, result }, &[]);
            }
        };
        let quit = matches!(request.command, Command::Quit);
        let (result, attached) = match self.execute(request.command, descriptors) {
            Ok((answer, attached)) => (Ok(answer), attached),
            Err(failure) => (Err(failure), Vec::new()),
        };
        let attached: Vec<_> = attached.iter().map(AsFd::as_fd).collect();
        self.say(&Message::Answer { id: request.id, result }, &attached);
        if quit {
            sys::exit(0);
        }
        sys::trim_memory();
    }

    fn execute(
        &mut self,
        command: Command,
        descriptors: &[OwnedFd],
    ) -> Result<(Answer, Vec<OwnedFd>)> {
        let answer = match command {
            Command::List => {
                Answer::Containers(self.containers.iter().map(Container::view).collect())
            }
            Command::Netns => {
                let netns = self.netns(Slot::A)?.try_clone_to_owned().at("netns")?;
                return Ok((Answer::Done, vec![netns]));
            }
            Command::Slot { slot } => {
                let (netns, routing) = self.namespaces.make_slot(slot).at("netns")?;
                let netns = netns.try_clone_to_owned().at("netns")?;
                return Ok((Answer::Done, vec![netns, routing]));
            }
            Command::Sockets { slot } => {
                let open = || sys::netlink_socket(libc::NETLINK_SOCK_DIAG);
                let sockets = namespaces::inside(self.netns(slot)?, open).at("netns")?;
                return Ok((Answer::Done, vec![sockets]));
            }
            Command::Label { container, labels } => {
                self.find(&container)?.labels = labels;
                Answer::Done
            }
            Command::Prepare(wanted) => {
                if let Some(existing) = self.containers.iter().find(|c| c.id == wanted.container) {
                    return Err(Failure::WrongState(existing.state()));
                }
                let (container, phases) = Container::prepare(&self.namespaces, *wanted)?;
                self.containers.push(container);
                Answer::Prepared(phases)
            }
            Command::Start { container } => {
                let (pid, at) = self.find(&container)?.start()?;
                Answer::Started { pid, at }
            }
            Command::Signal { container, signal } => {
                self.find(&container)?.signal(signal)?;
                Answer::Done
            }
            Command::Exec(wanted) => {
                let container = self.find(&wanted.container)?;
                let (pid, master) = container.exec(&wanted, descriptors)?;
                self.visitors.push(Visitor { pid, started: sys::now() });
                return Ok((Answer::Executing { pid }, master.into_iter().collect()));
            }
            Command::Kill { pid } => {
                // One that is still noted has not been reaped, so the number is still its own.
                if self.visitors.iter().any(|visitor| visitor.pid == pid) {
                    sys::kill(pid, libc::SIGKILL).at("kill")?;
                }
                Answer::Done
            }
            Command::Discard { container } => {
                let held = self.find(&container)?;
                if held.is_running() {
                    return Err(Failure::WrongState(held.state()));
                }
                held.kill_and_reap();
                self.containers.retain(|held| held.id != container);
                Answer::Done
            }
            Command::Quit => {
                // A pid namespace ends only once everything in it has been reaped, and these
                // are for us to reap.
                for visitor in self.visitors.drain(..) {
                    let _ = sys::kill(visitor.pid, libc::SIGKILL);
                    sys::reap(visitor.pid);
                }
                for container in &mut self.containers {
                    container.kill_and_reap();
                }
                Answer::Done
            }
        };
        Ok((answer, Vec::new()))
    }

    fn netns(&self, slot: Slot) -> Result<BorrowedFd<'_>> {
        let missing = || Failure::NotUnderstood(format!("slot {slot:?} was not asked for"));
        self.namespaces.net(slot).ok_or_else(missing)
    }

    fn find(&mut self, id: &str) -> Result<&mut Container> {
        self.containers.iter_mut().find(|held| held.id == id).ok_or(Failure::Unknown)
    }

    /// Notes every child that has ended, and says so.
    fn reap(&mut self) {
        // Empties the descriptor; the children are asked one by one.
        let _ = sys::read(self.children.as_fd(), &mut [0; 1024]);
        while let Some((pid, status)) = sys::reap_any() {
            let message = if let Some(held) =
                self.containers.iter_mut().find(|held| held.init == pid && !held.has_exited())
            {
                let exit = held.ended(status, &mut self.chunk);
                Message::Exited { container: held.id.clone(), exit }
            } else if let Some(at) = self.visitors.iter().position(|visitor| visitor.pid == pid) {
                let started = self.visitors.swap_remove(at).started;
                let status = decode(status);
                let exit = Exit { status, out_of_memory: false, started, finished: sys::now() };
                Message::ExecExited { pid, exit }
            } else {
                continue;
            };
            self.say(&message, &[]);
        }
    }

    /// Sends to whoever is connected. A reader that does not read is cut off: it will come back
    /// and ask for everything.
    fn say(&mut self, message: &Message, descriptors: &[BorrowedFd<'_>]) {
        let Some(connection) = &self.connection else { return };
        let text = serde_json::to_vec(message).expect("the messages have text keys only");
        if channel::send(connection.as_fd(), &text, descriptors).is_err() {
            self.connection = None;
        }
    }
}
