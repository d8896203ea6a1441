//! Host names of Apps: each leads to one App, so that nobody takes another's requests.
//!
//! Asked of the store, not of the routes: these lack what is still on its way, and everything
//! in the moment after a start.

use serde::{Deserialize, Serialize};
use stead_core::app::App;
use stead_core::error::{Code, UserError};
use stead_core::ids::ReleaseNo;
use stead_core::manifest::{HostName, Manifest};
use stead_core::name::AppKey;

use super::Api;
use super::problem::Problem;
use crate::store::{Document, Kind, Versioned, Write};

/// Written by each change that claims hosts, so that no two are decided at the same time.
#[derive(Serialize, Deserialize)]
struct Claims {}

impl Document for Claims {
    const KIND: Kind = Kind::Meta;
}

const KEY: &str = "hosts";

impl Api {
    /// What a change of `key` to `manifest` writes beside itself when it names hosts.
    ///
    /// # Errors
    /// [`Code::Conflict`] when another App has one of them.
    pub(super) fn claim_hosts(
        &self,
        key: &AppKey,
        manifest: &Manifest,
    ) -> Result<Option<Write>, Problem> {
        let hosts = hosts(manifest);
        if hosts.is_empty() {
            return Ok(None);
        }
        // Read first: whoever commits a claim after this makes ours a conflict.
        let write = match self.store.get::<Claims>(KEY)? {
            Some(stored) => Write::replace(&stored, &stored.value)?,
            None => Write::create(KEY, &Claims {})?,
        };
        for Versioned { value: other, .. } in self.store.list::<App>("")?.found {
            if other.key == *key || other.deleted {
                continue;
            }
            for number in in_use(&other) {
                let Some(release) = self.release(&other.key, number)? else { continue };
                let taken = self::hosts(&release.settings);
                if let Some(host) = hosts.iter().find(|host| taken.contains(*host)) {
                    return Err(belongs_to(host, &other.key, key).into());
                }
            }
        }
        Ok(Some(write))
    }
}

fn hosts(manifest: &Manifest) -> Vec<HostName> {
    manifest.http.iter().flat_map(|http| &http.hosts).cloned().collect()
}

/// The Releases that an App runs, goes to, or goes back to by itself.
fn in_use(app: &App) -> impl Iterator<Item = ReleaseNo> {
    let active = app.active();
    let to = active.map(|rollout| rollout.to.release);
    let from = active.and_then(|rollout| rollout.from.clone());
    let lineups = app.lineup().into_iter().chain(from);
    let running: Vec<ReleaseNo> = lineups.flat_map(|l| l.releases().collect::<Vec<_>>()).collect();
    running.into_iter().chain(to)
}

fn belongs_to(host: &HostName, owner: &AppKey, key: &AppKey) -> UserError {
    let whose = if owner.namespace == key.namespace {
        format!("app {owner}")
    } else {
        "an app of another namespace".to_owned()
    };
    UserError::new(
        Code::Conflict,
        format!("host {} belongs to {whose}", host.as_str()),
        "remove it there first, or use another host",
    )
}
