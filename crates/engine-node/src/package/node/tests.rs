//! Whole projects. What npm installs lies in a folder, so that it needs no network.

use std::fs;
use std::process::Command;

use super::*;

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn options(dir: &Path) -> PackOptions {
    PackOptions { cache: dir.join("cache"), ..PackOptions::of_test(&[]) }
}

/// The command of a project with these files.
fn start(package: &str, files: &[(&str, &str)]) -> Result<String, PackError> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("package.json", package)]);
    write(dir.path(), files);
    let root = dir.path();
    let installed = root.join("installed");
    let start =
        Start::find(root, &Project::read(root)?, &ignore::walk(root)?, Some(&installed), 3000)?;
    let env = start.env.iter().map(|(name, value)| format!("{name}={value} "));
    Ok(env.collect::<String>() + &start.command.join(" "))
}

#[test]
fn start_is_run_without_npm() {
    let of =
        |line: &str| format!(r#"{{"scripts": {{"start": "{line}", "serve": "A=b node x.js"}}}}"#);
    let files = [
        ("x.js", ""),
        ("dist/index.js", ""),
        ("installed/node_modules/.bin/next", "#!/usr/bin/env node\n"),
        ("installed/node_modules/.bin/binary", "\u{7f}ELF"),
    ];
    let start = |line: &str| start(&of(line), &files);
    assert_eq!(start("node x.js --port $PORT").unwrap(), "node x.js --port 3000");
    assert_eq!(
        start("B=c node -r dotenv/config ./dist").unwrap(),
        "B=c node -r dotenv/config ./dist"
    );
    assert_eq!(start("npm run serve").unwrap(), "A=b node x.js");
    assert_eq!(start("next start").unwrap(), "node node_modules/.bin/next start");
    let error = |line: &str| start(line).unwrap_err().to_string();
    assert!(error("node gone.js").contains("gone.js, which starts it"));
    assert!(error("node ../x.js").contains("not there"));
    assert!(error("tsc && node x.js").contains("needs a shell"));
    assert!(error("nest start").contains("devDependencies"));
    assert!(error("binary").contains("no script of Node.js"));
    assert!(error("npm start").contains("calls no script"));
}

#[test]
fn without_a_start_script_main_or_a_usual_name_is_started() {
    let main = r#"{"main": "lib/main"}"#;
    assert_eq!(start(main, &[("lib/main.js", "")]).unwrap(), "node lib/main");
    assert_eq!(start("{}", &[("index.js", ""), ("server.js", "")]).unwrap(), "node server.js");
    assert_eq!(start("{}", &[("Procfile", "web: node a.js"), ("a.js", "")]).unwrap(), "node a.js");
    assert!(start(main, &[]).unwrap_err().hint().contains("build it"));
    assert!(start("{}", &[]).unwrap_err().hint().contains("start"));
    assert!(start("{}", &[("index.html", "")]).unwrap_err().hint().contains("./dist"));
}

/// A project whose one dependency comes from a tar archive, so that npm needs no network.
fn project() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("greeting-1.0.0.tgz");
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
        fs::File::create(&archive).unwrap(),
        flate2::Compression::fast(),
    ));
    let files = [
        (
            "package/package.json",
            r#"{"name": "greeting", "version": "1.0.0", "bin": {"greet": "cli.js"}}"#,
        ),
        ("package/index.js", "module.exports = 'hello';\n"),
        ("package/cli.js", "#!/usr/bin/env node\nconsole.log(require('./index.js'));\n"),
    ];
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap();

    let file = format!("file:{}", archive.display());
    let package = format!(
        r#"{{"name": "it", "version": "1.0.0", "dependencies": {{"greeting": "{file}"}},
            "scripts": {{"start": "greet", "postinstall": "false"}}}}"#
    );
    let lock = format!(
        r#"{{"name": "it", "version": "1.0.0", "lockfileVersion": 3, "requires": true, "packages": {{
            "": {{"name": "it", "version": "1.0.0", "dependencies": {{"greeting": "{file}"}}}},
            "node_modules/greeting": {{"version": "1.0.0", "resolved": "{file}",
                "bin": {{"greet": "cli.js"}}}}}}}}"#
    );
    let root = dir.path().join("project");
    write(
        &root,
        &[
            ("package.json", &package),
            ("package-lock.json", &lock),
            ("server.js", "1"),
            ("node_modules/old/index.js", ""),
        ],
    );
    dir
}

