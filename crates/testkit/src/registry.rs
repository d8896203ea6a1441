//! A real registry for tests: Debian's `docker-registry` on a loopback port of its own.
//!
//! Promises: reachable when [`Registry::start`] returns, gone with its files when dropped, and gone
//! when the test program is killed. Images are pushed by plain HTTP, as the OCI distribution
//! specification 1.1 says. It knows no passwords and no TLS.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::images::{Image, MANIFEST_TYPE};

/// How long the registry may take to listen, and each of its answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    fetched: Arc<Mutex<Vec<String>>>,
    /// Dropped before the storage: the registry must not write into a folder being removed.
    _keeper: Keeper,
    storage: Arc<TempDir>,
}

/// The thread that started the process and ends it. The kernel ends the process with its parent
/// *thread* (`prctl(2)`, `PR_SET_PDEATHSIG`), so that not even a killed test leaves a registry
/// behind; a test's own thread would end too early.
#[derive(Debug)]
struct Keeper {
    /// Dropped to let the thread end.
    release: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Keeper {
    /// Starts a command that ends with us; gives its standard output and error too.
    fn start(mut command: Command) -> io::Result<(Self, ChildStdout, ChildStderr)> {
        let (release, released) = mpsc::channel();
        let (started, outcome) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut process = match command.spawn() {
                Ok(process) => process,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let pipes = process.stdout.take().zip(process.stderr.take());
            let _ = started.send(pipes.ok_or_else(|| unexpected("it has no log")));
            // Nothing is ever sent: this returns when the other end is dropped.
            let _ = released.recv();
            let _ = process.kill();
            let _ = process.wait();
        });
        let keeper = Self { release: Some(release), thread: Some(thread) };
        let (requests, log) = outcome.recv().map_err(|_| unexpected("its keeper died"))??;
        Ok((keeper, requests, log))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Registry {
    /// Starts a registry on a port the system chooses.
    ///
    /// # Errors
    /// When `docker-registry` is not installed or does not listen within twenty seconds.
    pub fn start() -> io::Result<Self> {
        let storage = tempfile::Builder::new().prefix("stead-registry-").tempdir()?;
        Self::serve(Arc::new(storage), "")
    }

    /// Starts another registry that has what this one has, but gives it only to those named in
    /// a file as `htpasswd -B` writes it.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn guarded(&self, htpasswd: &Path) -> io::Result<Self> {
        let auth = format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", htpasswd.display());
        Self::serve(Arc::clone(&self.storage), &auth)
    }

    fn serve(storage: Arc<TempDir>, more: &str) -> io::Result<Self> {
        let config =
            tempfile::Builder::new().prefix("stead-registry-").suffix(".yml").tempfile()?;
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info, formatter: json}}\n\
                 storage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
                 http: {{addr: '127.0.0.1:0', net: tcp}}\n{more}",
                storage.path().display()
            ),
        )?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "docker-registry", "serve"]).arg(config.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (keeper, requests, log) = Keeper::start(command)?;
        let fetched = count(requests);
        // Its configuration was read by the time it listens.
        Ok(Self { address: listening(log)?, fetched, _keeper: keeper, storage })
    }

    /// Where it listens, on loopback.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The full reference of an image: `127.0.0.1:PORT/name:tag`.
    pub fn reference(&self, name: &str, tag: &str) -> String {
        format!("{}/{name}:{tag}", self.address)
    }

    /// Digests of the blobs that were sent whole or in part, in the order they were finished,
    /// since [`Registry::forget_fetched`].
    pub fn fetched(&self) -> Vec<String> {
        lock(&self.fetched).clone()
    }

    /// Begins to count anew.
    pub fn forget_fetched(&self) {
        lock(&self.fetched).clear();
    }

    /// Puts an image under a name and tag; blobs the registry has are not sent again.
    ///
    /// # Errors
    /// When the registry refuses.
    pub fn push(&self, name: &str, tag: &str, image: &Image) -> io::Result<()> {
        for (digest, bytes) in image.blobs() {
            let known = self.ask("HEAD", &format!("/v2/{name}/blobs/{digest}"), "", &[])?;
            if known.status == 200 {
                continue;
            }
            let upload = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), "", &[])?;
            let upload = upload.expect(202, "starting an upload")?;
            let location = upload.location.ok_or_else(|| unexpected("an upload had no place"))?;
            let path = location.trim_start_matches(&format!("http://{}", self.address)).to_owned();
            let sign = if path.contains('?') { '&' } else { '?' };
            self.ask("PUT", &format!("{path}{sign}digest={digest}"), OCTETS, bytes)?
                .expect(201, "a blob")?;
        }
        self.ask("PUT", &format!("/v2/{name}/manifests/{tag}"), MANIFEST_TYPE, &image.manifest)?
            .expect(201, "a manifest")?;
        Ok(())
    }

    /// Changes a stored blob behind the registry's back: it goes on serving it under its old
    /// digest.
    ///
    /// # Errors
    /// When the blob is not there.
    pub fn corrupt(&self, digest: &str) -> io::Result<()> {
        let path = self.blob(digest);
        let mut bytes = fs::read(&path)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(path, bytes)
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let folder = self.storage.path().join("docker/registry/v2/blobs/sha256");
        folder.join(&hex[..2]).join(hex).join("data")
    }

    fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> io::Result<Answer> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let kind =
            if kind.is_empty() { String::new() } else { format!("Content-Type: {kind}\r\n") };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{kind}Content-Length: {}\r\n\
             Accept: {MANIFEST_TYPE}\r\nConnection: close\r\n\r\n",
            self.address,
            body.len()
        )?;
        stream.write_all(body)?;
        Answer::read(BufReader::new(stream))
    }
}

