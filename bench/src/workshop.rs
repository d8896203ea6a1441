//! Where contestants work: a folder, the images as files, and the peers that need a daemon.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use stead_testkit::images::{Catalogue, trivial_program};
use stead_testkit::registry::Registry;
use tempfile::TempDir;

use crate::peers::{Docker, Podman, Runtime, quiet};
use crate::platform::Platform;

const HUGETLB: &str = "/sys/fs/cgroup/hugetlb";
/// Bytes of the contestants' disk, most of them never written.
const DISK: u64 = 16 << 30;

/// The versions of the trivial App that are ready to run.
pub(crate) const VERSIONS: [&str; 2] = ["1", "2"];

/// The images that stead gets.
const IMAGES: [&str; 2] = ["trivial", "nginx"];

/// Everything the goals share. Dropped, it ends what it started and removes its files.
pub(crate) struct Workshop {
    only: Option<String>,
    docker: Option<Docker>,
    podman: Option<Podman>,
    platform: Option<Platform>,
    registry: Option<Registry>,
    _hugetlb: Hugetlb,
    disk: Disk,
}

impl Workshop {
    /// Prepares the folder and the images.
    ///
    /// # Errors
    /// When this is not run in namespaces of its own, or an image cannot be made.
    pub(crate) fn open(only: Option<String>) -> anyhow::Result<Self> {
        if std::env::var_os("STEAD_XTASK_INSIDE").is_none() {
            bail!("run it as `cargo xtask bench`, which gives it namespaces of its own");
        }
        let disk = Disk::mount()?;
        let mut catalogue = Catalogue::new();
        for version in VERSIONS {
            let image = catalogue.image("trivial", version)?;
            let file = archive(&disk.folder, version);
            image.write_docker_save(&file, &format!("trivial:{version}"))?;
        }
        rootfs(&disk.folder)?;
        let _hugetlb = Hugetlb::mount()?;
        Ok(Self {
            only,
            docker: None,
            podman: None,
            platform: None,
            registry: None,
            _hugetlb,
            disk,
        })
    }

    /// Whether a contestant of this name is to be measured.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    /// Of these names, those to be measured.
    pub(crate) fn wanted<const N: usize>(&self, names: [&'static str; N]) -> Vec<&'static str> {
        names.into_iter().filter(|name| self.wants(name)).collect()
    }

    /// A low-level runtime with a bundle of its own.
    pub(crate) fn runtime(&self, program: &'static str) -> anyhow::Result<Runtime> {
        Runtime::new(program, &self.folder().join("rootfs"), self.folder())
    }

    /// Podman with both versions loaded.
    pub(crate) fn podman(&mut self) -> anyhow::Result<Podman> {
        if self.podman.is_none() {
            let podman = Podman::new(&self.folder().join("podman"));
            for version in VERSIONS {
                podman.load(&archive(self.folder(), version))?;
            }
            self.podman = Some(podman);
        }
        Ok(self.podman.clone().expect("it was just made"))
    }

    /// Docker's daemon with both versions loaded.
    pub(crate) fn docker(&mut self) -> anyhow::Result<&Docker> {
        if self.docker.is_none() {
            let docker = Docker::start(&self.folder().join("docker"))?;
            for version in VERSIONS {
                docker.load(&archive(self.folder(), version))?;
            }
            self.docker = Some(docker);
        }
        Ok(self.docker.as_ref().expect("it was just made"))
    }

    /// stead, up, with the images of both versions already on the node.
    pub(crate) fn platform(&mut self) -> anyhow::Result<Platform> {
        if self.platform.is_none() {
            let registry = Registry::start()?;
            let mut catalogue = Catalogue::new();
            for name in IMAGES {
                for version in VERSIONS {
                    registry.push(name, version, &catalogue.image(name, version)?)?;
                }
            }
            let folder = self.folder().join("stead");
            let platform = Platform::up(&folder, registry.address(), &IMAGES)?;
            self.registry = Some(registry);
            self.platform = Some(platform);
        }
        Ok(self.platform.clone().expect("it was just made"))
    }

    /// A place for files of one goal.
    pub(crate) fn folder(&self) -> &Path {
        &self.disk.folder
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if let Some(platform) = self.platform.take() {
            platform.down();
        }
        if let Some(podman) = self.podman.take() {
            podman.remove_all();
        }
        if let Some(docker) = self.docker.take() {
            docker.stop();
        }
    }
}

fn archive(folder: &Path, version: &str) -> PathBuf {
    folder.join(format!("trivial-{version}.tar"))
}

/// The trivial App's root file system, for runtimes that know no images.
fn rootfs(folder: &Path) -> anyhow::Result<()> {
    let root = folder.join("rootfs");
    for name in ["dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(trivial_program()?, root.join("hello"))?;
    Ok(())
}

/// A file system of the contestants' own: ext4 as it is made where nobody says otherwise, so with
/// a journal. One without is slow to make files for minutes after many were removed (the kernel's
/// `recently_deleted`), and stores are emptied before they are filled here.
struct Disk {
    folder: PathBuf,
    _file: TempDir,
}

impl Disk {
    fn mount() -> anyhow::Result<Self> {
        // Not /tmp, which may be memory.
        let home = tempfile::Builder::new().prefix("stead-bench-").tempdir_in("/var/tmp")?;
        let (file, folder) = (home.path().join("disk"), home.path().join("on-disk"));
        File::create(&file)?.set_len(DISK)?;
        fs::create_dir(&folder)?;
        quiet(Command::new("mkfs.ext4").arg("-q").arg(&file))?;
        quiet(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&folder))?;
        Ok(Self { folder, _file: home })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whatever still uses it ends with the namespaces.
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}

/// crun 1.8.1 refuses a hybrid cgroup layout without a hugetlb hierarchy, and leaves a folder per
/// container in it.
struct Hugetlb {
    mounted: bool,
}

impl Hugetlb {
    fn mount() -> anyhow::Result<Self> {
        let hybrid = Path::new("/sys/fs/cgroup/unified").exists();
        if !hybrid || Path::new(HUGETLB).exists() {
            return Ok(Self { mounted: false });
        }
        fs::create_dir(HUGETLB).context(HUGETLB)?;
        let arguments = ["-t", "cgroup", "-o", "hugetlb", "cgroup", HUGETLB];
        quiet(Command::new("mount").args(arguments)).inspect_err(|_| {
            let _ = fs::remove_dir(HUGETLB);
        })?;
        Ok(Self { mounted: true })
    }
}

impl Drop for Hugetlb {
    fn drop(&mut self) {
        if self.mounted {
            remove_cgroups(Path::new(HUGETLB));
            let _ = Command::new("umount").arg(HUGETLB).status();
            let _ = fs::remove_dir(HUGETLB);
        }
    }
}

/// Removes the cgroups below a folder, children first.
fn remove_cgroups(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}
