//! Where a Container's things are on the host: writable layer, files, control group.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stead_core::fleet::Slot;
use stead_holder::wire;

use super::held::Sandbox;
use super::host::Means;
use super::{ContainerSpec, SandboxError, identity, launch};
use crate::cgroup::Group;

/// How long a control group may stay busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a Container's things are on the host.
pub(crate) struct Places {
    group: Group,
    upper: PathBuf,
    files: PathBuf,
    owner: u32,
}

impl Places {
    pub(crate) fn of(sandbox: &Sandbox, container: &str) -> Self {
        let index = sandbox.held().connection.index;
        let upper = sandbox.means().data_dir.join("upper");
        Self {
            group: sandbox.group(container),
            upper: upper.join(index.0.to_string()).join(container),
            files: sandbox.held().folder.join("files").join(container),
            owner: launch::first_user(index),
        }
    }

    pub(crate) fn new(sandbox: &Sandbox, spec: &ContainerSpec) -> Result<Self, SandboxError> {
        let log = spec.log.parent().filter(|_| spec.log.is_absolute());
        if log.is_none() {
            let text = format!("container {} has no log file", spec.id);
            return Err(SandboxError::BadSpec(text));
        }
        Ok(Self::of(sandbox, &spec.id))
    }

    fn file(&self, number: usize) -> PathBuf {
        self.files.join(number.to_string())
    }

    /// Makes everything on the host's side.
    pub(crate) fn make(&self, means: &Means, spec: &ContainerSpec) -> Result<(), SandboxError> {
        let layer = || format!("writable layer of container {}", spec.id);
        // One of the same name that was left over has no claim on it.
        means.trash.throw(&self.upper).map_err(SandboxError::step(layer()))?;
        for folder in ["upper", "work"] {
            let folder = self.upper.join(folder);
            fs::create_dir_all(&folder)
                .and_then(|()| chown(&folder, Some(self.owner), Some(self.owner)))
                .and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)))
                .map_err(SandboxError::step(layer()))?;
        }
        if let Some(folder) = spec.log.parent() {
            let step = format!("log folder {}", folder.display());
            fs::create_dir_all(folder).map_err(SandboxError::step(step))?;
        }
        means
            .cgroups
            .make(&self.group, &spec.resources)
            .map_err(SandboxError::step(format!("control group of container {}", spec.id)))?;
        self.write_files(spec)
            .map_err(SandboxError::step(format!("files of container {}", spec.id)))
    }

    fn write_files(&self, spec: &ContainerSpec) -> io::Result<()> {
        if spec.files.is_empty() {
            return Ok(());
        }
        fs::create_dir_all(&self.files)?;
        for (number, file) in spec.files.iter().enumerate() {
            let path = self.file(number);
            fs::write(&path, &file.content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(file.mode & 0o777))?;
            chown(&path, Some(self.owner + spec.uid), Some(self.owner + spec.gid))?;
        }
        Ok(())
    }

    /// Removes everything again.
    pub(crate) fn undo(&self, means: &Means) {
        let begun = Instant::now();
        while let Err(error) = self.group.remove() {
            if begun.elapsed() > PATIENCE {
                tracing::warn!(%error, "a control group is left over");
                break;
            }
            // The last process leaves its group a moment after it was reaped.
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Err(error) = means.trash.throw(&self.upper) {
            tracing::warn!(%error, "a writable layer is left over");
        }
        let _ = fs::remove_dir_all(&self.files);
    }

    /// What the holder is asked for.
    pub(crate) fn request(
        &self,
        sandbox: &Sandbox,
        spec: &ContainerSpec,
    ) -> Result<wire::Prepare, SandboxError> {
        let mut mounts = identity::mounts(&sandbox.held().folder.join("etc"));
        for volume in &spec.volumes {
            mounts.push(wire::Mount::Bind {
                source: text(&volume.host)?,
                target: volume.mount.clone(),
                read_only: volume.read_only,
                mapped: true,
            });
        }
        for tmpfs in &spec.tmpfs {
            let (target, bytes) = (tmpfs.mount.clone(), tmpfs.bytes);
            mounts.push(wire::Mount::Tmpfs { target, bytes });
        }
        for (number, file) in spec.files.iter().enumerate() {
            mounts.push(wire::Mount::Bind {
                source: text(&self.file(number))?,
                target: file.path.clone(),
                read_only: true,
                mapped: false,
            });
        }
        let means = sandbox.means();
        Ok(wire::Prepare {
            container: spec.id.clone(),
            labels: spec.labels.clone(),
            slot: wire_slot(spec.slot),
            hostname: sandbox.hostname().to_owned(),
            root: wire::Root {
                layers: spec.layers.iter().map(|layer| text(layer)).collect::<Result<_, _>>()?,
                upper: text(&self.upper.join("upper"))?,
                work: text(&self.upper.join("work"))?,
                read_only: spec.read_only_root,
            },
            mounts,
            process: wire::Process {
                argv: spec.argv.clone(),
                env: spec.environment(),
                cwd: spec.cwd.clone(),
                uid: spec.uid,
                gid: spec.gid,
                groups: spec.groups.clone(),
            },
            cgroup: self.group.describe(),
            seccomp: Some(text(&means.filter)?),
            log: wire::LogFile {
                path: text(&spec.log)?,
                max_bytes: means.log.max_bytes,
                files: means.log.files,
            },
        })
    }
}

/// A slot as holders know it.
pub(crate) fn wire_slot(slot: Slot) -> wire::Slot {
    match slot {
        Slot::A => wire::Slot::A,
        Slot::B => wire::Slot::B,
    }
}

fn text(path: &Path) -> Result<String, SandboxError> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| SandboxError::BadSpec(format!("path {} is not UTF-8", path.display())))
}
