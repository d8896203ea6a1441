//! Contestants measured in turns, and what came out.

/// Somebody who can do the thing measured.
pub(crate) struct Contestant<'a> {
    name: String,
    before: Box<dyn FnMut() -> anyhow::Result<()> + 'a>,
    measure: Box<dyn FnMut() -> anyhow::Result<f64> + 'a>,
}

impl<'a> Contestant<'a> {
    /// One turn of a contestant is one call of `measure`, which gives one figure.
    pub(crate) fn new(
        name: impl Into<String>,
        measure: impl FnMut() -> anyhow::Result<f64> + 'a,
    ) -> Self {
        Self { name: name.into(), before: Box::new(|| Ok(())), measure: Box::new(measure) }
    }

    /// Does this before each turn, off the clock.
    pub(crate) fn before(&mut self, before: impl FnMut() -> anyhow::Result<()> + 'a) {
        self.before = Box::new(before);
    }
}

/// Which figures are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// Times, failures, memory.
    Less,
    /// Rates.
    More,
}

/// The figures of one contestant, sorted.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) sorted: Vec<f64>,
    /// Why it was not measured to the end.
    pub(crate) trouble: Option<String>,
}

impl Row {
    /// The figures of one contestant.
    pub(crate) fn new(name: impl Into<String>, mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        Self { name: name.into(), sorted: figures, trouble: None }
    }

    /// The nearest-rank percentile; `None` without figures.
    pub(crate) fn percentile(&self, share: f64) -> Option<f64> {
        let rank = (share * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.saturating_sub(1)).copied()
    }
}

/// What a goal came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What was measured.
    pub(crate) title: String,
    /// The goal, as `performance.md` states it.
    pub(crate) goal: &'static str,
    /// Of the figures.
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) rows: Vec<Row>,
    /// What a reader must know to read the figures rightly.
    pub(crate) notes: Vec<String>,
}

impl Outcome {
    /// How much better than `row` the best of stead's rows is, by the median: 2 means twice as
    /// good. `None` when either has no figures or none above zero, or for stead itself.
    pub(crate) fn advantage_over(&self, row: &Row) -> Option<f64> {
        if row.name.starts_with("stead") {
            return None;
        }
        let ours = self.rows.iter().filter(|row| row.name.starts_with("stead"));
        let ours = ours.filter_map(|row| row.percentile(0.5));
        let theirs = row.percentile(0.5).filter(|theirs| *theirs > 0.0)?;
        match self.better {
            Better::Less => {
                let best = ours.min_by(f64::total_cmp).filter(|ours| *ours > 0.0);
                best.map(|ours| theirs / ours)
            }
            Better::More => ours.max_by(f64::total_cmp).map(|ours| ours / theirs),
        }
    }
}

/// Measures `rounds` rounds of every contestant, in turns, after one that warms caches and is not
/// counted. One who fails is measured no more.
pub(crate) fn interleave(contestants: Vec<Contestant<'_>>, rounds: usize) -> Vec<Row> {
    turns(contestants, 1, rounds)
}

/// The same for what takes so long that nothing has to be warmed.
pub(crate) fn interleave_cold(contestants: Vec<Contestant<'_>>, rounds: usize) -> Vec<Row> {
    turns(contestants, 0, rounds)
}

fn turns(mut contestants: Vec<Contestant<'_>>, warm: usize, rounds: usize) -> Vec<Row> {
    let mut figures: Vec<(Vec<f64>, Option<String>)> =
        contestants.iter().map(|_| (Vec::new(), None)).collect();
    for round in 0..warm + rounds {
        for (contestant, (figures, trouble)) in contestants.iter_mut().zip(&mut figures) {
            if trouble.is_some() {
                continue;
            }
            match (contestant.before)().and_then(|()| (contestant.measure)()) {
                Ok(_) if round < warm => {}
                Ok(figure) => figures.push(figure),
                Err(error) => *trouble = Some(format!("{error:#}")),
            }
        }
    }
    contestants
        .into_iter()
        .zip(figures)
        .map(|(contestant, (figures, trouble))| Row {
            trouble,
            ..Row::new(contestant.name, figures)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn turns_alternate_and_the_first_round_is_not_counted() {
        let order = RefCell::new(String::new());
        let turn = |name: &'static str, figure: f64| {
            Contestant::new(name, {
                let order = &order;
                move || {
                    order.borrow_mut().push_str(name);
                    Ok(figure)
                }
            })
        };
        let mut broken = 0;
        let fails = Contestant::new("c", || {
            broken += 1;
            anyhow::ensure!(broken < 2, "broken");
            Ok(0.0)
        });
        let rows = interleave(vec![turn("a", 1.0), turn("b", 2.0), fails], 2);
        assert_eq!(*order.borrow(), "ababab");
        assert_eq!(rows[0].sorted, [1.0, 1.0]);
        assert_eq!(rows[2].sorted, [] as [f64; 0]);
        assert_eq!(rows[2].trouble.as_deref(), Some("broken"));
    }

    #[test]
    fn the_advantage_is_of_our_best() {
        let outcome = |better| Outcome {
            title: String::new(),
            goal: "",
            unit: "ms",
            better,
            rows: vec![
                Row::new("stead, pooled", vec![2.0]),
                Row::new("stead, unpooled", vec![4.0]),
                Row::new("podman", vec![40.0]),
            ],
            notes: vec![],
        };
        let less = outcome(Better::Less);
        assert_eq!(less.advantage_over(&less.rows[2]), Some(20.0));
        assert_eq!(less.advantage_over(&less.rows[0]), None);
        let more = outcome(Better::More);
        assert_eq!(more.advantage_over(&more.rows[2]), Some(0.1));
    }
}
