//! Enrolment tokens.

use super::{Context, Result, members::NewNode};
use crate::{
    command::{CreateToken, UseToken},
    events::Event,
    ids::{Caller, ClusterId, NodeId, Role, TokenId, UserId, WorkerId},
    outcome::{Outcome, Refusal},
    registry::{Identity, Token, TokenUse},
    state::State,
    validate::check,
};

const MAX_USES: u32 = 10_000;
const MAX_TTL_MS: u64 = 366 * 24 * 3_600_000;

impl State {
    /// Repeating it with the same content succeeds again and does not prolong the token.
    pub(super) fn create_token(&mut self, context: Context, create: &CreateToken) -> Result {
        check((1..=MAX_USES).contains(&create.uses), "uses", "1 to 10,000")?;
        check((1..=MAX_TTL_MS).contains(&create.ttl_ms), "ttl", "1 ms to 366 days")?;
        if let Some(token) = self.token(create.token) {
            let same = token.role == create.role
                && token.secret == create.secret
                && token.uses == create.uses
                && token.created_by == context.caller;
            check(same, "token", "an id that is not taken")?;
            return Ok(Outcome::TokenCreated { expires_at: token.expires_at });
        }
        check(!self.indexes.secrets.contains_key(&create.secret), "secret", "a secret of its own")?;
        let now = self.stamp();
        let expires_at = now.plus(create.ttl_ms);
        self.put_token(Token {
            id: create.token,
            role: create.role,
            secret: create.secret,
            created_by: context.caller,
            created_at: now,
            expires_at,
            uses: create.uses,
            used: 0,
            revoked_at: None,
            used_up_at: None,
        });
        self.emit(&Event::TokenCreated { token: create.token, role: create.role, by: context.caller });
        Ok(Outcome::TokenCreated { expires_at })
    }

    pub(super) fn revoke_token(&mut self, context: Context, id: TokenId) -> Result {
        let token = self.token(id).ok_or(Refusal::TokenUnknown)?;
        if token.revoked_at.is_some() {
            return Ok(Outcome::Unchanged);
        }
        let token = Token { revoked_at: Some(self.stamp()), ..token.clone() };
        self.put_token(token);
        self.emit(&Event::TokenRevoked { token: id, by: context.caller });
        Ok(Outcome::Done)
    }

    /// Registers a party. The use binds nonce, key and issued id: the same request gets the same answer again, even
    /// after the token was used up or has expired, since its first answer may have been lost on the way; until the token
    /// is forgotten ([`Token::KEPT_MS`]).
    pub(super) fn use_token(&mut self, used: &UseToken) -> Result {
        let cluster = self.cluster().ok_or(Refusal::WrongClusterState)?.id;
        let token = self.indexes.secrets.get(&used.secret).and_then(|id| self.token(*id));
        let token = token.ok_or(Refusal::TokenUnknown)?.clone();
        if token.revoked_at.is_some() {
            return Err(Refusal::TokenRevoked);
        }
        if token.role != used.role {
            return Err(Refusal::TokenRole);
        }
        if let Some(before) =
            self.token_uses.get(&(token.id, used.nonce)).filter(|_| !crate::armed!("bug::nonce-ignored"))
        {
            return self.repeat_use(before, used, cluster);
        }
        if token.expires_at <= self.stamp() {
            return Err(Refusal::TokenExpired);
        }
        if token.used >= token.uses && !crate::armed!("bug::token-uses-unchecked") {
            return Err(Refusal::TokenUsed);
        }
        self.check_key(used.key)?;
        let issued = self.issue(&token, used)?;
        self.put_token_use(&token, TokenUse { nonce: used.nonce, key: used.key, issued });
        let used = token.used.saturating_add(1);
        let used_up_at = (used >= token.uses).then(|| self.stamp());
        self.emit(&Event::TokenUsed { token: token.id, issued });
        if let Caller::Node(node) = issued {
            self.emit(&Event::NodeJoined { node });
        }
        self.put_token(Token { used, used_up_at, ..token });
        Ok(Outcome::Enrolled { issued, cluster })
    }

    fn repeat_use(&self, before: &TokenUse, used: &UseToken, cluster: ClusterId) -> Result {
        if before.key != used.key {
            return Err(Refusal::NonceReused);
        }
        if self.is_revoked(before.issued) {
            return Err(Refusal::CallerRevoked { caller: before.issued });
        }
        Ok(Outcome::Enrolled { issued: before.issued, cluster })
    }

    /// Whoever was removed or revoked does not come back under another id with the same key.
    fn check_key(&self, key: [u8; 32]) -> std::result::Result<(), Refusal> {
        let first = (key, Caller::Node(0));
        let mut holders = self.indexes.party_keys.range(first..).take_while(|(of, _)| *of == key);
        match holders.find(|(_, who)| self.is_revoked(*who)) {
            Some(&(_, caller)) => Err(Refusal::CallerRevoked { caller }),
            None => Ok(()),
        }
    }

    fn issue(&mut self, token: &Token, used: &UseToken) -> std::result::Result<Caller, Refusal> {
        let who = match token.role {
            Role::Node => return self.issue_node(used).map(Caller::Node),
            Role::Agent => Caller::Agent(WorkerId(used.id)),
            Role::User => Caller::User(UserId(used.id)),
            Role::Admin => Caller::Admin(UserId(used.id)),
        };
        check(used.id != 0 && self.identity(who).is_none(), "id", "an id that is not taken")?;
        self.put_identity(Identity { who, key: used.key, issued_at: self.stamp(), revoked_at: None });
        Ok(who)
    }

    fn issue_node(&mut self, used: &UseToken) -> std::result::Result<NodeId, Refusal> {
        self.admit(&NewNode {
            key: used.key,
            address: &used.address,
            version: &used.version,
            feature_level: used.feature_level,
            replaces: None,
        })
    }

    /// Whether some party has, or had, this key.
    pub(super) fn is_key_known(&self, key: [u8; 32]) -> bool {
        let first = (key, Caller::Node(0));
        self.indexes.party_keys.range(first..).next().is_some_and(|(of, _)| *of == key)
    }
}
