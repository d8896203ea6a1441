//! From a Release and its image to what a Sandbox is asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use stead_core::engine::ImageInfo;
use stead_core::error::{Code, UserError};
use stead_core::fleet::{Exit, ReleaseSpec, Revision};
use stead_core::ids::{ContainerId, Ordinal};
use stead_core::manifest::{FileSource, StopSignal};
use stead_core::name::AppKey;
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
    pub(super) image: &'a Image,
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
fn name_servers() -> Vec<IpAddr> {
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

/// The id of the next Container in a Sandbox.
pub(super) fn container_id(sandbox: &Sandbox, revision: Revision, now: Time) -> ContainerId {
    // A Sandbox's Containers are prepared one after another, so the moment is unique in it.
    ContainerId(format!("{}.{revision}.{:x}", sandbox.id(), now.0))
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

/// The Instance's volumes, made where they are missing. A new one belongs to the user the
/// App runs as.
pub(super) fn volumes(shared: &Shared, order: Order<'_>) -> Result<Vec<VolumeMount>, UserError> {
    let Order { app, ordinal, release, image } = order;
    let mut mounts = Vec::new();
    for volume in &release.settings.volumes {
        let host = volumes_of(shared, app).join(volume.name.as_str()).join(ordinal.to_string());
        if !host.exists() {
            let user = user(release, image)?;
            make_volume(&host, &user).map_err(|error| {
                UserError::new(
                    disk_code(&error),
                    format!("volume {} cannot be made: {error}", volume.name.as_str()),
                    "look at the data folder's disk with `stead doctor`",
                )
            })?;
        }
        mounts.push(VolumeMount {
            host,
            mount: volume.mount.as_str().to_owned(),
            read_only: false,
        });
    }
    Ok(mounts)
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

fn user(release: &ReleaseSpec, image: &Image) -> Result<image::User, UserError> {
    let named = release.settings.user.as_ref().map(|user| user.as_str());
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
fn argv(release: &ReleaseSpec, config: &ImageConfig) -> Result<Vec<String>, UserError> {
    let settings = &release.settings;
    let (mut argv, image_args) = match settings.command.as_slice() {
        [] => (config.entrypoint.clone(), config.cmd.as_slice()),
        command => (command.to_vec(), [].as_slice()),
    };
    argv.extend_from_slice(match settings.args.as_slice() {
        [] => image_args,
        args => args,
    });
    if argv.is_empty() {
        return Err(UserError::new(
            Code::CannotStart,
            format!("image {} names no program to run", release.reference),
            "set `command` in the manifest",
        ));
    }
    Ok(argv)
}

/// The image's variables, then what stead adds, then the manifest's: the last one wins.
fn env(release: &ReleaseSpec, config: &ImageConfig, port: Option<u16>) -> Vec<(String, String)> {
    let mut env: BTreeMap<String, String> = BTreeMap::from([("PATH".into(), PATH.into())]);
    env.extend(config.env.iter().filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    }));
    if let Some(port) = port {
        env.entry("PORT".into()).or_insert_with(|| port.to_string());
    }
    let own = release.settings.env.iter();
    env.extend(own.map(|(name, value)| (name.as_str().to_owned(), value.clone())));
    env.into_iter().collect()
}

/// What a Container is asked for.
pub(super) fn container(
    shared: &Shared,
    order: Order<'_>,
    id: &ContainerId,
    labels: &ContainerLabels,
    volumes: Vec<VolumeMount>,
) -> Result<ContainerSpec, UserError> {
    let Order { app, ordinal, release, image } = order;
    let settings = &release.settings;
    let user = user(release, image)?;
    let files = settings.files.iter().filter_map(|(path, source)| match source {
        FileSource::Content { content } => Some(FileMount {
            path: path.as_str().to_owned(),
            content: content.clone().into_bytes(),
            mode: 0o444,
        }),
        // The API refuses these: whoever deploys reads the file.
        FileSource::Path(_) => None,
    });
    let cwd = settings.working_dir.as_ref().map(|dir| dir.as_str().to_owned());
    let cwd = cwd.unwrap_or_else(|| match image.config.working_dir.as_str() {
        "" => "/".to_owned(),
        dir => dir.to_owned(),
    });
    Ok(ContainerSpec {
        id: id.0.clone(),
        labels: labels.write(),
        slot: sandbox::Slot::A,
        layers: image.layers.clone(),
        argv: argv(release, &image.config)?,
        env: env(release, &image.config, labels.port),
        cwd,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        volumes,
        files: files.collect(),
        tmpfs: Vec::new(),
        resources: resources(release),
        read_only_root: settings.read_only_root,
        log: logs::folder(&shared.data_dir, app).join(logs::file_name(ordinal, id)),
    })
}

fn resources(release: &ReleaseSpec) -> Resources {
    let wanted = &release.settings.resources;
    Resources {
        cpu_millis: wanted.cpu.map(|cpu| cpu.millis()),
        memory_bytes: wanted.memory.map(|memory| memory.bytes()),
        pids: Some(wanted.pids),
    }
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
