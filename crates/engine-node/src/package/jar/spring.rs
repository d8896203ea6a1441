//! Spring Boot's executable jars and wars: an application with the jars it needs inside.
//!
//! They are taken apart as Spring's own `java -Djarmode=tools -jar app.jar extract` does: the
//! inner jars into a folder, the application's classes into a thin jar whose manifest names
//! them, in the order of `classpath.idx`. Spring's loader is left behind. Layers are those of
//! `layers.idx`, where there is one.
//!
//! Format: "The Executable Jar Format", an appendix of Spring Boot's reference.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use stead_core::api::package::PackageKind;

use super::super::error::PackError;
use super::super::pack::{Pack, PackOptions};
use super::super::tar::{Content, Layer, Node, Tree};
use super::super::zip::{Archive, Entry, Jar, Member};
use super::{
    APP, LARGEST_TEXT, MANIFEST, Manifest, base, classes, config, home, inner_time, newest,
};

/// Spring Boot from this version on needs Java 17, whatever the application needs.
const NEEDS_17: u32 = 3;
/// The lowest Java of Spring Boot before.
const NEEDS_8: u32 = 8;
const LOADER: &str = "org/springframework/boot/loader/";
/// Refers to the loader, as the provider of a file system.
const LOADER_SERVICE: &str = "META-INF/services/java.nio.file.spi.FileSystemProvider";
/// Attributes that are about the archive as it was.
const OF_ARCHIVE: [&str; 7] = [
    "Main-Class",
    "Start-Class",
    "Class-Path",
    "Spring-Boot-Classes",
    "Spring-Boot-Lib",
    "Spring-Boot-Classpath-Index",
    "Spring-Boot-Layers-Index",
];
/// The name of the thin jar.
const THIN: &str = "app.jar";

/// Where things are in a Spring Boot archive.
pub(in crate::package) struct Boot {
    /// The application's classes and resources.
    pub(in crate::package) classes: &'static str,
    /// The jars it needs.
    pub(in crate::package) libraries: &'static [&'static str],
    folder: &'static str,
    start_class: String,
}

impl Boot {
    /// How the archive is laid out; `None` if it is not Spring Boot's, or has a launcher that
    /// finds its classes at run time.
    pub(in crate::package) fn find(archive: &Archive, manifest: &Manifest) -> Option<Self> {
        let main = manifest.get("Main-Class")?.strip_prefix("org.springframework.boot.loader.")?;
        let start_class = manifest.get("Start-Class")?.to_owned();
        let holds = |name: &str| archive.entries().iter().any(|e| e.name.starts_with(name));
        let boot = match main.rsplit('.').next()? {
            "JarLauncher" => Self {
                classes: "BOOT-INF/classes/",
                libraries: &["BOOT-INF/lib/"],
                folder: "BOOT-INF/",
                start_class,
            },
            "WarLauncher" => Self {
                classes: "WEB-INF/classes/",
                libraries: &["WEB-INF/lib/", "WEB-INF/lib-provided/"],
                folder: "WEB-INF/",
                start_class,
            },
            _ => return None,
        };
        holds(boot.classes).then_some(boot)
    }

    /// The Java that the application and Spring itself need.
    pub(in crate::package) fn java(
        &self,
        archive: &Archive,
        manifest: &Manifest,
    ) -> Result<u32, PackError> {
        let own = classes::java(archive, |name| name.starts_with(self.classes))?;
        let version = manifest.get("Spring-Boot-Version").unwrap_or_default();
        let major = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0u32);
        let spring = if major >= NEEDS_17 { 17 } else { NEEDS_8 };
        Ok(own.unwrap_or(NEEDS_8).max(spring))
    }

    /// Takes the archive apart.
    pub(in crate::package) fn pack(
        &self,
        kind: PackageKind,
        archive: &Arc<Archive>,
        manifest: &Manifest,
        options: &PackOptions,
    ) -> Result<Pack, PackError> {
        archive.unpackable()?;
        let libraries = self.libraries(archive)?;
        let index = Layers::read(self, archive)?;
        let mut trees: Vec<Tree> = index.names.iter().map(|_| Tree::new()).collect();
        for library in &libraries {
            let at = index.of(library);
            let node = Node::file(archive.content(library)).mtime(inner_time(archive, library)?);
            trees[at].add(format!("{APP}/{}", self.place(library)), node)?;
        }
        let thin = self.thin(archive, manifest, &libraries)?;
        trees[index.application].add(APP, home())?;
        let node = Node::file(Content::Made(Arc::new(thin))).mtime(newest(archive));
        trees[index.application].add(format!("{APP}/{THIN}"), node)?;
        let path = archive.path();
        Ok(Pack {
            kind,
            base: Some(base(path, self.java(archive, manifest)?, options)?),
            layers: Layer::filled(index.names.into_iter().zip(trees)),
            config: config(THIN, options),
            notes: Vec::new(),
        })
    }

    /// Where an inner jar goes, beside the thin jar.
    fn place(&self, library: &Entry) -> String {
        library.name.strip_prefix(self.folder).unwrap_or(&library.name).to_owned()
    }

    /// The inner jars in the order of the class path.
    fn libraries<'a>(&self, archive: &'a Archive) -> Result<Vec<&'a Entry>, PackError> {
        let inner = |entry: &&Entry| {
            let is = |prefix: &&str| entry.name.starts_with(*prefix);
            !entry.is_folder() && self.libraries.iter().any(is)
        };
        let all: Vec<&Entry> = archive.entries().iter().filter(inner).collect();
        let by_name: HashMap<&str, &Entry> =
            all.iter().map(|entry| (file_part(&entry.name), *entry)).collect();
        let listed = self.index(archive, "classpath.idx")?;
        let mut seen = HashSet::new();
        // Spring Boot before 2.5 lists names without their folder.
        let first = listed.iter().filter_map(|line| by_name.get(file_part(line)).copied());
        Ok(first.chain(all.iter().copied()).filter(|entry| seen.insert(&entry.name)).collect())
    }

    /// The items of an index, which is a list of quoted names; empty if there is none.
    fn index(&self, archive: &Archive, name: &str) -> Result<Vec<String>, PackError> {
        let text = self.text(archive, name)?;
        Ok(text.lines().filter_map(item).map(|(_, name)| name.to_owned()).collect())
    }

    fn text(&self, archive: &Archive, name: &str) -> Result<String, PackError> {
        match archive.find(&format!("{}{name}", self.folder)) {
            Some(entry) => {
                let bytes = archive.read(entry, LARGEST_TEXT)?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            None => Ok(String::new()),
        }
    }

    /// The application's classes and resources as a jar that names the inner jars.
    fn thin(
        &self,
        archive: &Arc<Archive>,
        manifest: &Manifest,
        libraries: &[&Entry],
    ) -> Result<Jar, PackError> {
        let mut attributes = Manifest::default();
        attributes.set("Main-Class", self.start_class.clone());
        let path: Vec<String> = libraries.iter().map(|entry| url(&self.place(entry))).collect();
        if !path.is_empty() {
            attributes.set("Class-Path", path.join(" "));
        }
        attributes.inherit(manifest, |name| {
            !OF_ARCHIVE.iter().any(|gone| gone.eq_ignore_ascii_case(name))
        });
        let mut members = vec![Member::bytes(MANIFEST, attributes.write())];
        let mut names = HashSet::from([MANIFEST]);
        // Classes first: what is there twice is theirs.
        for from_meta in [false, true] {
            for entry in archive.entries() {
                let name = match entry.name.strip_prefix(self.classes) {
                    Some(name) if !from_meta => name,
                    None if from_meta && is_meta(&entry.name) => entry.name.as_str(),
                    _ => continue,
                };
                if !name.is_empty() && names.insert(name) {
                    members.push(Member::of(archive, entry, name));
                }
            }
        }
        Jar::new(members).ok_or_else(|| {
            let reason = "its own classes and resources have more than 4 GiB";
            PackError::unfit(archive.path(), reason, "put large resources on a volume")
        })
    }
}

