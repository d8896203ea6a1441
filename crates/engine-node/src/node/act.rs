//! Carrying out one step. Each act reports what came of it to the model; what follows is
//! for the next plan to say.

use std::net::SocketAddr;
use std::sync::Arc;

use stead_core::engine::Backend;
use stead_core::error::{Code, UserError};
use stead_core::event::{Fact, PhaseName};
use stead_core::fleet::{
    ContainerState, Exit, ReleaseSpec, Revision, SandboxSeen, Step, StopCause, TrafficState,
};
use stead_core::ids::{ContainerId, Digest, Ordinal};
use stead_core::manifest::PreStop;
use stead_core::time::{Micros, Time};

use super::Shared;
use super::labels::{ContainerLabels, SandboxLabels};
use super::pulls::PullWatch;
use super::spec::{self, Order};
use super::worker::Worker;
use crate::clock::now;
use crate::image::{Image, ImageError};
use crate::logs;
use crate::sandbox::{ExecSpec, Sandbox, SandboxError};

/// Between two attempts to stop what does not end.
const STOP_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Carries out one step and reports its outcome.
pub(super) async fn carry_out(worker: &Arc<Worker>, step: &Step) {
    match step {
        Step::Pull { release } => {
            let Some(spec) = release_spec(worker, *release) else { return };
            pull_for(worker, &spec).await;
        }
        Step::CreateSandbox { ordinal, revision } => {
            if let Err(error) = create_sandbox(worker, *ordinal, *revision).await {
                troubled(worker, *ordinal, None, *revision, error, None);
            }
        }
        Step::Prepare { ordinal, revision, .. } => {
            if let Err(error) = prepare(worker, *ordinal, *revision).await {
                troubled(worker, *ordinal, None, *revision, error, None);
            }
        }
        Step::Start { ordinal, container } => start(worker, *ordinal, container).await,
        Step::Attach { ordinal, container } => attach(worker, *ordinal, container).await,
        Step::Detach { ordinal, container, drain } => {
            detach(worker, *ordinal, container, *drain).await;
        }
        Step::Stop { ordinal, container, grace, because } => {
            stop(worker, *ordinal, container, *grace, *because).await;
        }
        Step::Discard { ordinal, container } => discard(worker, *ordinal, container).await,
        Step::RemoveSandbox { ordinal } => remove_sandbox(worker, *ordinal).await,
        Step::Update { ordinal, revision, .. }
        | Step::Thaw { ordinal, revision, .. }
        | Step::Hook { ordinal, revision, .. } => {
            let error = UserError::new(Code::NotBuilt, format!("{step} is not built"), "wait");
            troubled(worker, *ordinal, None, *revision, error, None);
        }
        Step::Freeze { .. } => {}
    }
}

fn release_spec(worker: &Worker, release: stead_core::ids::ReleaseNo) -> Option<ReleaseSpec> {
    worker.model().fleet.as_ref()?.releases.get(&release).cloned()
}

/// Notes trouble with an Instance, for the planner's back-off and for people.
fn troubled(
    worker: &Worker,
    ordinal: Ordinal,
    container: Option<&ContainerId>,
    revision: Revision,
    error: UserError,
    ran: Option<Micros>,
) {
    tracing::warn!(app = %worker.app, %ordinal, %revision, %error, "trouble");
    let fact = Fact::Trouble { error: error.clone() };
    worker.report(|model| model.trouble(ordinal, revision, error, ran, now()));
    worker.emit(Some(ordinal), container, Some(revision), fact);
}

/// Fetches an image, or finds it on disk.
pub(super) async fn pull(
    shared: &Shared,
    reference: &str,
    digest: &Digest,
) -> Result<Arc<Image>, UserError> {
    let parsed = reference.parse().map_err(ImageError::from).map_err(UserError::from)?;
    let progress = PullWatch::new(&shared.pulls, digest);
    shared.images.pull(&parsed, digest, &progress).await.map_err(UserError::from)
}

async fn pull_for(worker: &Worker, spec: &ReleaseSpec) {
    let begun = now();
    let digest = spec.image.clone();
    match pull(&worker.shared, &spec.reference, &digest).await {
        Ok(_) => {
            worker.report(|model| model.image_present(digest));
            worker.timed(None, None, None, PhaseName::Pull, begun);
        }
        Err(error) => {
            let fact = Fact::Trouble { error: error.clone() };
            worker.report(|model| model.image_failed(digest, error, now()));
            worker.emit(None, None, None, fact);
        }
    }
}

