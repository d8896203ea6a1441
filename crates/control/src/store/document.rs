//! What is stored: kinds of documents, their keys, and writes of them.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use stead_core::api::Record;
use stead_core::app::{App, Release};
use stead_core::ids::{Generation, ReleaseNo, RolloutNo};
use stead_core::name::AppKey;

use super::StoreError;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// A kind of document.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[$doc])* $variant,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant,)*];

            /// Its name in the store.
            pub fn as_str(self) -> &'static str {
                match self { $(Kind::$variant => $text,)* }
            }
        }
    };
}

kinds! {
    /// An App, by `NAMESPACE/APP`.
    App = "app",
    /// A Release, by `NAMESPACE/APP/NUMBER` with six digits.
    Release = "release",
    /// The record of a Rollout, by `NAMESPACE/APP/NUMBER` with six digits.
    Rollout = "rollout",
    /// A Namespace, by its name.
    Namespace = "namespace",
    /// A token, by its id.
    Token = "token",
    /// Request counts of a Release, by `NAMESPACE/APP/NUMBER` with six digits.
    Ledger = "ledger",
    /// What a gateway last reported, by `PID-STARTED`.
    Counters = "counters",
    /// A version of a secret, by `NAMESPACE/APP/NAME/VERSION` with six digits.
    Secret = "secret",
    /// The login for a registry, by the registry's host.
    Login = "login",
    /// The mirrors of a registry, by the registry's host.
    Mirrors = "mirrors",
    /// A base image, by its name.
    Base = "base",
    /// What the platform keeps about itself, by name.
    Meta = "meta",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that can be stored.
pub(crate) trait Document: Serialize + DeserializeOwned {
    /// Its kind.
    const KIND: Kind;
}

impl Document for App {
    const KIND: Kind = Kind::App;
}

impl Document for Release {
    const KIND: Kind = Kind::Release;
}

impl Document for Record {
    const KIND: Kind = Kind::Rollout;
}

/// Key of a Release of `app`, and of its ledger.
pub(crate) fn release_key(app: &AppKey, number: ReleaseNo) -> String {
    format!("{app}/{:06}", number.0)
}

/// Key of a Rollout of `app`.
pub(crate) fn rollout_key(app: &AppKey, number: RolloutNo) -> String {
    format!("{app}/{:06}", number.0)
}

/// A document and the generation it was read at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Versioned<T> {
    /// Its key.
    pub(crate) key: String,
    /// Its generation, for the compare-and-set of the next write.
    pub(crate) generation: Generation,
    /// The document.
    pub(crate) value: T,
}

/// Several documents.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Listing<T> {
    /// Those that could be read, by key.
    pub(crate) found: Vec<Versioned<T>>,
    /// Those that could not.
    pub(crate) damaged: Vec<super::Damaged>,
}

/// One write of a commit.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(super) kind: Kind,
    pub(super) key: String,
    pub(super) expect: Expect,
    pub(super) put: Option<(Generation, String)>,
}

/// What a write finds, or it conflicts.
#[derive(Debug, Clone)]
pub(super) enum Expect {
    Absent,
    At(Generation),
    Anything,
}

impl Write {
    /// Creates a document of generation 1. Conflicts if there is one.
    pub(crate) fn create<T: Document>(
        key: impl Into<String>,
        value: &T,
    ) -> Result<Self, StoreError> {
        Self::put(key, Expect::Absent, Generation(1), value)
    }

    /// Replaces the document that was read at `seen`.
    pub(crate) fn replace<T: Document>(seen: &Versioned<T>, value: &T) -> Result<Self, StoreError> {
        let generation = seen.generation;
        Self::put(seen.key.clone(), Expect::At(generation), generation.next(), value)
    }

    /// Writes a document whatever is there. Only for records that one task alone writes.
    pub(crate) fn set<T: Document>(key: impl Into<String>, value: &T) -> Result<Self, StoreError> {
        Self::put(key, Expect::Anything, Generation(1), value)
    }

    /// Writes an App at its own generation. `seen` is the generation it was read at, `None`
    /// for a new App.
    pub(crate) fn app(seen: Option<Generation>, app: &App) -> Result<Self, StoreError> {
        let expect = seen.map_or(Expect::Absent, Expect::At);
        Self::put(app.key.to_string(), expect, app.generation, app)
    }

    /// Removes the document that was read at `seen`.
    pub(crate) fn remove(kind: Kind, key: impl Into<String>, seen: Generation) -> Self {
        Self { kind, key: key.into(), expect: Expect::At(seen), put: None }
    }

    /// Removes a document, whatever its generation, if there is one.
    pub(crate) fn clear(kind: Kind, key: impl Into<String>) -> Self {
        Self { kind, key: key.into(), expect: Expect::Anything, put: None }
    }

    fn put<T: Document>(
        key: impl Into<String>,
        expect: Expect,
        generation: Generation,
        value: &T,
    ) -> Result<Self, StoreError> {
        let json = serde_json::to_string(value).map_err(StoreError::Unwritable)?;
        Ok(Self { kind: T::KIND, key: key.into(), expect, put: Some((generation, json)) })
    }
}
