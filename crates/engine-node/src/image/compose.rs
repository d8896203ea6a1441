//! From uploaded layers and a base to an image.
//!
//! Promises: the same base, layers and config make the same image, byte for byte, however the
//! layers were compressed on their way; a layer that is here is not asked for; what makes the
//! image complete is what makes a pulled one complete, and it is safely on the disk besides.
//! Does not know what the layers hold, nor how a base came to be.
//!
//! The manifest names the layers of the base as the base does and its own as plain archives.

use std::sync::Arc;

use stead_core::api::package::{ComposeRequest, KIND_LABEL, PackedConfig, PackedLayer, Upload};
use stead_core::ids::Digest;

use super::config::{self, ImageConfig};
use super::error::{ImageError, LayerError};
use super::import::Local;
use super::manifest::{Descriptor, Document, MAX_LAYERS, Manifest, Platform};
use super::progress::Progress;
use super::pull::{Origin, Pull};
use super::reference::Reference;
use super::store::{Image, ImageStore, Inner};

/// The label that says which base an image was composed on.
const BASE_LABEL: &str = "io.stead.package.base";

/// What composing came to.
#[derive(Debug)]
pub enum Made {
    /// The image is here.
    Image(Arc<Image>),
    /// Diff ids of layers that are neither here nor uploaded; nothing was changed. None, where
    /// a dry run found all of them.
    Missing(Vec<Digest>),
}

impl ImageStore {
    /// The image that `request` asks for on the image `base`, made unless it is here.
    ///
    /// # Errors
    /// When the base is not here, the name is malformed, a layer is not what it is called or is
    /// refused for what any pull would refuse it for, or there is no room.
    pub async fn compose(
        &self,
        request: &ComposeRequest,
        base: Option<&Digest>,
        progress: &dyn Progress,
    ) -> Result<Made, ImageError> {
        let inner = &self.inner;
        let name: Reference = request.name.parse()?;
        let base = base.map(|digest| Base::of(self, digest)).transpose()?;
        let layers = base.as_ref().map_or(0, |base| base.layers.len()) + request.layers.len();
        if layers > MAX_LAYERS {
            let reason = format!("it has {layers} layers, more than {MAX_LAYERS}");
            return Err(ImageError::bad_manifest(&request.name, reason));
        }
        // From here on nothing that is here may go.
        let _pins = inner.pin(request.layers.iter().map(|layer| layer.diff_id.clone()));
        let missing = missing(inner, &request.layers)?;
        if !missing.is_empty() {
            return Ok(Made::Missing(missing));
        }
        let documents = documents(request, base.as_ref(), &inner.options.platform);
        let digest = super::digest_of(&documents[0]);
        let uploads =
            || request.layers.iter().filter_map(|l| Some((&l.diff_id, l.upload.as_ref()?)));
        if request.dry_run {
            return Ok(self.get(&digest).map_or(Made::Missing(missing), Made::Image));
        }
        if let Some(image) = inner.touch(&digest, Some(&name))? {
            inner.safe(&digest).await;
            // Somebody else sent the same, and was faster.
            uploads().for_each(|(_, upload)| inner.drop_upload(&upload.digest));
            return Ok(Made::Image(image));
        }
        let stored = uploads()
            .map(|(layer, Upload { digest, size })| (layer.clone(), (digest.clone(), *size)));
        let local = Local::composed(&inner.uploads(), documents, stored)?;
        let pull = Pull { inner, origin: Origin::Local(Arc::new(local)), progress };
        let made = pull.run(&request.name, &digest, Some(&name)).await;
        // Unlike a pulled one it can be fetched from nowhere, once its uploads are gone.
        inner.safe(&digest).await;
        let used = match &made {
            Ok(_) => uploads().map(|(_, upload)| upload.digest.clone()).collect(),
            // What is damaged is of no use to a next try: it was never what it was called, or
            // the machine went down while it was being written.
            Err(ImageError::Layer { layer, source }) if is_wrong(source) => {
                let of_layer = uploads().find(|(diff_id, _)| *diff_id == layer);
                of_layer.map(|(_, upload)| upload.digest.clone()).into_iter().collect()
            }
            Err(_) => Vec::new(),
        };
        used.iter().for_each(|upload| inner.drop_upload(upload));
        made.map(Made::Image)
    }
}

