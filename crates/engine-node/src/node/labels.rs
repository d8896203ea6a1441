//! What is written on Sandboxes and Containers so that a later `serve` knows them again.

use std::collections::BTreeMap;

use stead_core::fleet::{ContainerSeen, HookSeen, Part, Revision};
use stead_core::ids::{Digest, Ordinal};
use stead_core::name::AppKey;

use super::model::Kept;

pub(super) type Labels = BTreeMap<String, String>;

const APP: &str = "app";
const ORDINAL: &str = "ordinal";
const SHAPE: &str = "shape";
const RELEASE: &str = "release";
const RUN: &str = "run";
const SINCE: &str = "since";
const BORN: &str = "born";
const SIDECAR: &str = "sidecar";
const PORT: &str = "port";
const IMAGE: &str = "image";
const HOOKS: &str = "hooks";
const POST_START: &str = "post-start";

/// What a Sandbox was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SandboxLabels {
    pub(super) app: AppKey,
    pub(super) ordinal: Ordinal,
    pub(super) shape: String,
    pub(super) revision: Revision,
}

impl SandboxLabels {
    pub(super) fn write(&self) -> Labels {
        let mut labels = write_revision(self.revision);
        labels.insert(APP.into(), self.app.to_string());
        labels.insert(ORDINAL.into(), self.ordinal.to_string());
        labels.insert(SHAPE.into(), self.shape.clone());
        labels
    }

    /// `None`: these are not ours, or were written by something newer.
    pub(super) fn read(labels: &Labels) -> Option<Self> {
        Some(Self {
            app: labels.get(APP)?.parse().ok()?,
            ordinal: labels.get(ORDINAL)?.parse().ok()?,
            shape: labels.get(SHAPE)?.clone(),
            revision: read_revision(labels)?,
        })
    }
}

/// What a Container is, and what was done for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerLabels {
    pub(super) part: Part,
    pub(super) revision: Revision,
    /// The run it was prepared for.
    pub(super) born: u32,
    pub(super) port: Option<u16>,
    pub(super) image: Digest,
    pub(super) hooks: Vec<HookSeen>,
    /// Whether what is done after its start has been done.
    pub(super) post_started: bool,
}

impl ContainerLabels {
    /// Those of a Container as it is now.
    pub(super) fn of(container: &ContainerSeen, kept: &Kept) -> Self {
        Self {
            part: container.part.clone(),
            revision: container.revision,
            born: container.born,
            port: kept.port,
            image: kept.image.clone(),
            hooks: container.hooks.clone(),
            post_started: kept.post_started,
        }
    }

    pub(super) fn write(&self) -> Labels {
        let mut labels = write_revision(self.revision);
        labels.insert(BORN.into(), self.born.to_string());
        labels.insert(IMAGE.into(), self.image.to_string());
        if let Part::Sidecar(name) = &self.part {
            labels.insert(SIDECAR.into(), name.clone());
        }
        if let Some(port) = self.port {
            labels.insert(PORT.into(), port.to_string());
        }
        if !self.hooks.is_empty() {
            let hooks = serde_json::to_string(&self.hooks).expect("hooks are plain data");
            labels.insert(HOOKS.into(), hooks);
        }
        if self.post_started {
            labels.insert(POST_START.into(), "done".into());
        }
        labels
    }

    pub(super) fn read(labels: &Labels) -> Option<Self> {
        let revision = read_revision(labels)?;
        let born = labels.get(BORN).map(|born| born.parse()).transpose().ok()?;
        let hooks = labels.get(HOOKS).map(|hooks| serde_json::from_str(hooks)).transpose().ok()?;
        Some(Self {
            part: labels.get(SIDECAR).map_or(Part::Main, |name| Part::Sidecar(name.clone())),
            revision,
            born: born.unwrap_or(revision.run),
            port: labels.get(PORT).map(|port| port.parse()).transpose().ok()?,
            image: labels.get(IMAGE)?.parse().ok()?,
            hooks: hooks.unwrap_or_default(),
            post_started: labels.contains_key(POST_START),
        })
    }
}

fn write_revision(revision: Revision) -> Labels {
    Labels::from([
        (RELEASE.into(), revision.release.to_string()),
        (RUN.into(), revision.run.to_string()),
        (SINCE.into(), revision.since.to_string()),
    ])
}

fn read_revision(labels: &Labels) -> Option<Revision> {
    let release = labels.get(RELEASE)?.parse().ok()?;
    let since = labels.get(SINCE).map(|since| since.parse()).transpose().ok()?.unwrap_or(0);
    Some(Revision { release, run: labels.get(RUN)?.parse().ok()?, since })
}

#[cfg(test)]
mod tests {
    use stead_core::fleet::HookName;
    use stead_core::ids::ReleaseNo;

    use super::*;

    #[test]
    fn labels_read_what_they_write() {
        let revision = Revision { release: ReleaseNo(3), run: 7, since: 5 };
        let sandbox = SandboxLabels {
            app: "default/web".parse().unwrap(),
            ordinal: Ordinal(2),
            shape: "[]".into(),
            revision,
        };
        assert_eq!(SandboxLabels::read(&sandbox.write()), Some(sandbox));
        let plain = ContainerLabels {
            part: Part::Main,
            revision,
            born: 7,
            port: None,
            image: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            hooks: Vec::new(),
            post_started: false,
        };
        let full = ContainerLabels {
            part: Part::Sidecar("proxy".into()),
            born: 4,
            port: Some(80),
            hooks: vec![HookSeen { hook: HookName::AfterUpdate, run: 4 }],
            post_started: true,
            ..plain.clone()
        };
        for container in [&plain, &full] {
            assert_eq!(ContainerLabels::read(&container.write()).as_ref(), Some(container));
        }
        assert_eq!(SandboxLabels::read(&Labels::new()), None);
        // As an earlier version wrote it.
        let mut early = plain.write();
        early.remove(BORN);
        assert_eq!(ContainerLabels::read(&early), Some(plain));
    }
}
