//! The judge on simulated traffic, whose truth is known.

use super::*;

/// Chance from a seed: xorshift64*.
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Evenly from 0 to 1.
    pub(super) fn even(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.even()).ln()).sqrt() * (self.even() * std::f64::consts::TAU).cos()
    }
}

/// How an App behaves.
#[derive(Debug, Clone, Copy)]
struct Behaviour {
    errors: f64,
    speed: Speed,
    slowed: f64,
}

#[derive(Debug, Clone, Copy)]
enum Speed {
    /// Median in milliseconds, and sigma.
    Lognormal(f64, f64),
    /// Hits of a cache, and one in five that takes twenty times that, in milliseconds.
    Bimodal(f64),
    /// Always the same, in milliseconds.
    Constant(f64),
}

fn healthy(errors: f64, speed: Speed) -> Behaviour {
    Behaviour { errors, speed, slowed: 1.0 }
}

const WEB: Speed = Speed::Lognormal(12.0, 0.7);

impl Behaviour {
    fn serve(&self, chance: &mut Chance, sample: &mut Sample) {
        let millis = self.slowed
            * match self.speed {
                Speed::Lognormal(median, sigma) => median * (sigma * chance.normal()).exp(),
                Speed::Bimodal(hit) => {
                    let miss = if chance.even() < 0.2 { 20.0 } else { 1.0 };
                    hit * miss * (0.9 + 0.2 * chance.even())
                }
                Speed::Constant(millis) => millis,
            };
        sample.latency.buckets.resize(LATENCY_BOUNDS_MICROS.len() + 1, 0);
        let micros = (millis * 1_000.0) as u64;
        sample.latency.buckets[LATENCY_BOUNDS_MICROS.partition_point(|bound| *bound < micros)] += 1;
        sample.latency.sum_micros += micros;
        sample.requests += 1;
        sample.errors += u64::from(chance.even() < self.errors);
    }

    fn sample(&self, chance: &mut Chance, requests: u64) -> Sample {
        let mut sample = Sample::default();
        (0..requests).for_each(|_| self.serve(chance, &mut sample));
        sample
    }
}

/// One Rollout on simulated traffic: `looks` reports with `per_look` requests of each Release.
struct Run {
    base: Sample,
    old: Behaviour,
    new: Behaviour,
    per_look: (u64, u64),
    looks: usize,
}

impl Run {
    /// The verdict that ended it, or the last one, and the new Release's requests then.
    fn play(&self, seed: u64) -> (Verdict, u64) {
        let mut chance = Chance::new(seed);
        let (mut old, mut new) = (Sample::default(), Sample::default());
        let mut last = None;
        for _ in 0..self.looks {
            (0..self.per_look.0).for_each(|_| self.old.serve(&mut chance, &mut old));
            (0..self.per_look.1).for_each(|_| self.new.serve(&mut chance, &mut new));
            let verdict = judge(&self.base, &old, &new, &Settings::default());
            let worse = matches!(verdict, Verdict::Worse { .. });
            last = Some((verdict, new.requests));
            if worse {
                break;
            }
        }
        last.unwrap()
    }

    /// Requests of the new Release until it was condemned: the median of 31 runs, all of which
    /// must condemn it.
    fn median(&self) -> u64 {
        let mut needed: Vec<u64> = (1..=31)
            .map(|seed| {
                let (verdict, requests) = self.play(seed);
                assert!(matches!(verdict, Verdict::Worse { .. }), "{seed}: {verdict:?}");
                requests
            })
            .collect();
        needed.sort_unstable();
        needed[15]
    }
}

/// `runs` healthy Rollouts of every kind in turn, none of which may be undone.
fn healthy_ones(runs: u64, looks: usize) {
    let speeds = [WEB, Speed::Lognormal(1.0, 1.2), Speed::Bimodal(3.0), Speed::Constant(100.0)];
    let with_base = [0, 100, 5_000];
    let mixes = [(0, 10), (1, 11), (5, 5), (11, 1)];
    let rates = [0.0, 0.001, 0.05];
    for seed in 1..=runs {
        let pick = |every: u64, of: usize| (seed / every) as usize % of;
        let (rate, mix) = (rates[pick(1, 3)], mixes[pick(3, 4)]);
        let (base, speed) = (with_base[pick(12, 3)], speeds[pick(36, 4)]);
        // Nothing is known of an App whose every twentieth request fails: that condemns it.
        let rate = if base == 0 && mix.0 == 0 { rate / 2.0 } else { rate };
        let app = healthy(rate, speed);
        let base = app.sample(&mut Chance::new(seed + 1_000_000), base);
        let run = Run { base, old: app, new: app, per_look: mix, looks };
        let (verdict, requests) = run.play(seed);
        assert!(
            !matches!(verdict, Verdict::Worse { .. }),
            "{seed}: {rate} {mix:?} {speed:?} after {requests}: {verdict:?}"
        );
    }
}

