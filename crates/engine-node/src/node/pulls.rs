//! How far the pulls under way are, for whoever asks.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stead_core::engine::{PullProgress, PullSeen};
use stead_core::ids::Digest;

use crate::image::{LayerStep, PlannedLayer, Progress};

/// The images being fetched, and how far each is.
#[derive(Default)]
pub(super) struct Pulls(Mutex<BTreeMap<Digest, Pull>>);

#[derive(Default)]
struct Pull {
    /// What it is pulled by; one of them, where it is pulled by several.
    reference: String,
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
        self.lock().get(image).map(Pull::progress)
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<PullSeen> {
        let seen = |(image, pull): (&Digest, &Pull)| PullSeen {
            reference: pull.reference.clone(),
            image: image.clone(),
            progress: pull.progress(),
        };
        self.lock().iter().map(seen).collect()
    }
}

impl Pull {
    fn progress(&self) -> PullProgress {
        PullProgress {
            bytes: self.layers.values().fold(0, |sum, (done, _)| sum.saturating_add(*done)),
            total: self.layers.values().fold(0, |sum, (_, total)| sum.saturating_add(*total)),
            layers_done: self.done,
            layers: u32::try_from(self.layers.len()).unwrap_or(u32::MAX),
        }
    }
}

/// Shows how far a pull is, for as long as it lives.
pub(super) struct PullWatch<'a> {
    pulls: &'a Pulls,
    image: Digest,
}

impl<'a> PullWatch<'a> {
    pub(super) fn new(pulls: &'a Pulls, image: &Digest, reference: &str) -> Self {
        let mut all = pulls.lock();
        let pull = all.entry(image.clone()).or_default();
        pull.watchers += 1;
        reference.clone_into(&mut pull.reference);
        drop(all);
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