fn is_wrong(error: &LayerError) -> bool {
    matches!(error, LayerError::Damaged(_) | LayerError::Digest { .. } | LayerError::Size { .. })
}

/// The layers that are neither unpacked here nor uploaded.
fn missing(inner: &Inner, layers: &[PackedLayer]) -> Result<Vec<Digest>, ImageError> {
    let mut missing = Vec::new();
    for layer in layers.iter().filter(|layer| !inner.has_layer(&layer.diff_id)) {
        let uploaded = match &layer.upload {
            Some(upload) => inner.upload_view(&upload.digest)?.complete,
            None => false,
        };
        if !uploaded && !missing.contains(&layer.diff_id) {
            missing.push(layer.diff_id.clone());
        }
    }
    Ok(missing)
}

/// What a composed image takes from its base. Holds the base.
struct Base {
    image: Arc<Image>,
    layers: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
}

impl Base {
    fn of(store: &ImageStore, digest: &Digest) -> Result<Self, ImageError> {
        let gone = || ImageError::NoBase { digest: digest.clone() };
        let image = store.get(digest).ok_or_else(gone)?;
        let (manifest, diff_ids) = store.inner.parts(digest).ok_or_else(gone)?;
        let bytes = store.inner.blob(&manifest).ok_or_else(gone)?;
        match Document::parse(&format!("base {digest}"), &bytes)? {
            Document::Manifest(Manifest { layers, .. }) => Ok(Self { image, layers, diff_ids }),
            Document::Index(_) => Err(gone()),
        }
    }
}

/// The image's manifest and config.
fn documents(request: &ComposeRequest, base: Option<&Base>, platform: &Platform) -> [Vec<u8>; 2] {
    let none = ImageConfig::default();
    let below = base.map_or(&none, |base| &base.image.config);
    let own = request.layers.iter().map(|layer| &layer.diff_id);
    let diff_ids = base.iter().flat_map(|base| &base.diff_ids).chain(own).cloned().collect();
    let mut run = run(&request.config, below);
    let kind = serde_json::to_value(request.kind).expect("a kind is a word");
    run.labels.insert(KIND_LABEL.into(), kind.as_str().unwrap_or_default().into());
    if let Some(name) = &request.base {
        run.labels.insert(BASE_LABEL.into(), name.to_string());
    }
    let config = config::write(&run, platform, diff_ids);
    let own = request.layers.iter().map(|layer| (layer.diff_id.clone(), layer.size));
    let mut manifest =
        Manifest::of_parts((super::digest_of(&config), config.len() as u64), own.collect());
    manifest.layers.splice(0..0, base.iter().flat_map(|base| &base.layers).cloned());
    [serde_json::to_vec(&manifest).expect("a manifest has only string keys"), config]
}

/// How the image is run: as the Package says, and where that says nothing as the base does.
fn run(asked: &PackedConfig, below: &ImageConfig) -> ImageConfig {
    let mut run = ImageConfig {
        // It would make each image another one.
        created: None,
        ..below.clone()
    };
    run.env.retain(|line| !asked.env.contains_key(line.split('=').next().unwrap_or(line)));
    run.env.extend(asked.env.iter().map(|(name, value)| format!("{name}={value}")));
    if let Some(port) = asked.port {
        run.exposed_ports = vec![format!("{port}/tcp")];
    }
    if !asked.entrypoint.is_empty() {
        // Arguments of another program are none of this one's.
        run.entrypoint.clone_from(&asked.entrypoint);
        run.cmd.clone_from(&asked.cmd);
    } else if !asked.cmd.is_empty() {
        run.cmd.clone_from(&asked.cmd);
    }
    if !asked.working_dir.is_empty() {
        run.working_dir.clone_from(&asked.working_dir);
    }
    if !asked.user.is_empty() {
        run.user.clone_from(&asked.user);
    }
    run.labels.extend(asked.labels.clone());
    run
}
