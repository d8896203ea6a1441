//! stead's embedded engine for one Linux machine.
//!
//! [`NodeEngine`] is the engine; [`image`] and [`sandbox`] are what it stands on and can be
//! used without it. [`package`] cuts what people hand over into layers and needs no
//! engine; [`pieces`] makes a stream of what is written. What shall happen is decided in
//! `stead-core`; here it is done.

mod cgroup;
mod clock;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod hash;
pub mod image;
mod jvm;
mod logs;
mod network;
mod node;
pub mod package;
pub mod pieces;
mod probe;
pub mod sandbox;

pub use node::{NodeConfig, NodeEngine};
