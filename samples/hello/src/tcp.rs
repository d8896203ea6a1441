//! Raw TCP: an echo that says who answers, and clients of it that another App can be asked to
//! run, because only an App's own Container is inside its network.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// A client gives up on an answer after this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Echoes of a connection in a load, and the pause between them.
const ECHOES: u32 = 10;
const EVERY: Duration = Duration::from_millis(50);

/// Answers each line with itself behind `who` (one word or several), for as long as a client
/// stays; `who` alone is the greeting.
///
/// # Errors
/// When the port is taken.
pub(crate) fn listen(port: u16, who: String) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let who = Arc::new(who);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let who = Arc::clone(&who);
            let _ = thread::Builder::new().stack_size(128 << 10).spawn(move || echo(&stream, &who));
        }
    });
    Ok(())
}

fn echo(mut stream: &TcpStream, who: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(format!("{who}\n").as_bytes())?;
    for line in BufReader::new(stream).lines() {
        stream.write_all(format!("{who} {}\n", line?).as_bytes())?;
    }
    Ok(())
}

/// Connections that are kept until somebody asks on them again, by name.
#[derive(Default)]
pub(crate) struct Kept {
    connections: Mutex<BTreeMap<String, BufReader<TcpStream>>>,
}

impl Kept {
    /// Sends a line on the connection of this name, which is opened when it is first used, and
    /// gives the answer. A connection that broke is forgotten.
    ///
    /// # Errors
    /// When it cannot be opened, breaks or gives no answer.
    pub(crate) fn ask(&self, name: &str, to: SocketAddr) -> io::Result<String> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connection = match connections.remove(name) {
            Some(connection) => connection,
            None => open(to)?,
        };
        let answer = exchange(&mut connection, name)?;
        connections.insert(name.to_owned(), connection);
        Ok(answer)
    }

    /// Hangs up.
    pub(crate) fn close(&self, name: &str) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

fn open(to: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    line(&mut reader)?;
    Ok(reader)
}

fn exchange(connection: &mut BufReader<TcpStream>, message: &str) -> io::Result<String> {
    connection.get_mut().write_all(format!("{message}\n").as_bytes())?;
    let answer = line(connection)?;
    if answer.ends_with(&format!(" {message}")) {
        return Ok(answer);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("{message:?} came back as {answer:?}")))
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

/// What a load has seen: one line each of counts, answers by their first word, and failures.
#[derive(Default)]
pub(crate) struct Load {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    sent: u64,
    ok: u64,
    by_version: BTreeMap<String, u64>,
    failures: Vec<String>,
}

impl Load {
    /// Begins a client that connects, has some lines echoed, hangs up, and does it again, for
    /// ever. Every connection and every line counts as sent.
    pub(crate) fn begin(self: &Arc<Self>, to: SocketAddr) {
        let load = Arc::clone(self);
        thread::spawn(move || {
            loop {
                if let Err(error) = load.connection(to) {
                    load.seen().failures.push(error.to_string());
                    thread::sleep(EVERY);
                }
            }
        });
    }

    /// As text: `sent ok failed`, then `version count` each, then each failure.
    pub(crate) fn report(&self) -> String {
        let seen = self.seen();
        let mut text = format!("{} {} {}\n", seen.sent, seen.ok, seen.failures.len());
        for (version, count) in &seen.by_version {
            text += &format!("{version} {count}\n");
        }
        for failure in &seen.failures {
            text += &format!("failed: {failure}\n");
        }
        text
    }

    fn connection(&self, to: SocketAddr) -> io::Result<()> {
        self.seen().sent += 1;
        let mut connection = open(to)?;
        self.seen().ok += 1;
        for number in 0..ECHOES {
            thread::sleep(EVERY);
            self.seen().sent += 1;
            let answer = exchange(&mut connection, &number.to_string())?;
            let version = answer.split(' ').next().unwrap_or_default().to_owned();
            let mut seen = self.seen();
            seen.ok += 1;
            *seen.by_version.entry(version).or_default() += 1;
        }
        Ok(())
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_connection_stays_with_whom_it_met() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                thread::spawn(move || echo(&stream, &format!("v{number}")));
            }
        });
        let kept = Kept::default();
        assert_eq!(kept.ask("a", to).unwrap(), "v0 a");
        assert_eq!(kept.ask("b", to).unwrap(), "v1 b");
        assert_eq!(kept.ask("a", to).unwrap(), "v0 a");
        let load = Arc::new(Load::default());
        load.connection(to).unwrap();
        assert_eq!(load.report(), "11 11 0\nv2 10\n");
    }
}
