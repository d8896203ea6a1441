//! Java: what of a JDK or JRE a program needs to run, and to be looked into.

use std::fs;
use std::path::{Path, PathBuf};

use stead_core::api::package::{PackedConfig, RuntimeName};

use super::super::error::PackError;
use super::root::Root;
use super::{Installed, below_home, folders_in, program_folders};

/// Tools that look into a running JVM, and the one for certificates.
const TOOLS: [&str; 4] = ["java", "jcmd", "jfr", "keytool"];
/// Libraries that the JDK opens by name, only for drawing text into images.
const FONTS: [&str; 2] = ["/usr/share/fonts/truetype/dejavu", "/etc/fonts"];

/// Every Java here: `JAVA_HOME`, where distributions, SDKMAN and people put them, `PATH`.
pub(super) fn find() -> Vec<Installed> {
    let named = std::env::var_os("JAVA_HOME").map(PathBuf::from);
    let places = [Some(PathBuf::from("/usr/lib/jvm")), below_home(".sdkman/candidates/java")];
    let places = places.into_iter().flatten().chain(["/usr/java".into(), "/opt".into()]);
    let in_places = places.flat_map(|place| folders_in(&place));
    // `java` is often a chain of links that ends in `HOME/bin/java`.
    let on_path = program_folders()
        .into_iter()
        .filter_map(|folder| fs::canonicalize(folder.join("java")).ok())
        .filter_map(|java| Some(java.parent()?.parent()?.to_owned()));
    named.into_iter().chain(in_places).chain(on_path).filter_map(|home| at(&home)).collect()
}

/// The Java in this folder.
pub(super) fn at(home: &Path) -> Option<Installed> {
    let home = fs::canonicalize(home).ok()?;
    if !home.join("bin/java").is_file() {
        return None;
    }
    let release = fs::read_to_string(home.join("release")).ok()?;
    let version = release.lines().find_map(|line| line.strip_prefix("JAVA_VERSION="))?;
    // 8 and before call themselves 1.8.0_402.
    let version = version.trim().trim_matches('"');
    let exact = version.strip_prefix("1.").unwrap_or(version).replace('_', ".");
    let major = exact.split(|c: char| !c.is_ascii_digit()).next()?.to_owned();
    Some(Installed { runtime: RuntimeName::Java, version: major, exact, home })
}

/// What to take, how to run it, and what to know.
pub(super) fn make(home: &Path) -> Result<(Root, PackedConfig, Vec<String>), PackError> {
    let mut root = Root::default();
    for tool in TOOLS {
        root.file_if_there(&home.join("bin").join(tool))?;
    }
    root.file(&home.join("release"))?;
    let runs = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name != "src.zip" && !name.ends_with(".debuginfo") && !name.ends_with(".diz")
    };
    // A JDK 8 keeps all that runs in `jre`.
    for folder in ["lib", "conf", "jre"] {
        root.folder(&home.join(folder), &runs)?;
    }
    for folder in FONTS {
        root.folder(Path::new(folder), &|_| true)?;
    }
    let config = PackedConfig {
        entrypoint: Vec::new(),
        cmd: vec!["java".into(), "-version".into()],
        env: [
            ("JAVA_HOME".into(), home.to_string_lossy().into_owned()),
            ("PATH".into(), format!("{}/bin:/usr/bin:/bin", home.display())),
        ]
        .into(),
        ..PackedConfig::default()
    };
    let mut notes = Vec::new();
    if !has_archive(home) {
        notes.push(format!(
            "this Java has no archive of its own classes, so every start takes longer; \
             `{}/bin/java -Xshare:dump` makes it",
            home.display()
        ));
    }
    Ok((root, config, notes))
}

/// Whether the JDK's own classes lie ready to be mapped.
fn has_archive(home: &Path) -> bool {
    ["lib/server", "jre/lib/amd64/server"]
        .iter()
        .any(|folder| home.join(folder).join("classes.jsa").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_each_java_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        fs::write(dir.path().join("bin/java"), "").unwrap();
        for (text, version, exact) in [
            ("JAVA_VERSION=\"17.0.15\"", "17", "17.0.15"),
            ("IMPLEMENTOR=\"x\"\nJAVA_VERSION=\"1.8.0_402\"\n", "8", "8.0.402"),
            ("JAVA_VERSION=\"25\"\n", "25", "25"),
        ] {
            fs::write(dir.path().join("release"), text).unwrap();
            let found = at(dir.path()).unwrap();
            assert_eq!((found.version.as_str(), found.exact.as_str()), (version, exact));
        }
        fs::write(dir.path().join("release"), "OS_NAME=Linux").unwrap();
        assert_eq!(at(dir.path()), None);
    }
}