async fn create_sandbox(
    worker: &Worker,
    ordinal: Ordinal,
    revision: Revision,
) -> Result<(), UserError> {
    let Some(release) = release_spec(worker, revision.release) else { return Ok(()) };
    let _permit = worker.shared.setups.acquire().await.expect("the semaphore is never closed");
    let begun = now();
    let labels =
        SandboxLabels { app: worker.app.clone(), ordinal, shape: release.shape(), revision };
    let sandbox_spec = spec::sandbox(&labels);
    let sandbox = worker.shared.host.create(sandbox_spec).await.map_err(|error| error.user())?;
    let seen = sandbox_seen(&sandbox, &labels, begun);
    worker.report(|model| {
        model.seen.instances.entry(ordinal).or_default().sandbox = Some(seen);
        model.sandboxes.insert(ordinal, sandbox);
    });
    worker.timed(Some(ordinal), None, Some(revision), PhaseName::Network, begun);
    Ok(())
}

/// A Sandbox as the planner sees it.
pub(super) fn sandbox_seen(
    sandbox: &Sandbox,
    labels: &SandboxLabels,
    created: Time,
) -> SandboxSeen {
    SandboxSeen {
        id: stead_core::ids::SandboxId(sandbox.id().to_owned()),
        ip: sandbox.ip(),
        shape: labels.shape.clone(),
        made_for: labels.revision,
        created,
    }
}

async fn prepare(worker: &Worker, ordinal: Ordinal, revision: Revision) -> Result<(), UserError> {
    let Some(release) = release_spec(worker, revision.release) else { return Ok(()) };
    let Some(sandbox) = worker.model().sandboxes.get(&ordinal).cloned() else { return Ok(()) };
    let Some(image) = worker.shared.images.get(&release.image) else {
        // It was removed since it was seen: the next plan fetches it again.
        worker.report(|model| model.seen.images.remove(&release.image));
        return Ok(());
    };
    let _permit = worker.shared.setups.acquire().await.expect("the semaphore is never closed");
    let begun = now();
    let order = Order { app: &worker.app, ordinal, release: &release, image: &image };
    let volumes = spec::volumes(&worker.shared, order)?;
    if !volumes.is_empty() {
        worker.timed(Some(ordinal), None, Some(revision), PhaseName::Volumes, begun);
    }
    let begun = now();
    let port = release.settings.http_port(&spec::exposed_tcp_ports(&image.config));
    let id = spec::container_id(&sandbox, revision, begun);
    let labels = ContainerLabels { revision, port, image: release.image.clone() };
    let container_spec = spec::container(&worker.shared, order, &id, &labels, volumes)?;
    sandbox.prepare(container_spec).await.map_err(|error| error.user())?;
    worker.timed(Some(ordinal), Some(&id), Some(revision), PhaseName::Prepare, begun);
    worker.report(|model| {
        if let Some(port) = port {
            model.ports.insert(id.clone(), port);
        }
        model.images.insert(id.clone(), release.image.clone());
        model.prepared(ordinal, id, revision);
    });
    Ok(())
}

/// The Sandbox and the Revision of a Container that is still known.
fn held(worker: &Worker, ordinal: Ordinal, id: &ContainerId) -> Option<(Arc<Sandbox>, Revision)> {
    let model = worker.model();
    let (_, container) = model.container(id)?;
    Some((model.sandboxes.get(&ordinal)?.clone(), container.revision))
}

async fn start(worker: &Arc<Worker>, ordinal: Ordinal, id: &ContainerId) {
    let Some((sandbox, revision)) = held(worker, ordinal, id) else { return };
    let begun = now();
    match sandbox.start(id.as_str()).await {
        Ok(()) => {
            worker.report(|model| model.running(id, now()));
            worker.timed(Some(ordinal), Some(id), Some(revision), PhaseName::Start, begun);
            worker.watch(id);
        }
        Err(error) => {
            troubled(worker, ordinal, Some(id), revision, error.user(), None);
            // What could not be started is of no more use.
            discard(worker, ordinal, id).await;
        }
    }
}

