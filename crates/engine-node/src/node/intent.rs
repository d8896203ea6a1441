//! The Fleets an engine was given, kept beside its Sandboxes: a restarted engine goes on by
//! itself, and still refuses what is older than what it had.
//!
//! They lie under the run folder, because they say what shall be done with Sandboxes that do
//! not outlive the machine either. What shall be at all is in the control plane's store.

use std::io;
use std::path::{Path, PathBuf};

use stead_core::fleet::Fleet;
use stead_core::name::AppKey;

/// The folder of kept Fleets.
pub(super) struct Intents(PathBuf);

impl Intents {
    pub(super) fn open(run_dir: &Path) -> io::Result<Self> {
        let folder = run_dir.join("fleets");
        // They hold the Apps' environments.
        super::private_folder(&folder)?;
        Ok(Self(folder))
    }

    /// A name never holds `@`, so no two Apps share a file.
    fn file(&self, app: &AppKey) -> PathBuf {
        self.0.join(format!("{}@{}.json", app.namespace, app.app))
    }

    /// Keeps a Fleet in place of the one before. A crash leaves one or the other.
    pub(super) fn keep(&self, fleet: &Fleet) -> io::Result<()> {
        let file = self.file(&fleet.app);
        let new = file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(fleet)?)?;
        std::fs::rename(new, file)
    }

    pub(super) fn forget(&self, app: &AppKey) {
        // One that stays behind is of an App without Instances: it wants nothing.
        let _ = std::fs::remove_file(self.file(app));
    }

    /// Every Fleet kept. One that cannot be read is left out: the control plane will give it
    /// again.
    pub(super) fn all(&self) -> Vec<Fleet> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.path().extension().is_some_and(|kind| kind == "json"))
            .filter_map(|entry| {
                let read = std::fs::read(entry.path()).map_err(io::Error::other);
                match read.and_then(|text| Ok(serde_json::from_slice(&text)?)) {
                    Ok(fleet) => Some(fleet),
                    Err(error) => {
                        tracing::warn!(file = %entry.path().display(), %error, "fleet is unreadable");
                        None
                    }
                }
            })
            .collect()
    }
}
