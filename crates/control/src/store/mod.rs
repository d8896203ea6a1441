//! The document store: `(kind, key, generation, json)` with compare-and-set, several writes
//! in one transaction, and wake-ups.
//!
//! # Guarantees
//! - What [`Store::commit`] acknowledged survives a crash of the process and of the machine.
//! - A commit is done whole or not at all, and only if every document it names is still at
//!   the generation the writer had seen.
//! - A document that cannot be read is reported and skipped; the others are not affected.
//! - A wake-up follows each commit. Wake-ups carry keys, never data.
//!
//! # Caveats
//! - One process at a time. Reads see every acknowledged commit and block for some tens of
//!   microseconds: the working set is in the page cache, and a reader never waits for the
//!   writer's disk.
//!
//! It does not know what the documents mean.

mod document;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use stead_core::error::{Code, UserError};
use stead_core::ids::Generation;
use tokio::sync::broadcast;

pub use document::Kind;
pub(crate) use document::{Document, Listing, Versioned, Write, release_key, rollout_key};
pub(crate) use worker::{Worker, migrate, open, open_reader};

use document::Expect;

/// Each leads from the version of its index to the next. Never change one that was shipped.
const MIGRATIONS: &[&str] = &["CREATE TABLE document (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    generation INTEGER NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID"];

/// Wake-ups that a slow watcher may fall behind before it must look at everything.
const WAKE_BACKLOG: usize = 1024;

