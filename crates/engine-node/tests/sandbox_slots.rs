//! Two Containers behind one address, and which of them a connection reaches.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
// The standard library cannot mark a socket.
#![allow(unsafe_code)]

mod sandbox_harness;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_harness::{Outside, PATIENCE, Platform, ask, shell};
use stead_engine_node::sandbox::{
    ContainerSpec, ExecHandle, ExecSpec, Sandbox, SandboxError, Slot, Stdio,
};

/// A connection that asks again and again whom it has reached.
struct Caller<S: Read> {
    from: BufReader<S>,
    to: Box<dyn Write + Send>,
    /// Kept, or the program would be killed.
    _program: Option<ExecHandle>,
}

impl<S: Read> Caller<S> {
    fn ask(&mut self) -> String {
        self.to.write_all(b"?\n").unwrap();
        let mut answer = String::new();
        self.from.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }
}

/// A connection of the host, with a mark if one is given. Waits until somebody listens.
fn from_host(ip: IpAddr, mark: Option<u32>) -> Caller<TcpStream> {
    let begun = Instant::now();
    loop {
        match connect(ip, mark) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let to = Box::new(stream.try_clone().unwrap());
                return Caller { from: BufReader::new(stream), to, _program: None };
            }
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{ip}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn connect(ip: IpAddr, mark: Option<u32>) -> std::io::Result<TcpStream> {
    let Some(mark) = mark else {
        return TcpStream::connect_timeout(&SocketAddr::new(ip, 80), Duration::from_secs(5));
    };
    let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers; the descriptor is new and ours.
    let socket = unsafe { OwnedFd::from_raw_fd(libc::socket(family, libc::SOCK_STREAM, 0)) };
    // SAFETY: the value is live and as long as stated.
    let marked = unsafe {
        let value = (&raw const mark).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MARK, value, 4)
    };
    assert_eq!(marked, 0);
    let connected = match ip {
        IpAddr::V4(ip) => {
            // SAFETY: all-zero is a valid address.
            let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            to.sin_family = libc::AF_INET as u16;
            to.sin_port = 80u16.to_be();
            to.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
            // SAFETY: the address is live and as long as stated.
            unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), 16) }
        }
        IpAddr::V6(ip) => {
            // SAFETY: all-zero is a valid address.
            let mut to: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            to.sin6_family = libc::AF_INET6 as u16;
            to.sin6_port = 80u16.to_be();
            to.sin6_addr.s6_addr = ip.octets();
            // SAFETY: the address is live and as long as stated.
            unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), 28) }
        }
    };
    if connected == 0 { Ok(socket.into()) } else { Err(std::io::Error::last_os_error()) }
}

/// A connection of a program in a Container.
async fn from_inside(sandbox: &Sandbox, container: &str, ip: IpAddr) -> Caller<std::fs::File> {
    let argv = ["nc", &ip.to_string(), "80"].map(str::to_owned).to_vec();
    let spec = ExecSpec { argv, ..ExecSpec::default() };
    let mut program = sandbox.exec(container, spec).await.unwrap();
    let Stdio::Pipes { stdin, stdout, .. } = program.take_stdio() else { panic!("a terminal") };
    let to = Box::new(std::fs::File::from(stdin));
    Caller { from: BufReader::new(stdout.into()), to, _program: Some(program) }
}

/// A Container that answers each line with its name.
fn answering(all: &Platform, name: &str, slot: Slot) -> ContainerSpec {
    let answer = format!("while read line; do echo {name}; done");
    let argv = ["nc", "-ll", "-p", "80", "-e", "sh", "-c", &answer].map(str::to_owned);
    ContainerSpec { slot, ..all.container(name, &argv) }
}

async fn idle(all: &Platform, sandbox: &Sandbox) {
    all.start(sandbox, all.container("idle", &shell("exec sleep 1000"))).await;
}

/// Both slots answer, and slot A is current.
async fn both(all: &Platform, sandbox: &Sandbox, [a, b]: [&str; 2]) {
    all.start(sandbox, answering(all, a, Slot::A)).await;
    assert_eq!(from_host(sandbox.ip(), None).ask(), a);
    all.start(sandbox, answering(all, b, Slot::B)).await;
    assert_eq!(from_host(sandbox.ip(), sandbox.mark(Slot::B)).ask(), b);
}

