use std::fs;

use super::super::zip::{archive_of, bytes_of};
use super::super::{pack, recognise};
use super::*;

/// A class for this Java.
pub(crate) fn class(java: u8) -> Vec<u8> {
    vec![0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, java + 44, 1]
}

fn options() -> PackOptions {
    PackOptions::of_test(&["java:17", "java:25", "tomcat:10.1"])
}

fn text(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

const BOOT: &str = "Manifest-Version: 1.0\r\nImplementation-Version: 1.2\r\nSpring-Boot-Version: \
                    3.5.8\r\nMain-Class: org.springframework.boot.loader.launch.JarLauncher\r\n\
                    Start-Class: web.App\r\nSpring-Boot-Classes: BOOT-INF/classes/\r\n";

/// A Spring Boot jar whose only class is `version`.
fn boot(version: u8, index: bool) -> Vec<(&'static str, Vec<u8>)> {
    let inner = |name: &'static str| (name, bytes_of(&[("A.class", class(8))]));
    let mut files = vec![
        ("META-INF/MANIFEST.MF", text(BOOT)),
        ("META-INF/services/java.nio.file.spi.FileSystemProvider", text("loader")),
        ("META-INF/build-info.properties", text("x=1")),
        ("META-INF/OLD.SF", text("signed")),
        ("org/springframework/boot/loader/launch/JarLauncher.class", class(17)),
        ("BOOT-INF/classes/web/App.class", [class(17), vec![version]].concat()),
        ("BOOT-INF/classes/application.properties", text("a=b")),
        inner("BOOT-INF/lib/a b.jar"),
        inner("BOOT-INF/lib/late-1.jar"),
        inner("BOOT-INF/lib/module-1-SNAPSHOT.jar"),
    ];
    if index {
        files.push((
            "BOOT-INF/classpath.idx",
            text("- \"BOOT-INF/lib/late-1.jar\"\n- \"BOOT-INF/lib/a b.jar\"\n"),
        ));
        files.push((
            "BOOT-INF/layers.idx",
            text(
                "- \"dependencies\":\n  - \"BOOT-INF/lib/a b.jar\"\n- \"spring-boot-loader\":\n  \
                 - \"org/\"\n- \"company\":\n  - \"BOOT-INF/lib/\"\n- \"application\":\n  - \
                 \"BOOT-INF/classes/\"\n  - \"BOOT-INF/lib/module-1-SNAPSHOT.jar\"\n",
            ),
        ));
    }
    files
}

fn packed(dir: &Path, files: &[(&str, Vec<u8>)]) -> Pack {
    let path = dir.join("web.jar");
    archive_of(&path, files);
    assert_eq!(recognise(&path).unwrap(), Some(PackageKind::Jar));
    pack(&path, &options()).unwrap()
}

/// Names of the layers with the files in each.
fn names(pack: &Pack) -> Vec<(String, Vec<String>)> {
    let file = |line: &String| line.split(" 644").next().unwrap_or_default().to_owned();
    let files = |layer: &super::super::Layer| {
        layer.listing().iter().filter(|line| !line.ends_with('/')).map(file).collect()
    };
    pack.layers.iter().map(|layer| (layer.what.clone(), files(layer))).collect()
}

fn expected(layers: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
    let owned = |files: &[&str]| files.iter().map(|file| (*file).to_owned()).collect();
    layers.iter().map(|(name, files)| ((*name).to_owned(), owned(files))).collect()
}

/// The thin jar of what was packed, opened.
fn thin(dir: &Path, pack: &Pack) -> Arc<Archive> {
    let mut bytes = Vec::new();
    pack.layers.last().unwrap().write(&mut bytes).unwrap();
    tar_entry(&bytes, "app/app.jar", &dir.join("thin.jar"));
    Archive::open(&dir.join("thin.jar"), &Limits::default()).unwrap()
}

fn tar_entry(bytes: &[u8], name: &str, to: &Path) {
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap() == Path::new(name) {
            entry.unpack(to).unwrap();
        }
    }
}

