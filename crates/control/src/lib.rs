//! stead's control plane: the store, the reconciler, the publisher of routes, the ledger, the
//! event log and the API.
//!
//! `core` decides; this crate commits what was decided and has it done: by an engine, which
//! is given, and by gateways, which connect. It may be killed at any moment: what runs goes
//! on, and the next start continues from what was committed.

#[allow(unused_qualifications, reason = "utoipa's macros write parameters with their whole path")]
mod api;
mod auth;
mod bases;
mod clock;
mod control;
mod events;
mod figures;
mod ledger;
mod needed;
mod reconcile;
mod record;
mod registries;
mod secrets;
mod store;
mod traffic;

pub use auth::BootstrapError;
pub use control::{Config, Control, ControlError};
pub use store::{Damaged, Kind, StoreError};
