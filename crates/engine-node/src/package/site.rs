//! Static files, as a gateway serves them.
//!
//! Promises: one layer with the index that `stead_core::routes::site` describes; texts are
//! there compressed too, where that saves something; hidden files are left out, except
//! `.well-known`. Does not build anything: the folder is what a build has made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use stead_core::api::package::{PackageKind, PackedConfig};
use stead_core::ids::Digest;
use stead_core::routes::site::{
    Coding, FILES_FOLDER, INDEX_FILE, SiteEntry, SiteFile, SiteIndex, VERSION, is_hashed,
    media_type,
};

use super::error::PackError;
use super::ignore::{self, Found, Kind};
use super::kept::Kept;
use super::pack::{Pack, PackOptions};
use super::tar::{Content, Layer, Node, Tree};
use crate::hash;

/// The page that makes a folder a site.
const PAGE: &str = "index.html";
/// Where compressed variants lie, apart from the files, which may have any name.
const VARIANTS_FOLDER: &str = "variants";
/// Sizes worth compressing, bytes. Below, headers are most of what is sent; above, it takes
/// minutes.
const WORTH: std::ops::RangeInclusive<u64> = 256..=64 << 20;
/// Above this many bytes brotli's best quality takes too long.
const BEST_BROTLI: u64 = 4 << 20;

/// Whether the folder at `path` is a site.
pub(super) fn is_folder(path: &Path) -> bool {
    path.join(PAGE).is_file()
}

/// Cuts the site at `root` into its layer.
///
/// # Errors
/// When a file cannot be read, or has a name that no URL can have.
pub(super) fn pack(root: &Path, options: &PackOptions) -> Result<Pack, PackError> {
    let found: Vec<Found> =
        ignore::walk(root)?.into_iter().filter(|found| !is_hidden(&found.path)).collect();
    let kept = Kept::open(&options.cache, "site")?;
    (options.progress)("compressing files");
    let mut site = Site { root, tree: Tree::new(), entries: BTreeMap::new() };
    for (path, file) in prepare(root, &found, &kept)? {
        site.file(path, file)?;
    }
    let plain = site.entries.clone();
    for found in &found {
        if let Kind::Link { to } = &found.kind {
            site.link(&plain, &found.path, to)?;
        }
    }
    let count = site.entries.len();
    let index = SiteIndex { version: VERSION, entries: site.entries };
    let hint = "rename it, or name it in .steadignore";
    index.check().map_err(|fault| PackError::unfit(root, fault.to_string(), hint))?;
    let text = serde_json::to_vec(&index).expect("an index has text for keys and no cycles");
    site.tree.add(INDEX_FILE, Node::file(Content::Bytes(text)))?;
    Ok(Pack {
        kind: PackageKind::Site,
        base: None,
        layers: vec![Layer::new("files", site.tree)],
        config: PackedConfig::default(),
        notes: vec![format!("{count} files, served by the gateway itself")],
    })
}

fn is_hidden(path: &Path) -> bool {
    let below = path.strip_prefix(".well-known").unwrap_or(path);
    below.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"."))
}

/// A file and what was made of it.
struct Prepared {
    content: Content,
    digest: Digest,
    variants: BTreeMap<Coding, (Content, Digest)>,
}

/// Hashes and compresses the files, on all processors.
fn prepare(
    root: &Path,
    found: &[Found],
    kept: &Kept,
) -> Result<Vec<(String, Prepared)>, PackError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(found) = found.get(next.fetch_add(1, Ordering::Relaxed)) {
            if matches!(found.kind, Kind::File { .. }) {
                let path = as_text(root, &found.path)?;
                let prepared = Prepared::of(&root.join(&found.path), &path, kept)?;
                done.push((path, prepared));
            }
        }
        Ok(done)
    };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(found.len().max(1));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(done) => all.extend(done?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}

fn as_text(root: &Path, path: &Path) -> Result<String, PackError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| PackError::unfit(&root.join(path), "its name is not UTF-8", "rename it"))
}

impl Prepared {
    fn of(file: &Path, path: &str, kept: &Kept) -> Result<Self, PackError> {
        let content = Content::of_file(file)?;
        let digest = digest_of(file)?;
        let mut variants = BTreeMap::new();
        if is_text(media_type(path)) && WORTH.contains(&content.size()) {
            for coding in Coding::ALL {
                let key = format!("{}.{}", digest.hex(), coding.token());
                let smaller = kept.get(&key, |out| compress(file, coding, content.size(), out))?;
                let variant = Content::of_file(&smaller)?;
                // What saves less than a tenth is not worth the space.
                if variant.size() <= content.size() / 10 * 9 {
                    variants.insert(coding, (variant, digest_of(&smaller)?));
                }
            }
        }
        Ok(Self { content, digest, variants })
    }
}

