//! Goal 11: from a registry to the first answer. An image of 200 MB in eight layers, of which
//! nothing is on the node; the same through a slow link; and of which all layers but one are on
//! the node.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use stead_testkit::images::{Image, Layer, LayerBuilder, Settings, TRIVIAL_PORT, trivial_program};
use stead_testkit::registry::Registry;

use crate::answer::{timed, wait_for};
use crate::contest::{Better, Contestant, Outcome, Row, interleave_cold};
use crate::goals::{PhasesOf, loopback};
use crate::link::Link;
use crate::peers::{Containerd, Podman};
use crate::platform::Platform;
use crate::workshop::Workshop;

const NAME: &str = "stead-bench-pull";
/// Bytes of files in the image, and its layers: the last is the sample service.
const SIZE: u64 = 200_000_000;
const LAYERS: usize = 8;
/// Of the slow link.
const BITS_PER_SECOND: f64 = 100e6;
const ROUND_TRIP: Duration = Duration::from_millis(10);

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let registry = Rc::new(Registry::start()?);
    let below = layers_of_this_machine()?;
    let mut compressed = 0;
    for version in crate::workshop::VERSIONS {
        let image = image(&below, version)?;
        compressed = image.layers.iter().map(|layer| layer.bytes.len()).sum();
        registry.push("pull", version, &image)?;
    }
    let link = Link::to(registry.address(), BITS_PER_SECOND, ROUND_TRIP)?;
    let hosts = [registry.address().to_string(), link.address().to_string()];
    let [direct, slow] = hosts.clone().map(|host| Images {
        registry: Rc::clone(&registry),
        host,
        hosts: hosts.clone(),
    });
    let peers = Peers::open(workshop)?;
    let note = format!(
        "{} MB of files of /usr in {LAYERS} layers, gzip, {:.0} MB as sent; every contestant's \
         store is emptied and the disk synced before each turn, off the clock",
        SIZE / 1_000_000,
        compressed as f64 / 1e6
    );
    let ports = "podman publishes a port; containerd, by ctr, uses the host's network; stead sets \
                 up a network and answers through its gateway";
    let measures_stead = peers.stead.is_some();
    let outcome = |title: &str, goal, (rows, phases): (Vec<Row>, PhasesOf), more: &str| Outcome {
        title: format!("Goal 11: registry to first answer, {title}"),
        goal,
        unit: "ms",
        better: Better::Less,
        rows,
        notes: {
            let of_stead = measures_stead.then(|| phases.summary());
            [note.clone(), ports.to_owned(), more.to_owned()].into_iter().chain(of_stead).collect()
        },
    };
    let [cold, shaped, shared] = [0; 3].map(|_| PhasesOf::new("stead"));
    let cold = (interleave_cold(peers.cold(&direct, &cold), rounds), cold);
    let shaped = (interleave_cold(peers.cold(&slow, &shaped), rounds.div_ceil(2)), shaped);
    let shared = (interleave_cold(peers.shared(&direct, &shared), rounds), shared);
    peers.clean(&direct)?;
    Ok(vec![
        outcome("cold", "5x podman and containerd", cold, "the registry is on loopback"),
        outcome(
            "cold, over 100 Mbit/s and 10 ms",
            "none stated: the link is the limit",
            shaped,
            "the link is a relay of the benchmark's own, which all contestants go through",
        ),
        outcome(
            "seven of eight layers on the node",
            "one layer is fetched",
            shared,
            "how many blobs each turn fetched is counted at the registry: more than a layer and \
             a config fails the contestant",
        ),
    ])
}

/// The images, as one address of the registry names them.
struct Images {
    registry: Rc<Registry>,
    host: String,
    /// All addresses it has: the same image is known by each.
    hosts: [String; 2],
}

impl Images {
    fn reference(&self, version: &str) -> String {
        format!("{}/pull:{version}", self.host)
    }

    /// Every name that an image of this goal may have on the node.
    fn all(&self) -> Vec<String> {
        let of = |host: &String| crate::workshop::VERSIONS.map(|v| format!("{host}/pull:{v}"));
        self.hosts.iter().flat_map(of).collect()
    }
}

/// Who is measured.
struct Peers {
    stead: Option<Platform>,
    podman: Option<Podman>,
    containerd: Option<Containerd>,
}

type Done = anyhow::Result<()>;
/// Of an image, by its reference and version.
type Run = Box<dyn Fn(&str, &str) -> Done>;

/// What a contestant does, with references of images.
struct Turn {
    name: &'static str,
    /// Leaves nothing of these on the node, whatever they are called.
    empty: Box<dyn Fn(&Images) -> Done>,
    /// Fetches one and runs nothing.
    fetch: Box<dyn Fn(&str) -> Done>,
    /// Fetches and runs one, until it answers.
    run: Run,
    /// Follows a turn, off the clock.
    after: Box<dyn Fn() -> Done>,
}

impl Peers {
    fn open(workshop: &mut Workshop) -> anyhow::Result<Self> {
        Ok(Self {
            stead: if workshop.wants("stead") { Some(workshop.platform()?) } else { None },
            podman: if workshop.wants("podman") { Some(workshop.podman()?) } else { None },
            containerd: match workshop.wants("containerd") {
                true => Some(Containerd::start(&workshop.folder().join("containerd"))?),
                false => None,
            },
        })
    }

