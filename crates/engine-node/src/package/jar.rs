//! Jars (being written).
use std::path::Path;

use stead_core::api::package::PackageKind;

use super::error::PackError;
use super::pack::{Pack, PackOptions};

pub(super) fn recognise(_path: &Path) -> Result<Option<PackageKind>, PackError> {
    Ok(Some(PackageKind::Jar))
}

pub(super) fn is_folder(path: &Path) -> bool {
    path.join("quarkus-run.jar").is_file()
}

pub(super) fn pack(path: &Path, _options: &PackOptions) -> Result<Pack, PackError> {
    Err(PackError::unfit(path, "packing a jar is not built yet", "wait a moment"))
}
