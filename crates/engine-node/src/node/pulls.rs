//! How far the pulls under way are, for whoever asks.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stead_core::engine::PullProgress;
use stead_core::ids::Digest;

use crate::image::{LayerStep, PlannedLayer, Progress};

/// The images being fetched, and how far each is.
#[derive(Default)]
pub(super) struct Pulls(Mutex<BTreeMap<Digest, Pull>>);

#[derive(Default)]
struct Pull {
    /// Bytes of each layer that are here, and in all.
    layers: BTreeMap<Digest, (u64, u64)>,
    done: u32,
    /// Rollouts that wait for it.
    watchers: u32,
}

impl Pulls {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Pull>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the pull of an image is; `None` when none is under way.
    pub(super) fn progress(&self, image: &Digest) -> Option<PullProgress> {
        let pulls = self.lock();
        let pull = pulls.get(image)?;
        Some(PullProgress {
            bytes: pull.layers.values().map(|(done, _)| done).sum(),
            total: pull.layers.values().map(|(_, total)| total).sum(),
            layers_done: pull.done,
            layers: u32::try_from(pull.layers.len()).unwrap_or(u32::MAX),
        })
    }
}

/// Shows how far a pull is, for as long as it lives.
pub(super) struct PullWatch<'a> {
    pulls: &'a Pulls,
    image: Digest,
}

impl<'a> PullWatch<'a> {
    pub(super) fn new(pulls: &'a Pulls, image: &Digest) -> Self {
        pulls.lock().entry(image.clone()).or_default().watchers += 1;
        Self { pulls, image: image.clone() }
    }

    fn update(&self, change: impl FnOnce(&mut Pull)) {
        if let Some(pull) = self.pulls.lock().get_mut(&self.image) {
            change(pull);
        }
    }
}

impl Progress for PullWatch<'_> {
    fn plan(&self, layers: &[PlannedLayer]) {
        self.update(|pull| {
            pull.layers = layers.iter().map(|l| (l.digest.clone(), (0, l.size))).collect();
        });
    }

    fn layer(&self, layer: &Digest, step: LayerStep) {
        self.update(|pull| {
            let Some((done, total)) = pull.layers.get_mut(layer) else { return };
            match step {
                LayerStep::Fetching { done: now, .. } => *done = now,
                LayerStep::Unpacking => *done = *total,
                LayerStep::Present | LayerStep::Done => {
                    *done = *total;
                    pull.done += 1;
                }
            }
        });
    }
}

impl Drop for PullWatch<'_> {
    fn drop(&mut self) {
        let mut pulls = self.pulls.lock();
        if let Some(pull) = pulls.get_mut(&self.image) {
            pull.watchers -= 1;
            if pull.watchers == 0 {
                pulls.remove(&self.image);
            }
        }
    }
}
