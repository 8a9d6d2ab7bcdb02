//! `job schema`.

use crate::{
    cli::{exit::CommandResult, output},
    jobfile::schema,
};

/// Print the JSON Schema of job files.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node job schema > job-schema.json")]
pub struct Args {}

impl Args {
    pub fn run(self) -> CommandResult {
        output::line(schema::text().trim_end())?;
        Ok(0)
    }
}
