//! Layers and requests as a sender of packages has them.

use std::io::{self, Read};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use stead_core::api::package::{
    ComposeRequest, PackageKind, PackedConfig, PackedLayer, Upload, UploadPart,
};
use stead_core::engine::ByteStream;
use stead_core::ids::Digest;

use crate::images::{Compression, LayerBuilder, digest};

/// A layer, and how it is sent.
pub(super) struct Parcel {
    /// The archive.
    pub(super) tar: Vec<u8>,
    /// What is sent of it.
    pub(super) sent: Vec<u8>,
}

/// How a layer is sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Coding {
    Plain,
    Gzip,
    Zstd,
}

impl Parcel {
    /// A layer of these files, sent as the command line sends them.
    pub(super) fn new(files: &[(&str, &str)]) -> Self {
        let add = |layer: LayerBuilder, (path, content): &(&str, &str)| {
            layer.file(path, 0o644, content.as_bytes())
        };
        let layer = files.iter().fold(LayerBuilder::new(), add).build_as(Compression::None);
        Self { tar: layer.bytes, sent: Vec::new() }.coded(Coding::Zstd)
    }

    pub(super) fn coded(&self, coding: Coding) -> Self {
        let tar = self.tar.clone();
        let sent = match coding {
            Coding::Plain => Ok(tar.clone()),
            Coding::Gzip => gzip(&tar),
            Coding::Zstd => zstd::encode_all(tar.as_slice(), 0),
        };
        let sent = sent.expect("writing to memory does not fail");
        Self { tar, sent }
    }

    pub(super) fn diff_id(&self) -> Digest {
        digest_of(&self.tar)
    }

    /// As it is asked for before anything was uploaded.
    pub(super) fn packed(&self) -> PackedLayer {
        let (diff_id, size) = (self.diff_id(), self.tar.len() as u64);
        PackedLayer { diff_id, size, what: "a part".into(), upload: None }
    }

    /// As it is asked for once it was uploaded.
    pub(super) fn uploaded(&self) -> PackedLayer {
        let upload = Upload { digest: digest_of(&self.sent), size: self.sent.len() as u64 };
        PackedLayer { upload: Some(upload), ..self.packed() }
    }
}

/// Asks for the image that these layers make.
pub(super) fn request(layers: Vec<PackedLayer>) -> ComposeRequest {
    let config = PackedConfig {
        entrypoint: ["/app/run", "now"].map(str::to_owned).to_vec(),
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
        working_dir: "/app".into(),
        ..PackedConfig::default()
    };
    let name = "stead.local/packed:1".into();
    ComposeRequest { name, kind: PackageKind::Program, base: None, layers, config, dry_run: false }
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut sent = Vec::new();
    flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut sent)?;
    Ok(sent)
}

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    digest(bytes).parse().expect("it is a digest")
}

/// What is announced of an upload that goes on at `offset`.
pub(super) fn part(whole: &[u8], offset: usize) -> UploadPart {
    UploadPart { digest: digest_of(whole), size: whole.len() as u64, offset: offset as u64 }
}

/// The bytes in pieces.
pub(super) fn pieces(bytes: &[u8]) -> ByteStream {
    let pieces: Vec<_> = bytes.chunks(7_000).map(Bytes::copy_from_slice).map(Ok).collect();
    stream::iter(pieces).boxed()
}

/// The bytes in pieces, and then the connection is gone.
pub(super) fn broken_off(bytes: &[u8]) -> ByteStream {
    let gone = stream::iter([Err(io::Error::other("the cable was pulled"))]);
    pieces(bytes).chain(gone).boxed()
}
