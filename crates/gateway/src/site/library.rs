//! The folders of sites that are open, shared by the Releases and generations that serve them.
//!
//! Promises: a folder is read once while anybody serves it, so that a change of settings alone
//! reads nothing; one that cannot be read is tried again with the next generation.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use stead_core::routes::site::SiteRoute;
use stead_core::routes::{AppRoutes, RouteChange};

use super::folder::{Budget, Folder};

/// Bytes of small files that are kept in memory, of all sites together.
const MEMORY: u64 = 64 << 20;

/// The folders that are open.
#[derive(Clone)]
pub(crate) struct Library(Arc<Inner>);

struct Inner {
    open: Mutex<HashMap<PathBuf, Weak<Folder>>>,
    memory: Arc<Budget>,
}

/// Keeps folders open until a change of the routes has taken them up.
pub(crate) struct Prepared(#[expect(dead_code, reason = "held, not read")] Vec<Arc<Folder>>);

impl Library {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner { open: Mutex::default(), memory: Budget::new(MEMORY) }))
    }

    /// Opens the folders that `change` serves from, so that taking it up waits for no disk.
    pub(crate) async fn prepare(&self, change: &RouteChange) -> Prepared {
        let routes: Vec<&AppRoutes> = match change {
            RouteChange::Table(table) => table.apps.values().collect(),
            RouteChange::Put { routes, .. } => routes.iter().collect(),
        };
        let sites = routes.into_iter().filter_map(|routes| routes.site.as_ref());
        let folders: Vec<PathBuf> = sites.flat_map(folders).collect();
        if folders.is_empty() {
            return Prepared(Vec::new());
        }
        let library = self.clone();
        let opening = tokio::task::spawn_blocking(move || {
            folders.iter().filter_map(|folder| library.folder(folder)).collect()
        });
        Prepared(opening.await.unwrap_or_default())
    }

    /// The folder at `path`, read if it is not open. Blocks then. What keeps it from being read
    /// is logged.
    pub(super) fn folder(&self, path: &Path) -> Option<Arc<Folder>> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = open.get(path).and_then(Weak::upgrade)
            && is_at(&folder, path)
        {
            return Some(folder);
        }
        open.retain(|_, folder| folder.strong_count() > 0);
        match Folder::open(path, &self.0.memory) {
            Ok(folder) => {
                let folder = Arc::new(folder);
                open.insert(path.to_owned(), Arc::downgrade(&folder));
                Some(folder)
            }
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "site cannot be read");
                None
            }
        }
    }
}

fn folders(site: &SiteRoute) -> impl Iterator<Item = PathBuf> {
    let releases = std::iter::once(&site.now).chain(&site.before);
    releases.map(|release| PathBuf::from(&release.folder))
}

/// Whether an open folder is still what lies at its path: it may have been removed and made anew.
fn is_at(folder: &Folder, path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == folder.identity())
}
