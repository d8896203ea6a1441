//! Whole projects. Wheels are made here, so that pip needs no network.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use super::*;

fn options(dir: &Path, known: &[&str]) -> PackOptions {
    PackOptions { cache: dir.join("cache"), ..PackOptions::of_test(known) }
}

fn local() -> Interpreter {
    Interpreter::usual().expect("the tests need python3")
}

fn local_base() -> String {
    let [major, minor] = local().version;
    format!("python:{major}.{minor}")
}

/// A project in `DIR/project` that needs a package `greeting`, whose wheel lies in `DIR/wheels`.
fn project() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (root, wheels) = (dir.path().join("project"), dir.path().join("wheels"));
    fs::create_dir_all(&root).unwrap();
    fs::create_dir_all(&wheels).unwrap();
    let make = r"
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], 'w') as wheel:
    info = 'greeting-1.0.dist-info/'
    wheel.writestr('greeting/__init__.py', 'def main(): print(__file__)\n')
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    wheel.writestr(info + 'entry_points.txt', '[console_scripts]\ngreet = greeting:main\n')
    wheel.writestr(info + 'RECORD', '')
";
    let wheel = wheels.join("greeting-1.0-py3-none-any.whl");
    let made = Command::new(local().program).arg("-c").arg(make).arg(wheel).status().unwrap();
    assert!(made.success());
    let find = format!("--no-index\n--find-links {}\ngreeting==1.0\n", wheels.display());
    fs::write(root.join("requirements.txt"), find).unwrap();
    fs::write(root.join("Procfile"), "web: greet --port $PORT\n").unwrap();
    fs::write(root.join("app.py"), "print(1)\n").unwrap();
    dir
}

#[test]
fn dependencies_are_a_layer_below_the_project() {
    let dir = project();
    let root = dir.path().join("project");
    let options = options(dir.path(), &[&local_base()]);
    let first = pack(&root, &options).unwrap();
    assert_eq!(first.base.as_ref().unwrap().to_string(), local_base());
    let whats: Vec<&str> = first.layers.iter().map(|layer| layer.what.as_str()).collect();
    assert_eq!(whats, ["dependencies", "project"]);
    let expected = ["python3", "/opt/app/python/bin/greet", "--port", "8080"];
    assert_eq!(first.config.entrypoint, expected);
    assert_eq!(first.config.env["PYTHONPATH"], "/app:/opt/app/python");
    assert_eq!(first.config.env["PORT"], "8080");

    let digests_of_first = first.digests();
    let listing = first.layers[0].listing();
    let has = |text: &str| listing.iter().any(|line| line.contains(text));
    assert!(has("opt/app/python/greeting/__init__.py 644 def main()"), "{listing:?}");
    assert!(has("opt/app/python/bin/greet 755 #!/usr/bin/env python3\n"), "{listing:?}");
    assert!(has("__pycache__/__init__.cpython-"), "{listing:?}");
    let cache = dir.path().display().to_string();
    assert!(!has(&cache), "paths of this machine");

    let of_project = first.layers[1].listing();
    let code = of_project.iter().find(|line| line.contains("app/__pycache__/app.cpython-"));
    assert!(!code.expect("it is compiled").contains(&cache), "paths of this machine");

    // Another version of the project leaves the dependencies as they are, and pip alone.
    fs::write(root.join("app.py"), "print(2)\n").unwrap();
    fs::remove_dir_all(dir.path().join("wheels")).unwrap();
    let second = pack(&root, &options).unwrap();
    assert_eq!(second.digests()[0], digests_of_first[0]);
    assert_ne!(second.digests()[1], digests_of_first[1]);
    fs::write(root.join("app.py"), "print(1)\n").unwrap();
    assert_eq!(pack(&root, &options).unwrap().digests(), digests_of_first);
}

