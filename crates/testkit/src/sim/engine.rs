//! [`Engine`] over a simulated machine, for the tests of the control plane.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use stead_core::engine::{
    Capabilities, Engine, EngineError, Exec, ExecInput, ExecOutput, ExecRequest, ImageInfo,
    LogLine, LogQuery, PullProgress, Traffic, Usage,
};
use stead_core::error::{Code, UserError};
use stead_core::event::Events;
use stead_core::fleet::{ContainerState, Fleet, FleetSeen};
use stead_core::ids::{ContainerId, Digest, Ordinal};
use stead_core::invariants::Violation;
use stead_core::manifest::Site;
use stead_core::name::AppKey;
use stead_core::registry::{Login, RegistryChecked, RegistryHost};
use stead_core::time::{Micros, Time};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::node::{Effect, Fault, Node, Pace};
use super::script::{resolve, script};

/// Acts take up to a fifth of a millisecond.
const QUICK: Pace = Pace { shortest: Micros(20), longest: Micros(200) };

/// A simulated machine. It outlives the engines that are opened on it.
///
/// Its clock is tokio's, so that a test may pause it.
#[derive(Clone)]
pub struct SimMachine {
    node: Arc<Mutex<Node>>,
    origin: (SystemTime, Instant),
}

impl SimMachine {
    /// An empty machine. Must be made inside a tokio runtime.
    pub fn new() -> Self {
        Self::with_seed(0)
    }

    /// An empty machine whose delays follow from `seed`.
    pub fn with_seed(seed: u64) -> Self {
        Self {
            node: Arc::new(Mutex::new(Node::new(seed, QUICK))),
            origin: (SystemTime::now(), Instant::now()),
        }
    }

    /// The time on this machine.
    pub fn now(&self) -> Time {
        let (wall, begin) = self.origin;
        let since = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Time(Micros::from(since + begin.elapsed()).0)
    }

    /// What a defective engine loses: which Containers may get requests.
    pub(crate) fn forget_traffic(&self) {
        self.lock().forget_traffic();
    }

    /// What a defective engine loses: what it works towards.
    pub(crate) fn forget_fleets(&self) {
        self.lock().forget_fleets();
    }

    fn lock(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for SimMachine {
    fn default() -> Self {
        Self::new()
    }
}

/// An engine on a [`SimMachine`]. What its images do is chosen by their references: see
/// [`super::Script`].
///
/// Dropping it is a crash: what it was doing is lost or done unseen, and what runs goes on
/// until another one is opened on the same machine.
pub struct SimEngine {
    machine: SimMachine,
    changed: Arc<Notify>,
    hints: broadcast::Sender<AppKey>,
    worker: JoinHandle<()>,
}

impl SimEngine {
    /// An engine on a machine of its own. Must be called inside a tokio runtime.
    pub fn new(traffic: Arc<dyn Traffic>, events: Arc<dyn Events>) -> Self {
        Self::open(SimMachine::new(), traffic, events)
    }

    /// An engine on `machine`, which takes over what runs there. There must be no other
    /// engine on it.
    pub fn open(machine: SimMachine, traffic: Arc<dyn Traffic>, events: Arc<dyn Events>) -> Self {
        let opening = {
            let mut node = machine.lock();
            node.restart(machine.now());
            node.restarts()
        };
        let changed = Arc::new(Notify::new());
        let hints = broadcast::channel(1024).0;
        let worker = Worker {
            opening,
            machine: machine.clone(),
            changed: changed.clone(),
            hints: hints.clone(),
            traffic,
            events,
        };
        Self { machine, changed, hints, worker: tokio::spawn(worker.run()) }
    }

    /// The machine it works on.
    pub fn machine(&self) -> SimMachine {
        self.machine.clone()
    }

    /// Something happens to the running Container of an Instance. False: there is none.
    pub fn fault(&self, app: &AppKey, ordinal: Ordinal, fault: Fault) -> bool {
        self.change(|node, now| node.fault(app, ordinal, fault, now))
    }

    /// Invariants broken since the last call.
    pub fn take_violations(&self) -> Vec<Violation> {
        self.machine.lock().take_violations()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Node, Time) -> T) -> T {
        let result = change(&mut self.machine.lock(), self.machine.now());
        self.changed.notify_one();
        result
    }

    fn running(&self, app: &AppKey) -> Vec<(Ordinal, ContainerId, Time)> {
        let seen = self.machine.lock().observe(app);
        let instances = seen.instances.iter();
        instances
            .flat_map(|(ordinal, i)| i.containers.iter().map(move |c| (*ordinal, c)))
            .filter_map(|(ordinal, c)| match c.state {
                ContainerState::Running { since, .. } => Some((ordinal, c.id.clone(), since)),
                _ => None,
            })
            .collect()
    }
}

impl Drop for SimEngine {
    fn drop(&mut self) {
        self.worker.abort();
        self.machine.lock().crash();
    }
}

/// Drives the machine: lets its time pass and does the effects it asks for.
struct Worker {
    /// Which opening of the machine it works for.
    opening: u64,
    machine: SimMachine,
    changed: Arc<Notify>,
    hints: broadcast::Sender<AppKey>,
    traffic: Arc<dyn Traffic>,
    events: Arc<dyn Events>,
}

impl Worker {
    async fn run(self) {
        // Ends with the worker, and with it every call to the gateway that is under way.
        let mut calls = tokio::task::JoinSet::new();
        loop {
            let (effects, due) = {
                let now = self.machine.now();
                let mut node = self.machine.lock();
                if node.restarts() != self.opening {
                    // Another engine works on the machine now.
                    return;
                }
                node.advance(now);
                (node.take_effects(), node.next_due())
            };
            for effect in effects {
                self.perform(effect, &mut calls);
            }
            while calls.try_join_next().is_some() {}
            let wait = due.map(|at| at.since(self.machine.now()).duration());
            let timer = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = timer => {}
            }
        }
    }

