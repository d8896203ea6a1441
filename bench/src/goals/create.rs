//! Goal 1: a hardened container is created, its program exits at once, and it is cleaned up.

use crate::answer::timed;
use crate::contest::{Better, Contestant, Outcome, interleave};
use crate::peers::Job;
use crate::workshop::Workshop;

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let env = ["EXIT_AT_ONCE=0".to_owned()];
    let mut contestants = Vec::new();
    for program in workshop.wanted(["crun", "runc"]) {
        let runtime = workshop.runtime(program)?;
        let id = format!("stead-bench-{program}-create");
        let bundle = runtime.bundle(Job { id: &id, env: &env, own_network: true })?;
        contestants.push(Contestant::new(program, move || timed(|| runtime.run(&id, &bundle))));
    }
    Ok(vec![Outcome {
        title: "Goal 1: hardened create, exit, clean".to_owned(),
        goal: "5x crun, 12x runc",
        unit: "ms",
        better: Better::Less,
        rows: interleave(contestants, rounds),
        notes: vec![
            "The peers get an empty network namespace and a bundle that is already written."
                .to_owned(),
        ],
    }])
}
