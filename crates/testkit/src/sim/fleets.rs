//! Fleets for tests, written in one line.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stead_core::fleet::{Fleet, Lineup, ReleaseSpec, Revision};
use stead_core::ids::{Digest, Generation, ReleaseNo};
use stead_core::manifest::{Check, Manifest, Span, Startup};
use stead_core::name::{AppKey, AppName};

use super::script::digest_of;

/// The App `default/NAME`.
///
/// # Panics
/// When `name` is not a DNS label.
pub fn app_key(name: &str) -> AppKey {
    format!("default/{name}").parse().expect("a test gives a name that is a label")
}

/// Settings that suit tests: short grace, and a startup timeout of one second.
pub fn settings(app: &AppKey, reference: &str) -> Manifest {
    let name = AppName::new(app.app.as_str()).expect("it was a name before");
    let mut settings = Manifest::minimal(name, reference);
    settings.namespace = app.namespace.clone();
    settings.lifecycle.grace = Span::from_secs(1);
    settings.health.startup = Some(Startup {
        check: Check::Exec { argv: vec!["true".into()] },
        period: Span::from_millis(10),
        timeout: Span::from_secs(1),
    });
    settings
}

/// A Release of `settings`, whose image is the digest that follows from its source.
pub fn release(settings: Manifest) -> ReleaseSpec {
    let reference = settings.source.clone();
    let image = digest_of(&reference);
    let (sidecars, secrets) = (BTreeMap::new(), BTreeMap::new());
    ReleaseSpec { image, reference, sidecars, settings: Arc::new(settings), secrets }
}

/// Like [`release`], with an image that was resolved before.
pub fn release_of(settings: Manifest, image: Digest) -> ReleaseSpec {
    let reference = settings.source.clone();
    let (sidecars, secrets) = (BTreeMap::new(), BTreeMap::new());
    ReleaseSpec { image, reference, sidecars, settings: Arc::new(settings), secrets }
}

/// A Fleet that runs `target` in `instances` Instances.
pub fn fleet(
    app: &AppKey,
    generation: u64,
    instances: u32,
    target: (u32, u32),
    releases: &[(u32, ReleaseSpec)],
) -> Fleet {
    // Another run means a restart.
    let revision = Revision { release: ReleaseNo(target.0), run: target.1, since: target.1 };
    Fleet {
        app: app.clone(),
        generation: Generation(generation),
        instances,
        absent: BTreeSet::new(),
        lineup: Some(Lineup::all(revision)),
        heading: Some(revision),
        surge: 0,
        paused: false,
        returning: false,
        releases: releases.iter().map(|(n, spec)| (ReleaseNo(*n), spec.clone())).collect(),
    }
}
