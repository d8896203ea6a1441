//! `stead image base …`: what packages run on.
//!
//! Tomcat is fetched by whoever types the command, with their own Maven: the platform needs
//! neither Maven nor a way to the internet for it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use http::Method;
use stead_core::api::package::{BaseName, BaseSource, BaseView, PackageKind, RuntimeName};
use stead_core::error::{Code, UserError};
use stead_engine_node::package::{Pack, base};

use super::Context;
use crate::client;
use crate::output::{Format, Table, human};
use crate::upload::Package;

/// The oldest Java that Tomcat is started on: it is told to open packages, which Java 8 has not.
const OLDEST_JAVA: u32 = 11;

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("from").multiple(false))]
#[command(after_help = "Without a flag: lists the bases, and what the machine could make into \
    one. Nothing is downloaded unless it is asked for here:\n  \
    stead image base --from-host java:17\n  \
    stead image base java:17 --use registry.example/jre:17\n  \
    stead image base tomcat:10.1 --from-maven 10.1.34 --java 17\n\n\
    A base that the machine can make is also made when a package first needs it.")]
pub(super) struct Base {
    /// The base: java:17, python:3.11, node:20, tomcat:10.1
    #[arg(value_name = "NAME:VERSION", requires = "from")]
    name: Option<BaseName>,
    /// Make it of what is installed on the platform's machine; all versions if none is named
    #[arg(long, value_name = "NAME[:VERSION]", group = "from", conflicts_with = "name")]
    from_host: Option<Wanted>,
    /// The folder that it is installed in, such as a JDK's home, or /usr for Python
    #[arg(long, value_name = "DIR", requires = "from_host")]
    path: Option<PathBuf>,
    /// Take an image as it
    #[arg(long = "use", value_name = "REFERENCE", group = "from", requires = "name")]
    reference: Option<String>,
    /// Fetch this version of Tomcat with Maven
    #[arg(long, value_name = "VERSION", group = "from", requires_all = ["name", "java"])]
    from_maven: Option<String>,
    /// The version of the base of Java below Tomcat
    #[arg(long, value_name = "VERSION", requires = "from_maven")]
    java: Option<String>,
    /// Forget a base; what was composed on it stays
    #[arg(long, value_name = "NAME:VERSION", group = "from", conflicts_with = "name")]
    remove: Option<BaseName>,
}

/// A runtime, of one version or of all.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    One(BaseName),
    All(RuntimeName),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match RuntimeName::ALL.into_iter().find(|runtime| runtime.word() == text) {
            Some(runtime) => Ok(Self::All(runtime)),
            None => text.parse().map(Self::One),
        }
    }
}

pub(super) async fn run(context: &Context, args: Base) -> Result<()> {
    let Base { name, from_host, path, reference, from_maven, java, remove } = args;
    if let Some(name) = remove {
        context.client.act(Method::DELETE, &path_of(&name)).await?;
        return context.output.say(&format!("{name} is forgotten"));
    }
    if let Some(wanted) = from_host {
        return make_of_host(context, wanted, path).await;
    }
    let source = match (&name, reference, from_maven, java) {
        (Some(_), Some(reference), ..) => BaseSource::Reference(reference),
        (Some(name), None, Some(version), Some(java)) => {
            let java = BaseName::new(RuntimeName::Java, &java)
                .ok_or_else(|| bad(format!("{java:?} is no version of Java"), "such as 17"))?;
            tomcat(context, name, version, java).await?
        }
        _ => {
            let bases: Vec<BaseView> = context.client.get("/bases").await?;
            return context.output.show(&bases, |bases| table(bases));
        }
    };
    let name = name.expect("clap asks for the name with these flags");
    set(context, vec![(name, source)]).await
}

