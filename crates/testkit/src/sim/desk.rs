//! A simulated control plane: what people ask for, committed, and reconciled step by step.
//!
//! The store survives; everything else is forgotten in a crash. Loading, acting and
//! committing are three moments, so that a person or a crash may come in between.

use std::collections::{BTreeMap, BTreeSet};

use stead_core::app::{App, Change};
use stead_core::fleet::ReleaseSpec;
use stead_core::ids::{Generation, Ordinal, ReleaseNo};
use stead_core::invariants::Violation;
use stead_core::manifest::{
    Amount, Batch, Batches, Hook, HookRun, Hooks, Manifest, Pause, Span, Volume,
};
use stead_core::name::AppKey;
use stead_core::rollout::{Phase, RolloutKind, Wanted, wanted};
use stead_core::time::{Micros, Time};

use super::action::Deployment;
use super::fleets::{release, settings};
use super::script::digest_of;

/// What the store holds of the App.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) app: App,
    pub(super) releases: BTreeMap<ReleaseNo, ReleaseSpec>,
}

impl Stored {
    pub(super) fn wanted(&self) -> Wanted {
        wanted(&self.app, &self.releases)
    }
}

/// The control plane of one App.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) key: AppKey,
    stored: Option<Stored>,
    pub(super) up: bool,
    /// Rises with each crash: what was begun before is forgotten.
    pub(super) epoch: u64,
    pub(super) violations: Vec<Violation>,
}

impl Desk {
    pub(super) fn new(key: AppKey) -> Self {
        Self { key, stored: None, up: true, epoch: 0, violations: Vec::new() }
    }

    pub(super) fn stored(&self) -> Option<&Stored> {
        self.stored.as_ref()
    }

    /// Whether requests are let in.
    pub(super) fn is_open(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| !stored.app.stopped && !stored.app.deleted)
    }

    pub(super) fn crash(&mut self) {
        self.up = false;
        self.epoch += 1;
    }

    /// A person deploys. False: refused.
    pub(super) fn deploy(&mut self, what: &Deployment, image_here: bool, now: Time) -> bool {
        if self.deleting() {
            return false;
        }
        let manifest = manifest(&self.key, what);
        let mut spec = release(manifest.clone());
        let sidecars = manifest.sidecars.iter();
        spec.sidecars = sidecars.map(|s| (s.name.to_string(), digest_of(&s.source))).collect();
        let key = self.key.clone();
        let stored = self.stored.get_or_insert_with(|| Stored {
            app: App::new(key, 2, now),
            releases: BTreeMap::new(),
        });
        let number = stored.app.last_release.next();
        stored.releases.insert(number, spec);
        self.commit(|app| {
            app.roll_out(number, &manifest, change(RolloutKind::Deploy, image_here, now));
            true
        })
    }

    /// A person goes back to the Release before, as the API does.
    pub(super) fn rollback(&mut self, image_here: bool, now: Time) -> bool {
        let Some(stored) = self.stored.as_ref().filter(|stored| !stored.app.deleted) else {
            return false;
        };
        if stored.app.active().is_some() {
            return self.abort(now);
        }
        let Some(number) = stored.app.before else { return false };
        let settings = stored.releases[&number].settings.clone();
        self.commit(|app| {
            app.roll_out(number, &settings, change(RolloutKind::Rollback, image_here, now));
            true
        })
    }

    pub(super) fn restart(&mut self, only: Option<u32>, now: Time) -> bool {
        let Some(stored) = self.stored.as_ref().filter(|stored| !stored.app.deleted) else {
            return false;
        };
        let Some(target) = stored.app.target() else { return false };
        let settings = stored.releases[&target.release].settings.clone();
        self.commit(|app| {
            let change = change(RolloutKind::Restart, true, now);
            app.restart(only.map(Ordinal), &settings, change).is_ok()
        })
    }

    pub(super) fn scale(&mut self, instances: u32, now: Time) -> bool {
        self.commit(|app| {
            app.scale(instances, now);
            true
        })
    }

    pub(super) fn stop(&mut self) -> bool {
        self.commit(|app| {
            app.stop();
            true
        })
    }

    pub(super) fn start(&mut self, now: Time) -> bool {
        self.commit(|app| {
            app.start(now);
            true
        })
    }

    pub(super) fn abort(&mut self, now: Time) -> bool {
        self.commit(|app| app.abort("somebody", now).is_ok())
    }

    pub(super) fn pause(&mut self, now: Time) -> bool {
        self.commit(|app| app.pause("somebody", now).is_ok())
    }

    pub(super) fn resume(&mut self, now: Time) -> bool {
        self.commit(|app| app.resume(now).is_ok())
    }

    pub(super) fn promote(&mut self, all: bool, now: Time) -> bool {
        let Some(stored) = &self.stored else { return false };
        let to = stored.app.rollout.as_ref().map(|rollout| rollout.to.release);
        let Some(spec) = to.and_then(|to| stored.releases.get(&to)) else { return false };
        let settings = spec.settings.clone();
        self.commit(|app| app.promote(&settings.rollout, all, now).is_ok())
    }

    pub(super) fn remove(&mut self, ordinal: u32, now: Time) -> bool {
        self.commit(|app| app.remove(&BTreeSet::from([Ordinal(ordinal)]), now).is_ok())
    }

    pub(super) fn delete(&mut self) -> bool {
        self.commit(|app| {
            app.delete();
            true
        })
    }

    /// Commits a phase that was found for `loaded`, unless somebody was faster.
    pub(super) fn enter(&mut self, loaded: Generation, phase: Phase) -> bool {
        if self.stored.as_ref().is_none_or(|stored| stored.app.generation != loaded) {
            return false;
        }
        self.commit(|app| {
            app.enter(phase);
            true
        })
    }

    /// Nothing is left of a deleted App.
    pub(super) fn forget(&mut self) {
        self.stored = None;
    }

    fn deleting(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.app.deleted)
    }

    fn commit(&mut self, change: impl FnOnce(&mut App) -> bool) -> bool {
        let Some(stored) = &mut self.stored else { return false };
        let mut next = stored.app.clone();
        if next.deleted || !change(&mut next) {
            return false;
        }
        if next.generation <= stored.app.generation && next != stored.app {
            self.violations.push(Violation {
                rule: "each change raises the generation",
                seen: format!("{next:?}"),
            });
        }
        // What a store keeps is what it gives back.
        let text = serde_json::to_string(&next).expect("an App is plain data");
        stored.app = serde_json::from_str(&text).expect("an App reads what it writes");
        if stored.app != next {
            self.violations.push(Violation { rule: "an App survives the store", seen: text });
        }
        true
    }
}

