//! The engine's steps: what each works on, how it begins and what it leaves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use stead_core::engine::Backend;
use stead_core::event::{Fact, PhaseName};
use stead_core::fleet::{
    ContainerSeen, ContainerState, Exit, Fleet, Health, HookName, HookSeen, ImageSeen, Part,
    ReleaseSpec, Revision, SandboxSeen, Slot, Step, StopCause, TrafficState,
};
use stead_core::ids::{ContainerId, Digest, Ordinal, ReleaseNo, SandboxId};
use stead_core::name::AppKey;
use stead_core::time::{Micros, Time};

use super::life::Failed;
use super::{Due, Effect, Flight, Node, PORT, Process};
use crate::sim::script::{Ending, HookScript, script};
use crate::sim::trouble::{cannot_start, hook_failed, not_pulled, stopped};

/// What two acts must not work on at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    Image(Digest),
    /// The preparation of one part of an Instance.
    Preparation(Ordinal, Part),
    Container(Ordinal, ContainerId),
    /// The Sandbox with all that is in it.
    Sandbox(Ordinal),
}

impl Subject {
    pub(super) fn meets(&self, other: &Subject) -> bool {
        self == other || self.is_inside(other) || other.is_inside(self)
    }

    fn is_inside(&self, sandbox: &Subject) -> bool {
        match (self, sandbox) {
            (Subject::Preparation(a, _) | Subject::Container(a, _), Subject::Sandbox(b)) => a == b,
            _ => false,
        }
    }
}

impl Node {
    /// Starts a step, unless something under way is in its way.
    pub(super) fn begin(&mut self, app: &AppKey, fleet: &Fleet, step: Step) {
        let Some(subject) = subject(fleet, &step) else { return };
        let now = self.now;
        let Some(held) = self.apps.get_mut(app) else { return };
        if held.flights.values().any(|flight| flight.subject.meets(&subject)) {
            return;
        }
        self.serial += 1;
        let id = self.serial;
        held.flights.insert(id, Flight { step: step.clone(), subject, begun: now });
        match step {
            Step::Attach { ordinal, container } => self.attach(app, id, ordinal, container),
            Step::Detach { container, drain, .. } => {
                self.set_traffic(app, &container, TrafficState::Draining);
                let (app, drain) = (app.clone(), drain.duration());
                self.effects.push_back(Effect::Detach { app, flight: id, container, drain });
            }
            Step::Stop { ordinal, container, grace, because } => {
                if let Some(cause) = because {
                    let seen = self.container(app, &container);
                    let of = seen.map(|c| (c.part.clone(), c.revision));
                    let was_ready = cause == StopCause::NotAlive;
                    let failed = Failed { ran: None, was_ready };
                    self.trouble(app, ordinal, of, stopped(cause), failed);
                }
                self.stop(app, &container, grace);
            }
            step => {
                if let Step::Start { container, .. } = &step {
                    // It may run from now on: the next plan must not start another one, nor
                    // take it for one that never ran.
                    self.set_state(
                        app,
                        container,
                        ContainerState::Running { since: now, health: Health::Starting },
                    );
                }
                let hangs = match &step {
                    // One that does not end is given up at its deadline.
                    Step::Hook { hook, revision, .. } => self.hangs(app, *hook, *revision),
                    _ => None,
                };
                let after = hangs
                    .unwrap_or_else(|| self.chance.length(self.pace.shortest, self.pace.longest));
                self.schedule(now + after, Due::Done { app: app.clone(), flight: id });
            }
        }
    }

    fn attach(&mut self, app: &AppKey, flight: u64, ordinal: Ordinal, container: ContainerId) {
        self.process(app, &container, |process| process.may_get_requests = true);
        let ip = self.instance(app, ordinal).and_then(|i| Some(i.sandbox.as_ref()?.ip));
        let seen = self.container(app, &container).map(|c| (c.revision, c.slot));
        let (Some(ip), Some((revision, slot))) = (ip, seen) else { return };
        let addr = SocketAddr::new(ip, PORT);
        // New connections of others go to its slot before the gateway sends requests.
        let held = self.apps.get_mut(app);
        if let Some(instance) = held.and_then(|held| held.seen.instances.get_mut(&ordinal)) {
            instance.slot = slot;
        }
        let mark = Some(if slot == Slot::A { 1 } else { 2 });
        let backend = Backend { container, instance: ordinal, revision, addr, mark };
        self.effects.push_back(Effect::Attach { app: app.clone(), flight, backend });
    }

    fn stop(&mut self, app: &AppKey, id: &ContainerId, grace: Micros) {
        let now = self.now;
        let Some(container) = self.container_mut(app, id) else { return };
        let frozen = container.is_frozen();
        container.state = ContainerState::Stopping { since: now };
        let takes = self.apps.get(app).and_then(|h| h.processes.get(id)?.script.stop_takes);
        // What stands still is killed.
        let takes = if frozen { Some(Micros(0)) } else { takes };
        // 143: ended by SIGTERM. 137: by SIGKILL, after the grace.
        let (after, code) = match takes {
            Some(takes) if takes <= grace => (takes, 143),
            _ => (grace, 137),
        };
        let due = Due::Ends { app: app.clone(), container: id.clone(), code, oom_killed: false };
        self.schedule(now + after, due);
        self.dirty.insert(app.clone());
    }