pub(super) async fn attach(worker: &Worker, ordinal: Ordinal, id: &ContainerId) {
    let Some((sandbox, revision)) = held(worker, ordinal, id) else { return };
    let port = worker.model().ports.get(id).copied();
    mark_open(&worker.shared, id, true);
    if let Some(port) = port {
        let begun = now();
        let backend = Backend {
            container: id.clone(),
            instance: ordinal,
            revision,
            addr: SocketAddr::new(sandbox.ip(), port),
            mark: None,
        };
        worker.shared.traffic.attach(&worker.app, backend).await;
        worker.timed(Some(ordinal), Some(id), Some(revision), PhaseName::Attach, begun);
    }
    let running = worker.report(|model| {
        let running = model
            .container(id)
            .is_some_and(|(_, c)| matches!(c.state, ContainerState::Running { .. }));
        if running {
            model.traffic(id, TrafficState::Attached);
        }
        running
    });
    if !running && port.is_some() {
        // It ended while it was being attached.
        worker.shared.traffic.detach(&worker.app, id, std::time::Duration::ZERO).await;
    }
}

pub(super) async fn detach(worker: &Worker, ordinal: Ordinal, id: &ContainerId, drain: Micros) {
    let revision = held(worker, ordinal, id).map(|(_, revision)| revision);
    let begun = now();
    let has_port = worker.model().ports.contains_key(id);
    if has_port {
        let drained = worker.shared.traffic.detach(&worker.app, id, drain.duration()).await;
        if !drained.clean {
            tracing::warn!(app = %worker.app, container = %id, "requests outlived the grace period");
        }
        worker.timed(Some(ordinal), Some(id), revision, PhaseName::Drain, begun);
    }
    mark_open(&worker.shared, id, false);
    worker.report(|model| model.traffic(id, TrafficState::Detached));
}

async fn stop(
    worker: &Worker,
    ordinal: Ordinal,
    id: &ContainerId,
    grace: Micros,
    because: Option<StopCause>,
) {
    let Some((sandbox, revision)) = held(worker, ordinal, id) else { return };
    let settings = release_spec(worker, revision.release).map(|spec| spec.settings);
    let begun = now();
    if let Some(pre_stop) = settings.as_ref().and_then(|s| s.lifecycle.pre_stop.as_ref()) {
        run_pre_stop(worker, &sandbox, id, pre_stop, grace).await;
    }
    let signal = stop_signal(worker, revision);
    let mut grace = grace.duration();
    let (exit, ran) = loop {
        match sandbox.stop(id.as_str(), signal, grace).await {
            Ok(exit) => {
                let ran = Micros(exit.finished.saturating_sub(exit.started) / 1_000);
                break (spec::exit(&exit, true), ran);
            }
            // The Container is gone with its holder.
            Err(SandboxError::HolderLost { .. } | SandboxError::NotFound { .. }) => {
                let exit = Exit { at: now(), code: 137, oom_killed: false, intended: true };
                break (exit, Micros(0));
            }
            // It may still run, and nothing may run beside it.
            Err(error) => {
                tracing::error!(app = %worker.app, container = %id, %error, "cannot be stopped");
                grace = std::time::Duration::ZERO;
                tokio::time::sleep(STOP_AGAIN).await;
            }
        }
    };
    worker.report(|model| model.exited(id, exit));
    worker.timed(Some(ordinal), Some(id), Some(revision), PhaseName::Stop, begun);
    worker.emit(Some(ordinal), Some(id), Some(revision), Fact::Exited { exit });
    if let Some(cause) = because {
        let well = match cause {
            StopCause::NotAlive => ran,
            StopCause::NeverReady => Micros(0),
        };
        let error = stop_cause(worker, ordinal, cause);
        troubled(worker, ordinal, Some(id), revision, error, Some(well));
    }
}

fn stop_signal(worker: &Worker, revision: Revision) -> i32 {
    let Some(release) = release_spec(worker, revision.release) else { return libc::SIGTERM };
    let given = release.settings.stop_signal.map(|signal| signal.number());
    let of_image = || spec::image_stop_signal(&worker.shared.images.get(&release.image)?.config);
    given.or_else(of_image).unwrap_or(libc::SIGTERM)
}

