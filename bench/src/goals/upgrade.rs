//! Goal 4: from the call that asks for another version to its first answer. One instance, the
//! image already on the node.

use crate::answer::{timed, wait_for};
use crate::contest::{Better, Contestant, Outcome, interleave};
use crate::goals::{PhasesOf, loopback, other};
use crate::peers::{Docker, Job};
use crate::platform::{App, Platform};
use crate::workshop::Workshop;

const NAME: &str = "stead-bench-upgrade";
const APPS: [(&str, App); 3] = [
    ("stead, in-place", App::new("upgrade-in-place", "in-place")),
    ("stead, handover", App::new("upgrade-handover", "handover")),
    ("stead, recreate", App::new("upgrade-recreate", "recreate")),
];

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let mut contestants = Vec::new();
    let mut phases = Vec::new();
    for (name, app) in APPS {
        if workshop.wants(name) {
            let of = PhasesOf::new(name);
            contestants.push(stead(&workshop.platform()?, name, app, of.clone())?);
            phases.push(of);
        }
    }
    for program in workshop.wanted(["crun", "runc"]) {
        contestants.push(low_level(workshop, program)?);
    }
    if workshop.wants("podman") {
        let podman = workshop.podman()?;
        let address = loopback(20_000);
        podman.run(NAME, "1", address)?;
        contestants.push(alternating("podman", move |version| {
            podman.remove(NAME)?;
            podman.run(NAME, version, address)?;
            wait_for(address, "bench", version).map(drop)
        }));
    }
    if workshop.wants("docker") {
        workshop.docker()?;
        let address = loopback(20_001);
        Docker::run(NAME, "1", address)?;
        contestants.push(alternating("docker", move |version| {
            Docker::remove(NAME)?;
            Docker::run(NAME, version, address)?;
            wait_for(address, "bench", version).map(drop)
        }));
    }
    let rows = interleave(contestants, rounds);
    clean(workshop)?;
    let mut notes = vec![
        "stead: API call over the Unix socket, answers through the gateway.".to_owned(),
        "crun and runc share the host's network; podman and docker publish a port.".to_owned(),
    ];
    notes.extend(phases.iter().map(PhasesOf::summary));
    Ok(vec![Outcome {
        title: "Goal 4: upgrade, call to first answer of the new version".to_owned(),
        goal: "20x podman and docker, 8x runc",
        unit: "ms",
        better: Better::Less,
        rows,
        notes,
    }])
}

fn stead(
    platform: &Platform,
    name: &'static str,
    app: App,
    phases: PhasesOf,
) -> anyhow::Result<Contestant<'static>> {
    let platform = platform.clone();
    let host = Platform::host(app.name);
    platform.deploy(app, "1")?;
    platform.settled(app.name, 1)?;
    wait_for(Platform::gateway(), &host, "1")?;
    let settled = platform.clone();
    let mut contestant = alternating(name, move |version| {
        platform.deploy(app, version)?;
        wait_for(Platform::gateway(), &host, version).map(drop)
    });
    // The release before may still be tidying up.
    contestant.before(move || {
        settled.settled(app.name, 1)?;
        phases.collect(&settled, app.name)
    });
    Ok(contestant)
}

fn low_level(workshop: &Workshop, program: &'static str) -> anyhow::Result<Contestant<'static>> {
    let runtime = workshop.runtime(program)?;
    let port = if program == "crun" { 20_002 } else { 20_003 };
    let id = move |version: &str| format!("{NAME}-{program}-{version}");
    let mut bundles = Vec::new();
    for version in crate::workshop::VERSIONS {
        let env = [format!("VERSION={version}"), format!("PORT={port}")];
        let job = Job { id: &id(version), env: &env, own_network: false };
        bundles.push((version, runtime.bundle(job)?));
    }
    runtime.start(&id("1"), &bundles[0].1)?;
    Ok(alternating(program, move |version| {
        runtime.stop(&id(other(version)))?;
        let (_, bundle) = &bundles[usize::from(version == "2")];
        runtime.start(&id(version), bundle)?;
        wait_for(loopback(port), "bench", version).map(drop)
    }))
}

/// A contestant whose turns go to the other version each time, beginning with 2.
fn alternating(
    name: &'static str,
    mut upgrade: impl FnMut(&'static str) -> anyhow::Result<()> + 'static,
) -> Contestant<'static> {
    let mut version = "1";
    Contestant::new(name, move || {
        version = other(version);
        timed(|| upgrade(version))
    })
}

fn clean(workshop: &mut Workshop) -> anyhow::Result<()> {
    for (name, app) in APPS {
        if workshop.wants(name) {
            workshop.platform()?.delete(app.name)?;
        }
    }
    for program in workshop.wanted(["crun", "runc"]) {
        let runtime = workshop.runtime(program)?;
        for version in crate::workshop::VERSIONS {
            // Only one of them runs.
            let _ = runtime.stop(&format!("{NAME}-{program}-{version}"));
        }
    }
    if workshop.wants("podman") {
        workshop.podman()?.remove(NAME)?;
    }
    if workshop.wants("docker") {
        Docker::remove(NAME)?;
    }
    Ok(())
}
