//! `token create`.

use std::time::Duration;

use hodei_proto::v1::{CreateTokenRequest, Role as WireRole, cluster_service_client::ClusterServiceClient};
use hodei_state::ids::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    cli::{
        Global,
        client::Client,
        duration,
        exit::{CommandResult, Failure},
        output::{self, Output},
    },
    pki::token::{Secret, Token, from_base32},
};

/// Make a token.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node token create --role agent --ttl 24h --uses 10 --output quiet")]
pub struct Args {
    /// What it grants: node, agent, user (jobs) or admin (everything)
    #[arg(long, value_name = "R")]
    role: Role,
    /// How long it may be used
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    ttl: Duration,
    /// How many parties it may let in
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    uses: u32,
}

struct Created {
    token: Token,
    id: String,
    uses: u32,
    expires_at_ms: i64,
}

impl Output for Created {
    fn table(&self) -> String {
        let expires = output::time_text(self.expires_at_ms).unwrap_or_default();
        let uses = if self.uses == 1 { "once".to_owned() } else { format!("{} times", self.uses) };
        format!("{}\n\nfor role {}, {uses}, until {expires}", self.token.reveal(), self.token.role)
    }

    fn json(&self) -> Value {
        json!({
            "id": self.id,
            "token": self.token.reveal(),
            "role": self.token.role.as_str(),
            "uses": self.uses,
            "expires_at": output::time(self.expires_at_ms),
        })
    }

    fn quiet(&self) -> String {
        self.token.reveal()
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let created = create(&Client::new(global)?, self.role, self.ttl, self.uses).await?;
        output::print(global.output, &created)?;
        Ok(0)
    }
}

/// A new token.
///
/// # Errors
/// As of any write.
pub async fn make(client: &Client, role: Role, ttl: Duration, uses: u32) -> Result<Token, Failure> {
    create(client, role, ttl, uses).await.map(|created| created.token)
}

async fn create(client: &Client, role: Role, ttl: Duration, uses: u32) -> Result<Created, Failure> {
    let secret = Secret::random();
    let message = CreateTokenRequest {
        role: wire(role).into(),
        ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
        uses,
        id: Uuid::now_v7().to_string(),
        secret_sha256: secret.hash().to_vec(),
    };
    let answer = client
        .write(|conn| {
            let request = conn.request(message.clone());
            async move { ClusterServiceClient::new(conn.channel).create_token(request).await }
        })
        .await?;
    let authority = from_base32(&answer.ca_hash).ok_or_else(|| Failure::other("the node's answer is damaged"))?;
    let token = Token::new(role, authority, secret);
    Ok(Created { token, id: answer.id, uses, expires_at_ms: answer.expires_at_ms })
}

fn wire(role: Role) -> WireRole {
    match role {
        Role::Node => WireRole::Node,
        Role::Agent => WireRole::Agent,
        Role::User => WireRole::User,
        Role::Admin => WireRole::Admin,
    }
}
