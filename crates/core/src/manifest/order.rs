//! Whose turn it is: in which order the Instances of an App change.

use super::choice::Order;
use super::rollout::Rollout;
use crate::ids::Ordinal;

impl Rollout {
    /// `ordinals` in the order in which they change: by priority, the highest first, and
    /// among equals as [`Order`] says. Each appears as often as it was given.
    pub fn order(&self, ordinals: &[Ordinal]) -> Vec<Ordinal> {
        let mut sorted = ordinals.to_vec();
        sorted.sort_unstable();
        let mut turns = match self.order {
            Order::Ascending => sorted,
            Order::Descending => sorted.into_iter().rev().collect(),
            Order::Scatter => scattered(&sorted),
        };
        // Stable: equals keep their turn.
        let weight = |ordinal: &Ordinal| self.priority.get(ordinal).copied().unwrap_or(0);
        turns.sort_by_key(|ordinal| std::cmp::Reverse(weight(ordinal)));
        turns
    }
}

/// Every k-th, then every k-th beginning one earlier, and so on, with k near the square root
/// of their number: those that follow each other are far apart, and every stretch of turns
/// is spread over all. From four on, no two neighbours follow each other.
fn scattered(sorted: &[Ordinal]) -> Vec<Ordinal> {
    let stride = sorted.len().isqrt().max(1);
    (0..stride).rev().flat_map(|start| sorted.iter().copied().skip(start).step_by(stride)).collect()
}
