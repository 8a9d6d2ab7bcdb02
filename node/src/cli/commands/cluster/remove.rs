//! `cluster remove ID`.

use hodei_proto::v1::{RemoveRequest, cluster_service_client::ClusterServiceClient};

use crate::cli::{
    Global,
    client::Client,
    exit::CommandResult,
    output::{self, Format},
};

/// Remove a node for good. It hands over leadership first; its id is never used again.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The output of jobs lies on the node that their agent spoke to, and so far on no other. Where this node holds any that\nnobody else does, it is refused (1), and nothing is done.\n\nExample:\n  hodei-node cluster remove 3"
)]
pub struct Args {
    /// Its id, as `cluster status` shows it
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// Also where it holds output of jobs that nobody else does: that is lost
    #[arg(long)]
    lose_logs: bool,
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let answer = Client::new(global)?
            .write(|conn| {
                let request = conn.request(RemoveRequest { node_id: self.id, lose_logs: self.lose_logs });
                async move { ClusterServiceClient::new(conn.channel).remove(request).await }
            })
            .await?;
        for warning in &answer.warnings {
            output::note(format_args!("warning: {warning}"));
        }
        if global.output != Format::Quiet {
            output::note(format_args!("node {} is removed", self.id));
        }
        Ok(0)
    }
}
