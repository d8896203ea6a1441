//! What an engine tells of the Java virtual machine that an App runs on. For people: no decision
//! of the planner depends on it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::ReleaseNo;
use crate::time::{Micros, Time};

/// The Java virtual machine of an App's newest Container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JvmSeen {
    /// The Release that the Container is of.
    pub release: ReleaseNo,
    /// Which one, such as `Temurin-25.0.3+9`.
    pub jdk: String,
    /// Options it is started with beside those of the person's own.
    pub options: Vec<String>,
    /// What speeds its starts up.
    pub archive: ArchiveSeen,
    /// What was asked for and cannot be had, each in a sentence.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The archive of classes that a Java program starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum ArchiveSeen {
    /// One is recorded once a Container of the Release is ready, and it is its turn.
    Awaited,
    /// A copy of the App that gets no requests runs to record it.
    Recording,
    /// There is one, and starts use it.
    Kept(ArchiveKept),
    /// There is none.
    None {
        /// Why, in a sentence.
        why: String,
    },
}

/// An archive that was measured to be worth its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArchiveKept {
    /// What kind it is.
    pub kind: ArchiveKind,
    /// Its size in bytes.
    pub bytes: u64,
    /// From the start to the first success of the App's check without it.
    pub plain: Micros,
    /// The same with it, measured in turns with the other.
    pub fast: Micros,
    /// When it was recorded.
    pub made: Time,
}

impl ArchiveKept {
    /// How many times as fast a start is with it.
    pub fn gain(&self) -> f64 {
        self.plain.0 as f64 / self.fast.0.max(1) as f64
    }
}

/// Kinds of archives, by what the virtual machine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ArchiveKind {
    /// Classes, as they are in memory: Java 13 to 24.
    AppCds,
    /// Classes, linked and initialised, and profiles of methods: Java 25 and later.
    AotCache,
}

impl ArchiveKind {
    /// What people call it.
    pub fn as_str(self) -> &'static str {
        match self {
            ArchiveKind::AppCds => "AppCDS",
            ArchiveKind::AotCache => "AOT cache",
        }
    }
}
