//! `token revoke ID`.

use hodei_proto::v1::{RevokeTokenRequest, cluster_service_client::ClusterServiceClient};
use hodei_state::ids::TokenId;

use super::list;
use crate::cli::{
    Global,
    client::Client,
    exit::{CommandResult, Failure},
    output::{self, Format},
};

/// Make a token void.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node token revoke 0c1d2e3f")]
pub struct Args {
    /// Its id, or the last digits of it (four or more)
    id: String,
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let client = Client::new(global)?;
        let id = find(&client, &self.id).await?;
        client
            .write(|conn| {
                let request = conn.request(RevokeTokenRequest { id: id.clone() });
                async move { ClusterServiceClient::new(conn.channel).revoke_token(request).await }
            })
            .await?;
        if global.output != Format::Quiet {
            output::note(format_args!("token {id} is void"));
        }
        Ok(0)
    }
}

/// The whole id for what a person typed.
async fn find(client: &Client, typed: &str) -> Result<String, Failure> {
    if typed.parse::<TokenId>().is_ok() {
        return Ok(typed.to_owned());
    }
    if typed.len() < 4 || !typed.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(Failure::bad_input(format!(
            "{typed:?}: expected a token's id, or at least four last digits of it"
        )));
    }
    let wanted = typed.to_ascii_lowercase();
    let mut fitting: Vec<_> = list::tokens(client).await?.into_iter().map(|token| token.id).collect();
    fitting.retain(|id| id.replace('-', "").ends_with(&wanted));
    match fitting.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Failure::other(format!("no token's id ends in {typed}"))),
        many => Err(Failure::other(format!("{typed} fits several tokens: {}", many.join(", ")))),
    }
}
