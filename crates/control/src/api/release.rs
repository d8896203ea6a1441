//! New Releases: from a manifest to an image's digest, and into the store.

use std::collections::{BTreeMap, BTreeSet};

use stead_core::api::EnvRequest;
use stead_core::app::{App, Change, Release};
use stead_core::engine::EngineError;
use stead_core::error::{Code, UserError};
use stead_core::fleet::ImageSeen;
use stead_core::ids::{Digest, ReleaseNo};
use stead_core::manifest::{EnvName, FileSource, Manifest, parse};
use stead_core::name::AppKey;
use stead_core::rollout::RolloutKind;
use stead_core::time::Time;

use super::Api;
use super::change::Decision;
use super::problem::Problem;
use crate::clock;
use crate::secrets::Versions;
use crate::store::{Kind, StoreError, Write, release_key};

/// Releases that are kept per App, apart from those in use.
const KEEP: u32 = 50;

/// Who asks for a Release, when and why.
pub(super) struct Author {
    pub(super) by: String,
    pub(super) message: Option<String>,
    pub(super) asked: Time,
}

/// What the sources and the secrets of a manifest name now.
#[derive(Debug, Clone)]
pub(super) struct Images {
    main: Digest,
    /// By the sidecar's name.
    sidecars: BTreeMap<String, Digest>,
    /// Versions.
    pub(super) secrets: Versions,
}

impl Images {
    /// The same as an earlier Release has.
    pub(super) fn of(release: &Release) -> Self {
        Self {
            main: release.image.clone(),
            sidecars: release.sidecars.clone(),
            secrets: release.secrets.clone(),
        }
    }

    /// Whether all of them are among these.
    pub(super) fn all_in(&self, here: &BTreeSet<Digest>) -> bool {
        std::iter::once(&self.main).chain(self.sidecars.values()).all(|image| here.contains(image))
    }
}

/// Reads a manifest that came as JSON, strictly and whole: all problems are reported at once.
pub(super) fn read_manifest(json: &serde_json::Value) -> Result<Manifest, Problem> {
    let parsed = parse(&json.to_string(), "manifest");
    let manifest = parsed.map_err(|mut problems| {
        // Places in a text that nobody wrote help nobody.
        problems.list.iter_mut().for_each(|problem| problem.at = None);
        Problem::from(problems)
    })?;
    let beside = manifest.sidecars.iter().map(|sidecar| &sidecar.files);
    let mut files = std::iter::once(&manifest.files).chain(beside).flatten();
    let path = files.find(|(_, source)| matches!(source, FileSource::Path(_)));
    if let Some((target, _)) = path {
        return Err(UserError::new(
            Code::ManifestFileMissing,
            format!("the content of file {target} was not sent along"),
            "send {content: …} instead of a path; `stead deploy` does so",
        )
        .into());
    }
    Ok(manifest)
}

/// Applies a change of environment variables.
pub(super) fn changed_env(manifest: &Manifest, request: &EnvRequest) -> Result<Manifest, Problem> {
    let name = |text: &String| {
        text.parse::<EnvName>().map_err(|bad| {
            UserError::new(bad.code, format!("env {text:?}: {bad}"), "correct the name")
        })
    };
    let mut changed = manifest.clone();
    for (text, value) in &request.set {
        changed.env.insert(name(text)?, value.clone());
    }
    for text in &request.unset {
        changed.env.remove(&name(text)?);
    }
    // The whole is checked like any other manifest: a value may hold what none may hold.
    let json = serde_json::to_value(&changed).map_err(StoreError::Unwritable)?;
    read_manifest(&json)
}

impl Api {
    /// The decision that gives `app` another Release and rolls it out.
    pub(super) fn decide_release(
        &self,
        app: Option<App>,
        manifest: &Manifest,
        images: &Images,
        author: &Author,
        kind: RolloutKind,
        image_here: bool,
    ) -> Result<Decision, Problem> {
        let key = manifest.key();
        let mut app =
            app.unwrap_or_else(|| App::new(key.clone(), manifest.instances, author.asked));
        let number = app.last_release.next();
        let old = self.old_releases(&app)?;
        // Scaling by hand outlives a Release, unless its manifest says another number than
        // the one before did.
        if let Some(last) = self.release(&key, app.last_release)?
            && last.settings.instances != manifest.instances
        {
            app.instances = manifest.instances;
        }
        self.keeps_its_form(&app, manifest)?;
        if manifest.site.is_some() {
            app.instances = 0;
        }
        let release = Release {
            app: key.clone(),
            number,
            reference: manifest.source.clone(),
            image: images.main.clone(),
            sidecars: images.sidecars.clone(),
            settings: manifest.clone(),
            secrets: images.secrets.clone(),
            created: clock::now(),
            by: author.by.clone(),
            message: author.message.clone(),
        };
        let mut beside = self.vault.prune(&key, &old, &release)?;
        beside.extend(old.into_iter().map(|key| Write::clear(Kind::Release, key)));
        // A number is given once: a damaged record of that number is nobody's any more.
        beside.push(Write::set(release_key(&key, number), &release)?);
        let change = Change {
            kind,
            now: author.asked,
            by: author.by.clone(),
            message: author.message.clone(),
            image_here,
        };
        app.roll_out(number, manifest, change);
        let what = format!("deployed {} as release {number}", manifest.source);
        Ok(Decision { app, beside, release: Some(release), what })
    }

