//! One JSON line per request, written off the hot path.
//!
//! Promises: a request never waits for the log; lines that find its queue full are counted
//! and dropped. Queries are not logged: they carry secrets too often.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderValue, Method, Uri};
use serde::Serialize;
use stead_core::ids::{ContainerId, Ordinal, ReleaseNo};
use stead_core::name::AppKey;
use tokio::sync::{mpsc, oneshot};

use crate::config::AccessLogTarget;
use crate::ledger::Outcome;

/// Lines that may wait for the writer.
const QUEUE: usize = 8_192;

/// What is known of a request when it has ended.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) at: SystemTime,
    pub(crate) client: IpAddr,
    pub(crate) protocol: &'static str,
    pub(crate) method: Method,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) uri: Uri,
    pub(crate) app: Option<AppKey>,
    pub(crate) served_by: Option<ServedBy>,
    /// Of the response, 0 when there was none.
    pub(crate) status: u16,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) total: Duration,
    pub(crate) parked: Duration,
    /// Until the head of the App's response.
    pub(crate) answered: Option<Duration>,
    /// Backends asked.
    pub(crate) tries: u32,
    /// `None` for a request that was refused before it had an App.
    pub(crate) outcome: Option<Outcome>,
}

/// A Container that a request was sent to.
#[derive(Debug, Clone, Serialize)]
struct Served {
    instance: Ordinal,
    container: ContainerId,
}

/// Who a request was sent to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ServedBy {
    release: ReleaseNo,
    /// Nobody for a site.
    #[serde(flatten)]
    container: Option<Served>,
}

impl ServedBy {
    pub(crate) fn new(backend: &crate::backend::Backend) -> Self {
        Self {
            release: backend.release,
            container: Some(Served {
                instance: backend.instance,
                container: backend.container.clone(),
            }),
        }
    }

    /// The gateway itself, from the files of a Release.
    pub(crate) fn site(release: ReleaseNo) -> Self {
        Self { release, container: None }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    /// Seconds since the Unix epoch.
    time: f64,
    client: IpAddr,
    protocol: &'a str,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a AppKey>,
    #[serde(flatten)]
    served_by: Option<&'a ServedBy>,
    status: u16,
    bytes_in: u64,
    bytes_out: u64,
    total_us: u64,
    parked_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_us: Option<u64>,
    tries: u32,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn of(record: &'a Record) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (outcome, reason) = match record.outcome {
            None => ("refused", None),
            Some(Outcome::Completed) => ("completed", None),
            Some(Outcome::ClientAborted) => ("client_aborted", None),
            Some(Outcome::Failed(reason)) => ("failed", Some(reason)),
        };
        Self {
            time: record.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            client: record.client,
            protocol: record.protocol,
            method: record.method.as_str(),
            host: record.host.as_ref().and_then(|host| host.to_str().ok()),
            path: record.uri.path(),
            app: record.app.as_ref(),
            served_by: record.served_by.as_ref(),
            status: record.status,
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            total_us: micros(record.total),
            parked_us: micros(record.parked),
            answered_us: record.answered.map(micros),
            tries: record.tries,
            outcome,
            failed_by: reason.map(|reason| reason.blame().as_str()),
            reason: reason.map(|reason| reason.as_str()),
        }
    }
}

enum Order {
    Write(Box<Record>),
    Reopen,
    Flush(oneshot::Sender<()>),
}

/// The log's entrance.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    queue: Option<mpsc::Sender<Order>>,
    dropped: Arc<AtomicU64>,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Order")
    }
}

impl AccessLog {
    /// Opens the log and starts its writer.
    pub(crate) fn open(target: &AccessLogTarget) -> io::Result<Self> {
        let dropped = Arc::new(AtomicU64::new(0));
        let (output, path): (Box<dyn Write + Send>, _) = match target {
            AccessLogTarget::Off => return Ok(Self { queue: None, dropped }),
            AccessLogTarget::Stdout => (Box::new(io::stdout()), None),
            AccessLogTarget::File(path) => (Box::new(append(path)?), Some(path.clone())),
        };
        let (queue, orders) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(orders, output, path.as_deref()))?;
        Ok(Self { queue: Some(queue), dropped })
    }

    /// Hands a line to the writer.
    pub(crate) fn write(&self, record: impl FnOnce() -> Record) {
        let Some(queue) = &self.queue else { return };
        match queue.try_reserve() {
            Ok(room) => room.send(Order::Write(Box::new(record()))),
            Err(_) => {
                self.dropped.fetch_add(1, Relaxed);
            }
        }
    }

    /// Lines that found the queue full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Opens the file again, after somebody moved it away.
    pub(crate) async fn reopen(&self) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(Order::Reopen).await; // the writer ends only with us
        }
    }

    /// Waits until what was handed over is written.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if let Some(queue) = &self.queue
            && queue.send(Order::Flush(done)).await.is_ok()
        {
            let _ = flushed.await;
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn write(mut orders: mpsc::Receiver<Order>, output: Box<dyn Write + Send>, path: Option<&Path>) {
    let mut output = BufWriter::with_capacity(16 << 10, output);
    while let Some(first) = orders.blocking_recv() {
        let mut next = Some(first);
        let mut flushed = Vec::new();
        while let Some(order) = next {
            let done = match order {
                Order::Write(record) => serde_json::to_writer(&mut output, &Line::of(&record))
                    .map_err(io::Error::from)
                    .and_then(|()| output.write_all(b"\n")),
                Order::Flush(done) => {
                    flushed.push(done);
                    Ok(())
                }
                Order::Reopen => reopen(&mut output, path),
            };
            if let Err(error) = done {
                tracing::warn!(%error, "access log cannot be written");
            }
            next = orders.try_recv().ok();
        }
        if let Err(error) = output.flush() {
            tracing::warn!(%error, "access log cannot be written");
        }
        for done in flushed {
            let _ = done.send(()); // whoever asked may have gone
        }
    }
}

fn reopen(output: &mut BufWriter<Box<dyn Write + Send>>, path: Option<&Path>) -> io::Result<()> {
    let Some(path) = path else { return Ok(()) };
    output.flush()?;
    *output.get_mut() = Box::new(append(path)?);
    Ok(())
}
