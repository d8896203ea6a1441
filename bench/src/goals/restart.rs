//! Goal 7: from the call that asks for a restart to the first answer of the new process.

use crate::answer::{Answer, timed, wait_for, wait_until};
use crate::contest::{Better, Contestant, Outcome, interleave};
use crate::goals::{PhasesOf, loopback};
use crate::peers::{Docker, Job};
use crate::platform::{App, Platform};
use crate::workshop::Workshop;

const NAME: &str = "stead-bench-restart";
const APPS: [(&str, App); 3] = [
    ("stead, in-place", App::new("restart-in-place", "in-place")),
    ("stead, handover", App::new("restart-handover", "handover")),
    ("stead, recreate", App::new("restart-recreate", "recreate")),
];

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let mut contestants = Vec::new();
    let mut phases = Vec::new();
    for (name, app) in APPS {
        if !workshop.wants(name) {
            continue;
        }
        let platform = workshop.platform()?;
        platform.deploy(app, "1")?;
        platform.settled(app.name, 1)?;
        let settled = platform.clone();
        let mut stead =
            restarting(name, Platform::gateway(), app.name, move || platform.restart(app.name));
        // The restart before may still be tidying up.
        let of = PhasesOf::new(name);
        phases.push(of.clone());
        stead.before(move || {
            settled.settled(app.name, 1)?;
            of.collect(&settled, app.name)
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
    let mut notes = vec!["crun and runc: kill, delete and run again.".to_owned()];
    notes.extend(phases.iter().map(PhasesOf::summary));
    Ok(vec![Outcome {
        title: "Goal 7: restart, call to first answer".to_owned(),
        goal: "5x crun, 20x podman",
        unit: "ms",
        better: Better::Less,
        rows,
        notes,
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
    for (name, app) in APPS {
        if workshop.wants(name) {
            workshop.platform()?.delete(app.name)?;
        }
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
