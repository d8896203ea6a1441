//! The event log: facts for people, in the order in which they were noted.
//!
//! # Guarantees
//! - [`Events::emit`] never waits and never fails; what does not fit the queue is counted.
//! - A reader sees every Event that was emitted before it asked.
//!
//! # Caveats
//! - Events are facts for people, so they are not flushed to the disk one by one: a crash of
//!   the machine may lose the last ones. Nothing is ever decided from them.
//! - The log is pruned by age and by count.

pub(crate) mod waterfall;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Connection, params};
use stead_core::api::{EventPage, EventRecord};
use stead_core::event::{Event, Events};
use stead_core::name::{AppKey, NamespaceName};
use stead_core::time::{Micros, Time};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::clock;
use crate::store::{StoreError, Worker, migrate, open, open_reader};

const MIGRATIONS: &[&str] = &["CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    namespace TEXT NOT NULL,
    app TEXT NOT NULL,
    json TEXT NOT NULL
) STRICT;
CREATE INDEX event_of_app ON event (namespace, app, id);
CREATE INDEX event_at ON event (at)"];

/// Events that may wait for the writer.
const QUEUE: usize = 16 * 1024;
/// Events written in one transaction.
const BATCH: usize = 512;
/// Events a follower may fall behind before it misses some.
const FOLLOWERS_BACKLOG: usize = 4096;
/// How long Events are kept.
const KEEP_FOR: Micros = Micros::from_secs(30 * 24 * 3600);
/// How many Events are kept.
const KEEP: u64 = 200_000;
/// The log is pruned after so many Events.
const PRUNE_EACH: usize = 10_000;

/// Which Events are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) namespace: Option<NamespaceName>,
    pub(crate) app: Option<AppKey>,
}

impl Filter {
    pub(crate) fn admits(&self, event: &Event) -> bool {
        self.namespace.as_ref().is_none_or(|n| event.app.namespace == *n)
            && self.app.as_ref().is_none_or(|a| event.app == *a)
    }
}

enum Message {
    Event(Box<Event>),
    Flush(oneshot::Sender<()>),
}

/// The event log.
pub(crate) struct EventLog {
    queue: mpsc::Sender<Message>,
    reader: Worker,
    followers: broadcast::Sender<Arc<EventRecord>>,
    dropped: AtomicU64,
}

impl EventLog {
    /// Opens the log in the file `path` and starts its writer. Needs a tokio runtime.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        let mut connection = open(path)?;
        migrate(&mut connection, path, MIGRATIONS)?;
        connection.pragma_update(None, "synchronous", "normal")?;
        prune(&connection, clock::now())?;
        let reader = Worker::start("stead-events-r", open_reader(path)?)?;
        let writer = Worker::start("stead-events-w", connection)?;
        let (queue, messages) = mpsc::channel(QUEUE);
        let followers = broadcast::channel(FOLLOWERS_BACKLOG).0;
        let log = Self { queue, reader, followers: followers.clone(), dropped: AtomicU64::new(0) };
        tokio::spawn(write(writer, messages, followers));
        Ok(Arc::new(log))
    }

    /// Events that were lost because they came faster than the disk takes them.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything emitted so far can be read.
    pub(crate) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.queue.send(Message::Flush(done)).await.is_ok() {
            let _ = written.await;
        }
    }

    /// Up to `limit` Events: those after the cursor, oldest first, or the last ones when
    /// there is no cursor.
    pub(crate) async fn page(
        &self,
        filter: Filter,
        after: Option<u64>,
        limit: usize,
    ) -> Result<EventPage, StoreError> {
        self.flush().await;
        self.reader
            .call(move |connection| {
                let order = if after.is_some() { "ASC" } else { "DESC" };
                let mut statement = connection.prepare_cached(&format!(
                    "SELECT id, json FROM event WHERE id > ?1
                     AND (?2 IS NULL OR namespace = ?2) AND (?3 IS NULL OR app = ?3)
                     ORDER BY id {order} LIMIT ?4"
                ))?;
                let (namespace, app) = match &filter.app {
                    Some(key) => (Some(key.namespace.as_str()), Some(key.app.as_str())),
                    None => (filter.namespace.as_ref().map(NamespaceName::as_str), None),
                };
                let mut rows =
                    statement.query(params![int(after.unwrap_or(0)), namespace, app, limit])?;
                let mut page = EventPage { events: Vec::new(), next: after.unwrap_or(0) };
                while let Some(row) = rows.next()? {
                    let id: i64 = row.get(0)?;
                    let id = u64::try_from(id).unwrap_or(0);
                    page.next = page.next.max(id);
                    // One that cannot be read is left out.
                    if let Ok(event) = serde_json::from_str(row.get_ref(1)?.as_str().unwrap_or(""))
                    {
                        page.events.push(EventRecord { id, event });
                    }
                }
                if after.is_none() {
                    page.events.reverse();
                }
                Ok(page)
            })
            .await
    }

    /// Events of one App noted between two moments, oldest first.
    pub(crate) async fn between(
        &self,
        app: AppKey,
        from: Time,
        to: Time,
    ) -> Result<Vec<Event>, StoreError> {
        self.flush().await;
        self.reader
            .call(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT json FROM event INDEXED BY event_of_app
                     WHERE namespace = ? AND app = ? AND at BETWEEN ? AND ? ORDER BY id",
                )?;
                let mut rows = statement.query(params![
                    app.namespace.as_str(),
                    app.app.as_str(),
                    int(from.0),
                    int(to.0)
                ])?;
                let mut events = Vec::new();
                while let Some(row) = rows.next()? {
                    events
                        .extend(serde_json::from_str(row.get_ref(0)?.as_str().unwrap_or("")).ok());
                }
                Ok(events)
            })
            .await
    }

    /// Every Event from now on, as it is written.
    pub(crate) fn follow(&self) -> broadcast::Receiver<Arc<EventRecord>> {
        self.followers.subscribe()
    }
}

