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
use std::sync::atomic::{AtomicBool, Ordering};
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
    all.start(sandbox, answering(all, b, Slot::B)).await;
    for (slot, name) in [(Slot::A, a), (Slot::B, b)] {
        assert_eq!(from_host(sandbox.ip(), sandbox.mark(slot)).ask(), name);
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn both_slots_reach_the_outside_and_whatever_slot_is_current_of_others() {
    let mut all = Platform::open("slot3", 0).await;
    let outside = Outside::new(all.folder());
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"HTTP/1.0 200 OK\r\n\r\nhost\n");
        }
    });
    all.crash();
    all.config_mut().host_ports = vec![port];
    all.reopen().await;
    let (one, two) = (all.sandbox("one").await, all.sandbox("two").await);
    let stranger = all.sandbox_in("three", "elsewhere").await;
    both(&all, &one, ["1a", "1b"]).await;
    both(&all, &two, ["2a", "2b"]).await;
    both(&all, &stranger, ["3a", "3b"]).await;
    for current in [Slot::A, Slot::B] {
        two.flip(current).await.unwrap();
        let expected = if current == Slot::A { "2a" } else { "2b" };
        for (flipped, from) in [(Slot::A, "1a"), (Slot::A, "1b"), (Slot::B, "1a"), (Slot::B, "1b")]
        {
            one.flip(flipped).await.unwrap();
            for target in [Some(two.ip()), two.ip6().map(IpAddr::V6)].into_iter().flatten() {
                assert_eq!(from_inside(&one, from, target).await.ask(), expected, "from {from}");
            }
            let mut targets = vec![(IpAddr::from(outside.ip), 80, "outside")];
            targets.push((IpAddr::from(all.host().gateway()), port, "host"));
            targets.extend(one.ip6().map(|_| (IpAddr::from(outside.ip6), 80, "outside")));
            for (target, port, expected) in targets {
                let answer = all.output(&one, from, &ask(target, port)).await.1;
                assert_eq!(answer, format!("{expected}\n"), "{target} from {from}");
            }
        }
    }
    for from in ["3a", "3b"] {
        let answer = all.output(&stranger, from, &ask(two.ip(), 80)).await.1;
        assert!(answer.contains("unreachable"), "{answer}");
    }
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_from_outside_are_counted_until_they_end() {
    let all = Platform::open("slot4", 0).await;
    let (sandbox, other) = (all.sandbox("a").await, all.sandbox("b").await);
    idle(&all, &other).await;
    assert_eq!(sandbox.inbound(Slot::B).await.unwrap(), 0, "there is none");
    both(&all, &sandbox, ["a", "b"]).await;
    let counted = async |slot, wanted| sandbox.inbound(slot).await.unwrap() == wanted;
    all.until("nobody is there", async || counted(Slot::A, 0).await && counted(Slot::B, 0).await)
        .await;
    let mut host = from_host(sandbox.ip(), None);
    let mut neighbour = from_inside(&other, "idle", sandbox.ip()).await;
    let mut itself = from_inside(&sandbox, "a", sandbox.ip()).await;
    let mut local = from_inside(&sandbox, "a", Ipv4Addr::LOCALHOST.into()).await;
    let mut away = from_inside(&sandbox, "b", other.ip()).await;
    for caller in [&mut neighbour, &mut itself, &mut local] {
        assert_eq!(caller.ask(), "a");
    }
    assert_eq!(host.ask(), "a");
    let _ = away.to.write_all(b"nobody listens\n");
    assert!(counted(Slot::A, 2).await, "{:?}", sandbox.inbound(Slot::A).await);
    assert!(counted(Slot::B, 0).await);
    sandbox.flip(Slot::B).await.unwrap();
    let mut host6 = sandbox.ip6().map(|ip| from_host(ip.into(), None));
    assert!(host6.as_mut().is_none_or(|host| host.ask() == "b"));
    assert!(counted(Slot::A, 2).await && counted(Slot::B, usize::from(host6.is_some())).await);
    drop((host, host6));
    all.until("one is left", async || counted(Slot::A, 1).await && counted(Slot::B, 0).await).await;
    drop(neighbour);
    all.until("none is left", async || counted(Slot::A, 0).await).await;
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_not_finished_is_made_again() {
    let mut all = Platform::open("slot5", 0).await;
    let sandbox = all.sandbox("a").await;
    both(&all, &sandbox, ["a", "b"]).await;
    let ip = sandbox.ip();
    sandbox.stop("b", libc::SIGKILL, PATIENCE).await.unwrap();
    drop(sandbox);
    all.crash();
    // As if `serve` had ended before it let the link in.
    let set = format!("inet {} link_b", all.config().name);
    let flushed = Command::new("nft").args(["flush", "set"]).args(set.split(' ')).status().unwrap();
    assert!(flushed.success());
    all.reopen().await;
    let sandbox = all.host().get("a").unwrap();
    assert_eq!((sandbox.current(), sandbox.mark(Slot::B)), (Slot::A, None));
    all.start(&sandbox, answering(&all, "c", Slot::B)).await;
    sandbox.flip(Slot::B).await.unwrap();
    assert_eq!(from_host(ip, None).ask(), "c");
    all.host().remove("a").await.unwrap();
    all.until("its links are gone", async || {
        !all.left().iter().any(|line| line.starts_with(&format!("{}-", all.config().name)))
    })
    .await;
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_is_lost_to_a_flip() {
    let all = Platform::open("slot8", 0).await;
    let sandbox = all.sandbox("a").await;
    both(&all, &sandbox, ["a", "b"]).await;
    let ip = sandbox.ip();
    let done = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let done = done.clone();
            std::thread::spawn(move || {
                let mut answers = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let stream = connect(ip, None).expect("no connection is refused");
                    let to = Box::new(stream.try_clone().unwrap());
                    let from = BufReader::new(stream);
                    answers.push(Caller { from, to, _program: None }.ask());
                }
                answers
            })
        })
        .collect();
    for round in 0..100 {
        sandbox.flip(if round % 2 == 0 { Slot::B } else { Slot::A }).await.unwrap();
        // Between two flips somebody is answered.
        assert!(["a", "b"].contains(&from_host(ip, None).ask().as_str()));
    }
    done.store(true, Ordering::Relaxed);
    let answers: Vec<_> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
    for slot in ["a", "b"] {
        assert!(answers.iter().any(|answer| answer == slot), "{answers:?}");
    }
    assert!(answers.iter().all(|answer| answer == "a" || answer == "b"), "{answers:?}");
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_flips_at_one_time_are_quick() {
    const SANDBOXES: usize = 12;
    let all = Platform::open("slot6", 0).await;
    let mut sandboxes: Vec<Arc<Sandbox>> = Vec::new();
    for n in 0..SANDBOXES {
        let sandbox = all.sandbox(&format!("s{n}")).await;
        sandbox.prepare(answering(&all, &format!("b{n}"), Slot::B)).await.unwrap();
        sandboxes.push(sandbox);
    }
    let begun = Instant::now();
    for slot in [Slot::B, Slot::A, Slot::B] {
        let flips = sandboxes.iter().map(|sandbox| sandbox.flip(slot));
        let flips = futures_util::future::join_all(flips).await;
        flips.into_iter().for_each(|flipped| flipped.unwrap());
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(sandboxes.iter().all(|sandbox| sandbox.current() == Slot::B));
    drop(sandboxes);
    all.close().await;
}

/// Not a test: what the next test runs in a process of its own, to be killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_serve_to_be_killed_amid_handovers() {
    let Ok(folder) = std::env::var("STEAD_TEST_FOLDER") else { return };
    let name = std::env::var("STEAD_TEST_NAME").unwrap();
    let subnet = std::env::var("STEAD_TEST_SUBNET").unwrap().parse().unwrap();
    let all = Platform::attach(folder.into(), &name, subnet).await;
    let step = || println!("\nSTEP");
    for round in 0.. {
        let [id, a, b] = ["", "a", "b"].map(|end| format!("r{}-{round}{end}", std::process::id()));
        step();
        let sandbox = all.sandbox(&id).await;
        step();
        all.start(&sandbox, answering(&all, &a, Slot::A)).await;
        step();
        all.start(&sandbox, answering(&all, &b, Slot::B)).await;
        step();
        for slot in [Slot::B, Slot::A, Slot::B] {
            sandbox.flip(slot).await.unwrap();
        }
        step();
        if round % 2 == 0 {
            all.host().remove(&id).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serve_killed_amid_handovers_leaves_nothing_half_done() {
    let mut all = Platform::open("slot7", 0).await;
    all.crash();
    let mut met = 0;
    // Which step it is killed in.
    for step in [1, 2, 3, 3, 4, 4, 5, 8, 11] {
        let mut serve = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_serve_to_be_killed_amid_handovers", "--nocapture"])
            .env("STEAD_TEST_FOLDER", all.folder())
            .env("STEAD_TEST_NAME", &all.config().name)
            .env("STEAD_TEST_SUBNET", all.config().subnet.to_string())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(serve.stdout.take().unwrap()).lines();
        let steps = lines.map_while(Result::ok).filter(|line| line == "STEP");
        assert_eq!(steps.take(step).count(), step, "it has ended");
        serve.kill().unwrap();
        serve.wait().unwrap();

        let found = all.reopen().await;
        for recovered in &found {
            let sandbox = &recovered.sandbox;
            let running = sandbox.containers().into_iter().filter(|view| {
                matches!(view.state, stead_engine_node::sandbox::ViewState::Running { .. })
            });
            let slots: Vec<_> = running.map(|view| (view.slot, view.id)).collect();
            for (slot, name) in &slots {
                sandbox.flip(*slot).await.unwrap();
                assert_eq!(from_host(sandbox.ip(), None).ask(), *name);
                met += usize::from(*slot == Slot::B);
            }
            let again = format!("{}-again", sandbox.id());
            if !slots.iter().any(|(slot, _)| *slot == Slot::B) {
                all.start(sandbox, answering(&all, &again, Slot::B)).await;
                sandbox.flip(Slot::B).await.unwrap();
                assert_eq!(from_host(sandbox.ip(), None).ask(), again);
            }
        }
        drop(found);
        all.crash();
    }
    assert!(met > 0, "none had come as far as its second slot");
    all.reopen().await;
    all.close().await;
}
