//! Lets a party in: a token against a certificate.

use std::collections::BTreeMap;

use hodei_proto::v1::{EnrollRequest, EnrollResponse, ReplaceRequest};
use hodei_state::{
    command::{Command, ReplaceNode, UseToken},
    ids::{Caller, WorkerId},
    outcome::{Outcome, Refusal},
};
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use uuid::Uuid;

use super::{Shared, identity};
use crate::{
    error,
    pki::{request::Request, subject::Subject, token::Token},
};

impl Shared {
    /// Repeating the same request (token, nonce, key) succeeds again with the same id.
    pub(super) async fn enroll(&self, request: EnrollRequest, by: Instant) -> Result<EnrollResponse, Status> {
        let busy = || error::unavailable("too many parties enrol at once");
        let _permit = timeout_at(by, self.enrolments.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())?;
        let (token, csr, command) = self.understand(request)?;
        self.check_known(&token, by).await?;
        self.admit(Caller::Node(self.myself.node), Command::UseToken(command), &csr, by).await
    }

    /// A node goes on under a new id, which only itself can ask for.
    pub(super) async fn replace(
        &self,
        caller: Caller,
        request: ReplaceRequest,
        by: Instant,
    ) -> Result<EnrollResponse, Status> {
        let Caller::Node(node) = caller else { return Err(error::not_allowed("only a node can be replaced")) };
        let csr = understand_csr(&request.csr_der)?;
        let command = ReplaceNode {
            node,
            nonce: understand_nonce(request.nonce)?,
            key: csr.key,
            address: request.address,
            version: request.version,
            feature_level: request.feature_level,
        };
        self.admit(caller, Command::ReplaceNode(command), &csr, by).await
    }

    /// Commits what makes a party of whoever holds the key, and gives it what it needs.
    async fn admit(
        &self,
        caller: Caller,
        command: Command,
        csr: &Request,
        by: Instant,
    ) -> Result<EnrollResponse, Status> {
        hodei_state::failpoint!("token::before-use");
        let (outcome, position) = self.commit(caller, command, by).await?;
        hodei_state::failpoint!("token::after-use");
        let Outcome::Enrolled { issued, cluster } = outcome else {
            return Err(error::internal(format_args!("an enrolment came to {outcome:?}")));
        };
        let certificate = self.authority.issue(Subject { cluster, caller: issued }, &csr.public_key);
        let mut answer = EnrollResponse {
            cluster_id: cluster.to_string(),
            identity: Some(identity(issued)),
            certificate_pem: certificate.map_err(error::internal)?,
            ca_bundle_pem: self.authority.pem().to_owned(),
            ca_key_pem: String::new(),
            members: self.addresses(),
            position: Some(position),
            secrets_key: Vec::new(),
        };
        if matches!(issued, Caller::Node(_)) {
            self.authority.key_pem().clone_into(&mut answer.ca_key_pem);
            answer.secrets_key = self.vault.key().to_vec();
        }
        hodei_state::failpoint!("token::before-answer");
        tracing::info!(who = %issued, "enrolled");
        Ok(answer)
    }

    fn understand(&self, request: EnrollRequest) -> Result<(Token, Request, UseToken), Status> {
        let token: Token = request.token.parse().map_err(|_| error::invalid("token", "hodei1.ROLE.HASH.SECRET"))?;
        if token.authority != self.authority.hash() {
            return Err(error::refusal(&Refusal::TokenUnknown));
        }
        let csr = understand_csr(&request.csr_der)?;
        let nonce = understand_nonce(request.nonce)?;
        let id = match request.worker_id.as_str() {
            "" => Uuid::now_v7().as_u128(),
            text => text.parse::<WorkerId>().map_err(|error| error::invalid("worker_id", expected(&error)))?.0,
        };
        let command = UseToken {
            secret: token.secret_hash(),
            role: token.role,
            nonce,
            key: csr.key,
            id,
            address: request.address,
            version: request.version,
            feature_level: request.feature_level,
        };
        Ok((token, csr, command))
    }

    /// Everybody may knock; only who has a token that exists gets a command into the log.
    async fn check_known(&self, token: &Token, by: Instant) -> Result<(), Status> {
        let secret = token.secret_hash();
        let known = |view: &hodei_raft::View| view.state.tokens().any(|token| token.secret == secret);
        // An old view is enough to say yes: if the token has been forgotten since, the command is refused.
        if known(&self.handle.view()) || known(&self.read(by).await?) {
            return Ok(());
        }
        Err(error::refusal(&Refusal::TokenUnknown))
    }

    /// Where the members are.
    pub(super) fn addresses(&self) -> BTreeMap<u64, String> {
        let view = self.handle.view();
        let members = view.state.members().filter(|member| member.removed_at.is_none());
        members.map(|member| (member.id, member.address.clone())).collect()
    }
}

fn understand_csr(der: &[u8]) -> Result<Request, Status> {
    Request::verify(der).map_err(|expected| error::invalid("csr_der", expected))
}

fn understand_nonce(nonce: Vec<u8>) -> Result<[u8; 16], Status> {
    nonce.try_into().map_err(|_| error::invalid("nonce", "16 bytes"))
}

/// What an id's parser expected, without the word itself.
fn expected(error: &hodei_state::ids::ParseIdError) -> String {
    error.to_string().trim_start_matches("expected ").to_owned()
}
