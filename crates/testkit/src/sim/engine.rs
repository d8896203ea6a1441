//! [`Engine`] over a simulated machine, for the tests of the control plane.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use stead_core::api::package::{
    BaseName, ComposeRequest, Composed, RuntimeName, UploadPart, UploadView,
};
use stead_core::engine::{
    ByteStream, Capabilities, Engine, EngineError, Exec, ExecInput, ExecOutput, ExecRequest,
    HostRuntime, ImageInfo, LogLine, LogQuery, MadeBase, PullProgress, Traffic, Usage,
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
use super::script::{digest_of, resolve, script};
use super::shelf::{Plan, Shelf};

/// Acts take up to a fifth of a millisecond.
const QUICK: Pace = Pace { shortest: Micros(20), longest: Micros(200) };

/// A simulated machine. It outlives the engines that are opened on it.
///
/// Its clock is tokio's, so that a test may pause it.
#[derive(Clone)]
pub struct SimMachine {
    node: Arc<Mutex<Node>>,
    shelf: Arc<Mutex<Shelf>>,
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
            shelf: Arc::default(),
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

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn images(&self) -> BTreeMap<Digest, Time> {
        self.lock().images().clone()
    }

    /// Images that a Fleet names, or that were said to be needed.
    fn needed(&self) -> BTreeSet<Digest> {
        let mut needed: BTreeSet<Digest> = self.shelf().needed.iter().cloned().collect();
        let node = self.lock();
        for app in node.apps() {
            let releases = node.fleet(&app).into_iter().flat_map(|fleet| fleet.releases.values());
            needed.extend(
                releases.flat_map(|release| release.images()).map(|(image, _)| image.clone()),
            );
        }
        needed
    }

    /// Takes images off the machine. Gives the bytes freed.
    pub(crate) fn remove_images(&self, gone: impl IntoIterator<Item = Digest>) -> u64 {
        let (mut shelf, mut node) = (self.shelf(), self.lock());
        let removed = gone.into_iter().filter(|image| {
            shelf.forget(image);
            node.remove_image(image)
        });
        removed.count() as u64 * IMAGE_SIZE
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

    /// Puts an image on the machine under a name, or uses it again.
    fn take_in(&self, image: Digest, name: &str) -> ImageInfo {
        self.change(|node, now| node.add_image(image.clone(), now));
        let mut shelf = self.machine.shelf();
        shelf.name(&image, name);
        info(&shelf, image, self.machine.now())
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
        Capabilities { in_place: true, handover: true, freeze: true, export: false }
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

    /// A registry named `away` does not answer, and one named `open` wants no login. All others
    /// know any password but `wrong`.
    async fn check_registry(
        &self,
        host: &RegistryHost,
        login: Option<&Login>,
    ) -> Result<RegistryChecked, EngineError> {
        let refuse = |code, message| Err(UserError::new(code, message, "try another").into());
        match (host.as_str(), login) {
            ("away", _) => {
                refuse(Code::RegistryUnavailable, format!("{host} could not be reached"))
            }
            ("open", Some(_)) => Ok(RegistryChecked::WantsNone),
            (_, Some(login)) if login.password.expose() == "wrong" => {
                refuse(Code::RegistryDenied, format!("{host} does not accept the login"))
            }
            _ => Ok(RegistryChecked::Accepted),
        }
    }

    async fn warm(&self, reference: &str, digest: &Digest) -> Result<(), EngineError> {
        if let Some(code) = script(reference).pull_fails {
            return Err(super::trouble::not_pulled(code, reference).into());
        }
        self.take_in(digest.clone(), reference);
        Ok(())
    }

    async fn import(&self, path: PathBuf, name: Option<String>) -> Result<ImageInfo, EngineError> {
        let name = name.unwrap_or_else(|| path.display().to_string());
        Ok(self.take_in(resolve(&name)?, &name))
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
        let here = self.machine.lock().images().contains_key(image);
        Ok(here.then(|| PathBuf::from(format!("/sim/{}", image.hex()))))
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, EngineError> {
        let (images, shelf) = (self.machine.images(), self.machine.shelf());
        Ok(images.into_iter().map(|(image, used)| info(&shelf, image, used)).collect())
    }

    async fn prune(&self, keep: &[Digest], unused_for: Micros) -> Result<u64, EngineError> {
        self.keep(keep).await?;
        let (needed, now) = (self.machine.needed(), self.machine.now());
        let unused =
            |image: &Digest, used: Time| !needed.contains(image) && now.since(used) >= unused_for;
        let images = self.machine.images().into_iter();
        let gone = images.filter(|(image, used)| unused(image, *used)).map(|(image, _)| image);
        Ok(self.machine.remove_images(gone))
    }

    /// Its disk is never full, so this makes no room.
    async fn keep(&self, needed: &[Digest]) -> Result<(), EngineError> {
        self.machine.shelf().needed = needed.to_vec();
        Ok(())
    }

    async fn remove_image(&self, image: &Digest) -> Result<u64, EngineError> {
        let refuse =
            |code, message| Err(UserError::new(code, message, "look at `stead image ls`").into());
        if !self.machine.images().contains_key(image) {
            return refuse(Code::NotFound, format!("image {image} is not on this machine"));
        }
        if self.machine.needed().contains(image) {
            return refuse(Code::Conflict, format!("image {image} is in use"));
        }
        Ok(self.machine.remove_images([image.clone()]))
    }

    async fn uploaded(&self, digest: &Digest) -> Result<UploadView, EngineError> {
        Ok(self.machine.shelf().uploaded(digest))
    }

    async fn upload(
        &self,
        mut part: UploadPart,
        mut bytes: ByteStream,
    ) -> Result<UploadView, EngineError> {
        let here = self.uploaded(&part.digest).await?;
        if here.complete {
            return Ok(here);
        }
        // Before a byte is read, so that whoever is wrong hears of it at once.
        self.machine.shelf().receive(&mut part, &[])?;
        while let Some(piece) = bytes.next().await {
            let piece = piece.map_err(|error| {
                let message = format!("upload broke off after {} bytes: {error}", part.offset);
                UserError::new(Code::BadRequest, message, "go on from there")
            })?;
            self.machine.shelf().receive(&mut part, &piece)?;
        }
        Ok(self.machine.shelf().received(&part)?)
    }

    async fn compose(
        &self,
        request: &ComposeRequest,
        base: Option<&Digest>,
    ) -> Result<Composed, EngineError> {
        let images = self.machine.images();
        if let Some(base) = base.filter(|base| !images.contains_key(base)) {
            let message = format!("base image {base} is not on this machine");
            return Err(UserError::new(Code::ImageNotFound, message, "make it again").into());
        }
        let image = {
            let mut shelf = self.machine.shelf();
            let image = match shelf.plan(request, base) {
                Plan::Missing(layers) => return Ok(Composed::Missing(layers)),
                Plan::Image(image) => image,
            };
            if request.dry_run {
                let here = images.get(&image).map(|used| info(&shelf, image, *used));
                return Ok(here.map_or(Composed::Missing(Vec::new()), Composed::Image));
            }
            if !images.contains_key(&image) {
                shelf.make(&image, request)?;
            }
            image
        };
        Ok(Composed::Image(self.take_in(image, &request.name)))
    }

    async fn host_runtimes(&self) -> Result<Vec<HostRuntime>, EngineError> {
        Ok(vec![installed_java()])
    }

    async fn make_base(
        &self,
        base: &BaseName,
        path: Option<PathBuf>,
    ) -> Result<MadeBase, EngineError> {
        let runtime = installed_java();
        if *base != runtime.base || path.is_some_and(|path| path != Path::new(&runtime.path)) {
            let message = format!("{base} is not installed there");
            return Err(UserError::new(Code::PackageUnfit, message, "install it").into());
        }
        let name = format!("localhost/stead/{base}");
        Ok(MadeBase { image: self.take_in(digest_of(&name), &name), runtime, notes: Vec::new() })
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

fn info(shelf: &Shelf, digest: Digest, last_used: Time) -> ImageInfo {
    let names = shelf.names(&digest);
    ImageInfo { digest, names, size: IMAGE_SIZE, shared: 0, last_used }
}

/// What every simulated machine has installed.
fn installed_java() -> HostRuntime {
    let base = BaseName::new(RuntimeName::Java, "17").expect("17 is digits");
    HostRuntime { base, exact: "17.0.15".into(), path: "/usr/lib/jvm/17".into() }
}