#[test]
fn what_was_installed_runs_by_the_command_of_the_image() {
    let dir = project();
    let pack = pack(&dir.path().join("project"), &options(dir.path(), &[])).unwrap();
    let mut bytes = Vec::new();
    pack.layers[0].write(&mut bytes).unwrap();
    let image = dir.path().join("image");
    tar::Archive::new(&bytes[..]).unpack(&image).unwrap();
    let inside = |path: &str| path.replace("/opt/app", &format!("{}/opt/app", image.display()));
    let said = Command::new(local().program)
        .args(pack.config.entrypoint[1..].iter().map(|word| inside(word)))
        .env("PYTHONPATH", inside(&pack.config.env["PYTHONPATH"]))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(text.contains("opt/app/python/greeting/__init__.py"), "{said:?}");
}

#[test]
fn a_project_may_be_named_from_where_one_is() {
    let dir = project();
    let here = std::env::current_dir().unwrap();
    // Deeper than here: from there, the same path leads elsewhere.
    let deep: PathBuf = here.components().map(|_| "deep").collect();
    let place = dir.path().join(deep);
    fs::create_dir_all(&place).unwrap();
    fs::rename(dir.path().join("project"), place.join("project")).unwrap();
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    let root = up.join(place.strip_prefix("/").unwrap()).join("project");
    assert!(root.is_relative() && root.is_dir());
    let pack = pack(&root, &options(dir.path(), &[&local_base()])).unwrap();
    assert_eq!(pack.layers.len(), 2);
}

#[test]
fn a_module_of_the_project_is_not_taken_for_pip() {
    let dir = project();
    let root = dir.path().join("project");
    let mark = dir.path().join("ran");
    fs::write(root.join("pip.py"), format!("open({:?}, 'w')\n", mark.display())).unwrap();
    let pack = pack(&root, &options(dir.path(), &[&local_base()])).unwrap();
    assert!(!mark.exists(), "something of the project was executed");
    assert!(pack.layers[0].listing().iter().any(|line| line.contains("greeting/__init__.py")));
}

#[test]
fn what_pip_says_is_shown_when_it_fails() {
    let dir = project();
    let root = dir.path().join("project");
    let mut requirements =
        fs::OpenOptions::new().append(true).open(root.join("requirements.txt")).unwrap();
    requirements.write_all(b"no-such-package==7\n").unwrap();
    let error = pack(&root, &options(dir.path(), &[])).unwrap_err();
    assert!(error.to_string().contains("no-such-package==7"), "{error}");
    assert_eq!(fs::read_dir(dir.path().join("cache/python")).unwrap().count(), 0);
}

#[test]
fn another_python_takes_wheels_made_for_it() {
    let dir = project();
    let root = dir.path().join("project");
    fs::write(root.join(".python-version"), "3.99.1\n").unwrap();
    let mut options = options(dir.path(), &[&local_base()]);
    options.runtime = Some("python:3.99".parse().unwrap());
    let pack = pack(&root, &options).unwrap();
    assert_eq!(pack.base.unwrap().to_string(), "python:3.99");
    let listing = pack.layers[0].listing();
    assert!(listing.iter().any(|line| line.contains("greeting/__init__.py")));
    assert!(!listing.iter().any(|line| line.contains("__pycache__")), "its byte code is another");
}

#[test]
fn the_python_of_this_machine_is_preferred_where_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let [major, minor] = local().version;
    let older = format!("python:{major}.{}", minor - 1);
    let newer = format!("python:{major}.{}", minor + 1);
    let choose = |known: &[&str]| {
        fs::write(root.join("main.py"), "").unwrap();
        pack(root, &options(root, known)).map(|pack| pack.base.unwrap().to_string())
    };
    assert_eq!(choose(&[&older, &local_base(), &newer]).unwrap(), local_base());
    assert_eq!(choose(&[&newer]).unwrap(), newer);
    assert_eq!(choose(&[]).unwrap(), local_base());
    fs::write(root.join(".python-version"), format!("{major}.{}.2", minor + 1)).unwrap();
    assert_eq!(choose(&[&older, &local_base(), &newer]).unwrap(), newer);
    assert_eq!(choose(&[&local_base()]).unwrap(), newer);
    fs::write(root.join(".python-version"), "pypy3.10").unwrap();
    let pack = pack(root, &options(root, &[])).unwrap();
    assert!(pack.notes.iter().any(|note| note.contains("pypy3.10")), "{:?}", pack.notes);
}
