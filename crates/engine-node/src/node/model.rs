//! What a worker knows of its App: what is wanted, what was reported, what is under way.
//!
//! Each method takes in one report. Nothing here waits, and nothing here acts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stead_core::error::UserError;
use stead_core::fleet::{
    ContainerSeen, ContainerState, Exit, Fallback, Fleet, FleetSeen, Health, HookSeen, ImageSeen,
    InstanceSeen, Part, Revision, Slot, Step, TrafficState, Trouble, Way,
};
use stead_core::ids::{ContainerId, Digest, Ordinal, ReleaseNo};
use stead_core::time::{Micros, Time};
use tokio::task::AbortHandle;

use super::java::Virtual;
use crate::sandbox::Sandbox;

/// A Container that ran so long before it ended starts its count of crashes anew; one that is
/// ready for so long has overcome what went wrong before.
const WELL_AFTER: Micros = Micros::from_secs(60);

/// What two acts must not work on at the same time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// The images of a Release.
    Images(ReleaseNo),
    /// The preparation of one Container in a Sandbox.
    Preparation(Ordinal),
    Container(Ordinal, ContainerId),
    /// The Sandbox with all that is in it.
    Sandbox(Ordinal),
}

impl Subject {
    fn meets(&self, other: &Subject) -> bool {
        self == other || self.is_inside(other) || other.is_inside(self)
    }

    fn is_inside(&self, sandbox: &Subject) -> bool {
        match (self, sandbox) {
            (Subject::Preparation(a) | Subject::Container(a, _), Subject::Sandbox(b)) => a == b,
            _ => false,
        }
    }
}

/// What went wrong.
#[derive(Debug, Clone)]
pub(super) struct Ill {
    /// With what.
    pub(super) revision: Revision,
    pub(super) error: UserError,
    /// How long it ran before, if it ended by that.
    pub(super) ran: Option<Micros>,
    /// It had been ready, and it is not our doing.
    pub(super) was_ready: bool,
}

impl Ill {
    /// What we were about to do failed.
    pub(super) fn new(revision: Revision, error: UserError) -> Self {
        Self { revision, error, ran: None, was_ready: false }
    }
}

/// Everything known of one App.
#[derive(Default)]
pub(super) struct Model {
    pub(super) fleet: Option<Fleet>,
    pub(super) seen: FleetSeen,
    /// Subjects of acts that are under way.
    pub(super) busy: BTreeSet<Subject>,
    pub(super) sandboxes: BTreeMap<Ordinal, Arc<Sandbox>>,
    /// What else is known of each Container.
    pub(super) kept: BTreeMap<ContainerId, Kept>,
    /// What is known of those whose program is a Java virtual machine.
    pub(super) java: BTreeMap<ContainerId, Virtual>,
    /// The tasks that watch running Containers.
    pub(super) watches: BTreeMap<ContainerId, AbortHandle>,
    /// Instances whose Sandbox has gone, though the act that removed it may not have ended yet.
    left: BTreeSet<Ordinal>,
    /// For which change of an Instance people were told that it is no handover.
    told_fallbacks: BTreeMap<Ordinal, Revision>,
}

/// What is known of a Container beside what the planner sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// The port that takes HTTP requests.
    pub(super) port: Option<u16>,
    pub(super) image: Digest,
    /// Whether what its App asks for after a start has been done.
    pub(super) post_started: bool,
    /// Whether it has ever been ready: then its start is over, whatever comes.
    pub(super) been_ready: bool,
    /// Whether the end of connections to what was replaced has been waited for.
    pub(super) hushed: bool,
}

impl Model {
    /// What a step works on.
    pub(super) fn subject(step: &Step) -> Subject {
        match step {
            Step::Pull { release } => Subject::Images(*release),
            Step::CreateSandbox { ordinal, .. } | Step::RemoveSandbox { ordinal } => {
                Subject::Sandbox(*ordinal)
            }
            Step::Prepare { ordinal, .. } => Subject::Preparation(*ordinal),
            Step::Start { ordinal, container }
            | Step::Update { ordinal, container, .. }
            | Step::Freeze { ordinal, container }
            | Step::Thaw { ordinal, container, .. }
            | Step::Hook { ordinal, container, .. }
            | Step::Attach { ordinal, container }
            | Step::Detach { ordinal, container, .. }
            | Step::Stop { ordinal, container, .. }
            | Step::Discard { ordinal, container } => {
                Subject::Container(*ordinal, container.clone())
            }
        }
    }

