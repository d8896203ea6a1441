//! The route table on disk, so that a gateway serves at once when it starts, with or without
//! a control plane.
//!
//! Promises: the file is whole at any time (written aside, synced, renamed); changes that come
//! faster than the disk are written as one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stead_core::routes::RouteTable;

use crate::gateway::{Phase, Shared};

/// Writes the table after each change, for as long as this gateway is the one that serves.
pub(crate) async fn keep(shared: Arc<Shared>, path: PathBuf) {
    loop {
        tokio::select! {
            () = shared.routes.changed.notified() => {}
            () = shared.reached(Phase::HandedOver) => return,
        }
        let Some(routes) = shared.routes.snapshot() else { continue };
        let path = path.clone();
        let written = tokio::task::spawn_blocking(move || store(&path, &routes)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(%error, "route table cannot be kept on disk");
        }
    }
}

/// Writes `routes` to `path`.
pub(crate) fn store(path: &Path, routes: &RouteTable) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    // Two gateways may write during a takeover: each its own file.
    let aside = path.with_extension(format!("json.{}", std::process::id()));
    let mut file = File::create(&aside)?;
    file.write_all(&serde_json::to_vec(routes)?)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    File::open(dir)?.sync_all()
}

/// Reads what was kept. A file that cannot be read is set aside, not trusted and not lost.
pub(crate) fn load(path: &Path) -> Option<RouteTable> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "kept route table cannot be read");
            return None;
        }
    };
    match serde_json::from_slice(&bytes) {
        Ok(routes) => Some(routes),
        Err(error) => {
            let aside = path.with_extension("json.damaged");
            let moved = fs::rename(path, &aside);
            tracing::error!(%error, ?moved, aside = %aside.display(), "kept route table is damaged");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_core::ids::Generation;

    #[test]
    fn what_is_stored_is_loaded_and_what_is_damaged_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/routes.json");
        assert_eq!(load(&path), None);
        let routes = RouteTable { generation: Generation(7), ..Default::default() };
        store(&path, &routes).unwrap();
        assert_eq!(load(&path), Some(routes));
        fs::write(&path, "{\"generation\":").unwrap();
        assert_eq!(load(&path), None);
        assert!(!path.exists() && path.with_extension("json.damaged").exists());
    }
}
