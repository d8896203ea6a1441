//! Sites: whether an image holds one that a gateway can serve, and where it lies.
//!
//! Promises: what is found good has every file that its index names, of the size it says. Does
//! not serve anything, and does not read the files.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use stead_core::error::{Code, UserError};
use stead_core::manifest::Site;
use stead_core::routes::site::{INDEX_FILE, MAX_INDEX_BYTES, SiteFile, SiteIndex};

use crate::image::Image;

/// The folder with the files of the site that `image` holds. Blocks.
///
/// # Errors
/// Why it cannot be served by these rules.
pub(super) fn check(image: &Image, rules: &Site) -> Result<PathBuf, UserError> {
    let unfit = |why: String| {
        let message = format!("image {} holds no site that can be served: {why}", image.digest);
        let hint = "deploy the folder of the files itself, or leave `site` out of the manifest";
        UserError::new(Code::SiteUnfit, message, hint)
    };
    let [folder] = image.layers.as_slice() else {
        return Err(unfit(format!("it has {} layers, a site has one", image.layers.len())));
    };
    let index = read(folder).map_err(unfit)?;
    index.check_pages(rules).map_err(|fault| unfit(fault.to_string()))?;
    Ok(folder.clone())
}

fn read(folder: &Path) -> Result<SiteIndex, String> {
    let root = File::open(folder).map_err(|error| error.to_string())?;
    // A pipe does not block.
    let index = beneath(&root, INDEX_FILE, OFlags::RDONLY | OFlags::NONBLOCK)
        .map_err(|error| format!("its {INDEX_FILE} cannot be read: {error}"))?;
    let mut text = Vec::new();
    let index = index.take(MAX_INDEX_BYTES + 1).read_to_end(&mut text);
    index.map_err(|error| format!("its {INDEX_FILE} cannot be read: {error}"))?;
    let index = SiteIndex::parse(&text).map_err(|fault| fault.to_string())?;
    for entry in index.entries.values() {
        for file in std::iter::once(&entry.plain).chain(entry.variants.values()) {
            if !is_there(&root, file) {
                return Err(format!("file {:?} is not what its index says", file.file));
            }
        }
    }
    Ok(index)
}

fn is_there(root: &File, file: &SiteFile) -> bool {
    let is = beneath(root, &file.file, OFlags::PATH).and_then(|found| Ok(fstat(&found)?));
    is.is_ok_and(|is| {
        FileType::from_raw_mode(is.st_mode) == FileType::RegularFile
            && u64::try_from(is.st_size) == Ok(file.size)
    })
}

/// Opens what lies at `path` below `root`, through no link.
fn beneath(root: impl AsFd, path: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(File::from(openat2(root, path, flags, Mode::empty(), within)?))
}

#[cfg(test)]
mod tests {
    use stead_core::ids::Digest;

    use super::*;
    use crate::image::ImageConfig;

    /// An image with these layers.
    fn image(layers: Vec<PathBuf>) -> Image {
        let digest = Digest::from_sha256([1; 32]);
        Image { digest, config: ImageConfig::default(), layers, size: 0, flat: Default::default() }
    }

    /// The layer of a site with one page.
    fn layer() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("site")).unwrap();
        std::fs::write(dir.path().join("site/index.html"), "hello").unwrap();
        let index = serde_json::json!({ "version": 1, "entries": { "/index.html": {
            "file": "site/index.html", "size": 5, "sha256": Digest::from_sha256([2; 32]),
            "type": "text/html",
        }}});
        std::fs::write(dir.path().join(INDEX_FILE), index.to_string()).unwrap();
        dir
    }

    fn refused(image: &Image, rules: &str) -> String {
        let error = check(image, &serde_json::from_str(rules).unwrap()).unwrap_err();
        assert_eq!(error.code, Code::SiteUnfit);
        error.message
    }

    #[test]
    fn a_whole_site_is_found_and_what_lacks_something_is_refused() {
        let layer = layer();
        let site = image(vec![layer.path().to_owned()]);
        assert_eq!(check(&site, &Site::default()).unwrap(), layer.path());
        let why = refused(&site, r#"{"fallback": "app.html"}"#);
        assert!(why.contains("site.fallback names \"/app.html\""), "{why}");
        std::fs::write(layer.path().join("site/index.html"), "hell").unwrap();
        assert!(refused(&site, "{}").contains("\"site/index.html\" is not what"));
        std::fs::remove_file(layer.path().join(INDEX_FILE)).unwrap();
        assert!(refused(&site, "{}").contains("site.json cannot be read"));
        let two = image(vec![layer.path().to_owned(), layer.path().to_owned()]);
        assert!(refused(&two, "{}").contains("it has 2 layers"));
    }

    #[test]
    fn an_index_that_is_a_link_is_not_followed() {
        let (layer, elsewhere) = (layer(), layer());
        std::fs::remove_file(layer.path().join(INDEX_FILE)).unwrap();
        let target = elsewhere.path().join(INDEX_FILE);
        std::os::unix::fs::symlink(target, layer.path().join(INDEX_FILE)).unwrap();
        assert!(refused(&image(vec![layer.path().to_owned()]), "{}").contains("cannot be read"));
    }
}
