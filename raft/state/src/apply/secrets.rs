//! Secrets: put, removed, and used.

use std::{collections::BTreeSet, result::Result as StdResult};

use super::{Context, Result};
use crate::{
    command::PutSecret,
    ids::{AttemptRef, SecretId, WorkerId},
    job::Job,
    outcome::{Outcome, Refusal},
    secret::{MAX_BYTES, MAX_PAST, MAX_SEAL, MAX_SECRETS, MAX_VALUE, Secret, SecretUse},
    spec::JobSpec,
    state::State,
    validate::{self, check},
};

impl State {
    /// A new version of a secret, or a new secret. An id that has been put already is not put again, whatever came after
    /// it: the answer to it was lost.
    pub(super) fn put_secret(&mut self, context: Context, put: &PutSecret) -> Result {
        validate::secret_name(&put.name, "name")?;
        check(put.secret != SecretId(0), "id", "a UUIDv7")?;
        let len = put.sealed.len();
        check((1..=MAX_VALUE + MAX_SEAL).contains(&len), "value", "1 byte to 64 KiB")?;
        let old = self.secret_named(&put.name).cloned();
        if let Some(old) = &old
            && (old.id == put.secret || old.past.contains(&put.secret))
        {
            return Ok(Outcome::SecretPut { version: old.version });
        }
        check(self.secret(put.secret).is_none(), "id", "an id that is not taken")?;
        check(old.is_some() || self.secrets.len() < MAX_SECRETS, "name", "at most 1,000 secrets")?;
        let others = self.secrets().filter(|secret| secret.name != put.name);
        let bytes = others.map(|secret| u64::from(secret.len)).sum::<u64>() + len as u64;
        check(bytes <= MAX_BYTES, "value", "at most 16 MiB in all secrets together")?;
        let now = self.stamp();
        let mut past = Vec::new();
        if let Some(old) = &old {
            past.clone_from(&old.past);
            past.push(old.id);
            past.drain(..past.len().saturating_sub(MAX_PAST));
            self.delete_secret(old.id);
        }
        let version = old.as_ref().map_or(1, |old| old.version.saturating_add(1));
        let secret = Secret {
            id: put.secret,
            name: put.name.clone(),
            version,
            key: put.key,
            len: len as u32,
            created_at: old.map_or(now, |old| old.created_at),
            put_at: now,
            put_by: context.caller,
            past,
        };
        self.insert_secret(secret, &put.sealed);
        Ok(Outcome::SecretPut { version })
    }

    /// Jobs that name it and have not started yet will not find it.
    pub(super) fn remove_secret(&mut self, secret: SecretId) -> Result {
        if self.secret(secret).is_none() {
            return Ok(Outcome::Unchanged);
        }
        self.delete_secret(secret);
        Ok(Outcome::Done)
    }

    /// Refuses a job that names a secret that does not exist: it could only fail.
    ///
    /// # Errors
    /// The first such secret.
    pub fn check_secrets(&self, spec: &JobSpec) -> StdResult<(), Refusal> {
        let named = spec.extras.iter().flat_map(|extras| &extras.secrets).enumerate();
        for (at, secret) in named {
            let expected = || format!("the name of a secret, and there is none named {:?}", secret.name);
            let field = || format!("secrets[{at}].name");
            if self.secret_named(&secret.name).is_none() {
                return Err(Refusal::Invalid { field: field(), expected: expected() });
            }
        }
        Ok(())
    }

    /// Remembers what an attempt is given: name and version of each.
    pub(super) fn note_secrets(
        &mut self,
        context: Context,
        job: &Job,
        spec: &JobSpec,
        attempt: AttemptRef,
        worker: WorkerId,
    ) -> Vec<(String, u64)> {
        let named = spec.extras.iter().flat_map(|extras| &extras.secrets);
        // One that is named twice is given once for the record.
        let known = named.filter_map(|secret| self.secret_named(&secret.name));
        let secrets: BTreeSet<_> = known.map(|secret| (secret.name.clone(), secret.version)).collect();
        let secrets: Vec<_> = secrets.into_iter().collect();
        if !secrets.is_empty() {
            let used = SecretUse { attempt, worker, owner: job.owner, at: self.stamp(), secrets: secrets.clone() };
            self.put_secret_use((context.index, context.offset), used);
        }
        secrets
    }
}
