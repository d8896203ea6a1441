use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::read::SIZES_FOLLOW;
use super::*;

/// A file as it is written to a test's archive; a test spoils what it is about.
#[derive(Clone)]
struct Spec {
    name: Vec<u8>,
    /// The name in the local header.
    local_name: Vec<u8>,
    flags: u16,
    method: u16,
    crc: u32,
    size: u32,
    data: Vec<u8>,
    attributes: u32,
    extra: Vec<u8>,
    /// Where the directory says it is, instead of where it is.
    offset: Option<u32>,
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn stored(name: &str, text: &[u8]) -> Spec {
    Spec {
        name: name.into(),
        local_name: name.into(),
        flags: 0,
        method: 0,
        crc: crc(text),
        size: text.len() as u32,
        data: text.to_vec(),
        attributes: 0,
        extra: Vec::new(),
        offset: None,
    }
}

fn deflated(name: &str, text: &[u8]) -> Spec {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text).unwrap();
    Spec { method: 8, data: encoder.finish().unwrap(), ..stored(name, text) }
}

fn headers(spec: &Spec, name: &[u8], extra: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend([20, spec.flags, spec.method].map(u16::to_le_bytes).concat());
    out.extend([0x5921_6000, spec.crc, spec.data.len() as u32].map(u32::to_le_bytes).concat());
    out.extend(spec.size.to_le_bytes());
    out.extend([name.len() as u16, extra.len() as u16].map(u16::to_le_bytes).concat());
    out
}

/// The local entries, the directory, and its offset.
fn body(specs: &[Spec]) -> (Vec<u8>, Vec<u8>) {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for spec in specs {
        let offset = spec.offset.unwrap_or(out.len() as u32);
        out.extend(LOCAL.to_le_bytes());
        out.extend(headers(spec, &spec.local_name, &[]));
        out.extend(&spec.local_name);
        out.extend(&spec.data);
        directory.extend(CENTRAL.to_le_bytes());
        directory.extend([20, 3]);
        directory.extend(headers(spec, &spec.name, &spec.extra));
        directory.extend([0; 6]);
        directory.extend(spec.attributes.to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(&spec.name);
        directory.extend(&spec.extra);
    }
    (out, directory)
}

fn end(count: u16, directory: u32, offset: u32) -> Vec<u8> {
    let mut out = END.to_le_bytes().to_vec();
    out.extend([0, 0, count, count].map(u16::to_le_bytes).concat());
    out.extend([directory, offset].map(u32::to_le_bytes).concat());
    out.extend([0; 2]);
    out
}

fn archive(specs: &[Spec]) -> Vec<u8> {
    let (mut out, directory) = body(specs);
    let end = end(specs.len() as u16, directory.len() as u32, out.len() as u32);
    out.extend(directory);
    out.extend(end);
    out
}

fn open_with(bytes: &[u8], limits: &Limits) -> Result<Arc<Archive>, PackError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.jar");
    std::fs::write(&path, bytes).unwrap();
    // The file stays open, and goes with its folder.
    Archive::open(&path, limits)
}

fn open(bytes: &[u8]) -> Result<Arc<Archive>, PackError> {
    open_with(bytes, &Limits::default())
}

fn text(archive: &Archive, name: &str) -> Result<String, PackError> {
    let entry = archive.find(name).expect("it is there").clone();
    archive.read(&entry, 1 << 20).map(|bytes| String::from_utf8(bytes).unwrap())
}