#[test]
fn a_healthy_one_is_not_undone_in_a_hundred_runs() {
    healthy_ones(100, 100);
}

#[test]
#[ignore = "two million looks take minutes; the figures are in docs/decisions/0010-analysis.md"]
fn a_healthy_one_is_not_undone_in_a_thousand_runs_of_two_thousand_looks() {
    healthy_ones(1_000, 2_000);
}

fn run(old: Behaviour, new: Behaviour, base: u64, per_look: (u64, u64)) -> Run {
    let base = old.sample(&mut Chance::new(99), base);
    Run { base, old, new, per_look, looks: 600 }
}

#[test]
fn errors_condemn_within_few_requests() {
    let (old, worse) = (healthy(0.0, WEB), healthy(0.05, WEB));
    let broken = healthy(1.0, WEB);
    for (new, base, per_look, most) in [
        (worse, 10_000, (0, 1), 150),
        (worse, 0, (11, 1), 180),
        // Side by side no test of this level can need fewer than 266 on average.
        (worse, 10_000, (5, 5), 600),
        (broken, 10_000, (0, 1), 6),
        (broken, 0, (0, 1), 8),
        (broken, 0, (1, 1), 20),
    ] {
        let needed = run(old, new, base, per_look).median();
        eprintln!("errors {} base {base} {per_look:?}: {needed}", new.errors);
        assert!(needed <= most, "{} {base} {per_look:?}: {needed}", new.errors);
    }
}

#[test]
fn slowness_condemns_within_few_requests() {
    for (speed, most) in [
        (WEB, 200),
        (Speed::Bimodal(3.0), 100),
        (Speed::Constant(20.0), 100),
        (Speed::Lognormal(300.0, 0.5), 120),
    ] {
        let old = healthy(0.001, speed);
        for per_look in [(0, 1), (11, 1)] {
            let needed = run(old, Behaviour { slowed: 3.0, ..old }, 10_000, per_look).median();
            eprintln!("3x {speed:?} {per_look:?}: {needed}");
            assert!(needed <= most, "{speed:?} {per_look:?}: {needed}");
        }
    }
}

#[test]
fn what_is_hardly_worse_is_not_undone() {
    let app = healthy(0.0001, WEB);
    let edge = healthy(0.0, Speed::Constant(99.0));
    for (old, new) in [
        (app, healthy(0.0002, WEB)),
        (app, Behaviour { slowed: 1.05, ..app }),
        (app, Behaviour { slowed: 1.4, ..app }),
        // From the end of one bucket into the next.
        (edge, Behaviour { slowed: 1.05, ..edge }),
        // Many times slower, and nobody notices.
        (healthy(0.0, Speed::Constant(0.2)), healthy(0.0, Speed::Constant(1.9))),
    ] {
        for seed in 1..=3 {
            let run = Run { looks: 100, ..run(old, new, 10_000, (50, 50)) };
            let (verdict, _) = run.play(seed);
            assert!(!matches!(verdict, Verdict::Worse { .. }), "{new:?}: {verdict:?}");
        }
    }
}

/// A hundred requests a second, reported four times a second.
#[test]
fn slow_only_in_its_first_two_seconds_is_not_undone() {
    let app = healthy(0.0, WEB);
    let cold = Behaviour { slowed: 8.0, ..app };
    let mut chance = Chance::new(3);
    let base = app.sample(&mut chance, 10_000);
    let (mut new, mut warmup) = (Sample::default(), Warmup::default());
    let mut undone_without = false;
    for look in 1..=200 {
        let warming = look <= 8;
        let now = if warming { cold } else { app };
        (0..25).for_each(|_| now.serve(&mut chance, &mut new));
        let old = Sample::default();
        let verdict = judge(&base, &old, &warmup.pass(&new, warming), &Settings::default());
        assert!(!matches!(verdict, Verdict::Worse { .. }), "{look}: {verdict:?}");
        let unforgiven = judge(&base, &old, &new, &Settings::default());
        undone_without |= matches!(unforgiven, Verdict::Worse { .. });
    }
    assert!(undone_without, "the warm-up made no difference: the test tests nothing");
}

/// With few requests a second the first two seconds hold none; the first twenty are forgiven.
#[test]
fn slow_only_in_its_first_requests_is_not_undone() {
    let app = healthy(0.0, WEB);
    let mut chance = Chance::new(4);
    let base = app.sample(&mut chance, 10_000);
    let mut new = Behaviour { slowed: 50.0, ..app }.sample(&mut chance, WARMUP_REQUESTS);
    for _ in 0..500 {
        app.serve(&mut chance, &mut new);
        let verdict = judge(&base, &Sample::default(), &new, &Settings::default());
        assert!(!matches!(verdict, Verdict::Worse { .. }), "{verdict:?}");
    }
}