async fn live_connections_stay_and_new_ones_move(name: &str, of: fn(&Sandbox) -> Option<IpAddr>) {
    let mut all = Platform::open(name, 0).await;
    let sandbox = all.sandbox("a").await;
    let Some(ip) = of(&sandbox) else {
        eprintln!("this host has no such addresses");
        return all.close().await;
    };
    let neighbour = all.sandbox("b").await;
    let stranger = all.sandbox_in("c", "elsewhere").await;
    idle(&all, &neighbour).await;
    idle(&all, &stranger).await;
    assert_eq!((sandbox.current(), sandbox.mark(Slot::A)), (Slot::A, None));
    let early = sandbox.flip(Slot::B).await;
    assert!(matches!(early, Err(SandboxError::WrongState { .. })), "{early:?}");
    // Opened before there was a second slot.
    all.start(&sandbox, answering(&all, "one", Slot::A)).await;
    let mut first = from_host(ip, None);
    assert_eq!(first.ask(), "one");
    all.start(&sandbox, answering(&all, "two", Slot::B)).await;
    assert_eq!(from_host(ip, sandbox.mark(Slot::B)).ask(), "two");

    let mut host = from_host(ip, None);
    let mut inside = from_inside(&neighbour, "idle", ip).await;
    assert_eq!((host.ask(), inside.ask()), ("one".into(), "one".into()));
    // Whoever marks its socket chooses.
    let marked = |slot| from_host(ip, sandbox.mark(slot)).ask();
    assert_eq!((marked(Slot::A), marked(Slot::B)), ("one".into(), "two".into()));

    for _ in 0..2 {
        sandbox.flip(Slot::B).await.unwrap();
    }
    assert_eq!(sandbox.current(), Slot::B);
    assert_eq!(from_host(ip, None).ask(), "two");
    assert_eq!(from_inside(&neighbour, "idle", ip).await.ask(), "two");
    assert_eq!((marked(Slot::A), marked(Slot::B)), ("one".into(), "two".into()));
    let stay = [first.ask(), host.ask(), inside.ask()];
    assert_eq!(stay, ["one", "one", "one"]);
    let question = ask(ip, 80);
    let afar = all.output(&stranger, "idle", &question).await.1;
    assert!(afar.contains("unreachable"), "{afar}");

    // All of it while `serve` is down, and when it is back.
    drop((sandbox, neighbour, stranger));
    all.crash();
    assert_eq!(from_host(ip, None).ask(), "two");
    assert_eq!([first.ask(), host.ask()], ["one", "one"]);
    all.reopen().await;
    let sandbox = all.host().get("a").unwrap();
    assert_eq!((sandbox.current(), of(&sandbox)), (Slot::B, Some(ip)));
    let slot = |id| sandbox.containers().into_iter().find(|view| view.id == id).unwrap().slot;
    assert_eq!((slot("one"), slot("two")), (Slot::A, Slot::B));
    assert_eq!(from_host(ip, None).ask(), "two");
    let mut second = from_host(ip, None);
    assert_eq!(second.ask(), "two");

    // And back: the slots take turns.
    sandbox.flip(Slot::A).await.unwrap();
    sandbox.flip(Slot::A).await.unwrap();
    assert_eq!(from_host(ip, None).ask(), "one");
    let stay = [first.ask(), host.ask(), second.ask()];
    assert_eq!(stay, ["one", "one", "two"]);
    assert_eq!(from_host(ip, sandbox.mark(Slot::B)).ask(), "two");
    let stranger = all.host().get("c").unwrap();
    let afar = all.output(&stranger, "idle", &question).await.1;
    assert!(afar.contains("unreachable"), "{afar}");
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_connection_stays_and_a_new_one_moves() {
    live_connections_stay_and_new_ones_move("slot1", |sandbox| Some(sandbox.ip())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_connection_with_ipv6_stays_and_a_new_one_moves() {
    live_connections_stay_and_new_ones_move("slot2", |sandbox| sandbox.ip6().map(IpAddr::V6)).await;
}
