//! Simulators: machines whose time, failures and traffic are invented.
//!
//! [`SimEngine`] is an engine for the tests of the control plane. [`run`] lets a whole
//! platform live through a [`Log`] of actions and checks the invariants after each event.
//! Both stand on the same [`Node`].

mod action;
mod chance;
mod desk;
mod engine;
mod fleets;
mod gateway;
mod node;
mod notes;
mod script;
mod shelf;
mod trouble;
mod world;

pub use action::{Action, Deployment, Failure, Log};
pub use chance::Chance;
pub use engine::{SimEngine, SimMachine};
pub use fleets::{app_key, fleet, release, release_of, settings};
pub use gateway::Counts;
pub use node::{Effect, Fault, Node, PORT, Pace, WELL_AFTER};
pub use notes::{Notes, OpenRoad};
pub use script::{Ending, HookScript, Script, digest_of, resolve, script};
pub use world::{Outcome, replay, run};
