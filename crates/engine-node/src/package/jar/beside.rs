//! A plain jar with a main class, and the jars beside it that it names.
//!
//! Promises: only what lies in the jar's own folder or below goes along, whatever its manifest
//! says. Quarkus' layout (`quarkus-run.jar` with `lib`, `app` and `quarkus`) is one of these.

use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use stead_core::api::package::PackageKind;

use super::super::error::PackError;
use super::super::pack::{Pack, PackOptions};
use super::super::tar::{Content, Layer, Node, Tree};
use super::super::zip::{Archive, Limits, first_time};
use super::{APP, Manifest, base, classes, config, file_name, home, manifest_of, newest};

/// The jar that starts a Quarkus application.
pub(super) const QUARKUS: &str = "quarkus-run.jar";
/// What lies beside it: the application's classes, and an index of everything.
const OF_QUARKUS: [&str; 2] = ["app", "quarkus"];
/// The lowest Java of a jar that does not say.
const UNSAID: u32 = 17;
/// Folders within folders: no layout has more.
const DEEPEST: usize = 16;

pub(super) fn pack(
    archive: &Arc<Archive>,
    manifest: &Manifest,
    options: &PackOptions,
) -> Result<Pack, PackError> {
    let path = archive.path();
    let Some(main) = manifest.get("Main-Class") else {
        return Err(PackError::unfit(
            path,
            "its manifest has no Main-Class: it is a library, or was built without what it needs",
            "build the jar that starts: with Spring Boot's, Quarkus' or the shade plugin of \
             Maven, or `bootJar`, `shadowJar` or `installDist` of Gradle",
        ));
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut notes = Vec::new();
    let mut dependencies = Tree::new();
    let mut count = 0;
    let mut paths = vec![ClassPath::of(Path::new(""), manifest)];
    while let Some(ClassPath { from, written }) = paths.pop() {
        for written in written.split_ascii_whitespace() {
            match beside(folder, &from, written) {
                Some(place) if is_jar(&folder.join(&place))? => {
                    if add_once(&mut dependencies, folder, &place)? {
                        count += 1;
                        paths.push(ClassPath::of_library(folder, &place));
                    }
                }
                // A manifest shall not get at other files that lie in the same folder by chance.
                Some(place) if folder.join(&place).exists() => {
                    notes.push(format!("{written} of a Class-Path is no jar: left out"));
                }
                // The JVM passes over what is not there, too.
                Some(_) => {}
                None => notes.push(format!("{written} lies outside of the jar's folder: left out")),
            }
        }
    }
    let mut application = Tree::new();
    application.add(APP, home())?;
    let name = file_name(path);
    // A fast-jar finds the rest by its own place, and reads an index of it.
    let name = match name.as_str() {
        QUARKUS => QUARKUS,
        // The place may be that of a library.
        own if dependencies.has(&Path::new(APP).join("app.jar")) => own,
        _ => "app.jar",
    };
    if name == QUARKUS {
        add_folder(&mut dependencies, folder, Path::new("lib"), DEEPEST)?;
        for inner in OF_QUARKUS {
            add_folder(&mut application, folder, Path::new(inner), DEEPEST)?;
        }
    } else if count > 0 {
        notes.push(format!("{count} jars that its Class-Path names go along"));
    }
    let node = Node::file(Content::of_file(path)?).mtime(newest(archive));
    application.add(format!("{APP}/{name}"), node)?;
    let java = own_java(archive, main)?.or_else(|| {
        let spec = manifest.get("Build-Jdk-Spec")?;
        spec.trim_start_matches("1.").parse().ok()
    });
    Ok(Pack {
        kind: PackageKind::Jar,
        base: Some(base(path, java.unwrap_or(UNSAID), options)?),
        layers: Layer::filled([("dependencies", dependencies), ("application", application)]),
        config: config(name, options),
        notes,
    })
}

/// The Java that the application's own classes need: those beside its main class. Libraries
/// that were merged into the jar may have parts for a later Java that nothing loads.
fn own_java(archive: &Archive, main: &str) -> Result<Option<u32>, PackError> {
    let main = main.replace('.', "/");
    let package = main.rsplit_once('/').map_or("", |(package, _)| package);
    let own = |name: &str| {
        name.strip_prefix(package).is_some_and(|rest| package.is_empty() || rest.starts_with('/'))
    };
    classes::java(archive, own)
}

/// What a jar says of others, which may say so of further ones.
struct ClassPath {
    /// The jar's own folder, below that of the application.
    from: PathBuf,
    written: String,
}

impl ClassPath {
    fn of(from: &Path, manifest: &Manifest) -> Self {
        let written = manifest.get("Class-Path").unwrap_or_default().to_owned();
        Self { from: from.to_owned(), written }
    }

    fn of_library(folder: &Path, place: &Path) -> Self {
        // What is wrong with a library is for the JVM to say.
        let archive = Archive::open(&folder.join(place), &Limits::default()).ok();
        let manifest = archive.and_then(|archive| manifest_of(&archive).ok()).unwrap_or_default();
        Self::of(place.parent().unwrap_or(Path::new("")), &manifest)
    }
}

/// What the `Class-Path` of a jar in `from` names, as a path below `folder`.
fn beside(folder: &Path, from: &Path, written: &str) -> Option<PathBuf> {
    let text = decoded(written.strip_prefix("file:").unwrap_or(written))?;
    let path = Path::new(&text);
    let path = match path.strip_prefix(folder) {
        Ok(inner) if path.is_absolute() => inner.to_owned(),
        _ => from.join(path),
    };
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            Component::ParentDir if plain.pop() => {}
            _ => return None,
        }
    }
    // A link may lead anywhere.
    let real = fs::canonicalize(folder.join(&plain)).ok();
    let home = fs::canonicalize(if folder == Path::new("") { Path::new(".") } else { folder });
    let inside = real.is_none_or(|real| home.is_ok_and(|home| real.starts_with(home)));
    (inside && !plain.as_os_str().is_empty()).then_some(plain)
}

