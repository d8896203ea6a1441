//! Which images are needed, and the telling of it to the engine.
//!
//! # Guarantees
//! - An image that a Release needs which runs, comes or may come back is needed, with those of
//!   its sidecars.
//! - The image of every base is needed.
//! - As long as an App cannot be read nothing is told: what it needs is not known.
//!
//! # Assumptions
//! - The engine knows of a Fleet that it was given by itself; what is told here covers what it
//!   was not given, or not yet.

use std::collections::BTreeSet;
use std::sync::Arc;

use stead_core::app::{App, Release};
use stead_core::error::{Code, UserError};
use stead_core::ids::Digest;

use crate::bases;
use crate::reconcile::{Reconciler, SCAN};
use crate::store::{StoreError, release_key};

impl Reconciler {
    /// The images that are needed.
    pub(crate) fn images_needed(&self) -> Result<Vec<Digest>, UserError> {
        let listing = self.store.list::<App>("")?;
        if let Some(damaged) = listing.damaged.first() {
            // What a damaged App needs is not known: nothing is taken away.
            return Err(UserError::new(
                Code::StateCorrupt,
                damaged.to_string(),
                "repair or delete that app first; `stead doctor` lists damaged records",
            ));
        }
        let mut needed = BTreeSet::new();
        for stored in listing.found {
            for number in stored.value.releases_needed() {
                let key = release_key(&stored.value.key, number);
                let release = match self.store.get::<Release>(&key) {
                    // It can neither run nor come back.
                    Ok(None) | Err(StoreError::Damaged(_)) => continue,
                    found => found?.map(|stored| stored.value),
                };
                needed.extend(release.into_iter().flat_map(|release| {
                    std::iter::once(release.image).chain(release.sidecars.into_values())
                }));
            }
        }
        needed.extend(bases::all(&self.store)?.into_iter().map(|base| base.value.image));
        Ok(needed.into_iter().collect())
    }
}

/// Tells the engine which images are needed: at the start, after each Rollout, and with each
/// scan. It makes room then, if it holds more than it may.
pub(crate) async fn tell(reconciler: Arc<Reconciler>) {
    loop {
        let told = match reconciler.images_needed() {
            Ok(needed) => reconciler.engine.keep(&needed).await.map_err(Into::into),
            Err(error) => Err(crate::reconcile::PassError::Engine(error.into())),
        };
        if let Err(error) = told {
            tracing::warn!(%error, "the engine is not told which images are needed");
        }
        let _ = tokio::time::timeout(SCAN, reconciler.settled.notified()).await;
    }
}
