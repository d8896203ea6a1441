use proptest::prelude::*;

use super::*;

fn file(name: &str, size: u64) -> SiteFile {
    SiteFile { file: format!("site/{name}"), size, sha256: Digest::from_sha256([size as u8; 32]) }
}

fn entry(name: &str) -> SiteEntry {
    SiteEntry {
        plain: file(name, 100),
        content_type: media_type(name).to_owned(),
        variants: BTreeMap::new(),
        immutable: is_hashed(name),
    }
}

fn index(names: &[&str]) -> SiteIndex {
    let entries = names.iter().map(|name| (format!("/{name}"), entry(name))).collect();
    SiteIndex { version: VERSION, entries }
}

fn rules(text: &str) -> Site {
    serde_json::from_str(text).unwrap()
}

/// What `path` leads to, in short.
fn find(index: &SiteIndex, rules: &Site, path: &str) -> String {
    match index.find(rules, path) {
        Found::Entry(entry) => entry.plain.file.clone(),
        Found::Moved(to) => format!("→ {to}"),
        Found::Missing(Some(page)) => format!("404 {}", page.plain.file),
        Found::Missing(None) => "404".to_owned(),
        Found::Malformed => "400".to_owned(),
    }
}

#[test]
fn an_index_is_read_as_it_is_written() {
    let mut index = index(&["index.html", "assets/app.1f3a9b2c.js"]);
    let variants = BTreeMap::from([(Coding::Brotli, file("index.html.br", 40))]);
    index.entries.get_mut("/index.html").unwrap().variants = variants;
    let text = serde_json::to_vec(&index).unwrap();
    assert_eq!(SiteIndex::parse(&text).unwrap(), index);
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(r#""br":{"file":"site/index.html.br""#), "{text}");
    assert_eq!(text.matches("immutable").count(), 1, "only where it is");
}

#[test]
fn an_index_that_leads_astray_is_refused() {
    let refused = |change: &dyn Fn(&mut SiteIndex)| {
        let mut index = index(&["index.html"]);
        change(&mut index);
        SiteIndex::parse(&serde_json::to_vec(&index).unwrap()).unwrap_err()
    };
    assert_eq!(refused(&|index| index.version = 2), SiteFault::Version(2));
    for file in ["/etc/passwd", "../up", "site/../../up", "site//a", "", "site/a\0b", "./a"] {
        let fault = refused(&|index| {
            index.entries.get_mut("/index.html").unwrap().plain.file = file.to_owned();
        });
        assert!(matches!(fault, SiteFault::Entry { .. }), "{file}");
        let fault = refused(&|index| {
            let variant = SiteFile { file: file.to_owned(), ..entry("x").plain };
            let entry = index.entries.get_mut("/index.html").unwrap();
            entry.variants.insert(Coding::Gzip, variant);
        });
        assert!(matches!(fault, SiteFault::Entry { .. }), "{file}");
    }
    for path in ["index.html", "//a", "/a/../b", "/", "/a/", "/a\nb"] {
        let fault = refused(&|index| drop(index.entries.insert(path.to_owned(), entry("x"))));
        assert!(matches!(fault, SiteFault::Entry { .. }), "{path}");
    }
    // The same file twice, once longer: a part of it would end behind its end.
    let fault = refused(&|index| {
        let mut other = index.entries["/index.html"].clone();
        other.plain.size += 1;
        index.entries.insert("/other.html".to_owned(), other);
    });
    assert!(fault.to_string().contains("otherwise"), "{fault}");
    for kind in ["", "text/html\r\nx: y", "täxt"] {
        let fault = refused(&|index| {
            index.entries.get_mut("/index.html").unwrap().content_type = kind.to_owned();
        });
        assert!(matches!(fault, SiteFault::Entry { .. }), "{kind}");
    }
    for text in ["", "{}", "[]", r#"{"version": 1}"#, r#"{"version": 1, "entries": {"/a": {}}}"#] {
        assert!(matches!(SiteIndex::parse(text.as_bytes()), Err(SiteFault::Syntax(_))), "{text}");
    }
    assert_eq!(SiteIndex::parse(br#"{"version": 7, "other": 1}"#), Err(SiteFault::Version(7)));
}

#[test]
fn pages_that_the_manifest_names_must_be_there() {
    let index = index(&["index.html"]);
    index.check_pages(&rules(r#"{"fallback": "index.html"}"#)).unwrap();
    let fault = index.check_pages(&rules(r#"{"not_found": "oops.html"}"#)).unwrap_err();
    assert_eq!(
        fault.to_string(),
        r#"site.not_found names "/oops.html", which is not a file of the site"#
    );
}

#[test]
fn paths_lead_to_files_folders_and_pages() {
    let site =
        index(&["index.html", "docs/index.html", "a b.txt", "é.txt", "v1.2/index.html", "x%y"]);
    let plain = Site::default();
    for (path, found) in [
        ("/", "site/index.html"),
        ("/index.html", "site/index.html"),
        ("/index.html/", "404"),
        ("/docs/", "site/docs/index.html"),
        ("/docs", "→ /docs/"),
        ("/v1.2", "→ /v1.2/"),
        ("/a%20b.txt", "site/a b.txt"),
        ("/%C3%A9.txt", "site/é.txt"),
        ("/x%25y", "site/x%y"),
        ("/docs/../index.html", "site/index.html"),
        ("/docs/%2e%2e/", "site/index.html"),
        ("/docs/..", "site/index.html"),
        ("/../../etc/passwd", "404"),
        ("//docs", "→ /docs/"),
        ("//evil.example/..//docs", "→ /docs/"),
        ("/./docs/.", "site/docs/index.html"),
        ("/docs%2Findex.html", "400"),
        ("/%", "400"),
        ("/%2", "400"),
        ("/%+1", "400"),
        ("/%ff", "400"),
        ("/a%00b", "400"),
        ("/a%0d%0aLocation:x", "400"),
        ("*", "400"),
        ("", "400"),
        ("/missing", "404"),
        ("/Index.html", "404"),
    ] {
        assert_eq!(find(&site, &plain, path), found, "{path}");
    }
    // Decoded once only.
    assert_eq!(find(&site, &plain, "/docs%252F"), "404");
}

#[test]
fn what_is_nobodys_gets_the_page_for_that() {
    let site = index(&["index.html", "404.html", "oops.html"]);
    assert_eq!(find(&site, &Site::default(), "/a"), "404 site/404.html");
    let named = rules(r#"{"not_found": "/oops.html"}"#);
    assert_eq!(find(&site, &named, "/a"), "404 site/oops.html");
    let single = rules(r#"{"fallback": "index.html"}"#);
    for path in ["/a", "/a/b/", "/users/7", "/v1.2/about"] {
        assert_eq!(find(&site, &single, path), "site/index.html", "{path}");
    }
    // A script of an older page gets no page in the place of a program.
    assert_eq!(find(&site, &single, "/assets/app.0123abcd.js"), "404 site/404.html");
}

#[test]
fn folders_are_named_as_uris_are() {
    let site = index(&["a b/ü?/index.html"]);
    assert_eq!(find(&site, &Site::default(), "/a%20b/%c3%bc%3f"), "→ /a%20b/%C3%BC%3F/");
}

#[test]
fn the_coding_is_the_one_liked_best_then_the_smallest() {
    let mut entry = entry("a.js");
    for (coding, size) in [(Coding::Brotli, 30), (Coding::Gzip, 40), (Coding::Zstd, 35)] {
        entry.variants.insert(coding, file("v", size));
    }
    for (accepted, coding) in [
        (None, None),
        (Some(""), None),
        (Some("gzip"), Some(Coding::Gzip)),
        (Some("x-gzip"), Some(Coding::Gzip)),
        (Some("gzip, deflate, br, zstd"), Some(Coding::Brotli)),
        (Some("GZIP;Q=1.0, Br;q=0.9"), Some(Coding::Gzip)),
        (Some("br;q=0, zstd ; q=0.5 , gzip;q=0.500"), Some(Coding::Zstd)),
        (Some("*"), Some(Coding::Brotli)),
        (Some("*;q=0.1, br;q=0"), Some(Coding::Zstd)),
        (Some("br;q=0.5, identity"), None),
        (Some("br;q=0.5, identity;q=0.5"), Some(Coding::Brotli)),
        (Some("br;q=0.5, *;q=0.7"), Some(Coding::Zstd)),
        (Some("identity;q=0"), None),
        (Some("*;q=0"), None),
        (Some("deflate"), None),
        (Some("br;q=1.5, gzip;q=x, zstd;q=0.0001"), None),
        (Some("br;level=4;q=0.2"), Some(Coding::Brotli)),
    ] {
        assert_eq!(entry.choose(accepted).0, coding, "{accepted:?}");
    }
    entry.variants.remove(&Coding::Brotli);
    assert_eq!(entry.choose(Some("br")).0, None);
}

#[test]
fn conditions_are_weighed_in_their_order() {
    let tag = "\"aa\"";
    let none = Asked::default();
    for (asked, expected) in [
        (none, Answer::Whole),
        (Asked { if_none_match: Some("\"aa\""), ..none }, Answer::NotModified),
        (Asked { if_none_match: Some("W/\"aa\""), ..none }, Answer::NotModified),
        (Asked { if_none_match: Some("\"b\", \"aa\""), ..none }, Answer::NotModified),
        (Asked { if_none_match: Some(" * "), ..none }, Answer::NotModified),
        (Asked { if_none_match: Some("\"b\""), ..none }, Answer::Whole),
        (Asked { if_none_match: Some("aa"), ..none }, Answer::Whole),
        // A tag counts, not the date beside it.
        (
            Asked { if_none_match: Some("\"b\""), if_modified_since: Some(50), ..none },
            Answer::Whole,
        ),
        (Asked { if_modified_since: Some(50), ..none }, Answer::NotModified),
        // After a rollback the client's file is the younger one, and another one.
        (Asked { if_modified_since: Some(51), ..none }, Answer::Whole),
        (Asked { if_modified_since: Some(49), ..none }, Answer::Whole),
        (Asked { if_match: Some("\"aa\""), ..none }, Answer::Whole),
        (Asked { if_match: Some("*"), ..none }, Answer::Whole),
        (Asked { if_match: Some("W/\"aa\""), ..none }, Answer::Failed),
        (Asked { if_match: Some("\"b\""), if_none_match: Some("*"), ..none }, Answer::Failed),
        (Asked { if_unmodified_since: Some(49), ..none }, Answer::Failed),
        (Asked { if_unmodified_since: Some(50), ..none }, Answer::Whole),
        (Asked { if_match: Some("*"), if_unmodified_since: Some(1), ..none }, Answer::Whole),
        (Asked { range: Some("bytes=1-"), if_none_match: Some("*"), ..none }, Answer::NotModified),
        (Asked { range: Some("bytes=1-"), if_range: Some("\"aa\""), ..none }, Answer::Part(1..=9)),
        (Asked { range: Some("bytes=1-"), if_range: Some("W/\"aa\""), ..none }, Answer::Whole),
        (Asked { range: Some("bytes=1-"), if_range: Some("\"b\""), ..none }, Answer::Whole),
        (Asked { range: Some("bytes=1-"), if_range_date: Some(50), ..none }, Answer::Part(1..=9)),
        (Asked { range: Some("bytes=1-"), if_range_date: Some(51), ..none }, Answer::Whole),
        (Asked { range: Some("bytes=99-"), if_range: Some("\"b\""), ..none }, Answer::Whole),
    ] {
        assert_eq!(answer(&asked, tag, 50, 10), expected, "{asked:?}");
    }
}

#[test]
fn ranges_are_cut_to_what_is_there() {
    let asked =
        |range, size| answer(&Asked { range: Some(range), ..Asked::default() }, "", 0, size);
    for (range, expected) in [
        ("bytes=0-0", Answer::Part(0..=0)),
        ("bytes=0-", Answer::Part(0..=9)),
        ("bytes=3-5", Answer::Part(3..=5)),
        ("bytes=3-500", Answer::Part(3..=9)),
        ("bytes=-3", Answer::Part(7..=9)),
        ("bytes=-300", Answer::Part(0..=9)),
        ("Bytes = 3 - 5", Answer::Part(3..=5)),
        ("bytes=9-99999999999999999999999", Answer::Part(9..=9)),
        ("bytes=10-", Answer::Unsatisfiable),
        ("bytes=10-20", Answer::Unsatisfiable),
        ("bytes=-0", Answer::Unsatisfiable),
        // What cannot be understood, or is not offered, is left out.
        ("bytes=5-3", Answer::Whole),
        ("bytes=", Answer::Whole),
        ("bytes=-", Answer::Whole),
        ("bytes=a-b", Answer::Whole),
        ("bytes=+1-2", Answer::Whole),
        ("bytes=99-x", Answer::Whole),
        ("lines=0-1", Answer::Whole),
        ("bytes", Answer::Whole),
        ("bytes=0-1,3-4", Answer::Whole),
    ] {
        assert_eq!(asked(range, 10), expected, "{range}");
    }
    assert_eq!(asked("bytes=0-", 0), Answer::Unsatisfiable);
    assert_eq!(asked("bytes=-5", 0), Answer::Unsatisfiable);
}

#[test]
fn only_names_made_of_a_digest_are_hashed() {
    for name in [
        "app.1f3a9b2c.js",
        "css/main-0123456789abcdef.css",
        "/assets/index-BkX3d9aZ.js",
        "_next/static/chunks/webpack-8fa1640cc84ba8fe.js",
        "static/media/logo.6ce24c58023cc2f8fd88fe9d219db6c6.svg",
        "_app/immutable/start.e7bf1a2c.js",
        "assets/1f3a9b2c4d5e6f70.woff2",
    ] {
        assert!(is_hashed(name), "{name}");
    }
    for name in [
        "index.html",
        "app.js",
        "report-20240115.pdf",
        "photo-MacBook1.jpg",
        "deadbeef.js",
        "x.deadbeef.js",
        "assets/jquery-3.7.1.min.js",
        "assets/background.png",
        "1f3a9b2c.js",
        "app.1f3a9b2c",
    ] {
        assert!(!is_hashed(name), "{name}");
    }
}

#[test]
fn a_route_travels() {
    let now =
        SiteRelease { release: ReleaseNo(3), folder: "/d/layers/x".into(), made: 1_700_000_000 };
    let before = Some(SiteRelease { release: ReleaseNo(2), ..now.clone() });
    let route = SiteRoute { now, rules: rules(r#"{"fallback": "index.html"}"#), before };
    let text = serde_json::to_string(&route).unwrap();
    assert_eq!(serde_json::from_str::<SiteRoute>(&text).unwrap(), route);
}

proptest! {
    #[test]
    fn a_normal_path_names_something_inside_and_stays_as_it_is(path in "(/|[a-c.%é?\\\\]|%2e|%2E|%2f|\\.\\.){0,24}") {
        let path = format!("/{path}");
        if let Some(normal) = normal_path(&path) {
            prop_assert!(normal.starts_with('/') && !normal.starts_with("//"), "{normal}");
            let inner = normal.trim_matches('/');
            prop_assert!(inner.is_empty() || is_inside(inner), "{normal}");
            // Written as a URI and read again, it is the same.
            let uri = find::encoded(&normal);
            prop_assert!(uri.bytes().all(|byte| byte.is_ascii_graphic()), "{uri}");
            prop_assert_eq!(normal_path(&uri), Some(normal));
        }
    }

    #[test]
    fn a_part_lies_within_the_file(range in "bytes=[0-9]{0,20}-[0-9]{0,20}", size in 0u64..5000) {
        let asked = Asked { range: Some(&range), ..Asked::default() };
        if let Answer::Part(part) = answer(&asked, "", 0, size) {
            prop_assert!(part.start() <= part.end() && *part.end() < size, "{part:?}");
        }
    }

    #[test]
    fn any_accept_encoding_gives_what_is_there(accepted in "[a-z*;=,. 0-9]{0,40}") {
        let mut entry = entry("a.js");
        entry.variants.insert(Coding::Gzip, file("v", 40));
        let (coding, chosen) = entry.choose(Some(&accepted));
        prop_assert_eq!(chosen.size, if coding.is_some() { 40 } else { 100 });
    }

    #[test]
    fn no_bytes_make_the_reader_panic(text in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = SiteIndex::parse(&text);
    }
}
