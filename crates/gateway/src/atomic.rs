//! The atomics [`crate::gate`] is built on. `tests/gate_model.rs` puts loom's in their place.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
