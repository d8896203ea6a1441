//! The control plane as a whole: opened, given an engine, run until told to stop.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stead_core::engine::{Engine, Secrets, Traffic};
use stead_core::error::{Code, UserError};
use stead_core::event::Events;
use stead_core::name::AppKey;
use stead_core::registry::RegistryBook;
use stead_core::routes::Report;
use tokio::sync::watch;

use crate::api::{self, Api};
use crate::auth::{BootstrapError, Tokens};
use crate::clock;
use crate::events::EventLog;
use crate::figures::Figures;
use crate::ledger::Ledgers;
use crate::needed;
use crate::reconcile::Reconciler;
use crate::reconcile::board::Board;
use crate::registries::Registries;
use crate::secrets::Vault;
use crate::store::{Document, Kind, Store, StoreError, Write};
use crate::traffic::{GatewayNews, Publisher};

/// How long open answers may take after the end was asked for.
const CLOSING: Duration = Duration::from_secs(2);

/// Where the control plane keeps its state and listens.
#[derive(Debug, Clone)]
pub struct Config {
    /// For what must outlive the machine's next start.
    pub data_dir: PathBuf,
    /// For sockets: `stead.sock` of the API and `gateway-link.sock`.
    pub run_dir: PathBuf,
    /// A loopback address for the API, besides its socket.
    pub listen: Option<SocketAddr>,
    /// Where the gateway listens, for the addresses shown to people.
    pub http: SocketAddr,
}