    /// Takes a subject for one act. False: another act is in its way.
    pub(super) fn take(&mut self, subject: &Subject) -> bool {
        if self.busy.iter().any(|busy| busy.meets(subject)) {
            return false;
        }
        self.busy.insert(subject.clone())
    }

    /// The Instances whose holder is gone.
    pub(super) fn lost(&self) -> Vec<Ordinal> {
        let lost = self.sandboxes.iter().filter(|(_, sandbox)| sandbox.is_lost());
        lost.map(|(ordinal, _)| *ordinal).collect()
    }

    /// Whether nothing is there, and nothing is being made.
    pub(super) fn is_empty(&self) -> bool {
        let makes_nothing = |subject: &Subject| match subject {
            Subject::Images(_) => true,
            Subject::Sandbox(ordinal) => self.left.contains(ordinal),
            Subject::Preparation(_) | Subject::Container(..) => false,
        };
        self.seen.instances.is_empty() && self.busy.iter().all(makes_nothing)
    }

    /// What holds for as long as the act goes on: seen by the next plan at once.
    pub(super) fn begin(&mut self, step: &Step, now: Time) {
        match step {
            Step::Detach { container, .. } => self.traffic(container, TrafficState::Draining),
            // Should the target change meanwhile, no other Container is started beside it.
            Step::Start { container, .. } => self.running(container, now),
            Step::Thaw { container, .. } => self.running(container, now),
            // No probe may miss what stands still.
            Step::Freeze { container, .. } => self.unwatch(container),
            Step::Stop { container, .. } => self.stopping(container, now),
            Step::CreateSandbox { ordinal, .. } => {
                self.left.remove(ordinal);
            }
            _ => {}
        }
    }

    pub(super) fn container(&self, id: &ContainerId) -> Option<(Ordinal, &ContainerSeen)> {
        self.seen.instances.iter().find_map(|(ordinal, instance)| {
            Some((*ordinal, instance.containers.iter().find(|c| c.id == *id)?))
        })
    }

    fn container_mut(&mut self, id: &ContainerId) -> Option<&mut ContainerSeen> {
        self.seen
            .instances
            .values_mut()
            .find_map(|instance| instance.containers.iter_mut().find(|c| c.id == *id))
    }

    pub(super) fn traffic(&mut self, id: &ContainerId, state: TrafficState) {
        if let Some(container) = self.container_mut(id) {
            container.traffic = state;
        }
    }

    pub(super) fn prepared(&mut self, ordinal: Ordinal, container: ContainerSeen, kept: Kept) {
        let Some(instance) = self.seen.instances.get_mut(&ordinal) else { return };
        self.kept.insert(container.id.clone(), kept);
        instance.containers.push(container);
    }

    /// Takes in that a prepared Container was started, or a frozen one goes on.
    pub(super) fn running(&mut self, id: &ContainerId, since: Time) {
        if let Some(container) = self.container_mut(id) {
            // Its end may have been reported first.
            if matches!(container.state, ContainerState::Prepared | ContainerState::Frozen { .. }) {
                container.state = ContainerState::Running { since, health: Health::Starting };
            }
        }
    }

    /// Takes in that a Container was told to stop.
    pub(super) fn stopping(&mut self, id: &ContainerId, since: Time) {
        self.unwatch(id);
        if let Some(container) = self.container_mut(id)
            && !matches!(container.state, ContainerState::Exited(_))
        {
            container.state = ContainerState::Stopping { since };
        }
    }

    /// Takes in that a running Container stands still.
    pub(super) fn frozen(&mut self, id: &ContainerId, since: Time) {
        self.unwatch(id);
        if let Some(container) = self.container_mut(id)
            && matches!(container.state, ContainerState::Running { .. })
        {
            container.state = ContainerState::Frozen { since };
        }
    }

