//! What packing gives, and what it may be told.
//!
//! Knows nothing of files: the kinds beside it do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use stead_core::api::package::{BaseName, PackageKind, PackedConfig, RuntimeName};

use super::error::PackError;
use super::tar::Layer;

/// A Package, cut into layers.
#[derive(Debug)]
pub struct Pack {
    /// What it is.
    pub kind: PackageKind,
    /// What lies below the layers; `None` for what brings everything itself.
    pub base: Option<BaseName>,
    /// The one that changes least first.
    pub layers: Vec<Layer>,
    /// How the image is run.
    pub config: PackedConfig,
    /// What a person should know: what was chosen for them, and why.
    pub notes: Vec<String>,
}

/// What packing may be told.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// The runtime that the manifest names.
    pub runtime: Option<BaseName>,
    /// The manifest says that it is a site.
    pub site: bool,
    /// Bases that the platform has, or can make at once.
    pub known: Vec<BaseName>,
    /// The port that the manifest names. What can be told its port gets this one, or
    /// [`USUAL_PORT`].
    pub port: Option<u16>,
    /// Where dependencies are kept from one packing to the next.
    pub cache: PathBuf,
    /// Told what is being done where it may take long, such as `installing dependencies`.
    pub progress: fn(&str),
}

/// The port an App listens on where nobody says otherwise.
pub const USUAL_PORT: u16 = 8080;

/// What a Package asks of its base.
pub(super) struct Needs<'a> {
    pub(super) runtime: RuntimeName,
    /// The version to name where nothing fits: the first to get.
    pub(super) usual: &'a str,
    /// Whether a version will do; its parts as numbers.
    pub(super) fits: &'a dyn Fn(&[u32]) -> bool,
    /// What it needs and why, such as `its classes need Java 17`.
    pub(super) because: &'a str,
}

impl PackOptions {
    /// Whether the manifest names this runtime.
    pub(super) fn runs_on(&self, runtime: RuntimeName) -> bool {
        self.runtime.as_ref().is_some_and(|wanted| wanted.runtime == runtime)
    }

    /// The port that the App is told to listen on.
    pub(super) fn told_port(&self) -> u16 {
        self.port.unwrap_or(USUAL_PORT)
    }

    /// How a program in `folder` is run that looks for its port in `PORT`, which `env` may set
    /// otherwise.
    pub(super) fn config(
        &self,
        entrypoint: Vec<String>,
        folder: &str,
        mut env: BTreeMap<String, String>,
    ) -> PackedConfig {
        let port = self.told_port();
        env.entry("PORT".to_owned()).or_insert_with(|| port.to_string());
        PackedConfig {
            entrypoint,
            env,
            working_dir: folder.to_owned(),
            port: Some(port),
            ..PackedConfig::default()
        }
    }

    /// The base to run `path` on: the one that the manifest names, else the lowest known one
    /// that fits, else the usual one.
    pub(super) fn base(&self, path: &Path, needs: &Needs<'_>) -> Result<BaseName, PackError> {
        let name = needs.runtime.word();
        let usual = BaseName::new(needs.runtime, needs.usual)
            .expect("callers name versions of digits and dots");
        if let Some(wanted) = &self.runtime {
            let hint = format!("set `runtime: {{{name}: {}}}` or leave it out", needs.usual);
            if wanted.runtime != needs.runtime {
                let reason = format!("the manifest says {wanted}, and it runs on {name}");
                return Err(PackError::unfit(path, reason, hint));
            }
            if !(needs.fits)(&wanted.numbers()) {
                let reason = format!("the manifest says {wanted}, and {}", needs.because);
                return Err(PackError::unfit(path, reason, hint));
            }
            return Ok(wanted.clone());
        }
        let fitting = self
            .known
            .iter()
            .filter(|known| known.runtime == needs.runtime && (needs.fits)(&known.numbers()));
        Ok(fitting.min_by_key(|known| known.numbers()).cloned().unwrap_or(usual))
    }
}

#[cfg(test)]
impl Pack {
    /// Of its layers.
    pub(super) fn digests(&self) -> Vec<stead_core::ids::Digest> {
        self.layers.iter().map(|layer| layer.packed().unwrap().diff_id).collect()
    }
}

#[cfg(test)]
impl PackOptions {
    /// Of a platform that knows these bases.
    pub(super) fn of_test(known: &[&str]) -> Self {
        Self {
            runtime: None,
            site: false,
            known: known.iter().map(|base| base.parse().unwrap()).collect(),
            port: None,
            cache: std::env::temp_dir(),
            progress: |_| {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(options: &PackOptions) -> Result<String, PackError> {
        let needs = Needs {
            runtime: RuntimeName::Java,
            usual: "17",
            fits: &|version| version[0] >= 17,
            because: "its classes need Java 17",
        };
        options.base(Path::new("app.jar"), &needs).map(|base| base.to_string())
    }

    #[test]
    fn the_lowest_base_that_fits_is_taken() {
        let options =
            PackOptions::of_test(&["java:25", "tomcat:18", "java:11", "java:21", "java:100"]);
        assert_eq!(choose(&options).unwrap(), "java:21");
        assert_eq!(choose(&PackOptions::of_test(&["java:11"])).unwrap(), "java:17");
    }

    #[test]
    fn the_manifest_decides_unless_it_cannot_run() {
        let mut options = PackOptions::of_test(&["java:21"]);
        options.runtime = Some("java:25".parse().unwrap());
        assert_eq!(choose(&options).unwrap(), "java:25");
        for wrong in ["java:11", "python:3.11"] {
            options.runtime = Some(wrong.parse().unwrap());
            let error = choose(&options).unwrap_err();
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }
}