impl Events for EventLog {
    fn emit(&self, event: Event) {
        if self.queue.try_send(Message::Event(Box::new(event))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes what comes until the log is dropped.
async fn write(
    worker: Worker,
    mut messages: mpsc::Receiver<Message>,
    followers: broadcast::Sender<Arc<EventRecord>>,
) {
    let mut since_pruned = 0;
    let mut batch = Vec::new();
    while messages.recv_many(&mut batch, BATCH).await > 0 {
        let mut events = Vec::new();
        let mut flushed = Vec::new();
        for message in batch.drain(..) {
            match message {
                Message::Event(event) => events.push(*event),
                Message::Flush(done) => flushed.push(done),
            }
        }
        since_pruned += events.len();
        let due = since_pruned >= PRUNE_EACH;
        if due {
            since_pruned = 0;
        }
        let written = worker
            .call(move |connection| {
                let written = insert(connection, events)?;
                if due {
                    prune(connection, clock::now())?;
                }
                Ok(written)
            })
            .await;
        match written {
            Ok(records) => {
                for record in records {
                    // Nobody follows: nobody misses it.
                    let _ = followers.send(Arc::new(record));
                }
            }
            Err(error) => tracing::error!(error = ?error, "events cannot be written"),
        }
        for done in flushed {
            let _ = done.send(());
        }
    }
}

fn insert(connection: &mut Connection, events: Vec<Event>) -> Result<Vec<EventRecord>, StoreError> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let transaction = connection.transaction()?;
    let mut records = Vec::with_capacity(events.len());
    for event in events {
        let json = serde_json::to_string(&event).map_err(StoreError::Unwritable)?;
        transaction
            .prepare_cached("INSERT INTO event (at, namespace, app, json) VALUES (?, ?, ?, ?)")?
            .execute(params![
                int(event.at.0),
                event.app.namespace.as_str(),
                event.app.app.as_str(),
                json
            ])?;
        let id = u64::try_from(transaction.last_insert_rowid()).unwrap_or(0);
        records.push(EventRecord { id, event });
    }
    transaction.commit()?;
    Ok(records)
}

fn prune(connection: &Connection, now: Time) -> Result<(), StoreError> {
    connection.execute("DELETE FROM event WHERE at < ?", [int((now - KEEP_FOR).0)])?;
    connection
        .execute("DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?", [int(KEEP)])?;
    Ok(())
}

/// SQLite's integers are signed.
fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_core::event::Fact;

    fn event(app: &str, at: u64) -> Event {
        Event {
            at: Time(at),
            app: app.parse().unwrap(),
            instance: None,
            container: None,
            revision: None,
            fact: Fact::Ready,
        }
    }

    #[tokio::test]
    async fn pages_go_on_where_the_cursor_stands() {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::open(&dir.path().join("events.db")).unwrap();
        let mut follower = log.follow();
        let now = clock::now().0;
        for n in 0..5 {
            log.emit(event(if n == 2 { "b/y" } else { "a/x" }, now + n));
        }
        let last = log.page(Filter::default(), None, 2).await.unwrap();
        assert_eq!(last.events.iter().map(|e| e.id).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(last.next, 5);
        let of_a = Filter { app: Some("a/x".parse().unwrap()), ..Filter::default() };
        let first = log.page(of_a.clone(), Some(0), 2).await.unwrap();
        assert_eq!(first.next, 2);
        let rest = log.page(of_a, Some(first.next), 10).await.unwrap();
        assert_eq!(rest.events.iter().map(|e| e.id).collect::<Vec<_>>(), [4, 5]);
        let other = Filter { namespace: Some("b".parse().unwrap()), ..Filter::default() };
        assert_eq!(log.page(other, Some(0), 10).await.unwrap().events.len(), 1);
        assert_eq!(follower.recv().await.unwrap().id, 1);
        let within = log.between("a/x".parse().unwrap(), Time(now + 1), Time(now + 3)).await;
        assert_eq!(within.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn old_events_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.db");
        let log = EventLog::open(&path).unwrap();
        log.emit(event("a/x", 1));
        log.emit(event("a/x", clock::now().0));
        assert_eq!(log.page(Filter::default(), Some(0), 9).await.unwrap().events.len(), 2);
        drop(log);
        let log = EventLog::open(&path).unwrap();
        let kept = log.page(Filter::default(), Some(0), 9).await.unwrap();
        assert_eq!(kept.events.iter().map(|e| e.id).collect::<Vec<_>>(), [2]);
    }
}
