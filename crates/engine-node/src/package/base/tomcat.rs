//! Apache Tomcat from its own archive, as a layer on a base of Java.
//!
//! Promises: only Tomcat's server is taken, none of its applications, documents and scripts;
//! it serves one application on port 8080, writes to standard output, listens for no command
//! to shut down and needs no right to write but in folders of its own. The program is `java`
//! itself, so that SIGTERM reaches it. Does not know where the archive came from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use flate2::read::GzDecoder;
use stead_core::api::package::PackedConfig;

use super::super::error::PackError;
use super::super::pack::USUAL_PORT;
use super::super::system::NONROOT;
use super::super::tar::{Content, Layer, Node, Tree};

/// Where it lies in the image. A war's files go to `webapps/ROOT` below it.
const HOME: &str = "/opt/tomcat";
/// Most bytes of the archive, unpacked; Tomcat 11 has 25 MB, with what is left out.
const MAX_BYTES: u64 = 128 << 20;
/// Files of its `conf` that are taken: the others are for what ours leaves out.
const CONF: [&str; 3] = ["catalina.properties", "context.xml", "web.xml"];
/// Folders that Tomcat writes to.
const WRITTEN: [&str; 3] = ["logs", "temp", "work"];
/// Packages that Tomcat looks into when an application stops, as its own script opens them.
const OPENED: [&str; 6] = [
    "java.base/java.io",
    "java.base/java.lang",
    "java.base/java.lang.reflect",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.rmi/sun.rmi.transport",
];

const SERVER_XML: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Server port="-1">
  <Listener className="org.apache.catalina.core.JreMemoryLeakPreventionListener"/>
  <Listener className="org.apache.catalina.core.ThreadLocalLeakPreventionListener"/>
  <Service name="Catalina">
    <Connector port="8080" protocol="HTTP/1.1" connectionTimeout="20000"/>
    <Engine name="Catalina" defaultHost="localhost">
      <Host name="localhost" appBase="webapps" unpackWARs="false" autoDeploy="false">
        <Valve className="org.apache.catalina.valves.RemoteIpValve"
               protocolHeader="x-forwarded-proto"/>
      </Host>
    </Engine>
  </Service>
</Server>
"#;

const LOGGING: &str = "handlers = java.util.logging.ConsoleHandler\n\
                       .handlers = java.util.logging.ConsoleHandler\n\
                       java.util.logging.ConsoleHandler.level = INFO\n\
                       java.util.logging.ConsoleHandler.formatter = \
                       org.apache.juli.OneLineFormatter\n\
                       java.util.logging.ConsoleHandler.encoding = UTF-8\n";

/// Tomcat, ready to be put on a base of Java.
#[derive(Debug)]
pub struct Tomcat {
    /// Its files.
    pub layer: Layer,
    /// How it is run.
    pub config: PackedConfig,
}

/// Reads `apache-tomcat-VERSION.tar.gz`, as Maven Central and Apache have it.
///
/// # Errors
/// When the file is unreadable, damaged, or not Tomcat.
pub fn read_tomcat(archive: &Path, version: &str) -> Result<Tomcat, PackError> {
    let files = read(archive)?;
    for needed in ["bin/bootstrap.jar", "bin/tomcat-juli.jar", "lib/catalina.jar", "conf/web.xml"] {
        if !files.contains_key(Path::new(needed)) {
            return Err(PackError::refused(
                archive,
                format!("it is no Tomcat: {needed} is missing"),
            ));
        }
    }
    let mut tree = Tree::new();
    let home = Path::new(HOME);
    for (path, (content, mtime)) in files {
        tree.add(home.join(path), Node::file(Content::Bytes(content)).mtime(mtime))?;
    }
    for (path, text) in [("conf/server.xml", SERVER_XML), ("conf/logging.properties", LOGGING)] {
        tree.add(home.join(path), Node::file(Content::Bytes(text.into())))?;
    }
    tree.add(home.join("webapps"), Node::folder())?;
    for folder in WRITTEN {
        tree.add(home.join(folder), Node::folder().mode(0o1777))?;
    }
    Ok(Tomcat { layer: Layer::new(format!("Tomcat {version}"), tree), config: config() })
}