#[test]
fn dependencies_are_a_layer_below_the_project() {
    let dir = project();
    let root = dir.path().join("project");
    let options = options(dir.path());
    let first = pack(&root, &options).unwrap();
    let whats: Vec<&str> = first.layers.iter().map(|layer| layer.what.as_str()).collect();
    assert_eq!(whats, ["dependencies", "project"]);
    assert_eq!(first.config.entrypoint, ["node", "node_modules/.bin/greet"]);
    assert_eq!(first.config.env["PORT"], "8080");
    assert!(first.notes.iter().any(|note| note.contains("postinstall")), "{:?}", first.notes);
    let listing = first.layers[0].listing();
    assert!(listing.contains(&"app/node_modules/.bin/greet -> ../greeting/cli.js".to_owned()));
    assert!(
        !listing.iter().any(|line| line.contains(".package-lock.json") || line.contains("old"))
    );
    let of_project = first.layers[1].listing();
    assert!(!of_project.iter().any(|line| line.starts_with("app/node_modules")), "{of_project:?}");
    let digests_of_first = first.digests();

    // Another version of the project leaves the dependencies as they are, and npm alone.
    fs::remove_file(dir.path().join("greeting-1.0.0.tgz")).unwrap();
    for file in ["package.json", "package-lock.json"] {
        let text = fs::read_to_string(root.join(file)).unwrap();
        let text = text.replacen(r#""version": "1.0.0""#, r#""version": "2.0.0""#, 1);
        fs::write(root.join(file), text).unwrap();
    }
    let second = pack(&root, &options).unwrap();
    assert_eq!(second.digests()[0], digests_of_first[0]);
    assert_ne!(second.digests()[1], digests_of_first[1]);

    // It runs as the image would start it.
    let image = dir.path().join("image");
    for layer in &first.layers {
        let mut bytes = Vec::new();
        layer.write(&mut bytes).unwrap();
        tar::Archive::new(&bytes[..]).unpack(&image).unwrap();
    }
    let said = Command::new("node")
        .args(&first.config.entrypoint[1..])
        .current_dir(image.join("app"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "hello\n", "{said:?}");
}

#[test]
fn what_cannot_be_installed_says_why() {
    let refused = |files: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), files);
        write(dir.path(), &[("index.js", "")]);
        pack(dir.path(), &options(dir.path())).unwrap_err().to_string()
    };
    let package = ("package.json", r#"{"dependencies": {"ms": "2"}}"#);
    assert!(refused(&[package]).contains("no package-lock.json"));
    assert!(refused(&[package, ("yarn.lock", "")]).contains("yarn.lock is not read"));
    assert!(refused(&[package, ("package-lock.json", "{}")]).contains("npm 6"));
    assert!(refused(&[package, ("package-lock.json", "{")]).contains("malformed"));
    let linked = r#"{"packages": {"": {}, "../lib": {}, "node_modules/lib": {"link": true}}}"#;
    assert!(refused(&[package, ("package-lock.json", linked)]).contains("../lib"));
    // npm itself finds that the lock does not belong to the project.
    let other = r#"{"lockfileVersion": 3, "packages": {"": {}}}"#;
    assert!(refused(&[package, ("package-lock.json", other)]).contains("npm"));
    assert!(refused(&[("package.json", r#"{"workspaces": ["a"]}"#)]).contains("workspaces"));
    assert!(refused(&[("package.json", "[]")]).contains("malformed"));
}

#[test]
fn a_project_without_dependencies_needs_no_lock_and_no_npm() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("package.json", "{}"), ("index.js", ""), (".nvmrc", "v99.1\n")]);
    let packed = pack(dir.path(), &options(dir.path())).unwrap();
    assert_eq!(packed.layers.len(), 1);
    assert_eq!(packed.base.unwrap().to_string(), "node:99");
    assert!(!dir.path().join("cache").exists());
}

#[test]
fn what_builds_itself_is_not_run_by_another_node() {
    let dir = project();
    let root = dir.path().join("project");
    let lock = fs::read_to_string(root.join("package-lock.json")).unwrap();
    let built = lock.replace(r#""bin":"#, r#""hasInstallScript": true, "bin":"#);
    fs::write(root.join("package-lock.json"), built).unwrap();
    let mut options = options(dir.path());
    options.runtime = Some("node:99".parse().unwrap());
    let error = pack(&root, &options).unwrap_err();
    assert!(error.to_string().contains("greeting builds itself"), "{error}");
}
