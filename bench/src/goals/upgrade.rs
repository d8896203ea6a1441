//! Goal 4: from the call that asks for another version to its first answer. One instance, the
//! image already on the node.

use std::cell::RefCell;
use std::rc::Rc;

use crate::answer::{timed, wait_for};
use crate::contest::{Better, Contestant, Outcome, interleave};
use crate::goals::{loopback, other};
use crate::peers::{Docker, Job};
use crate::platform::{Phases, Platform};
use crate::workshop::Workshop;

const NAME: &str = "stead-bench-upgrade";

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let mut contestants = Vec::new();
    let phases = Rc::new(RefCell::new(Phases::default()));
    if workshop.wants("stead") {
        contestants.push(stead(&workshop.platform()?, Rc::clone(&phases))?);
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
    Ok(vec![Outcome {
        title: "Goal 4: in-place upgrade, call to first answer of the new version".to_owned(),
        goal: "20x podman and docker, 8x runc",
        unit: "ms",
        better: Better::Less,
        rows,
        notes: vec![
            "stead: API call over the Unix socket, answers through the gateway.".to_owned(),
            "crun and runc share the host's network; podman and docker publish a port.".to_owned(),
            phases.borrow().summary(),
        ],
    }])
}

fn stead(platform: &Platform, phases: Rc<RefCell<Phases>>) -> anyhow::Result<Contestant<'static>> {
    let platform = platform.clone();
    let host = Platform::host("upgrade");
    platform.deploy("upgrade", "1", 1)?;
    platform.settled("upgrade", 1)?;
    wait_for(Platform::gateway(), &host, "1")?;
    let settled = platform.clone();
    let mut contestant = alternating("stead", move |version| {
        platform.deploy("upgrade", version, 1)?;
        wait_for(Platform::gateway(), &host, version).map(drop)
    });
    // The release before may still be tidying up.
    contestant.before(move || {
        settled.settled("upgrade", 1)?;
        phases.borrow_mut().collect(&settled, "upgrade")
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
    if workshop.wants("stead") {
        workshop.platform()?.delete("upgrade")?;
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