    /// Takes in that a Container fits another Revision now.
    pub(super) fn brought_to(&mut self, id: &ContainerId, revision: Revision) {
        if let Some(container) = self.container_mut(id) {
            container.revision = revision;
        }
    }

    /// Takes in that a hook was run. Only its last run is of use.
    pub(super) fn hooked(&mut self, id: &ContainerId, seen: HookSeen) {
        if let Some(container) = self.container_mut(id) {
            container.hooks.retain(|known| known.hook != seen.hook);
            container.hooks.push(seen);
        }
    }

    /// Takes in where new connections to an Instance go.
    pub(super) fn flipped(&mut self, ordinal: Ordinal, slot: Slot) {
        if let Some(instance) = self.seen.instances.get_mut(&ordinal) {
            instance.slot = slot;
        }
    }

    /// The port of a Container that takes HTTP requests.
    pub(super) fn port(&self, id: &ContainerId) -> Option<u16> {
        self.kept.get(id)?.port
    }

    /// Whether a Container is ready and what its Instance shall run.
    pub(super) fn wants(&self, ordinal: Ordinal, id: &ContainerId) -> bool {
        let wanted = || {
            let (fleet, (_, container)) = (self.fleet.as_ref()?, self.container(id)?);
            let revision = fleet.wanted(ordinal)?;
            let spec = fleet.releases.get(&revision.release)?;
            Some(container.ready() && fleet.fits(container, revision, spec))
        };
        wanted().unwrap_or(false)
    }

    /// Whether another Container of the App itself is ready in its Instance.
    pub(super) fn outdone(&self, id: &ContainerId) -> bool {
        let instance = self.container(id).and_then(|(o, _)| self.seen.instances.get(&o));
        instance.is_some_and(|instance| instance.mains().any(|c| c.id != *id && c.ready()))
    }

    /// Whether a Container that was replaced could serve while nobody does: what took its place
    /// fails, and nothing waits for its end either.
    pub(super) fn is_missed(&self, ordinal: Ordinal, id: &ContainerId) -> bool {
        let waiting =
            |instance: &InstanceSeen| instance.mains().any(|c| c.state == ContainerState::Prepared);
        let way = self.fleet.as_ref().and_then(|fleet| fleet.way(&self.seen, ordinal));
        !matches!(way, None | Some(Way::Recreate { .. }))
            && self.container(id).is_some_and(|(_, container)| container.ready())
            && !self.outdone(id)
            && !self.seen.instances.get(&ordinal).is_some_and(waiting)
    }

    /// Ended Containers of the App itself in a slot that gateways may still send to.
    pub(super) fn routed_ends(&self, ordinal: Ordinal, slot: Slot) -> Vec<ContainerId> {
        let instance = self.seen.instances.get(&ordinal);
        let mains = instance.into_iter().flat_map(InstanceSeen::mains);
        mains
            .filter(|c| c.slot == slot && matches!(c.state, ContainerState::Exited(_)))
            .filter(|c| c.traffic != TrafficState::Detached)
            .map(|c| c.id.clone())
            .collect()
    }

    /// Whether a Container has ever been ready.
    pub(super) fn been_ready(&self, id: &ContainerId) -> bool {
        self.kept.get(id).is_some_and(|kept| kept.been_ready)
    }

    /// Why the change that begins at an Instance is no handover although one was wanted, told
    /// once.
    pub(super) fn fallback(&mut self, ordinal: Ordinal, revision: Revision) -> Option<Fallback> {
        let changes = |instance: &InstanceSeen| instance.mains().any(ContainerSeen::alive);
        if !self.seen.instances.get(&ordinal).is_some_and(changes) {
            return None;
        }
        match self.fleet.as_ref()?.way(&self.seen, ordinal)? {
            Way::InPlace { because: Some(because) } => {
                let told = self.told_fallbacks.insert(ordinal, revision);
                (told != Some(revision)).then_some(because)
            }
            _ => None,
        }
    }

