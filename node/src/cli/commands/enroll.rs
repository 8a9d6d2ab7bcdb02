//! `enroll`: a token for role user or admin against an identity of one's own.
//!
//! ```text
//! DIR/key.pem         0600; on disk before the token is shown to anybody
//! DIR/enrolment.toml  the nonce, until the certificate is written
//! DIR/ca.pem
//! DIR/cert.pem        written last: what has it is an identity
//! ```
//!
//! A definite refusal takes away what was written. Where the answer was lost, key and nonce stay, and the same command
//! with the same token succeeds.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use hodei_state::ids::Role;
use serde_json::{Value, json};

use crate::{
    cli::{
        Global,
        client_file::{self, Made},
        exit::{CommandResult, Failure},
        identity,
        output::{self, Output},
    },
    durable,
    enrol::{self, Admitted, Refused},
    files::Files,
    pki::{subject::Subject, token::Token},
};

const PLACE: enrol::Place = enrol::Place { key: "key.pem", memo: "enrolment.toml" };
const CERTIFICATE: &str = "cert.pem";
const AUTHORITIES: &str = "ca.pem";

/// Get an identity of one's own, as a user or an administrator.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hodei-node enroll 10.0.0.1:50051,10.0.0.2:50051 --token \"$(cat token)\"\n\nThe identity lies in --identity, by default ~/.config/hodei/identity, and becomes your default where you have none."
)]
pub struct Args {
    /// Nodes of the cluster, HOST:PORT, separated by commas
    #[arg(value_name = "ADDR[,ADDR]", value_delimiter = ',', required = true)]
    addresses: Vec<String>,
    /// What `hodei-node token create --role user` (or `admin`) printed
    #[arg(long, value_name = "T", env = "HODEI_TOKEN", hide_env_values = true)]
    token: String,
}

struct Enrolled {
    subject: Subject,
    directory: PathBuf,
    servers: Vec<String>,
    default: bool,
}

impl Output for Enrolled {
    fn table(&self) -> String {
        let (who, cluster, directory) = (self.subject.caller, self.subject.cluster, self.directory.display());
        let how = if self.default {
            "it is your default now".to_owned()
        } else {
            format!("use it with --identity {directory} --server {}", self.servers.join(","))
        };
        format!("enrolled as {who} of cluster {cluster}; the identity is in {directory}; {how}")
    }

    fn json(&self) -> Value {
        json!({
            "cluster_id": self.subject.cluster.to_string(),
            "role": crate::server::table::role(self.subject.caller).as_str(),
            "id": self.subject.caller.to_string().rsplit('/').next(),
            "identity": self.directory,
            "servers": self.servers,
            "default": self.default,
        })
    }

    fn quiet(&self) -> String {
        self.directory.display().to_string()
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let token: Token = self.token.parse().map_err(|error| Failure::bad_input(format!("--token: {error}")))?;
        if !matches!(token.role, Role::User | Role::Admin) {
            let message = format!("the token is for role {}; enrolling takes one for role user or admin", token.role);
            return Err(Failure::not_allowed(message));
        }
        let addresses: Vec<_> =
            self.addresses.iter().map(|address| identity::with_default_port(address)).collect::<Result<_, _>>()?;
        let place = match &global.identity {
            Some(dir) => dir.clone(),
            None => client_file::config_dir()
                .ok_or_else(|| Failure::bad_input("no home directory: give --identity DIR"))?
                .join("identity"),
        };
        let directory = Directory::take(&place)?;
        let admitted = enrol::exchange(&directory.files, PLACE, &addresses, &token, "", global.request_timeout).await;
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(refused) => return directory.give_up(refused),
        };
        directory.write_down(&admitted)?;
        let directory = fs::canonicalize(&place).unwrap_or(place);
        let servers = servers(addresses, &admitted);
        let default = match client_file::make_default("", &servers, &directory).await {
            Made::Default { .. } => true,
            Made::Taken => false,
            Made::Impossible(why) => {
                output::note(format_args!("warning: {why}"));
                false
            }
        };
        output::print(global.output, &Enrolled { subject: admitted.subject, directory, servers, default })?;
        Ok(0)
    }
}

