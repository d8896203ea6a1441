//! Goal 2: how many containers per second are created, run to their end and cleaned up.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::anyhow;

use crate::contest::{Better, Contestant, Outcome, interleave};
use crate::engine::Engine;
use crate::peers::{Job, Runtime};
use crate::workshop::Workshop;

/// Containers per turn and worker.
const EACH: usize = 10;

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let mut contestants = Vec::new();
    if workshop.wants("stead") {
        // A pool hides nothing here: it is empty as fast as it is filled.
        let engine = Arc::new(Engine::open("stbchurn", workshop.folder(), 4)?);
        for workers in [1, 8] {
            let engine = Arc::clone(&engine);
            contestants.push(Contestant::new(format!("stead, {workers} workers"), move || {
                let start = Instant::now();
                engine.run_many(workers, EACH)?;
                Ok((workers * EACH) as f64 / start.elapsed().as_secs_f64())
            }));
        }
    }
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
        notes: vec![
            "stead's engine is called in process; every Sandbox has a link and an address, the \
             peers' containers have an empty network namespace."
                .to_owned(),
        ],
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