#[test]
fn a_spring_boot_jar_is_taken_apart_by_its_indexes() {
    let dir = tempfile::tempdir().unwrap();
    let pack = packed(dir.path(), &boot(1, true));
    assert_eq!(pack.base.as_ref().unwrap().to_string(), "java:17");
    assert_eq!(
        names(&pack),
        expected(&[
            ("dependencies", &["app/lib/a b.jar"]),
            ("company", &["app/lib/late-1.jar"]),
            ("application", &["app/app.jar", "app/lib/module-1-SNAPSHOT.jar"]),
        ])
    );
    assert_eq!(pack.config.entrypoint, ["java", "-jar", "/app/app.jar"]);
    assert_eq!(pack.config.port, Some(8080));
    assert_eq!(pack.config.env["SERVER_PORT"], "8080");

    let thin = thin(dir.path(), &pack);
    let manifest = manifest_of(&thin).unwrap();
    assert_eq!(manifest.get("Main-Class"), Some("web.App"));
    assert_eq!(manifest.get("Implementation-Version"), Some("1.2"));
    assert_eq!(manifest.get("Start-Class"), None);
    let class_path = "lib/late-1.jar lib/a%20b.jar lib/module-1-SNAPSHOT.jar";
    assert_eq!(manifest.get("Class-Path"), Some(class_path));
    let mut inside: Vec<&str> = thin.entries().iter().map(|entry| entry.name.as_str()).collect();
    inside.sort_unstable();
    assert_eq!(
        inside,
        [
            "META-INF/MANIFEST.MF",
            "META-INF/build-info.properties",
            "application.properties",
            "web/App.class"
        ]
    );
}

#[test]
fn without_indexes_snapshots_are_told_by_their_name() {
    let dir = tempfile::tempdir().unwrap();
    let pack = packed(dir.path(), &boot(1, false));
    assert_eq!(
        names(&pack),
        expected(&[
            ("dependencies", &["app/lib/a b.jar", "app/lib/late-1.jar"]),
            ("snapshots", &["app/lib/module-1-SNAPSHOT.jar"]),
            ("application", &["app/app.jar"]),
        ])
    );
}

#[test]
fn one_changed_class_changes_one_layer() {
    let dir = tempfile::tempdir().unwrap();
    let first = packed(dir.path(), &boot(1, true)).digests();
    let again = packed(dir.path(), &boot(1, true)).digests();
    let second = packed(dir.path(), &boot(2, true)).digests();
    assert_eq!(first, again);
    let same: Vec<bool> = first.iter().zip(&second).map(|(a, b)| a == b).collect();
    assert_eq!(same, [true, true, false]);
}

#[test]
fn a_jar_gets_the_lowest_java_that_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    let base = |java: u8, options: &PackOptions| {
        let manifest = text("Main-Class: web.App\r\n");
        let path = dir.path().join("web.jar");
        archive_of(
            &path,
            &[
                ("META-INF/MANIFEST.MF", manifest),
                ("web/App.class", class(java)),
                ("other/Unused.class", class(30)),
                ("META-INF/versions/30/web/App.class", class(30)),
                ("module-info.class", class(30)),
            ],
        );
        pack(&path, options).map(|pack| pack.base.unwrap().to_string())
    };
    assert_eq!(base(8, &options()).unwrap(), "java:17");
    assert_eq!(base(21, &options()).unwrap(), "java:25");
    assert_eq!(base(21, &PackOptions::of_test(&[])).unwrap(), "java:21");
    assert_eq!(base(19, &PackOptions::of_test(&[])).unwrap(), "java:21");
    assert_eq!(base(26, &PackOptions::of_test(&[])).unwrap(), "java:26");
    assert_eq!(base(8, &PackOptions::of_test(&["java:1.8"])).unwrap(), "java:1.8");
    let mut asked = options();
    asked.runtime = Some("java:17".parse().unwrap());
    let error = base(21, &asked).unwrap_err();
    assert!(error.to_string().contains("its classes need Java 21"), "{error}");
}

#[test]
fn a_plain_jar_takes_along_what_lies_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("dist");
    fs::create_dir_all(folder.join("lib/in ner")).unwrap();
    fs::write(dir.path().join("secret"), "s").unwrap();
    fs::write(folder.join("lib/a.jar"), bytes_of(&[("A", text("a"))])).unwrap();
    fs::write(folder.join("lib/in ner/b.jar"), bytes_of(&[("B", text("b"))])).unwrap();
    fs::create_dir(folder.join("conf")).unwrap();
    fs::write(folder.join(".netrc"), "password p").unwrap();
    std::os::unix::fs::symlink("../../secret", folder.join("lib/link.jar")).unwrap();
    let manifest = "Main-Class: web.App\r\nClass-Path: lib/a.jar lib/in%20ner/b.jar ../secret \
                    /etc/pas\r\n swd lib/gone.jar lib/link.jar .netrc conf/ lib/a.jar\r\n";
    let path = folder.join("server.jar");
    archive_of(&path, &[("META-INF/MANIFEST.MF", text(manifest)), ("web/App.class", class(11))]);
    let pack = pack(&path, &options()).unwrap();
    let found = names(&pack);
    let layers = expected(&[
        ("dependencies", &["app/lib/a.jar", "app/lib/in ner/b.jar"]),
        ("application", &["app/app.jar"]),
    ]);
    assert_eq!(found, layers);
    assert_eq!(pack.notes.len(), 6, "{:?}", pack.notes);
    for left_out in [".netrc", "conf/"] {
        assert!(pack.notes.iter().any(|note| note.contains(left_out)), "{:?}", pack.notes);
    }
}

