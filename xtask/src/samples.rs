//! What the samples need from package registries, fetched before the tests enter their
//! namespaces, where there is no network.
//!
//! Promises: everything is fetched once for each lock file, by the tools people use, into
//! `target/samples`; the tests find it there. Java samples are built there, too, because Maven
//! fetches while it builds. Does not know what the tests do with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::run::{program, root, target};

/// The Tomcat that wars are tested on.
const TOMCAT: &str = "10.1.34";
/// The Java samples: the folder, and what Maven builds of it.
const JAVA: [(&str, &str); 2] = [("petstore", "petstore.jar"), ("servlet", "servlet.war")];
/// The class in which the two versions of a Java sample differ.
const VERSION: &str = "src/main/java/store/pets/Version.java";

/// Fetches what is missing.
///
/// # Errors
/// When it cannot be fetched.
pub(crate) fn prepare() -> anyhow::Result<()> {
    let folder = target().join("samples");
    let lock = |path: &str| fs::read(root().join(path)).with_context(|| path.to_owned());
    let wheels = lock("samples/python-web/requirements.txt")?;
    once(&folder.join("wheels"), &wheels, |wheels| {
        let what = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest"];
        let from = ["-r", "samples/python-web/requirements.txt"];
        program("python3", what).arg(wheels).args(&from).run()
    })?;
    let packages = lock("samples/node-web/package-lock.json")?;
    once(&folder.join("npm"), &packages, |cache| {
        // Installed to fill npm's cache; the cache is what stays.
        let place = cache.join("once");
        fs::create_dir_all(&place)?;
        for file in ["package.json", "package-lock.json"] {
            fs::copy(root().join("samples/node-web").join(file), place.join(file))?;
        }
        let install = program("npm", ["ci", "--no-audit", "--no-fund", "--silent", "--cache"]);
        install.arg(cache).within(&place).run()?;
        Ok(fs::remove_dir_all(&place)?)
    })?;
    for (sample, artifact) in JAVA {
        let source = root().join("samples").join(sample);
        let wanted = content(&source)?;
        once(&folder.join(sample), &wanted, |place| build(&source, artifact, place))?;
    }
    once(&folder.join("tomcat"), TOMCAT.as_bytes(), |place| {
        // `stead image base --from-maven` finds it in Maven's own folder.
        let artifact = format!("-Dartifact=org.apache.tomcat:tomcat:{TOMCAT}:tar.gz");
        let to = format!("-DoutputDirectory={}", place.display());
        program("mvn", ["-q", "-B", "dependency:copy", &artifact, &to]).within(place).run()
    })
}

/// Builds versions 1 and 2 of a Java sample: `NAME-1.jar` and `NAME-2.jar`, or wars.
fn build(source: &Path, artifact: &str, place: &Path) -> anyhow::Result<()> {
    let work = place.join("build");
    copy(source, &work)?;
    let class = work.join(VERSION);
    let text = fs::read_to_string(&class).with_context(|| class.display().to_string())?;
    for version in ["1", "2"] {
        let other = text.replace("return \"1\"", &format!("return \"{version}\""));
        if version != "1" && other == text {
            bail!("{VERSION} does not say return \"1\"");
        }
        fs::write(&class, other)?;
        program("mvn", ["-q", "-B", "-DskipTests", "package"]).within(&work).run()?;
        let (name, ending) = artifact.split_once('.').expect("artifacts have endings");
        let to = place.join(format!("{name}-{version}.{ending}"));
        fs::copy(work.join("target").join(artifact), to).context(artifact.to_owned())?;
    }
    Ok(fs::remove_dir_all(&work)?)
}

/// All files below a folder, sorted, with what each holds.
fn files(folder: &Path) -> anyhow::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inner) = folders.pop() {
        for entry in fs::read_dir(&inner).with_context(|| inner.display().to_string())? {
            let path = entry?.path();
            // What somebody built by hand is no source.
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.is_file() {
                let bytes = fs::read(&path)?;
                files.push((path.strip_prefix(folder)?.to_owned(), bytes));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// What a folder holds, as one text to compare with.
fn content(folder: &Path) -> anyhow::Result<Vec<u8>> {
    let parts = files(folder)?.into_iter().map(|(path, bytes)| {
        [path.display().to_string().as_bytes(), b"\n", &bytes, b"\n"].concat()
    });
    Ok(parts.collect::<Vec<_>>().concat())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    for (path, bytes) in files(from)? {
        let path = to.join(path);
        fs::create_dir_all(path.parent().unwrap_or(to))?;
        fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Fills `folder` unless it was filled for what is `wanted` now, which is kept in it.
fn once(
    folder: &Path,
    wanted: &[u8],
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mark = folder.join("lock");
    if fs::read(&mark).is_ok_and(|filled| filled == wanted) {
        return Ok(());
    }
    println!("filling {}", folder.display());
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fill(folder).with_context(|| format!("filling {}", folder.display()))?;
    fs::write(&mark, wanted).context("a mark that it is there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_filled_once_for_a_lock() {
        let folder = std::env::temp_dir().join(format!("stead-xtask-{}", std::process::id()));
        let fill =
            |text: &'static str| move |folder: &Path| Ok(fs::write(folder.join("file"), text)?);
        let fails = |_: &Path| anyhow::bail!("no network");
        let read = || fs::read_to_string(folder.join("file")).unwrap();
        assert!(once(&folder, b"one", fails).is_err());
        once(&folder, b"one", fill("first")).unwrap();
        once(&folder, b"one", fill("again")).unwrap();
        assert_eq!(read(), "first");
        once(&folder, b"other", fill("other")).unwrap();
        assert_eq!(read(), "other");
        fs::remove_dir_all(&folder).unwrap();
    }
}
