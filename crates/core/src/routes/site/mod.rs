//! Sites: static files that a gateway serves by itself, from the unpacked layer of an image.
//!
//! A site's image has one layer. At its root stands the index, [`INDEX_FILE`], which whoever
//! packs a folder writes: it names every file with its size, digest, media type and
//! precompressed variants. Only what stands in the index is ever opened.
//!
//! Promises: [`SiteIndex::parse`] gives an index only if nothing in it leads out of the layer;
//! what a request asks for, in which coding, and whether all of it is sent, is decided here,
//! from arguments alone. Knows no sockets and no files.

mod answer;
mod coding;
mod find;
mod name;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use answer::{Answer, Asked, answer};
pub use coding::{Coding, UnknownCoding};
pub use find::{Found, normal_path};
pub use name::{is_hashed, media_type};

use crate::ids::{Digest, ReleaseNo};
use crate::manifest::Site;

/// The index, at the root of the layer.
pub const INDEX_FILE: &str = "site.json";
/// The folder for the files, at the root of the layer. Where exactly a file lies says its entry.
pub const FILES_FOLDER: &str = "site";
/// What [`SiteIndex::version`] says of an index that is written like this.
pub const VERSION: u32 = 1;
/// Largest index, in bytes.
pub const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Most entries of an index.
pub const MAX_ENTRIES: usize = 200_000;
/// Longest path of an entry or of its file, in bytes.
pub const MAX_PATH: usize = 2048;

/// Every file of a site.
///
/// ```json
/// {"version": 1, "entries": {
///   "/index.html": {"file": "site/index.html", "size": 431, "sha256": "sha256:…",
///     "type": "text/html; charset=utf-8",
///     "variants": {"br": {"file": "site/index.html.br", "size": 190, "sha256": "sha256:…"}}},
///   "/assets/app.1f3a9b2c.js": {"…": "…", "immutable": true}}}
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteIndex {
    /// [`VERSION`].
    pub version: u32,
    /// By path: as a request asks for it, decoded, from the root of the site. A folder is
    /// served by its `index.html`.
    pub entries: BTreeMap<String, SiteEntry>,
}

/// What is served for one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteEntry {
    /// The file as it is.
    #[serde(flatten)]
    pub plain: SiteFile,
    /// Its media type; [`media_type`] knows those of common names.
    #[serde(rename = "type")]
    pub content_type: String,
    /// The same, compressed beforehand. A variant that is not clearly smaller is best left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variants: BTreeMap<Coding, SiteFile>,
    /// Its name changes with its content, so that it may be kept for ever; see [`is_hashed`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub immutable: bool,
}

/// One file of the layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteFile {
    /// Where it lies, from the root of the layer and without a leading slash.
    pub file: String,
    /// Its size in bytes.
    pub size: u64,
    /// Digest of its bytes.
    pub sha256: Digest,
}

impl SiteFile {
    /// The strong entity tag of these bytes, with its quotes: half of their digest, which is
    /// enough to tell them from all others.
    pub fn etag(&self) -> String {
        format!("\"{}\"", &self.sha256.hex()[..32])
    }
}

impl SiteEntry {
    /// What to send of it: a variant in one of the codings that `accepted` (the request's
    /// `Accept-Encoding`) allows, or the file as it is.
    pub fn choose(&self, accepted: Option<&str>) -> (Option<Coding>, &SiteFile) {
        let held = |coding: Coding| self.variants.get(&coding).map(|variant| variant.size);
        match accepted.and_then(|accepted| coding::choose(accepted, held)) {
            Some(coding) => (Some(coding), &self.variants[&coding]),
            None => (None, &self.plain),
        }
    }

    /// Whether it is a page, which leads to the other files.
    pub fn is_page(&self) -> bool {
        let kind = self.content_type.split(';').next().unwrap_or_default().trim();
        ["text/html", "application/xhtml+xml"].iter().any(|page| kind.eq_ignore_ascii_case(page))
    }

    fn files(&self) -> impl Iterator<Item = &SiteFile> {
        std::iter::once(&self.plain).chain(self.variants.values())
    }
}

