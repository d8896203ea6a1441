//! Base images of what is installed on this machine.
//!
//! Promises: nothing of an unfinished one stays, also after a crash: it is written where the
//! image store keeps what is not finished. Does not know which bases are wanted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stead_core::api::package::BaseName;
use stead_core::engine::{EngineError, HostRuntime};
use stead_core::error::{Code, UserError};

use super::{Shared, blocking, parse};
use crate::image::Image;
use crate::package::PackError;
use crate::package::base::{self, Base};

/// Makes the base `name` of what is installed in `path`, or anywhere. Gives its image, what
/// it was made of, and what a person should know.
pub(super) async fn make(
    shared: &Shared,
    name: &BaseName,
    path: Option<PathBuf>,
) -> Result<(Arc<Image>, HostRuntime, Vec<String>), EngineError> {
    let folder = Unfinished::new(&shared.data_dir.join("images/tmp")).map_err(no_room)?;
    let (wanted, layout) = (name.clone(), folder.0.clone());
    let write = move || -> Result<(HostRuntime, Vec<String>), PackError> {
        let (Base { layer, config, notes }, runtime) = base::make(&wanted, path.as_deref())?;
        base::write_layout(&layer, &config, &layout)?;
        Ok((runtime, notes))
    };
    let (runtime, notes) = blocking(write).await?.map_err(UserError::from)?;
    // The host says that it came from no registry.
    let called = format!("localhost/stead/{}:{}", name.runtime.word(), name.version());
    let imported = shared.images.import(&folder.0, Some(&parse(&called)?), &()).await;
    Ok((imported.map_err(UserError::from)?, runtime, notes))
}

/// A folder for a layout, removed when dropped.
struct Unfinished(PathBuf);

impl Unfinished {
    fn new(parent: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("base-{number}"));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "could not remove a base's layout");
        }
    }
}

fn no_room(error: io::Error) -> UserError {
    let message = format!("a base image cannot be written: {error}");
    UserError::new(Code::DiskFull, message, "make room under the data directory")
}
