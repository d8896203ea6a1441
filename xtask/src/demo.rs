//! Not there yet.
use anyhow::bail;
#[derive(Debug, clap::Args)]
pub(crate) struct Options {}
pub(crate) fn run(_options: &Options) -> anyhow::Result<()> {
    bail!("the demo is not written yet")
}
