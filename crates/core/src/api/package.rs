//! Packages: what a person hands over, on its way to an image.
//!
//! Whoever packs cuts a Package into layers, the ones that rarely change first, and asks for
//! the image they make on a base. The answer is the image, or which layers are missing; those
//! are uploaded and the same request is made again. A layer that is known is never sent.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::engine::ImageInfo;
use crate::error::UserError;
use crate::ids::Digest;

/// What a Package is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PackageKind {
    /// A Java archive with a main class.
    Jar,
    /// A Java web archive.
    War,
    /// A program with its shared libraries.
    Program,
    /// Static files, served by the gateway.
    Site,
    /// A Python project.
    Python,
    /// A Node.js project.
    Node,
}

impl PackageKind {
    /// As written everywhere.
    pub fn word(self) -> &'static str {
        match self {
            Self::Jar => "jar",
            Self::War => "war",
            Self::Program => "program",
            Self::Site => "site",
            Self::Python => "python",
            Self::Node => "node",
        }
    }
}

impl fmt::Display for PackageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The label of a composed image that says what [`PackageKind`] it was made from.
pub const KIND_LABEL: &str = "io.stead.package.kind";

/// What runs an App's code, as the name of a base image.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeName {
    /// A Java virtual machine.
    Java,
    /// Apache Tomcat on a Java virtual machine, for a war.
    Tomcat,
    /// CPython.
    Python,
    /// Node.js.
    Node,
}

impl RuntimeName {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Java, Self::Tomcat, Self::Python, Self::Node];

    /// As written in manifests and commands.
    pub fn word(self) -> &'static str {
        match self {
            Self::Java => "java",
            Self::Tomcat => "tomcat",
            Self::Python => "python",
            Self::Node => "node",
        }
    }
}

/// A base image by name and version, written `java:17`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BaseName {
    /// What it runs.
    pub runtime: RuntimeName,
    /// Digits and dots, such as `17`, `3.11` or `10.1`: as many parts as matter.
    version: String,
}

impl BaseName {
    /// The base of this runtime and version; `None` where the version is not digits and dots.
    pub fn new(runtime: RuntimeName, version: &str) -> Option<Self> {
        let part = |part: &str| {
            (1..=9).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        let is_version = version.len() <= 40 && version.split('.').all(part);
        is_version.then(|| Self { runtime, version: version.to_owned() })
    }

    /// Digits and dots.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The parts of the version, at least one, as they are compared: 3.9 comes before 3.11.
    pub fn numbers(&self) -> Vec<u32> {
        let number = |part: &str| part.parse().expect("a part is nine digits at most");
        self.version.split('.').map(number).collect()
    }
}

impl fmt::Display for BaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.runtime.word(), self.version)
    }
}

impl PartialSchema for BaseName {
    fn schema() -> RefOr<Schema> {
        Object::builder()
            .schema_type(Type::String)
            .description(Some("A runtime and its version."))
            .examples(["java:17"])
            .into()
    }
}

impl ToSchema for BaseName {}

impl From<BaseName> for String {
    fn from(name: BaseName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for BaseName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for BaseName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            let names = RuntimeName::ALL.map(RuntimeName::word).join(", ");
            format!("expected NAME:VERSION, such as java:17; the names are {names}")
        };
        let (name, version) = text.split_once(':').ok_or_else(expected)?;
        let runtime = RuntimeName::ALL.into_iter().find(|runtime| runtime.word() == name);
        Self::new(runtime.ok_or_else(expected)?, version).ok_or_else(expected)
    }
}

/// Asks for the image that a Package's layers make on a base. The same request makes the same
/// image, with the same digest, for as long as the base is the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ComposeRequest {
    /// The reference the image shall be known by.
    pub name: String,
    /// What it was made from.
    pub kind: PackageKind,
    /// What lies below the layers; nothing, for what brings everything itself.
    #[serde(default)]
    pub base: Option<BaseName>,
    /// The Package's layers, the one that changes least first.
    pub layers: Vec<PackedLayer>,
    /// How the image is run.
    pub config: PackedConfig,
    /// Only say what would come of it: no base and no image is made, no name given. What is
    /// not here and lacks no layer is answered with none missing.
    #[serde(default)]
    pub dry_run: bool,
}