#[track_caller]
fn refuses(specs: &[Spec], why: &str) {
    let result = open(&archive(specs)).and_then(|archive| {
        archive.unpackable()?;
        archive.entries().iter().try_for_each(|entry| archive.write(entry, &mut io::sink()))
    });
    let error = result.expect_err("it is refused").to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn files_are_read_stored_and_deflated() {
    let long = "much ".repeat(10_000);
    let specs = [stored("META-INF/", b""), stored("a", b"plain"), deflated("b/c", long.as_bytes())];
    let archive = open(&archive(&specs)).unwrap();
    assert_eq!(text(&archive, "a").unwrap(), "plain");
    assert_eq!(text(&archive, "b/c").unwrap(), long);
    assert!(archive.find("META-INF").is_none(), "a folder is no file");
    let mut head = [0; 8];
    let entry = archive.find("b/c").unwrap();
    assert_eq!(archive.head(entry, &mut head).unwrap(), 8);
    assert_eq!(&head, b"much muc");
    // 2024-09-01 12:00:00
    assert_eq!(entry.mtime(), 1_725_192_000);
    assert!(archive.read(entry, 10).is_err());
}

#[test]
fn a_script_may_stand_before_it_and_a_comment_behind() {
    let mut bytes = b"#!/bin/sh\nexec java -jar $0\n".to_vec();
    bytes.extend(archive(&[stored("a", b"plain")]));
    let at = bytes.len() - 2;
    bytes[at] = 5;
    bytes.extend(b"hello");
    assert_eq!(text(&open(&bytes).unwrap(), "a").unwrap(), "plain");
}

#[test]
fn what_ends_early_is_no_archive() {
    let whole = archive(&[stored("a", b"plain"), deflated("b", b"packed")]);
    for length in 0..whole.len() {
        assert!(open(&whole[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn every_changed_byte_is_found_or_harmless() {
    let whole = archive(&[stored("a", b"plain"), deflated("b", b"packed packed packed")]);
    for at in 0..whole.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            let Ok(archive) = open(&bytes) else { continue };
            for entry in archive.entries() {
                let mut out = Vec::new();
                if archive.write(entry, &mut out).is_ok() {
                    assert!(out == b"plain" || out == b"packed packed packed", "byte {at}");
                }
            }
        }
    }
}

#[test]
fn names_stay_within_the_archive() {
    for name in ["../x", "a/../../x", "/etc/x", "a//b", "./a", "a\\..\\b", "a\0b", "a\nb", "", "/"]
    {
        refuses(&[stored(name, b"x")], "name");
    }
    refuses(&[Spec { name: vec![0xff, b'a'], ..stored("a", b"") }], "UTF-8");
    refuses(&[stored(&"n".repeat(5000), b"")], "too long");
}

#[test]
fn no_name_is_there_twice() {
    refuses(&[stored("a", b"1"), stored("a", b"2")], "twice");
    refuses(&[stored("a/", b""), stored("a", b"2")], "twice");
    let folders = open(&archive(&[stored("a/", b""), stored("a/", b"")])).unwrap();
    folders.unpackable().unwrap();
}

#[test]
fn the_two_headers_of_an_entry_agree() {
    refuses(&[Spec { local_name: b"b".to_vec(), ..stored("a", b"x") }], "something else");
    let mut bytes = archive(&[stored("a", b"plain")]);
    for (at, what) in [(8, "method"), (14, "crc"), (18, "packed"), (22, "size")] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 8;
        assert!(open(&bytes).is_err(), "{what}");
    }
    // Written as a stream: crc and sizes are behind the data.
    bytes[6] |= SIZES_FOLLOW as u8;
    bytes[14..26].fill(0);
    assert_eq!(text(&open(&bytes).unwrap(), "a").unwrap(), "plain");
}

#[test]
fn entries_share_no_bytes() {
    let first = stored("a", b"x");
    refuses(&[first.clone(), Spec { offset: Some(0), ..stored("a", b"x") }], "over another");
    // An entry within another's data, as overlapping bombs have them.
    let (inner, _) = body(&[stored("b", b"inner")]);
    let outer = stored("a", &inner);
    let within = LOCAL_SIZE as u32 + 1;
    let specs = [outer, Spec { offset: Some(within), ..stored("b", b"inner") }];
    refuses(&specs, "over another");
}

#[test]
fn data_is_what_was_announced() {
    refuses(&[Spec { crc: 7, ..stored("a", b"x") }], "checksum");
    refuses(&[Spec { size: 9, ..deflated("a", b"longer than nine") }], "longer");
    refuses(&[Spec { size: 99, ..deflated("a", b"shorter") }], "shorter");
    refuses(&[Spec { size: 1 << 30, ..deflated("a", b"tiny") }], "cannot unpack");
    refuses(&[Spec { size: 4, ..stored("a", b"x") }], "cannot unpack");
    let mut trailing = deflated("a", b"text");
    trailing.data.extend([0; 9]);
    refuses(&[trailing], "shorter");
    let damaged = Spec { data: vec![0xff; 20], ..deflated("a", &[0; 20]) };
    refuses(&[damaged], "damaged");
}

#[test]
fn what_jars_do_not_use_is_refused() {
    for flag in [1, 1 << 6, 1 << 13] {
        refuses(&[Spec { flags: flag, ..stored("a", b"x") }], "encrypted");
    }
    refuses(&[Spec { method: 12, ..stored("a", b"x") }], "method 12");
    let link = Spec { attributes: 0o120_777 << 16, ..stored("a", b"/etc/passwd") };
    refuses(&[link], "link");
    refuses(&[stored("a/", b"data")], "folder");
}

#[test]
fn bombs_are_told_by_what_they_announce() {
    let bomb = archive(&[deflated("a", &vec![0; 1 << 20])]);
    open(&bomb).unwrap();
    let limits = Limits { free: 1 << 16, ..Limits::default() };
    assert!(open_with(&bomb, &limits).unwrap_err().to_string().contains("unpacks to"));
    let limits = Limits { entries: 1, ..Limits::default() };
    let two = archive(&[stored("a", b""), stored("b", b"")]);
    assert!(open_with(&two, &limits).unwrap_err().to_string().contains("2 entries"));
    let limits = Limits { size: 3, ..Limits::default() };
    assert!(open_with(&archive(&[stored("a", b"four")]), &limits).is_err());
    let limits = Limits { directory: 10, ..Limits::default() };
    assert!(open_with(&two, &limits).is_err());
}

/// An archive whose numbers are in zip64 fields.
fn wide(count: u64) -> Vec<u8> {
    let mut spec = stored("a", b"plain");
    let (mut out, _) = body(&[spec.clone()]);
    spec.extra = [1u16.to_le_bytes(), 16u16.to_le_bytes()].concat();
    spec.extra.extend([5u64, 5].map(u64::to_le_bytes).concat());
    let (_, mut directory) = body(&[spec]);
    directory[20..28].fill(0xff);
    let offset = out.len() as u64;
    out.extend(&directory);
    let at = out.len() as u64;
    out.extend(END_64.to_le_bytes());
    out.extend(44u64.to_le_bytes());
    out.extend([45u16, 45].map(u16::to_le_bytes).concat());
    out.extend([0; 8]);
    out.extend([count, count, directory.len() as u64, offset].map(u64::to_le_bytes).concat());
    out.extend(LOCATOR_64.to_le_bytes());
    out.extend([0; 4]);
    out.extend(at.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend(end(0xffff, u32::MAX, u32::MAX));
    out
}

#[test]
fn zip64_is_read_and_its_lies_are_found() {
    assert_eq!(text(&open(&wide(1)).unwrap(), "a").unwrap(), "plain");
    assert!(open(&wide(2)).is_err());
    assert!(open(&wide(u64::MAX)).is_err());
    // The usual end says something else than the zip64 end.
    let mut bytes = wide(1);
    let at = bytes.len() - END_SIZE + 8;
    bytes[at..at + 4].copy_from_slice(&[2, 0, 2, 0]);
    assert!(open(&bytes).unwrap_err().to_string().contains("contradict"));
    let mut spec = stored("a", b"plain");
    spec.size = u32::MAX;
    refuses(&[spec], "zip64");
}

#[test]
fn a_jar_that_is_made_can_be_read() {
    let source = open(&archive(&[deflated("x/a", b"text text text"), stored("x/", b"")])).unwrap();
    let members = |count: usize| {
        let mut members =
            vec![Member::bytes("META-INF/MANIFEST.MF", b"Main-Class: a\r\n".to_vec())];
        members
            .extend(source.entries().iter().map(|e| Member::of(&source, e, &e.name[2..])).take(1));
        members.extend((0..count).map(|n| Member::bytes(&format!("f{n}"), Vec::new())));
        members
    };
    for count in [0, 70_000] {
        let jar = Jar::new(members(count)).unwrap();
        let mut bytes = Vec::new();
        jar.write(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, jar.size());
        let read = open(&bytes).unwrap();
        assert_eq!(read.entries().len(), 2 + count);
        assert_eq!(text(&read, "a").unwrap(), "text text text");
        assert_eq!(text(&read, "META-INF/MANIFEST.MF").unwrap(), "Main-Class: a\r\n");
        assert_eq!(read.find("a").unwrap().mtime(), 1_725_192_000);
    }
}
