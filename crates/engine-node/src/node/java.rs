//! Java programs: what is added to their start, and when an archive for it is recorded.
//!
//! Everything here is for speed. Whatever goes wrong, the App starts as it would without: no
//! error leaves this module.

mod record;

use std::sync::{Arc, Weak};

use stead_core::fleet::{ArchiveKind, ArchiveSeen, JvmSeen, Revision};
use stead_core::ids::{ContainerId, Digest, Ordinal, ReleaseNo};
use stead_core::manifest::{Jvm, JvmArchive, JvmThreads, Strategy};
use stead_core::name::NamespaceName;
use stead_core::time::Micros;
use tokio::sync::{Mutex, mpsc, watch};

use super::Shared;
use super::spec::Order;
use super::worker::Worker;
use crate::clock::now;
use crate::jvm::archives::ATTEMPTS;
use crate::jvm::flags::{self, Own, VARIABLES};
use crate::jvm::{Archives, Jdk, Key, Known, train};
use crate::sandbox::{ContainerSpec, VolumeMount};

pub(super) use record::record;

/// The virtual machines' archives, and who waits for one.
pub(super) struct Java {
    archives: Archives,
    wishes: mpsc::UnboundedSender<Wish>,
    /// No archive is recorded any more.
    closing: watch::Sender<bool>,
    /// Held while one is recorded.
    turn: Mutex<()>,
}

/// Asks to look whether a Release should have an archive, and to record it.
pub(super) struct Wish {
    worker: Weak<Worker>,
    ordinal: Ordinal,
    revision: Revision,
}

/// What is known of the virtual machine of one Container.
#[derive(Debug, Clone)]
pub(super) struct Virtual {
    key: Key,
    image: Digest,
    kind: Option<ArchiveKind>,
    /// It starts from the archive of its key.
    used: bool,
    /// One is to be recorded.
    wished: bool,
}

impl Java {
    pub(super) fn new(archives: Archives) -> (Self, mpsc::UnboundedReceiver<Wish>) {
        let (wishes, listener) = mpsc::unbounded_channel();
        let (closing, turn) = (watch::Sender::new(false), Mutex::default());
        (Self { archives, wishes, closing, turn }, listener)
    }

    /// Ends the recording of archives. When it returns no copy of an App is left.
    pub(super) async fn close(&self) {
        self.closing.send_replace(true);
        let _over = self.turn.lock().await;
    }

    /// Removes archives that nobody will use.
    pub(super) fn tidy(&self, has_image: impl Fn(&Digest) -> bool) {
        self.archives.tidy(now(), has_image);
    }

    fn wish(&self, worker: &Arc<Worker>, ordinal: Ordinal, revision: Revision) {
        // Nobody listens any more once the engine is being closed.
        let _ = self.wishes.send(Wish { worker: Arc::downgrade(worker), ordinal, revision });
    }
}

/// Adds to a Container of a Java program what makes it start well: options for its limits, and
/// the archive. `None`: it is none.
pub(super) async fn fit(
    worker: &Worker,
    order: Order<'_>,
    revision: Revision,
    port: Option<u16>,
    container: ContainerSpec,
) -> (ContainerSpec, Option<Virtual>) {
    if !Jdk::is_named(&container) {
        return (container, None);
    }
    let wanted = Wanted::of(order, revision, port);
    match looked(&worker.shared, wanted, container.clone()).await {
        Some((fitted, found, seen)) => {
            if order.part.is_main() {
                worker.report(|model| model.seen.jvm = Some(seen));
            }
            (fitted, Some(found))
        }
        None => (container, None),
    }
}

/// [`look`] where it may read the disk.
async fn looked(
    shared: &Arc<Shared>,
    wanted: Wanted,
    mut container: ContainerSpec,
) -> Option<(ContainerSpec, Virtual, JvmSeen)> {
    let shared = shared.clone();
    let looking = tokio::task::spawn_blocking(move || {
        let (found, seen) = look(&shared.java.archives, &wanted, &mut container)?;
        Some((container, found, seen))
    });
    looking.await.ok()?
}

/// What a Release says of its virtual machine.
struct Wanted {
    namespace: NamespaceName,
    release: ReleaseNo,
    image: Digest,
    main: bool,
    jvm: Jvm,
    /// A second copy of the App might do harm: it cannot run twice, or says so.
    harms: bool,
    /// There is something that tells when it has started.
    tells: bool,
}

