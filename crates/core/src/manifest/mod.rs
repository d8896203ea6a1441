//! The manifest: the text a person writes for an App, and its typed form.
//!
//! [`parse`] promises that all mistakes of a text are reported at once, each with its line,
//! and that a [`Manifest`] it returns has every default filled in and can be run. The same
//! type travels over the API as JSON and is kept in each Release as its settings.
//!
//! It knows nothing of files, images or the machine: whether the source exists, or which
//! port an image exposes, is found out by others.

mod batches;
mod check;
mod choice;
mod diff;
mod fields;
mod health;
mod hooks;
mod matching;
mod order;
mod problem;
mod quantity;
mod read;
mod rollout;
mod runtime;
mod schema;
mod sidecar;
mod signal;
mod site;
mod suggest;
mod text;
mod unbuilt;
mod yaml;

#[cfg(test)]
mod tests;

pub use batches::{Batch, Batches};
pub use choice::{Isolation, JvmArchive, JvmThreads, Order, Protocol, RestartPolicy, Strategy};
pub use diff::{Effect, FieldChange, diff, effect_on, strongest};
pub use fields::{FileSource, Http, Jvm, Lifecycle, Manifest, Park, PreStop, Resources, Volume};
pub use health::{Check, Health, Probe, Startup};
pub use hooks::{Hook, HookRun, Hooks};
pub use matching::Match;
pub use problem::{BadValue, Position, Problem, Problems};
pub use quantity::{Amount, Cpu, Memory, Pause, Span};
pub use read::parse;
pub use rollout::{Analysis, Rollout};
pub use runtime::Runtime;
pub use schema::schema;
pub use sidecar::{Sidecar, SidecarVolume};
pub use signal::StopSignal;
pub use site::{Site, SiteCache};
pub use text::{
    AbsPath, CookieName, EnvName, HeaderName, HostName, HttpPath, ParameterName, Port, SidecarName,
    SitePath, UserSpec, VolumeName,
};
