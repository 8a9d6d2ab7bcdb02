//! What a job is given beside its spec.

use hodei_proto::v1::SecretValue;
use hodei_state::{State, spec::JobSpec};

use super::Session;

impl Session {
    /// The values of the secrets that a job names, newest versions, or the name of the first that is missing. That they
    /// are given is in the replicated state since the attempt was assigned.
    pub(super) fn secrets(&self, state: &State, spec: &JobSpec) -> Result<Vec<SecretValue>, String> {
        let named = spec.extras.iter().flat_map(|extras| &extras.secrets);
        named
            .map(|named| {
                let missing = || named.name.clone();
                let secret = state.secret_named(&named.name).ok_or_else(missing)?;
                let value = self.gateway.vault.open(secret, state.sealed(secret.id)).map_err(|error| {
                    tracing::error!(secret = secret.name, version = secret.version, %error, "cannot open a secret");
                    missing()
                })?;
                // What was put has been checked to be text.
                let value = String::from_utf8(value.to_vec()).map_err(|_| missing())?;
                Ok(SecretValue { name: named.name.clone(), env: named.env.clone().unwrap_or_default(), value })
            })
            .collect()
    }
}
