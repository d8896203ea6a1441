//! Sandboxes: what really holds an Instance.
//!
//! A [`Host`] makes them, finds them again after a restart of `serve` and removes them; a
//! [`Sandbox`] prepares, starts, stops and enters Containers. Each Sandbox is owned by a process
//! of its own, the *holder* (crate `stead-holder`), which outlives `serve`.
//!
//! Promises: a Container that runs goes on while `serve` is down, and its exit is told when
//! `serve` is back; a Sandbox keeps its address and its volumes whatever happens to its
//! Containers; root inside is nobody outside. Does not know Apps, Releases, images or routes,
//! nor when anything should happen.

mod binary;
mod error;
mod exec;
mod frozen;
mod held;
mod host;
mod identity;
mod launch;
mod link;
mod places;
mod pool;
mod recover;
mod seccomp;
mod slots;
mod spec;
mod trash;

pub use error::{RunRefusal, SandboxError};
pub use exec::{ExecHandle, Stdio};
pub use held::Sandbox;
pub use host::{Host, HostConfig, LogPolicy, SandboxEvent};
pub(crate) use link::watch;
pub use recover::Recovered;
pub(crate) use slots::mark_of;
pub use spec::{
    ContainerSpec, ContainerView, ExecSpec, FileMount, SandboxSpec, Timings, TmpfsMount, Usage,
    ViewState, VolumeMount,
};
pub use stead_core::fleet::Slot;
pub use stead_holder::wire::{Exit, Status};

pub use crate::cgroup::{Resources, memory_available};
