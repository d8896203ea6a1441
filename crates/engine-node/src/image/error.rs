//! What can go wrong with images, each kind its own variant, and how a person is told.
//!
//! Promises: every error has a code and a hint. Does not know how it is shown.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use stead_core::error::{Code, UserError};
use stead_core::ids::Digest;

use super::reference::BadReference;

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference is malformed.
    #[error(transparent)]
    BadReference(#[from] BadReference),
    /// The registry does not know the image, or does not show it to strangers.
    #[error("{what} does not exist in {registry}")]
    NotFound {
        /// The registry's host.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// The registry wants other credentials, or any.
    #[error("{registry} refused access to {repository}: {reason}")]
    Denied {
        /// The registry's host.
        registry: String,
        /// The repository asked for.
        repository: String,
        /// What the registry said.
        reason: String,
    },
    /// The registry asks for its token to be fetched from a stranger.
    #[error("{registry} sends clients to {realm} for a token, which is not its own host")]
    ForeignRealm {
        /// The registry's host.
        registry: String,
        /// The address it named.
        realm: String,
    },
    /// A name or a redirect led to an address the registry has no business with.
    #[error(
        "{host} has the address {address}, which stead does not connect to on a registry's word"
    )]
    AddressRefused {
        /// The host that was to be reached.
        host: String,
        /// The address it has.
        address: IpAddr,
    },
    /// A redirect that is not followed.
    #[error("{registry} sent a redirect that is not followed: {reason}")]
    BadRedirect {
        /// The registry's host.
        registry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry's certificate is not trusted, or TLS failed otherwise.
    #[error("{host} could not be reached over TLS: {reason}")]
    Tls {
        /// The host that was to be reached.
        host: String,
        /// What the TLS library said.
        reason: String,
    },
    /// The registry cannot be reached, or its connections keep breaking.
    #[error("{host} could not be reached: {reason}")]
    Unreachable {
        /// The host that was to be reached.
        host: String,
        /// The last failure.
        reason: String,
    },
    /// The registry wants less requests than retries would make.
    #[error("{registry} limits the rate of requests")]
    RateLimited {
        /// The registry's host.
        registry: String,
        /// How long the registry wants us to wait, if it said so.
        retry_after: Option<Duration>,
    },
    /// The registry keeps answering with an error, or with something that makes no sense.
    #[error("{registry} answered {answer}")]
    Registry {
        /// The registry's host.
        registry: String,
        /// Its answer.
        answer: String,
    },
    /// What arrived is not what was named.
    #[error("{what} has the digest {got}, {expected} was expected")]
    DigestMismatch {
        /// A manifest, a config or a layer.
        what: String,
        /// The digest named.
        expected: Digest,
        /// The digest of what arrived.
        got: Digest,
    },
    /// What arrived is longer or shorter than announced.
    #[error("{what} has {got} bytes, {expected} were announced")]
    SizeMismatch {
        /// A manifest, a config or a layer.
        what: String,
        /// The size announced, bytes.
        expected: u64,
        /// The size of what arrived; for an endless answer, where reading stopped.
        got: u64,
    },
    /// A manifest, an index or a config makes no sense or is not supported.
    #[error("{what} cannot be used: {reason}")]
    BadManifest {
        /// Which document.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image exists, but not for this machine.
    #[error("image has no variant for {wanted}, only for {offered}")]
    NoPlatform {
        /// This machine's platform.
        wanted: String,
        /// What the image offers.
        offered: String,
    },
    /// A layer was refused.
    #[error("layer {layer} could not be unpacked: {source}")]
    Layer {
        /// The layer's digest.
        layer: Digest,
        /// Why.
        source: LayerError,
    },
    /// The file or folder given is not an image.
    #[error("{path} is not an image: {reason}", path = path.display())]
    NotAnImage {
        /// The file or folder.
        path: PathBuf,
        /// What was expected.
        reason: String,
    },
    /// The image's user does not exist in it.
    #[error("user {user:?} cannot be used: {reason}")]
    BadUser {
        /// The user as configured.
        user: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The credentials file cannot be read.
    #[error("credentials in {path} cannot be used: {reason}", path = path.display())]
    BadCredentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never its content.
        reason: String,
    },
    /// A program that keeps credentials could not be asked.
    #[error("credentials could not be had from {program}: {reason}")]
    Helper {
        /// Its name.
        program: String,
        /// What happened; never what it answered.
        reason: String,
        /// There is no such program.
        missing: bool,
    },
    /// The platform's own logins and mirrors cannot be read.
    #[error("{}", .0.message)]
    Book(UserError),
    /// A layer that the image says is kept outside of its registry.
    #[error("layer {layer} is not in {registry}: the image says that it is kept elsewhere")]
    ForeignLayer {
        /// Its digest.
        layer: Digest,
        /// The registry's host.
        registry: String,
    },
    /// The image store's disk is full.
    #[error("image store has no room left")]
    DiskFull,
    /// The image store may not grow, and nothing in it can go.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// An upload does not go on where it ended.
    #[error("upload has {expected} bytes, so it goes on there and not at {got}")]
    UploadOffset {
        /// Bytes that are here.
        expected: u64,
        /// The offset given.
        got: u64,
    },
    /// Somebody else sends the same upload.
    #[error("upload {digest} is being sent by somebody else")]
    UploadBusy {
        /// Its digest.
        digest: Digest,
    },
    /// As many images as may be on their way out are.
    #[error("{limit} images are being given out already")]
    ExportsBusy {
        /// How many may be.
        limit: usize,
    },
    /// The sender broke off.
    #[error("upload broke off after {arrived} bytes, which are kept: {reason}")]
    UploadBroken {
        /// Bytes that are here.
        arrived: u64,
        /// What the connection said.
        reason: String,
    },
    /// An upload is larger than is taken.
    #[error("upload has {size} bytes, at most {limit} are taken")]
    UploadTooLarge {
        /// Its size, bytes.
        size: u64,
        /// The most, bytes.
        limit: u64,
    },
    /// There is no such image here.
    #[error("image {digest} is not on this machine")]
    NotHere {
        /// Its digest.
        digest: Digest,
    },
    /// The base to compose on is not here.
    #[error("base image {digest} is not on this machine")]
    NoBase {
        /// Its digest.
        digest: Digest,
    },
    /// The image store's disk failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// How it failed.
        source: io::Error,
    },
}

