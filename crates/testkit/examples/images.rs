//! The test images from the command line: written to a folder, or served by a registry.
//!
//! ```text
//! cargo run -p stead-testkit --example images -- write /tmp/images trivial:1 trivial:2
//! cargo run -p stead-testkit --example images -- serve
//! ```

use std::io::{self, Read};
use std::path::PathBuf;

use clap::Parser;
use stead_testkit::images::{Catalogue, attacks};
use stead_testkit::registry::Registry;

/// What `serve` serves; the attacks come on top.
const ALL: [&str; 14] = [
    "trivial:1",
    "trivial:2",
    "trivial:slow",
    "trivial:exits",
    "trivial:never-ready",
    "trivial:errors",
    "broken:missing-command",
    "broken:lying",
    "nginx:1",
    "nginx:2",
    "redis:1",
    "redis:2",
    "python3:1",
    "python3:2",
];

/// Test images of stead.
#[derive(Parser)]
enum Command {
    /// Write images as OCI archives NAME-TAG.tar into a folder.
    Write {
        /// The folder; it is made.
        folder: PathBuf,
        /// Images as name:tag.
        #[arg(required = true)]
        images: Vec<String>,
        /// Write what `docker save` writes instead.
        #[arg(long)]
        docker: bool,
    },
    /// Serve images by a registry of their own until the standard input ends.
    Serve {
        /// Images as name:tag; all when none is named.
        images: Vec<String>,
        /// Serve hostile images too, as attack:NAME.
        #[arg(long)]
        attacks: bool,
    },
}

fn main() -> io::Result<()> {
    let mut catalogue = Catalogue::new();
    match Command::parse() {
        Command::Write { folder, images, docker } => {
            std::fs::create_dir_all(&folder)?;
            for reference in images {
                let (name, tag) = split(&reference)?;
                let image = catalogue.image(name, tag)?;
                let file = folder.join(format!("{name}-{tag}.tar"));
                if docker {
                    image.write_docker_save(&file, &reference)?;
                } else {
                    image.write_archive(&file, tag)?;
                }
                println!("{}", file.display());
            }
        }
        Command::Serve { images, attacks: hostile } => {
            let registry = Registry::start()?;
            let images = if images.is_empty() { ALL.map(str::to_owned).to_vec() } else { images };
            for reference in images {
                let (name, tag) = split(&reference)?;
                registry.push(name, tag, &catalogue.image(name, tag)?)?;
                println!("{}", registry.reference(name, tag));
            }
            if hostile {
                for attack in attacks() {
                    registry.push("attack", attack.name, &attack.image)?;
                    println!("{}", registry.reference("attack", attack.name));
                }
            }
            println!("ready; ends when its standard input does");
            io::copy(&mut io::stdin().take(u64::MAX), &mut io::sink())?;
        }
    }
    Ok(())
}

fn split(reference: &str) -> io::Result<(&str, &str)> {
    reference.split_once(':').ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{reference} is not name:tag"))
    })
}