/// Why the store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else committed first: load again and decide again.
    #[error("{kind} {key} is not at generation {expected:?} any more")]
    Conflict {
        /// Kind of the document.
        kind: Kind,
        /// Its key.
        key: String,
        /// What the writer had seen; `None` when it had seen no such document.
        expected: Option<Generation>,
    },
    /// One document cannot be read.
    #[error("{0}")]
    Damaged(Damaged),
    /// The file was written by a newer stead.
    #[error("{path} has schema version {found}; this stead knows versions up to {known}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// The newest this program knows.
        known: usize,
    },
    /// The whole file is damaged.
    #[error("{path} is damaged: {why}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What SQLite found.
        why: String,
    },
    /// SQLite failed.
    #[error("database access failed")]
    Sqlite(#[from] rusqlite::Error),
    /// The thread of the database cannot be started.
    #[error("database thread cannot be started")]
    Thread(#[source] std::io::Error),
    /// The store was closed.
    #[error("store is closed")]
    Closed,
    /// A document cannot be written as JSON. A bug.
    #[error("document cannot be written as JSON")]
    Unwritable(#[source] serde_json::Error),
}

/// A document that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {key} in the store is damaged: {why}")]
pub struct Damaged {
    /// Kind of the document.
    pub kind: Kind,
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
}

impl From<StoreError> for UserError {
    fn from(error: StoreError) -> Self {
        let with_cause = |error: &StoreError| match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        match &error {
            StoreError::Conflict { kind, key, .. } => UserError::new(
                Code::Conflict,
                format!("{kind} {key} was changed by somebody else in the meantime"),
                "look at it again and repeat the change if it is still wanted",
            ),
            StoreError::Newer { .. } => UserError::new(
                Code::StateCorrupt,
                error.to_string(),
                "start the newer stead again, or give this one another --data-dir",
            ),
            StoreError::Damaged(_) | StoreError::Broken { .. } | StoreError::Sqlite(_) => {
                UserError::new(
                    Code::StateCorrupt,
                    with_cause(&error),
                    "check the disk; `stead doctor` lists damaged records",
                )
            }
            StoreError::Thread(_) | StoreError::Closed | StoreError::Unwritable(_) => {
                UserError::new(Code::Internal, with_cause(&error), "see the log of `stead serve`")
            }
        }
    }
}

/// A committed change of one document. A wake-up: the watcher loads what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Kind of the document.
    pub(crate) kind: Kind,
    /// Its key.
    pub(crate) key: String,
}

/// The store.
pub(crate) struct Store {
    writer: Worker,
    reader: Mutex<Connection>,
    changes: broadcast::Sender<Changed>,
    /// Commits until this process is as good as dead, for tests of crashes.
    #[cfg(test)]
    pub(crate) life: halt::Life,
}

impl Store {
    /// Opens the store in the file `path`, made if it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Newer`] and [`StoreError::Broken`] leave the file untouched.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = open(path)?;
        migrate(&mut connection, path, MIGRATIONS)?;
        // Each commit is on disk before it is acknowledged.
        connection.pragma_update(None, "synchronous", "full")?;
        let reader = open_reader(path)?;
        Ok(Self {
            writer: Worker::start("stead-store", connection)?,
            reader: Mutex::new(reader),
            changes: broadcast::channel(WAKE_BACKLOG).0,
            #[cfg(test)]
            life: halt::Life::default(),
        })
    }

    /// Commits all of `writes` or none.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when one of the documents was changed since it was read.
    pub(crate) async fn commit(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let changed: Vec<Changed> = writes
            .iter()
            .map(|write| Changed { kind: write.kind, key: write.key.clone() })
            .collect();
        let changes = self.changes.clone();
        #[cfg(test)]
        self.life.before_commit().await;
        let done = self
            .writer
            .call(move |connection| {
                let transaction = connection.transaction()?;
                for write in &writes {
                    apply(&transaction, write)?;
                }
                transaction.commit()?;
                for change in changed {
                    // Nobody watches: nobody needs to be woken.
                    let _ = changes.send(change);
                }
                Ok(())
            })
            .await;
        #[cfg(test)]
        self.life.after_commit().await;
        done
    }

    /// Reads one document.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is there and cannot be read.
    pub(crate) fn get<T: Document>(&self, key: &str) -> Result<Option<Versioned<T>>, StoreError> {
        let row: Option<(u64, String)> = self
            .read()
            .prepare_cached("SELECT generation, json FROM document WHERE kind = ? AND key = ?")?
            .query_row(params![T::KIND.as_str(), key], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        row.map(|(generation, json)| parse(key, generation, &json).map_err(StoreError::Damaged))
            .transpose()
    }

    /// Reads the documents whose key begins with `prefix`, in the order of their keys.
    pub(crate) fn list<T: Document>(&self, prefix: &str) -> Result<Listing<T>, StoreError> {
        let mut listing = Listing { found: Vec::new(), damaged: Vec::new() };
        let connection = self.read();
        let mut statement = connection.prepare_cached(
            "SELECT key, generation, json FROM document
             WHERE kind = ?1 AND key >= ?2 AND substr(key, 1, length(?2)) = ?2 ORDER BY key",
        )?;
        let mut rows = statement.query(params![T::KIND.as_str(), prefix])?;
        while let Some(row) = rows.next()? {
            let (key, generation): (String, u64) = (row.get(0)?, row.get(1)?);
            match parse(&key, generation, row.get_ref(2)?.as_str().unwrap_or_default()) {
                Ok(document) => listing.found.push(document),
                Err(damaged) => {
                    tracing::error!(%damaged, "skipped a damaged record");
                    listing.damaged.push(damaged);
                }
            }
        }
        Ok(listing)
    }

    /// The keys of a kind that begin with `prefix`, damaged documents included.
    pub(crate) fn keys(&self, kind: Kind, prefix: &str) -> Result<Vec<String>, StoreError> {
        let connection = self.read();
        let mut statement = connection.prepare_cached(
            "SELECT key FROM document
             WHERE kind = ?1 AND key >= ?2 AND substr(key, 1, length(?2)) = ?2 ORDER BY key",
        )?;
        let keys = statement.query_map(params![kind.as_str(), prefix], |row| row.get(0))?;
        Ok(keys.collect::<Result<_, _>>()?)
    }

    /// Wake-ups after each commit from now on. A watcher that is told it lagged must look
    /// at everything.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }

    fn read(&self) -> std::sync::MutexGuard<'_, Connection> {
        // A panic while reading leaves nothing half done.
        self.reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn parse<T: Document>(key: &str, generation: u64, json: &str) -> Result<Versioned<T>, Damaged> {
    match serde_json::from_str(json) {
        Ok(value) => {
            Ok(Versioned { key: key.to_owned(), generation: Generation(generation), value })
        }
        Err(error) => Err(Damaged { kind: T::KIND, key: key.to_owned(), why: error.to_string() }),
    }
}

fn apply(transaction: &Transaction<'_>, write: &Write) -> Result<(), StoreError> {
    let (kind, key) = (write.kind.as_str(), &write.key);
    let conflict = |expected| StoreError::Conflict { kind: write.kind, key: key.clone(), expected };
    let rows = match (&write.expect, &write.put) {
        (Expect::Absent, Some((generation, json))) => transaction
            .prepare_cached("INSERT OR IGNORE INTO document VALUES (?, ?, ?, ?)")?
            .execute(params![kind, key, generation.0, json])?,
        (Expect::At(expected), Some((generation, json))) => transaction
            .prepare_cached(
                "UPDATE document SET generation = ?, json = ?
                 WHERE kind = ? AND key = ? AND generation = ?",
            )?
            .execute(params![generation.0, json, kind, key, expected.0])?,
        (Expect::Anything, Some((_, json))) => transaction
            .prepare_cached(
                "INSERT INTO document VALUES (?1, ?2, 1, ?3) ON CONFLICT
                 DO UPDATE SET generation = generation + 1, json = ?3",
            )?
            .execute(params![kind, key, json])?,
        (Expect::At(expected), None) => transaction
            .prepare_cached("DELETE FROM document WHERE kind = ? AND key = ? AND generation = ?")?
            .execute(params![kind, key, expected.0])?,
        (Expect::Absent | Expect::Anything, None) => {
            transaction
                .prepare_cached("DELETE FROM document WHERE kind = ? AND key = ?")?
                .execute(params![kind, key])?;
            1
        }
    };
    match (rows, &write.expect) {
        (0, Expect::Absent | Expect::Anything) => Err(conflict(None)),
        (0, Expect::At(expected)) => Err(conflict(Some(*expected))),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod halt;
#[cfg(test)]
mod tests;