/// Why there is no room, and how much is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// What is needed fills the quota.
    #[error(
        "images that are needed take {} of the {} they may, which leaves no room for {} more",
        mebibytes(*.used), mebibytes(*.quota), mebibytes(*.wanted)
    )]
    Quota {
        /// Bytes wanted.
        wanted: u64,
        /// Bytes used by what cannot go.
        used: u64,
        /// Bytes that may be used.
        quota: u64,
    },
    /// The disk is nearly full, whoever filled it.
    #[error(
        "disk of the images has {} left, of which {} stay free for what runs: no room for {} more",
        mebibytes(*.free), mebibytes(*.reserve), mebibytes(*.wanted)
    )]
    Disk {
        /// Bytes wanted.
        wanted: u64,
        /// Bytes free.
        free: u64,
        /// Bytes that stay free.
        reserve: u64,
    },
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Why one layer was refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// An entry would do what no layer may do.
    #[error("entry {path:?} is refused: {reason}")]
    Refused {
        /// The entry's path, as in the archive.
        path: String,
        /// Why.
        reason: String,
    },
    /// The archive or its compression is damaged.
    #[error("archive is damaged: {0}")]
    Damaged(String),
    /// The archive is larger than the limits allow.
    #[error("archive is too large: {0}")]
    TooLarge(String),
    /// The archive's bytes are not those named.
    #[error("its digest is {got}, {expected} was expected")]
    Digest {
        /// The digest named.
        expected: Digest,
        /// The digest found.
        got: Digest,
    },
    /// The archive's length is not the one announced.
    #[error("it has {got} bytes, {expected} were announced")]
    Size {
        /// The size announced, bytes.
        expected: u64,
        /// The size found, bytes.
        got: u64,
    },
    /// The store may not grow.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<ImageError> for LayerError {
    /// For room that was asked for while a layer is unpacked.
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::NoRoom(why) => Self::NoRoom(why),
            ImageError::DiskFull => Self::Io(io::ErrorKind::StorageFull.into()),
            ImageError::Io { source, .. } => Self::Io(source),
            error => Self::Io(io::Error::other(error)),
        }
    }
}

impl LayerError {
    pub(super) fn refused(path: &[u8], reason: impl Into<String>) -> Self {
        // The path is hostile input: lossy, short, and quoted when shown.
        let shown = &path[..path.len().min(200)];
        Self::Refused { path: String::from_utf8_lossy(shown).into_owned(), reason: reason.into() }
    }
}

