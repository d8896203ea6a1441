use super::*;

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Note(String);

impl Document for Note {
    const KIND: Kind = Kind::Meta;
}

fn note(text: &str) -> Note {
    Note(text.to_owned())
}

fn raw(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[tokio::test]
async fn a_commit_is_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).unwrap();
    store.commit(vec![Write::create("a", &note("1")).unwrap()]).await.unwrap();
    let seen = store.get::<Note>("a").unwrap().unwrap();
    assert_eq!((seen.generation, &seen.value), (Generation(1), &note("1")));

    let replace = |text| Write::replace(&seen, &note(text)).unwrap();
    store.commit(vec![replace("2")]).await.unwrap();
    let both = vec![Write::create("b", &note("new")).unwrap(), replace("3")];
    let refused = store.commit(both).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { ref key, .. } if key == "a"), "{refused}");
    assert_eq!(store.get::<Note>("a").unwrap().unwrap().value, note("2"));
    assert_eq!(store.get::<Note>("b").unwrap(), None, "the other write of the commit is undone");

    let again = store.commit(vec![Write::create("a", &note("x")).unwrap()]).await;
    assert!(matches!(again, Err(StoreError::Conflict { expected: None, .. })));
    let stale = store.commit(vec![Write::remove(Kind::Meta, "a", seen.generation)]).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })));
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let store = Store::open(&path).unwrap();
    store.commit(vec![Write::set("a", &note("kept")).unwrap()]).await.unwrap();
    // As a crash leaves it: the write-ahead log is not folded in, nothing was closed.
    let crashed = dir.path().join("crashed.db");
    std::fs::copy(&path, &crashed).unwrap();
    std::fs::copy(dir.path().join("state.db-wal"), dir.path().join("crashed.db-wal")).unwrap();
    let store = Store::open(&crashed).unwrap();
    assert_eq!(store.get::<Note>("a").unwrap().unwrap().value, note("kept"));
}

#[tokio::test]
async fn a_damaged_record_takes_no_other_down() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let store = Store::open(&path).unwrap();
    for key in ["n/a/1", "n/a/2", "n/ab/1", "n/a"] {
        store.commit(vec![Write::set(key, &note(key)).unwrap()]).await.unwrap();
    }
    raw(&path, "UPDATE document SET json = '{' WHERE key = 'n/a/1'");
    let listing = store.list::<Note>("n/a/").unwrap();
    assert_eq!(listing.found.len(), 1);
    assert_eq!(listing.found[0].value, note("n/a/2"));
    assert_eq!(listing.damaged[0].key, "n/a/1");
    assert!(matches!(store.get::<Note>("n/a/1"), Err(StoreError::Damaged(_))));
    assert_eq!(store.keys(Kind::Meta, "n/a/").unwrap(), ["n/a/1", "n/a/2"]);
}

#[tokio::test]
async fn a_newer_schema_and_a_ruined_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    drop(Store::open(&path).unwrap());
    raw(&path, "PRAGMA user_version = 99");
    assert!(matches!(Store::open(&path), Err(StoreError::Newer { found: 99, known: 1, .. })));

    let path = dir.path().join("ruined.db");
    std::fs::write(&path, [7; 8192]).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Sqlite(_) | StoreError::Broken { .. })));
}

#[tokio::test]
async fn watchers_are_woken_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).unwrap();
    let mut watch = store.watch();
    let writes = vec![Write::set("a", &note("1")).unwrap(), Write::clear(Kind::Token, "t")];
    store.commit(writes).await.unwrap();
    assert_eq!(watch.recv().await.unwrap(), Changed { kind: Kind::Meta, key: "a".into() });
    assert_eq!(watch.recv().await.unwrap(), Changed { kind: Kind::Token, key: "t".into() });
}