impl Wanted {
    fn of(order: Order<'_>, revision: Revision, port: Option<u16>) -> Self {
        let settings = &order.release.settings;
        let health = &settings.health;
        Self {
            namespace: order.app.namespace.clone(),
            release: revision.release,
            image: order.image.digest.clone(),
            main: order.part.is_main(),
            jvm: settings.jvm,
            harms: settings.rollout.strategy() == Strategy::InPlace
                || settings.volumes.iter().any(|volume| !volume.shared),
            tells: port.is_some() || health.startup.is_some() || health.readiness.is_some(),
        }
    }

    /// Why no archive is recorded for it; `None` if one is.
    fn objection(&self) -> Option<&'static str> {
        if self.harms && self.jvm.archive == JvmArchive::Auto {
            Some(
                "a second copy of the app, which would record it, might do harm; allow it with \
                 `jvm: {archive: on}`",
            )
        } else if !self.tells {
            Some("nothing tells when it has started; set http.port or health.startup")
        } else {
            None
        }
    }
}

/// Looks at a Container before it is prepared, and adds what is to be added. `None`: its program
/// is no Java virtual machine.
fn look(
    archives: &Archives,
    wanted: &Wanted,
    container: &mut ContainerSpec,
) -> Option<(Virtual, JvmSeen)> {
    let jdk = Jdk::of(container)?;
    let own = own_options(container);
    let mut options = flags::defaults(own, &container.resources);
    let mut notes = Vec::new();
    if wanted.main {
        threads(wanted.jvm.threads, &jdk, container, &mut options, &mut notes);
    }
    flags::insert(&mut container.argv, options.iter().cloned());
    let key = Key::of(&wanted.namespace, &wanted.image, &jdk, container);
    let kind = jdk.archive();
    let (policy, forbidden) = (wanted.jvm.archive, own.forbid_archive());
    let archive = match (forbidden, kind) {
        _ if !wanted.main => none("it is a sidecar"),
        _ if policy == JvmArchive::Off => none("jvm.archive is off"),
        (Some(why), _) => none(why),
        (None, None) => none("Java before 13 has none"),
        (None, Some(kind)) => match archives.usable(&key, now()) {
            Some((kept, folder)) => {
                let using = flags::using(kind);
                flags::insert(&mut container.argv, using.iter().cloned());
                options.extend(using);
                let mount = flags::PLACE.into();
                container.volumes.push(VolumeMount { host: folder, mount, read_only: true });
                ArchiveSeen::Kept(kept)
            }
            None => match archives.known(&key).and_then(|known| refusal(&known)) {
                Some(why) => ArchiveSeen::None { why },
                None => wanted.objection().map_or(ArchiveSeen::Awaited, none),
            },
        },
    };
    let used = matches!(archive, ArchiveSeen::Kept(_));
    let wished = archive == ArchiveSeen::Awaited;
    let found = Virtual { key, image: wanted.image.clone(), kind, used, wished };
    Some((found, JvmSeen { release: wanted.release, jdk: jdk.name, options, archive, notes }))
}

fn none(why: &str) -> ArchiveSeen {
    ArchiveSeen::None { why: why.to_owned() }
}

fn own_options(container: &ContainerSpec) -> Own {
    let named = |name: &str| VARIABLES.contains(&name);
    let plain = container.env.iter().filter(|(name, _)| named(name));
    let plain = plain.map(|(_, value)| value.as_str());
    let secret = container.secrets.iter().filter(|(name, _)| named(name));
    let secret = secret.map(|(_, value)| value.expose());
    Own::read(container.argv.iter().skip(1).map(String::as_str), plain.chain(secret))
}