const OCTETS: &str = "application/octet-stream";

struct Answer {
    status: u16,
    location: Option<String>,
    body: String,
}

impl Answer {
    fn read(mut reader: impl BufRead) -> io::Result<Self> {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| unexpected(&format!("it answered {line:?}")))?;
        let mut location = None;
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("location") => {
                    location = Some(value.to_owned());
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = String::new();
        reader.read_to_string(&mut body)?;
        Ok(Self { status, location, body })
    }

    fn expect(self, status: u16, what: &str) -> io::Result<Self> {
        if self.status == status {
            return Ok(self);
        }
        Err(unexpected(&format!("{what} was answered by {}: {}", self.status, self.body)))
    }
}

/// Waits for the log to name the port, and keeps the log flowing after that.
fn listening(log: impl Read + Send + 'static) -> io::Result<SocketAddr> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(log).lines() {
            let Ok(line) = line else { break };
            let address = line.split("listening on ").nth(1);
            let address = address.and_then(|rest| rest.split(['"', ' ', ',']).next());
            if let Some(Ok(address)) = address.map(str::parse) {
                let _ = sender.send(address);
            }
        }
    });
    receiver.recv_timeout(PATIENCE).map_err(|_| unexpected("it does not listen"))
}

/// Reads the log of requests, in Apache's format.
fn count(requests: impl Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let fetched: Arc<Mutex<Vec<String>>> = Arc::default();
    let counted = Arc::clone(&fetched);
    thread::spawn(move || {
        for line in BufReader::new(requests).lines() {
            let Ok(line) = line else { break };
            let Some((_, request)) = line.split_once("\"GET /v2/") else { continue };
            let Some((path, answer)) = request.split_once(" HTTP/1.1\" ") else { continue };
            if let Some((_, digest)) = path.split_once("/blobs/")
                && answer.starts_with('2')
            {
                lock(&fetched).push(digest.to_owned());
            }
        }
    });
    counted
}

fn lock(fetched: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    fetched.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unexpected(what: &str) -> io::Error {
    io::Error::other(format!("docker-registry: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::Catalogue;

    #[test]
    fn what_was_pushed_is_served_until_it_is_corrupted() {
        let registry = Registry::start().unwrap();
        let mut catalogue = Catalogue::new();
        let image = catalogue.image("trivial", "1").unwrap();
        registry.push("trivial", "1", &image).unwrap();
        registry.push("trivial", "2", &catalogue.image("trivial", "2").unwrap()).unwrap();

        let manifest = registry.ask("GET", "/v2/trivial/manifests/1", "", &[]).unwrap();
        assert_eq!(manifest.body.as_bytes(), image.manifest);

        let layer = image.layers[1].digest();
        registry.corrupt(&layer).unwrap();
        let served = registry.ask("HEAD", &format!("/v2/trivial/blobs/{layer}"), "", &[]).unwrap();
        assert_eq!(served.status, 200);
    }

    #[test]
    fn it_outlives_the_thread_that_asked_for_it() {
        let registry = thread::spawn(Registry::start).join().unwrap().unwrap();
        // The thread's end is the registry's, were it the parent: the signal comes at once, so
        // a registry that still answers several times in a row was not hit.
        for _ in 0..20 {
            assert_eq!(registry.ask("GET", "/v2/", "", &[]).unwrap().status, 200);
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn it_is_gone_when_dropped() {
        let registry = Registry::start().unwrap();
        let (address, storage) = (registry.address(), registry.storage.path().to_owned());
        drop(registry);
        assert!(TcpStream::connect(address).is_err());
        assert!(!storage.exists());
    }
}
