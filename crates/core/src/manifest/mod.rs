//! The manifest: the text a person writes for an App, and its typed form.
//!
//! [`parse`] promises that all mistakes of a text are reported at once, each with its line,
//! and that a [`Manifest`] it returns has every default filled in and can be run. The same
//! type travels over the API as JSON and is kept in each Release as its settings.
//!
//! It knows nothing of files, images or the machine: whether the source exists, or which
//! port an image exposes, is found out by others.

mod check;
mod choice;
mod diff;
mod fields;
mod health;
mod problem;
mod quantity;
mod read;
mod schema;
mod signal;
mod suggest;
mod text;
mod unbuilt;
mod yaml;

#[cfg(test)]
mod tests;

pub use choice::{Isolation, Protocol, RestartPolicy, Strategy};
pub use diff::{Effect, FieldChange, diff, strongest};
pub use fields::{
    FileSource, Http, Lifecycle, Manifest, Park, PreStop, Resources, Rollout, Volume,
};
pub use health::{Check, Health, Probe, Startup};
pub use problem::{BadValue, Position, Problem, Problems};
pub use quantity::{Amount, Cpu, Memory, Span};
pub use read::parse;
pub use schema::schema;
pub use signal::StopSignal;
pub use text::{AbsPath, EnvName, HostName, HttpPath, Port, UserSpec, VolumeName};
