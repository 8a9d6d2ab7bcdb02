//! `worker undrain`.

use hodei_proto::v1::{UndrainWorker, update_worker_status_request::Wish};

use super::{drain::update, get::get, show::One, worker_help};
use crate::cli::{Global, client::Client, exit::CommandResult, output};

/// Give a worker jobs again that was drained, or set aside because it had lost sessions or attempts.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node worker undrain build-7")]
pub struct Args {
    #[arg(value_name = "ID", help = worker_help!())]
    worker: String,
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let client = Client::new(global)?;
        let id = get(&client, &self.worker, false).await?.id;
        update(&client, &id, Wish::Undrain(UndrainWorker {})).await?;
        output::print(global.output, &One(get(&client, &id, false).await?))?;
        Ok(0)
    }
}
