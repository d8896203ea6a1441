//! Which Java virtual machine a Container's program is.
//!
//! Promises: the answer is about the very file that will be run, found as the kernel and the
//! shell's rules would find it, and says nothing where it is not sure. Runs nothing.

use sha2::{Digest as _, Sha256};
use stead_core::fleet::ArchiveKind;

use crate::image::Tree;
use crate::sandbox::ContainerSpec;

/// A Java virtual machine of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Jdk {
    /// For people: vendor and version.
    pub(crate) name: String,
    /// The number that Java's features come with: 17, 25.
    pub(crate) feature: u32,
    /// Whether it is Alibaba Dragonwell, which has coroutines for all threads.
    pub(crate) dragonwell: bool,
    /// Of everything that its `release` file says: another build has another one.
    pub(crate) build: [u8; 32],
}

impl Jdk {
    /// Whether a Container's program has a virtual machine's name, without which it is none.
    /// Cheap: every start asks.
    pub(crate) fn is_named(spec: &ContainerSpec) -> bool {
        spec.argv.first().is_some_and(|program| program.rsplit('/').next() == Some("java"))
    }

    /// The virtual machine that a Container runs; `None` if its program is none, or not one
    /// that tells what it is.
    pub(crate) fn of(spec: &ContainerSpec) -> Option<Self> {
        let program = spec.argv.first().filter(|_| Self::is_named(spec))?;
        let image = Tree::open(&spec.layers).ok()?;
        let path = spec.env.iter().find(|(name, _)| name == "PATH");
        let folders = path.map_or("", |(_, value)| value.as_str());
        let java = candidates(program, folders, &spec.cwd).into_iter().find_map(|candidate| {
            image.find(&candidate).ok().flatten().filter(|found| found.is_program())
        })?;
        let home = java.path.strip_suffix("bin/java")?;
        // Java 8 has its own folder inside of the development kit's.
        let above = home.strip_suffix("jre/");
        let homes = std::iter::once(home).chain(above);
        homes
            .filter_map(|home| image.read(&format!("{home}release")).ok())
            .find_map(|text| Self::read(&text))
    }

    /// Reads a `release` file.
    fn read(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            let value = line.trim().trim_matches('"');
            Some(value).filter(|value| !value.is_empty())
        };
        // It has options of its own for everything here.
        if field("JVM_VARIANT").is_some_and(|variant| variant.eq_ignore_ascii_case("openj9")) {
            return None;
        }
        let version = field("JAVA_VERSION")?;
        let mut numbers = version.split(['.', '_', '-', '+']);
        let first: u32 = numbers.next()?.parse().ok()?;
        let feature = match first {
            1 => numbers.next()?.parse().ok()?,
            feature => feature,
        };
        let full = field("JAVA_RUNTIME_VERSION").unwrap_or(version);
        let name = match (field("IMPLEMENTOR_VERSION"), field("IMPLEMENTOR")) {
            (Some(name), _) => name.to_owned(),
            (None, Some(vendor)) => format!("{vendor} {full}"),
            (None, None) => format!("Java {full}"),
        };
        let dragonwell = ["IMPLEMENTOR", "IMPLEMENTOR_VERSION"].into_iter().filter_map(field);
        let dragonwell = dragonwell.map(str::to_lowercase).any(|said| said.contains("dragonwell"));
        let build = Sha256::digest(text).into();
        Some(Self { name, feature, dragonwell, build })
    }

    /// What it can start from.
    pub(crate) fn archive(&self) -> Option<ArchiveKind> {
        match self.feature {
            ..13 => None,
            13..25 => Some(ArchiveKind::AppCds),
            25.. => Some(ArchiveKind::AotCache),
        }
    }
}

