//! Wars: web applications for a servlet container.
//!
//! Promises: a war that runs by itself (Spring Boot's) runs on Java alone, the others on
//! Tomcat, unpacked as its root application: `WEB-INF/lib` in a layer of its own, which
//! changes least. Files keep their times from the archive: browsers are told them.

use std::path::Path;
use std::sync::Arc;

use stead_core::api::package::{PackageKind, PackedConfig, RuntimeName};

use super::error::PackError;
use super::jar::{
    APP, Boot, LARGEST_TEXT, Manifest, base, config, home, inner_time, is_loader, manifest_of,
    refer,
};
use super::pack::{Needs, Pack, PackOptions, USUAL_PORT};
use super::tar::{Layer, Node, Tree};
use super::zip::{Archive, Limits};

/// Where Tomcat looks for the application of `/`.
const ROOT: &str = "opt/tomcat/webapps/ROOT";
/// What makes an archive a web application.
const WEB: &str = "WEB-INF/";
const CLASSES: &str = "WEB-INF/classes/";
const DESCRIPTOR: &str = "WEB-INF/web.xml";

/// Packs the war at `path`.
pub(super) fn pack(path: &Path, options: &PackOptions) -> Result<Pack, PackError> {
    let archive = Archive::open(path, &Limits::default())?;
    let manifest = manifest_of(&archive)?;
    match Boot::find(&archive, &manifest) {
        // Taken apart it would lose the pages that lie beside its classes.
        Some(boot) if has_pages(&archive) => exploded(&boot, &archive, &manifest, options),
        Some(boot) => boot.pack(PackageKind::War, &archive, &manifest, options),
        None => on_tomcat(&archive, options),
    }
}

/// Whether there is anything to serve besides what classes give.
fn has_pages(archive: &Archive) -> bool {
    let hidden = [WEB, "META-INF/"];
    let is_page = |name: &str| !hidden.iter().any(|it| name.starts_with(it)) && !is_loader(name);
    archive.entries().iter().any(|entry| !entry.is_folder() && is_page(&entry.name))
}

/// A Spring Boot war as it is, unpacked, with the launcher it brings.
fn exploded(
    boot: &Boot,
    archive: &Arc<Archive>,
    manifest: &Manifest,
    options: &PackOptions,
) -> Result<Pack, PackError> {
    let launcher = manifest.get("Main-Class").unwrap_or_default().to_owned();
    let entrypoint = ["java", "-cp", &format!("/{APP}"), &launcher].map(str::to_owned).to_vec();
    Ok(Pack {
        kind: PackageKind::War,
        base: Some(base(archive.path(), boot.java(archive, manifest)?, options)?),
        layers: unpacked(archive, APP, home(), boot.libraries)?,
        config: PackedConfig { entrypoint, ..config("", options) },
        notes: Vec::new(),
    })
}

fn on_tomcat(archive: &Arc<Archive>, options: &PackOptions) -> Result<Pack, PackError> {
    let path = archive.path();
    // Tomcat would serve its classes as pages.
    if !archive.entries().iter().any(|entry| entry.name.starts_with(WEB)) {
        return Err(PackError::unfit(
            path,
            "it has no folder WEB-INF, as web applications have",
            "build a war; or if it is a library or a jar, name the jar that starts",
        ));
    }
    let needs = match speaks_jakarta(archive)? {
        true => Needs {
            runtime: RuntimeName::Tomcat,
            usual: "10.1",
            fits: &|version| version[0] >= 10,
            because: "it is written for jakarta.servlet, which Tomcat has from 10 on",
        },
        false => Needs {
            runtime: RuntimeName::Tomcat,
            usual: "9.0",
            fits: &|version| matches!(version[0], 8 | 9),
            because: "it is written for javax.servlet, which Tomcat has up to 9",
        },
    };
    let base = options.base(path, &needs)?;
    let mut notes = Vec::new();
    if options.port.is_some_and(|port| port != USUAL_PORT) {
        notes.push(format!("Tomcat listens on {USUAL_PORT}; set http.port to it or leave it out"));
    }
    Ok(Pack {
        kind: PackageKind::War,
        base: Some(base),
        layers: unpacked(archive, ROOT, Node::folder(), &["WEB-INF/lib/"])?,
        config: PackedConfig { port: Some(USUAL_PORT), ..PackedConfig::default() },
        notes,
    })
}

/// Everything in the archive below `root`, which is a folder like `top`: the libraries, then the
/// rest.
fn unpacked(
    archive: &Arc<Archive>,
    root: &str,
    top: Node,
    libraries: &[&str],
) -> Result<Vec<Layer>, PackError> {
    archive.unpackable()?;
    let (mut dependencies, mut application) = (Tree::new(), Tree::new());
    application.add(root, top)?;
    for entry in archive.entries() {
        let place = format!("{root}/{}", entry.name);
        if entry.is_folder() {
            application.add(place, Node::folder())?;
        } else if libraries.iter().any(|it| entry.name.starts_with(it)) {
            let time = inner_time(archive, entry)?;
            dependencies.add(place, Node::file(archive.content(entry)).mtime(time))?;
        } else {
            application.add(place, Node::file(archive.content(entry)).mtime(entry.mtime()))?;
        }
    }
    Ok(Layer::filled([("dependencies", dependencies), ("application", application)]))
}

/// Whether it is written for `jakarta.servlet`, and not for `javax.servlet`, which no Tomcat
/// has both of. Where nothing tells, it is new.
fn speaks_jakarta(archive: &Archive) -> Result<bool, PackError> {
    let own = |name: &str| name.starts_with(CLASSES);
    if refer(archive, own, "jakarta/servlet/")? {
        return Ok(true);
    }
    if refer(archive, own, "javax/servlet/")? {
        return Ok(false);
    }
    let Some(descriptor) = archive.find(DESCRIPTOR) else { return Ok(true) };
    let text = archive.read(descriptor, LARGEST_TEXT)?;
    let text = String::from_utf8_lossy(&text);
    Ok(!["xmlns.jcp.org", "java.sun.com"].iter().any(|of_old| text.contains(of_old)))
}

#[cfg(test)]
mod tests;
