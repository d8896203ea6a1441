//! The fields of a manifest, typed and with their defaults.
//!
//! The comments here are also the descriptions in the JSON Schema and in the API, so they
//! speak to whoever writes a manifest. The form in JSON is the form in YAML.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::choice::{Isolation, JvmArchive, JvmThreads, Protocol, RestartPolicy};
use super::health::Health;
use super::hooks::Hooks;
use super::quantity::{Cpu, Memory, Span};
use super::rollout::Rollout;
use super::runtime::Runtime;
use super::sidecar::Sidecar;
use super::signal::StopSignal;
use super::site::Site;
use super::text::{AbsPath, EnvName, HostName, Port, UserSpec, VolumeName};
use crate::name::{AppKey, AppName, MAX_NAME, NamespaceName};

/// What names look like, for the schema; [`crate::name`] is what decides.
const NAME: &str = r"^[a-z]([a-z0-9\-]*[a-z0-9])?$";

/// What stead shall run, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The App's name: a DNS label of at most 40 characters. Unique in its Namespace.
    #[schemars(with = "String", regex(pattern = NAME), length(max = MAX_NAME))]
    pub app: AppName,
    /// The Namespace that holds the App.
    #[serde(default)]
    #[schemars(with = "String", regex(pattern = NAME), length(max = MAX_NAME))]
    pub namespace: NamespaceName,
    /// What to run: an image reference, or the path of an OCI archive or layout.
    #[schemars(length(min = 1))]
    pub source: String,
    /// What runs the source, if that is a package: java, tomcat, python or node with its
    /// version, such as {java: 17}. Left out: the lowest version here that fits the package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// The program and its first arguments. Empty: the image's entrypoint.
    #[serde(default)]
    pub command: Vec<String>,
    /// Further arguments. Empty: the image's, unless `command` is given.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment variables, added to the image's. Numbers and truth values are taken as
    /// they are written.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, schema_forms::Scalar>")]
    pub env: BTreeMap<EnvName, String>,
    /// Names of secrets that become environment variables.
    #[serde(default)]
    pub secrets: Vec<EnvName>,
    /// Read-only files put into the Container, by absolute path.
    #[serde(default)]
    pub files: BTreeMap<AbsPath, FileSource>,
    /// How the App takes HTTP requests. Left out: on the lowest TCP port that the image
    /// exposes; an image that exposes none takes no HTTP requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// The source is a folder of static files: the gateway serves them, and nothing runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<Site>,
    /// What each Instance may use of the machine.
    #[serde(default)]
    pub resources: Resources,
    /// How a Java program is run: what speeds its starts up, and what its threads are.
    #[serde(default)]
    pub jvm: Jvm,
    /// How stead knows that an Instance is started, ready and alive.
    #[serde(default)]
    pub health: Health,
    /// What happens around the start, the change and the stop of a Container.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// Folders that outlive Containers. Each Instance has its own.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Containers beside the App's own, in each Instance.
    #[serde(default)]
    pub sidecars: Vec<Sidecar>,
    /// How many Instances run: 0 to 1000.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub instances: u32,
    /// How a new Release replaces the old one.
    #[serde(default)]
    pub rollout: Rollout,
    /// What happens to requests while no Instance can take them.
    #[serde(default)]
    pub park: Park,
    /// How strongly Instances are kept apart from each other and from the machine.
    #[serde(default)]
    pub isolation: Isolation,
    /// Who the process runs as, `USER` or `USER:GROUP`. Left out: the image's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserSpec>,
    /// The folder the process starts in. Left out: the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<AbsPath>,
    /// Whether the Container's own files are read-only. Volumes stay writable.
    #[serde(default)]
    pub read_only_root: bool,
    /// The signal that asks the process to end. Left out: the image's, else SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<StopSignal>,
    /// Whether a Container that ended by itself is started again.
    #[serde(default)]
    pub restart: RestartPolicy,
}

fn one() -> u32 {
    1
}

impl Manifest {
    /// The manifest of an App of which only the name and the source are given.
    pub fn minimal(app: AppName, source: impl Into<String>) -> Self {
        Self {
            app,
            namespace: NamespaceName::default(),
            source: source.into(),
            runtime: None,
            command: Vec::new(),
            args: Vec::new(),
            env: BTreeMap::new(),
            secrets: Vec::new(),
            files: BTreeMap::new(),
            http: None,
            site: None,
            resources: Resources::default(),
            jvm: Jvm::default(),
            health: Health::default(),
            lifecycle: Lifecycle::default(),
            volumes: Vec::new(),
            sidecars: Vec::new(),
            instances: one(),
            rollout: Rollout::default(),
            park: Park::default(),
            isolation: Isolation::default(),
            user: None,
            working_dir: None,
            read_only_root: false,
            stop_signal: None,
            restart: RestartPolicy::default(),
        }
    }

