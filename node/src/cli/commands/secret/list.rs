//! `secret list`.

use hodei_proto::v1::{Identity, ListSecretsRequest, Secret, secret_service_client::SecretServiceClient};
use serde_json::{Value, json};

use crate::cli::{
    Global,
    client::Client,
    exit::CommandResult,
    output::{self, Output},
};

/// Show the names of all secrets; their values are shown nowhere.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node secret list")]
pub struct Args {}

struct Listed(Vec<Secret>);

impl Output for Listed {
    fn table(&self) -> String {
        let rows = self.0.iter().map(|secret| {
            let put_at = output::time_text(secret.put_at_ms).unwrap_or_default();
            [secret.name.clone(), secret.version.to_string(), put_at, who(secret.put_by.as_ref())]
        });
        output::table(["NAME", "VERSION", "PUT", "BY"], rows)
    }

    fn json(&self) -> Value {
        let secret = |secret: &Secret| {
            json!({
                "name": secret.name,
                "version": secret.version,
                "created_at": output::time(secret.created_at_ms),
                "put_at": output::time(secret.put_at_ms),
                "put_by": who(secret.put_by.as_ref()),
            })
        };
        self.0.iter().map(secret).collect()
    }

    fn quiet(&self) -> String {
        self.0.iter().map(|secret| secret.name.as_str()).collect::<Vec<_>>().join("\n")
    }
}

/// `role/id`.
pub fn who(party: Option<&Identity>) -> String {
    party.map_or_else(String::new, |party| {
        let role = party.role().as_str_name().trim_start_matches("ROLE_").to_ascii_lowercase();
        format!("{role}/{}", party.id)
    })
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let client = Client::new(global)?;
        let answer = client
            .read(|conn| {
                let request = conn.request(ListSecretsRequest {});
                async move { SecretServiceClient::new(conn.channel).list_secrets(request).await }
            })
            .await?;
        output::print(global.output, &Listed(answer.secrets))?;
        Ok(0)
    }
}
