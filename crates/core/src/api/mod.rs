//! Requests and answers of the REST API under `/api/v1`. The CLI and the console use
//! nothing else. Every type has an OpenAPI schema.

pub mod exec;
pub mod package;
mod platform;
mod registry;
mod rollout;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use platform::{EnvView, EventPage, EventRecord, NamespaceView};
pub use registry::{LoggedIn, LoginRequest, LoginView, MirrorRequest, RegistryView};
pub use rollout::{
    BatchPlan, ChangePlan, Decision, Doing, InstancePlan, PlanView, Record, RolloutView,
};

use crate::app::Release;
use crate::error::UserError;
use crate::event::PhaseName;
use crate::fleet::{Exit, Health, JvmSeen, Part, Revision, Slot, TrafficState};
use crate::ids::{ContainerId, Digest, Generation, Ordinal, ReleaseNo, RolloutNo};
use crate::manifest::{EnvName, Manifest, Span};
use crate::name::AppKey;
use crate::rollout::Rollout;
use crate::secret::Secret;
use crate::time::{Micros, Time};

/// Asks for a new Release of an App, and creates the App if there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// Everything wanted, the image's reference included.
    pub manifest: Manifest,
    /// Why, for the record.
    #[serde(default)]
    pub message: Option<String>,
}

/// Asks for an earlier Release again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Which; the one before the present one if none is named.
    #[serde(default)]
    pub release: Option<ReleaseNo>,
    /// Why, for the record.
    #[serde(default)]
    pub message: Option<String>,
}

/// Asks for the same Release again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestartRequest {
    /// One Instance, or all.
    #[serde(default)]
    pub instance: Option<Ordinal>,
    /// Why, for the record.
    #[serde(default)]
    pub message: Option<String>,
}

/// Asks for another number of Instances, or for some of them to go; or both, in that order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// How many in the end; without it, those that are left.
    #[serde(default)]
    pub instances: Option<u32>,
    /// Instances that go. The others keep their ordinals.
    #[serde(default)]
    pub remove: BTreeSet<Ordinal>,
}

/// How a Rollout is promoted. Other verbs of a Rollout have no wishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SteerRequest {
    /// Everything that is left at once, instead of the next batch.
    #[serde(default)]
    pub all: bool,
}

/// Gives a secret a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRequest {
    /// The value: 1 byte to 64 KiB of text without NUL. No answer ever holds it.
    #[serde(serialize_with = "crate::secret::expose")]
    #[schema(value_type = String, write_only)]
    pub value: Secret,
}

/// A secret of an App. Its value is not shown, ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretView {
    /// Its name, which is that of the variable it becomes.
    #[schema(value_type = String)]
    pub name: EnvName,
    /// The version that a new Release gets. `None`: it was unset, and only Releases made
    /// before that have it.
    pub version: Option<u32>,
    /// When that version, or else the one in use, was set.
    pub set: Time,
    /// By whom.
    pub by: String,
    /// The version that the App's present Release has, if it uses the secret.
    pub used: Option<u32>,
}

/// What a change of a secret has led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretChanged {
    /// The secret.
    #[schema(value_type = String)]
    pub name: EnvName,
    /// The version that a new Release gets; `None` once it is unset.
    pub version: Option<u32>,
    /// The Rollout that brings it to the App, where the App uses it.
    pub accepted: Option<Accepted>,
}

/// Changes environment variables: a new Release that differs in them alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvRequest {
    /// Variables to set.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Variables to remove.
    #[serde(default)]
    pub unset: Vec<String>,
}

/// A change was committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    /// The App.
    pub app: AppKey,
    /// The App's generation with the change in it.
    pub generation: Generation,
    /// The Rollout that carries it out, where it needs one.
    pub rollout: Option<RolloutNo>,
    /// The Release wanted.
    pub release: Option<ReleaseNo>,
}

/// An App and how it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AppView {
    /// Its full name.
    pub key: AppKey,
    /// Its generation: the `ETag`.
    pub generation: Generation,
    /// In one word: `running`, `changing`, `degraded`, `stopped`, `failed`, `deleting`.
    pub state: String,
    /// In a sentence, where the word needs one.
    pub why: Option<String>,
    /// Addresses it answers at.
    pub urls: Vec<String>,
    /// The Release it runs or goes to.
    pub release: Option<ReleaseNo>,
    /// Reference of that Release's image.
    pub image: Option<String>,
    /// Wanted Instances.
    pub instances: u32,
    /// Of these, ready and taking traffic.
    pub ready: u32,
    /// The Java virtual machine it runs on, and what speeds its starts up, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jvm: Option<JvmSeen>,
    /// The gateway serves it from files, and it has no Instances.
    #[serde(default)]
    pub site: bool,
    /// The Rollout under way, or the last one.
    pub rollout: Option<Rollout>,
    /// When it was first deployed.
    pub created: Time,
}

