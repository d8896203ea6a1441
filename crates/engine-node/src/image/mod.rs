//! Images: named, fetched, checked, unpacked, kept.
//!
//! Promises: an [`Image`] is complete on disk, its layers are plain folders for overlayfs
//! with the owners the image gave them, and every byte came with the digest that named it.
//! Registries and archives are hostile input: credentials go nowhere but to their registry,
//! and nothing is written outside a layer's folder. Does not know what runs on the layers.
//!
//! A layer's way: `registry` or `import` (bytes) → `layer` (hash, decompress) → `archive`
//! (tar entries) → `unpack` (files beneath one folder) → `store` (complete, or gone).
//! What is sent in pieces (`upload`) becomes an image in `compose`; `export` and `retar` write
//! images out; `flat` makes one folder of many layers.

mod archive;
mod beneath;
mod compose;
mod config;
mod error;
mod export;
mod flat;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod import;
mod layer;
mod manifest;
mod progress;
mod pull;
mod reference;
mod registry;
mod retar;
mod scratch;
mod store;
mod tree;
mod unpack;
mod upload;
mod user;

use stead_core::ids::Digest;

use crate::hash::digest_of;

pub use compose::Made;
pub use config::ImageConfig;
pub use error::{ImageError, LayerError, NoRoom};
pub use manifest::Platform;
pub use progress::{LayerStep, PlannedLayer, Progress};
pub use reference::{BadReference, Reference};
pub use registry::{RegistryOptions, TrustedRegistry};
pub use store::{Image, ImageStore, ImageSummary, Pruned, StoreOptions};
pub(crate) use tree::Tree;
pub use unpack::Limits;
pub use user::{User, resolve_user};

/// Checks a document, called `what`, against the descriptor that named it.
fn check(what: &str, bytes: &[u8], digest: &Digest, size: u64) -> Result<(), ImageError> {
    let what = what.to_owned();
    if bytes.len() as u64 != size {
        return Err(ImageError::SizeMismatch { what, expected: size, got: bytes.len() as u64 });
    }
    match digest_of(bytes) {
        got if got == *digest => Ok(()),
        got => Err(ImageError::DigestMismatch { what, expected: digest.clone(), got }),
    }
}
