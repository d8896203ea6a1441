//! From a Release and its image to what a Sandbox is asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use stead_core::engine::ImageInfo;
use stead_core::error::{Code, UserError};
use stead_core::fleet::{Exit, Part, ReleaseSpec, Revision, Slot};
use stead_core::ids::{ContainerId, Ordinal};
use stead_core::manifest::{self, AbsPath, EnvName, FileSource, Health, StopSignal};
use stead_core::name::AppKey;
use stead_core::secret::Secret;
use stead_core::time::Time;

use super::Shared;
use super::labels::{ContainerLabels, SandboxLabels};
use crate::image::{self, Image, ImageConfig, ImageSummary};
use crate::logs;
use crate::sandbox::{
    self, ContainerSpec, FileMount, Resources, Sandbox, SandboxSpec, VolumeMount,
};

/// Where programs are looked for when the image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is to run, and as which Instance.
#[derive(Clone, Copy)]
pub(super) struct Order<'a> {
    pub(super) app: &'a AppKey,
    pub(super) ordinal: Ordinal,
    pub(super) release: &'a ReleaseSpec,
    pub(super) part: &'a Part,
    /// Of that part.
    pub(super) image: &'a Image,
}

/// What one part of an Instance asks for.
struct Asked<'a> {
    source: &'a str,
    command: &'a [String],
    args: &'a [String],
    env: &'a BTreeMap<EnvName, String>,
    files: &'a BTreeMap<AbsPath, FileSource>,
    resources: &'a manifest::Resources,
    health: &'a Health,
    user: Option<&'a str>,
    working_dir: Option<&'a str>,
    read_only_root: bool,
}

impl<'a> Asked<'a> {
    /// `None` where the Release has no such part.
    fn of(release: &'a ReleaseSpec, part: &Part) -> Option<Self> {
        let settings = &release.settings;
        Some(match part {
            Part::Main => Self {
                source: &release.reference,
                command: &settings.command,
                args: &settings.args,
                env: &settings.env,
                files: &settings.files,
                resources: &settings.resources,
                health: &settings.health,
                user: settings.user.as_ref().map(|user| user.as_str()),
                working_dir: settings.working_dir.as_ref().map(|dir| dir.as_str()),
                read_only_root: settings.read_only_root,
            },
            Part::Sidecar(name) => {
                let sidecar = settings.sidecar(name)?;
                Self {
                    source: &sidecar.source,
                    command: &sidecar.command,
                    args: &sidecar.args,
                    env: &sidecar.env,
                    files: &sidecar.files,
                    resources: &sidecar.resources,
                    health: &sidecar.health,
                    user: None,
                    working_dir: None,
                    read_only_root: false,
                }
            }
        })
    }
}

/// How a part is watched.
pub(super) fn health<'a>(release: &'a ReleaseSpec, part: &Part) -> Option<&'a Health> {
    Asked::of(release, part).map(|asked| asked.health)
}

/// What a part may use.
pub(super) fn resources(release: &ReleaseSpec, part: &Part) -> Option<Resources> {
    let wanted = Asked::of(release, part)?.resources;
    Some(Resources {
        cpu_millis: wanted.cpu.map(|cpu| cpu.millis()),
        memory_bytes: wanted.memory.map(|memory| memory.bytes()),
        pids: Some(wanted.pids),
    })
}

/// The Sandbox of an Instance. Its id is never used again: a later Sandbox of the same
/// Instance was made at another moment.
pub(super) fn sandbox(labels: &SandboxLabels) -> SandboxSpec {
    let unique = crate::clock::now().0;
    SandboxSpec {
        id: format!("{}-{}-{unique:x}", labels.app.app, labels.ordinal),
        hostname: format!("{}-{}", labels.app.app, labels.ordinal),
        namespace: labels.app.namespace.to_string(),
        dns: name_servers(),
        extra_hosts: Vec::new(),
        wanted_ip: None,
        labels: labels.write(),
    }
}

/// The machine's name servers that a Sandbox can reach. A stub on loopback cannot be
/// reached from another netns: what stands behind it is used.
pub(super) fn name_servers() -> Vec<IpAddr> {
    ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|text| {
            text.lines()
                .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok())
                .filter(|ip: &IpAddr| !ip.is_loopback())
                .collect::<Vec<_>>()
        })
        .find(|servers| !servers.is_empty())
        .unwrap_or_default()
}