    /// A step's effect. Also called for what a crashed engine had begun.
    pub(super) fn finish(&mut self, app: &AppKey, flight: &Flight) {
        let now = self.now;
        self.dirty.insert(app.clone());
        match &flight.step {
            Step::Pull { release } => {
                if let Subject::Image(digest) = &flight.subject {
                    self.pulled(app, *release, digest.clone(), flight.begun);
                }
            }
            Step::CreateSandbox { ordinal, revision } => {
                self.serial += 1;
                let serial = self.serial;
                let shape = self.spec(app, *revision).map(ReleaseSpec::shape).unwrap_or_default();
                let Some(held) = self.apps.get_mut(app) else { return };
                let instance = held.seen.instances.entry(*ordinal).or_default();
                if instance.sandbox.is_some() {
                    return;
                }
                instance.sandbox = Some(SandboxSeen {
                    id: SandboxId(format!("sb-{serial}")),
                    ip: address(serial),
                    shape,
                    made_for: *revision,
                    created: now,
                });
                self.timed(app, *ordinal, None, PhaseName::Network, flight.begun);
            }
            Step::Prepare { ordinal, part, revision, slot } => {
                self.prepared(app, *ordinal, part.clone(), *revision, *slot);
                self.timed(app, *ordinal, None, PhaseName::Prepare, flight.begun);
            }
            Step::Start { ordinal, container } => {
                self.started(app, *ordinal, container);
                self.timed(app, *ordinal, Some(container), PhaseName::Start, flight.begun);
            }
            Step::Update { container, revision, .. } => {
                if let Some(container) = self.container_mut(app, container).filter(|c| c.alive()) {
                    container.revision = *revision;
                }
            }
            Step::Freeze { container, .. } => {
                // It may have ended meanwhile.
                if let Some(container) = self.container_mut(app, container).filter(|c| c.alive()) {
                    container.state = ContainerState::Frozen { since: now };
                }
            }
            Step::Thaw { container, revision, .. } => self.thawed(app, container, *revision),
            Step::Hook { ordinal, container, hook, revision } => {
                self.hook_ended(app, *ordinal, container, *hook, *revision);
            }
            Step::Discard { ordinal, container } => {
                let Some(held) = self.apps.get_mut(app) else { return };
                held.processes.remove(container);
                if let Some(instance) = held.seen.instances.get_mut(ordinal) {
                    instance.containers.retain(|c| c.id != *container);
                }
            }
            Step::RemoveSandbox { ordinal } => self.removed(app, *ordinal),
            // These land in `attached`, `detached` and `ended`.
            Step::Attach { .. } | Step::Detach { .. } | Step::Stop { .. } => {}
        }
    }

    fn pulled(&mut self, app: &AppKey, release: ReleaseNo, digest: Digest, begun: Time) {
        let now = self.now;
        let Some(held) = self.apps.get_mut(app) else { return };
        let spec = held.fleet.as_ref().and_then(|fleet| fleet.releases.get(&release));
        let Some(reference) = spec.map(|spec| spec.reference.clone()) else { return };
        let sidecars: Vec<Digest> =
            spec.into_iter().flat_map(|spec| spec.sidecars.values().cloned()).collect();
        let Some(code) = script(&reference).pull_fails else {
            self.images.extend(std::iter::once(digest).chain(sidecars).map(|image| (image, now)));
            self.dirty.extend(self.apps.keys().cloned());
            self.event(
                app,
                None,
                None,
                Fact::Phase { phase: PhaseName::Pull, begun, took: now.since(begun) },
            );
            return;
        };
        let count = match held.seen.images.get(&digest) {
            Some(ImageSeen::Failed { count, .. }) => count + 1,
            _ => 1,
        };
        let error = not_pulled(code, &reference);
        held.seen.images.insert(digest, ImageSeen::Failed { error: error.clone(), at: now, count });
        self.event(app, None, None, Fact::Trouble { error });
    }

    fn prepared(
        &mut self,
        app: &AppKey,
        ordinal: Ordinal,
        part: Part,
        revision: Revision,
        slot: Slot,
    ) {
        self.serial += 1;
        let id = ContainerId(format!("c-{}", self.serial));
        let spec = self.spec(app, revision);
        let Some((_, reference)) = spec.and_then(|spec| spec.image_of(&part)) else { return };
        let reference = reference.to_owned();
        let Some(held) = self.apps.get_mut(app) else { return };
        let Some(instance) = held.seen.instances.get_mut(&ordinal) else { return };
        let script = script(&reference);
        let process = Process { script, started: false, ready_at: None, may_get_requests: false };
        held.processes.insert(id.clone(), process);
        instance.containers.push(ContainerSeen::prepared(id, part, slot, revision));
    }

