//! What stead asks of an engine, and what an engine asks of the traffic layer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::package::{
    ArchiveFormat, BaseName, ComposeRequest, Composed, UploadPart, UploadView,
};
use crate::error::{Code, UserError};
use crate::fleet::{Fleet, FleetSeen, Revision};
use crate::ids::{ContainerId, Digest, Generation, Ordinal};
use crate::manifest::{EnvName, Site};
use crate::name::AppKey;
use crate::registry::{Login, RegistryChecked, RegistryHost};
use crate::secret::Secret;
use crate::time::{Micros, Time};

/// Bytes on their way in or out.
pub type ByteStream = BoxStream<'static, std::io::Result<Bytes>>;

/// What an engine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// It can change a Container and keep the Sandbox.
    pub in_place: bool,
    /// It has a second slot for a Container beside the running one.
    pub handover: bool,
    /// It can freeze a Container and thaw it.
    pub freeze: bool,
    /// It gives images out as archives.
    pub export: bool,
}

/// Why an engine refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// A newer intent is known: the caller must load it and try again.
    #[error("generation {given} is older than {known}, which the engine already has")]
    Stale {
        /// What was given.
        given: Generation,
        /// What the engine has.
        known: Generation,
    },
    /// Anything a person should see.
    #[error(transparent)]
    User(#[from] UserError),
}

/// How far the fetching of an image is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PullProgress {
    /// Compressed bytes fetched or found on disk.
    pub bytes: u64,
    /// Compressed bytes in all; 0 while unknown.
    pub total: u64,
    /// Layers unpacked.
    pub layers_done: u32,
    /// Layers in all; 0 while unknown.
    pub layers: u32,
}

/// A pull under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PullSeen {
    /// The reference it is pulled by.
    pub reference: String,
    /// The image.
    pub image: Digest,
    /// How far it is.
    pub progress: PullProgress,
}

/// An image on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageInfo {
    /// Its digest.
    pub digest: Digest,
    /// References that named it.
    pub names: Vec<String>,
    /// Bytes unpacked.
    pub size: u64,
    /// Of these, bytes in layers that other images use too.
    pub shared: u64,
    /// When it was last fetched, imported or asked for.
    pub last_used: Time,
}

/// A runtime that is installed on the machine of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRuntime {
    /// The base it can be made into.
    pub base: BaseName,
    /// Its version as it says itself, such as `17.0.15`.
    pub exact: String,
    /// The folder it is installed in.
    pub path: String,
}

/// A base image that was made of what is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeBase {
    /// The image.
    pub image: ImageInfo,
    /// What it was made of.
    pub runtime: HostRuntime,
    /// What a person should know, such as libraries that the machine lacks.
    pub notes: Vec<String>,
}

/// One line of output of a Container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// When it was written, RFC 3339 with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The Instance.
    pub instance: Ordinal,
    /// The Container.
    pub container: ContainerId,
    /// The text without its line end; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogQuery {
    /// One Instance, or all.
    pub instance: Option<Ordinal>,
    /// At most so many of the last lines per Container.
    pub tail: Option<usize>,
    /// Go on with new lines.
    pub follow: bool,
}

/// A command to run inside a running Instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The Instance; the first running one if none is named.
    pub instance: Option<Ordinal>,
    /// Rows and columns of the terminal, if one is wanted.
    pub tty: Option<(u16, u16)>,
    /// Whether standard input is connected.
    pub stdin: bool,
}

/// What goes into a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    /// Bytes for its standard input or terminal.
    Data(Vec<u8>),
    /// Standard input ends.
    End,
    /// The terminal has a new size: rows and columns.
    Resize(u16, u16),
}

/// What comes out of a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// Bytes of standard output or of the terminal.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// It ended. The last item.
    Exit(i32),
}

/// A running command.
pub struct Exec {
    /// Into it. Dropped: the command gets a hang-up.
    pub input: Box<dyn Fn(ExecInput) + Send + Sync>,
    /// Out of it.
    pub output: BoxStream<'static, ExecOutput>,
}

/// What an Instance uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// The Instance.
    pub instance: Ordinal,
    /// CPU time used since its Container started, in microseconds.
    pub cpu_micros: u64,
    /// Memory charged to it, in bytes.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// Something that holds Fleets.
