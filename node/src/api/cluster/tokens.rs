//! Enrolment tokens: the secret stays with the client, its hash comes here.

use hodei_proto::v1::{
    CreateTokenRequest, CreateTokenResponse, ListTokensResponse, RevokeTokenResponse, Role as WireRole, Token,
};
use hodei_state::{
    State,
    command::{Command, CreateToken},
    ids::{Caller, Role, TokenId},
    outcome::Outcome,
    registry,
};
use tokio::time::Instant;
use tonic::Status;

use super::{Shared, identity, position};
use crate::{error, pki::token};

/// One hour.
const DEFAULT_TTL_MS: u64 = 3_600_000;

impl Shared {
    pub(super) async fn create_token(
        &self,
        caller: Caller,
        request: CreateTokenRequest,
        by: Instant,
    ) -> Result<CreateTokenResponse, Status> {
        let role = match request.role() {
            WireRole::Node => Role::Node,
            WireRole::Agent => Role::Agent,
            WireRole::User => Role::User,
            WireRole::Admin => Role::Admin,
            WireRole::Unspecified => return Err(error::invalid("role", "node, agent, user or admin")),
        };
        let secret = request.secret_sha256.try_into().map_err(|_| error::invalid("secret_sha256", "32 bytes"))?;
        let command = Command::CreateToken(CreateToken {
            token: token_id(&request.id)?,
            role,
            secret,
            ttl_ms: if request.ttl_ms == 0 { DEFAULT_TTL_MS } else { request.ttl_ms },
            uses: if request.uses == 0 { 1 } else { request.uses },
        });
        let Outcome::TokenCreated { expires_at } = self.commit(caller, command, by).await?.0 else {
            return Err(error::internal("a token's creation came to something else"));
        };
        Ok(CreateTokenResponse {
            id: request.id,
            ca_hash: token::base32(&self.authority.hash()),
            expires_at_ms: millis(expires_at),
        })
    }

    pub(super) async fn list_tokens(&self, by: Instant) -> Result<ListTokensResponse, Status> {
        let view = self.read(by).await?;
        let tokens = view.state.tokens().map(|token| to_proto(&view.state, token)).collect();
        Ok(ListTokensResponse { tokens, position: Some(position(view.position)) })
    }

    pub(super) async fn revoke_token(
        &self,
        caller: Caller,
        id: &str,
        by: Instant,
    ) -> Result<RevokeTokenResponse, Status> {
        let command = Command::RevokeToken { token: token_id(id)? };
        let (_, position) = self.commit(caller, command, by).await?;
        Ok(RevokeTokenResponse { position: Some(position) })
    }
}

fn token_id(text: &str) -> Result<TokenId, Status> {
    text.parse().map_err(|_| error::invalid("id", "a token's UUID"))
}

fn to_proto(state: &State, token: &registry::Token) -> Token {
    let role = match token.role {
        Role::Node => WireRole::Node,
        Role::Agent => WireRole::Agent,
        Role::User => WireRole::User,
        Role::Admin => WireRole::Admin,
    };
    Token {
        id: token.id.to_string(),
        role: role.into(),
        created_at_ms: millis(token.created_at),
        expires_at_ms: millis(token.expires_at),
        uses_left: token.uses.saturating_sub(token.used),
        revoked: token.revoked_at.is_some(),
        issued: state.token_uses(token.id).map(|used| identity(used.issued)).collect(),
    }
}

fn millis(at: hodei_state::ids::Millis) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}
