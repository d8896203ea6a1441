//! Manifests, indexes and configs, in OCI's and Docker's forms.
//!
//! Promises: what comes out has been checked: digests are SHA-256, layers and diff ids pair
//! up, the platform is this machine's. Addresses inside of manifests (`urls`) are never read:
//! layers come from the registry alone. Does not know where documents come from.
//!
//! Formats: OCI image specification 1.1 (image-index, manifest, config); Docker's "Image
//! Manifest Version 2, Schema 2".

use serde::{Deserialize, Serialize};
use stead_core::ids::Digest;

use super::config::ImageConfig;
use super::error::ImageError;

/// Largest manifest or index, bytes; what registries accept.
pub(super) const MAX_MANIFEST: u64 = 4 << 20;
/// Largest config, bytes.
pub(super) const MAX_CONFIG: u64 = 8 << 20;
/// Most layers of an image; overlayfs stacks 500.
pub(super) const MAX_LAYERS: usize = 500;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// `Accept` of a request for a manifest.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// What programs an image's files are for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, in Go's words: `linux`.
    pub os: String,
    /// Processor, in Go's words: `amd64`, `arm64`.
    pub architecture: String,
    /// Variant of the processor, such as `v7` of `arm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.map(str::to_owned),
        }
    }

    fn runs(&self, other: &Platform) -> bool {
        self.os == other.os && self.architecture == other.architecture
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// Names a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
    /// It is said to be kept elsewhere as well. Where is never looked at.
    #[serde(default, rename = "urls", skip_serializing)]
    pub(super) elsewhere: Elsewhere,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub(super) annotations: std::collections::BTreeMap<String, String>,
}

/// Whether a descriptor names addresses of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Elsewhere(pub(super) bool);

impl<'de> Deserialize<'de> for Elsewhere {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let urls = Option::<Vec<serde::de::IgnoredAny>>::deserialize(from)?;
        Ok(Self(urls.is_some_and(|urls| !urls.is_empty())))
    }
}

/// A manifest or an index: the same digest may name either.
#[derive(Debug)]
pub(super) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// An image's manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

impl Document {
    /// Parses a document; `what` names it in errors.
    pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Self, ImageError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            schema_version: Option<u32>,
            #[serde(default)]
            media_type: String,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        #[derive(Deserialize)]
        struct Index {
            manifests: Vec<Descriptor>,
        }
        let bad = |reason: String| ImageError::bad_manifest(what, reason);
        let json = |e: serde_json::Error| bad(format!("its JSON is not a manifest's: {e}"));
        let shape: Shape = serde_json::from_slice(bytes).map_err(json)?;
        match (shape.schema_version, shape.media_type.as_str(), shape.manifests, shape.layers) {
            (Some(1), ..) => Err(bad("Docker's old schema 1 is not supported".into())),
            // A document that is both would be read one way here and another way elsewhere.
            (_, _, Some(_), Some(_)) => Err(bad("it is a manifest and an index at once".into())),
            (_, "" | OCI_INDEX | DOCKER_INDEX, Some(_), None) => {
                Ok(Self::Index(serde_json::from_slice::<Index>(bytes).map_err(json)?.manifests))
            }
            (_, "" | OCI_MANIFEST | DOCKER_MANIFEST, None, Some(_)) => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
                manifest.check(what)?;
                Ok(Self::Manifest(manifest))
            }
            (_, media, ..) => {
                Err(bad(format!("it is neither a manifest nor an index ({media:?})")))
            }
        }
    }
}

