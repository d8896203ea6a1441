//! Fleets and what is seen of them, generated: every world that can occur, and settled ones.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use stead_core::error::{Code, UserError};
use stead_core::fleet::{
    ContainerSeen, ContainerState, Exit, Fleet, FleetSeen, Health, ImageSeen, InstanceSeen,
    ReleaseSpec, Revision, SandboxSeen, TrafficState, Trouble,
};
use stead_core::ids::{ContainerId, Digest, Generation, Ordinal, ReleaseNo, SandboxId};
use stead_core::manifest::{Amount, Manifest, Span, Strategy as Change, Volume};
use stead_core::name::AppKey;
use stead_core::time::Time;

/// The moment of every generated world. Late enough that back-offs can have passed.
pub const NOW: Time = Time(1_000_000_000);
const RELEASES: u32 = 3;

pub fn key() -> AppKey {
    "default/web".parse().expect("a key")
}

pub fn manifest() -> Manifest {
    Manifest::minimal("web".parse().expect("a name"), "sim/web:1")
}

pub fn digest(release: u32) -> Digest {
    Digest::from_sha256([release as u8; 32])
}

pub fn spec(release: u32, change: impl FnOnce(&mut Manifest)) -> ReleaseSpec {
    let mut settings = manifest();
    change(&mut settings);
    let reference = format!("sim/web:{release}");
    ReleaseSpec { image: digest(release), reference, settings: Arc::new(settings) }
}

pub fn revision(release: u32, run: u32) -> Revision {
    Revision { release: ReleaseNo(release), run }
}

pub fn volume() -> Volume {
    Volume {
        name: "data".parse().expect("a name"),
        mount: "/data".parse().expect("a path"),
        shared: false,
    }
}

/// A Fleet of `instances` that runs Release 1 of `releases`, each as `change` has it.
pub fn simple_fleet(instances: u32, target: Revision, change: impl Fn(&mut Manifest)) -> Fleet {
    Fleet {
        app: key(),
        generation: Generation(5),
        instances,
        target: Some(target),
        reruns: BTreeMap::new(),
        releases: (1..=RELEASES).map(|n| (ReleaseNo(n), spec(n, &change))).collect(),
    }
}

pub fn sandbox(fleet: &Fleet, made_for: Revision) -> SandboxSeen {
    SandboxSeen {
        id: SandboxId("sb".into()),
        ip: [10, 0, 0, 1].into(),
        shape: fleet.releases[&made_for.release].shape(),
        made_for,
        created: Time(1),
    }
}

pub fn container(
    id: &str,
    revision: Revision,
    state: ContainerState,
    traffic: TrafficState,
) -> ContainerSeen {
    ContainerSeen { id: ContainerId(id.into()), revision, state, traffic }
}

pub fn running(health: Health) -> ContainerState {
    ContainerState::Running { since: NOW, health }
}

pub fn serving(id: &str, revision: Revision) -> ContainerSeen {
    container(id, revision, running(Health::Ready), TrafficState::Attached)
}

/// The world in which `fleet` is reached.
pub fn settled(fleet: &Fleet) -> FleetSeen {
    let images = fleet.releases.values().map(|spec| (spec.image.clone(), ImageSeen::Present));
    let instance = |n| {
        let revision = fleet.wanted(Ordinal(n))?;
        let seen = InstanceSeen {
            sandbox: Some(sandbox(fleet, revision)),
            containers: vec![serving(&format!("c-{n}"), revision)],
            ..InstanceSeen::default()
        };
        Some((Ordinal(n), seen))
    };
    FleetSeen {
        generation: fleet.generation,
        images: images.collect(),
        instances: (0..fleet.instances).filter_map(instance).collect(),
    }
}

fn some_revision() -> impl Strategy<Value = Revision> {
    (1..=RELEASES, 1..5u32).prop_map(|(release, run)| revision(release, run))
}

pub fn some_fleet() -> impl Strategy<Value = Fleet> {
    let settings = (
        prop_oneof![4 => Just(Change::InPlace), 1 => Just(Change::Recreate)],
        prop_oneof![(0..4u32).prop_map(Amount::Count), (0..=100u8).prop_map(Amount::Percent)],
        prop::bool::weighted(0.2),
    );
    let releases = prop::collection::vec(settings, RELEASES as usize);
    let reruns = prop::collection::btree_map((0..6u32).prop_map(Ordinal), 1..9u32, 0..3);
    let target = prop::option::weighted(0.95, some_revision());
    (0..6u32, target, reruns, releases).prop_map(|(instances, target, reruns, settings)| Fleet {
        app: key(),
        generation: Generation(5),
        // Before anything was released no Instance is wanted.
        instances: if target.is_some() { instances } else { 0 },
        target,
        reruns,
        releases: (1..)
            .zip(settings)
            .map(|(n, (strategy, max_unavailable, with_volume))| {
                let spec = spec(n, |settings| {
                    settings.rollout.strategy = Some(strategy);
                    settings.rollout.max_unavailable = max_unavailable;
                    settings.lifecycle.grace = Span::from_secs(1);
                    if with_volume {
                        settings.volumes = vec![volume()];
                    }
                });
                (ReleaseNo(n), spec)
            })
            .collect(),
    })
}

