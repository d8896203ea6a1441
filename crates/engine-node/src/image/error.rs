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
    /// The image store's disk is full.
    #[error("image store has no room left")]
    DiskFull,
    /// The image store's disk failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// How it failed.
        source: io::Error,
    },
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
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
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
            Self::NotFound { .. } => Code::ImageNotFound,
            Self::Denied { .. } | Self::ForeignRealm { .. } | Self::BadCredentials { .. } => {
                Code::RegistryDenied
            }
            Self::AddressRefused { .. }
            | Self::BadRedirect { .. }
            | Self::Tls { .. }
            | Self::Unreachable { .. }
            | Self::RateLimited { .. }
            | Self::Registry { .. } => Code::RegistryUnavailable,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => Code::ImageCorrupt,
            Self::BadManifest { .. } | Self::NoPlatform { .. } | Self::BadUser { .. } => {
                Code::ImageRefused
            }
            Self::Layer { source, .. } => match source {
                LayerError::Refused { .. } | LayerError::TooLarge(_) => Code::ImageRefused,
                LayerError::Damaged(_) | LayerError::Digest { .. } | LayerError::Size { .. } => {
                    Code::ImageCorrupt
                }
                LayerError::Io(_) => Code::Internal,
            },
            Self::NotAnImage { .. } => Code::NotAnImage,
            Self::DiskFull => Code::DiskFull,
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
                "Give credentials for this registry (docker login writes the file stead reads), \
                 or check what they may read."
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
                LayerError::Io(_) => "See the platform's log.",
                _ => "Pull again. If it stays, build and push the image again.",
            },
            Self::NotAnImage { .. } => {
                "Give an OCI layout folder, an OCI archive, or what `docker save` writes."
            }
            Self::BadUser { .. } => "Use a numeric user, or one from the image's /etc/passwd.",
            Self::BadCredentials { .. } => "Repair the file, or write it again with docker login.",
            Self::DiskFull => "Make room on the disk, or run `stead image prune`.",
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
            _ => {}
        }
        UserError::new(error.code(), message, error.hint())
    }
}
