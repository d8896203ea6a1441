//! One Sandbox and its Containers.
//!
//! What is known of Containers is what the holder told: [`Sandbox::containers`] asks nobody.
//! Calls about different Containers may run at the same time.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stead_core::time::Time;
use stead_holder::wire::{self, Answer, Command, Failure};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::frozen;
use super::host::{Means, SandboxEvent};
use super::launch::Held;
use super::link::{Gone, News, Reply};
use super::places::Places;
use super::recover::Record;
use super::slots::Slots;
use super::spec::joined;
use super::{
    ContainerSpec, ContainerView, ExecHandle, ExecSpec, Exit, Resources, SandboxError, Slot, Stdio,
    Timings, Usage, ViewState,
};
use crate::cgroup::Group;
use crate::network::Second;

/// How long a killed Container may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// One Sandbox.
#[derive(Debug)]
pub struct Sandbox {
    means: Arc<Means>,
    held: Held,
    record: Record,
    known: Arc<Known>,
    slots: Arc<Slots>,
    listener: JoinHandle<()>,
    /// Held while a Container's places on the host are made or removed.
    places: tokio::sync::Mutex<()>,
}

/// What the holder told.
#[derive(Debug)]
struct Known {
    sandbox: String,
    containers: Mutex<BTreeMap<String, ContainerView>>,
    changed: watch::Sender<()>,
    /// The end of the holder is wanted, and no news.
    leaving: AtomicBool,
    /// The holder has ended.
    gone: AtomicBool,
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, ContainerView>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, container: &str, state: ViewState) {
        if let Some(view) = self.lock().get_mut(container) {
            view.state = state;
        }
        self.changed.send_replace(());
    }

    fn hear(&self, news: News, means: &Means) {
        let event = match news {
            News::Exited { container, exit } => {
                self.set(&container, ViewState::Exited(exit.clone()));
                SandboxEvent::Exited { sandbox: self.sandbox.clone(), container, exit }
            }
            News::Gone => {
                self.gone.store(true, Ordering::Release);
                self.changed.send_replace(());
                if self.leaving.load(Ordering::Relaxed) {
                    return;
                }
                SandboxEvent::HolderLost { sandbox: self.sandbox.clone() }
            }
        };
        // Nobody has to listen.
        let _ = means.events.send(event);
    }
}

