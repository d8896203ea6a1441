//! stead's nouns, pure decisions and traits.
//!
//! Everything here decides from its arguments alone: no clock, file, socket, thread or
//! randomness. The other crates do what this one decided.

pub mod analysis;
pub mod api;
pub mod app;
pub mod engine;
pub mod error;
pub mod event;
pub mod fleet;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod ids;
pub mod invariants;
pub mod manifest;
pub mod name;
pub mod registry;
pub mod rollout;
pub mod routes;
pub mod secret;
pub mod time;
