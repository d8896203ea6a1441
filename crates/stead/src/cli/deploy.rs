//! `stead deploy`: from a manifest, a source and flags to a Release that runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use stead_core::api::package::PackageKind;
use stead_core::api::{Accepted, DeployRequest};
use stead_core::engine::ImageInfo;
use stead_core::error::{Code, UserError};
use stead_core::manifest::{FileSource, Http, Manifest, Port, Problems, parse};
use stead_core::name::AppName;

use super::config::Pair;
use super::follow::{self, Aim, Wait};
use super::rollout_flags::RolloutFlags;
use super::{Context, app_path, image, plan};
use crate::source::Source;
use crate::upload::Package;

/// The manifest that is read where nothing else is named.
const DEFAULT_MANIFEST: &str = "app.yaml";
/// Largest manifest and largest file inlined into one, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct Deploy {
    /// Image reference, OCI archive or layout, output of `docker save`, jar, war, program, folder
    /// with an index.html, Python or Node.js project
    source: Option<String>,
    /// Name of the App [default: the manifest's, or the last part of SOURCE]
    #[arg(long, value_name = "NAME")]
    app: Option<AppName>,
    /// The manifest [default: ./app.yaml, if there is one and no SOURCE]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Show what would change, and change nothing
    #[arg(long)]
    plan: bool,
    /// Number of Instances
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    instances: Option<u32>,
    /// Set an environment variable; may be given more than once
    #[arg(short, long, value_name = "K=V")]
    env: Vec<Pair>,
    /// Port the App listens on for HTTP
    #[arg(short, long, value_name = "N")]
    port: Option<Port>,
    /// Why, for the record
    #[arg(short, long)]
    message: Option<String>,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    rollout: RolloutFlags,
}

pub(super) async fn run(context: &Context, args: Deploy) -> Result<()> {
    let (mut manifest, source) = intent(context, &args)?;
    match source {
        Source::Reference(_) => {}
        Source::Package(path, _) => {
            let client = &context.client;
            let package = Package::pack(client, context.output, &path, &manifest).await?;
            if args.plan {
                return plan::of_package(context, &package, manifest).await;
            }
            let image = package.send(client, context.output).await?;
            manifest.source = with_digest(&image, &manifest.app);
        }
        // Also for a plan: which image it is says what has to change.
        source @ (Source::Archive(_) | Source::Layout(_)) => {
            context.output.say("sending the image")?;
            let image = image::import(context, &source, None).await?;
            manifest.source = with_digest(&image, &manifest.app);
        }
    }
    if args.plan {
        return plan::show(context, manifest).await;
    }
    let path = format!("{}/deploy", app_path(&manifest.key()));
    let request = DeployRequest { manifest, message: args.message };
    let accepted: Accepted = context.client.post(&path, &request).await?;
    follow::rollout(context, accepted, &args.wait, Aim::Forward).await
}

/// The reference of an image that the platform has. With its digest, so that no registry is
/// asked for it.
pub(super) fn with_digest(image: &ImageInfo, app: &AppName) -> String {
    let name = image.names.first().map_or_else(|| format!("imported/{app}"), Clone::clone);
    let name = name.split('@').next().unwrap_or_default();
    format!("{name}@{}", image.digest)
}