#[test]
fn jars_that_are_named_by_named_jars_go_along() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("dist");
    fs::create_dir_all(folder.join("lib")).unwrap();
    let manifest = |path: &str| ("META-INF/MANIFEST.MF", text(path));
    for (name, path) in [
        ("lib/one.jar", "Class-Path: two.jar ../three.jar ../../out.jar one.jar gone.jar\r\n"),
        ("lib/two.jar", "Class-Path: one.jar\r\n"),
        ("three.jar", ""),
        ("../out.jar", ""),
        ("unnamed.jar", ""),
    ] {
        archive_of(&folder.join(name), &[manifest(path)]);
    }
    let path = folder.join("server.jar");
    let own = "Main-Class: web.App\r\nClass-Path: lib/one.jar\r\n";
    archive_of(&path, &[manifest(own), ("web/App.class", class(17))]);
    let pack = pack(&path, &options()).unwrap();
    let libraries: &[&str] = &["app/lib/one.jar", "app/lib/two.jar", "app/three.jar"];
    let layers = expected(&[("dependencies", libraries), ("application", &["app/app.jar"])]);
    assert_eq!(names(&pack), layers);

    // A library that is called as we would call the jar itself keeps its name.
    archive_of(&folder.join("app.jar"), &[("A.class", class(17))]);
    let own = "Main-Class: web.App\r\nClass-Path: app.jar\r\n";
    archive_of(&path, &[manifest(own), ("web/App.class", class(17))]);
    let pack = super::super::pack(&path, &options()).unwrap();
    let layers =
        expected(&[("dependencies", &["app/app.jar"]), ("application", &["app/server.jar"])]);
    assert_eq!(names(&pack), layers);
    assert_eq!(pack.config.entrypoint, ["java", "-jar", "/app/server.jar"]);
}

#[test]
fn a_quarkus_folder_is_packed_whole() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for (inner, name) in [("lib/boot", "b.jar"), ("lib/main", "m.jar"), ("app", "a.jar")] {
        fs::create_dir_all(folder.join(inner)).unwrap();
        fs::write(folder.join(inner).join(name), bytes_of(&[(name, Vec::new())])).unwrap();
    }
    fs::create_dir(folder.join("quarkus")).unwrap();
    fs::write(folder.join("quarkus/quarkus-application.dat"), "index").unwrap();
    let manifest = "Main-Class: io.quarkus.Runner\r\nClass-Path: lib/boot/b.jar\r\n";
    archive_of(&folder.join("quarkus-run.jar"), &[("META-INF/MANIFEST.MF", text(manifest))]);
    for path in [folder.to_owned(), folder.join("quarkus-run.jar")] {
        let pack = pack(&path, &options()).unwrap();
        assert_eq!(
            names(&pack),
            expected(&[
                ("dependencies", &["app/lib/boot/b.jar", "app/lib/main/m.jar"]),
                (
                    "application",
                    &[
                        "app/app/a.jar",
                        "app/quarkus/quarkus-application.dat",
                        "app/quarkus-run.jar"
                    ]
                ),
            ])
        );
        assert_eq!(pack.config.entrypoint, ["java", "-jar", "/app/quarkus-run.jar"]);
    }
}

#[test]
fn what_cannot_start_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("library.jar");
    archive_of(&path, &[("A.class", class(17))]);
    let error = pack(&path, &options()).unwrap_err();
    assert!(error.to_string().contains("no Main-Class"), "{error}");
    let zip = dir.path().join("some.zip");
    archive_of(&zip, &[("notes.txt", text("hello"))]);
    assert_eq!(recognise(&zip).unwrap(), None);
    fs::write(&path, b"PK\x03\x04 and nothing more").unwrap();
    assert!(matches!(recognise(&path), Err(PackError::Refused { .. })));
    let mut twice = boot(1, true);
    twice.push(("BOOT-INF/classes/application.properties", text("c=d")));
    archive_of(&path, &twice);
    let error = pack(&path, &options()).unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
}

#[test]
fn a_jar_with_a_script_before_it_is_a_jar() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.jar");
    for shell in ["/bin/bash", "/usr/bin/env sh"] {
        let script = format!("#!{shell}\nexec java -jar \"$0\"\n").into_bytes();
        fs::write(&path, [script, bytes_of(&boot(1, true))].concat()).unwrap();
        assert_eq!(recognise(&path).unwrap(), Some(PackageKind::Jar));
        assert_eq!(pack(&path, &options()).unwrap().layers.len(), 3);
    }
}
