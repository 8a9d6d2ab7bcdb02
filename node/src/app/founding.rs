//! The first command of a cluster, proposed by its founder until it is committed.

use std::time::Duration;

use hodei_raft::Handle;
use hodei_state::{
    command::{Command, Envelope, Init},
    ids::Caller,
    outcome::Outcome,
};
use tokio::time::Instant;

use crate::{
    cli::exit::Failure,
    data_dir::{DataDir, Identity},
    peers::hello::Myself,
    pki::{credentials::Credentials, token},
};

/// For one try.
const TRY: Duration = Duration::from_secs(5);

/// Founds the cluster where this node is its founder and has not done so yet.
///
/// # Errors
/// Where the state refuses, which takes a damaged directory.
pub async fn complete(
    handle: &Handle,
    dir: &DataDir,
    identity: &Identity,
    credentials: &Credentials,
    myself: &Myself,
) -> Result<(), Failure> {
    let Some(founder) = &identity.founder else { return Ok(()) };
    let admin_key = token::from_base32(&founder.admin_key)
        .ok_or_else(|| Failure::other(format!("{} is damaged", dir.join("identity.toml").display())))?;
    let init = Init {
        cluster: identity.cluster_id,
        ca: credentials.authority.der().to_vec(),
        address: myself.address.clone(),
        key: credentials.key,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        feature_level: hodei_state::FEATURE_LEVEL,
        admin: (founder.admin, admin_key),
    };
    let refused = |why: String| Failure::other(format!("the cluster cannot be founded: {why}"));
    handle.initialize().await.map_err(|error| refused(error.to_string()))?;
    loop {
        let envelope = Envelope { caller: Caller::Node(identity.node_id), command: Command::Init(init.clone()) };
        match handle.propose(envelope, Instant::now() + TRY).await {
            Ok(reply) => match reply.outcome {
                Outcome::Refused(refusal) => return Err(refused(refusal.to_string())),
                _ => break,
            },
            Err(error) => tracing::warn!(%error, "the cluster is not founded yet"),
        }
    }
    // From here on a lost log is a loss, not a beginning.
    dir.write_identity(&Identity { founder: None, ..identity.clone() })
}
