//! A slow link to a server on loopback: a relay that gives all its connections together a rate,
//! and every byte a delay.
//!
//! The kernel's own shaping (`netem`) is not built into every kernel; this needs nothing. It
//! shapes what comes from the server, and delays both ways. It has no slow start and loses
//! nothing, which flatters those who open many connections one after the other.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// What is taken from a connection at once, in bytes: short beside a round trip.
const PIECE: usize = 16 << 10;
/// How much of one connection may be on its way, in pieces: several times what rate and delay
/// together hold.
const ON_THE_WAY: usize = 64;

/// A running relay; dropped, it takes no more connections.
#[derive(Debug)]
pub(crate) struct Link {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
}

/// The rate that all connections share.
struct Wire {
    bytes_per_second: f64,
    free: Mutex<Instant>,
}

impl Wire {
    /// When the last of so many bytes has passed, if they are sent as soon as may be.
    fn passed(&self, bytes: usize) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let took = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        *free = (*free).max(Instant::now()) + took;
        *free
    }
}

impl Link {
    /// A link to `server` with this rate in bits per second and this round trip.
    pub(crate) fn to(
        server: SocketAddr,
        bits_per_second: f64,
        round_trip: Duration,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let ended = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&ended);
        let wire =
            Wire { bytes_per_second: bits_per_second / 8.0, free: Mutex::new(Instant::now()) };
        let wire = Arc::new(wire);
        thread::spawn(move || {
            for client in listener.incoming() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(client) = client else { continue };
                let wire = Arc::clone(&wire);
                // A connection that fails is the client's to notice.
                let _ = relay(client, server, &wire, round_trip / 2);
            }
        });
        Ok(Self { address, ended })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // One more connection wakes it up.
        let _ = TcpStream::connect(self.address);
    }
}

fn relay(
    client: TcpStream,
    server: SocketAddr,
    wire: &Arc<Wire>,
    one_way: Duration,
) -> io::Result<()> {
    let upstream = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let wire = Arc::clone(wire);
    way(client.try_clone()?, upstream.try_clone()?, move |_| Instant::now() + one_way);
    way(upstream, client, move |bytes| wire.passed(bytes) + one_way);
    Ok(())
}

/// One way of a connection: what is read arrives when `arrival` says.
fn way(
    mut from: TcpStream,
    mut to: TcpStream,
    arrival: impl Fn(usize) -> Instant + Send + 'static,
) {
    let (sender, receiver) = mpsc::sync_channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        while let Ok(got) = from.read(&mut piece) {
            if got == 0 || sender.send((arrival(got), piece[..got].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (due, piece) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_a_rate_and_a_delay() {
        const BYTES: usize = 1 << 20;
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        thread::spawn(move || {
            for stream in server.incoming() {
                let mut stream = stream.unwrap();
                stream.read_exact(&mut [0]).unwrap();
                stream.write_all(&vec![7; BYTES]).unwrap();
            }
        });
        let link = Link::to(address, 80e6, Duration::from_millis(40)).unwrap();
        let began = Instant::now();
        // Both at once share the rate.
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let address = link.address();
                thread::spawn(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.write_all(b"x").unwrap();
                    let mut first = [0];
                    stream.read_exact(&mut first).unwrap();
                    let first = began.elapsed();
                    let mut rest = Vec::new();
                    stream.read_to_end(&mut rest).unwrap();
                    (first, rest.len() + 1)
                })
            })
            .collect();
        for reader in readers {
            let (first, got) = reader.join().unwrap();
            assert!(first >= Duration::from_millis(40), "{first:?}");
            assert_eq!(got, BYTES);
        }
        // 2 MiB at 10 MB/s.
        assert!(began.elapsed() >= Duration::from_millis(240), "{:?}", began.elapsed());
    }
}