    fn perform(&self, effect: Effect, calls: &mut tokio::task::JoinSet<()>) {
        let (machine, changed) = (self.machine.clone(), self.changed.clone());
        let traffic = self.traffic.clone();
        match effect {
            Effect::Attach { app, flight, backend } => {
                calls.spawn(async move {
                    traffic.attach(&app, backend).await;
                    machine.lock().attached(&app, flight, machine.now());
                    changed.notify_one();
                });
            }
            Effect::Detach { app, flight, container, drain } => {
                calls.spawn(async move {
                    traffic.detach(&app, &container, drain).await;
                    machine.lock().detached(&app, flight, machine.now());
                    changed.notify_one();
                });
            }
            Effect::Event(event) => self.events.emit(event),
            Effect::Hint(app) => {
                // Nobody may be listening.
                let _ = self.hints.send(app);
            }
        }
    }
}

#[async_trait]
impl Engine for SimEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities { in_place: true, handover: true, freeze: true }
    }

    async fn apply(&self, fleet: Fleet) -> Result<(), EngineError> {
        self.change(|node, now| node.apply(fleet, now))
    }

    async fn observe(&self, app: &AppKey) -> Result<FleetSeen, EngineError> {
        Ok(self.change(|node, now| {
            node.advance(now);
            node.observe(app)
        }))
    }

    async fn apps(&self) -> Result<Vec<AppKey>, EngineError> {
        Ok(self.machine.lock().apps())
    }

    fn hints(&self) -> BoxStream<'static, AppKey> {
        let receiver = self.hints.subscribe();
        futures_util::stream::unfold(receiver, |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok(app) => return Some((app, receiver)),
                    // Hints may be lost.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }

    async fn forget(&self, app: &AppKey, _volumes: bool) -> Result<(), EngineError> {
        self.machine.lock().forget(app)
    }

    async fn resolve(&self, reference: &str) -> Result<Digest, EngineError> {
        Ok(resolve(reference)?)
    }

    /// Every registry answers, and knows any password but `wrong`.
    async fn check_registry(
        &self,
        host: &RegistryHost,
        login: Option<&Login>,
    ) -> Result<RegistryChecked, EngineError> {
        if login.is_some_and(|login| login.password.expose() == "wrong") {
            let message = format!("{host} does not accept the login");
            return Err(UserError::new(Code::RegistryDenied, message, "try another").into());
        }
        Ok(RegistryChecked::Accepted)
    }

    async fn warm(&self, reference: &str, digest: &Digest) -> Result<(), EngineError> {
        if let Some(code) = script(reference).pull_fails {
            return Err(super::trouble::not_pulled(code, reference).into());
        }
        self.change(|node, _| node.add_image(digest.clone()));
        Ok(())
    }

    async fn import(&self, path: PathBuf, name: Option<String>) -> Result<ImageInfo, EngineError> {
        let name = name.unwrap_or_else(|| path.display().to_string());
        let digest = resolve(&name)?;
        self.change(|node, _| node.add_image(digest.clone()));
        Ok(ImageInfo { names: vec![name], ..info(digest, self.machine.now()) })
    }

    fn pulling(&self, _digest: &Digest) -> Option<PullProgress> {
        None
    }

    /// Every image is a site, with every page but `missing.html`.
    async fn site(&self, image: &Digest, rules: &Site) -> Result<Option<PathBuf>, EngineError> {
        if rules.fallback.as_ref().is_some_and(|page| page.as_str() == "/missing.html") {
            let message = "the site has no missing.html";
            return Err(UserError::new(Code::SiteUnfit, message, "name another page").into());
        }
        let here = self.machine.lock().images().any(|known| known == image);
        Ok(here.then(|| PathBuf::from(format!("/sim/{}", image.hex()))))
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, EngineError> {
        let now = self.machine.now();
        Ok(self.machine.lock().images().map(|digest| info(digest.clone(), now)).collect())
    }

    async fn prune(&self, keep: &[Digest], _unused_for: Micros) -> Result<u64, EngineError> {
        let mut node = self.machine.lock();
        let mut keep = keep.to_vec();
        for app in node.apps() {
            let releases = node.fleet(&app).into_iter().flat_map(|fleet| fleet.releases.values());
            keep.extend(releases.map(|release| release.image.clone()));
        }
        let gone: Vec<Digest> = node.images().filter(|d| !keep.contains(d)).cloned().collect();
        Ok(gone.iter().filter(|digest| node.remove_image(digest)).count() as u64 * IMAGE_SIZE)
    }

    async fn logs(
        &self,
        app: &AppKey,
        query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, EngineError> {
        let lines = self
            .running(app)
            .into_iter()
            .filter(move |(ordinal, ..)| query.instance.is_none_or(|wanted| wanted == *ordinal));
        let lines: Vec<LogLine> = lines
            .map(|(instance, container, since)| LogLine {
                time: format!("1970-01-01T00:00:00.{:09}Z", since.0 % 1_000_000_000),
                stream: "stdout".into(),
                instance,
                text: format!("{container} started"),
                container,
            })
            .collect();
        let ended = futures_util::stream::iter(lines);
        if query.follow {
            return Ok(ended.chain(futures_util::stream::pending()).boxed());
        }
        Ok(ended.boxed())
    }

    /// A simulated command writes its arguments and then what it is given.
    async fn exec(&self, app: &AppKey, request: ExecRequest) -> Result<Exec, EngineError> {
        let which = request.instance;
        let found = self.running(app).iter().any(|(o, ..)| which.is_none_or(|w| w == *o));
        if !found {
            return Err(UserError::new(
                Code::NoInstance,
                format!("app {app} has no such running instance"),
                "look at `stead ps`",
            )
            .into());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        // Nobody may be listening any more.
        let _ = sender.send(ExecOutput::Stdout(request.argv.join(" ").into_bytes()));
        if !request.stdin {
            let _ = sender.send(ExecOutput::Exit(0));
        }
        let input = Box::new(move |input: ExecInput| {
            let output = match input {
                ExecInput::Data(bytes) => ExecOutput::Stdout(bytes),
                ExecInput::End => ExecOutput::Exit(0),
                ExecInput::Resize(..) => return,
            };
            let _ = sender.send(output);
        });
        let output =
            futures_util::stream::unfold((receiver, false), |(mut receiver, ended)| async move {
                if ended {
                    return None;
                }
                let item = receiver.recv().await?;
                let ended = matches!(item, ExecOutput::Exit(_));
                Some((item, (receiver, ended)))
            });
        Ok(Exec { input, output: output.boxed() })
    }

    async fn usage(&self, app: &AppKey) -> Result<Vec<Usage>, EngineError> {
        let now = self.machine.now();
        let running = self.running(app).into_iter();
        Ok(running
            .map(|(instance, _, since)| Usage {
                instance,
                cpu_micros: now.since(since).0 / 10,
                memory: 16 << 20,
                pids: 1,
            })
            .collect())
    }
}

const IMAGE_SIZE: u64 = 10 << 20;

fn info(digest: Digest, created: Time) -> ImageInfo {
    ImageInfo { digest, names: Vec::new(), size: IMAGE_SIZE, shared: 0, last_used: created }
}