/// The servers that were named, and then the members that were not: whoever dies, another one is known.
fn servers(named: Vec<String>, admitted: &Admitted) -> Vec<String> {
    let mut servers = named;
    for address in admitted.answer.members.values() {
        if !servers.contains(address) {
            servers.push(address.clone());
        }
    }
    servers
}

/// The identity's directory, locked while this process is at work.
struct Directory {
    files: Files,
    /// Those that had to be made, innermost first.
    made: Vec<PathBuf>,
    /// Released when dropped.
    _lock: File,
}

impl Directory {
    /// Makes and locks the directory. One that holds an identity, or a part of one that is nobody's attempt, is refused.
    fn take(path: &Path) -> Result<Self, Failure> {
        let files = Files::new("identity directory", path);
        let fail = |error: io::Error| files.not_writable(&error);
        let made = durable::make_directory(path).map_err(fail)?;
        let lock = File::open(path).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("the identity directory {} is in use by another process", path.display());
                return Err(Failure::bad_input(message));
            }
            Err(TryLockError::Error(error)) => return Err(fail(error)),
        }
        let parts = if files.join(PLACE.memo).exists() { &[CERTIFICATE][..] } else { &[CERTIFICATE, PLACE.key] };
        if let Some(part) = parts.iter().find(|part| files.join(part).exists()) {
            return Err(Failure::bad_input(format!(
                "{} is there already: remove that identity, or give another directory with --identity",
                files.join(part).display()
            )));
        }
        Ok(Self { files, made, _lock: lock })
    }

    /// Ends with a failure, and leaves nothing behind unless that is still needed.
    fn give_up(self, refused: Refused) -> CommandResult {
        if !refused.keep {
            // Best effort: there is an error to report already, and leftovers do no harm.
            for name in [PLACE.memo, PLACE.key] {
                let _ = durable::remove(&self.files.join(name));
            }
            durable::unmake_directories(&self.made);
        }
        Err(refused.failure)
    }

    fn write_down(&self, admitted: &Admitted) -> Result<(), Failure> {
        self.files.write(AUTHORITIES, admitted.answer.ca_bundle_pem.as_bytes(), durable::PUBLIC)?;
        self.files.write(CERTIFICATE, admitted.answer.certificate_pem.as_bytes(), durable::PUBLIC)?;
        // A leftover does no harm: the identity is whole.
        let _ = durable::remove(&self.files.join(PLACE.memo));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_leaves_nothing_that_was_not_there() {
        let base = tempfile::tempdir().unwrap();
        let refused = |keep| Refused { failure: Failure::not_allowed("used"), keep };
        let path = base.path().join("a/b");
        let directory = Directory::take(&path).unwrap();
        assert_eq!(Directory::take(&path).err().unwrap().exit, 2, "locked");
        directory.files.write(PLACE.key, b"key", durable::SECRET).unwrap();
        directory.files.write(PLACE.memo, b"", durable::PUBLIC).unwrap();
        assert!(directory.give_up(refused(true)).is_err());
        assert!(path.join(PLACE.key).exists());
        let directory = Directory::take(&path).unwrap();
        assert!(directory.give_up(refused(false)).is_err());
        assert!(path.exists(), "it was there before");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);

        let deeper = path.join("c/d");
        assert!(Directory::take(&deeper).unwrap().give_up(refused(false)).is_err());
        assert!(!path.join("c").exists() && path.exists());
    }

    #[test]
    fn what_is_somebodys_is_refused() {
        let base = tempfile::tempdir().unwrap();
        for name in [PLACE.key, CERTIFICATE] {
            let path = base.path().join(name);
            fs::write(&path, "").unwrap();
            let failure = Directory::take(base.path()).err().unwrap();
            assert_eq!(failure.exit, 2);
            assert!(failure.message.contains(name), "{failure}");
            fs::remove_file(path).unwrap();
        }
    }
}
