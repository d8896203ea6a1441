//! Simulators: a machine whose time, failures and traffic are invented.

mod chance;
mod engine;
mod fleets;
mod node;
mod notes;
mod script;
mod trouble;

pub use chance::Chance;
pub use engine::{SimEngine, SimMachine};
pub use fleets::{app_key, fleet, release, release_of, settings};
pub use node::{Effect, Fault, Node, PORT, Pace, WELL_AFTER};
pub use notes::{Notes, OpenRoad};
pub use script::{Ending, Script, digest_of, resolve, script};