/// The manifest with everything the command line says, and what its source is.
fn intent(context: &Context, args: &Deploy) -> Result<(Manifest, Source)> {
    let file = match (&args.file, &args.source) {
        (Some(file), _) => Some(file.clone()),
        (None, None) if Path::new(DEFAULT_MANIFEST).is_file() => Some(DEFAULT_MANIFEST.into()),
        (None, None) => {
            return Err(UserError::new(
                Code::BadRequest,
                "there is nothing to deploy: no SOURCE, no -f, and no app.yaml here",
                "`stead deploy IMAGE --app NAME`, or write an app.yaml",
            )
            .into());
        }
        (None, Some(_)) => None,
    };
    let folder = file.as_deref().and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
    let mut manifest = match (&file, &args.source) {
        (Some(file), _) => read(file, &folder)?,
        (None, source) => {
            let source = source.as_deref().unwrap_or_default();
            let app = match &args.app {
                Some(app) => app.clone(),
                None => name_of(source)?,
            };
            Manifest::minimal(app, source)
        }
    };
    let base = match &args.source {
        Some(source) => {
            manifest.source = source.clone();
            PathBuf::new()
        }
        None => folder,
    };
    overlay(&mut manifest, context, args);
    let source = Source::find(&manifest.source, &base)?;
    if let Source::Reference(text) = &source
        && base.join(text).is_dir()
    {
        context.output.say(&format!("{text} is taken for an image; the folder is ./{text}"))?;
    }
    if matches!(source, Source::Package(_, PackageKind::Site)) {
        manifest.site.get_or_insert_default();
    }
    // What flags and manifest ask for together; each alone was checked when it was read.
    let list = manifest.problems();
    if !list.is_empty() {
        return Err(Problems { origin: "deploy".to_owned(), list }.into());
    }
    Ok((manifest, source))
}

fn overlay(manifest: &mut Manifest, context: &Context, args: &Deploy) {
    if let Some(app) = &args.app {
        manifest.app = app.clone();
    }
    if let Some(namespace) = &context.namespace {
        manifest.namespace = namespace.clone();
    }
    args.rollout.lie_over(&mut manifest.rollout);
    if let Some(instances) = args.instances {
        manifest.instances = instances;
    }
    if let Some(port) = args.port {
        manifest.http.get_or_insert_with(Http::default).port = Some(port);
    }
    for Pair { name, value } in &args.env {
        manifest.env.insert(name.clone(), value.clone());
    }
}

/// Reads a manifest and the files it names.
fn read(file: &Path, folder: &Path) -> Result<Manifest> {
    let text = small_text(file, "the manifest")?;
    let mut manifest = parse(&text, &file.display().to_string())?;
    let beside = manifest.sidecars.iter_mut().map(|sidecar| &mut sidecar.files);
    for (target, source) in std::iter::once(&mut manifest.files).chain(beside).flatten() {
        if let FileSource::Path(path) = source {
            let content = small_text(&folder.join(path), &format!("files.{target}"))?;
            *source = FileSource::Content { content };
        }
    }
    Ok(manifest)
}

fn small_text(path: &Path, what: &str) -> Result<String, UserError> {
    let shown = path.display();
    let size = fs::metadata(path).map(|meta| meta.len()).unwrap_or(0);
    if size > LARGEST_FILE {
        return Err(UserError::new(
            Code::BadRequest,
            format!("{what}: {shown} has {size} bytes, and at most 1 MiB is taken"),
            "put large files into the image or on a volume",
        ));
    }
    fs::read_to_string(path).map_err(|error| {
        UserError::new(
            Code::BadRequest,
            format!("{what}: {shown} cannot be read: {error}"),
            "check the path; it is relative to the manifest and must hold UTF-8 text",
        )
    })
}