async fn make_of_host(context: &Context, wanted: Wanted, path: Option<PathBuf>) -> Result<()> {
    let path = path.map(std::path::absolute).transpose()?;
    let path = path.map(|path| path.to_string_lossy().into_owned());
    let names = match (wanted, &path) {
        (Wanted::One(name), _) => vec![name],
        (Wanted::All(runtime), Some(_)) => {
            let hint = format!("--from-host {}:VERSION", runtime.word());
            return Err(bad("one folder holds one version: say which", &hint).into());
        }
        (Wanted::All(runtime), None) => offered(context, runtime).await?,
    };
    let source = |name| (name, BaseSource::Host { path: path.clone() });
    set(context, names.into_iter().map(source).collect()).await
}

/// The versions of a runtime that the platform's machine has.
async fn offered(context: &Context, runtime: RuntimeName) -> Result<Vec<BaseName>> {
    let bases: Vec<BaseView> = context.client.get("/bases").await?;
    let from_host = |base: &BaseView| matches!(base.source, None | Some(BaseSource::Host { .. }));
    let offered = bases.into_iter().filter(|base| base.base.runtime == runtime && from_host(base));
    let offered: Vec<BaseName> = offered.map(|base| base.base).collect();
    if offered.is_empty() {
        let message = format!("the platform's machine has no {}", runtime.word());
        let hint = format!("get it there, such as with `{}`", base::how_to_get(&usual(runtime)));
        return Err(UserError::new(Code::BaseMissing, message, hint).into());
    }
    Ok(offered)
}

/// The version to name where nobody named one.
pub(crate) fn usual(runtime: RuntimeName) -> BaseName {
    let version = match runtime {
        RuntimeName::Java => "17",
        RuntimeName::Tomcat => "10.1",
        RuntimeName::Python => "3.11",
        RuntimeName::Node => "20",
    };
    BaseName::new(runtime, version).expect("each is digits and dots")
}

/// Sets bases one after the other, and shows what they are then.
async fn set(context: &Context, wanted: Vec<(BaseName, BaseSource)>) -> Result<()> {
    let mut made: Vec<BaseView> = Vec::new();
    for (name, source) in wanted {
        tell(context, &format!("making {name}"));
        made.push(context.client.put(&path_of(&name), &source).await?);
    }
    context.output.show(&made, |made| {
        let mut text = table(made);
        for (base, note) in made.iter().flat_map(|b| b.notes.iter().map(move |note| (b, note))) {
            text.push_str(&format!("\nnote on {}: {}", base.base, human::plain(note)));
        }
        text
    })
}

fn path_of(name: &BaseName) -> String {
    format!("/bases/{}", client::escaped(&name.to_string()))
}

fn tell(context: &Context, what: &str) {
    if context.output.format == Format::Table {
        eprintln!("{what}");
    }
}

fn bad(message: impl Into<String>, hint: &str) -> UserError {
    UserError::new(Code::BadRequest, message, hint)
}

/// Fetches Tomcat, has its image composed on Java, and says where it came from.
async fn tomcat(
    context: &Context,
    name: &BaseName,
    version: String,
    java: BaseName,
) -> Result<BaseSource> {
    let named = |part: &str| version.strip_prefix(part).is_some_and(|rest| rest.starts_with('.'));
    if name.runtime != RuntimeName::Tomcat || !(named(name.version()) || version == name.version())
    {
        let message = format!("Tomcat {version} is not {name}");
        return Err(bad(message, "such as: tomcat:10.1 --from-maven 10.1.34").into());
    }
    if java.numbers()[0] < OLDEST_JAVA {
        let message = format!("Tomcat is not started on {java}");
        return Err(bad(message, "name Java 11 or newer").into());
    }
    // Nobody else may write there: Maven runs what a folder's `.mvn` names.
    let folder = tempfile::Builder::new().prefix("stead-tomcat-").tempdir()?;
    let archive = match kept(&version) {
        Some(archive) => archive,
        None => {
            tell(context, &format!("fetching Tomcat {version} with mvn"));
            fetch(&version, folder.path())?
        }
    };
    let read = base::read_tomcat(&archive, &version);
    // What it is made of is in memory now.
    drop(folder);
    let tomcat = read.map_err(UserError::from)?;
    let pack = Pack {
        kind: PackageKind::War,
        base: Some(java.clone()),
        layers: vec![tomcat.layer],
        config: tomcat.config,
        notes: Vec::new(),
    };
    let called = format!("localhost/stead/tomcat:{}", name.version());
    let image = Package::of(called, pack).await?.send(&context.client, context.output).await?;
    Ok(BaseSource::Maven { version, java, image: image.digest })
}

