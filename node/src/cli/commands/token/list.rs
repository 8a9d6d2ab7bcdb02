//! `token list`.

use hodei_proto::v1::{Identity, ListTokensRequest, Role, Token, cluster_service_client::ClusterServiceClient};
use serde_json::{Value, json};

use crate::{
    cli::{
        Global,
        client::Client,
        exit::{CommandResult, Failure},
        output::{self, Output, role},
    },
    clock,
};

/// Show all tokens; their secrets are nowhere.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node token list --output json")]
pub struct Args {}

/// All tokens that the cluster knows.
pub(super) async fn tokens(client: &Client) -> Result<Vec<Token>, Failure> {
    let answer = client
        .read(|conn| {
            let request = conn.request(ListTokensRequest {});
            async move { ClusterServiceClient::new(conn.channel).list_tokens(request).await }
        })
        .await?;
    Ok(answer.tokens)
}

struct Listed(Vec<Token>);

impl Output for Listed {
    fn table(&self) -> String {
        let rows = self.0.iter().map(|token| {
            let issued: Vec<_> = token.issued.iter().map(party).collect();
            [
                output::short(&token.id),
                role(token.role()).to_owned(),
                state(token).to_owned(),
                token.uses_left.to_string(),
                output::time_text(token.expires_at_ms).unwrap_or_default(),
                issued.join(" "),
            ]
        });
        output::table(["ID", "ROLE", "STATE", "USES LEFT", "EXPIRES", "LET IN"], rows)
    }

    fn json(&self) -> Value {
        let token = |token: &Token| {
            let issued = token.issued.iter().map(|who| json!({ "role": role(who.role()), "id": who.id }));
            json!({
                "id": token.id,
                "role": role(token.role()),
                "state": state(token),
                "uses_left": token.uses_left,
                "revoked": token.revoked,
                "created_at": output::time(token.created_at_ms),
                "expires_at": output::time(token.expires_at_ms),
                "issued": issued.collect::<Vec<_>>(),
            })
        };
        self.0.iter().map(token).collect()
    }

    fn quiet(&self) -> String {
        self.0.iter().map(|token| token.id.as_str()).collect::<Vec<_>>().join("\n")
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let listed = Listed(tokens(&Client::new(global)?).await?);
        output::print(global.output, &listed)?;
        Ok(0)
    }
}

fn state(token: &Token) -> &'static str {
    if token.revoked {
        "revoked"
    } else if token.uses_left == 0 {
        "used"
    } else if token.expires_at_ms <= clock::unix_seconds() * 1000 {
        "expired"
    } else {
        "valid"
    }
}

fn party(who: &Identity) -> String {
    let id = if who.role() == Role::Node { who.id.clone() } else { output::short(&who.id) };
    format!("{}/{id}", role(who.role()))
}
