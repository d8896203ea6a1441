use super::super::zip::{archive_of, bytes_of};
use super::super::{pack, recognise};
use super::*;

fn options() -> PackOptions {
    PackOptions::of_test(&["java:17", "tomcat:9.0", "tomcat:10.1"])
}

fn packed(files: &[(&str, Vec<u8>)]) -> Result<Pack, PackError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.war");
    archive_of(&path, files);
    assert_eq!(recognise(&path).unwrap(), Some(PackageKind::War));
    let pack = pack(&path, &options())?;
    // Contents are read from the open file, so that the folder may go.
    Ok(pack)
}

fn class(refers: &str) -> Vec<u8> {
    [&[0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 61], refers.as_bytes(), b";"].concat()
}

/// Names of the layers with the files in each.
fn names(pack: &Pack) -> Vec<(String, Vec<String>)> {
    let file = |line: &String| line.split(" 644").next().unwrap_or_default().to_owned();
    let files = |layer: &Layer| {
        layer.listing().iter().filter(|line| !line.ends_with('/')).map(file).collect()
    };
    pack.layers.iter().map(|layer| (layer.what.clone(), files(layer))).collect()
}

#[test]
fn a_war_is_unpacked_for_the_tomcat_it_is_written_for() {
    for (refers, base) in
        [("Ljakarta/servlet/http", "tomcat:10.1"), ("javax/servlet/", "tomcat:9.0")]
    {
        let pack = packed(&[
            ("META-INF/", Vec::new()),
            ("index.html", b"<p>".to_vec()),
            ("WEB-INF/web.xml", b"<web-app/>".to_vec()),
            ("WEB-INF/classes/A.class", class(refers)),
            ("WEB-INF/lib/l.jar", bytes_of(&[("L", Vec::new())])),
        ])
        .unwrap();
        assert_eq!(pack.base.as_ref().unwrap().to_string(), base);
        assert!(pack.config.entrypoint.is_empty(), "it is the base's");
        let names = names(&pack);
        let root = "opt/tomcat/webapps/ROOT";
        assert_eq!(names[0].0, "dependencies");
        assert_eq!(names[0].1, [format!("{root}/WEB-INF/lib/l.jar")]);
        assert_eq!(names[1].1.len(), 3, "{names:?}");
        assert!(names[1].1.contains(&format!("{root}/index.html")), "{names:?}");
    }
}

#[test]
fn the_descriptor_tells_where_no_class_does() {
    for (descriptor, base) in [
        ("http://xmlns.jcp.org/xml/ns/javaee", "tomcat:9.0"),
        ("https://jakarta.ee/xml/ns/jakartaee", "tomcat:10.1"),
    ] {
        let pack = packed(&[("WEB-INF/web.xml", descriptor.into())]).unwrap();
        assert_eq!(pack.base.unwrap().to_string(), base);
    }
}

fn boot(more: &[(&'static str, Vec<u8>)]) -> Vec<(&'static str, Vec<u8>)> {
    let manifest = "Main-Class: org.springframework.boot.loader.launch.WarLauncher\r\n\
                    Start-Class: web.App\r\nSpring-Boot-Version: 3.5.8\r\n";
    let mut files = vec![
        ("META-INF/MANIFEST.MF", manifest.as_bytes().to_vec()),
        ("org/springframework/boot/loader/launch/WarLauncher.class", class("")),
        ("WEB-INF/classes/web/App.class", class("")),
        ("WEB-INF/lib/l.jar", bytes_of(&[("L", Vec::new())])),
        ("WEB-INF/lib-provided/tomcat.jar", bytes_of(&[("T", Vec::new())])),
    ];
    files.extend_from_slice(more);
    files
}

#[test]
fn a_war_that_runs_by_itself_runs_like_a_jar() {
    let pack = packed(&boot(&[])).unwrap();
    assert_eq!(
        (pack.kind, pack.base.as_ref().unwrap().to_string().as_str()),
        (PackageKind::War, "java:17")
    );
    assert_eq!(pack.config.entrypoint, ["java", "-jar", "/app/app.jar"]);
    let names = names(&pack);
    assert_eq!(names[0].1, ["app/lib/l.jar", "app/lib-provided/tomcat.jar"]);
    assert_eq!(names[1].1, ["app/app.jar"]);
}

#[test]
fn what_lies_in_an_archive_says_more_than_its_name() {
    let main = ("META-INF/MANIFEST.MF", b"Main-Class: a.A\r\n".to_vec());
    let (own, web) = (("a/A.class", class("")), ("WEB-INF/web.xml", b"<web-app/>".to_vec()));
    let dir = tempfile::tempdir().unwrap();
    let kind = |name: &str, files: &[(&str, Vec<u8>)]| {
        let path = dir.path().join(name);
        archive_of(&path, files);
        recognise(&path).unwrap()
    };
    for (name, files, expected) in [
        ("a.war", vec![main.clone(), own.clone()], PackageKind::Jar),
        ("b.war", vec![main.clone(), web.clone()], PackageKind::War),
        ("c.jar", vec![main.clone(), web.clone()], PackageKind::Jar),
        ("d.jar", vec![web.clone()], PackageKind::War),
        ("e", vec![web], PackageKind::War),
        ("f", vec![main], PackageKind::Jar),
        ("library.war", vec![own], PackageKind::War),
    ] {
        assert_eq!(kind(name, &files), Some(expected), "{name}");
    }
    let error = pack(&dir.path().join("library.war"), &options()).unwrap_err();
    assert!(error.to_string().contains("WEB-INF"), "{error}");
}

#[test]
fn with_pages_of_its_own_it_stays_whole() {
    let pack = packed(&boot(&[("index.jsp", b"<%%>".to_vec())])).unwrap();
    let launcher = "org.springframework.boot.loader.launch.WarLauncher";
    assert_eq!(pack.config.entrypoint, ["java", "-cp", "/app", launcher]);
    let names = names(&pack);
    assert_eq!(names[0].1.len(), 2);
    assert!(names[1].1.contains(&"app/index.jsp".to_owned()), "{names:?}");
    assert!(
        names[1]
            .1
            .contains(&"app/org/springframework/boot/loader/launch/WarLauncher.class".to_owned())
    );
}