/// The id of the next Container of a part in a Sandbox.
pub(super) fn container_id(
    sandbox: &Sandbox,
    part: &Part,
    revision: Revision,
    now: Time,
) -> ContainerId {
    // A Sandbox's Containers are prepared one after another, so the moment is unique in it.
    let part = match part {
        Part::Main => String::new(),
        Part::Sidecar(name) => format!("{name}."),
    };
    ContainerId(format!("{}.{part}{revision}.{:x}", sandbox.id(), now.0))
}

/// The moment that stands in a Container's id.
pub(super) fn prepared_at(id: &ContainerId) -> Time {
    let moment = id.as_str().rsplit('.').next().and_then(|hex| u64::from_str_radix(hex, 16).ok());
    Time(moment.unwrap_or_default())
}

/// The folder of an App's volumes.
fn volumes_of(shared: &Shared, app: &AppKey) -> PathBuf {
    shared.data_dir.join("volumes").join(app.namespace.as_str()).join(app.app.as_str())
}

/// Removes what an App that is no more has written: its output, and its volumes if wanted.
pub(super) fn remove_data(shared: &Shared, app: &AppKey, volumes: bool) -> Result<(), UserError> {
    let logs = logs::folder(&shared.data_dir, app);
    for folder in [Some(logs), volumes.then(|| volumes_of(shared, app))].into_iter().flatten() {
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(UserError::new(
                    Code::EngineFailed,
                    format!("folder {} cannot be removed: {error}", folder.display()),
                    "remove the folder by hand once nothing uses it",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The Instance's volumes that a part sees, made where they are missing. A new one belongs to
/// the user the App runs as, as `main`, the App's own image, has it.
pub(super) fn volumes(
    shared: &Shared,
    order: Order<'_>,
    main: &Image,
) -> Result<Vec<VolumeMount>, UserError> {
    let Order { app, ordinal, release, part, .. } = order;
    let mut mounts = Vec::new();
    for (name, mount) in mounted(release, part) {
        let host = volumes_of(shared, app).join(name).join(ordinal.to_string());
        if !host.exists() {
            let user = user(release.settings.user.as_ref().map(|user| user.as_str()), main)?;
            make_volume(&host, &user).map_err(|error| {
                UserError::new(
                    disk_code(&error),
                    format!("volume {name} cannot be made: {error}"),
                    "look at the data folder's disk with `stead doctor`",
                )
            })?;
        }
        mounts.push(VolumeMount { host, mount: mount.to_owned(), read_only: false });
    }
    Ok(mounts)
}

/// The volumes that a part sees, by name, and where.
pub(super) fn mounted<'a>(release: &'a ReleaseSpec, part: &Part) -> Vec<(&'a str, &'a str)> {
    let settings = &release.settings;
    match part {
        Part::Main => {
            let own = settings.volumes.iter();
            own.map(|volume| (volume.name.as_str(), volume.mount.as_str())).collect()
        }
        Part::Sidecar(name) => {
            let shown = settings.sidecar(name).into_iter().flat_map(|sidecar| &sidecar.volumes);
            shown.map(|volume| (volume.name.as_str(), volume.mount.as_str())).collect()
        }
    }
}

/// Makes a volume's folder: with its owner, or not at all.
fn make_volume(host: &Path, user: &image::User) -> std::io::Result<()> {
    let fresh = host.with_extension("new");
    std::fs::create_dir_all(&fresh)?;
    std::os::unix::fs::chown(&fresh, Some(user.uid), Some(user.gid))?;
    std::fs::rename(fresh, host)
}

fn disk_code(error: &std::io::Error) -> Code {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Code::DiskFull,
        _ => Code::EngineFailed,
    }
}

fn user(named: Option<&str>, image: &Image) -> Result<image::User, UserError> {
    image::resolve_user(&image.layers, named.unwrap_or(&image.config.user)).map_err(UserError::from)
}

/// TCP ports that the image exposes.
pub(super) fn exposed_tcp_ports(config: &ImageConfig) -> Vec<u16> {
    let ports = config.exposed_ports.iter();
    ports
        .filter_map(|port| match port.split_once('/') {
            Some((number, "tcp")) => number.parse().ok(),
            Some(_) => None,
            None => port.parse().ok(),
        })
        .collect()
}

/// The signal that the image wants to be stopped with.
pub(super) fn image_stop_signal(config: &ImageConfig) -> Option<i32> {
    let signal: StopSignal = config.stop_signal.as_deref()?.parse().ok()?;
    Some(signal.number())
}

/// The program and its arguments, by the rules that Kubernetes made known: a command
/// replaces the image's entrypoint and arguments, arguments alone replace its arguments.
fn argv(asked: &Asked<'_>, config: &ImageConfig) -> Result<Vec<String>, UserError> {
    let (mut argv, image_args) = match asked.command {
        [] => (config.entrypoint.clone(), config.cmd.as_slice()),
        command => (command.to_vec(), [].as_slice()),
    };
    argv.extend_from_slice(match asked.args {
        [] => image_args,
        args => args,
    });
    if argv.is_empty() {
        return Err(UserError::new(
            Code::CannotStart,
            format!("image {} names no program to run", asked.source),
            "set `command` in the manifest",
        ));
    }
    Ok(argv)
}

/// The image's variables, then what stead adds, then the manifest's: the last one wins.
fn env(asked: &Asked<'_>, config: &ImageConfig, port: Option<u16>) -> Vec<(String, String)> {
    let mut env: BTreeMap<String, String> = BTreeMap::from([("PATH".into(), PATH.into())]);
    env.extend(config.env.iter().filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    }));
    if let Some(port) = port {
        env.entry("PORT".into()).or_insert_with(|| port.to_string());
    }
    let own = asked.env.iter();
    env.extend(own.map(|(name, value)| (name.as_str().to_owned(), value.clone())));
    env.into_iter().collect()
}

