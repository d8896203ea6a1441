//! How an image wants to be run.
//!
//! Promises: a plain copy of what the image says, absent lists being empty. Does not know
//! what an App overrides.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What an image's config says about running it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Program and first arguments; empty means `cmd` alone.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the whole command.
    pub cmd: Vec<String>,
    /// `NAME=VALUE`, in order.
    pub env: Vec<String>,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// `USER[:GROUP]`, names or numbers; empty means root.
    pub user: String,
    /// Such as `8080/tcp`.
    pub exposed_ports: Vec<String>,
    /// Such as `SIGTERM` or `15`.
    pub stop_signal: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Paths declared as volumes.
    pub volumes: Vec<String>,
    /// When the image was built, RFC 3339, as the image says.
    pub created: Option<String>,
}

/// The config as stored. Docker writes `null` for what is not set.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Stored {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

impl Stored {
    pub(super) fn into_config(self, created: Option<String>) -> ImageConfig {
        ImageConfig {
            entrypoint: self.entrypoint.unwrap_or_default(),
            cmd: self.cmd.unwrap_or_default(),
            env: self.env.unwrap_or_default(),
            working_dir: self.working_dir.unwrap_or_default(),
            user: self.user.unwrap_or_default(),
            exposed_ports: self.exposed_ports.unwrap_or_default().into_keys().collect(),
            stop_signal: self.stop_signal.filter(|signal| !signal.is_empty()),
            labels: self.labels.unwrap_or_default(),
            volumes: self.volumes.unwrap_or_default().into_keys().collect(),
            created,
        }
    }
}
