//! How far a pull or an import is, for whoever draws it.
//!
//! Promises: calls are cheap to make and come in order for each layer; a layer ends with
//! `Present` or `Done` unless the whole fails. Does not know terminals.

use stead_core::ids::Digest;

/// Is told how far a pull or an import is. Called from async code: must not block.
pub trait Progress: Send + Sync {
    /// The image's layers, base first. Called once, before any of them.
    fn plan(&self, _layers: &[PlannedLayer]) {}
    /// A step of one layer.
    fn layer(&self, _layer: &Digest, _step: LayerStep) {}
}

/// Nobody is told.
impl Progress for () {}

/// A layer that will be fetched, unless it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLayer {
    /// Digest of the layer as stored in the registry or archive.
    pub digest: Digest,
    /// Bytes to fetch.
    pub size: u64,
}

/// Where a layer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerStep {
    /// It was unpacked before, by this image or another.
    Present,
    /// Its bytes arrive, and are unpacked as they do.
    Fetching {
        /// Bytes arrived.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// All bytes are here; unpacking goes on.
    Unpacking,
    /// It is unpacked and was found right.
    Done,
}
