//! The house rules that a program can check. Each rule is a function from the tree to complaints;
//! a complaint names the file and says what to do.

mod arrows;
mod codes;
mod files;

use anyhow::bail;

use crate::run::{cargo, root};

/// How much to check.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Options {
    /// Only what needs no compiler: arrows, files, error pages.
    #[arg(long)]
    fast: bool,
}

impl Options {
    /// As the command line would say it.
    pub(crate) fn fast(fast: bool) -> Self {
        Self { fast }
    }
}

/// What a rule found.
#[derive(Debug, PartialEq, Eq)]
enum Complaint {
    /// To be put right before the change lands.
    Wrong(String),
    /// To be kept in mind.
    Warning(String),
}

impl Complaint {
    fn wrong(text: impl Into<String>) -> Self {
        Self::Wrong(text.into())
    }
}

/// Checks the whole tree.
///
/// # Errors
/// When a rule is broken; what and where has been printed.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let metadata = cargo(["metadata", "--no-deps", "--format-version", "1"]).output()?;
    let mut complaints = arrows::check(&serde_json::from_str(&metadata)?);
    complaints.extend(files::check(root())?);
    complaints.extend(codes::check(root())?);

    let mut wrong = 0;
    for complaint in complaints {
        match complaint {
            Complaint::Wrong(text) => {
                wrong += 1;
                println!("tidy: {text}");
            }
            Complaint::Warning(text) => println!("tidy (warning): {text}"),
        }
    }
    if cargo(["fmt", "--all", "--check"]).run().is_err() {
        wrong += 1;
        println!("tidy: not formatted; run `cargo fmt --all`");
    }
    if !options.fast {
        let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-Dwarnings"];
        if cargo(clippy).run().is_err() {
            wrong += 1;
            println!("tidy: clippy complains, see above");
        }
    }
    if wrong > 0 {
        bail!("tidy: {wrong} complaints");
    }
    println!("tidy: fine");
    Ok(())
}
