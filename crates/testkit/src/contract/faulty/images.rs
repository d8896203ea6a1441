//! What defective engines do wrong with images, and with what comes in to make them.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use futures_util::{StreamExt, stream};
use stead_core::api::package::{BaseName, ComposeRequest, Composed, UploadPart, UploadView};
use stead_core::engine::{ByteStream, Engine, EngineError, ImageInfo, MadeBase};
use stead_core::error::{Code, UserError};
use stead_core::ids::Digest;
use stead_core::registry::RegistryChecked;
use stead_core::time::{Micros, Time};

use super::{Defect, FaultyEngine};

impl FaultyEngine {
    pub(super) fn misjudge_login(
        &self,
        answer: Result<RegistryChecked, EngineError>,
    ) -> Result<RegistryChecked, EngineError> {
        match (self.defect, answer) {
            (Defect::AcceptsAnyLogin, Err(_)) => Ok(RegistryChecked::Accepted),
            (Defect::TriesNoLogin, Ok(_)) => Ok(RegistryChecked::Accepted),
            (Defect::BlamesLogin, Err(_)) => {
                Err(UserError::new(Code::RegistryDenied, "the login is wrong", "try another")
                    .into())
            }
            (_, answer) => answer,
        }
    }

    pub(super) async fn misprune(
        &self,
        keep: &[Digest],
        unused_for: Micros,
    ) -> Result<u64, EngineError> {
        match self.defect {
            Defect::PrunesNothing => Ok(0),
            Defect::PrunesAll => self.inner.prune(&[], unused_for).await,
            Defect::PrunesYoung => self.inner.prune(keep, Micros(0)).await,
            Defect::PrunesRunning => {
                let all = self.inner.images().await?.into_iter().map(|image| image.digest);
                let gone = all.filter(|image| !keep.contains(image));
                Ok(self.inner.machine().remove_images(gone))
            }
            _ => self.inner.prune(keep, unused_for).await,
        }
    }

    pub(super) async fn miskeep(&self, needed: &[Digest]) -> Result<(), EngineError> {
        let mut needed = needed.to_vec();
        if self.defect == Defect::KeepsWhatIsHere {
            let here = self.inner.images().await?;
            needed.retain(|wanted| here.iter().any(|image| image.digest == *wanted));
        }
        self.inner.keep(&needed).await
    }

    pub(super) fn misname(&self, mut images: Vec<ImageInfo>) -> Vec<ImageInfo> {
        if self.defect == Defect::KeepsOldNames {
            let names: Vec<_> = images.iter().flat_map(|image| image.names.clone()).collect();
            images.iter_mut().for_each(|image| image.names.clone_from(&names));
        }
        images
    }

    pub(super) async fn misremove(&self, image: &Digest) -> Result<u64, EngineError> {
        match (self.defect, self.inner.remove_image(image).await) {
            (Defect::RemovesNeeded, Err(_)) => {
                self.inner.keep(&[]).await?;
                self.inner.remove_image(image).await
            }
            (Defect::RemovesMore, Ok(freed)) => Ok(freed + self.inner.prune(&[], Micros(0)).await?),
            (Defect::RemovesOfFleets, Err(_)) => {
                Ok(self.inner.machine().remove_images([image.clone()]))
            }
            (_, answer) => answer,
        }
    }

    pub(super) fn misremember(&self, view: UploadView) -> UploadView {
        match self.defect {
            Defect::ForgetsUploads if !view.complete => UploadView { offset: 0, ..view },
            _ => view,
        }
    }

    pub(super) async fn misreceive(
        &self,
        mut part: UploadPart,
        mut bytes: ByteStream,
    ) -> Result<UploadView, EngineError> {
        if self.defect == Defect::TakesAnyPlace {
            part.offset = self.inner.uploaded(&part.digest).await?.offset;
        }
        if self.defect == Defect::ReadsAgain {
            bytes = stream::iter(bytes.collect::<Vec<_>>().await).boxed();
        }
        if self.defect == Defect::MixesSenders {
            return self.mix(part, bytes).await;
        }
        let whole = UploadView { offset: part.size, complete: true };
        match self.inner.upload(part, bytes).await {
            Err(EngineError::User(error))
                if self.defect == Defect::TrustsUploads && error.code == Code::ImageCorrupt =>
            {
                Ok(whole)
            }
            answer => answer,
        }
    }

    async fn mix(
        &self,
        mut part: UploadPart,
        mut bytes: ByteStream,
    ) -> Result<UploadView, EngineError> {
        let mut here = self.inner.uploaded(&part.digest).await?;
        while let Some(piece) = bytes.next().await {
            part.offset = self.inner.uploaded(&part.digest).await?.offset;
            here = self.inner.upload(part.clone(), stream::iter([piece]).boxed()).await?;
        }
        Ok(here)
    }

    pub(super) async fn miscompose(
        &self,
        mut request: ComposeRequest,
        mut base: Option<&Digest>,
    ) -> Result<Composed, EngineError> {
        let all = request.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let labels = &mut request.config.labels;
        match self.defect {
            Defect::ComposesAnew => {
                labels
                    .insert("number".into(), self.made.fetch_add(1, Ordering::Relaxed).to_string());
            }
            Defect::NamesBySending => {
                let sent = request.layers.iter().filter_map(|layer| layer.upload.as_ref());
                labels.extend(sent.map(|upload| ("sent".into(), upload.digest.to_string())));
            }
            Defect::ComposesInDryRuns => request.dry_run = false,
            Defect::IgnoresBase => base = None,
            _ => {}
        }
        match (self.defect, self.inner.compose(&request, base).await) {
            (Defect::NamesAllMissing, Ok(Composed::Missing(_))) => Ok(Composed::Missing(all)),
            (Defect::TrustsLayers, Err(_)) => {
                let (digest, names) = (all[0].clone(), vec![request.name]);
                let image = ImageInfo { digest, names, size: 1, shared: 0, last_used: Time(0) };
                Ok(Composed::Image(image))
            }
            (Defect::LosesComposed, Ok(Composed::Image(image))) => {
                self.inner.machine().remove_images([image.digest.clone()]);
                Ok(Composed::Image(image))
            }
            (_, answer) => answer,
        }
    }

    pub(super) async fn mismake_base(
        &self,
        base: &BaseName,
        path: Option<PathBuf>,
    ) -> Result<MadeBase, EngineError> {
        match self.defect {
            Defect::MakesBasesAnew => {
                let mut made = self.inner.make_base(base, path).await?;
                let number = self.made.fetch_add(1, Ordering::Relaxed);
                made.image.digest = crate::sim::digest_of(&number.to_string());
                Ok(made)
            }
            Defect::MakesAnyBase => {
                let found = self.inner.host_runtimes().await?;
                self.inner.make_base(&found[0].base, None).await
            }
            _ => self.inner.make_base(base, path).await,
        }
    }
}
