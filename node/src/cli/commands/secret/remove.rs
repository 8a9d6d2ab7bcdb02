//! `secret remove NAME`.

use hodei_proto::v1::{RemoveSecretRequest, secret_service_client::SecretServiceClient};
use serde_json::{Value, json};

use crate::cli::{
    Global,
    client::Client,
    exit::CommandResult,
    output::{self, Output},
};

/// Remove a secret. A job that names it and has not started yet fails; one that runs keeps what it has.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node secret remove db/password")]
pub struct Args {
    /// Its name
    name: String,
}

struct Removed(String);

impl Output for Removed {
    fn table(&self) -> String {
        format!("secret {} is removed", self.0)
    }

    fn json(&self) -> Value {
        json!({ "name": self.0, "removed": true })
    }

    fn quiet(&self) -> String {
        self.0.clone()
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let client = Client::new(global)?;
        client
            .write(|conn| {
                let request = conn.request(RemoveSecretRequest { name: self.name.clone() });
                async move { SecretServiceClient::new(conn.channel).remove_secret(request).await }
            })
            .await?;
        output::print(global.output, &Removed(self.name))?;
        Ok(0)
    }
}