    /// Takes in what a probe saw. False: the Container does not run any more, or is given up
    /// as dead, which no other probe takes back.
    pub(super) fn health(&mut self, id: &ContainerId, told: Health) -> bool {
        match self.container_mut(id).map(|container| &mut container.state) {
            Some(ContainerState::Running { health, .. }) if *health != Health::Dead => {
                *health = told;
            }
            _ => return false,
        }
        if let (Health::Ready, Some(kept)) = (told, self.kept.get_mut(id)) {
            kept.been_ready = true;
        }
        true
    }

    /// Takes in a Container's end. False: it was known.
    pub(super) fn exited(&mut self, id: &ContainerId, exit: Exit) -> bool {
        self.unwatch(id);
        let Some(container) = self.container_mut(id) else { return false };
        if matches!(container.state, ContainerState::Exited(_)) {
            return false;
        }
        container.state = ContainerState::Exited(exit);
        true
    }

    /// Takes in a Container's end and what trouble it was, in one: between the two the planner
    /// would start it again without its back-off. False: the end was known.
    pub(super) fn ended(
        &mut self,
        id: &ContainerId,
        exit: Exit,
        ill: Option<Ill>,
        now: Time,
    ) -> bool {
        let of = self.container(id).map(|(ordinal, container)| (ordinal, container.part.clone()));
        let fresh = self.exited(id, exit);
        if let (true, Some((ordinal, part)), Some(ill)) = (fresh, of, ill) {
            self.trouble(ordinal, &part, ill, now);
        }
        fresh
    }

    /// Takes in that everything in a Sandbox has ended, which gateways are still to be told.
    /// Gives what ran, and for how long.
    pub(super) fn all_exited(
        &mut self,
        ordinal: Ordinal,
        exit: Exit,
    ) -> Vec<(ContainerId, Revision, Micros)> {
        let instance = self.seen.instances.get(&ordinal).cloned().unwrap_or_default();
        let mut ran = Vec::new();
        for container in instance.containers {
            if let ContainerState::Running { since, .. } = container.state {
                ran.push((container.id.clone(), container.revision, exit.at.since(since)));
            }
            if container.traffic != TrafficState::Detached {
                self.traffic(&container.id, TrafficState::Draining);
            }
            self.exited(&container.id, exit);
        }
        ran
    }

    pub(super) fn discarded(&mut self, ordinal: Ordinal, id: &ContainerId) {
        self.unwatch(id);
        self.kept.remove(id);
        self.java.remove(id);
        if let Some(instance) = self.seen.instances.get_mut(&ordinal) {
            instance.containers.retain(|container| container.id != *id);
        }
    }

    pub(super) fn removed(&mut self, ordinal: Ordinal) {
        self.sandboxes.remove(&ordinal);
        self.left.insert(ordinal);
        let Some(instance) = self.seen.instances.get_mut(&ordinal) else { return };
        let containers = std::mem::take(&mut instance.containers);
        instance.sandbox = None;
        // Its trouble is what the back-off is counted from; without one nothing is left.
        instance.slot = Slot::default();
        let well = instance.trouble.is_none() && instance.sidecar_trouble.is_empty();
        if well || self.not_wanted(ordinal) {
            self.seen.instances.remove(&ordinal);
        }
        for container in containers {
            self.unwatch(&container.id);
            self.kept.remove(&container.id);
            self.java.remove(&container.id);
        }
    }

    fn not_wanted(&self, ordinal: Ordinal) -> bool {
        self.fleet.as_ref().is_none_or(|fleet| fleet.wanted(ordinal).is_none())
    }

    /// Notes that something went wrong with a part of an Instance.
    pub(super) fn trouble(&mut self, ordinal: Ordinal, part: &Part, ill: Ill, now: Time) {
        let Ill { revision, error, ran, was_ready } = ill;
        let instance = self.seen.instances.entry(ordinal).or_default();
        let count = match instance.trouble_of(part) {
            Some(before) if before.revision == revision && ran.is_none_or(|r| r < WELL_AFTER) => {
                before.count + 1
            }
            _ => 1,
        };
        if ran.is_some() && part.is_main() {
            instance.crashes += 1;
        }
        let trouble = Trouble { revision, error, at: now, count, was_ready };
        match part {
            Part::Main => instance.trouble = Some(trouble),
            Part::Sidecar(name) => drop(instance.sidecar_trouble.insert(name.clone(), trouble)),
        }
    }