/// What of `META-INF/` stays: neither the manifest nor signatures, which fit no longer, nor
/// what refers to the loader.
fn is_meta(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("META-INF/") else { return false };
    let signature = !rest.contains('/')
        && [".SF", ".RSA", ".DSA", ".EC"]
            .iter()
            .any(|end| rest.to_ascii_uppercase().ends_with(end));
    !signature && name != MANIFEST && name != LOADER_SERVICE && rest != "INDEX.LIST"
}

/// Whether an entry belongs to Spring's loader.
pub(in crate::package) fn is_loader(name: &str) -> bool {
    name.starts_with(LOADER) || LOADER.starts_with(name)
}

/// The layers of `layers.idx`, or those that Spring makes where nobody says otherwise.
struct Layers {
    names: Vec<String>,
    /// Which layer what has this name, or begins with it if it ends in a slash, belongs to.
    rules: Vec<(String, usize)>,
    /// The one that has the classes.
    application: usize,
    /// The one for snapshots, where there is no index.
    snapshots: Option<usize>,
}

impl Layers {
    fn read(boot: &Boot, archive: &Archive) -> Result<Self, PackError> {
        /// Layers of an index: more would not be layers of an image.
        const MOST: usize = 32;
        /// Bytes of a layer's name, which people are shown.
        const LONGEST: usize = 64;
        let text = boot.text(archive, "layers.idx")?;
        let (mut names, mut rules) = (Vec::<String>::new(), Vec::new());
        for (inner, name) in text.lines().filter_map(item) {
            if !inner {
                names.push(name.to_owned());
            } else if let Some(layer) = names.len().checked_sub(1) {
                rules.push((name.to_owned(), layer));
            }
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let named = |name: &String| name.len() <= LONGEST && name.bytes().all(plain);
        if names.is_empty() || names.len() > MOST || !names.iter().all(named) {
            let names = ["dependencies", "snapshots", "application"].map(str::to_owned).to_vec();
            return Ok(Self { names, rules: Vec::new(), application: 2, snapshots: Some(1) });
        }
        let mut layers = Self { application: names.len() - 1, names, rules, snapshots: None };
        layers.application = layers.find(boot.classes).unwrap_or(layers.application);
        Ok(layers)
    }

    fn find(&self, name: &str) -> Option<usize> {
        let applies = |rule: &str| rule == name || (rule.ends_with('/') && name.starts_with(rule));
        let exact = self.rules.iter().find(|(rule, _)| rule == name);
        exact.or_else(|| self.rules.iter().find(|(rule, _)| applies(rule))).map(|(_, at)| *at)
    }

    /// The layer of an inner jar.
    fn of(&self, library: &Entry) -> usize {
        match self.snapshots {
            Some(layer) if library.name.contains("-SNAPSHOT") => layer,
            Some(_) => 0,
            None => self.find(&library.name).unwrap_or(self.application),
        }
    }
}

/// An item of an index, `- "NAME"` or `- "NAME":`, and whether it lies within another.
fn item(line: &str) -> Option<(bool, &str)> {
    let inner = line.starts_with(' ');
    let name = line.trim().strip_prefix('-')?.trim().trim_end_matches(':');
    let name = name.trim_matches('"');
    (!name.is_empty()).then_some((inner, name))
}

/// The part of a path behind its last slash.
fn file_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A path as it stands in `Class-Path`: a relative URL.
fn url(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/+@()!$',=".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