///
/// # Guarantees an engine gives
/// - `apply` returns once the Fleet is taken up, not once it is reached. Applying the same
///   Fleet again changes nothing; one of an older generation is refused.
/// - It works towards the last Fleet by carrying out the steps of [`crate::fleet::plan`], and
///   goes on after a restart without being asked.
/// - `hints` carry keys, never data, and may be lost or repeated.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Takes up a Fleet.
    async fn apply(&self, fleet: Fleet) -> Result<(), EngineError>;

    /// What it holds of an App now.
    async fn observe(&self, app: &AppKey) -> Result<FleetSeen, EngineError>;

    /// Apps of which something is held, known to the control plane or not.
    async fn apps(&self) -> Result<Vec<AppKey>, EngineError>;

    /// Keys of Apps that may have changed.
    fn hints(&self) -> BoxStream<'static, AppKey>;

    /// Forgets an App of which nothing is left; `volumes` removes its data as well.
    async fn forget(&self, app: &AppKey, volumes: bool) -> Result<(), EngineError>;

    /// The digest that a reference names now.
    async fn resolve(&self, reference: &str) -> Result<Digest, EngineError>;

    /// Asks a registry whether it answers, and accepts a login. Nothing is kept of either.
    async fn check_registry(
        &self,
        host: &RegistryHost,
        login: Option<&Login>,
    ) -> Result<RegistryChecked, EngineError>;

    /// Fetches an image beforehand.
    async fn warm(&self, reference: &str, digest: &Digest) -> Result<(), EngineError>;

    /// Takes an image in from an OCI layout, an OCI archive or the output of `docker save`.
    async fn import(&self, path: PathBuf, name: Option<String>) -> Result<ImageInfo, EngineError>;

    /// How far a pull is; `None` when none is under way.
    fn pulling(&self, digest: &Digest) -> Option<PullProgress>;

    /// All pulls that are under way.
    fn pulls(&self) -> Vec<PullSeen> {
        Vec::new()
    }

    /// The folder with the files of a site: the one layer of an image, whose index is whole and
    /// has the pages that `rules` name. `None` while the image is not on the machine. It stays
    /// for as long as the image is kept.
    async fn site(&self, _image: &Digest, _rules: &Site) -> Result<Option<PathBuf>, EngineError> {
        Err(cannot("serve a site"))
    }

    /// Images on the machine.
    async fn images(&self) -> Result<Vec<ImageInfo>, EngineError>;

    /// Removes every image that is not in `keep`, not in use, and was not used for so long.
    /// Gives the bytes freed.
    async fn prune(&self, keep: &[Digest], unused_for: Micros) -> Result<u64, EngineError>;

    /// Says which images are needed besides those of the Fleets it has, here or not yet. Until
    /// this was said once, it makes no room by itself; from then on it may remove any other.
    async fn keep(&self, _needed: &[Digest]) -> Result<(), EngineError> {
        Ok(())
    }

    /// Removes one image, unless it is in use. Gives the bytes freed.
    async fn remove_image(&self, _image: &Digest) -> Result<u64, EngineError> {
        Err(cannot("remove one image"))
    }

    /// An image as an archive, under the names it has.
    async fn export(
        &self,
        _image: &Digest,
        _format: ArchiveFormat,
    ) -> Result<ByteStream, EngineError> {
        Err(cannot("give images out"))
    }

    /// How much of an upload is here.
    async fn uploaded(&self, _digest: &Digest) -> Result<UploadView, EngineError> {
        Err(cannot("take uploads"))
    }

    /// Takes in more of an upload: the bytes from `part.offset` on, to its end or less far.
    async fn upload(
        &self,
        _part: UploadPart,
        _bytes: ByteStream,
    ) -> Result<UploadView, EngineError> {
        Err(cannot("take uploads"))
    }

    /// Makes an image of uploaded layers on a base that is here.
    async fn compose(
        &self,
        _request: &ComposeRequest,
        _base: Option<&Digest>,
    ) -> Result<Composed, EngineError> {
        Err(cannot("compose images"))
    }

    /// Runtimes installed on its machine, one of each version.
    async fn host_runtimes(&self) -> Result<Vec<HostRuntime>, EngineError> {
        Ok(Vec::new())
    }

    /// Makes a base image of a runtime that is installed, in the folder `path` or wherever one
    /// is found. The same installation makes the same image.
    async fn make_base(
        &self,
        _base: &BaseName,
        _path: Option<PathBuf>,
    ) -> Result<MadeBase, EngineError> {
        Err(cannot("make base images"))
    }

    /// Output of an App's Containers.
    async fn logs(
        &self,
        app: &AppKey,
        query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, EngineError>;

    /// Runs a command inside a running Instance.
    async fn exec(&self, app: &AppKey, request: ExecRequest) -> Result<Exec, EngineError>;

    /// What the App's Instances use now.
    async fn usage(&self, app: &AppKey) -> Result<Vec<Usage>, EngineError>;
}

/// For an engine that leaves something to others.
fn cannot(what: &str) -> EngineError {
    let message = format!("this engine does not {what}");
    UserError::new(Code::NotBuilt, message, "use `stead` with its own engine for one machine")
        .into()
}

/// An address that requests may be sent to: one ready Container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The Container.
    pub container: ContainerId,
    /// Its Instance.
    pub instance: Ordinal,
    /// What it runs.
    pub revision: Revision,
    /// Where it listens.
    pub addr: SocketAddr,
    /// The mark (`SO_MARK`) that a socket needs to reach it, where others have its address.
    #[serde(default)]
    pub mark: Option<u32>,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// No request was open any more. False: the deadline passed first, and what is open
    /// will be cut.
    pub clean: bool,
}

/// The traffic layer, as an engine sees it.
///
/// Attaching and draining go through one ordered log of route generations: once `detach`
/// has returned, no gateway sends the Container a request, whatever it was doing.
#[async_trait]
pub trait Traffic: Send + Sync {
    /// Sends requests to a Backend. Returns once every gateway acknowledged it.
    async fn attach(&self, app: &AppKey, backend: Backend);

    /// Sends no new requests; returns once none is open, or after `drain`.
    async fn detach(&self, app: &AppKey, container: &ContainerId, drain: Duration) -> Drained;
}

/// The values of secrets, as an engine sees them. It asks when it prepares a Container, keeps
/// none, and is told by a Release which version of which is meant.
pub trait Secrets: Send + Sync {
    /// The value of one version.
    ///
    /// # Errors
    /// Why it cannot be had. It never says anything of a value.
    fn value(&self, app: &AppKey, name: &EnvName, version: u32) -> Result<Secret, UserError>;
}

/// For an engine whose Apps have no secrets.
#[derive(Debug, Clone, Copy)]
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn value(&self, app: &AppKey, name: &EnvName, version: u32) -> Result<Secret, UserError> {
        let message = format!("nobody keeps version {version} of secret {name} of app {app}");
        Err(UserError::new(Code::Internal, message, "see the log of `stead serve`"))
    }
}
