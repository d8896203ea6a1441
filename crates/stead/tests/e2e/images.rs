//! Images by hand: warmed, saved, removed, taken in again.

use crate::platform::{Platform, eventually, image};

#[test]
fn an_image_is_saved_removed_and_taken_in_again() {
    let platform = Platform::start();
    let (one, two) = (image("trivial", "1"), image("trivial", "2"));
    let warmed = platform.json(&["image", "warm", &one, &two]);
    assert_eq!(warmed.as_array().expect("a list").len(), 2);
    let images = platform.json(&["image", "ls"]);
    for image in images.as_array().expect("a list") {
        let (size, shared) = (image["size"].as_u64().unwrap(), image["shared"].as_u64().unwrap());
        assert!(0 < shared && shared < size, "they share their base: {image}");
    }
    let failed = platform.stead(&["image", "warm", &one, "127.0.0.1:1/none:1"]).expect(1);
    assert!(failed.stderr.contains("STEAD-I003"), "{}", failed.stderr);

    platform.stead(&["deploy", &one, "--app", "web"]).expect(0);
    let path = |name: &str| platform.dir.path().join(name).display().to_string();
    let (file, docker, folder) = (path("one.tar"), path("one.docker.tar"), path("one/"));
    platform.stead(&["image", "save", &one, &file]).expect(0);
    platform.stead(&["image", "save", &one, &docker, "--format", "docker"]).expect(0);
    platform.stead(&["image", "save", &one, &folder]).expect(0);
    platform.stead(&["image", "save", &one, &folder]).expect(2);
    platform.stead(&["image", "save", "no/such:image", &file]).expect(3);
    let listed = std::process::Command::new("tar").args(["-tf", &file]).output().expect("tar runs");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("index.json"));

    let refused = platform.stead(&["image", "rm", &one]).expect(1);
    assert!(refused.stderr.contains("STEAD-R003"), "{}", refused.stderr);
    platform.stead(&["image", "rm", &two]).expect(0);
    platform.stead(&["image", "rm", &two]).expect(3);
    assert_eq!(platform.version("web"), "1");

    for source in [&file, &docker, &folder] {
        platform.stead(&["delete", "web", "--yes"]).expect(0);
        eventually("web is gone", || (platform.stead(&["status", "web"]).code == 3).then_some(()));
        platform.stead(&["image", "prune"]).expect(0);
        let left = platform.json(&["image", "ls"]);
        assert_eq!(left.as_array().expect("a list").len(), 0, "{left}");
        platform.stead(&["deploy", source, "--app", "web"]).expect(0);
        assert_eq!(platform.version("web"), "1", "{source}");
    }
}

#[test]
fn an_upload_goes_on_over_a_restart_of_the_platform() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    let platform = Platform::start();
    let bytes: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    let digest = stead_testkit::images::digest(&bytes);
    let path = format!("/api/v1/uploads/{digest}");
    let send = |offset: usize, bytes: &[u8], length: usize| {
        let socket = platform.run_dir().join("stead.sock");
        let mut stream = UnixStream::connect(socket).expect("the platform answers");
        let size = 4_000_000;
        write!(
            stream,
            "PATCH {path}?size={size} HTTP/1.1\r\nHost: stead\r\nUpload-Offset: {offset}\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n"
        )
        .expect("it listens");
        stream.write_all(bytes).expect("it listens");
        stream
    };
    let here = || {
        let view = platform.ask(&format!("/uploads/{digest}"))?;
        Some((view["offset"].as_u64()?, view["complete"].as_bool()?))
    };
    assert_eq!(here(), Some((0, false)));
    // Half of it, and then serve is killed while the sender still holds the line.
    let half = send(0, &bytes[..2_000_000], bytes.len());
    eventually("half of it came", || here().filter(|(offset, _)| *offset == 2_000_000));
    platform.kill("serve");
    drop(half);
    let offset = eventually("it answers again", here).0 as usize;
    assert_eq!(offset, 2_000_000, "nothing that came is lost");
    let rest = &bytes[offset..];
    let mut answer = String::new();
    send(offset, rest, rest.len()).read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(here(), Some((4_000_000, true)));
    // An offset that is wrong is told the right one.
    let other = stead_testkit::images::digest(b"other");
    let socket = platform.run_dir().join("stead.sock");
    let mut stream = UnixStream::connect(socket).expect("the platform answers");
    write!(
        stream,
        "PATCH /api/v1/uploads/{other}?size=5 HTTP/1.1\r\nHost: stead\r\nUpload-Offset: 3\r\n\
         Content-Length: 2\r\nConnection: close\r\n\r\ner"
    )
    .expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 409"), "{answer}");
    assert!(answer.contains("goes on there"), "{answer}");
}