    fn started(&mut self, app: &AppKey, ordinal: Ordinal, id: &ContainerId) {
        let now = self.now;
        let Some(script) = self.apps.get(app).and_then(|h| Some(h.processes.get(id)?.script))
        else {
            return;
        };
        let Some(of) = self.container(app, id).map(|c| (c.part.clone(), c.revision)) else {
            return;
        };
        if !script.starts {
            let exit = Exit { at: now, code: 127, oom_killed: false, intended: false };
            self.set_state(app, id, ContainerState::Exited(exit));
            let error = cannot_start();
            self.trouble(app, ordinal, Some(of), error, Failed { ran: None, was_ready: false });
            return;
        }
        self.process(app, id, |process| process.started = true);
        let state = ContainerState::Running { since: now, health: Health::Starting };
        self.set_state(app, id, state);
        if let Some(after) = script.ready_after {
            self.process(app, id, |process| process.ready_at = Some(now + after));
            let due = Due::Ready { app: app.clone(), container: id.clone() };
            self.schedule(now + after, due);
        }
        if let Some(ends) = script.ends {
            self.schedule(
                now + ends.after,
                Due::Ends {
                    app: app.clone(),
                    container: id.clone(),
                    code: ends.code,
                    oom_killed: ends.oom_killed,
                },
            );
        }
    }

    /// A Container that stood still goes on, and answers at once.
    fn thawed(&mut self, app: &AppKey, id: &ContainerId, revision: Revision) {
        let now = self.now;
        let Some(container) = self.container_mut(app, id).filter(|c| c.is_frozen()) else { return };
        container.revision = revision;
        container.state = ContainerState::Running { since: now, health: Health::Starting };
        let at = now + Micros::from_millis(1);
        self.process(app, id, |process| process.ready_at = Some(at));
        self.schedule(at, Due::Ready { app: app.clone(), container: id.clone() });
        let script = self.apps.get(app).and_then(|h| Some(h.processes.get(id)?.script));
        if let Some(Ending { after, code, oom_killed }) = script.and_then(|script| script.ends) {
            let (app, container) = (app.clone(), id.clone());
            self.schedule(now + after, Due::Ends { app, container, code, oom_killed });
        }
    }

    fn hooks(&self, app: &AppKey, revision: Revision) -> HookScript {
        self.spec(app, revision).map_or(HookScript::Succeeds, |spec| script(&spec.reference).hooks)
    }

    /// How long a hook takes that does not end.
    fn hangs(&self, app: &AppKey, hook: HookName, revision: Revision) -> Option<Micros> {
        let hook = self.spec(app, revision)?.hook(hook)?;
        let hangs = self.hooks(app, revision) == HookScript::Hangs;
        hangs.then(|| Micros::from_millis(hook.deadline.millis()))
    }

    fn hook_ended(
        &mut self,
        app: &AppKey,
        ordinal: Ordinal,
        id: &ContainerId,
        hook: HookName,
        revision: Revision,
    ) {
        // What goes is not kept by a hook that fails.
        if self.hooks(app, revision) != HookScript::Succeeds && hook != HookName::PreDelete {
            let failed = Failed { ran: None, was_ready: false };
            self.trouble(app, ordinal, Some((Part::Main, revision)), hook_failed(hook), failed);
        } else if let Some(container) = self.container_mut(app, id) {
            container.hooks.push(HookSeen { hook, run: revision.run });
        }
    }

    fn removed(&mut self, app: &AppKey, ordinal: Ordinal) {
        let Some(held) = self.apps.get_mut(app) else { return };
        let wanted = held.fleet.as_ref().is_some_and(|fleet| fleet.wanted(ordinal).is_some());
        let Some(instance) = held.seen.instances.get_mut(&ordinal) else { return };
        for container in std::mem::take(&mut instance.containers) {
            held.processes.remove(&container.id);
        }
        instance.sandbox = None;
        // Its trouble is what the back-off is counted from; without one nothing is left.
        if !wanted || instance.trouble.is_none() {
            held.seen.instances.remove(&ordinal);
        }
    }
}

/// What a step works on; `None` when the Fleet does not know it.
fn subject(fleet: &Fleet, step: &Step) -> Option<Subject> {
    Some(match step {
        Step::Pull { release } => Subject::Image(fleet.releases.get(release)?.image.clone()),
        Step::CreateSandbox { ordinal, .. } | Step::RemoveSandbox { ordinal } => {
            Subject::Sandbox(*ordinal)
        }
        Step::Prepare { ordinal, part, .. } => Subject::Preparation(*ordinal, part.clone()),
        Step::Start { ordinal, container }
        | Step::Update { ordinal, container, .. }
        | Step::Freeze { ordinal, container }
        | Step::Thaw { ordinal, container, .. }
        | Step::Hook { ordinal, container, .. }
        | Step::Attach { ordinal, container }
        | Step::Detach { ordinal, container, .. }
        | Step::Stop { ordinal, container, .. }
        | Step::Discard { ordinal, container } => Subject::Container(*ordinal, container.clone()),
    })
}

fn address(serial: u64) -> IpAddr {
    let [.., b, c, d] = serial.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, b, c, d))
}
