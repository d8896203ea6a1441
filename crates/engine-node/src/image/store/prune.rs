//! Removing what nobody needs.
//!
//! Promises: what a record, a pin or a holder of an [`Image`](super::Image) needs stays, and
//! so does everything whose name the store would not give. Does not know who uses images.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stead_core::ids::Digest;

use super::super::error::ImageError;
use super::Inner;

/// What pruning removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Images removed.
    pub images: Vec<Digest>,
    /// Layers removed.
    pub layers: usize,
    /// Bytes of files removed, where known.
    pub bytes: u64,
}

impl Inner {
    pub(super) fn prune(&self, in_use: &HashSet<Digest>) -> Result<Pruned, ImageError> {
        let failed = || ImageError::io("image store cannot be pruned");
        let scratch = self.scratch().map_err(failed())?;
        let mut pruned = Pruned::default();
        let mut state = self.state();
        let unused: Vec<Digest> = state
            .images
            .iter()
            .filter(|(digest, (_, image))| {
                !in_use.contains(digest)
                    && Arc::strong_count(image) == 1
                    && !state.pins.contains_key(*digest)
            })
            .map(|(digest, _)| digest.clone())
            .collect();
        for digest in unused {
            fs::remove_file(self.record_path(&digest)).map_err(failed())?;
            state.images.remove(&digest);
            pruned.images.push(digest);
        }
        let records = || state.images.values().map(|(record, _)| record);
        let pins = || state.pins.keys();
        let layers: HashSet<String> = records()
            .flat_map(|record| record.layers.iter().map(|layer| &layer.diff_id))
            .chain(pins())
            .map(|digest| digest.hex().to_owned())
            .collect();
        let blobs: HashSet<String> = records()
            .flat_map(|record| &record.blobs)
            .chain(pins())
            .map(|digest| digest.hex().to_owned())
            .collect();
        for (digest, path) in digests_in(&self.root.join("layers")).map_err(failed())? {
            if !layers.contains(digest.hex()) {
                // Out of sight at once; deleting takes long and needs no lock.
                fs::rename(&path, scratch.path().join(digest.hex())).map_err(failed())?;
                pruned.layers += 1;
                pruned.bytes += state.layers.remove(&digest).map_or(0, |summary| summary.bytes);
            }
        }
        for (digest, path) in digests_in(&self.root.join("blobs/sha256")).map_err(failed())? {
            if !blobs.contains(digest.hex()) {
                fs::remove_file(path).map_err(failed())?;
            }
        }
        drop(state);
        drop(scratch);
        Ok(pruned)
    }
}

/// What in `folder` is named by a digest's hex digits. The rest is not the store's.
fn digests_in(folder: &Path) -> io::Result<Vec<(Digest, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(Ok(digest)) = name.to_str().map(|name| format!("sha256:{name}").parse()) {
            found.push((digest, entry.path()));
        }
    }
    Ok(found)
}
