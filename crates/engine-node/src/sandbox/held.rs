//! One Sandbox and its Containers.
//!
//! What is known of Containers is what the holder told: [`Sandbox::containers`] asks nobody.
//! Calls about different Containers may run at the same time.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stead_core::time::Time;
use stead_holder::wire::{self, Answer, Command, Failure};
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::host::{Means, SandboxEvent};
use super::launch::{self, Held};
use super::link::{Gone, News, Reply};
use super::recover::Record;
use super::spec::joined;
use super::{
    ContainerSpec, ContainerView, ExecSpec, Exit, Resources, SandboxError, Timings, Usage,
    ViewState, identity,
};
use crate::cgroup::Group;

/// How long a killed Container may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a group that is being frozen.
const GLANCE: Duration = Duration::from_micros(200);

/// One Sandbox.
#[derive(Debug)]
pub struct Sandbox {
    means: Arc<Means>,
    held: Held,
    record: Record,
    known: Arc<Known>,
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
        containers: Vec<wire::Container>,
    ) -> Arc<Self> {
        let view = |container: wire::Container| {
            let wire::Container { id, labels, state, .. } = container;
            (id.clone(), ContainerView { id, labels, state: state.into() })
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
        Arc::new(Self { means, held, record, known, listener, places })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Its address, for its whole life.
    pub fn ip(&self) -> IpAddr {
        self.held.connection.ip.into()
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

    pub(crate) fn held(&self) -> &Held {
        &self.held
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
        let plan = Plan::new(self, &spec)?;
        let request = plan.request(self, &spec)?;
        let means = self.means.clone();
        let (made, plan) = tokio::task::spawn_blocking(move || (plan.make(&means, &spec), plan))
            .await
            .map_err(io::Error::other)
            .map_err(SandboxError::step("preparing a container"))?;
        let folders = begun.elapsed();
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
                    self.undo(plan).await;
                }
                return Err(error);
            }
        };
        let view = ContainerView { id: id.clone(), labels, state: ViewState::Prepared };
        self.known.lock().insert(id.clone(), view);
        self.known.changed.send_replace(());
        let timings = Timings {
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
        let _ = self.group(container).freeze(false);
        self.signal(container, signal).await?;
        if let Ok(exit) = timeout(grace, self.wait(container)).await {
            return exit;
        }
        self.signal(container, libc::SIGKILL).await?;
        let late = || SandboxError::Step {
            step: format!("killing container {container}"),
            source: io::ErrorKind::TimedOut.into(),
        };
        timeout(PATIENCE, self.wait(container)).await.map_err(|_| late())?
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
            let gone = self.known.gone.load(Ordering::Acquire);
            if gone || changed.changed().await.is_err() {
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
        self.undo(Plan::places(self, container)).await;
        Ok(())
    }

    /// Removes what is left of a Container.
    async fn undo(&self, plan: Plan) {
        let means = self.means.clone();
        // It fails only when the runtime is being shut down; the next start cleans up.
        let _ = tokio::task::spawn_blocking(move || plan.undo(&means)).await;
    }

    /// Runs a further program in a running Container.
    ///
    /// # Errors
    /// [`SandboxError::CannotRun`]; [`SandboxError::WrongState`] if the Container does not run or
    /// is frozen; [`SandboxError::Step`] if its limit of processes is reached.
    pub async fn exec(&self, container: &str, spec: ExecSpec) -> Result<ExecHandle, SandboxError> {
        self.state(container)?;
        if self.group(container).is_frozen().unwrap_or(false) {
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
        Ok(ExecHandle { pid: *pid, stdio, exit, sandbox: self.id().to_owned(), code: None })
    }

    /// Stops a Container in its tracks: it keeps its memory and uses no processor.
    ///
    /// # Errors
    /// [`SandboxError::Step`].
    pub async fn freeze(&self, container: &str) -> Result<(), SandboxError> {
        self.set_frozen(container, true).await
    }

    /// Lets a frozen Container go on.
    ///
    /// # Errors
    /// [`SandboxError::Step`].
    pub async fn thaw(&self, container: &str) -> Result<(), SandboxError> {
        self.set_frozen(container, false).await
    }

    async fn set_frozen(&self, container: &str, frozen: bool) -> Result<(), SandboxError> {
        self.state(container)?;
        let group = self.group(container);
        let step = || format!("freezing or thawing container {container}");
        group.freeze(frozen).map_err(SandboxError::step(step()))?;
        let done = async {
            while group.is_frozen()? != frozen {
                tokio::time::sleep(GLANCE).await;
            }
            io::Result::Ok(())
        };
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let done = timeout(PATIENCE, done).await.map_err(late).and_then(|done| done);
        done.map_err(SandboxError::step(step()))
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

    fn state(&self, container: &str) -> Result<ViewState, SandboxError> {
        let found = self.known.lock().get(container).map(|view| view.state.clone());
        let what = || format!("container {container} of sandbox {}", self.id());
        found.ok_or_else(|| SandboxError::NotFound { what: what() })
    }

    fn wrong_state(&self, container: &str, state: &'static str) -> SandboxError {
        SandboxError::WrongState { what: format!("container {container}"), state }
    }

    fn lost(&self) -> SandboxError {
        SandboxError::HolderLost { sandbox: self.id().to_owned() }
    }

    fn group(&self, container: &str) -> Group {
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

fn unexpected(result: Result<Answer, Failure>) -> SandboxError {
    SandboxError::BadSpec(format!("the holder answered out of turn: {result:?}"))
}

/// Where a Container's things are on the host.
struct Plan {
    group: Group,
    upper: PathBuf,
    files: PathBuf,
    owner: u32,
}

impl Plan {
    fn places(sandbox: &Sandbox, container: &str) -> Self {
        let index = sandbox.held.connection.index;
        let upper = sandbox.means.data_dir.join("upper");
        Self {
            group: sandbox.group(container),
            upper: upper.join(index.0.to_string()).join(container),
            files: sandbox.held.folder.join("files").join(container),
            owner: launch::first_user(index),
        }
    }

    fn new(sandbox: &Sandbox, spec: &ContainerSpec) -> Result<Self, SandboxError> {
        let log = spec.log.parent().filter(|_| spec.log.is_absolute());
        if log.is_none() {
            let text = format!("container {} has no log file", spec.id);
            return Err(SandboxError::BadSpec(text));
        }
        Ok(Self::places(sandbox, &spec.id))
    }

    fn file(&self, number: usize) -> PathBuf {
        self.files.join(number.to_string())
    }

    /// Makes everything on the host's side.
    fn make(&self, means: &Means, spec: &ContainerSpec) -> Result<(), SandboxError> {
        let layer = || format!("writable layer of container {}", spec.id);
        // One of the same name that was left over has no claim on it.
        means.trash.throw(&self.upper).map_err(SandboxError::step(layer()))?;
        for folder in ["upper", "work"] {
            let folder = self.upper.join(folder);
            fs::create_dir_all(&folder)
                .and_then(|()| chown(&folder, Some(self.owner), Some(self.owner)))
                .and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)))
                .map_err(SandboxError::step(layer()))?;
        }
        if let Some(folder) = spec.log.parent() {
            let step = format!("log folder {}", folder.display());
            fs::create_dir_all(folder).map_err(SandboxError::step(step))?;
        }
        means
            .cgroups
            .make(&self.group, &spec.resources)
            .map_err(SandboxError::step(format!("control group of container {}", spec.id)))?;
        self.write_files(spec)
            .map_err(SandboxError::step(format!("files of container {}", spec.id)))
    }

    fn write_files(&self, spec: &ContainerSpec) -> io::Result<()> {
        if spec.files.is_empty() {
            return Ok(());
        }
        fs::create_dir_all(&self.files)?;
        for (number, file) in spec.files.iter().enumerate() {
            let path = self.file(number);
            fs::write(&path, &file.content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(file.mode & 0o777))?;
            chown(&path, Some(self.owner + spec.uid), Some(self.owner + spec.gid))?;
        }
        Ok(())
    }

    /// Removes everything again.
    fn undo(&self, means: &Means) {
        let begun = Instant::now();
        while let Err(error) = self.group.remove() {
            if begun.elapsed() > PATIENCE {
                tracing::warn!(%error, "a control group is left over");
                break;
            }
            // The last process leaves its group a moment after it was reaped.
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Err(error) = means.trash.throw(&self.upper) {
            tracing::warn!(%error, "a writable layer is left over");
        }
        let _ = fs::remove_dir_all(&self.files);
    }

    /// What the holder is asked for.
    fn request(
        &self,
        sandbox: &Sandbox,
        spec: &ContainerSpec,
    ) -> Result<wire::Prepare, SandboxError> {
        let mut mounts = identity::mounts(&sandbox.held.folder.join("etc"));
        for volume in &spec.volumes {
            mounts.push(wire::Mount::Bind {
                source: text(&volume.host)?,
                target: volume.mount.clone(),
                read_only: volume.read_only,
                mapped: true,
            });
        }
        for tmpfs in &spec.tmpfs {
            let (target, bytes) = (tmpfs.mount.clone(), tmpfs.bytes);
            mounts.push(wire::Mount::Tmpfs { target, bytes });
        }
        for (number, file) in spec.files.iter().enumerate() {
            mounts.push(wire::Mount::Bind {
                source: text(&self.file(number))?,
                target: file.path.clone(),
                read_only: true,
                mapped: false,
            });
        }
        let means = &sandbox.means;
        Ok(wire::Prepare {
            container: spec.id.clone(),
            labels: spec.labels.clone(),
            hostname: sandbox.record.hostname.clone(),
            root: wire::Root {
                layers: spec.layers.iter().map(|layer| text(layer)).collect::<Result<_, _>>()?,
                upper: text(&self.upper.join("upper"))?,
                work: text(&self.upper.join("work"))?,
                read_only: spec.read_only_root,
            },
            mounts,
            process: wire::Process {
                argv: spec.argv.clone(),
                env: joined(&spec.env),
                cwd: spec.cwd.clone(),
                uid: spec.uid,
                gid: spec.gid,
                groups: spec.groups.clone(),
            },
            cgroup: self.group.describe(),
            seccomp: Some(text(&means.filter)?),
            log: wire::LogFile {
                path: text(&spec.log)?,
                max_bytes: means.log.max_bytes,
                files: means.log.files,
            },
        })
    }
}

fn text(path: &Path) -> Result<String, SandboxError> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| SandboxError::BadSpec(format!("path {} is not UTF-8", path.display())))
}

/// The ends of a further program's input and output.
#[derive(Debug)]
pub enum Stdio {
    /// Without a terminal.
    Pipes {
        /// To write to.
        stdin: OwnedFd,
        /// To read from.
        stdout: OwnedFd,
        /// To read from.
        stderr: OwnedFd,
    },
    /// The master end of its terminal.
    Terminal(OwnedFd),
}

/// A further program in a Container.
#[derive(Debug)]
pub struct ExecHandle {
    pid: i32,
    stdio: Option<Stdio>,
    exit: oneshot::Receiver<Exit>,
    sandbox: String,
    code: Option<i32>,
}

impl ExecHandle {
    /// Its number on the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its input and output. They can be taken once.
    ///
    /// # Panics
    /// At the second call.
    pub fn take_stdio(&mut self) -> Stdio {
        self.stdio.take().expect("the input and output of a program are taken once")
    }

    /// Waits for its end; a signal counts as 128 plus its number. Output that was not taken is
    /// read and dropped, so that it does not hold the program up.
    ///
    /// # Errors
    /// [`SandboxError::HolderLost`].
    pub async fn wait(&mut self) -> Result<i32, SandboxError> {
        if let Some(code) = self.code {
            return Ok(code);
        }
        if let Some(Stdio::Pipes { stdin, stdout, stderr }) = self.stdio.take() {
            drop(stdin);
            for output in [stdout, stderr] {
                if let Ok(mut output) = pipe::Receiver::from_owned_fd(output) {
                    tokio::spawn(async move {
                        tokio::io::copy(&mut output, &mut tokio::io::sink()).await
                    });
                }
            }
        }
        let lost = |_| SandboxError::HolderLost { sandbox: self.sandbox.clone() };
        let code = (&mut self.exit).await.map_err(lost)?.status.shell_code();
        self.code = Some(code);
        Ok(code)
    }
}
