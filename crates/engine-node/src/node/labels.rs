//! What is written on Sandboxes and Containers so that a later `serve` knows them again.

use std::collections::BTreeMap;

use stead_core::fleet::Revision;
use stead_core::ids::{Digest, Ordinal};
use stead_core::name::AppKey;

pub(super) type Labels = BTreeMap<String, String>;

const APP: &str = "app";
const ORDINAL: &str = "ordinal";
const SHAPE: &str = "shape";
const RELEASE: &str = "release";
const RUN: &str = "run";
const SINCE: &str = "since";
const PORT: &str = "port";
const IMAGE: &str = "image";

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

/// What a Container was prepared for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerLabels {
    pub(super) revision: Revision,
    pub(super) port: Option<u16>,
    pub(super) image: Digest,
}

impl ContainerLabels {
    pub(super) fn write(&self) -> Labels {
        let mut labels = write_revision(self.revision);
        if let Some(port) = self.port {
            labels.insert(PORT.into(), port.to_string());
        }
        labels.insert(IMAGE.into(), self.image.to_string());
        labels
    }

    pub(super) fn read(labels: &Labels) -> Option<Self> {
        let port = labels.get(PORT).map(|port| port.parse()).transpose().ok()?;
        let image = labels.get(IMAGE)?.parse().ok()?;
        Some(Self { revision: read_revision(labels)?, port, image })
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
        for port in [None, Some(80)] {
            let image = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
            let container = ContainerLabels { revision, port, image };
            assert_eq!(ContainerLabels::read(&container.write()), Some(container));
        }
        assert_eq!(SandboxLabels::read(&Labels::new()), None);
    }
}