fn span(length: Micros) -> Span {
    Span::from_millis(length.0 / 1000)
}

fn change(kind: RolloutKind, image_here: bool, now: Time) -> Change {
    Change { kind, image_here, now, by: "somebody".into(), message: None }
}

fn manifest(key: &AppKey, what: &Deployment) -> Manifest {
    let mut manifest = settings(key, &what.reference());
    let rollout = &mut manifest.rollout;
    rollout.strategy = Some(what.strategy);
    rollout.auto_rollback = what.auto_rollback;
    rollout.max_unavailable = Amount::Count(what.max_unavailable);
    rollout.max_surge = Amount::Count(what.max_surge);
    rollout.progress_deadline = Span::from_secs(20);
    rollout.batches = Batches::Count(what.batches);
    if let Some(weight) = what.weight {
        let first = Batch { weight: Some(weight), ..Batch::of(Amount::Count(1)) };
        rollout.batches = Batches::List(vec![first, Batch::of(Amount::Percent(50))]);
    }
    if what.manual {
        rollout.pause = Pause::Manual;
    }
    rollout.partition = Amount::Count(what.partition);
    rollout.keep_previous = Some(span(what.keep));
    rollout.watch = span(what.watch);
    if what.hooks {
        let hook = || {
            let run = HookRun::Exec(vec!["true".into()]);
            Some(Hook { run, deadline: Span::from_secs(1) })
        };
        manifest.lifecycle.hooks =
            Hooks { before_update: hook(), after_update: hook(), pre_delete: hook() };
    }
    manifest.resources.memory =
        Some(format!("{}Mi", what.memory).parse().expect("it is an amount of memory"));
    if let Some(image) = &what.sidecar {
        let written = serde_json::json!({"name": "proxy", "source": image});
        manifest.sidecars = vec![serde_json::from_value(written).expect("it is a sidecar")];
    }
    if what.volume {
        manifest.volumes = vec![Volume {
            name: "data".parse().expect("it is a name"),
            mount: "/data".parse().expect("it is a path"),
            shared: false,
        }];
    }
    manifest
}