impl Manifest {
    /// The manifest of an image that came without one, as from `docker save`. The same parts
    /// make the same bytes.
    pub(super) fn of_parts(config: (Digest, u64), layers: Vec<(Digest, u64)>) -> Self {
        let descriptor = |media_type: &str, (digest, size)| Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
            elsewhere: Elsewhere(false),
            annotations: Default::default(),
        };
        Self {
            schema_version: 2,
            media_type: OCI_MANIFEST.into(),
            config: descriptor(OCI_CONFIG, config),
            layers: layers.into_iter().map(|layer| descriptor(OCI_LAYER, layer)).collect(),
        }
    }

    fn check(&self, what: &str) -> Result<(), ImageError> {
        let bad = |reason: String| Err(ImageError::bad_manifest(what, reason));
        match self.config.media_type.as_str() {
            OCI_CONFIG | DOCKER_CONFIG => {}
            other => return bad(format!("it holds {other:?}, not a container image")),
        }
        if self.config.size > MAX_CONFIG {
            return bad(format!("its config has more than {MAX_CONFIG} bytes"));
        }
        if self.layers.is_empty() {
            return bad("it has no layers, so there is nothing to run".into());
        }
        if self.layers.len() > MAX_LAYERS {
            return bad(format!("it has more than {MAX_LAYERS} layers"));
        }
        for layer in &self.layers {
            let kind = layer.media_type.as_str();
            let base = kind.split_once('+').map_or(kind, |(base, _)| base);
            let known = matches!(
                base.trim_end_matches(".gzip"),
                OCI_LAYER
                    | "application/vnd.oci.image.layer.nondistributable.v1.tar"
                    | "application/vnd.docker.image.rootfs.diff.tar"
                    | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            ) && matches!(kind.split_once('+'), None | Some((_, "gzip" | "zstd")));
            if !known {
                return bad(format!("layers of type {kind:?} are not supported"));
            }
        }
        Ok(())
    }
}

/// The manifest in `index` for `wanted`: the same variant if there is one, else the first
/// that has none or another.
pub(super) fn choose<'a>(
    index: &'a [Descriptor],
    wanted: &Platform,
) -> Result<&'a Descriptor, ImageError> {
    let fitting: Vec<_> = index
        .iter()
        .filter(|d| d.platform.as_ref().is_some_and(|platform| wanted.runs(platform)))
        .collect();
    let exact = fitting.iter().find(|d| d.platform.as_ref() == Some(wanted));
    let plain = fitting.iter().find(|d| d.platform.as_ref().is_some_and(|p| p.variant.is_none()));
    if let Some(found) = exact.or(plain).or(fitting.first()) {
        return Ok(found);
    }
    // An index of one that does not say: its config will.
    if let [only] = index
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let offered: Vec<_> = index
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .map(Platform::to_string)
        .collect();
    Err(ImageError::NoPlatform {
        wanted: wanted.to_string(),
        offered: if offered.is_empty() { "none that it names".into() } else { offered.join(", ") },
    })
}

/// Reads a config: how to run the image, and the diff ids of its layers, base first.
pub(super) fn read_config(
    what: &str,
    bytes: &[u8],
    wanted: &Platform,
    layers: usize,
) -> Result<(ImageConfig, Vec<Digest>), ImageError> {
    #[derive(Deserialize)]
    struct Whole {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
        #[serde(default)]
        variant: Option<String>,
        #[serde(default)]
        created: Option<String>,
        #[serde(default)]
        config: Option<super::config::Stored>,
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        #[serde(default)]
        diff_ids: Vec<Digest>,
    }
    let bad = |reason: String| ImageError::bad_manifest(what, reason);
    let whole: Whole = serde_json::from_slice(bytes)
        .map_err(|e| bad(format!("its JSON is not an image config's: {e}")))?;
    if whole.rootfs.diff_ids.len() != layers {
        return Err(bad(format!(
            "it has {} diff ids for {layers} layers",
            whole.rootfs.diff_ids.len()
        )));
    }
    let said = !whole.os.is_empty() && !whole.architecture.is_empty();
    let built = Platform { os: whole.os, architecture: whole.architecture, variant: whole.variant };
    if said && !wanted.runs(&built) {
        return Err(ImageError::NoPlatform {
            wanted: wanted.to_string(),
            offered: built.to_string(),
        });
    }
    let config = whole.config.unwrap_or_default().into_config(whole.created);
    Ok((config, whole.rootfs.diff_ids))
}