/// Tomcat's archive, if Maven fetched it before.
fn kept(version: &str) -> Option<PathBuf> {
    let repository = Path::new(&std::env::var_os("HOME")?).join(".m2/repository");
    let folder = repository.join("org/apache/tomcat/tomcat").join(version);
    Some(folder.join(format!("tomcat-{version}.tar.gz"))).filter(|path| path.is_file())
}

/// Has Maven fetch Tomcat's archive, as the person's own settings say.
fn fetch(version: &str, folder: &Path) -> Result<PathBuf> {
    let ran = Command::new("mvn")
        // Not where a project would have its say.
        .current_dir(folder)
        .args(["-q", "-B", "dependency:copy"])
        .arg(format!("-Dartifact=org.apache.tomcat:tomcat:{version}:tar.gz"))
        .arg(format!("-DoutputDirectory={}", folder.display()))
        .output();
    let failed = |reason: String, hint: &str| UserError::new(Code::PackageTool, reason, hint);
    let output = ran.map_err(|error| {
        failed(format!("mvn cannot be run: {error}"), "install Maven: apt-get install maven")
    })?;
    let archive = folder.join(format!("tomcat-{version}.tar.gz"));
    if output.status.success() && archive.is_file() {
        return Ok(archive);
    }
    std::io::stderr().write_all(&output.stdout)?;
    std::io::stderr().write_all(&output.stderr)?;
    let reason = format!("mvn could not fetch Tomcat {version}");
    let hint = "it says why above; https://tomcat.apache.org lists versions";
    Err(failed(reason, hint).into())
}

fn table(bases: &[BaseView]) -> String {
    let mut table = Table::new(
        ["BASE", "VERSION", "FROM", "IMAGE", "SIZE"],
        "no bases, and none installed to make one of",
    );
    for base in bases {
        let from = match &base.source {
            None => format!("{}, made when needed", base.notes.join(", ")),
            Some(BaseSource::Reference(reference)) => reference.clone(),
            Some(BaseSource::Host { path: None }) => "this machine".into(),
            Some(BaseSource::Host { path: Some(path) }) => path.clone(),
            Some(BaseSource::Maven { version, java, .. }) => {
                format!("Maven, Tomcat {version} on {java}")
            }
        };
        let image = match (&base.error, &base.image) {
            (Some(error), _) => error.message.clone(),
            (None, Some(image)) => image.short().to_owned(),
            (None, None) => "-".into(),
        };
        let size = if base.size > 0 { human::bytes(base.size) } else { "-".into() };
        let exact = base.exact.clone().unwrap_or_else(|| "-".into());
        table.row([base.base.to_string(), exact, from, image, size]);
    }
    table.finish()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        base: Base,
    }

    #[test]
    fn the_ways_to_a_base_exclude_each_other() {
        let parse = |line: &str| {
            Command::try_parse_from(std::iter::once("x").chain(line.split_whitespace()))
        };
        for right in [
            "",
            "--from-host java",
            "--from-host java:17 --path /opt/jdk",
            "java:17 --use registry.example/jre:17",
            "tomcat:10.1 --from-maven 10.1.34 --java 17",
            "--remove java:17",
        ] {
            assert!(parse(right).is_ok(), "{right}: {:?}", parse(right).unwrap_err().to_string());
        }
        for wrong in [
            "java:17",
            "java --use x",
            "--from-host perl",
            "--path /opt/jdk",
            "java:17 --from-host java:17",
            "java:17 --use x --from-maven 10",
            "tomcat:10.1 --from-maven 10.1.34",
            "--remove java:17 --from-host java",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