/// The App's name where nobody gave one: the last part of the source, without tag or ending, and
/// for a package without its version.
fn name_of(source: &str) -> Result<AppName, UserError> {
    let path = fs::canonicalize(source).ok();
    let last = match path.as_deref().and_then(Path::file_name) {
        Some(name) => name.to_string_lossy().into_owned(),
        None => {
            let last = source.split('@').next().unwrap_or_default().trim_end_matches('/');
            last.rsplit('/').next().unwrap_or_default().to_owned()
        }
    };
    let stem = last.split([':', '.']).next().unwrap_or_default();
    let jar = [".jar", ".war"].iter().any(|ending| last.ends_with(ending));
    // As Maven and Gradle write it: pets-1.2-SNAPSHOT.jar.
    let version = stem
        .match_indices('-')
        .find(|(at, _)| jar && stem[at + 1..].starts_with(|letter: char| letter.is_ascii_digit()));
    let stem = version.map_or(stem, |(at, _)| &stem[..at]);
    AppName::new(stem.to_ascii_lowercase().replace('_', "-")).map_err(|_| {
        UserError::new(
            Code::BadRequest,
            format!("no name for the app can be made from {source:?}"),
            "give one with --app NAME",
        )
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use stead_core::manifest::Strategy;

    use super::*;
    use crate::client::{Client, Endpoint};
    use crate::output::{Format, Output};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        deploy: Deploy,
    }

    fn context() -> Context {
        Context {
            client: Client::new(Endpoint::Unix("/nonexistent".into()), None),
            output: Output { format: Format::Table },
            namespace: Some("team".parse().unwrap()),
        }
    }

    fn intended(line: &[&str]) -> (Manifest, Source) {
        let args = Line::parse_from([&["deploy"], line].concat()).deploy;
        intent(&context(), &args).unwrap()
    }

    #[test]
    fn an_app_is_called_like_its_image() {
        for (source, name) in [
            ("nginx", "nginx"),
            ("127.0.0.1:5000/team/Web_App:1.2", "web-app"),
            ("registry.example/web@sha256:00", "web"),
            ("./out/hello.tar.gz", "hello"),
            ("registry.example/web-2", "web-2"),
            ("target/pet-store-1.2.3-SNAPSHOT.jar", "pet-store"),
            ("v2.war", "v2"),
            ("/usr/share/", "share"),
            ("/usr/share/../bin", "bin"),
        ] {
            assert_eq!(name_of(source).unwrap().as_str(), name);
        }
        assert_eq!(name_of("127.0.0.1:5000/1:2").unwrap_err().code, Code::BadRequest);
    }

    #[test]
    fn flags_lie_over_the_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yaml");
        fs::write(dir.path().join("c.toml"), "a = 1\n").unwrap();
        let text = "app: web\nsource: web:1\nenv: {A: x, B: y}\nfiles: {/etc/c.toml: ./c.toml}\n\
                    sidecars: [{name: s, source: s, files: {/etc/s.toml: ./c.toml}}]\n";
        fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();
        let (manifest, source) = intended(&[
            "web:2",
            "-f",
            file,
            "--env",
            "B=z=1",
            "--port",
            "81",
            "--instances",
            "3",
            "--strategy",
            "recreate",
            "--app",
            "other",
        ]);
        assert_eq!(source, Source::Reference("web:2".into()));
        assert_eq!(manifest.key().to_string(), "team/other");
        assert_eq!((manifest.source.as_str(), manifest.instances), ("web:2", 3));
        assert_eq!(manifest.http_port(&[]), Some(81));
        assert_eq!(manifest.rollout.strategy(), Strategy::Recreate);
        let env: Vec<_> = manifest.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["A=x", "B=z=1"]);
        for files in [&manifest.files, &manifest.sidecars[0].files] {
            let content = files.values().next().unwrap();
            assert_eq!(*content, FileSource::Content { content: "a = 1\n".into() });
        }
    }

    #[test]
    fn a_folder_with_a_page_is_a_site() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("index.html"), "<p>").unwrap();
        let (manifest, source) = intended(&[dir.path().to_str().unwrap(), "--app", "pages"]);
        assert!(manifest.site.is_some());
        assert_eq!(source, Source::Package(dir.path().to_owned(), PackageKind::Site));
    }

    #[test]
    fn what_flags_and_manifest_ask_for_must_go_together() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yaml");
        let text = "app: web\nsource: web:1\nvolumes: [{name: data, mount: /data}]\n";
        fs::write(&file, text).unwrap();
        let line = ["deploy", "-f", file.to_str().unwrap(), "--strategy", "handover"];
        let error = intent(&context(), &Line::parse_from(line).deploy).unwrap_err();
        let problems = error.downcast_ref::<Problems>().unwrap();
        assert_eq!(problems.list[0].code, Code::ManifestConflict);
        assert_eq!(problems.list[0].path, "rollout.strategy");
    }
}
