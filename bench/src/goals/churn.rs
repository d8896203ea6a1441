//! Goal 2: how many containers per second are created, run to their end and cleaned up.

use std::thread;
use std::time::Instant;

use anyhow::anyhow;

use crate::contest::{Better, Contestant, Outcome, interleave};
use crate::peers::{Job, Runtime};
use crate::workshop::Workshop;

/// Containers per turn and worker.
const EACH: usize = 10;

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let mut contestants = Vec::new();
    for program in workshop.wanted(["crun", "runc"]) {
        let runtime = workshop.runtime(program)?;
        for workers in [1, 8] {
            let runtime = runtime.clone();
            contestants.push(Contestant::new(format!("{program}, {workers} workers"), move || {
                churn(&runtime, program, workers)
            }));
        }
    }
    Ok(vec![Outcome {
        title: "Goal 2: containers per second".to_owned(),
        goal: "4x crun",
        unit: "per second",
        better: Better::More,
        rows: interleave(contestants, rounds),
        notes: Vec::new(),
    }])
}

fn churn(runtime: &Runtime, program: &str, workers: usize) -> anyhow::Result<f64> {
    let env = ["EXIT_AT_ONCE=0".to_owned()];
    let mut jobs = Vec::new();
    for worker in 0..workers {
        let id = format!("stead-bench-{program}-churn-{worker}");
        let bundle = runtime.bundle(Job { id: &id, env: &env, own_network: true })?;
        jobs.push((id, bundle));
    }
    let start = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = jobs
            .iter()
            .map(|(id, bundle)| scope.spawn(|| (0..EACH).try_for_each(|_| runtime.run(id, bundle))))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
    })?;
    Ok((workers * EACH) as f64 / start.elapsed().as_secs_f64())
}
