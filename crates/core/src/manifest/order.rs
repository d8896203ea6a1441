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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn turns(order: Order, priority: &[(u32, i32)], instances: u32) -> Vec<u32> {
        let priority: BTreeMap<_, _> = priority.iter().map(|(n, w)| (Ordinal(*n), *w)).collect();
        let all: Vec<_> = (0..instances).map(Ordinal).collect();
        let turns = Rollout { order, priority, ..Rollout::default() }.order(&all);
        turns.into_iter().map(|ordinal| ordinal.0).collect()
    }

    #[test]
    fn priority_goes_before_order() {
        assert_eq!(turns(Order::Descending, &[], 4), [3, 2, 1, 0]);
        assert_eq!(turns(Order::Ascending, &[], 4), [0, 1, 2, 3]);
        assert_eq!(turns(Order::Scatter, &[], 9), [2, 5, 8, 1, 4, 7, 0, 3, 6]);
        assert_eq!(turns(Order::Descending, &[(1, 10), (2, 10), (3, -1)], 5), [2, 1, 4, 0, 3]);
        assert_eq!(turns(Order::Scatter, &[(0, 1), (7, 1)], 9), [7, 0, 2, 5, 8, 1, 4, 3, 6]);
    }

    fn some_order() -> impl Strategy<Value = Order> {
        prop::sample::select(vec![Order::Descending, Order::Ascending, Order::Scatter])
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_has_its_turn_by_priority(
            order in some_order(),
            priority in prop::collection::btree_map(0_u32..60, -3_i32..3, 0..20),
            ordinals in prop::collection::vec(0_u32..60, 0..40),
        ) {
            let priority = priority.into_iter().map(|(n, w)| (Ordinal(n), w)).collect();
            let rollout = Rollout { order, priority, ..Rollout::default() };
            let given: Vec<_> = ordinals.into_iter().map(Ordinal).collect();
            let turns = rollout.order(&given);
            let sorted = |list: &[Ordinal]| { let mut list = list.to_vec(); list.sort(); list };
            prop_assert_eq!(sorted(&turns), sorted(&given));
            let weight = |n: &Ordinal| rollout.priority.get(n).copied().unwrap_or(0);
            prop_assert!(turns.is_sorted_by(|a, b| weight(a) >= weight(b)));
            for same in turns.chunk_by(|a, b| weight(a) == weight(b)) {
                match order {
                    Order::Descending => prop_assert!(same.is_sorted_by(|a, b| a >= b)),
                    Order::Ascending => prop_assert!(same.is_sorted()),
                    Order::Scatter => {}
                }
            }
            let mut reversed = given.clone();
            reversed.reverse();
            prop_assert_eq!(rollout.order(&reversed), turns, "who is asked for first means nothing");
        }

        #[test]
        fn scattered_turns_keep_neighbours_apart(instances in 4_u32..=1000) {
            let turns = turns(Order::Scatter, &[], instances);
            for pair in turns.windows(2) {
                prop_assert!(pair[0].abs_diff(pair[1]) >= 2, "{pair:?} of {instances}");
            }
            // Wherever a rollout stops, each quarter of the Instances has its share, give or
            // take one for each stride.
            let quarter = |n: u32| (n * 4 / instances) as usize;
            for stop in 0..turns.len() {
                let mut through = [0_i64; 4];
                turns[..stop].iter().for_each(|n| through[quarter(*n)] += 1);
                let spread = through.iter().max().unwrap() - through.iter().min().unwrap();
                let stride = i64::from(instances.isqrt());
                prop_assert!(spread <= stride, "{through:?} of {instances} after {stop}");
            }
        }
    }
}