async fn run_pre_stop(
    worker: &Worker,
    sandbox: &Sandbox,
    id: &ContainerId,
    pre_stop: &PreStop,
    grace: Micros,
) {
    let ran = match pre_stop {
        // A person asked for this wait. There is nothing to wait for once it has ended.
        PreStop::Sleep(span) => {
            let _ended = tokio::time::timeout(span.duration(), sandbox.wait(id.as_str())).await;
            return;
        }
        PreStop::Exec(argv) => {
            let spec = ExecSpec { argv: argv.clone(), ..ExecSpec::default() };
            let run = async {
                let mut handle = sandbox.exec(id.as_str(), spec).await?;
                handle.wait().await
            };
            tokio::time::timeout(grace.duration(), run).await
        }
    };
    let outcome = match ran {
        Ok(Ok(0)) => return,
        Ok(Ok(code)) => format!("ended with {code}"),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "did not end within the grace period".to_owned(),
    };
    tracing::warn!(app = %worker.app, container = %id, %outcome, "pre_stop failed");
}

fn stop_cause(worker: &Worker, ordinal: Ordinal, cause: StopCause) -> UserError {
    let app = &worker.app.app;
    match cause {
        StopCause::NeverReady => UserError::new(
            Code::NeverReady,
            format!("instance {ordinal} of app {app} did not become ready in time"),
            format!(
                "see why with `stead logs {app}`; check http.port and the health paths, or raise \
                 health.startup.timeout"
            ),
        ),
        StopCause::NotAlive => UserError::new(
            Code::EngineFailed,
            format!("instance {ordinal} of app {app} failed its liveness probe"),
            format!("see why with `stead logs {app}`"),
        ),
    }
}

async fn discard(worker: &Worker, ordinal: Ordinal, id: &ContainerId) {
    let sandbox = worker.model().sandboxes.get(&ordinal).cloned();
    if let Some(sandbox) = sandbox
        && let Err(error) = sandbox.discard(id.as_str()).await
    {
        tracing::warn!(app = %worker.app, container = %id, %error, "discard failed");
    }
    mark_open(&worker.shared, id, false);
    worker.report(|model| model.discarded(ordinal, id));
    trim_logs(worker, ordinal);
}

/// Deletes the output of Containers of long ago, in the background.
fn trim_logs(worker: &Worker, ordinal: Ordinal) {
    let folder = logs::folder(&worker.shared.data_dir, &worker.app);
    let held = containers(worker, ordinal);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = logs::trim(&folder, ordinal, &held) {
            tracing::warn!(folder = %folder.display(), %error, "old logs are not deleted");
        }
    });
}

async fn remove_sandbox(worker: &Worker, ordinal: Ordinal) {
    let sandbox = worker.model().sandboxes.get(&ordinal).cloned();
    for id in containers(worker, ordinal) {
        mark_open(&worker.shared, &id, false);
    }
    if let Some(sandbox) = sandbox
        && let Err(error) = worker.shared.host.remove(sandbox.id()).await
    {
        tracing::warn!(app = %worker.app, %ordinal, %error, "sandbox is not removed yet");
        // The reaper finishes it; what the planner waits for is that nothing runs in it.
        if !matches!(error, SandboxError::NotFound { .. }) {
            let revision = Revision { release: stead_core::ids::ReleaseNo(0), run: 0, since: 0 };
            troubled(worker, ordinal, None, revision, error.user(), None);
            return;
        }
    }
    worker.report(|model| model.removed(ordinal));
    trim_logs(worker, ordinal);
}

/// The Containers of an Instance.
fn containers(worker: &Worker, ordinal: Ordinal) -> Vec<ContainerId> {
    let model = worker.model();
    let instance = model.seen.instances.get(&ordinal);
    instance.iter().flat_map(|i| &i.containers).map(|c| c.id.clone()).collect()
}

/// Takes in the end of a Container that nobody asked for.
pub(super) async fn crashed(worker: &Worker, id: &ContainerId, exit: Exit) {
    let Some((ordinal, revision, since, attached)) =
        worker.model().container(id).and_then(|(ordinal, c)| {
            let since = match c.state {
                ContainerState::Prepared => None,
                ContainerState::Running { since, .. } => Some(since),
                // Being stopped: the stop reports it.
                ContainerState::Stopping { .. }
                | ContainerState::Frozen { .. }
                | ContainerState::Exited(_) => return None,
            };
            Some((ordinal, c.revision, since, c.traffic != TrafficState::Detached))
        })
    else {
        return;
    };
    mark_open(&worker.shared, id, false);
    let fresh = worker.report(|model| {
        model.traffic(id, TrafficState::Detached);
        model.exited(id, exit)
    });
    if !fresh {
        return;
    }
    worker.emit(Some(ordinal), Some(id), Some(revision), Fact::Exited { exit });
    if exit.code != 0 || restarts_always(worker, revision) {
        let error = crash_error(worker, ordinal, exit);
        let ran = since.map(|since| exit.at.since(since));
        troubled(worker, ordinal, Some(id), revision, error, ran);
    }
    if attached {
        worker.shared.traffic.detach(&worker.app, id, std::time::Duration::ZERO).await;
    }
}

