//! How an image wants to be run.
//!
//! Promises: a plain copy of what the image says, absent lists being empty; written again, the
//! same bytes for the same content. Does not know what an App overrides.
//!
//! Format: OCI image specification 1.1, "Image Configuration".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stead_core::ids::Digest;

use super::manifest::Platform;

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

/// The config of an image made here, of layers with these diff ids, base first.
pub(super) fn write(config: &ImageConfig, platform: &Platform, diff_ids: Vec<Digest>) -> Vec<u8> {
    let run = Written {
        user: &config.user,
        exposed_ports: keys(&config.exposed_ports),
        env: &config.env,
        entrypoint: &config.entrypoint,
        cmd: &config.cmd,
        volumes: keys(&config.volumes),
        working_dir: &config.working_dir,
        labels: &config.labels,
        stop_signal: config.stop_signal.as_deref(),
    };
    let whole = Whole {
        created: config.created.as_deref(),
        architecture: &platform.architecture,
        variant: platform.variant.as_deref(),
        os: &platform.os,
        config: run,
        rootfs: RootFs { kind: "layers", diff_ids },
    };
    serde_json::to_vec(&whole).expect("a config has only string keys")
}

fn keys(names: &[String]) -> BTreeMap<&str, Empty> {
    names.iter().map(|name| (name.as_str(), Empty {})).collect()
}

#[derive(Serialize)]
struct Whole<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<&'a str>,
    architecture: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    os: &'a str,
    config: Written<'a>,
    rootfs: RootFs,
}

#[derive(Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: Vec<Digest>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Written<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<&'a str, Empty>,
    env: &'a [String],
    entrypoint: &'a [String],
    cmd: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    volumes: BTreeMap<&'a str, Empty>,
    #[serde(skip_serializing_if = "str::is_empty")]
    working_dir: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<&'a str>,
}

#[derive(Serialize)]
struct Empty {}
