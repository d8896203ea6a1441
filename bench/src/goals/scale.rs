//! Goal 10: one instance is there; ninety-nine more are asked for; until the last one answers.

use std::thread;

use anyhow::anyhow;

use crate::answer::{timed, wait_for};
use crate::contest::{Better, Contestant, Outcome, interleave_cold};
use crate::goals::loopback;
use crate::peers::{Job, Podman, Runtime};
use crate::platform::{App, Platform};
use crate::workshop::Workshop;

const NAME: &str = "stead-bench-scale";
/// Instances added.
const MORE: u16 = 99;

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let mut contestants = Vec::new();
    if workshop.wants("stead") {
        let platform = workshop.platform()?;
        contestants.push(Contestant::new("stead", move || stead(&platform)));
    }
    if workshop.wants("crun") {
        let runtime = workshop.runtime("crun")?;
        contestants.push(Contestant::new("crun, 2 at a time", move || crun(&runtime)));
    }
    if workshop.wants("podman") {
        let podman = workshop.podman()?;
        contestants.push(Contestant::new("podman, one by one", move || podman_loop(&podman)));
    }
    Ok(vec![Outcome {
        title: "Goal 10: 1 to 100 instances, all serving".to_owned(),
        goal: "10x podman, 4x crun",
        unit: "ms",
        better: Better::Less,
        rows: interleave_cold(contestants, rounds),
        notes: vec![
            "crun's containers share the host's network; stead's and podman's have their own."
                .to_owned(),
        ],
    }])
}

fn stead(platform: &Platform) -> anyhow::Result<f64> {
    platform.deploy(App::new("scale", "in-place"), "1")?;
    platform.settled("scale", 1)?;
    let took = timed(|| {
        platform.scale("scale", u32::from(MORE) + 1)?;
        platform.settled("scale", u64::from(MORE) + 1)?;
        for address in platform.instances("scale")? {
            wait_for(address, "bench", "1")?;
        }
        Ok(())
    })?;
    platform.delete("scale")?;
    Ok(took)
}

fn crun(runtime: &Runtime) -> anyhow::Result<f64> {
    let mut jobs = Vec::new();
    for number in 0..MORE {
        let (id, port) = (format!("{NAME}-{number}"), 22_000 + number);
        let env = ["VERSION=1".to_owned(), format!("PORT={port}")];
        let bundle = runtime.bundle(Job { id: &id, env: &env, own_network: false })?;
        jobs.push((id, bundle, loopback(port)));
    }
    let took = timed(|| {
        thread::scope(|scope| {
            let halves = jobs.chunks(jobs.len().div_ceil(2));
            let workers: Vec<_> = halves
                .map(|half| {
                    scope.spawn(|| {
                        half.iter().try_for_each(|(id, bundle, _)| runtime.start(id, bundle))
                    })
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
        })?;
        jobs.iter().try_for_each(|(_, _, address)| wait_for(*address, "bench", "1").map(drop))
    });
    for (id, _, _) in &jobs {
        // Those that were not started cannot be stopped; the first error above says it all.
        let _ = runtime.stop(id);
    }
    took
}

fn podman_loop(podman: &Podman) -> anyhow::Result<f64> {
    let took = timed(|| {
        for number in 0..MORE {
            podman.run(&format!("{NAME}-{number}"), "1", loopback(23_000 + number))?;
        }
        (0..MORE).try_for_each(|number| wait_for(loopback(23_000 + number), "bench", "1").map(drop))
    });
    podman.remove_all();
    took
}