/// Why an index cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiteFault {
    /// It is longer than [`MAX_INDEX_BYTES`].
    #[error("the index of the site is larger than {MAX_INDEX_BYTES} bytes")]
    TooLarge,
    /// It has more entries than [`MAX_ENTRIES`].
    #[error("the site has {0} files, more than {MAX_ENTRIES}")]
    TooMany(usize),
    /// It is not JSON of this form.
    #[error("the index of the site is damaged: {0}")]
    Syntax(String),
    /// Another version of stead wrote it.
    #[error("the index of the site has version {0}; this stead reads version {VERSION}")]
    Version(u32),
    /// An entry is not as it must be.
    #[error("entry {path:?} of the site's index {what}")]
    Entry {
        /// Its path.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The manifest names a page that the site does not have.
    #[error("site.{key} names {path:?}, which is not a file of the site")]
    NoSuchPage {
        /// The key of the manifest.
        key: &'static str,
        /// What it names.
        path: String,
    },
}

impl SiteIndex {
    /// The index in `text`.
    ///
    /// # Errors
    /// When it is not one, or when an entry could lead out of the layer.
    pub fn parse(text: &[u8]) -> Result<Self, SiteFault> {
        if text.len() as u64 > MAX_INDEX_BYTES {
            return Err(SiteFault::TooLarge);
        }
        // First the version alone: another one may have another form.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let syntax = |error: serde_json::Error| SiteFault::Syntax(error.to_string());
        let Version { version } = serde_json::from_slice(text).map_err(syntax)?;
        if version != VERSION {
            return Err(SiteFault::Version(version));
        }
        let index: Self = serde_json::from_slice(text).map_err(syntax)?;
        index.check()?;
        Ok(index)
    }

    /// Whether it is as an index must be. Whoever writes one does well to ask.
    ///
    /// # Errors
    /// What is wrong with the first entry that is not.
    pub fn check(&self) -> Result<(), SiteFault> {
        if self.entries.len() > MAX_ENTRIES {
            return Err(SiteFault::TooMany(self.entries.len()));
        }
        let mut files = BTreeMap::new();
        for (path, entry) in &self.entries {
            let fault = |what| Err(SiteFault::Entry { path: path.clone(), what });
            if !path.strip_prefix('/').is_some_and(is_inside) {
                return fault("is not a path from the root of the site");
            }
            if !entry.files().all(|file| is_inside(&file.file)) {
                return fault("names a file outside the site");
            }
            // A gateway that has read it for one entry believes so for all.
            if entry.files().any(|file| {
                files.insert(&file.file, file).is_some_and(|other: &SiteFile| other != file)
            }) {
                return fault("describes a file otherwise than another entry");
            }
            let printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
            if entry.content_type.is_empty() || !entry.content_type.bytes().all(printable) {
                return fault("has a media type that cannot be sent");
            }
        }
        Ok(())
    }

    /// Whether the pages are there that the manifest names.
    ///
    /// # Errors
    /// Which is not.
    pub fn check_pages(&self, rules: &Site) -> Result<(), SiteFault> {
        for (key, named) in [("fallback", &rules.fallback), ("not_found", &rules.not_found)] {
            if let Some(path) =
                named.as_ref().filter(|path| !self.entries.contains_key(path.as_str()))
            {
                return Err(SiteFault::NoSuchPage { key, path: path.to_string() });
            }
        }
        Ok(())
    }
}

/// Whether a relative path names something below where it starts, in one way only.
fn is_inside(path: &str) -> bool {
    path.len() <= MAX_PATH
        && !path.contains(char::is_control)
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// A site as a gateway knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRoute {
    /// What is served.
    #[serde(flatten)]
    pub now: SiteRelease,
    /// How.
    #[serde(default)]
    pub rules: Site,
    /// What was served before. A page that a client loaded then still finds the files there
    /// whose names change with their content.
    #[serde(default)]
    pub before: Option<SiteRelease>,
}

/// One Release of a site, on the disk of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRelease {
    /// The Release.
    pub release: ReleaseNo,
    /// The folder of its unpacked layer.
    pub folder: String,
    /// When the Release was made, in seconds since the Unix epoch: the files are no younger as
    /// far as clients know.
    pub made: u64,
}

#[cfg(test)]
mod tests;
