//! `SecretService`: secrets, for administrators. Values come in and never go out here.

use std::sync::Arc;

use hodei_proto::v1::{
    ListSecretUsesRequest, ListSecretUsesResponse, ListSecretsRequest, ListSecretsResponse, PutSecretRequest,
    PutSecretResponse, RemoveSecretRequest, RemoveSecretResponse, Secret, SecretUse,
    secret_service_server::SecretService,
};
use hodei_raft::Handle;
use hodei_state::{
    State,
    command::{Command, Envelope, PutSecret},
    ids::Caller,
    outcome::Outcome,
    secret::{MAX_USES, MAX_VALUE},
    validate,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use crate::{
    convert::{
        from_proto::{self, Bad},
        to_proto,
    },
    error,
    secrets::Vault,
    server::{auth, deadline},
};

/// Uses that are listed where the request does not say.
const LISTED: u32 = 100;

/// Serves `SecretService`.
#[derive(Clone)]
pub struct Secrets {
    handle: Handle,
    vault: Arc<Vault>,
}

impl Secrets {
    /// Seals with this vault.
    #[must_use]
    pub fn new(handle: Handle, vault: Arc<Vault>) -> Self {
        Self { handle, vault }
    }

    async fn read(&self, by: Instant) -> Result<hodei_raft::View, Status> {
        self.handle.read(by).await.map_err(error::read)
    }

    async fn commit(
        &self,
        caller: Caller,
        command: Command,
        by: Instant,
    ) -> Result<(Outcome, hodei_proto::v1::Position), Status> {
        let reply = self.handle.propose(Envelope { caller, command }, by).await.map_err(error::propose)?;
        match reply.outcome {
            Outcome::Refused(refusal) => Err(error::refusal(&refusal)),
            outcome => Ok((outcome, to_proto::position(reply.position.term, reply.position.index))),
        }
    }
}

/// A value goes to a job as a text in JSON or as a variable, so that it has to be one.
///
/// # Errors
/// What is wrong with it. The value itself is never said.
pub fn check_value(value: &[u8]) -> Result<(), Bad> {
    let good = (1..=MAX_VALUE).contains(&value.len()) && !value.contains(&0) && std::str::from_utf8(value).is_ok();
    if good { Ok(()) } else { Err(Bad::new("value", "1 byte to 64 KiB of UTF-8 without NUL")) }
}

fn name(name: &str) -> Result<(), Status> {
    validate::secret_name(name, "name").map_err(|invalid| Bad::from(invalid).into())
}

#[tonic::async_trait]
impl SecretService for Secrets {
    async fn put_secret(&self, request: Request<PutSecretRequest>) -> Result<Response<PutSecretResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        let request = request.into_inner();
        let value = Zeroizing::new(request.value);
        let secret = from_proto::id(&request.id, "id")?;
        name(&request.name)?;
        check_value(&value)?;
        let sealed = self.vault.seal(&request.name, secret, &value);
        let put = PutSecret { secret, name: request.name, key: self.vault.key_id(), sealed };
        match self.commit(caller, Command::PutSecret(Box::new(put)), by).await? {
            (Outcome::SecretPut { version }, position) => {
                Ok(Response::new(PutSecretResponse { version, position: Some(position) }))
            }
            (outcome, _) => Err(error::internal(format_args!("a secret's put came to {outcome:?}"))),
        }
    }

    async fn list_secrets(
        &self,
        request: Request<ListSecretsRequest>,
    ) -> Result<Response<ListSecretsResponse>, Status> {
        let view = self.read(deadline::of(&request)).await?;
        let secrets = view.state.secrets().map(|secret| Secret {
            name: secret.name.clone(),
            version: secret.version,
            created_at_ms: to_proto::ms(secret.created_at),
            put_at_ms: to_proto::ms(secret.put_at),
            put_by: Some(super::cluster::identity(secret.put_by)),
        });
        let position = Some(to_proto::position(view.position.term, view.position.index));
        Ok(Response::new(ListSecretsResponse { secrets: secrets.collect(), position }))
    }

    async fn remove_secret(
        &self,
        request: Request<RemoveSecretRequest>,
    ) -> Result<Response<RemoveSecretResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        let wanted = request.into_inner().name;
        name(&wanted)?;
        let view = self.read(by).await?;
        let Some(secret) = view.state.secret_named(&wanted) else {
            return Err(error::not_found(error::code::UNKNOWN_SECRET, format!("no secret {wanted}")));
        };
        let (_, position) = self.commit(caller, Command::RemoveSecret { secret: secret.id }, by).await?;
        Ok(Response::new(RemoveSecretResponse { position: Some(position) }))
    }

    async fn list_secret_uses(
        &self,
        request: Request<ListSecretUsesRequest>,
    ) -> Result<Response<ListSecretUsesResponse>, Status> {
        let by = deadline::of(&request);
        let request = request.into_inner();
        let limit = if request.limit == 0 { LISTED } else { request.limit };
        if limit as usize > MAX_USES {
            return Err(error::invalid("limit", "at most 100,000"));
        }
        let view = self.read(by).await?;
        let position = Some(to_proto::position(view.position.term, view.position.index));
        let uses = uses(&view.state, &request.name).take(limit as usize).collect();
        Ok(Response::new(ListSecretUsesResponse { uses, position }))
    }
}

/// Uses of one secret, or of all, newest first.
fn uses<'a>(state: &'a State, name: &'a str) -> impl Iterator<Item = SecretUse> + 'a {
    state.secret_uses().flat_map(move |used| {
        let given = used.secrets.iter().filter(move |(given, _)| name.is_empty() || given == name);
        given.map(|(name, version)| SecretUse {
            name: name.clone(),
            version: *version,
            attempt: Some(to_proto::attempt_ref(&used.attempt)),
            worker_id: used.worker.to_string(),
            owner: Some(super::cluster::identity(used.owner)),
            at_ms: to_proto::ms(used.at),
        })
    })
}
