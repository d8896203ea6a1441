//! Lists and records of the API that belong to no single verb: events, Namespaces,
//! environment variables.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::event::Event;
use crate::name::NamespaceName;

/// An Event as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventRecord {
    /// Its place in the log; only rises. Also the `id` of the server-sent event.
    pub id: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Part of the event log, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    /// The Events.
    pub events: Vec<EventRecord>,
    /// The cursor to go on from: `?after=` gives what came later. Equals the cursor given
    /// when there is nothing later.
    pub next: u64,
}

/// A Namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamespaceView {
    /// Its name.
    pub name: NamespaceName,
    /// Apps in it.
    pub apps: u32,
}

/// The environment variables that an App's Release sets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct EnvView {
    /// Values by name.
    pub env: BTreeMap<String, String>,
}