/// Where a program may be, by the rules of `execvp`.
fn candidates(program: &str, folders: &str, cwd: &str) -> Vec<String> {
    if program.starts_with('/') {
        return vec![program.to_owned()];
    }
    if program.contains('/') {
        return vec![format!("{cwd}/{program}")];
    }
    folders.split(':').filter(|f| f.starts_with('/')).map(|f| format!("{f}/{program}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const TEMURIN: &str = "IMPLEMENTOR=\"Eclipse Adoptium\"\n\
        IMPLEMENTOR_VERSION=\"Temurin-25.0.3+9\"\nJAVA_RUNTIME_VERSION=\"25.0.3+9-LTS\"\n\
        JAVA_VERSION=\"25.0.3\"\nJVM_VARIANT=\"Hotspot\"\n";

    #[test]
    fn a_release_file_names_vendor_and_feature() {
        let temurin = Jdk::read(TEMURIN).unwrap();
        assert_eq!((temurin.name.as_str(), temurin.feature), ("Temurin-25.0.3+9", 25));
        assert_eq!(temurin.archive(), Some(ArchiveKind::AotCache));
        let debian = "IMPLEMENTOR=\"Debian\"\nJAVA_RUNTIME_VERSION=\"17.0.15+6-Debian-1\"\n\
                      JAVA_VERSION=\"17.0.15\"\n";
        let debian = Jdk::read(debian).unwrap();
        assert_eq!((debian.name.as_str(), debian.feature), ("Debian 17.0.15+6-Debian-1", 17));
        assert_eq!(debian.archive(), Some(ArchiveKind::AppCds));
        assert!(!debian.dragonwell && debian.build != temurin.build);
        let old = Jdk::read("JAVA_VERSION=\"1.8.0_392\"\n").unwrap();
        assert_eq!((old.name.as_str(), old.feature, old.archive()), ("Java 1.8.0_392", 8, None));
        let wisp = Jdk::read(
            "JAVA_VERSION=\"11.0.20\"\nIMPLEMENTOR=\"Alibaba\"\n\
                              IMPLEMENTOR_VERSION=\"(Alibaba Dragonwell Extended Edition)\"\n",
        );
        assert!(wisp.unwrap().dragonwell);
        for other in [
            "",
            "JAVA_VERSION=\"\"\n",
            "JAVA_VERSION=\"x\"\n",
            "MODULES=\"java.base\"\n",
            "JAVA_VERSION=\"17.0.1\"\nJVM_VARIANT=\"Openj9\"\n",
        ] {
            assert_eq!(Jdk::read(other), None, "{other:?}");
        }
    }

    #[test]
    fn the_program_is_found_through_links_and_layers() {
        let dir = tempfile::tempdir().unwrap();
        let (base, top) = (dir.path().join("base"), dir.path().join("top"));
        fs::create_dir_all(base.join("opt/jdk/bin")).unwrap();
        fs::create_dir_all(top.join("usr/bin")).unwrap();
        fs::write(base.join("opt/jdk/release"), TEMURIN).unwrap();
        fs::write(base.join("opt/jdk/bin/java"), "").unwrap();
        symlink("/opt/jdk/bin/java", top.join("usr/bin/java")).unwrap();
        let spec = |argv0: &str| ContainerSpec {
            layers: vec![base.clone(), top.clone()],
            argv: vec![argv0.into(), "-jar".into(), "a.jar".into()],
            env: vec![("PATH".into(), "relative:/bin:/usr/bin".into())],
            cwd: "/opt".into(),
            ..ContainerSpec::default()
        };
        assert_eq!(Jdk::of(&spec("java")), None, "nobody may run it");
        let program = base.join("opt/jdk/bin/java");
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        for argv0 in ["java", "/usr/bin/java", "/opt/jdk/bin/java", "jdk/bin/java"] {
            assert!(Jdk::is_named(&spec(argv0)), "{argv0}");
            assert_eq!(Jdk::of(&spec(argv0)).map(|jdk| jdk.feature), Some(25), "{argv0}");
        }
        assert_eq!(Jdk::of(&spec("/bin/java")), None, "there is none");
        fs::write(top.join("usr/bin/javac"), "").unwrap();
        fs::set_permissions(top.join("usr/bin/javac"), fs::Permissions::from_mode(0o755)).unwrap();
        for argv0 in ["sh", "javac", "/opt/java/", ""] {
            assert!(!Jdk::is_named(&spec(argv0)), "{argv0}");
            assert_eq!(Jdk::of(&spec(argv0)), None, "{argv0}");
        }
    }
}