/// `%20` and the like as what they stand for (RFC 3986, 2.1).
fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

/// Adds a file of the jar's folder; whether it was not there yet.
fn add_once(tree: &mut Tree, folder: &Path, place: &Path) -> Result<bool, PackError> {
    let target = Path::new(APP).join(place);
    if tree.has(&target) {
        return Ok(false);
    }
    let source = folder.join(place);
    let node = Node::file(Content::of_file(&source)?).mtime(made(&source)?);
    tree.add(target, node)?;
    Ok(true)
}

/// Adds all files below a folder. Links are not followed.
fn add_folder(tree: &mut Tree, root: &Path, place: &Path, deep: usize) -> Result<(), PackError> {
    let source = root.join(place);
    let entries = match fs::read_dir(&source) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(PackError::io(&source)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(PackError::io(&source))?;
        let kind = entry.file_type().map_err(PackError::io(&source))?;
        let inner = place.join(entry.file_name());
        if kind.is_file() {
            add_once(tree, root, &inner)?;
        } else if kind.is_dir() && deep > 0 {
            add_folder(tree, root, &inner, deep - 1)?;
        } else {
            return Err(PackError::refused(&entry.path(), "it is a link, or lies too deep"));
        }
    }
    Ok(())
}

/// Whether something is a file that begins as archives do.
fn is_jar(path: &Path) -> Result<bool, PackError> {
    Ok(path.is_file() && head(path)?.starts_with(b"PK"))
}

/// When a jar was made, by its first entry; 0 for other files.
fn made(path: &Path) -> Result<u64, PackError> {
    Ok(first_time(&head(path)?))
}

fn head(path: &Path) -> Result<Vec<u8>, PackError> {
    let mut head = Vec::with_capacity(14);
    let read = fs::File::open(path).and_then(|file| file.take(14).read_to_end(&mut head));
    read.map_err(PackError::io(path))?;
    Ok(head)
}
