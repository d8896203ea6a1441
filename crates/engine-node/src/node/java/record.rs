//! Recording archives, one after another: what a training needs, and what follows from it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stead_core::event::Fact;
use stead_core::fleet::{
    ArchiveKept, ArchiveSeen, ContainerSeen, Part, ReleaseSpec, Revision, Slot,
};
use stead_core::ids::ContainerId;
use tokio::sync::mpsc;

use super::{Virtual, Wanted, Wish, looked, none, show, useless};
use crate::clock::now;
use crate::jvm::Key;
use crate::jvm::archives::ATTEMPTS;
use crate::jvm::train::{self, Trained, Training};
use crate::node::labels::ContainerLabels;
use crate::node::model::Kept;
use crate::node::spec::{self, Order};
use crate::node::worker::Worker;
use crate::node::{Shared, ends};
use crate::sandbox::{ContainerSpec, SandboxSpec, VolumeMount};

/// Between two attempts to record.
const AGAIN: Duration = Duration::from_secs(300);
/// Between two looks whether what is being recorded is still wanted.
const LOOK: Duration = Duration::from_secs(2);
/// Memory that a training takes of an App without a limit, as far as anybody knows.
const SOME_MEMORY: u64 = 2 << 30;
/// A training may take longer than a start that somebody waits for.
const SLOWER: u32 = 3;

/// Records archives that are wished for, one after another, for as long as the engine lives.
pub(in crate::node) async fn record(
    shared: Arc<Shared>,
    mut wishes: mpsc::UnboundedReceiver<Wish>,
) {
    while let Some(wish) = wishes.recv().await {
        let _turn = shared.java.turn.lock().await;
        if *shared.java.closing.borrow() {
            return;
        }
        let Some(worker) = wish.worker.upgrade() else { continue };
        if let Some((training, found)) = prepare(&shared, &worker, &wish).await {
            if has_memory(&shared, &training) {
                attempt(&shared, &worker, &wish, training, &found).await;
            } else {
                clear(&training);
                wish_again(&shared, &worker, &wish);
            }
        }
        let images = shared.images.clone();
        shared.java.tidy(|digest| images.get(digest).is_some());
    }
}

/// What a training needs; `None` if there is to be none.
async fn prepare(
    shared: &Arc<Shared>,
    worker: &Arc<Worker>,
    wish: &Wish,
) -> Option<(Training, Virtual)> {
    let part = Part::Main;
    let (id, slot) = (ContainerId("training".into()), Slot::A);
    let release = release_of(worker, wish.revision)?;
    let image = shared.images.get(&release.image)?;
    let port = release.settings.http_port(&spec::exposed_tcp_ports(&image.config));
    let order = Order {
        app: &worker.app,
        ordinal: wish.ordinal,
        release: &release,
        part: &part,
        image: &image,
    };
    let seen = ContainerSeen::prepared(id.clone(), part.clone(), slot, wish.revision);
    let digest = release.image.clone();
    let kept = Kept { port, image: digest, post_started: true, been_ready: false, hushed: false };
    let labels = ContainerLabels::of(&seen, &kept);
    let container = spec::container(shared, order, &id, &labels, slot, Vec::new()).ok()?;
    let wanted = Wanted::of(order, wish.revision, port);
    let (mut container, found, seen) = looked(shared, wanted, container).await?;
    // Several Instances have the same wish, and the first one may have been granted.
    worker.report(|model| model.seen.jvm = Some(seen));
    let kind = found.kind.filter(|_| found.wished)?;
    let scratch = match place(shared, &found.key, &release, &mut container) {
        Ok(scratch) => scratch,
        Err(error) => {
            tracing::warn!(%error, "no archive can be recorded");
            return None;
        }
    };
    container.labels = train::labels();
    let sandbox = SandboxSpec {
        id: format!("training-{}-{:x}", found.key, now().0),
        hostname: format!("{}-training", worker.app.app),
        namespace: worker.app.namespace.to_string(),
        dns: spec::name_servers(),
        labels: train::labels(),
        ..SandboxSpec::default()
    };
    let training = Training {
        kind,
        sandbox,
        container,
        health: release.settings.health.clone(),
        port,
        stop_signal: ends::stop_signal(worker, &part, wish.revision),
        patience: release.startup_timeout(&part).duration() * SLOWER,
        scratch,
    };
    Some((training, found))
}

/// Makes the folders that a training writes to. The App's own data is not for a copy that is
/// thrown away: its volumes are empty ones.
fn place(
    shared: &Shared,
    key: &Key,
    release: &ReleaseSpec,
    container: &mut ContainerSpec,
) -> std::io::Result<PathBuf> {
    let scratch = shared.java.archives.scratch(key)?;
    container.log = scratch.with_extension("log");
    for (number, volume) in release.settings.volumes.iter().enumerate() {
        let host = scratch.with_extension(format!("volume{number}"));
        std::fs::create_dir_all(&host)?;
        std::os::unix::fs::chown(&host, Some(container.uid), Some(container.gid))?;
        let mount = volume.mount.as_str().to_owned();
        container.volumes.push(VolumeMount { host, mount, read_only: false });
    }
    Ok(scratch)
}