    /// The App's full name.
    pub fn key(&self) -> AppKey {
        AppKey::new(self.namespace.clone(), self.app.clone())
    }

    /// The sidecar called `name`.
    pub fn sidecar(&self, name: &str) -> Option<&Sidecar> {
        self.sidecars.iter().find(|sidecar| sidecar.name.as_str() == name)
    }

    /// The port that takes HTTP requests, given the TCP ports that the image exposes.
    pub fn http_port(&self, exposed: &[u16]) -> Option<u16> {
        let given = self.http.as_ref().and_then(|http| http.port);
        given.map(Port::number).or_else(|| exposed.iter().copied().min())
    }

    /// The protocol of the App's HTTP port.
    pub fn protocol(&self) -> Protocol {
        self.http.as_ref().map_or(Protocol::default(), |http| http.protocol)
    }
}

/// Where a file's content comes from. In a manifest's text: the path of a file beside the
/// manifest, or `{content: "…"}`. The API takes only content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(untagged, deny_unknown_fields)]
#[schemars(inline)]
pub enum FileSource {
    /// A path on the machine of whoever deploys, relative to the manifest.
    Path(String),
    /// The content itself.
    Content {
        /// The content, as UTF-8.
        content: String,
    },
}

/// How the App takes HTTP requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Http {
    /// The port the App listens on. Left out: the lowest that the image exposes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// Host names that lead to the App, besides `APP.NAMESPACE.localhost`.
    pub hosts: Vec<HostName>,
    /// What the App speaks on that port.
    pub protocol: Protocol,
}

/// What each Instance may use of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Resources {
    /// Processor time, at least 10m. Left out: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Memory, at least 4Mi. Left out: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Processes and threads, at least 8.
    #[schemars(range(min = 8, max = 4_000_000))]
    pub pids: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu: None, memory: None, pids: 4096 }
    }
}

/// How a Java program is run. Means nothing to other programs.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Jvm {
    /// Whether its starts are sped up by an archive of its classes.
    pub archive: JvmArchive,
    /// What its threads are.
    pub threads: JvmThreads,
}

/// What happens around the start, the change and the stop of a Container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Lifecycle {
    /// Done after the last request has left and before the stop signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<PreStop>,
    /// Program run in the Container once it has started, with its arguments. The Container
    /// is not ready before this ends, within the startup's timeout; an exit code other than 0
    /// is a failed start. Empty: nothing.
    pub post_start: Vec<String>,
    /// How long open requests, and then the process after its stop signal, may take. After
    /// that they are cut off.
    pub grace: Span,
    /// Over how long a fresh Container's share of the requests grows to its full size, so
    /// that caches and compilers warm up.
    pub slow_start: Span,
    /// What the App does itself when an Instance changes or goes.
    pub hooks: Hooks,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            pre_stop: None,
            post_start: Vec::new(),
            grace: Span::from_secs(30),
            slow_start: Span::ZERO,
            hooks: Hooks::default(),
        }
    }
}

/// What is done before the stop signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PreStop {
    /// Wait so long.
    Sleep(Span),
    /// Run this program in the Container and wait for its end, within the grace.
    Exec(Vec<String>),
}

/// A folder that outlives Containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Volume {
    /// Its name, unique in the App.
    pub name: VolumeName,
    /// Where the Container sees it.
    pub mount: AbsPath,
    /// Whether two Containers of one Instance may write to it at the same time, which a
    /// handover from the old one to the new one needs.
    #[serde(default)]
    pub shared: bool,
}

/// What happens to requests while no Instance can take them: they wait at the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Park {
    /// How long a request may wait. 0s: it is answered with 503 at once.
    pub max_wait: Span,
    /// How many requests of the App may wait at once.
    pub max_requests: u32,
}

impl Default for Park {
    fn default() -> Self {
        Self { max_wait: Span::from_secs(30), max_requests: 1000 }
    }
}

/// Forms that a text may have besides its type's own; only their schemas are used.
pub(super) mod schema_forms {
    /// Text, or what is taken as the text it is written as.
    #[derive(schemars::JsonSchema)]
    #[schemars(untagged, inline)]
    #[expect(dead_code, reason = "only its schema is used")]
    pub(in crate::manifest) enum Scalar {
        Text(String),
        Number(f64),
        Truth(bool),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_the_given_one_else_the_lowest_exposed() {
        let mut manifest = Manifest::minimal(AppName::new("web").unwrap(), "nginx");
        assert_eq!(manifest.http_port(&[]), None);
        assert_eq!(manifest.http_port(&[443, 80]), Some(80));
        manifest.http = Some(Http { port: Some("8080".parse().unwrap()), ..Http::default() });
        assert_eq!(manifest.http_port(&[80]), Some(8080));
    }
}