/// What `catalina.sh run` would come to.
fn config() -> PackedConfig {
    let mut entrypoint = vec!["java".to_owned()];
    entrypoint.extend(OPENED.map(|package| format!("--add-opens={package}=ALL-UNNAMED")));
    entrypoint.extend([
        format!("-Djava.util.logging.config.file={HOME}/conf/logging.properties"),
        "-Djava.util.logging.manager=org.apache.juli.ClassLoaderLogManager".into(),
        format!("-Dcatalina.base={HOME}"),
        format!("-Dcatalina.home={HOME}"),
        format!("-Djava.io.tmpdir={HOME}/temp"),
        "-cp".into(),
        format!("{HOME}/bin/bootstrap.jar:{HOME}/bin/tomcat-juli.jar"),
        "org.apache.catalina.startup.Bootstrap".into(),
        "start".into(),
    ]);
    PackedConfig {
        entrypoint,
        working_dir: HOME.into(),
        user: NONROOT.to_string(),
        port: Some(USUAL_PORT),
        ..PackedConfig::default()
    }
}

type Files = BTreeMap<PathBuf, (Vec<u8>, u64)>;

/// The files that are taken, by their path within Tomcat's folder, with their times.
fn read(archive: &Path) -> Result<Files, PackError> {
    let file = File::open(archive).map_err(PackError::io(archive))?;
    let damaged =
        |error: std::io::Error| PackError::refused(archive, format!("it is damaged: {error}"));
    let mut files = Files::new();
    let mut tar = tar::Archive::new(GzDecoder::new(file).take(MAX_BYTES));
    for entry in tar.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.into_owned();
        // Without `apache-tomcat-VERSION/`.
        let path: PathBuf = path.components().skip(1).collect();
        if !entry.header().entry_type().is_file() || !is_taken(&path) {
            continue;
        }
        let mtime = entry.header().mtime().map_err(damaged)?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(damaged)?;
        files.insert(path, (content, mtime));
    }
    Ok(files)
}

fn is_taken(path: &Path) -> bool {
    let parts: Vec<&str> = path
        .components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str().unwrap_or_default(),
            _ => "",
        })
        .collect();
    match parts[..] {
        ["lib", name] => name.ends_with(".jar"),
        ["bin", name] => name == "bootstrap.jar" || name == "tomcat-juli.jar",
        ["conf", name] => CONF.contains(&name),
        [name] => name == "LICENSE" || name == "NOTICE",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use flate2::write::GzEncoder;

    use super::*;

    fn archive(files: &[&str]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let gzip = GzEncoder::new(file.reopen().unwrap(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gzip);
        for path in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_mtime(7);
            header.set_size(path.len() as u64);
            let name = format!("apache-tomcat-10.1.34/{path}");
            tar.append_data(&mut header, name, path.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap();
        file
    }

    const NEEDED: [&str; 4] =
        ["bin/bootstrap.jar", "bin/tomcat-juli.jar", "lib/catalina.jar", "conf/web.xml"];

    #[test]
    fn only_the_server_is_taken() {
        let more = [
            "bin/catalina.sh",
            "webapps/manager/index.jsp",
            "conf/tomcat-users.xml",
            "lib/x/y.jar",
        ];
        let file = archive(&[&NEEDED[..], &more[..]].concat());
        let tomcat = read_tomcat(file.path(), "10.1.34").unwrap();
        let listing = tomcat.layer.listing();
        let has = |path: &str| listing.iter().any(|line| line.starts_with(path));
        assert!(has("opt/tomcat/lib/catalina.jar 644") && has("opt/tomcat/conf/server.xml 644"));
        assert!(has("opt/tomcat/webapps/") && has("opt/tomcat/work/"));
        for left_out in ["catalina.sh", "manager", "tomcat-users.xml", "y.jar"] {
            assert!(!listing.iter().any(|line| line.contains(left_out)), "{left_out}");
        }
        assert_eq!(tomcat.config.entrypoint[0], "java");
        let again = read_tomcat(file.path(), "10.1.34").unwrap();
        assert_eq!(tomcat.layer.packed().unwrap(), again.layer.packed().unwrap());
    }

    #[test]
    fn what_is_no_tomcat_is_refused() {
        let file = archive(&NEEDED[1..]);
        let error = read_tomcat(file.path(), "10.1.34").unwrap_err();
        assert!(error.to_string().contains("bootstrap.jar"), "{error}");
        std::fs::write(file.path(), "no gzip").unwrap();
        assert!(matches!(read_tomcat(file.path(), "1"), Err(PackError::Refused { .. })));
    }
}
