//! Sites: where the files of an App lie that has no Instances, and whether every gateway serves
//! them.
//!
//! Promises: gateways are sent to a folder only after the engine has found it whole; a Release
//! counts as served once every gateway that may send an answer has acknowledged it. Until its
//! files are here the one before stays in the routes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stead_core::error::UserError;
use stead_core::fleet::{ReleaseSpec, SiteSeen};
use stead_core::ids::ReleaseNo;
use stead_core::name::AppKey;
use stead_core::rollout::{Wanted, WantedSite};
use stead_core::routes::site::{SiteRelease, SiteRoute};
use stead_core::time::Time;
use tokio::sync::mpsc;

use super::{PassError, Reconciler};

/// What gateways have agreed on, and the Apps to look at because of that.
#[derive(Default)]
pub(crate) struct Sites(Mutex<State>);

#[derive(Default)]
struct State {
    agreed: BTreeMap<AppKey, Agreement>,
    /// Agreements sought until now.
    sought: u64,
    wakes: Option<mpsc::UnboundedSender<AppKey>>,
}

struct Agreement {
    route: SiteRoute,
    /// Which one it is: the same route may come twice, with another one in between.
    number: u64,
    /// Every gateway has acknowledged it.
    made: bool,
}

impl Sites {
    /// Apps that are to be looked at. The last caller gets them.
    pub(super) fn wakes(&self) -> mpsc::UnboundedReceiver<AppKey> {
        let (sender, wakes) = mpsc::unbounded_channel();
        self.lock().wakes = Some(sender);
        wakes
    }

    /// Forgets an App that is gone.
    pub(super) fn forget(&self, app: &AppKey) {
        self.lock().agreed.remove(app);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each critical section leaves the state whole at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a loop remembers of its App's site between passes.
#[derive(Default)]
pub(super) struct Known {
    /// Folders that were found whole.
    folders: BTreeMap<ReleaseNo, SiteRelease>,
    /// What is published.
    route: Option<SiteRoute>,
    /// What cannot be served.
    unfit: Option<(ReleaseNo, UserError)>,
}

impl Reconciler {
    /// Adds to the routing of an App that is a site where its files lie.
    pub(super) async fn locate(
        &self,
        wanted: &mut Wanted,
        made: impl Fn(ReleaseNo) -> Option<Time>,
        known: &mut Known,
    ) -> Result<(), PassError> {
        let (Some(WantedSite { now, before }), Some(routing)) = (wanted.site, &mut wanted.routing)
        else {
            *known = Known::default();
            return Ok(());
        };
        let releases = &wanted.fleet.releases;
        known.folders.retain(|release, _| releases.contains_key(release));
        known.unfit.take_if(|(release, _)| *release != now);
        for number in std::iter::once(now).chain(before) {
            let found = match releases.get(&number) {
                Some(spec) if !known.folders.contains_key(&number) => self.folder(spec).await?,
                _ => continue,
            };
            match found {
                Ok(Some(folder)) => {
                    let made = made(number).unwrap_or_default().0 / 1_000_000;
                    let release = SiteRelease { release: number, folder, made };
                    known.folders.insert(number, release);
                    known.unfit.take_if(|(release, _)| *release == number);
                }
                Ok(None) => {}
                Err(error) if number == now => known.unfit = Some((now, error)),
                // Nobody misses it but those who have its pages still open.
                Err(error) => tracing::warn!(%error, "the site before cannot be served"),
            }
        }
        let of = |number: ReleaseNo| {
            let spec = releases.get(&number)?;
            Some((known.folders.get(&number)?.clone(), spec.settings.site.clone()?))
        };
        let earlier = before.and_then(of);
        known.route = match of(now) {
            Some((now, rules)) => {
                Some(SiteRoute { now, rules, before: earlier.map(|(before, _)| before) })
            }
            // After a start of ours nothing was published yet by us, but by the one before.
            None => known
                .route
                .take()
                .or_else(|| earlier.map(|(now, rules)| SiteRoute { now, rules, before: None })),
        };
        routing.site.clone_from(&known.route);
        Ok(())
    }

    /// The folder of a Release's files; `None` while its image is not here. An image that holds
    /// no site is no failure of this pass, but of the Release.
    async fn folder(
        &self,
        spec: &ReleaseSpec,
    ) -> Result<Result<Option<String>, UserError>, PassError> {
        let Some(rules) = &spec.settings.site else { return Ok(Ok(None)) };
        match self.engine.site(&spec.image, rules).await {
            // JSON knows text alone; our data folder is named by one.
            Ok(folder) => Ok(Ok(folder.map(|folder| folder.to_string_lossy().into_owned()))),
            Err(stead_core::engine::EngineError::User(error)) => Ok(Err(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// What gateways serve of what `known` says. Where that is not agreed yet, the App is woken
    /// when it is.
    pub(super) fn site_seen(
        self: &Arc<Self>,
        key: &AppKey,
        wanted: &Wanted,
        known: &Known,
    ) -> Option<SiteSeen> {
        if let Some((release, error)) = &known.unfit {
            return Some(SiteSeen::Unfit { release: *release, error: error.clone() });
        }
        let now = wanted.site?.now;
        let route = known.route.as_ref().filter(|route| route.now.release == now)?;
        let mut sites = self.sites.lock();
        match sites.agreed.get(key) {
            Some(agreement) if agreement.route == *route => {
                return agreement.made.then_some(SiteSeen::Served(now));
            }
            _ => {}
        }
        sites.sought += 1;
        let number = sites.sought;
        let agreement = Agreement { route: route.clone(), number, made: false };
        sites.agreed.insert(key.clone(), agreement);
        drop(sites);
        let (reconciler, key) = (Arc::clone(self), key.clone());
        tokio::spawn(async move {
            reconciler.publisher.agreed(&key).await;
            let mut sites = reconciler.sites.lock();
            if let Some(agreement) = sites.agreed.get_mut(&key)
                && agreement.number == number
            {
                agreement.made = true;
                // Nobody listens: `serve` ends.
                let _ = sites.wakes.as_ref().map(|wakes| wakes.send(key));
            }
        });
        None
    }
}
