//! Wars (being written).
use std::path::Path;


use super::error::PackError;
use super::pack::{Pack, PackOptions};



pub(super) fn pack(path: &Path, _options: &PackOptions) -> Result<Pack, PackError> {
    Err(PackError::unfit(path, "packing a war is not built yet", "wait a moment"))
}