/// The values of the secrets that a part gets, by the variable that each becomes.
fn secrets(shared: &Shared, order: &Order<'_>) -> Result<Vec<(String, Secret)>, UserError> {
    if !order.part.is_main() {
        return Ok(Vec::new());
    }
    let value = |(name, version): (&EnvName, &u32)| {
        let value = shared.secrets.value(order.app, name, *version)?;
        Ok((name.as_str().to_owned(), value))
    };
    order.release.secrets.iter().map(value).collect()
}

/// What a Container is asked for.
pub(super) fn container(
    shared: &Shared,
    order: Order<'_>,
    id: &ContainerId,
    labels: &ContainerLabels,
    slot: Slot,
    volumes: Vec<VolumeMount>,
) -> Result<ContainerSpec, UserError> {
    let Order { app, ordinal, release, part, image } = order;
    let asked = Asked::of(release, part).ok_or_else(|| {
        let message = format!("release {} of app {app} has no {part}", labels.revision.release);
        UserError::new(Code::Internal, message, "deploy it again")
    })?;
    let user = user(asked.user, image)?;
    let files = asked.files.iter().filter_map(|(path, source)| match source {
        FileSource::Content { content } => Some(FileMount {
            path: path.as_str().to_owned(),
            content: content.clone().into_bytes(),
            mode: 0o444,
        }),
        // The API refuses these: whoever deploys reads the file.
        FileSource::Path(_) => None,
    });
    let cwd = asked.working_dir.unwrap_or(match image.config.working_dir.as_str() {
        "" => "/",
        dir => dir,
    });
    let secrets = secrets(shared, &order)?;
    let mut env = env(&asked, &image.config, labels.port);
    env.retain(|(name, _)| secrets.iter().all(|(secret, _)| secret != name));
    Ok(ContainerSpec {
        id: id.0.clone(),
        labels: labels.write(),
        slot,
        layers: image.stack(),
        argv: argv(&asked, &image.config)?,
        env,
        secrets,
        cwd: cwd.to_owned(),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        volumes,
        files: files.collect(),
        tmpfs: Vec::new(),
        resources: resources(release, part).unwrap_or_default(),
        read_only_root: asked.read_only_root,
        log: logs::folder(&shared.data_dir, app).join(logs::file_name(ordinal, id)),
    })
}

/// A Container's end, as the planner sees it.
pub(super) fn exit(exit: &sandbox::Exit, intended: bool) -> Exit {
    Exit {
        at: Time(exit.finished / 1_000),
        code: exit.status.shell_code(),
        oom_killed: exit.out_of_memory,
        intended,
    }
}

/// An image in a list.
pub(super) fn image_info(summary: ImageSummary) -> ImageInfo {
    ImageInfo {
        digest: summary.digest,
        names: summary.names,
        size: summary.size,
        shared: summary.shared,
        last_used: summary.last_used,
    }
}