/// One layer of a Package: a tar archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PackedLayer {
    /// Digest of the archive, not compressed.
    pub diff_id: Digest,
    /// Bytes of the archive, not compressed.
    pub size: u64,
    /// What it holds, such as `dependencies`; for people.
    pub what: String,
    /// How it was uploaded. Left out while nothing was: a layer that is here already needs
    /// no upload.
    #[serde(default)]
    pub upload: Option<Upload>,
}

/// Something uploaded: the bytes as they were sent, a tar archive, plain or compressed with
/// gzip or zstd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    /// Digest of the bytes.
    pub digest: Digest,
    /// How many they are.
    pub size: u64,
}

/// How a composed image is run. What is empty is the base's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PackedConfig {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments.
    pub cmd: Vec<String>,
    /// Added to the base's.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub working_dir: String,
    /// `USER[:GROUP]`.
    pub user: String,
    /// The TCP port it listens on.
    pub port: Option<u16>,
    /// Added to the base's.
    pub labels: BTreeMap<String, String>,
}

/// What came of a [`ComposeRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Composed {
    /// The image is here.
    Image(ImageInfo),
    /// Diff ids of layers that have to be uploaded first; nothing was changed. None, where a
    /// dry run found all of them.
    Missing(Vec<Digest>),
}

/// How much of an upload is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadView {
    /// Bytes kept; the next one to send has this offset.
    pub offset: u64,
    /// All of them are here and have the digest that names them.
    pub complete: bool,
}

/// More of an upload: what follows has this place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadPart {
    /// Digest of the whole upload.
    pub digest: Digest,
    /// Bytes of the whole upload.
    pub size: u64,
    /// Bytes that were sent before.
    pub offset: u64,
}

/// A form in which an image leaves the platform, as one tar archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ArchiveFormat {
    /// An OCI image layout.
    #[default]
    Oci,
    /// What `docker save` writes.
    Docker,
}

/// Where a base image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BaseSource {
    /// A registry, or an image that is here.
    Reference(String),
    /// What is installed on the machine of the engine.
    Host {
        /// The folder it is installed in; the engine finds one if none is named.
        #[serde(default)]
        path: Option<String>,
    },
    /// For `tomcat`: its archive, from a Maven repository by the operator's own Maven, on top
    /// of a base of `java`.
    Maven {
        /// Which version exactly, such as `10.1.34`.
        version: String,
        /// The base below it.
        java: BaseName,
        /// The image that was composed of both: whoever asks has Maven, not the platform.
        image: Digest,
    },
}

/// A base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BaseView {
    /// Its name.
    pub base: BaseName,
    /// What was asked for; `None` for what the machine could offer but nobody has made yet.
    pub source: Option<BaseSource>,
    /// Its image, once it was made or fetched.
    pub image: Option<Digest>,
    /// The exact version that it holds, or that the machine has, such as `17.0.15`.
    pub exact: Option<String>,
    /// Bytes unpacked.
    pub size: u64,
    /// What a person should know, such as libraries that the machine lacks.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Why it cannot be used, if it cannot.
    pub error: Option<UserError>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_travel_as_their_word() {
        for kind in [PackageKind::Jar, PackageKind::Site, PackageKind::Node] {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
    }

    #[test]
    fn base_names_are_read_as_they_are_written() {
        for text in ["java:17", "python:3.11", "tomcat:10.1", "node:20"] {
            assert_eq!(text.parse::<BaseName>().unwrap().to_string(), text);
        }
        for text in ["java", "java:", "java:17-ea", "java:1..2", "perl:5", ":17", "java:../17"] {
            assert!(text.parse::<BaseName>().is_err(), "{text}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let numbers = |text: &str| text.parse::<BaseName>().unwrap().numbers();
        assert_eq!(numbers("java:17"), [17]);
        assert!(numbers("python:3.9") < numbers("python:3.11"));
        assert_eq!(numbers("tomcat:10.999999999"), [10, 999_999_999]);
        assert!("java:1000000000".parse::<BaseName>().is_err(), "it may be no u32");
    }
}
