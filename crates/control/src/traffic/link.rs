//! The socket to which gateways connect, and one conversation with each.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use stead_core::ids::Generation;
use stead_core::routes::ToServe;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Gateway, Publisher};

/// Longest line accepted of a gateway: a report of some ten thousand Apps.
const MAX_LINE: u64 = 64 << 20;

/// Listens at `path`, which only root may connect to.
pub(super) fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether the other end is run by root or by the user of this process.
fn is_ours(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

impl Publisher {
    /// Makes the socket at `path` and talks to every gateway that connects, until dropped.
    pub(crate) fn listen(
        self: &Arc<Self>,
        path: &Path,
    ) -> std::io::Result<impl Future<Output = ()> + Send + use<>> {
        let listener = bind(path)?;
        let publisher = Arc::clone(self);
        Ok(async move {
            let mut conversations = tokio::task::JoinSet::new();
            loop {
                match listener.accept().await {
                    Ok((stream, _)) if !is_ours(&stream) => {
                        tracing::warn!("a process of another user connected to the gateway link");
                    }
                    Ok((stream, _)) => {
                        let publisher = Arc::clone(&publisher);
                        conversations.spawn(async move { publisher.converse(stream).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "gateway link cannot accept");
                        // Out of descriptors: paced, not spinning.
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                }
                while conversations.try_join_next().is_some() {}
            }
        })
    }

    async fn converse(&self, stream: UnixStream) {
        let (read, write) = stream.into_split();
        let mut lines = BufReader::new(read);
        let Some(ToServe::Hello { pid, version, generation }) = next(&mut lines).await else {
            tracing::warn!("a gateway connected without saying hello");
            return;
        };
        tracing::info!(pid, version, %generation, "gateway connected");
        let (sender, outgoing) = mpsc::unbounded_channel();
        let connection = self.enter(pid, version, generation, sender);
        tokio::select! {
            () = self.hear(connection, pid, &mut lines) => {}
            () = speak(write, outgoing) => {}
        }
        self.leave(connection, pid);
    }

    /// A gateway is here: it is given the whole table, unless nothing is published yet.
    fn enter(
        &self,
        pid: u32,
        version: String,
        generation: Generation,
        lines: mpsc::UnboundedSender<Arc<str>>,
    ) -> u64 {
        let mut state = self.lock();
        if generation > state.table.generation() {
            state.overtake(generation);
        }
        state.next_connection += 1;
        let connection = state.next_connection;
        // A gateway that connects again has given its old connection up.
        state.gateways.retain(|_, gateway| gateway.pid != pid);
        state.gateways.insert(
            connection,
            Gateway {
                pid,
                version,
                lines,
                greeted: false,
                acked: Generation(0),
                told: 0,
                drained: Default::default(),
            },
        );
        // Whoever else was known before is still missed.
        state.missed.retain(|(missed, _)| missed.is_some_and(|missed| missed != pid));
        if !state.held {
            state.flush();
            state.greet_all();
        }
        drop(state);
        self.moved.notify_waiters();
        connection
    }

    async fn hear(&self, connection: u64, pid: u32, lines: &mut BufReader<OwnedReadHalf>) {
        while let Some(message) = next(lines).await {
            match message {
                ToServe::Hello { .. } => {}
                ToServe::Ack { generation } => self.acked(connection, generation),
                ToServe::Drained { container, generation } => {
                    let mut state = self.lock();
                    if let Some(gateway) = state.gateways.get_mut(&connection) {
                        gateway.drained.insert(container, generation);
                    }
                    drop(state);
                    self.moved.notify_waiters();
                }
                ToServe::Parked { app } => self.news.parked(&app),
                ToServe::Report(report) => self.news.report(pid, report),
                ToServe::Told { asked } => {
                    if let Some(gateway) = self.lock().gateways.get_mut(&connection) {
                        gateway.told = asked;
                    }
                    self.moved.notify_waiters();
                }
            }
        }
    }

    fn acked(&self, connection: u64, generation: Generation) {
        let mut state = self.lock();
        let published = state.table.generation();
        let Some(gateway) = state.gateways.get_mut(&connection) else { return };
        if generation > published {
            // It knows of changes that this serve has forgotten: its table is replaced.
            tracing::warn!(%generation, %published, "gateway is ahead; its table is replaced");
            state.overtake(generation);
            if !state.held {
                state.flush();
                state.greet_all();
            }
        } else {
            gateway.acked = gateway.acked.max(generation);
        }
        drop(state);
        self.moved.notify_waiters();
    }

    fn leave(&self, connection: u64, pid: u32) {
        let mut state = self.lock();
        // Already replaced, or cut off, when it is not there.
        if state.gateways.remove(&connection).is_some() {
            state.missed.push((Some(pid), Instant::now()));
        }
        drop(state);
        tracing::info!(pid, "gateway disconnected");
        self.news.left();
        self.moved.notify_waiters();
    }
}

/// The next message that can be understood; `None` at the end of the connection.
async fn next(lines: &mut BufReader<OwnedReadHalf>) -> Option<ToServe> {
    use tokio::io::AsyncReadExt;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = lines.take(MAX_LINE).read_until(b'\n', &mut line).await.ok()?;
        if read == 0 || line.last() != Some(&b'\n') {
            return None;
        }
        match serde_json::from_slice(&line) {
            Ok(message) => return Some(message),
            // A newer gateway may say things that are unknown here.
            Err(error) => tracing::warn!(%error, "a gateway's message is not understood"),
        }
    }
}

async fn speak(mut write: OwnedWriteHalf, mut lines: mpsc::UnboundedReceiver<Arc<str>>) {
    while let Some(line) = lines.recv().await {
        if write.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}
