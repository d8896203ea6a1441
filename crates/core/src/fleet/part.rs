//! What runs in an Instance, and where.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a Container is to its Instance.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The App itself: what requests go to.
    #[default]
    Main,
    /// A companion, by its name in the manifest. It starts, changes and restarts by itself.
    Sidecar(String),
}

impl Part {
    /// Whether it is the App itself.
    pub fn is_main(&self) -> bool {
        *self == Part::Main
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Main => f.write_str("main"),
            Part::Sidecar(name) => write!(f, "sidecar {name}"),
        }
    }
}

/// One of the two places a Sandbox has for a main Container. Both have the Instance's
/// address; sidecars are in the first.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// The first, which every Sandbox has.
    #[default]
    A,
    /// The second, made when it is first used.
    B,
}

impl Slot {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Slot::A => "a",
            Slot::B => "b",
        })
    }
}