    fn turns(&self, phases: &PhasesOf) -> Vec<Turn> {
        let mut turns = Vec::new();
        if let Some(platform) = &self.stead {
            let (empty, fetch, run) = (platform.clone(), platform.clone(), platform.clone());
            let (after, phases) = (platform.clone(), phases.clone());
            turns.push(Turn {
                name: "stead",
                empty: Box::new(move |_| {
                    if empty.has(NAME) {
                        empty.delete(NAME)?;
                    }
                    empty.prune()
                }),
                fetch: Box::new(move |reference| fetch.pull(reference)),
                run: Box::new(move |reference, version| {
                    run.deploy_reference(NAME, reference)?;
                    wait_for(Platform::gateway(), &Platform::host(NAME), version).map(drop)
                }),
                after: Box::new(move || {
                    after.settled(NAME, 1)?;
                    phases.collect(&after, NAME)
                }),
            });
        }
        if let Some(podman) = &self.podman {
            let (empty, fetch, run) = (podman.clone(), podman.clone(), podman.clone());
            let address = loopback(20_010);
            turns.push(Turn {
                name: "podman",
                empty: Box::new(move |images| {
                    // There may be none.
                    let _ = empty.remove(NAME);
                    empty.empty(&images.all())
                }),
                fetch: Box::new(move |reference| fetch.pull(reference)),
                run: Box::new(move |reference, version| {
                    run.pull_and_run(NAME, reference, address)?;
                    wait_for(address, "bench", version).map(drop)
                }),
                after: Box::new(|| Ok(())),
            });
        }
        if self.containerd.is_some() {
            turns.push(Turn {
                name: "containerd",
                empty: Box::new(|images| {
                    Containerd::remove(NAME);
                    Containerd::empty(&images.all())
                }),
                fetch: Box::new(Containerd::pull),
                run: Box::new(|reference, version| {
                    Containerd::pull(reference)?;
                    Containerd::run(NAME, reference, 20_011)?;
                    wait_for(loopback(20_011), "bench", version).map(drop)
                }),
                after: Box::new(|| Ok(())),
            });
        }
        turns
    }

    /// Nothing is on the node.
    fn cold<'a>(&self, images: &'a Images, phases: &PhasesOf) -> Vec<Contestant<'a>> {
        Self::contestants(
            self.turns(phases),
            images,
            |turn| (turn.empty)(images),
            LAYERS..=LAYERS + 1,
        )
    }

    /// The first version is on the node, and shares all layers but one with the second.
    fn shared<'a>(&self, images: &'a Images, phases: &PhasesOf) -> Vec<Contestant<'a>> {
        let before = |turn: &Turn| {
            (turn.empty)(images)?;
            (turn.fetch)(&images.reference("1"))
        };
        Self::contestants(self.turns(phases), images, before, 1..=2)
    }

    /// Turns that fetch as many blobs as `fetched` says: the config counts as one.
    fn contestants<'a>(
        turns: Vec<Turn>,
        images: &'a Images,
        before: impl Fn(&Turn) -> anyhow::Result<()> + Copy + 'a,
        fetched: std::ops::RangeInclusive<usize>,
    ) -> Vec<Contestant<'a>> {
        let contestant = |turn: Turn| {
            let (turn, fetched) = (Rc::new(turn), fetched.clone());
            let prepared = Rc::clone(&turn);
            let mut contestant = Contestant::new(turn.name, move || {
                images.registry.forget_fetched();
                let took = timed(|| (turn.run)(&images.reference("2"), "2"))?;
                let blobs: BTreeSet<_> = images.registry.fetched().into_iter().collect();
                ensure!(fetched.contains(&blobs.len()), "{} blobs were fetched", blobs.len());
                (turn.after)()?;
                Ok(took)
            });
            contestant.before(move || {
                before(&prepared)?;
                sync();
                Ok(())
            });
            contestant
        };
        turns.into_iter().map(contestant).collect()
    }

    fn clean(&self, images: &Images) -> anyhow::Result<()> {
        let turns = self.turns(&PhasesOf::new("stead"));
        turns.iter().try_for_each(|turn| (turn.empty)(images))
    }
}

/// Nobody pays for what another wrote.
fn sync() {
    // It cannot fail in a way that would matter.
    let _ = Command::new("sync").status();
}

fn image(below: &[Arc<Layer>], version: &str) -> anyhow::Result<Image> {
    let top = LayerBuilder::new().copy(trivial_program()?, "/hello")?.file(
        "/etc/hello-version",
        0o644,
        format!("{version}\n").as_bytes(),
    );
    let layers = below.iter().cloned().chain([Arc::new(top.build())]).collect();
    Ok(Image::new(layers, &Settings::run(["/hello"]).port(TRIVIAL_PORT)))
}

/// All layers but the last: files of this machine, in the order of their names.
fn layers_of_this_machine() -> anyhow::Result<Vec<Arc<Layer>>> {
    let each = SIZE / (LAYERS as u64 - 1);
    let mut files = Vec::new();
    for folder in ["/usr/lib", "/usr/share", "/usr/bin"] {
        gather(Path::new(folder), &mut files)?;
    }
    let mut files = files.into_iter();
    let mut layers = Vec::new();
    while layers.len() < LAYERS - 1 {
        let (mut builder, mut size) = (LayerBuilder::new(), 0);
        while size < each {
            let (path, length) = files.next().context("/usr is too small for this image")?;
            // None so large that it would make a layer of its own.
            if size + length <= each + each / 20 {
                builder = builder.copy(&path, &path.to_string_lossy())?;
                size += length;
            }
        }
        layers.push(Arc::new(builder.build()));
    }
    Ok(layers)
}

/// Regular files below a folder with their sizes; names that a short tar header holds.
fn gather(folder: &Path, into: &mut Vec<(PathBuf, u64)>) -> anyhow::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            gather(&entry.path(), into)?;
        } else if kind.is_file() && entry.path().as_os_str().len() < 99 {
            into.push((entry.path(), entry.metadata()?.size()));
        }
    }
    Ok(())
}