impl Drop for Sandbox {
    /// Lets go of the holder, which goes on.
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Sandbox {
    /// Begins to listen to the holder.
    pub(crate) fn take_over(
        means: Arc<Means>,
        held: Held,
        record: Record,
        second: Second,
        containers: Vec<wire::Container>,
    ) -> Arc<Self> {
        let index = held.connection.index.0.to_string();
        let view = |container: wire::Container| {
            let wire::Container { id, labels, slot, state, .. } = container;
            let slot = match slot {
                wire::Slot::A => Slot::A,
                wire::Slot::B => Slot::B,
            };
            let group = means.cgroups.group(&index, &id);
            let state = frozen::found(&held.folder, &id, &group, state.into());
            (id.clone(), ContainerView { id, labels, slot, state })
        };
        let known = Arc::new(Known {
            sandbox: record.id.clone(),
            containers: Mutex::new(containers.into_iter().map(view).collect()),
            changed: watch::Sender::new(()),
            leaving: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        });
        let (link, told, events) = (held.link.clone(), known.clone(), means.clone());
        let listener = tokio::spawn(async move {
            link.listen(|news| told.hear(news, &events)).await;
        });
        let places = tokio::sync::Mutex::default();
        let slots = Slots::new(second);
        Arc::new(Self { means, held, record, known, slots, listener, places })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Its address, for its whole life.
    pub fn ip(&self) -> IpAddr {
        self.held.connection.ips.v4.into()
    }

    /// When it was made.
    pub fn created_at(&self) -> Time {
        self.record.created
    }

    /// As given.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.record.labels
    }

    /// The Namespace it belongs to.
    pub fn namespace(&self) -> &str {
        &self.record.namespace
    }

    /// Every Container that was prepared and not discarded, by id.
    pub fn containers(&self) -> Vec<ContainerView> {
        self.known.lock().values().cloned().collect()
    }

    /// Whether its holder has ended, and with it every Container: it can only be removed.
    pub fn is_lost(&self) -> bool {
        self.known.gone.load(Ordering::Acquire)
    }

    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    pub(crate) fn means(&self) -> &Arc<Means> {
        &self.means
    }

    pub(crate) fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    pub(crate) fn hostname(&self) -> &str {
        &self.record.hostname
    }

    /// From now on the end of the holder is no news.
    pub(crate) fn leave(&self) {
        self.known.leaving.store(true, Ordering::Relaxed);
    }

    /// Sets a Container up as far as the moment before its program begins. Does nothing if that
    /// has been done.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] if it runs or has ended; [`SandboxError::BadSpec`];
    /// [`SandboxError::Step`] names what failed, and nothing is left of the Container.
    pub async fn prepare(&self, spec: ContainerSpec) -> Result<Timings, SandboxError> {
        spec.check()?;
        let begun = Instant::now();
        let id = spec.id.clone();
        let _places = self.places.lock().await;
        match self.state(&id) {
            Ok(ViewState::Prepared) => return Ok(Timings::default()),
            Ok(_) => return Err(self.wrong_state(&id, "was started before")),
            Err(_) => {}
        }
        let making = Instant::now();
        self.make_slot(spec.slot).await?;
        let slot = making.elapsed();
        let places = Places::new(self, &spec)?;
        let request = places.request(self, &spec)?;
        let (means, in_slot) = (self.means.clone(), spec.slot);
        let (made, places) =
            tokio::task::spawn_blocking(move || (places.make(&means, &spec), places))
                .await
                .map_err(io::Error::other)
                .map_err(SandboxError::step("preparing a container"))?;
        let folders = begun.elapsed() - slot;
        let labels = request.labels.clone();
        let prepared = match made {
            Ok(()) => self.ask(&id, Command::Prepare(Box::new(request)), &[]).await,
            Err(error) => Err(error),
        };
        let refusal = match prepared {
            Ok(Reply { result: Ok(Answer::Prepared(phases)), .. }) => Ok(phases),
            Ok(other) => Err(unexpected(other.result)),
            Err(error) => Err(error),
        };
        let phases = match refusal {
            Ok(phases) => phases,
            Err(error) => {
                // The holder may have one that nobody knows of: its caller did not wait.
                let discard = Command::Discard { container: id.clone() };
                let runs = self.ask(&id, discard, &[]).await;
                if !matches!(runs, Err(SandboxError::WrongState { .. })) {
                    self.undo(places).await;
                }
                return Err(error);
            }
        };
        let view =
            ContainerView { id: id.clone(), labels, slot: in_slot, state: ViewState::Prepared };
        self.known.lock().insert(id.clone(), view);
        self.known.changed.send_replace(());
        let timings = Timings {
            slot,
            folders,
            root: Duration::from_micros(phases.root),
            volumes: Duration::from_micros(phases.mounts),
            process: Duration::from_micros(phases.process),
            total: begun.elapsed(),
        };
        tracing::debug!(sandbox = self.id(), container = %id, ?timings, "container prepared");
        Ok(timings)
    }

    /// Lets a prepared Container's program begin. Returns once `execve` has succeeded.
    ///
    /// # Errors
    /// [`SandboxError::CannotRun`] says why the program cannot be run.
    pub async fn start(&self, container: &str) -> Result<(), SandboxError> {
        let command = Command::Start { container: container.to_owned() };
        match self.ask(container, command, &[]).await?.result {
            Ok(Answer::Started { pid, at }) => {
                // The end of a short program may have been told already.
                if let Some(view) = self.known.lock().get_mut(container)
                    && view.state == ViewState::Prepared
                {
                    view.state = ViewState::Running { pid, started: Time(at / 1_000) };
                }
                self.known.changed.send_replace(());
                Ok(())
            }
            other => Err(unexpected(other)),
        }
    }

    /// Asks a Container to end with a signal, and kills it when the time is over. Returns how it
    /// ended, also when that was before.
    ///
    /// # Errors
    /// [`SandboxError::HolderLost`]; [`SandboxError::NotFound`].
    pub async fn stop(
        &self,
        container: &str,
        signal: i32,
        grace: Duration,
    ) -> Result<Exit, SandboxError> {
        if let ViewState::Exited(exit) = self.state(container)? {
            return Ok(exit);
        }
        // One that is frozen would not notice.
        self.let_go(container);
        self.signal(container, signal).await?;
        if let Ok(exit) = timeout(grace, self.wait(container)).await {
            return exit;
        }
        self.kill(container).await
    }

    /// Ends a Container at once. What stands still does not run another instruction: a kill is
    /// the one signal that reaches it. Returns how it ended, also when that was before.
    ///
    /// # Errors
    /// As of [`Sandbox::stop`].
    pub async fn kill(&self, container: &str) -> Result<Exit, SandboxError> {
        self.signal(container, libc::SIGKILL).await?;
        let late = || SandboxError::Step {
            step: format!("killing container {container}"),
            source: io::ErrorKind::TimedOut.into(),
        };
        let exit = timeout(PATIENCE, self.wait(container)).await.map_err(|_| late())??;
        self.let_go(container);
        Ok(exit)
    }

    /// Sends a signal to a Container's main process.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`]; it is no error if it has ended.
    pub async fn signal(&self, container: &str, signal: i32) -> Result<(), SandboxError> {
        let command = Command::Signal { container: container.to_owned(), signal };
        match self.ask(container, command, &[]).await {
            Ok(_) | Err(SandboxError::WrongState { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits for a Container's end.
    ///
    /// # Errors
    /// [`SandboxError::HolderLost`]; [`SandboxError::NotFound`].
    pub async fn wait(&self, container: &str) -> Result<Exit, SandboxError> {
        let mut changed = self.known.changed.subscribe();
        loop {
            if let ViewState::Exited(exit) = self.state(container)? {
                return Ok(exit);
            }
            if self.is_lost() || changed.changed().await.is_err() {
                return Err(self.lost());
            }
        }
    }

    /// Removes a Container that is prepared or has ended, with its writable layer. This takes
    /// note of its exit. Does nothing if there is none.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] if it runs.
    pub async fn discard(&self, container: &str) -> Result<(), SandboxError> {
        let _places = self.places.lock().await;
        let command = Command::Discard { container: container.to_owned() };
        match self.ask(container, command, &[]).await {
            Ok(_) | Err(SandboxError::NotFound { .. } | SandboxError::HolderLost { .. }) => {}
            Err(error) => return Err(error),
        }
        self.known.lock().remove(container);
        self.known.changed.send_replace(());
        self.undo(Places::of(self, container)).await;
        Ok(())
    }

    /// Removes what is left of a Container.
    async fn undo(&self, places: Places) {
        let means = self.means.clone();
        // It fails only when the runtime is being shut down; the next start cleans up.
        let _ = tokio::task::spawn_blocking(move || places.undo(&means)).await;
    }

    /// Runs a further program in a running Container. It is killed if it has not ended when the
    /// handle is dropped.
    ///
    /// # Errors
    /// [`SandboxError::CannotRun`]; [`SandboxError::WrongState`] if the Container does not run or
    /// is frozen; [`SandboxError::Step`] if its limit of processes is reached.
    pub async fn exec(&self, container: &str, spec: ExecSpec) -> Result<ExecHandle, SandboxError> {
        if matches!(self.state(container)?, ViewState::Frozen { .. }) {
            // It would be born frozen.
            return Err(self.wrong_state(container, "is frozen"));
        }
        let mut ours = None;
        let mut theirs = Vec::new();
        if spec.tty.is_none() {
            let pipe = || io::pipe().map_err(SandboxError::step("pipe"));
            let ((stdin, input), (output, stdout), (errors, stderr)) = (pipe()?, pipe()?, pipe()?);
            ours = Some(Stdio::Pipes {
                stdin: input.into(),
                stdout: output.into(),
                stderr: errors.into(),
            });
            theirs = vec![OwnedFd::from(stdin), stdout.into(), stderr.into()];
        }
        let command = Command::Exec(Box::new(wire::Exec {
            container: container.to_owned(),
            argv: spec.argv,
            env: joined(&spec.env),
            cwd: spec.cwd,
            user: spec.user,
            terminal: spec.tty,
        }));
        let borrowed: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        let reply = self.ask(container, command, &borrowed).await?;
        let (Ok(Answer::Executing { pid }), Some(exit)) = (&reply.result, reply.exit) else {
            return Err(unexpected(reply.result));
        };
        let terminal = || reply.descriptors.into_iter().next().map(Stdio::Terminal);
        let stdio = ours.or_else(terminal);
        Ok(ExecHandle::new(*pid, stdio, exit, self.id(), self.held.link.clone()))
    }

    /// Replaces a Container's labels.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`]; [`SandboxError::Outdated`] if the holder is of a version that
    /// cannot do that.
    pub async fn label(
        &self,
        container: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(), SandboxError> {
        let command = Command::Label { container: container.to_owned(), labels: labels.clone() };
        let reply = self.held.link.ask(command, &[]).await.map_err(|Gone| self.lost())?;
        match reply.result {
            Ok(Answer::Done) => {}
            Err(Failure::NotUnderstood(_)) => {
                return Err(self.outdated("give a container another release"));
            }
            Err(failure) => return Err(SandboxError::from_holder(container, failure)),
            other => return Err(unexpected(other)),
        }
        if let Some(view) = self.known.lock().get_mut(container) {
            view.labels = labels;
        }
        self.known.changed.send_replace(());
        Ok(())
    }

    /// Changes a Container's limits while it runs.
    ///
    /// # Errors
    /// [`SandboxError::Step`]: a memory limit below what is in use is refused.
    pub async fn update_resources(
        &self,
        container: &str,
        resources: &Resources,
    ) -> Result<(), SandboxError> {
        self.limit(container, resources)
    }

    pub(crate) fn limit(&self, container: &str, resources: &Resources) -> Result<(), SandboxError> {
        self.state(container)?;
        let step = || format!("changing the limits of container {container}");
        self.group(container).limit(resources).map_err(SandboxError::step(step()))
    }

    /// What a Container uses now.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`]; [`SandboxError::Step`].
    pub async fn usage(&self, container: &str) -> Result<Usage, SandboxError> {
        self.state(container)?;
        let step = || format!("measuring container {container}");
        let usage = self.group(container).usage().map_err(SandboxError::step(step()))?;
        Ok(Usage {
            cpu: Duration::from_nanos(usage.cpu_ns),
            memory: usage.memory_bytes,
            pids: usage.pids,
        })
    }

    /// Lets Containers of other Sandboxes have the processor first.
    pub(crate) fn yield_processor(&self, container: &str) -> io::Result<()> {
        self.group(container).yield_processor()
    }

    /// What runs in a Container, in the host's numbers.
    pub(crate) fn processes(&self, container: &str) -> io::Result<Vec<i32>> {
        self.group(container).processes()
    }

    pub(crate) fn state(&self, container: &str) -> Result<ViewState, SandboxError> {
        let found = self.known.lock().get(container).map(|view| view.state.clone());
        let what = || format!("container {container} of sandbox {}", self.id());
        found.ok_or_else(|| SandboxError::NotFound { what: what() })
    }

    pub(crate) fn wrong_state(&self, container: &str, state: &'static str) -> SandboxError {
        SandboxError::WrongState { what: format!("container {container}"), state }
    }

    /// Changes what is known of a Container's state.
    pub(crate) fn change(&self, container: &str, change: impl FnOnce(&mut ViewState)) {
        if let Some(view) = self.known.lock().get_mut(container) {
            change(&mut view.state);
        }
        self.known.changed.send_replace(());
    }

    pub(crate) fn outdated(&self, what: &'static str) -> SandboxError {
        SandboxError::Outdated { sandbox: self.id().to_owned(), what }
    }

    pub(crate) fn lost(&self) -> SandboxError {
        SandboxError::HolderLost { sandbox: self.id().to_owned() }
    }

    pub(crate) fn group(&self, container: &str) -> Group {
        self.means.cgroups.group(&self.held.connection.index.0.to_string(), container)
    }

    /// Asks the holder; a refusal becomes an error.
    async fn ask(
        &self,
        container: &str,
        command: Command,
        descriptors: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<Reply, SandboxError> {
        match self.held.link.ask(command, descriptors).await {
            Err(Gone) => Err(self.lost()),
            Ok(Reply { result: Err(failure), .. }) => {
                if let Failure::CannotRun { .. } = failure
                    && let Ok(ViewState::Prepared) = self.state(container)
                {
                    let finished = crate::clock::now().0 * 1_000;
                    let status = wire::Status::Code(127);
                    let exit = Exit { status, out_of_memory: false, started: 0, finished };
                    self.known.set(container, ViewState::Exited(exit));
                }
                Err(SandboxError::from_holder(container, failure))
            }
            Ok(reply) => Ok(reply),
        }
    }
}

pub(crate) fn unexpected(result: Result<Answer, Failure>) -> SandboxError {
    SandboxError::BadSpec(format!("the holder answered out of turn: {result:?}"))
}
