//! Who reaches whom.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod sandbox_harness;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_harness::{Outside, Platform, ask, shell};
use stead_engine_node::sandbox::Sandbox;

async fn serve(all: &Platform, sandbox: &Sandbox, text: &str) {
    let script = format!("mkdir /www; echo {text} > /www/index.html; exec httpd -f -p 80 -h /www");
    all.start(sandbox, all.container(&format!("main-{text}"), &shell(&script))).await;
    assert_eq!(all.fetch(sandbox.ip()).await, format!("{text}\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_are_apart_and_neighbours_are_not() {
    let all = Platform::open("net1", 2).await;
    let first = all.sandbox_in("first", "alpha").await;
    let second = all.sandbox_in("second", "alpha").await;
    let stranger = all.sandbox_in("stranger", "beta").await;
    for (sandbox, text) in [(&first, "one"), (&second, "two"), (&stranger, "three")] {
        serve(&all, sandbox, text).await;
    }
    let near = ask(first.ip(), 80);
    assert_eq!(all.output(&second, "main-two", &near).await.1, "one\n");
    let from_afar = all.output(&stranger, "main-three", &near).await.1;
    assert!(from_afar.contains("unreachable"), "{from_afar}");
    // Whoever administers the host can read the rules.
    let table = &all.config().name;
    let listed = Command::new("nft").args(["list", "table", "inet", table]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for rule in ["masquerade", "@member accept", "ct state established,related accept"] {
        assert!(listed.contains(rule), "{rule:?} in {listed}");
    }
    // Itself, by its address and by loopback.
    assert_eq!(all.output(&first, "main-one", &near).await.1, "one\n");
    assert_eq!(all.output(&first, "main-one", &ask("127.0.0.1", 80)).await.1, "one\n");
    // An address that moves to another Namespace takes no rights along.
    all.host().remove("stranger").await.unwrap();
    let newcomer = all.sandbox_in("newcomer", "beta").await;
    serve(&all, &newcomer, "four").await;
    let from_afar = all.output(&newcomer, "main-four", &near).await.1;
    assert!(from_afar.contains("unreachable"), "{from_afar}");
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_reached_on_the_ports_allowed_only() {
    let mut all = Platform::open("net2", 0).await;
    let listen = |text: &'static str| {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answer = format!("HTTP/1.0 200 OK\r\n\r\n{text}\n");
                let _ = stream.unwrap().write_all(answer.as_bytes());
            }
        });
        port
    };
    let (allowed, forbidden) = (listen("allowed"), listen("forbidden"));
    let sandbox = all.sandbox("a").await;
    all.start(&sandbox, all.container("one", &shell("sleep 1000"))).await;
    let gateway = all.host().gateway();
    let question = ask(gateway, allowed);
    let answer = all.output(&sandbox, "one", &question).await.1;
    assert!(answer.contains("unreachable"), "{answer}");

    // New rules hold for Sandboxes that are there already.
    drop(sandbox);
    all.crash();
    all.config_mut().host_ports = vec![allowed];
    let found = all.reopen().await;
    let sandbox = &found[0].sandbox;
    assert_eq!(all.output(sandbox, "one", &question).await.1, "allowed\n");
    let answer = all.output(sandbox, "one", &ask(gateway, forbidden)).await.1;
    assert!(answer.contains("unreachable"), "{answer}");
    drop(found);
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outside_is_reached_and_the_metadata_service_is_not() {
    let all = Platform::open("net3", 0).await;
    let outside = Outside::new(all.folder());
    let sandbox = all.sandbox("a").await;
    all.start(&sandbox, all.container("one", &shell("sleep 1000"))).await;
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    assert_eq!(all.fetch(outside.ip.into()).await, "outside\n");
    assert_eq!(all.fetch(metadata.into()).await, "outside\n", "from the host it is there");
    // It has no way back to the Sandbox's own address: the answer shows the masquerade.
    let answer = all.output(&sandbox, "one", &ask(outside.ip, 80)).await;
    assert_eq!(answer.1, "outside\n");
    let answer = all.output(&sandbox, "one", &ask(metadata, 80)).await.1;
    assert!(answer.contains("unreachable"), "{answer}");
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_packet_of_fifty_new_sandboxes_passes() {
    let all = Platform::open("net4", 2).await;
    let mut slowest = Duration::ZERO;
    let mut addresses = Vec::new();
    for n in 0..50 {
        let sandbox: Arc<Sandbox> = all.sandbox(&format!("s{n}")).await;
        let address = SocketAddr::new(sandbox.ip(), 81);
        assert!(!addresses.contains(&address), "an address was given out twice");
        addresses.push(address);
        let begun = Instant::now();
        // Nobody listens, and the refusal comes from inside the Sandbox.
        let refused = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        slowest = slowest.max(begun.elapsed());
        if n % 2 == 0 {
            all.host().remove(&format!("s{n}")).await.unwrap();
        }
    }
    assert!(slowest < Duration::from_millis(200), "{slowest:?}");
    all.close().await;
}