#[test]
fn what_befalls_both_accuses_neither() {
    let broken = Behaviour { errors: 0.4, slowed: 10.0, ..healthy(0.0, WEB) };
    for seed in 1..=5 {
        let mut run = run(broken, broken, 0, (10, 10));
        run.base = healthy(0.0, WEB).sample(&mut Chance::new(seed), 10_000);
        let (verdict, _) = Run { looks: 100, ..run }.play(seed);
        assert!(!matches!(verdict, Verdict::Worse { .. }), "{verdict:?}");
    }
    // Also while the old one takes hardly any requests.
    let base = healthy(0.0, WEB).sample(&mut Chance::new(2), 10_000);
    let sample = |requests| Sample { requests, errors: requests * 2 / 5, ..Sample::default() };
    let verdict = judge(&base, &sample(10), &sample(500), &Settings::default());
    assert_eq!(verdict.figures().against, Against::Base);
    assert!(matches!(verdict, Verdict::Undecided { .. }), "{verdict:?}");
    // And where too little is known: it fails no more than what it replaced.
    let few = Sample { requests: 40, errors: 20, ..Sample::default() };
    let verdict = judge(&few, &Sample::default(), &few, &Settings::default());
    assert!(matches!(verdict, Verdict::Undecided { .. }), "{verdict:?}");
}

#[test]
fn a_healthy_one_becomes_fine_and_a_silent_one_stays_undecided() {
    let app = healthy(0.0, WEB);
    let mut chance = Chance::new(8);
    let base = app.sample(&mut chance, 10_000);
    let none = Sample::default();
    let settings = Settings::default();
    let verdict = judge(&base, &none, &none, &settings);
    assert!(matches!(verdict, Verdict::Undecided { .. }), "{verdict:?}");
    let verdict = judge(&base, &none, &app.sample(&mut chance, 2_000), &settings);
    assert!(matches!(verdict, Verdict::Fine { .. }), "{verdict:?}");
    // Asked to compare nothing, it has no opinion.
    let off = Settings { errors: false, latency: false, ..settings };
    let broken = healthy(1.0, WEB).sample(&mut chance, 500);
    let verdict = judge(&base, &none, &broken, &off);
    assert!(matches!(verdict, Verdict::Undecided { .. }), "{verdict:?}");
}

#[test]
fn the_old_release_is_the_measure_while_it_takes_traffic() {
    let sample = |requests| Sample { requests, ..Sample::default() };
    let against = |base, old, new| choose(&sample(base), &sample(old), &sample(new), 50);
    assert_eq!(against(900, 60, 600), Against::Old);
    assert_eq!(against(900, 60, 601), Against::Base);
    assert_eq!(against(0, 60, 60_000), Against::Old);
    assert_eq!(against(900, 1, 10), Against::Old);
    assert_eq!(against(900, 0, 0), Against::Base);
    assert_eq!(against(49, 49, 491), Against::Nothing);
}

#[test]
fn a_verdict_says_why_in_a_sentence_and_travels_as_json() {
    let app = healthy(0.0, Speed::Constant(20.0));
    let mut chance = Chance::new(6);
    let base = app.sample(&mut chance, 1_000);
    let new = Behaviour { errors: 1.0, slowed: 3.0, ..app }.sample(&mut chance, 100);
    let verdict = judge(&base, &Sample::default(), &new, &Settings::default());
    let Verdict::Worse { why, figures } = &verdict else { panic!("{verdict:?}") };
    assert_eq!(
        why,
        "The new Release does worse than the old one: 100 of its 100 requests failed (100.0 %); \
         of the old Release's before 0 of 1000 (0.0 %). Also, 100.0 % of its 80 requests took \
         longer than 31.5 ms; of the old Release's 0.0 % took longer than 20 ms."
    );
    assert_eq!(figures.against, Against::Base);
    assert_eq!(verdict.figures(), figures);
    let json = serde_json::to_string(&verdict).unwrap();
    assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict);
}

#[test]
fn greatest_counts_do_no_harm() {
    let mut huge = healthy(0.0, WEB).sample(&mut Chance::new(1), 1_000);
    huge.requests = 1 << 40;
    huge.latency.buckets.iter_mut().for_each(|count| *count <<= 40);
    for errors in [0, 1 << 39, 1 << 50] {
        let sick = Sample { errors, ..huge.clone() };
        let verdict = judge(&huge, &huge, &sick, &Settings::default());
        assert_eq!(matches!(verdict, Verdict::Worse { .. }), errors > 0, "{verdict:?}");
        let json = serde_json::to_string(&verdict).unwrap();
        assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict);
    }
}
