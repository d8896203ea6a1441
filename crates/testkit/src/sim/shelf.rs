//! What a simulated machine keeps of images besides that they are here: their names, uploads,
//! the layers of those that were composed, and which are needed.
//!
//! Promises what a real store does of uploads and composing: an upload grows only at its end
//! and is complete only with the size and digest that name it; the same request makes the same
//! image, however its layers were sent. Does not know what the layers hold, nor which images
//! are here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use stead_core::api::package::{ComposeRequest, PackedLayer, Upload, UploadPart, UploadView};
use stead_core::error::{Code, UserError};
use stead_core::ids::Digest;

use super::script::{digest_of, digest_of_bytes};

#[derive(Debug, Default)]
pub(super) struct Shelf {
    uploads: BTreeMap<Digest, Arrived>,
    /// Diff ids of the layers of composed images.
    layers: BTreeMap<Digest, Vec<Digest>>,
    names: BTreeMap<Digest, BTreeSet<String>>,
    /// Images that somebody said are needed.
    pub(super) needed: Vec<Digest>,
}

#[derive(Debug, Default)]
struct Arrived {
    bytes: Vec<u8>,
    complete: bool,
}

/// What a request comes to.
pub(super) enum Plan {
    /// This image is wanted, and all it is made of is here.
    Image(Digest),
    /// These layers are neither here nor uploaded.
    Missing(Vec<Digest>),
}

impl Shelf {
    pub(super) fn names(&self, image: &Digest) -> Vec<String> {
        self.names.get(image).into_iter().flatten().cloned().collect()
    }

    /// Gives a name to an image, taking it from any other.
    pub(super) fn name(&mut self, image: &Digest, name: &str) {
        for names in self.names.values_mut() {
            names.remove(name);
        }
        self.names.entry(image.clone()).or_default().insert(name.to_owned());
    }

    /// An image is gone, and with it what only it needed.
    pub(super) fn forget(&mut self, image: &Digest) {
        self.names.remove(image);
        self.layers.remove(image);
    }

    pub(super) fn uploaded(&self, digest: &Digest) -> UploadView {
        match self.uploads.get(digest) {
            Some(Arrived { bytes, complete }) => {
                UploadView { offset: bytes.len() as u64, complete: *complete }
            }
            None => UploadView { offset: 0, complete: false },
        }
    }

    /// Takes in a piece of what `part` announces; its offset moves on.
    pub(super) fn receive(&mut self, part: &mut UploadPart, piece: &[u8]) -> Result<(), UserError> {
        let here = self.uploaded(&part.digest);
        if here.complete || here.offset != part.offset {
            let (expected, got) = (here.offset, part.offset);
            let message = format!("upload has {expected} bytes, so it goes on there, not at {got}");
            return Err(UserError::new(Code::Conflict, message, "go on from there"));
        }
        if part.offset + piece.len() as u64 > part.size {
            self.uploads.remove(&part.digest);
            return Err(corrupt(format!("upload has more than the {} bytes announced", part.size)));
        }
        self.uploads.entry(part.digest.clone()).or_default().bytes.extend_from_slice(piece);
        part.offset += piece.len() as u64;
        Ok(())
    }

    /// What of `part` is here now that its bytes ended; complete, if that is all.
    pub(super) fn received(&mut self, part: &UploadPart) -> Result<UploadView, UserError> {
        if let Some(arrived) = self.uploads.get_mut(&part.digest)
            && arrived.bytes.len() as u64 == part.size
        {
            arrived.complete = digest_of_bytes(&arrived.bytes) == part.digest;
            if !arrived.complete {
                self.uploads.remove(&part.digest);
                return Err(corrupt(format!("upload is not {}", part.digest)));
            }
        }
        Ok(self.uploaded(&part.digest))
    }

    /// Which image a request asks for on an image `base`, or what it lacks.
    pub(super) fn plan(&self, request: &ComposeRequest, base: Option<&Digest>) -> Plan {
        let mut missing = Vec::new();
        for layer in self.unknown(request) {
            let uploaded = layer.upload.as_ref().is_some_and(|u| self.uploaded(&u.digest).complete);
            if !uploaded && !missing.contains(&layer.diff_id) {
                missing.push(layer.diff_id.clone());
            }
        }
        if !missing.is_empty() {
            return Plan::Missing(missing);
        }
        // Neither its name nor how it was sent makes another image.
        let layers: Vec<&Digest> = request.layers.iter().map(|layer| &layer.diff_id).collect();
        let parts = (base, &request.base, request.kind, layers, &request.config);
        let text = serde_json::to_string(&parts).expect("a request has only string keys");
        Plan::Image(digest_of(&text))
    }

    /// Makes an image of uploaded layers, whose uploads are used up by that.
    pub(super) fn make(
        &mut self,
        image: &Digest,
        request: &ComposeRequest,
    ) -> Result<(), UserError> {
        let unknown = self.unknown(request).filter_map(|l| Some((l.clone(), l.upload.clone()?)));
        for (layer, Upload { digest, .. }) in unknown.collect::<Vec<_>>() {
            let sent = self.uploads.get(&digest).map(|arrived| arrived.bytes.as_slice());
            let plain = plain(sent.unwrap_or_default());
            let right = plain.is_ok_and(|bytes| {
                bytes.len() as u64 == layer.size && digest_of_bytes(&bytes) == layer.diff_id
            });
            if !right {
                self.uploads.remove(&digest);
                return Err(corrupt(format!("layer {} is not what was sent", layer.diff_id)));
            }
        }
        for upload in request.layers.iter().filter_map(|layer| layer.upload.as_ref()) {
            self.uploads.remove(&upload.digest);
        }
        let layers = request.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        self.layers.insert(image.clone(), layers);
        Ok(())
    }

    /// Layers that no image here has.
    fn unknown<'a>(
        &'a self,
        request: &'a ComposeRequest,
    ) -> impl Iterator<Item = &'a PackedLayer> + 'a {
        let known =
            |layer: &&PackedLayer| self.layers.values().flatten().any(|l| *l == layer.diff_id);
        request.layers.iter().filter(move |layer| !known(layer))
    }
}

/// What was sent, as it was before it was compressed.
fn plain(sent: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match sent {
        [0x1f, 0x8b, ..] => flate2::read::GzDecoder::new(sent).read_to_end(&mut bytes)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::Decoder::new(sent)?.read_to_end(&mut bytes)?,
        _ => return Ok(sent.to_vec()),
    };
    Ok(bytes)
}

fn corrupt(message: String) -> UserError {
    UserError::new(Code::ImageCorrupt, message, "send it again")
}