/// An Instance and how it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceView {
    /// Its ordinal.
    pub instance: Ordinal,
    /// Its address.
    pub ip: Option<String>,
    /// What it runs.
    pub revision: Option<Revision>,
    /// In one word: `pending`, `preparing`, `starting`, `ready`, `unready`, `draining`,
    /// `stopping`, `exited`, `crashed`.
    pub state: String,
    /// The Container that runs.
    pub container: Option<ContainerId>,
    /// Since when that Container runs.
    pub since: Option<Time>,
    /// What its probes say.
    pub health: Option<Health>,
    /// Whether it gets requests.
    pub traffic: Option<TrafficState>,
    /// Restarts after crashes.
    pub crashes: u32,
    /// How its last Container ended, when it ended by itself.
    pub last_exit: Option<Exit>,
    /// What last went wrong.
    pub trouble: Option<UserError>,
    /// Where new connections to its address go.
    #[serde(default)]
    pub slot: Slot,
    /// Everything that runs or stands by in it, sidecars included.
    #[serde(default)]
    pub containers: Vec<ContainerView>,
    /// The step it is in, while something changes.
    #[serde(default)]
    pub doing: Option<Doing>,
}

/// A Container of an Instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContainerView {
    /// Its id: another one means another start.
    pub id: ContainerId,
    /// What it is to the Instance.
    pub part: Part,
    /// Where it is.
    pub slot: Slot,
    /// What it runs.
    pub revision: Revision,
    /// In one word, as for an Instance; `frozen` besides.
    pub state: String,
    /// Since when it is so; of one that runs: when it was started.
    pub since: Option<Time>,
    /// Whether it gets requests.
    pub traffic: TrafficState,
}

/// A Release in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReleaseView {
    /// The Release.
    #[serde(flatten)]
    pub release: Release,
    /// Whether Instances run it now.
    pub current: bool,
}

/// One bar of a waterfall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bar {
    /// The Instance; `None` for a phase of the whole Rollout.
    pub instance: Option<Ordinal>,
    /// The phase.
    pub phase: PhaseName,
    /// When it began, after the Rollout's start.
    pub offset: Micros,
    /// How long it took.
    pub took: Micros,
    /// It is on the longest chain, which decided the end.
    #[serde(default)]
    pub critical: bool,
}

/// Where a Rollout's time went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Waterfall {
    /// The Rollout.
    pub rollout: Rollout,
    /// Its phases, by beginning.
    pub bars: Vec<Bar>,
    /// From the request to the end of the Rollout; `None` while it goes on.
    pub total: Option<Micros>,
    /// The same of the Rollout to the Release before it, for comparison.
    pub before: Option<Micros>,
    /// How long each phase took in that one, over all Instances.
    #[serde(default)]
    pub before_phases: BTreeMap<PhaseName, Micros>,
}

/// What became of an App's requests under one Release.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Ledger {
    /// Requests that arrived.
    pub received: u64,
    /// Answered to the end.
    pub completed: u64,
    /// Given up by the client.
    pub client_aborted: u64,
    /// Failed, by reason.
    pub failed: BTreeMap<String, u64>,
    /// Under way.
    pub in_flight: u64,
    /// Of those received, how many had to wait for a ready Instance.
    pub parked: u64,
}

impl Ledger {
    /// Requests that failed, whatever the reason.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Whether every request is accounted for.
    pub fn balances(&self) -> bool {
        self.received == self.completed + self.client_aborted + self.failures() + self.in_flight
    }
}

/// A Release's ledger in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LedgerView {
    /// The Release.
    pub release: ReleaseNo,
    /// Its ledger.
    #[serde(flatten)]
    pub ledger: Ledger,
}

/// One item of a Rollout's progress stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// The Rollout as it is now.
    pub rollout: Rollout,
    /// Of the App, as it was looked at.
    #[serde(default)]
    pub generation: Generation,
    /// Why it is where it is.
    pub why: String,
    /// A person stopped the App: it goes on once it is started again.
    #[serde(default)]
    pub stopped: bool,
    /// Wanted Instances.
    pub instances: u32,
    /// Instances that run the new Revision and take traffic.
    pub done: u32,
    /// How far the image is, while it is fetched.
    pub pull: Option<crate::engine::PullProgress>,
    /// Where each Instance is.
    pub states: Vec<InstanceView>,
}

/// Asks for an image to be fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// The image's reference.
    pub reference: String,
}

/// An image was fetched or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pulled {
    /// Its digest.
    pub digest: Digest,
}

/// Asks for images to be removed that nothing needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PruneRequest {
    /// Only those that were not used for so long.
    pub older_than: Option<Span>,
}

/// What pruning freed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// Bytes.
    pub freed: u64,
}

/// Asks for a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What it is for.
    pub name: String,
    /// What it permits.
    pub role: Role,
    /// The Namespace it is limited to; all if none is named.
    #[serde(default)]
    pub namespace: Option<crate::name::NamespaceName>,
    /// How long it is valid, in seconds.
    pub ttl_secs: u64,
}

/// What a token permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look.
    Viewer,
    /// Look, deploy, change, enter.
    Deployer,
    /// Everything, tokens included.
    Admin,
}

/// A token. The secret is shown once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Its id.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// What it permits.
    pub role: Role,
    /// The Namespace it is limited to.
    pub namespace: Option<crate::name::NamespaceName>,
    /// When it ends.
    pub expires: Time,
    /// The secret; only in the answer to its creation.
    pub secret: Option<String>,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// Version of `serve`.
    pub version: String,
    /// Versions of the gateways that are connected.
    pub gateways: Vec<String>,
}

/// An error as RFC 9457 `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemJson {
    /// The code's page.
    pub r#type: String,
    /// The HTTP status.
    pub status: u16,
    /// The code's text.
    pub title: String,
    /// What happened.
    pub detail: String,
    /// The error itself, with its hint.
    pub error: UserError,
    /// For a manifest: everything wrong with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<serde_json::Value>,
}
