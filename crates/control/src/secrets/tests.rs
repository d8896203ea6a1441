use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use stead_core::ids::{Digest, ReleaseNo};
use stead_core::manifest::Manifest;

use super::*;
use crate::store::release_key;

fn app() -> AppKey {
    "default/web".parse().unwrap()
}

fn name(text: &str) -> EnvName {
    text.parse().unwrap()
}

fn open(dir: &Path) -> (Arc<Store>, Vault) {
    let store = Arc::new(Store::open(&dir.join("state.db")).unwrap());
    (Arc::clone(&store), Vault::new(store, dir.join("secrets.key")))
}

async fn set(store: &Store, vault: &Vault, secret: &str, value: &str) -> u32 {
    let value = Secret::new(value.to_owned()).unwrap();
    let set = vault.set(&app(), &name(secret), &value, "eve", Time(7)).unwrap();
    store.commit(set.writes).await.unwrap();
    set.version
}

fn value(vault: &Vault, secret: &str, version: u32) -> Result<String, Code> {
    let found = vault.value(&app(), &name(secret), version);
    found.map(|secret| secret.expose().to_owned()).map_err(|error| error.code)
}

fn release(number: u32, secrets: &[(&str, u32)]) -> Release {
    Release {
        app: app(),
        number: ReleaseNo(number),
        reference: "web:1".into(),
        image: Digest::from_sha256([1; 32]),
        sidecars: BTreeMap::new(),
        settings: Manifest::minimal("web".parse().unwrap(), "web:1"),
        secrets: secrets.iter().map(|(secret, version)| (name(secret), *version)).collect(),
        created: Time(0),
        by: "eve".into(),
        message: None,
    }
}

async fn keep(store: &Store, release: &Release) {
    let key = release_key(&app(), release.number);
    store.commit(vec![Write::set(key, release).unwrap()]).await.unwrap();
}

#[tokio::test]
async fn versions_follow_one_another_and_the_value_is_on_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (store, vault) = open(dir.path());
    assert_eq!(set(&store, &vault, "A", "first-value").await, 1);
    assert_eq!(set(&store, &vault, "A", "first-value").await, 1, "it has that value already");
    keep(&store, &release(1, &[("A", 1)])).await;
    assert_eq!(set(&store, &vault, "A", "second-value").await, 2);
    assert_eq!(value(&vault, "A", 1), Ok("first-value".into()), "a release uses it");
    assert_eq!(value(&vault, "A", 2), Ok("second-value".into()));
    let (versions, held) = vault.hold(&app(), &[name("A")]).unwrap();
    assert_eq!((versions, held.len()), ([(name("A"), 2)].into(), 1));

    assert_eq!(set(&store, &vault, "A", "third-value").await, 3);
    assert_eq!(value(&vault, "A", 2), Err(Code::SecretUnset), "no release had it");
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for text in ["first-value", "second-value", "third-value"] {
            assert!(!bytes.windows(text.len()).any(|part| part == text.as_bytes()));
        }
    }
    assert_eq!(vault.check().unwrap(), [""; 0]);
}

#[tokio::test]
async fn who_makes_a_release_and_who_sets_a_secret_do_not_miss_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (store, vault) = open(dir.path());
    set(&store, &vault, "A", "one").await;
    let conflicts = |done: Result<(), StoreError>| matches!(done, Err(StoreError::Conflict { .. }));

    let (_, held) = vault.hold(&app(), &[name("A")]).unwrap();
    set(&store, &vault, "A", "two").await;
    assert!(conflicts(store.commit(held).await), "the release would have the old value");

    let three = Secret::new("three".to_owned()).unwrap();
    let set = vault.set(&app(), &name("A"), &three, "eve", Time(0)).unwrap();
    let (_, held) = vault.hold(&app(), &[name("A")]).unwrap();
    store.commit(held).await.unwrap();
    assert!(conflicts(store.commit(set.writes).await), "the setter would not see the release");
}

#[tokio::test]
async fn what_no_release_uses_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (store, vault) = open(dir.path());
    set(&store, &vault, "A", "one").await;
    keep(&store, &release(1, &[("A", 1)])).await;
    set(&store, &vault, "A", "two").await;
    let made = release(2, &[("A", 2)]);
    assert!(vault.prune(&app(), &[], &made).unwrap().is_empty(), "release 1 may come back");
    let dropped = [release_key(&app(), ReleaseNo(1))];
    let writes = vault.prune(&app(), &dropped, &made).unwrap();
    assert_eq!(writes.len(), 1);
    store.commit(writes).await.unwrap();
    assert_eq!(value(&vault, "A", 1), Err(Code::SecretUnset));
    assert_eq!(value(&vault, "A", 2), Ok("two".into()), "it is current");

    keep(&store, &made).await;
    store.commit(vec![vault.unset(&app(), &name("A")).unwrap().unwrap()]).await.unwrap();
    assert_eq!(value(&vault, "A", 2), Ok("two".into()), "release 2 uses it");
    assert!(vault.unset(&app(), &name("A")).unwrap().is_none());
    let refused = vault.hold(&app(), &[name("A"), name("B")]).unwrap_err();
    assert_eq!(refused.code, Code::SecretUnset);
    assert!(refused.message.contains("A, B"), "{refused}");
    assert!(refused.hint.contains("`stead secrets set web A`"), "{}", refused.hint);
}

#[tokio::test]
async fn a_key_that_is_gone_open_or_another_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (store, vault) = open(dir.path());
    set(&store, &vault, "A", "hunter2").await;
    let file = dir.path().join("secrets.key");
    let key = std::fs::read(&file).unwrap();
    let anew = || Vault::new(Arc::clone(&store), file.clone());
    let other = Secret::new("other".to_owned()).unwrap();
    let told = |part: &str| {
        assert_eq!(value(&anew(), "A", 1), Err(Code::SecretsLocked), "{part}");
        let wrong = anew().check().unwrap();
        assert!(wrong.len() == 1 && wrong[0].contains(part), "{wrong:?}");
        assert!(!wrong[0].contains("hunter2"));
        assert_eq!(value(&vault, "A", 1), Ok("hunter2".into()), "what runs is started again");
    };

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    told("may be read by others");
    std::fs::remove_file(&file).unwrap();
    told("is missing");
    let refused = vault.set(&app(), &name("B"), &other, "eve", Time(0)).err().unwrap();
    assert_eq!(refused.code, Code::SecretsLocked, "no second key comes beside the first");
    Key::make(&file).unwrap();
    told("does not open");
    // The old one is lost for good: a new value heals it.
    let healed = anew();
    assert_eq!(set(&store, &healed, "A", "new").await, 2);
    assert_eq!(value(&healed, "A", 2), Ok("new".into()));
    assert_ne!(std::fs::read(&file).unwrap(), key);
}

#[tokio::test]
async fn a_value_moved_to_another_app_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let (store, vault) = open(dir.path());
    set(&store, &vault, "A", "hunter2").await;
    let stolen = vault.current(&app(), &name("A")).unwrap().unwrap().value;
    let shop: AppKey = "default/shop".parse().unwrap();
    let write = Write::create(place(&shop, &name("A"), 1), &stolen).unwrap();
    store.commit(vec![write]).await.unwrap();
    let refused = vault.value(&shop, &name("A"), 1).unwrap_err();
    assert_eq!(refused.code, Code::SecretsLocked);
    assert!(!format!("{stolen:?}").contains("hunter2"));
}
