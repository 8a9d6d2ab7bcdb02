//! `secret uses [NAME]`.

use hodei_proto::v1::{ListSecretUsesRequest, SecretUse, secret_service_client::SecretServiceClient};
use serde_json::{Value, json};

use super::list::who;
use crate::cli::{
    Global,
    client::Client,
    exit::CommandResult,
    output::{self, Output},
};

/// Show which attempts were given secrets, newest first. This is kept when the jobs themselves are gone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node secret uses db/password --limit 1000 --output json")]
pub struct Args {
    /// Of this secret only, whether it still exists or not
    name: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

struct Listed(Vec<SecretUse>);

impl Output for Listed {
    fn table(&self) -> String {
        let rows = self.0.iter().map(|used| {
            let at = output::time_text(used.at_ms).unwrap_or_default();
            let attempt = used.attempt.clone().unwrap_or_default();
            let job = format!("{}/{}", output::short(&attempt.job_id), attempt.attempt);
            [
                at,
                used.name.clone(),
                used.version.to_string(),
                job,
                output::short(&used.worker_id),
                who(used.owner.as_ref()),
            ]
        });
        output::table(["TIME", "NAME", "VERSION", "JOB", "WORKER", "OWNER"], rows)
    }

    fn json(&self) -> Value {
        let used = |used: &SecretUse| {
            let attempt = used.attempt.clone().unwrap_or_default();
            json!({
                "at": output::time(used.at_ms),
                "name": used.name,
                "version": used.version,
                "job_id": attempt.job_id,
                "attempt": attempt.attempt,
                "worker_id": used.worker_id,
                "owner": who(used.owner.as_ref()),
            })
        };
        self.0.iter().map(used).collect()
    }

    fn quiet(&self) -> String {
        self.0.iter().filter_map(|used| Some(used.attempt.as_ref()?.job_id.as_str())).collect::<Vec<_>>().join("\n")
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let client = Client::new(global)?;
        let message = ListSecretUsesRequest { name: self.name.unwrap_or_default(), limit: self.limit };
        let answer = client
            .read(|conn| {
                let request = conn.request(message.clone());
                async move { SecretServiceClient::new(conn.channel).list_secret_uses(request).await }
            })
            .await?;
        output::print(global.output, &Listed(answer.uses))?;
        Ok(0)
    }
}