    /// Refuses to turn what runs into a site, or back: between the two there is no moment at
    /// which either could answer.
    fn keeps_its_form(&self, app: &App, manifest: &Manifest) -> Result<(), Problem> {
        let Some(last) = self.release(&app.key, app.last_release)? else { return Ok(()) };
        let (was, is) = match (last.settings.site.is_some(), manifest.site.is_some()) {
            (true, false) => ("a site, and the new release would run", "run"),
            (false, true) => ("no site, and the new release would be one", "be a site"),
            _ => return Ok(()),
        };
        let hint = format!(
            "deploy what shall {is} under another name, or delete app {} first",
            app.key.app
        );
        Err(UserError::new(Code::Conflict, format!("app {} is {was}", app.key), hint).into())
    }

    /// Refuses what can be asked of Instances alone.
    pub(super) fn has_instances(&self, app: &App) -> Result<(), Problem> {
        match self.release(&app.key, app.last_release)? {
            Some(last) if last.settings.site.is_some() => {
                let what = format!("app {} is a site: it has no instances", app.key);
                let hint = "the gateway serves it by itself; nothing needs to be scaled";
                Err(UserError::new(Code::Conflict, what, hint).into())
            }
            _ => Ok(()),
        }
    }

    /// Whether what was resolved is a site, where the manifest says so and the image is here;
    /// of one that is still to be fetched that is found out later.
    pub(super) async fn check_site(
        &self,
        manifest: &Manifest,
        images: &Images,
    ) -> Result<(), Problem> {
        if let Some(rules) = &manifest.site {
            self.engine.site(&images.main, rules).await?;
        }
        Ok(())
    }

    /// A Release; `None` if there is none or it is damaged.
    pub(super) fn release(
        &self,
        app: &AppKey,
        number: ReleaseNo,
    ) -> Result<Option<Release>, Problem> {
        match self.store.get::<Release>(&release_key(app, number)) {
            Ok(stored) => Ok(stored.map(|stored| stored.value)),
            Err(StoreError::Damaged(damaged)) => {
                tracing::error!(%damaged, "a release cannot be read");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A Release, or the error that there is none.
    pub(super) fn known_release(
        &self,
        app: &AppKey,
        number: ReleaseNo,
    ) -> Result<Release, Problem> {
        self.release(app, number)?.ok_or_else(|| {
            UserError::new(
                Code::NotFound,
                format!("app {app} has no release {number}"),
                format!("`stead releases {}` lists them", app.app),
            )
            .into()
        })
    }

    /// Resolves every source of a manifest to a digest, all at the same time.
    pub(super) async fn resolve(&self, manifest: &Manifest) -> Result<Images, Problem> {
        let sidecars = manifest.sidecars.iter().map(|sidecar| async {
            let digest = self.engine.resolve(&sidecar.source).await?;
            Ok((sidecar.name.to_string(), digest))
        });
        let (main, sidecars) = tokio::join!(
            self.engine.resolve(&manifest.source),
            futures_util::future::join_all(sidecars)
        );
        let sidecars: Result<_, EngineError> = sidecars.into_iter().collect();
        Ok(Images { main: main?, sidecars: sidecars?, secrets: Versions::new() })
    }

    /// Images that an App needs or may go back to, as far as they are on the machine. Usually
    /// known without asking: going back must not wait for a list of everything.
    pub(super) async fn images_seen(&self, app: &AppKey) -> BTreeSet<Digest> {
        match self.board.last(app) {
            Some(last) => {
                let images = last.seen.images.iter();
                let here = images.filter(|(_, seen)| **seen == ImageSeen::Present);
                here.map(|(image, _)| image.clone()).collect()
            }
            None => self.images_here().await,
        }
    }

    /// Images on the machine. When the engine cannot say, none: that costs time only.
    pub(super) async fn images_here(&self) -> BTreeSet<Digest> {
        match self.engine.images().await {
            Ok(images) => images.into_iter().map(|image| image.digest).collect(),
            Err(error) => {
                tracing::warn!(%error, "engine cannot list its images");
                BTreeSet::new()
            }
        }
    }

    /// Keys of Releases which are long past.
    fn old_releases(&self, app: &App) -> Result<Vec<String>, Problem> {
        let Some(limit) = app.last_release.0.checked_sub(KEEP) else { return Ok(Vec::new()) };
        let needed: Vec<String> =
            app.releases_needed().iter().map(|number| release_key(&app.key, *number)).collect();
        let keys = self.store.keys(Kind::Release, &format!("{}/", app.key))?;
        let end = release_key(&app.key, ReleaseNo(limit));
        let old = keys.into_iter().filter(|key| *key <= end && !needed.contains(key));
        Ok(old.collect())
    }
}
