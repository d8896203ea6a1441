//! Goal 7: from the call that asks for a restart to the first answer of the new process.

use std::cell::RefCell;
use std::rc::Rc;

use crate::answer::{Answer, timed, wait_for, wait_until};
use crate::contest::{Better, Contestant, Outcome, interleave};
use crate::goals::loopback;
use crate::peers::{Docker, Job};
use crate::platform::{Phases, Platform};
use crate::workshop::Workshop;

const NAME: &str = "stead-bench-restart";

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let mut contestants = Vec::new();
    let phases = Rc::new(RefCell::new(Phases::default()));
    if workshop.wants("stead") {
        let platform = workshop.platform()?;
        platform.deploy("restart", "1", 1)?;
        platform.settled("restart", 1)?;
        let settled = platform.clone();
        let mut stead = restarting("stead", Platform::gateway(), "restart", move || {
            platform.restart("restart")
        });
        // The restart before may still be tidying up.
        let phases = Rc::clone(&phases);
        stead.before(move || {
            settled.settled("restart", 1)?;
            phases.borrow_mut().collect(&settled, "restart")
        });
        contestants.push(stead);
    }
    for program in workshop.wanted(["crun", "runc"]) {
        let runtime = workshop.runtime(program)?;
        let port = if program == "crun" { 21_002 } else { 21_003 };
        let id = format!("{NAME}-{program}");
        let env = ["VERSION=1".to_owned(), format!("PORT={port}")];
        let bundle = runtime.bundle(Job { id: &id, env: &env, own_network: false })?;
        runtime.start(&id, &bundle)?;
        contestants.push(restarting(program, loopback(port), "bench", move || {
            runtime.stop(&id)?;
            runtime.start(&id, &bundle)
        }));
    }
    if workshop.wants("podman") {
        let podman = workshop.podman()?;
        let address = loopback(21_000);
        podman.run(NAME, "1", address)?;
        contestants.push(restarting("podman", address, "bench", move || podman.restart(NAME)));
    }
    if workshop.wants("docker") {
        workshop.docker()?;
        let address = loopback(21_001);
        Docker::run(NAME, "1", address)?;
        contestants.push(restarting("docker", address, "bench", || Docker::restart(NAME)));
    }
    let rows = interleave(contestants, rounds);
    clean(workshop)?;
    Ok(vec![Outcome {
        title: "Goal 7: in-place restart, call to first answer".to_owned(),
        goal: "5x crun, 20x podman",
        unit: "ms",
        better: Better::Less,
        rows,
        notes: vec![
            "crun and runc: kill, delete and run again.".to_owned(),
            phases.borrow().summary(),
        ],
    }])
}

fn restarting(
    name: &'static str,
    address: std::net::SocketAddr,
    app: &'static str,
    restart: impl Fn() -> anyhow::Result<()> + 'static,
) -> Contestant<'static> {
    let host = Platform::host(app);
    Contestant::new(name, move || {
        let Answer { started, .. } = wait_for(address, &host, "1")?;
        timed(|| {
            restart()?;
            wait_until(address, &host, |answer| answer.started != started).map(drop)
        })
    })
}

fn clean(workshop: &mut Workshop) -> anyhow::Result<()> {
    if workshop.wants("stead") {
        workshop.platform()?.delete("restart")?;
    }
    for program in workshop.wanted(["crun", "runc"]) {
        workshop.runtime(program)?.stop(&format!("{NAME}-{program}"))?;
    }
    if workshop.wants("podman") {
        workshop.podman()?.remove(NAME)?;
    }
    if workshop.wants("docker") {
        Docker::remove(NAME)?;
    }
    Ok(())
}
