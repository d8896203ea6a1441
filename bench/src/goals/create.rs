//! Goal 1: a hardened container is created, its program exits at once, and it is cleaned up.

use std::rc::Rc;

use crate::answer::timed;
use crate::contest::{Better, Contestant, Outcome, interleave};
use crate::engine::Engine;
use crate::peers::Job;
use crate::workshop::Workshop;

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let env = ["EXIT_AT_ONCE=0".to_owned()];
    let mut contestants = Vec::new();
    let mut engines = Vec::new();
    for (name, short, pool) in [("stead, pooled", "stbpool", 4), ("stead, unpooled", "stbnone", 0)]
    {
        if workshop.wants(name) {
            let engine = Rc::new(Engine::open(short, workshop.folder(), pool)?);
            engines.push((name, Rc::clone(&engine)));
            contestants.push(Contestant::new(name, move || {
                engine.settle();
                timed(|| engine.run_once())
            }));
        }
    }
    for program in workshop.wanted(["crun", "runc"]) {
        let runtime = workshop.runtime(program)?;
        let id = format!("stead-bench-{program}-create");
        let bundle = runtime.bundle(Job { id: &id, env: &env, own_network: true })?;
        contestants.push(Contestant::new(program, move || timed(|| runtime.run(&id, &bundle))));
    }
    let rows = interleave(contestants, rounds);
    let mut notes = vec![
        "stead's engine is called in process: its API has no call for a program that runs once. \
         It makes a Sandbox with user and network namespace, link and address; pooled, that was \
         done before."
            .to_owned(),
        "The peers get an empty network namespace and a bundle that is already written.".to_owned(),
    ];
    notes.extend(engines.iter().map(|(name, engine)| format!("{name}: {}", engine.summary())));
    Ok(vec![Outcome {
        title: "Goal 1: hardened create, exit, clean".to_owned(),
        goal: "5x crun, 12x runc",
        unit: "ms",
        better: Better::Less,
        rows,
        notes,
    }])
}
