//! What the number of layers does to a start. The figures are in decision 0020.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod image_support;
mod sandbox_harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use image_support::{Layer, TestImage, options};
use stead_engine_node::image::ImageStore;

use sandbox_harness::{PATIENCE, Platform, shell};

/// Files in all, spread over the layers, and folders that every layer has.
const FILES: usize = 400;
const FOLDERS: usize = 20;

/// The same files in so many layers, on top of busybox.
fn layers(platform: &Platform, count: usize) -> Vec<PathBuf> {
    let home = platform.folder().join(format!("layers-{count}"));
    let layer = |number: usize| home.join(number.to_string());
    for number in 0..count {
        for folder in 0..FOLDERS {
            fs::create_dir_all(layer(number).join(format!("app/d{folder}"))).unwrap();
        }
    }
    for file in 0..FILES {
        let path = layer(file % count).join(format!("app/d{}/f{file}", file % FOLDERS));
        fs::write(path, "content\n".repeat(100)).unwrap();
    }
    let base = platform.folder().join("image");
    [base].into_iter().chain((0..count).map(layer)).collect()
}

/// The one folder that the image store makes of these layers.
async fn flat(store: &Path, layers: &[PathBuf]) -> Vec<PathBuf> {
    let tar = |layer: &PathBuf| {
        let tar = Command::new("tar").arg("-C").arg(layer).args(["-cf", "-", "."]).output();
        Layer::plain(tar.unwrap().stdout)
    };
    let layout = store.join("layout");
    TestImage::new(layers.iter().map(tar).collect()).write_layout(&layout);
    let store = ImageStore::open(&store.join("store"), options()).unwrap();
    let image = store.import(&layout, None, &()).await.unwrap();
    store.tidy().unwrap();
    let stack = image.stack();
    assert_eq!((image.layers.len(), stack.len()), (layers.len(), 1));
    stack
}

/// Reads every file, and looks for as many that are in no layer.
fn script() -> String {
    format!(
        "cat /app/*/* > /dev/null; i=0; while [ $i -lt {FILES} ]; do \
         [ -e /app/d$((i % {FOLDERS}))/none$i ]; i=$((i + 1)); done; echo through"
    )
}

/// From the request to the first output of a script in a new Container.
async fn first_output(platform: &Platform, id: &str, layers: &[PathBuf], script: &str) -> Duration {
    let sandbox = platform.sandbox(id).await;
    let container = format!("{id}-c");
    let mut spec = platform.container(&container, &shell(script));
    spec.layers = layers.to_vec();
    let log = platform.log_path(&container);
    let begun = Instant::now();
    sandbox.prepare(spec).await.unwrap();
    sandbox.start(&container).await.unwrap();
    while !says_through(&log) {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    let took = begun.elapsed();
    platform.host().remove(id).await.unwrap();
    took
}

fn says_through(log: &Path) -> bool {
    fs::read_to_string(log).is_ok_and(|text| text.contains("through"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_of_many_layers_has_the_files_of_all() {
    let platform = Platform::open("layers", 0).await;
    let many = layers(&platform, 127);
    let script = format!("set -- /app/*/*; [ $# = {FILES} ] && echo through");
    first_output(&platform, "many", &many, &script).await;
    // In memory: the disk of a busy machine would make the sync wait.
    let store = tempfile::tempdir_in("/dev/shm").unwrap();
    first_output(&platform, "flat", &flat(store.path(), &many).await, &script).await;
    platform.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: run alone, on a quiet machine"]
async fn what_layers_cost() {
    const ROUNDS: usize = 30;
    let platform = Platform::open("cost", 4).await;
    let counts = [1, 8, 32, 127];
    let mut stacks = counts.map(|count| layers(&platform, count)).to_vec();
    stacks.push(flat(platform.folder(), &stacks[3]).await);
    let names = ["1 layer", "8 layers", "32 layers", "127 layers", "127 in one folder"];
    for (what, script) in [("echo", "echo through".to_owned()), ("read all", script())] {
        let mut took = names.map(|_| Vec::new());
        for round in 0..ROUNDS {
            // Interleaved: what else the machine does hits all alike.
            for (at, stack) in stacks.iter().enumerate() {
                let id = format!("{}-{round}-{at}", what.replace(' ', "-"));
                took[at].push(first_output(&platform, &id, stack, &script).await);
            }
        }
        for (name, mut took) in names.into_iter().zip(took) {
            took.sort_unstable();
            let at = |share: usize| took[took.len() * share / 100].as_secs_f64() * 1000.0;
            println!(
                "{what}, {name}: median {:.2} ms, quarters {:.2}..{:.2} ms",
                at(50),
                at(25),
                at(75)
            );
        }
    }
    platform.close().await;
}