/// Whether compressing helps files of this type: those of pictures and the like are compressed.
fn is_text(media_type: &str) -> bool {
    const TEXTS: [&str; 6] = [
        "application/wasm",
        "application/yaml",
        "font/ttf",
        "font/otf",
        "image/bmp",
        "image/x-icon",
    ];
    let kind = media_type.split(';').next().unwrap_or_default();
    kind.starts_with("text/")
        || kind.ends_with("json")
        || kind.ends_with("xml")
        || TEXTS.contains(&kind)
}

fn digest_of(path: &Path) -> Result<Digest, PackError> {
    File::open(path).and_then(hash::digest_from).map_err(PackError::io(path))
}

/// Writes the file compressed to `out`, as small as the coding gets it in reasonable time.
fn compress(path: &Path, coding: Coding, size: u64, out: &Path) -> Result<(), PackError> {
    let mut from = BufReader::new(File::open(path).map_err(PackError::io(path))?);
    let mut to = File::create_new(out).map_err(PackError::io(out))?;
    let written = match coding {
        Coding::Brotli => {
            let quality = if size <= BEST_BROTLI { 11 } else { 9 };
            let settings = brotli::enc::BrotliEncoderParams { quality, ..Default::default() };
            brotli::BrotliCompress(&mut from, &mut to, &settings).map(drop)
        }
        Coding::Zstd => zstd::stream::copy_encode(&mut from, &mut to, 19),
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(&mut to, Compression::best());
            io::copy(&mut from, &mut encoder).and_then(|_| encoder.finish()).map(drop)
        }
    };
    written.and_then(|()| to.flush()).map_err(PackError::io(out))
}

struct Site<'a> {
    root: &'a Path,
    tree: Tree,
    entries: BTreeMap<String, SiteEntry>,
}

