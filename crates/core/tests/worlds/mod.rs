//! Fleets and what is seen of them, generated: every world that can occur, and settled ones.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use stead_core::error::{Code, UserError};
use stead_core::fleet::{
    ContainerSeen, ContainerState, Exit, Fleet, FleetSeen, Health, ImageSeen, InstanceSeen, Lineup,
    MemorySeen, Part, ReleaseSpec, Revision, SandboxSeen, Slot, TrafficState, Trouble,
};
use stead_core::ids::{ContainerId, Digest, Generation, Ordinal, ReleaseNo, SandboxId};
use stead_core::manifest::{
    Amount, Hook, HookRun, Hooks, Manifest, Span, Strategy as Change, Volume,
};
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
    let image = digest(release);
    let (sidecars, secrets) = (BTreeMap::new(), BTreeMap::new());
    ReleaseSpec { image, reference, sidecars, settings: Arc::new(settings), secrets }
}

pub fn revision(release: u32, run: u32) -> Revision {
    Revision { release: ReleaseNo(release), run, since: 0 }
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
        absent: BTreeSet::new(),
        lineup: Some(Lineup::all(target)),
        heading: Some(target),
        surge: 0,
        paused: false,
        returning: false,
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
    let prepared = ContainerSeen::prepared(ContainerId(id.into()), Part::Main, Slot::A, revision);
    ContainerSeen { state, traffic, ..prepared }
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
    let instance = |ordinal| {
        let revision = fleet.wanted(ordinal)?;
        let seen = InstanceSeen {
            sandbox: Some(sandbox(fleet, revision)),
            containers: vec![serving(&format!("c-{ordinal}"), revision)],
            ..InstanceSeen::default()
        };
        Some((ordinal, seen))
    };
    FleetSeen {
        generation: fleet.generation,
        images: images.collect(),
        instances: fleet.ordinals().chain(fleet.surplus()).filter_map(instance).collect(),
        memory: None,
        jvm: None,
        site: None,
    }
}

fn some_revision() -> impl Strategy<Value = Revision> {
    (1..=RELEASES, 1..5u32, 0..3u32).prop_map(|(release, run, since)| Revision {
        since: since.min(run),
        ..revision(release, run)
    })
}

fn amount() -> impl Strategy<Value = Amount> {
    prop_oneof![(0..4u32).prop_map(Amount::Count), (0..=100u8).prop_map(Amount::Percent)]
}

/// Settings that matter to the planner.
#[derive(Debug, Clone)]
struct Drawn {
    strategy: Change,
    max_unavailable: Amount,
    /// A volume, shared or not.
    volume: Option<bool>,
    keep: u64,
    memory: u64,
    hooks: [bool; 3],
}

impl Drawn {
    fn write(&self, settings: &mut Manifest) {
        let rules = &mut settings.rollout;
        rules.strategy = Some(self.strategy);
        rules.max_unavailable = self.max_unavailable;
        rules.keep_previous = Some(Span::from_millis(self.keep));
        settings.lifecycle.grace = Span::from_secs(1);
        settings.resources.memory =
            Some(format!("{}Mi", self.memory * 64).parse().expect("a quantity"));
        settings.volumes.extend(self.volume.map(|shared| Volume { shared, ..volume() }));
        let [before_update, after_update, pre_delete] = self.hooks.map(|asked| {
            let run = HookRun::Exec(vec!["true".into()]);
            asked.then(|| Hook { run, deadline: Span::from_secs(1) })
        });
        settings.lifecycle.hooks = Hooks { before_update, after_update, pre_delete };
    }
}

fn some_settings() -> impl Strategy<Value = Drawn> {
    let strategy = prop_oneof![
        4 => Just(Change::InPlace),
        6 => Just(Change::Handover),
        1 => Just(Change::Recreate)
    ];
    let volume = prop_oneof![6 => Just(None), 1 => Just(Some(false)), 1 => Just(Some(true))];
    let keep = prop::sample::select(vec![0, 2000]);
    let hooks = prop::array::uniform3(prop::bool::weighted(0.2));
    (strategy, amount(), volume, keep, 1..3u64, hooks).prop_map(
        |(strategy, max_unavailable, volume, keep, memory, hooks)| Drawn {
            strategy,
            max_unavailable,
            volume,
            keep,
            memory,
            hooks,
        },
    )
}

