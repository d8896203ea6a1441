//! What a worker knows of its App: what is wanted, what was reported, what is under way.
//!
//! Each method takes in one report. Nothing here waits, and nothing here acts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stead_core::error::UserError;
use stead_core::fleet::{
    ContainerSeen, ContainerState, Exit, Fleet, FleetSeen, Health, ImageSeen, Part, Revision, Slot,
    Step, TrafficState, Trouble,
};
use stead_core::ids::{ContainerId, Digest, Ordinal};
use stead_core::time::{Micros, Time};
use tokio::task::AbortHandle;

use crate::sandbox::Sandbox;

/// A Container that ran so long before it ended starts its count of crashes anew; one that is
/// ready for so long has overcome what went wrong before.
const WELL_AFTER: Micros = Micros::from_secs(60);

/// What two acts must not work on at the same time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Image(Digest),
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

/// Everything known of one App.
#[derive(Default)]
pub(super) struct Model {
    pub(super) fleet: Option<Fleet>,
    pub(super) seen: FleetSeen,
    /// Subjects of acts that are under way.
    pub(super) busy: BTreeSet<Subject>,
    pub(super) sandboxes: BTreeMap<Ordinal, Arc<Sandbox>>,
    /// The port of each Container that takes HTTP requests.
    pub(super) ports: BTreeMap<ContainerId, u16>,
    /// The image of each Container.
    pub(super) images: BTreeMap<ContainerId, Digest>,
    /// The tasks that watch running Containers.
    pub(super) watches: BTreeMap<ContainerId, AbortHandle>,
}

impl Model {
    /// What a step works on; `None` when what it names is not known any more.
    pub(super) fn subject(&self, step: &Step) -> Option<Subject> {
        Some(match step {
            Step::Pull { release } => {
                Subject::Image(self.fleet.as_ref()?.releases.get(release)?.image.clone())
            }
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
        })
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
        let pulls = |subject: &Subject| matches!(subject, Subject::Image(_));
        self.seen.instances.is_empty() && self.busy.iter().all(pulls)
    }

    /// What holds for as long as the act goes on: seen by the next plan at once.
    pub(super) fn begin(&mut self, step: &Step, now: Time) {
        match step {
            Step::Detach { container, .. } => self.traffic(container, TrafficState::Draining),
            // Should the target change meanwhile, no other Container is started beside it.
            Step::Start { container, .. } => self.running(container, now),
            Step::Stop { container, .. } => {
                self.unwatch(container);
                if let Some(known) = self.container_mut(container) {
                    known.state = ContainerState::Stopping { since: now };
                }
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

    pub(super) fn prepared(&mut self, ordinal: Ordinal, id: ContainerId, revision: Revision) {
        let Some(instance) = self.seen.instances.get_mut(&ordinal) else { return };
        instance.containers.push(ContainerSeen::prepared(id, Part::Main, Slot::A, revision));
    }

    pub(super) fn running(&mut self, id: &ContainerId, since: Time) {
        if let Some(container) = self.container_mut(id) {
            // Its end may have been reported first.
            if container.state == ContainerState::Prepared {
                container.state = ContainerState::Running { since, health: Health::Starting };
            }
        }
    }

    /// Takes in what a probe saw. False: the Container does not run any more, or is given up
    /// as dead, which no other probe takes back.
    pub(super) fn health(&mut self, id: &ContainerId, told: Health) -> bool {
        match self.container_mut(id).map(|container| &mut container.state) {
            Some(ContainerState::Running { health, .. }) if *health != Health::Dead => {
                *health = told;
                true
            }
            _ => false,
        }
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

    /// Takes in that everything in a Sandbox has ended. Gives what ran, and for how long.
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
            self.traffic(&container.id, TrafficState::Detached);
            self.exited(&container.id, exit);
        }
        ran
    }

    pub(super) fn discarded(&mut self, ordinal: Ordinal, id: &ContainerId) {
        self.unwatch(id);
        self.ports.remove(id);
        self.images.remove(id);
        if let Some(instance) = self.seen.instances.get_mut(&ordinal) {
            instance.containers.retain(|container| container.id != *id);
        }
    }

    pub(super) fn removed(&mut self, ordinal: Ordinal) {
        self.sandboxes.remove(&ordinal);
        let Some(instance) = self.seen.instances.get_mut(&ordinal) else { return };
        let containers = std::mem::take(&mut instance.containers);
        instance.sandbox = None;
        // Its trouble is what the back-off is counted from; without one nothing is left.
        if instance.trouble.is_none() || self.not_wanted(ordinal) {
            self.seen.instances.remove(&ordinal);
        }
        for container in containers {
            self.unwatch(&container.id);
            self.ports.remove(&container.id);
            self.images.remove(&container.id);
        }
    }

    fn not_wanted(&self, ordinal: Ordinal) -> bool {
        self.fleet.as_ref().is_none_or(|fleet| fleet.wanted(ordinal).is_none())
    }

    /// Notes that something went wrong with an Instance.
    pub(super) fn trouble(
        &mut self,
        ordinal: Ordinal,
        revision: Revision,
        error: UserError,
        ran: Option<Micros>,
        now: Time,
    ) {
        let instance = self.seen.instances.entry(ordinal).or_default();
        let count = match &instance.trouble {
            Some(before) if before.revision == revision && ran.is_none_or(|r| r < WELL_AFTER) => {
                before.count + 1
            }
            _ => 1,
        };
        if ran.is_some() {
            instance.crashes += 1;
        }
        instance.trouble = Some(Trouble { revision, error, at: now, count, was_ready: false });
    }

    /// Forgets trouble that is over: a Container started since has been well for a while. Gives
    /// the time to look again.
    pub(super) fn forget_trouble(&mut self, now: Time) -> Option<Time> {
        let mut again = None;
        for instance in self.seen.instances.values_mut() {
            let Some(trouble) = &instance.trouble else { continue };
            let well = instance.containers.iter().find_map(|container| match container.state {
                ContainerState::Running { since, health: Health::Ready } if since >= trouble.at => {
                    Some(since + WELL_AFTER)
                }
                _ => None,
            });
            match well {
                Some(due) if due <= now => instance.trouble = None,
                due => again = again.into_iter().chain(due).min(),
            }
        }
        again
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

    fn running() -> Model {
        let mut model = Model::default();
        model.seen.instances.insert(Ordinal(0), InstanceSeen::default());
        model.prepared(Ordinal(0), id("a"), ONE);
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
        model.trouble(Ordinal(0), ONE, error, None, Time(5));
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
            model.trouble(Ordinal(0), ONE, error(), ran, Time(9));
            model.seen.instances[&Ordinal(0)].trouble.as_ref().unwrap().count
        };
        assert_eq!([count(None), count(Some(Micros(7))), count(Some(WELL_AFTER))], [1, 2, 1]);
    }
}