impl Site<'_> {
    /// Adds a file at `path`, from the site's root.
    fn file(&mut self, path: String, file: Prepared) -> Result<(), PackError> {
        let plain = self.put(format!("{FILES_FOLDER}/{path}"), file.content, file.digest)?;
        let mut variants = BTreeMap::new();
        for (coding, (content, digest)) in file.variants {
            let at = format!("{VARIANTS_FOLDER}/{path}.{}", coding.token());
            variants.insert(coding, self.put(at, content, digest)?);
        }
        let content_type = media_type(&path).to_owned();
        let entry = SiteEntry { plain, content_type, variants, immutable: is_hashed(&path) };
        self.entries.insert(format!("/{path}"), entry);
        Ok(())
    }

    fn put(&mut self, at: String, content: Content, sha256: Digest) -> Result<SiteFile, PackError> {
        let size = content.size();
        self.tree.add(&at, Node::file(content))?;
        Ok(SiteFile { file: at, size, sha256 })
    }

    /// Makes what lies at `to` known at `from` too: a file, or all files of a folder.
    fn link(
        &mut self,
        plain: &BTreeMap<String, SiteEntry>,
        from: &Path,
        to: &Path,
    ) -> Result<(), PackError> {
        let (from, to) = (as_text(self.root, from)?, as_text(self.root, to)?);
        if let Some(entry) = plain.get(&format!("/{to}")) {
            // By its new name it may be of another type.
            let content_type = media_type(&from).to_owned();
            let immutable = is_hashed(&from);
            let entry = SiteEntry { content_type, immutable, ..entry.clone() };
            self.entries.insert(format!("/{from}"), entry);
            return Ok(());
        }
        let folder = if to.is_empty() { "/".to_owned() } else { format!("/{to}/") };
        let below = plain.iter().filter_map(|(path, entry)| {
            Some((format!("/{from}/{}", path.strip_prefix(&folder)?), entry.clone()))
        });
        let before = self.entries.len();
        self.entries.extend(below);
        if self.entries.len() == before {
            let path = self.root.join(from);
            let hint = "remove the link, or copy what it leads to";
            return Err(PackError::unfit(&path, "the link leads to what is left out", hint));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn options(dir: &Path) -> PackOptions {
        PackOptions { cache: dir.join("cache"), ..PackOptions::of_test(&[]) }
    }

    /// A site with these files; those with `.js` hold text that shrinks well.
    fn site(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join("site").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text =
                if file.ends_with(".js") { "let x = 1;\n".repeat(1000) } else { (*file).into() };
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn packed(dir: &Path) -> (SiteIndex, BTreeMap<String, Vec<u8>>, String) {
        let pack = pack(&dir.join("site"), &options(dir)).unwrap();
        assert_eq!((pack.kind, pack.base, pack.layers.len()), (PackageKind::Site, None, 1));
        let mut bytes = Vec::new();
        pack.layers[0].write(&mut bytes).unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(path, content);
        }
        let index = SiteIndex::parse(&files[INDEX_FILE]).unwrap();
        (index, files, pack.layers[0].packed().unwrap().diff_id.to_string())
    }

    fn inflate(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        match coding {
            Coding::Brotli => brotli::BrotliDecompress(&mut &bytes[..], &mut plain).unwrap(),
            Coding::Zstd => zstd::stream::copy_decode(bytes, &mut plain).unwrap(),
            Coding::Gzip => {
                flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).map(drop).unwrap();
            }
        }
        plain
    }

    #[test]
    fn the_index_names_every_file_as_it_lies_in_the_layer() {
        let dir = site(&[PAGE, "docs/a b.txt", "assets/app.3f2a9c1b.js", "x.png", "app.js"]);
        let (index, files, _) = packed(dir.path());
        let paths: Vec<&str> = index.entries.keys().map(String::as_str).collect();
        let expected =
            ["/app.js", "/assets/app.3f2a9c1b.js", "/docs/a b.txt", "/index.html", "/x.png"];
        assert_eq!(paths, expected);
        for entry in index.entries.values() {
            let plain = &files[&entry.plain.file];
            for (coding, file) in &entry.variants {
                assert_eq!(&inflate(*coding, &files[&file.file]), plain);
            }
            for file in std::iter::once(&entry.plain).chain(entry.variants.values()) {
                assert_eq!(file.size, files[&file.file].len() as u64);
                assert_eq!(file.sha256, hash::digest_of(&files[&file.file]));
            }
        }
        let script = &index.entries["/assets/app.3f2a9c1b.js"];
        assert_eq!(script.variants.len(), 3);
        assert!(script.immutable && !index.entries["/app.js"].immutable);
        let page = &index.entries["/index.html"];
        assert_eq!(page.content_type, "text/html; charset=utf-8");
        assert!(page.variants.is_empty(), "it is too small");
    }

    #[test]
    fn the_same_site_is_the_same_layer_and_compressed_once() {
        let dir = site(&[PAGE, "app.js"]);
        let (_, _, first) = packed(dir.path());
        let cache = dir.path().join("cache/site");
        let count = fs::read_dir(&cache).unwrap().count();
        assert_eq!(count, 3);
        // What is found in the cache is used, not made again.
        let (_, _, again) = packed(dir.path());
        fs::remove_dir_all(&cache).unwrap();
        let (_, _, anew) = packed(dir.path());
        assert_eq!([&first, &first], [&again, &anew]);
        fs::write(dir.path().join("site/app.js"), "other").unwrap();
        assert_ne!(packed(dir.path()).2, first);
    }

    #[test]
    fn hidden_files_are_left_out_and_links_are_followed_inside() {
        let dir = site(&[PAGE, ".htpasswd", ".well-known/x.txt", "v2/a.html", "v2/.hidden"]);
        let root = dir.path().join("site");
        symlink("v2", root.join("latest")).unwrap();
        symlink("v2/a.html", root.join("a.txt")).unwrap();
        let (index, ..) = packed(dir.path());
        let paths: Vec<&str> = index.entries.keys().map(String::as_str).collect();
        let expected =
            ["/.well-known/x.txt", "/a.txt", "/index.html", "/latest/a.html", "/v2/a.html"];
        assert_eq!(paths, expected);
        assert_eq!(index.entries["/a.txt"].content_type, "text/plain; charset=utf-8");
        assert_eq!(index.entries["/a.txt"].plain, index.entries["/v2/a.html"].plain);

        symlink(".htpasswd", root.join("secret.txt")).unwrap();
        let error = pack(&root, &options(dir.path())).unwrap_err();
        assert!(error.to_string().contains("left out"), "{error}");
    }

    #[test]
    fn a_manifest_may_say_that_a_project_is_a_site() {
        let dir = site(&[PAGE, "package.json"]);
        fs::write(dir.path().join("site/package.json"), "{}").unwrap();
        let root = dir.path().join("site");
        let error = crate::package::pack(&root, &options(dir.path())).unwrap_err();
        assert!(error.hint().contains("`site: {}`"), "{}", error.hint());
        let options = PackOptions { site: true, ..options(dir.path()) };
        assert_eq!(crate::package::pack(&root, &options).unwrap().kind, PackageKind::Site);
    }

    #[test]
    fn names_that_no_url_has_are_refused() {
        let dir = site(&[PAGE, "line\nbreak"]);
        assert!(pack(&dir.path().join("site"), &options(dir.path())).is_err());
    }
}
