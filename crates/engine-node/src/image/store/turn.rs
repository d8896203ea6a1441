//! Who unpacks which layer, and what must not be pruned meanwhile.
//!
//! Promises: one unpacks a layer while the others wait for it; a layer's folder appears
//! complete or not at all. Does not know how layers are unpacked.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Weak};

use stead_core::ids::Digest;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::super::error::{ImageError, LayerError};
use super::super::unpack::Summary;
use super::{Inner, Room};

/// The turn that everybody takes who works on `digest`.
pub(super) fn of(turns: &mut HashMap<Digest, Weak<Mutex<()>>>, digest: &Digest) -> Arc<Mutex<()>> {
    turns.retain(|_, turn| turn.strong_count() > 0);
    turns.get(digest).and_then(Weak::upgrade).unwrap_or_else(|| {
        let turn = Arc::default();
        turns.insert(digest.clone(), Arc::downgrade(&turn));
        turn
    })
}

/// Keeps digests from being pruned.
pub(in super::super) struct Pins {
    inner: Arc<Inner>,
    pinned: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        for digest in &self.pinned {
            if let Some(count) = state.pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(digest);
                }
            }
        }
    }
}

/// Whether a layer must be unpacked.
pub(in super::super) enum Claim {
    Present(Summary),
    Mine(Turn),
}

/// The right to unpack one layer. Others wait until it is dropped.
pub(in super::super) struct Turn {
    inner: Arc<Inner>,
    diff_id: Digest,
    _pins: Pins,
    _turn: OwnedMutexGuard<()>,
}

impl Inner {
    /// Keeps pruning away from `what` for as long as the result lives.
    pub(in super::super) fn pin(self: &Arc<Self>, what: impl IntoIterator<Item = Digest>) -> Pins {
        let pinned: Vec<_> = what.into_iter().collect();
        let mut state = self.state();
        for digest in &pinned {
            *state.pins.entry(digest.clone()).or_default() += 1;
        }
        Pins { inner: Arc::clone(self), pinned }
    }

    /// Waits for whoever unpacks this layer; then it is there, or the caller's to unpack.
    pub(in super::super) async fn claim(self: &Arc<Self>, diff_id: &Digest) -> Claim {
        let turn = {
            let mut state = self.state();
            of(&mut state.unpacking, diff_id)
        };
        let turn = turn.lock_owned().await;
        // Not in the match itself: its arms would run with the state locked.
        let present = self.state().layers.get(diff_id).cloned();
        match present {
            Some(summary) => Claim::Present(summary),
            None => Claim::Mine(Turn {
                inner: Arc::clone(self),
                diff_id: diff_id.clone(),
                _pins: self.pin([diff_id.clone()]),
                _turn: turn,
            }),
        }
    }
}

impl Turn {
    /// Runs `unpack` on an empty folder, one for rubbish, and the room it takes; the folder
    /// becomes the layer if it succeeds, and vanishes if not. Blocks.
    pub(in super::super) fn unpack(
        self,
        unpack: impl FnOnce(&Path, &Path, &mut Room) -> Result<Summary, LayerError>,
    ) -> Result<Summary, ImageError> {
        let failed = || ImageError::io("layer cannot be stored");
        let scratch = self.inner.scratch().map_err(failed())?;
        let folder = scratch.folder("layer").map_err(failed())?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).map_err(failed())?;
        let trash = scratch.folder("trash").map_err(failed())?;
        // Given back once the layer counts for itself, or is gone.
        let mut room = self.inner.room();
        let summary = unpack(&folder, &trash, &mut room)
            .map_err(|error| ImageError::layer(&self.diff_id, error))?;
        if summary.clamped > 0 {
            let (layer, entries) = (&self.diff_id, summary.clamped);
            tracing::warn!(%layer, entries, "owners above 65535 were replaced by 65534");
        }
        let path = self.inner.layer_path(&self.diff_id);
        if path.exists() {
            // Left by a process that crashed before any record named it.
            fs::rename(&path, trash.join("left")).map_err(failed())?;
        }
        fs::rename(&folder, &path).map_err(failed())?;
        self.inner.state().layers.insert(self.diff_id.clone(), summary.clone());
        Ok(summary)
    }
}