    /// Forgets trouble that is over: a Container started since has been well for a while. Gives
    /// the time to look again.
    pub(super) fn forget_trouble(&mut self, now: Time) -> Option<Time> {
        let mut again = None;
        for instance in self.seen.instances.values_mut() {
            let sidecars = instance.sidecar_trouble.keys().cloned().map(Part::Sidecar);
            let parts: Vec<Part> = std::iter::once(Part::Main).chain(sidecars).collect();
            for part in parts {
                let Some(at) = instance.trouble_of(&part).map(|trouble| trouble.at) else {
                    continue;
                };
                let well = instance.of(&part).find_map(|container| match container.state {
                    ContainerState::Running { since, health: Health::Ready } if since >= at => {
                        Some(since + WELL_AFTER)
                    }
                    _ => None,
                });
                match (well, part) {
                    (Some(due), Part::Main) if due <= now => instance.trouble = None,
                    (Some(due), Part::Sidecar(name)) if due <= now => {
                        instance.sidecar_trouble.remove(&name);
                    }
                    (due, _) => again = again.into_iter().chain(due).min(),
                }
            }
        }
        again
    }

    /// Whether some Container stands still.
    pub(super) fn has_frozen(&self) -> bool {
        let mut all = self.seen.instances.values().flat_map(|i| &i.containers);
        all.any(ContainerSeen::is_frozen)
    }

    pub(super) fn image_present(&mut self, digest: Digest) {
        self.seen.images.insert(digest, ImageSeen::Present);
    }

    pub(super) fn image_failed(&mut self, digest: Digest, error: UserError, at: Time) {
        let count = match self.seen.images.get(&digest) {
            Some(ImageSeen::Failed { count, .. }) => count + 1,
            _ => 1,
        };
        self.seen.images.insert(digest, ImageSeen::Failed { error, at, count });
    }