/// Gives the App the threads it asks for, where its virtual machine has them.
fn threads(
    wanted: JvmThreads,
    jdk: &Jdk,
    container: &mut ContainerSpec,
    added: &mut Vec<String>,
    notes: &mut Vec<String>,
) {
    const SPRING: &str = "SPRING_THREADS_VIRTUAL_ENABLED";
    match wanted {
        JvmThreads::Platform => {}
        JvmThreads::Virtual if jdk.feature >= 21 => {
            let mut names = container.env.iter().map(|(name, _)| name);
            let mut secrets = container.secrets.iter().map(|(name, _)| name);
            if !names.any(|name| name == SPRING) && !secrets.any(|name| name == SPRING) {
                container.env.push((SPRING.into(), "true".into()));
            }
        }
        JvmThreads::Virtual => notes.push(format!(
            "jvm.threads is virtual, but {} has no virtual threads: Java 21 or later has them",
            jdk.name
        )),
        JvmThreads::Wisp if jdk.dragonwell => {
            added.extend(["-XX:+UnlockExperimentalVMOptions", "-XX:+UseWisp2"].map(str::to_owned));
        }
        JvmThreads::Wisp => notes.push(format!(
            "jvm.threads is wisp, but {} has no coroutines: Alibaba Dragonwell has them",
            jdk.name
        )),
    }
}

/// Why there is no archive, where that is settled.
fn refusal(known: &Known) -> Option<String> {
    match known {
        Known::Kept { .. } => None,
        Known::Useless { plain, fast } => Some(useless(*plain, *fast)),
        Known::Failed { why, times } if *times >= ATTEMPTS => Some(why.clone()),
        Known::Failed { .. } => None,
    }
}

fn useless(plain: Micros, fast: Micros) -> String {
    format!("it does not start faster with one ({plain} without, {fast} with)")
}

/// Takes in that a Container has become ready for the first time.
pub(super) fn ready(worker: &Arc<Worker>, ordinal: Ordinal, id: &ContainerId) {
    let (found, revision, sandbox) = {
        let model = worker.model();
        let Some(found) = model.java.get(id).cloned() else { return };
        let Some((_, container)) = model.container(id) else { return };
        (found, container.revision, model.sandboxes.get(&ordinal).cloned())
    };
    let java = &worker.shared.java;
    let mut wished = found.wished;
    if let (true, Some(kind), Some(sandbox)) = (found.used, found.kind, sandbox) {
        let (worker, id) = (worker.clone(), id.clone());
        tokio::task::spawn_blocking(move || {
            let why = "the virtual machine did not take the archive any more";
            if !train::is_mapped(&sandbox, id.as_str(), kind) && drop_archive(&worker, &found, why)
            {
                worker.shared.java.wish(&worker, ordinal, revision);
            }
        });
        return;
    }
    if java.archives.trust(&found.key) {
        // With it the start failed, without it went well.
        wished |= drop_archive(worker, &found, "a start with the archive failed");
    }
    if wished {
        java.wish(worker, ordinal, revision);
    }
}

/// Looks again at what was found after a restart: a recording may have been cut off.
pub(super) fn recovered(worker: &Arc<Worker>) {
    let serving = {
        let model = worker.model();
        let mut instances = model.seen.instances.iter();
        instances.find_map(|(ordinal, i)| Some((*ordinal, i.serving()?.revision)))
    };
    if let Some((ordinal, revision)) = serving {
        worker.shared.java.wish(worker, ordinal, revision);
    }
}

/// Whether a Container was started from an archive.
pub(super) fn had_archive(worker: &Worker, id: &ContainerId) -> bool {
    worker.model().java.get(id).is_some_and(|found| found.used)
}

/// Takes in that a Container ended before it had ever been ready.
pub(super) fn failed(worker: &Worker, id: &ContainerId) {
    let Some(found) = worker.model().java.get(id).cloned() else { return };
    let archives = &worker.shared.java.archives;
    if found.used {
        tracing::warn!(app = %worker.app, container = %id, "the next start goes without archive");
        archives.doubt(&found.key);
    } else {
        // It is not the archive's fault.
        archives.trust(&found.key);
    }
}

/// Drops an archive that is of no use. Gives whether another one may be recorded.
fn drop_archive(worker: &Worker, found: &Virtual, why: &str) -> bool {
    tracing::warn!(app = %worker.app, key = %found.key, why, "archive dropped");
    let archives = &worker.shared.java.archives;
    let times = archives.failed(&found.key, &found.image, why.to_owned(), now());
    let archive = match times {
        ATTEMPTS.. => none(why),
        _ => ArchiveSeen::Awaited,
    };
    show(worker, &archive);
    times < ATTEMPTS
}

fn show(worker: &Worker, archive: &ArchiveSeen) {
    worker.report(|model| {
        if let Some(jvm) = &mut model.seen.jvm {
            jvm.archive = archive.clone();
        }
    });
}