pub fn some_fleet() -> impl Strategy<Value = Fleet> {
    let releases = prop::collection::vec((some_settings(), any::<bool>()), RELEASES as usize);
    let each = prop::collection::btree_map((0..6u32).prop_map(Ordinal), some_revision(), 0..3);
    let base = prop::option::weighted(0.95, (some_revision(), each, some_revision()));
    let absent = prop::collection::btree_set((0..6u32).prop_map(Ordinal), 0..2);
    (0..6u32, base, absent, 0..3u32, prop::bool::weighted(0.1), releases).prop_map(
        |(instances, base, absent, surge, paused, settings)| {
            let lineup =
                base.as_ref().map(|(base, each, _)| Lineup { base: *base, each: each.clone() });
            Fleet {
                app: key(),
                generation: Generation(5),
                // Before anything was released no Instance is wanted.
                instances: if base.is_some() { instances } else { 0 },
                absent,
                lineup,
                heading: base.map(|(.., heading)| heading),
                surge,
                paused,
                returning: false,
                releases: (1..)
                    .zip(settings)
                    .map(|(n, (drawn, same_image))| {
                        let mut spec = spec(n, |settings| drawn.write(settings));
                        if same_image {
                            spec.image = digest(1);
                        }
                        (ReleaseNo(n), spec)
                    })
                    .collect(),
            }
        },
    )
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
        2 => since.clone().prop_map(|since| (ContainerState::Frozen { since }, Detached)),
        1 => since.clone().prop_map(|since| (ContainerState::Stopping { since }, Detached)),
        1 => (since.clone().prop_map(exit(false)), any_traffic),
        1 => (since.prop_map(exit(true)), out),
    ]
}

/// An Instance in any state that can occur: at most one Container exists in a slot.
fn some_instance(fleet: Fleet) -> impl Strategy<Value = InstanceSeen> {
    let prepared = prop::collection::vec((some_revision(), any::<bool>()), 0..2);
    let wanted = fleet.wanted(Ordinal(0));
    // What is wanted often, or it hardly ever meets what is there.
    let runs = move || {
        (prop::bool::weighted(0.3), some_revision())
            .prop_map(move |(as_wanted, other)| wanted.filter(|_| as_wanted).unwrap_or(other))
    };
    let lived = move || prop::option::weighted(0.7, (runs(), life(), 0..4u32));
    let trouble = prop::option::weighted(0.3, (some_revision(), 0..=NOW.0, 1..8u32));
    let made_for = (any::<bool>(), some_revision())
        .prop_map(move |(fits, other)| wanted.filter(|_| fits).unwrap_or(other));
    let slots = (lived(), lived(), any::<bool>());
    (prop::bool::weighted(0.9), made_for, prepared, slots, trouble).prop_map(
        move |(has_sandbox, made_for, prepared, (a, b, second), trouble)| {
            let alone = |revision: &Revision| {
                fleet.releases.get(&revision.release).is_some_and(|spec| spec.alone().is_some())
            };
            let mut containers: Vec<ContainerSeen> = Vec::new();
            let mut runs_alone = false;
            for (slot, lived) in [(Slot::A, a), (Slot::B, b)] {
                let Some((revision, (state, traffic), born)) = lived else { continue };
                let seen = container("", revision, state, traffic);
                // What cannot run twice does not.
                let wants_alone = alone(&revision)
                    || fleet.wanted(Ordinal(0)).is_some_and(|wanted| alone(&wanted));
                if seen.alive() && !containers.is_empty() && (wants_alone || runs_alone) {
                    continue;
                }
                runs_alone |= wants_alone;
                let born = revision.since.max(born.min(revision.run));
                containers.push(ContainerSeen { slot, born, ..seen });
            }
            for (revision, second) in prepared {
                // The planner prepares one for each revision at the most, and not where
                // something stands.
                let slot = if second { Slot::B } else { Slot::A };
                if containers.iter().all(|c: &ContainerSeen| {
                    c.revision != revision && !(c.slot == slot && c.is_frozen())
                }) {
                    let state = ContainerState::Prepared;
                    let seen = container("", revision, state, TrafficState::Detached);
                    containers.push(ContainerSeen { slot, ..seen });
                }
            }
            let error = UserError::new(Code::ExitedAtOnce, "it ended", "look");
            InstanceSeen {
                sandbox: has_sandbox.then(|| sandbox(&fleet, made_for)),
                containers: if has_sandbox { containers } else { Vec::new() },
                slot: if second { Slot::B } else { Slot::A },
                trouble: trouble.map(|(revision, at, count)| {
                    let (at, error) = (Time(at), error.clone());
                    Trouble { revision, error, at, count, was_ready: false }
                }),
                ..InstanceSeen::default()
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
        let memory = prop::option::of((0..200u64, prop::bool::weighted(0.2)));
        (Just(fleet), instances, images, memory).prop_map(
            |(fleet, mut instances, images, memory)| {
                for (ordinal, instance) in &mut instances {
                    for (n, container) in instance.containers.iter_mut().enumerate() {
                        container.id = ContainerId(format!("c-{ordinal}-{n}"));
                    }
                }
                let images = (1..).zip(images).filter_map(|(n, seen)| Some((digest(n), seen?)));
                let seen = FleetSeen {
                    generation: fleet.generation,
                    images: images.collect(),
                    instances,
                    memory: memory.map(|(free, pressed)| MemorySeen { free: free << 20, pressed }),
                    jvm: None,
                    site: None,
                };
                (fleet, seen)
            },
        )
    })
}