/// Where a Container that is or was running can be. Only one that was ready is attached.
fn life() -> impl Strategy<Value = (ContainerState, TrafficState)> {
    use TrafficState::{Attached, Detached, Draining};
    let any_traffic = prop::sample::select(vec![Detached, Attached, Draining]);
    let was_ready = prop::sample::select(vec![Health::Ready, Health::Unready, Health::Dead]);
    let since = (0..=NOW.0).prop_map(Time);
    let out = prop::sample::select(vec![Detached, Draining]);
    let exit = |intended| {
        move |at| ContainerState::Exited(Exit { at, code: 1, oom_killed: false, intended })
    };
    prop_oneof![
        4 => (since.clone(), was_ready, any_traffic.clone())
            .prop_map(|(since, health, traffic)| (ContainerState::Running { since, health }, traffic)),
        2 => since.clone().prop_map(|since| {
            (ContainerState::Running { since, health: Health::Starting }, Detached)
        }),
        1 => since.clone().prop_map(|since| (ContainerState::Stopping { since }, Detached)),
        1 => (since.clone().prop_map(exit(false)), any_traffic),
        1 => (since.prop_map(exit(true)), out),
    ]
}

/// An Instance in any state that can occur: at most one Container is alive.
fn some_instance(fleet: Fleet) -> impl Strategy<Value = InstanceSeen> {
    let prepared = prop::collection::vec(some_revision(), 0..2);
    let lived = prop::option::weighted(0.8, (some_revision(), life()));
    let trouble = prop::option::weighted(0.3, (some_revision(), 0..=NOW.0, 1..8u32));
    let wanted = fleet.wanted(Ordinal(0));
    let made_for = (any::<bool>(), some_revision())
        .prop_map(move |(fits, other)| wanted.filter(|_| fits).unwrap_or(other));
    (prop::bool::weighted(0.9), made_for, prepared, lived, trouble).prop_map(
        move |(has_sandbox, made_for, prepared, lived, trouble)| {
            let mut containers = Vec::new();
            if let Some((revision, (state, traffic))) = lived {
                containers.push(container("", revision, state, traffic));
            }
            for revision in prepared {
                // The planner prepares one for each revision at the most.
                if containers.iter().all(|c: &ContainerSeen| c.revision != revision) {
                    let state = ContainerState::Prepared;
                    containers.push(container("", revision, state, TrafficState::Detached));
                }
            }
            let error = UserError::new(Code::ExitedAtOnce, "it ended", "look");
            InstanceSeen {
                sandbox: has_sandbox.then(|| sandbox(&fleet, made_for)),
                containers: if has_sandbox { containers } else { Vec::new() },
                trouble: trouble.map(|(revision, at, count)| {
                    let (at, error) = (Time(at), error.clone());
                    Trouble { revision, error, at, count }
                }),
                crashes: 0,
            }
        },
    )
}

fn some_image() -> impl Strategy<Value = Option<ImageSeen>> {
    let error = UserError::new(Code::RegistryUnavailable, "it is away", "wait");
    prop_oneof![
        6 => Just(Some(ImageSeen::Present)),
        1 => Just(None),
        1 => (0..=NOW.0, 1..5u32).prop_map(move |(at, count)| {
            Some(ImageSeen::Failed { error: error.clone(), at: Time(at), count })
        }),
    ]
}

/// A Fleet and any world that it may meet.
pub fn some_world() -> impl Strategy<Value = (Fleet, FleetSeen)> {
    some_fleet().prop_flat_map(|fleet| {
        let instances = prop::collection::btree_map(
            (0..7u32).prop_map(Ordinal),
            some_instance(fleet.clone()),
            0..7,
        );
        let images = prop::collection::vec(some_image(), RELEASES as usize);
        (Just(fleet), instances, images).prop_map(|(fleet, mut instances, images)| {
            for (ordinal, instance) in &mut instances {
                for (n, container) in instance.containers.iter_mut().enumerate() {
                    container.id = ContainerId(format!("c-{ordinal}-{n}"));
                }
            }
            let images = (1..).zip(images).filter_map(|(n, seen)| Some((digest(n), seen?)));
            let seen =
                FleetSeen { generation: fleet.generation, images: images.collect(), instances };
            (fleet, seen)
        })
    })
}