    pub(super) fn unwatch(&mut self, id: &ContainerId) {
        if let Some(watch) = self.watches.remove(id) {
            watch.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use stead_core::fleet::InstanceSeen;
    use stead_core::ids::ReleaseNo;

    use super::*;

    const ONE: Revision = Revision { release: ReleaseNo(1), run: 0, since: 0 };

    fn id(name: &str) -> ContainerId {
        ContainerId(name.to_owned())
    }

    fn kept() -> Kept {
        let image = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        Kept { port: None, image, post_started: false, been_ready: false, hushed: false }
    }

    fn running() -> Model {
        let mut model = Model::default();
        model.seen.instances.insert(Ordinal(0), InstanceSeen::default());
        let container = ContainerSeen::prepared(id("a"), Part::Main, Slot::A, ONE);
        model.prepared(Ordinal(0), container, kept());
        model.running(&id("a"), Time(5));
        model
    }

    #[test]
    fn a_sandbox_is_not_touched_beside_what_is_in_it() {
        let mut model = Model::default();
        let (sandbox, other) = (Subject::Sandbox(Ordinal(0)), Subject::Sandbox(Ordinal(1)));
        let container = |name| Subject::Container(Ordinal(0), id(name));
        assert!(model.take(&container("a")));
        assert!(!model.take(&container("a")));
        assert!(model.take(&container("b")) && model.take(&Subject::Preparation(Ordinal(0))));
        assert!(!model.take(&sandbox));
        assert!(model.take(&other));
        model.busy.clear();
        assert!(model.take(&sandbox));
        assert!(!model.take(&container("a")) && !model.take(&Subject::Preparation(Ordinal(0))));
    }

    #[test]
    fn an_app_whose_sandbox_is_being_made_is_not_empty() {
        let mut model = Model::default();
        assert!(model.is_empty());
        assert!(model.take(&Subject::Sandbox(Ordinal(0))));
        assert!(!model.is_empty());
        model.removed(Ordinal(0));
        assert!(model.is_empty(), "the act has a moment to go, but nothing is there");
        let create = Step::CreateSandbox { ordinal: Ordinal(0), revision: ONE };
        model.begin(&create, Time(1));
        assert!(!model.is_empty());
    }

    #[test]
    fn what_is_dead_does_not_come_back_to_life() {
        let mut model = running();
        assert!(model.health(&id("a"), Health::Ready));
        assert!(model.health(&id("a"), Health::Dead));
        assert!(!model.health(&id("a"), Health::Unready) && !model.health(&id("a"), Health::Ready));
        let (_, container) = model.container(&id("a")).unwrap();
        let dead = ContainerState::Running { since: Time(5), health: Health::Dead };
        assert_eq!(container.state, dead);
    }

    #[test]
    fn trouble_is_forgotten_once_a_later_container_has_been_well() {
        let mut model = running();
        let error = UserError::new(stead_core::error::Code::ExitedAtOnce, "it ended", "look");
        model.trouble(Ordinal(0), &Part::Main, Ill::new(ONE, error), Time(5));
        assert_eq!(model.forget_trouble(Time(5) + WELL_AFTER), None, "it is not ready");
        model.health(&id("a"), Health::Ready);
        assert_eq!(model.forget_trouble(Time(9)), Some(Time(5) + WELL_AFTER));
        assert!(model.seen.instances[&Ordinal(0)].trouble.is_some());
        assert_eq!(model.forget_trouble(Time(5) + WELL_AFTER), None);
        assert!(model.seen.instances[&Ordinal(0)].trouble.is_none());
    }

    #[test]
    fn troubles_in_a_row_are_counted_until_one_ran_well() {
        let mut model = running();
        let error = || UserError::new(stead_core::error::Code::ExitedAtOnce, "it ended", "look");
        let mut count = |ran| {
            let ill = Ill { ran, ..Ill::new(ONE, error()) };
            model.trouble(Ordinal(0), &Part::Main, ill, Time(9));
            model.seen.instances[&Ordinal(0)].trouble.as_ref().unwrap().count
        };
        assert_eq!([count(None), count(Some(Micros(7))), count(Some(WELL_AFTER))], [1, 2, 1]);
        let part = Part::Sidecar("proxy".into());
        model.trouble(Ordinal(0), &part, Ill::new(ONE, error()), Time(9));
        let seen = &model.seen.instances[&Ordinal(0)];
        let counts = [&part, &Part::Main].map(|part| seen.trouble_of(part).unwrap().count);
        assert_eq!((counts, seen.crashes), ([1, 1], 2), "each part has trouble of its own");
    }

    #[test]
    fn an_end_is_seen_with_the_trouble_it_was_and_counts_once() {
        let mut model = running();
        let error = UserError::new(stead_core::error::Code::ExitedAtOnce, "it ended", "look");
        let exit = Exit { at: Time(6), code: 3, oom_killed: false, intended: false };
        let ill = Some(Ill { ran: Some(Micros(1)), ..Ill::new(ONE, error) });
        assert!(model.ended(&id("a"), exit, ill.clone(), Time(7)));
        assert!(!model.ended(&id("a"), exit, ill, Time(8)), "it was known");
        let seen = &model.seen.instances[&Ordinal(0)];
        let trouble = seen.trouble.as_ref().unwrap();
        assert_eq!((trouble.at, trouble.count, seen.crashes), (Time(7), 1, 1));
        assert_eq!(seen.containers[0].state, ContainerState::Exited(exit));
    }

    #[test]
    fn one_that_stood_still_is_not_ready_before_it_answers_again() {
        let mut model = running();
        model.health(&id("a"), Health::Ready);
        model.frozen(&id("a"), Time(7));
        assert!(!model.health(&id("a"), Health::Unready), "a late probe says nothing");
        let thaw = Step::Thaw { ordinal: Ordinal(0), container: id("a"), revision: ONE };
        model.begin(&thaw, Time(8));
        let (_, container) = model.container(&id("a")).unwrap();
        let starting = ContainerState::Running { since: Time(8), health: Health::Starting };
        assert_eq!(container.state, starting);
        assert!(model.been_ready(&id("a")));
    }
}