/// Why the control plane cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The state on disk cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The first token cannot be made.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// A folder cannot be made.
    #[error("folder {path} cannot be made")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A socket or address cannot be listened on.
    #[error("{what} cannot be listened on")]
    Listen {
        /// Which.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

impl From<ControlError> for UserError {
    fn from(error: ControlError) -> Self {
        let text = match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        match error {
            ControlError::Store(error) => error.into(),
            ControlError::Bootstrap(_) | ControlError::Folder { .. } => {
                UserError::new(Code::MachineUnfit, text, "check the disk and who may write there")
            }
            ControlError::Listen { .. } => {
                UserError::new(Code::MachineUnfit, text, "is another stead running there?")
            }
        }
    }
}

/// How often `serve` has been started with this store.
#[derive(Serialize, Deserialize)]
struct Epoch(u64);

impl Document for Epoch {
    const KIND: Kind = Kind::Meta;
}

/// The control plane, opened and not running yet: an engine needs parts of it to be opened.
pub struct Control {
    config: Config,
    store: Arc<Store>,
    publisher: Arc<Publisher>,
    ledgers: Arc<Ledgers>,
    figures: Arc<Figures>,
    events: Arc<EventLog>,
    vault: Arc<Vault>,
}

/// Hands what gateways tell to those who keep it.
struct News {
    ledgers: Arc<Ledgers>,
    figures: Arc<Figures>,
}

impl GatewayNews for News {
    fn report(&self, pid: u32, report: Report) {
        self.figures.report(pid, &report, clock::now());
        self.ledgers.report(pid, report);
    }

    fn parked(&self, app: &AppKey) {
        // To be a wake-up of the autoscaler, once there is one.
        tracing::debug!(%app, "requests are parked");
    }

    fn left(&self) {
        self.ledgers.hurry();
    }
}

impl Control {
    /// Opens the state; nothing is listened on before [`Control::run`]. Needs a tokio runtime.
    ///
    /// # Errors
    /// See [`ControlError`]. What is on disk is not changed by a failure.
    pub async fn open(config: Config) -> Result<Control, ControlError> {
        private_folder(&config.data_dir)?;
        private_folder(&config.run_dir)?;
        private_folder(&temp_dir(&config))?;
        let store = Arc::new(Store::open(&config.data_dir.join("state.db"))?);
        let events = EventLog::open(&config.data_dir.join("events.db"))?;
        let epoch = raise_epoch(&store).await?;
        let ledgers = Arc::new(Ledgers::load(&store)?);
        let figures = Arc::new(Figures::new(clock::now()));
        let news = News { ledgers: Arc::clone(&ledgers), figures: Arc::clone(&figures) };
        let news = Arc::new(news);
        let publisher = Publisher::new(epoch, news);
        publisher.expect(ledgers.gateways());
        let vault = Vault::new(Arc::clone(&store), config.data_dir.join("secrets.key"));
        let vault = Arc::new(vault);
        Ok(Self { config, store, publisher, ledgers, figures, events, vault })
    }

    /// For the engine: where it asks for values.
    pub fn secrets(&self) -> Arc<dyn Secrets> {
        Arc::clone(&self.vault) as Arc<dyn Secrets>
    }

    /// For the engine: what the operator said of registries.
    pub fn registries(&self) -> Arc<dyn RegistryBook> {
        Arc::new(Registries::new(Arc::clone(&self.store), Arc::clone(&self.vault)))
    }

    /// For the engine: where it attaches and drains.
    pub fn traffic(&self) -> Arc<dyn Traffic> {
        Arc::clone(&self.publisher) as Arc<dyn Traffic>
    }

    /// For the engine: where it notes what happened.
    pub fn events(&self) -> Arc<dyn Events> {
        Arc::clone(&self.events) as Arc<dyn Events>
    }

    /// Runs until `shutdown` is done. What runs for Apps goes on after that.
    ///
    /// # Errors
    /// [`ControlError::Listen`] when a socket or address is taken.
    pub async fn run(
        self,
        engine: Arc<dyn Engine>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ControlError> {
        let Self { config, store, publisher, ledgers, figures, events, vault } = self;
        let listening = |what: &str| {
            let what = what.to_owned();
            move |source| ControlError::Listen { what, source }
        };
        let tokens = Tokens::new(Arc::clone(&store), config.data_dir.join("bootstrap-token"));
        tokens.bootstrap(clock::now()).await?;
        let link = config.run_dir.join("gateway-link.sock");
        let gateways = publisher.listen(&link).map_err(listening("gateway-link.sock"))?;
        let board = Arc::new(Board::default());
        let reconciler = Arc::new(Reconciler {
            store: Arc::clone(&store),
            engine,
            publisher,
            ledgers: Arc::clone(&ledgers),
            figures,
            sites: crate::reconcile::Sites::default(),
            events,
            board,
            violations: AtomicU64::new(0),
            began: clock::now(),
            settled: tokio::sync::Notify::new(),
        });
        // Nobody else uses the folder: the engine is ours, and one process at a time has it.
        if let Err(error) = api::remove_unfinished(&temp_dir(&config)) {
            tracing::warn!(%error, "archives that were not taken in are not removed");
        }
        let (close, closing) = watch::channel(false);
        let api = Arc::new(Api {
            reconciler: Arc::clone(&reconciler),
            tokens,
            vault,
            http: config.http,
            temp_dir: temp_dir(&config),
            making: tokio::sync::Mutex::default(),
            closing,
        });
        let (addr, serving) = api::serve(api, config.run_dir.join("stead.sock"), config.listen)
            .await
            .map_err(listening("the API's socket or address"))?;
        tracing::info!(data = %config.data_dir.display(), ?addr, "control plane runs");
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(gateways);
        tasks.spawn(needed::tell(Arc::clone(&reconciler)));
        tasks.spawn(reconciler.run());
        tasks.spawn(Arc::clone(&ledgers).keep(Arc::clone(&store)));
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            () = shutdown => {}
            () = &mut serving => {}
        }
        close.send_replace(true);
        if tokio::time::timeout(CLOSING, serving).await.is_err() {
            tracing::warn!("open requests are cut");
        }
        tasks.shutdown().await;
        ledgers.persist(&store).await?;
        Ok(())
    }
}

/// The number of this start, on disk before it is used.
async fn raise_epoch(store: &Store) -> Result<u64, StoreError> {
    const KEY: &str = "epoch";
    let last = match store.get::<Epoch>(KEY) {
        Ok(stored) => stored.map_or(0, |stored| stored.value.0),
        // A gateway that knows better says so when it connects.
        Err(StoreError::Damaged(damaged)) => {
            tracing::error!(%damaged, "epochs begin anew");
            0
        }
        Err(error) => return Err(error),
    };
    store.commit(vec![Write::set(KEY, &Epoch(last + 1))?]).await?;
    Ok(last + 1)
}

fn temp_dir(config: &Config) -> PathBuf {
    config.data_dir.join("tmp")
}

/// Makes a folder that only its owner may enter.
fn private_folder(path: &Path) -> Result<(), ControlError> {
    let mut make = std::fs::DirBuilder::new();
    make.recursive(true).mode(0o700);
    make.create(path).map_err(|source| ControlError::Folder { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
