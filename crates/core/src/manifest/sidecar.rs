//! Sidecars: companions of an App's main Container in the same Sandbox.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::fields::{FileSource, Resources, schema_forms};
use super::health::Health;
use super::text::{AbsPath, EnvName, SidecarName, VolumeName};

/// A Container beside the App's own in each Instance: it shares the network, so that both
/// reach each other on 127.0.0.1, and takes no requests from outside. It starts, changes and
/// restarts by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Sidecar {
    /// Its name, unique in the App.
    pub name: SidecarName,
    /// What to run: an image reference.
    #[schemars(length(min = 1))]
    pub source: String,
    /// The program and its first arguments. Empty: the image's entrypoint.
    #[serde(default)]
    pub command: Vec<String>,
    /// Further arguments. Empty: the image's, unless `command` is given.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment variables, added to the image's.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, schema_forms::Scalar>")]
    pub env: BTreeMap<EnvName, String>,
    /// Read-only files put into the Container, by absolute path.
    #[serde(default)]
    pub files: BTreeMap<AbsPath, FileSource>,
    /// What it may use of the machine, apart from the App.
    #[serde(default)]
    pub resources: Resources,
    /// How stead knows that it is started, ready and alive. `http` needs a `port`.
    #[serde(default)]
    pub health: Health,
    /// The App's volumes that it sees as well.
    #[serde(default)]
    pub volumes: Vec<SidecarVolume>,
}

/// One of the App's volumes, as a sidecar sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct SidecarVolume {
    /// The volume's name.
    pub name: VolumeName,
    /// Where the sidecar sees it.
    pub mount: AbsPath,
}