/// The Release, for as long as it is to run: one of an App that was stopped is kept, too.
fn release_of(worker: &Worker, revision: Revision) -> Option<ReleaseSpec> {
    let model = worker.model();
    let fleet = model.fleet.as_ref()?;
    let mut wanted = fleet.ordinals().chain(fleet.surplus()).filter_map(|at| fleet.wanted(at));
    let is_wanted = wanted.any(|wanted| wanted.release == revision.release);
    fleet.releases.get(&revision.release).filter(|_| is_wanted).cloned()
}

/// Whether the machine has the memory that a training needs.
fn has_memory(shared: &Shared, training: &Training) -> bool {
    let needed = train::memory(&training.container.resources).unwrap_or(SOME_MEMORY);
    shared.memory.seen().is_none_or(|seen| !seen.pressed && seen.free > needed)
}

/// One attempt, and what follows from it.
async fn attempt(
    shared: &Arc<Shared>,
    worker: &Arc<Worker>,
    wish: &Wish,
    training: Training,
    found: &Virtual,
) {
    show(worker, &ArchiveSeen::Recording);
    let Virtual { key, image, .. } = found;
    // While somebody holds it, its image is not removed.
    let _held = shared.images.get(image);
    let mut closing = shared.java.closing.subscribe();
    let unwanted = async {
        while !*closing.borrow() && release_of(worker, wish.revision).is_some() {
            // Until the next look, or until the engine is closed.
            let _ = tokio::time::timeout(LOOK, closing.changed()).await;
        }
    };
    let trained = train::train(&shared.host, &training, unwanted).await;
    let archives = &shared.java.archives;
    let outcome = match trained {
        Ok(Trained { kept, .. }) if !train::is_worth_it(&kept) => {
            archives.useless(key, image, kept.plain, kept.fast, now());
            Ok(none(&useless(kept.plain, kept.fast)))
        }
        Ok(trained) => {
            let seen = ArchiveSeen::Kept(trained.kept);
            let (shared, key, image) = (Arc::clone(shared), key.clone(), image.clone());
            // It reads all of the archive.
            let keep = move || shared.java.archives.keep(&key, &image, &trained);
            let kept = tokio::task::spawn_blocking(keep).await;
            match kept.expect("keeping an archive does not panic") {
                Ok(()) => Ok(seen),
                Err(error) => Err(format!("the disk took no archive: {error}")),
            }
        }
        Err(why) => Err(why),
    };
    clear(&training);
    if *shared.java.closing.borrow() || release_of(worker, wish.revision).is_none() {
        worker.report(|model| match &mut model.seen.jvm {
            Some(jvm) if jvm.archive == ArchiveSeen::Recording => {
                jvm.archive = ArchiveSeen::Awaited;
            }
            _ => {}
        });
        return;
    }
    let archive = outcome.unwrap_or_else(|why| {
        let times = archives.failed(key, image, why.clone(), now());
        if times < ATTEMPTS {
            wish_again(shared, worker, wish);
        }
        none(&why)
    });
    show(worker, &archive);
    let what = match archive {
        ArchiveSeen::Kept(ArchiveKept { kind, plain, fast, .. }) => {
            format!(
                "starts use an archive of classes ({}) from now on: {plain} → {fast}",
                kind.as_str()
            )
        }
        ArchiveSeen::None { why } => format!("starts go without an archive of classes: {why}"),
        ArchiveSeen::Awaited | ArchiveSeen::Recording => return,
    };
    worker.emit(None, None, Some(wish.revision), Fact::Noted { what });
}

fn wish_again(shared: &Arc<Shared>, worker: &Arc<Worker>, wish: &Wish) {
    let (shared, worker) = (Arc::downgrade(shared), Arc::downgrade(worker));
    let Wish { ordinal, revision, .. } = *wish;
    tokio::spawn(async move {
        // Paces a retry.
        tokio::time::sleep(AGAIN).await;
        if let (Some(shared), Some(worker)) = (shared.upgrade(), worker.upgrade()) {
            shared.java.wish(&worker, ordinal, revision);
        }
    });
}

/// Removes what a training left beside its archive. What stays goes at the next start of `serve`.
fn clear(training: &Training) {
    let _ = std::fs::remove_file(&training.container.log);
    for volume in &training.container.volumes {
        let _ = std::fs::remove_dir_all(&volume.host);
    }
    let _ = std::fs::remove_dir_all(&training.scratch);
}