fn restarts_always(worker: &Worker, revision: Revision) -> bool {
    release_spec(worker, revision.release)
        .is_some_and(|spec| spec.settings.restart == stead_core::manifest::RestartPolicy::Always)
}

fn crash_error(worker: &Worker, ordinal: Ordinal, exit: Exit) -> UserError {
    let app = &worker.app.app;
    let (how, hint) = if exit.oom_killed {
        let hint = "raise resources.memory, or make the app use less";
        ("ran out of memory".to_owned(), hint.to_owned())
    } else {
        let how = match exit.code {
            code @ 129.. => format!("was ended by signal {}", code - 128),
            code => format!("ended with exit code {code}"),
        };
        (how, format!("see why with `stead logs {app}`"))
    };
    UserError::new(Code::ExitedAtOnce, format!("instance {ordinal} of app {app} {how}"), hint)
}

/// Keeps in mind over a restart of `serve` that a Container is ready and may get requests:
/// from before it is attached until it is detached.
fn mark_open(shared: &Shared, id: &ContainerId, open: bool) {
    let mark = open_mark(shared, id);
    let done = if open {
        std::fs::write(&mark, b"")
    } else {
        match std::fs::remove_file(&mark) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    };
    if let Err(error) = done {
        tracing::warn!(mark = %mark.display(), %error, "a restart will not know who gets requests");
    }
}

/// Whether a Container might get requests when `serve` was last there.
pub(super) fn was_open(shared: &Shared, id: &ContainerId) -> bool {
    open_mark(shared, id).exists()
}

fn open_mark(shared: &Shared, id: &ContainerId) -> std::path::PathBuf {
    shared.run_dir.join("open").join(id.as_str())
}

/// Deletes the marks of Containers that are not there any more.
pub(super) fn forget_marks<'a>(shared: &Shared, known: impl Iterator<Item = &'a ContainerId>) {
    let known: std::collections::BTreeSet<&str> = known.map(ContainerId::as_str).collect();
    let marks = std::fs::read_dir(shared.run_dir.join("open")).into_iter().flatten().flatten();
    for mark in marks.filter(|m| m.file_name().to_str().is_none_or(|id| !known.contains(id))) {
        // One that stays behind is looked at by nobody: no id is used again.
        let _ = std::fs::remove_file(mark.path());
    }
}

/// Takes in that an Instance's holder is gone, and its Containers with it.
pub(super) async fn lost(worker: &Worker, ordinal: Ordinal) {
    tracing::error!(app = %worker.app, %ordinal, "holder is gone: the instance starts anew");
    let exit = Exit { at: now(), code: 137, oom_killed: false, intended: false };
    let gone = worker.report(|model| model.all_exited(ordinal, exit));
    for (id, revision, _) in &gone {
        worker.emit(Some(ordinal), Some(id), Some(*revision), Fact::Exited { exit });
    }
    let wanted = worker.model().fleet.as_ref().and_then(|fleet| fleet.wanted(ordinal));
    let ran = gone.last().map(|(.., ran)| *ran);
    // Counted, so that what ends its holder again and again is paced.
    if let Some(revision) = gone.last().map(|(_, revision, _)| *revision).or(wanted) {
        let error = UserError::new(
            Code::EngineFailed,
            format!("the holder of instance {ordinal} of app {} has ended", worker.app.app),
            "look in the machine's kernel log who ended it",
        );
        troubled(worker, ordinal, None, revision, error, ran);
    }
    for id in containers(worker, ordinal) {
        worker.shared.traffic.detach(&worker.app, &id, std::time::Duration::ZERO).await;
    }
    remove_sandbox(worker, ordinal).await;
}
