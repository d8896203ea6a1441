//! What each Instance shall run.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{Ordinal, ReleaseNo};

/// What a Container was started for: a Release, and which run of it. A restart wants the
/// same Release with a higher run, so that the planner needs no second code path.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
pub struct Revision {
    /// The Release.
    pub release: ReleaseNo,
    /// Rises with every change of the App.
    pub run: u32,
    /// The run of the last restart: a main process that was started for an earlier run is
    /// too old, even if everything it was started with is still wanted.
    #[serde(default)]
    pub since: u32,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.release, self.run)
    }
}

/// What each Instance shall run: one Revision, but for those that are named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lineup {
    /// What an Instance runs that is not named.
    pub base: Revision,
    /// Instances that run something else: restarted by themselves, or changed already by a
    /// Rollout that goes on.
    #[serde(default)]
    pub each: BTreeMap<Ordinal, Revision>,
}

impl Lineup {
    /// The same for all.
    pub fn all(base: Revision) -> Self {
        Self { base, each: BTreeMap::new() }
    }

    /// What one Instance runs.
    pub fn of(&self, ordinal: Ordinal) -> Revision {
        self.each.get(&ordinal).copied().unwrap_or(self.base)
    }

    /// Whether some of `ordinals` run another Release than others.
    pub fn is_mixed(&self, ordinals: &[Ordinal]) -> bool {
        ordinals.windows(2).any(|pair| self.of(pair[0]).release != self.of(pair[1]).release)
    }

    /// The same with `revision` for some.
    pub fn with(&self, ordinals: impl IntoIterator<Item = Ordinal>, revision: Revision) -> Self {
        let mut changed = self.clone();
        changed.each.extend(ordinals.into_iter().map(|ordinal| (ordinal, revision)));
        changed
    }

    /// Every Release that some Instance may run.
    pub fn releases(&self) -> impl Iterator<Item = ReleaseNo> {
        std::iter::once(self.base).chain(self.each.values().copied()).map(|r| r.release)
    }
}