/// The disk is full, or the quota is.
pub(super) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl ImageError {
    /// A disk failure while doing `what`.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| {
            if is_disk_full(&source) {
                Self::DiskFull
            } else {
                Self::Io { what: what.into(), source }
            }
        }
    }

    pub(super) fn layer(layer: &Digest, source: LayerError) -> Self {
        match source {
            LayerError::Io(source) if is_disk_full(&source) => Self::DiskFull,
            LayerError::NoRoom(why) => Self::NoRoom(why),
            source => Self::Layer { layer: layer.clone(), source },
        }
    }

    pub(super) fn bad_manifest(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::BadManifest { what: what.into(), reason: reason.into() }
    }

    /// The code a person searches for.
    pub fn code(&self) -> Code {
        match self {
            Self::BadReference(_) => Code::BadReference,
            Self::NotFound { .. } | Self::NoBase { .. } => Code::ImageNotFound,
            Self::Denied { .. }
            | Self::ForeignRealm { .. }
            | Self::BadCredentials { .. }
            | Self::Helper { .. } => Code::RegistryDenied,
            Self::Book(error) => error.code,
            Self::AddressRefused { .. }
            | Self::BadRedirect { .. }
            | Self::Tls { .. }
            | Self::Unreachable { .. }
            | Self::RateLimited { .. }
            | Self::Registry { .. } => Code::RegistryUnavailable,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => Code::ImageCorrupt,
            Self::BadManifest { .. }
            | Self::NoPlatform { .. }
            | Self::BadUser { .. }
            | Self::ForeignLayer { .. } => Code::ImageRefused,
            Self::Layer { source, .. } => match source {
                LayerError::Refused { .. } | LayerError::TooLarge(_) => Code::ImageRefused,
                LayerError::Damaged(_) | LayerError::Digest { .. } | LayerError::Size { .. } => {
                    Code::ImageCorrupt
                }
                LayerError::NoRoom(_) => Code::DiskFull,
                LayerError::Io(_) => Code::Internal,
            },
            Self::NotAnImage { .. } => Code::NotAnImage,
            Self::DiskFull | Self::NoRoom(_) => Code::DiskFull,
            Self::UploadOffset { .. } | Self::UploadBusy { .. } | Self::ExportsBusy { .. } => {
                Code::Conflict
            }
            Self::NotHere { .. } => Code::NotFound,
            Self::UploadBroken { .. } => Code::BadRequest,
            Self::UploadTooLarge { .. } => Code::ImageRefused,
            Self::Io { .. } => Code::Internal,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::BadReference(_) => "Write HOST/REPOSITORY:TAG, such as registry.example/web:1.4.",
            Self::NotFound { .. } => {
                "Check the name and the tag. A private image may also look missing: give credentials."
            }
            Self::Denied { .. } => {
                "Give credentials with `stead registry login`, or check what those given may read."
            }
            Self::ForeignRealm { .. } => {
                "Credentials only go to the registry's own domain. If this registry is yours, \
                 serve its tokens under the same domain."
            }
            Self::AddressRefused { .. } | Self::BadRedirect { .. } => {
                "If this registry is yours, start stead with it among the trusted registries."
            }
            Self::Tls { .. } => {
                "Check the registry's certificate, or give stead the authority that signed it."
            }
            Self::Unreachable { .. } => "Check the host name, the network and the firewall.",
            Self::RateLimited { .. } => {
                "Wait, or give credentials: most registries then allow more."
            }
            Self::Registry { .. } => "Try again later; if it stays, ask who runs the registry.",
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => {
                "Pull again. If it stays, the registry or a proxy on the way damages the image: push it again."
            }
            Self::BadManifest { .. } => "Build the image with a current tool, as an OCI image.",
            Self::NoPlatform { .. } => "Build the image for this machine's platform.",
            Self::Layer { source, .. } => match source {
                LayerError::Refused { .. } => "Build the image without this entry.",
                LayerError::TooLarge(_) => "Make the image smaller, or raise stead's image limits.",
                LayerError::NoRoom(_) => "Make room on the disk, or run `stead image prune`.",
                LayerError::Io(_) => "See the platform's log.",
                _ => "Pull again. If it stays, build and push the image again.",
            },
            Self::NotAnImage { .. } => {
                "Give an OCI layout folder, an OCI archive, or what `docker save` writes."
            }
            Self::BadUser { .. } => "Use a numeric user, or one from the image's /etc/passwd.",
            Self::BadCredentials { .. } => {
                "Repair the file, or give credentials with `stead registry login`, which come before it."
            }
            Self::Helper { .. } => {
                "Install the program or mend it; or give credentials with `stead registry login`, \
                 which come before it."
            }
            Self::Book(_) => "See the platform's log.",
            Self::ForeignLayer { .. } => {
                "stead fetches from the registry alone. Build the image on a base whose layers \
                 may be pushed, and push all of them."
            }
            Self::DiskFull | Self::NoRoom(NoRoom::Disk { .. }) => {
                "Make room on the disk, or run `stead image prune`."
            }
            Self::NoRoom(NoRoom::Quota { .. }) => {
                "Raise the quota with `stead up --image-quota`, delete apps, or make images that \
                 share more layers."
            }
            Self::UploadOffset { .. } => "Ask how much is here, and go on from there.",
            Self::UploadBusy { .. } => "Wait until that ends; then nothing is left to send.",
            Self::ExportsBusy { .. } => "Wait until one of them is through.",
            Self::UploadBroken { .. } => "Send it again: it goes on where it broke off.",
            Self::UploadTooLarge { .. } => "Make the package smaller, or push it as an image.",
            Self::NotHere { .. } => "`stead image ls` lists those that are.",
            Self::NoBase { .. } => "Fetch or make it again with `stead image base`.",
            Self::Io { .. } => "Check the disk and the rights of stead's data folder.",
        }
    }
}

impl From<ImageError> for UserError {
    fn from(error: ImageError) -> Self {
        let mut message = error.to_string();
        match &error {
            ImageError::RateLimited { retry_after: Some(wait), .. } => {
                message.push_str(&format!("; it asks to wait {} s", wait.as_secs()));
            }
            // The only variant with a cause of its own, which a person must see.
            ImageError::Io { source, .. } => message.push_str(&format!(": {source}")),
            ImageError::Book(error) => return error.clone(),
            _ => {}
        }
        UserError::new(error.code(), message, error.hint())
    }
}
