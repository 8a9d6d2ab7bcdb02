//! What a job is given beside its spec. It is in this process' memory, in its watchdog's, and then in the job's; on no disk
//! and in nobody else's environment or arguments.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::File,
    io::{self, Seek as _, Write as _},
    os::fd::OwnedFd,
};

use hodei_proto::v1::{JobSpec, SecretValue};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::{
    log::mask,
    watchdog::{
        process::c_string,
        wire::{NotStarted, Obstacle},
    },
};

/// See the module.
#[derive(Debug, Default)]
pub struct Secrets {
    values: Vec<SecretValue>,
    missing: String,
}

impl Secrets {
    /// What the node sent: values, or the name of one that there is not.
    #[must_use]
    pub fn new(values: Vec<SecretValue>, missing: String) -> Self {
        Self { values, missing }
    }

    /// That everything is there which the spec names.
    pub fn check(&self, spec: &JobSpec) -> Result<(), NotStarted> {
        let given = |name: &str, env: &str| self.values.iter().any(|value| value.name == name && value.env == env);
        let lacking = || spec.secrets.iter().find(|named| !given(&named.name, &named.env)).map(|named| &named.name);
        let missing = if self.missing.is_empty() { lacking() } else { Some(&self.missing) };
        match missing {
            Some(name) => {
                let message = format!("secret {name}: removed, or not to be opened by the node that gave out the job");
                Err(NotStarted { obstacle: Obstacle::NoSecret, message })
            }
            None => Ok(()),
        }
    }

    /// Variables that the spec asks for.
    pub fn environment(&self) -> impl Iterator<Item = (String, String)> {
        self.values.iter().filter(|value| !value.env.is_empty()).map(|value| (value.env.clone(), value.value.clone()))
    }

    /// The others, as one JSON object, which is all that the job reads as its standard input: memory, so that nobody has
    /// to write while it reads, and its end is there from the beginning. `None`: there are none.
    pub fn stdin(&self) -> Result<Option<OwnedFd>, NotStarted> {
        let values = self.values.iter().filter(|value| value.env.is_empty());
        let values: BTreeMap<_, _> = values.map(|value| (&value.name, &value.value)).collect();
        if values.is_empty() {
            return Ok(None);
        }
        let write = || -> io::Result<OwnedFd> {
            let mut file = File::from(memfd_create(c"hodei-secrets", MFdFlags::MFD_CLOEXEC)?);
            let mut text = serde_json::to_vec(&values)?;
            text.push(b'\n');
            file.write_all(&text)?;
            file.rewind()?;
            Ok(file.into())
        };
        write().map(Some).map_err(|error| NotStarted::io("no memory for the secrets", &error))
    }

    /// What must not be seen in the job's output.
    pub fn masked(&self) -> Result<Vec<CString>, NotStarted> {
        let texts = mask::texts(self.values.iter().map(|value| value.value.as_str()));
        let texts = texts.into_iter().map(c_string).collect::<io::Result<_>>();
        texts.map_err(|error| NotStarted::io("secrets", &error))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use hodei_proto::v1::SecretRef;

    use super::*;

    fn value(name: &str, env: &str) -> SecretValue {
        SecretValue { name: name.to_owned(), env: env.to_owned(), value: format!("value of {name}") }
    }

    fn spec(named: &[(&str, &str)]) -> JobSpec {
        let secrets = named.iter().map(|(name, env)| SecretRef { name: (*name).into(), env: (*env).into() });
        JobSpec { secrets: secrets.collect(), ..JobSpec::default() }
    }

    #[test]
    fn what_asks_for_a_variable_is_no_input() {
        let secrets = Secrets::new(vec![value("a", ""), value("b", "B"), value("c\"", "")], String::new());
        let mut text = String::new();
        File::from(secrets.stdin().unwrap().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "{\"a\":\"value of a\",\"c\\\"\":\"value of c\\\"\"}\n");
        assert_eq!(secrets.environment().collect::<Vec<_>>(), [("B".to_owned(), "value of b".to_owned())]);
        assert!(Secrets::default().stdin().unwrap().is_none());
        assert!(!format!("{secrets:?}").contains("value of"), "never shown by accident");
    }

    #[test]
    fn what_is_missing_is_named() {
        let none = Secrets::new(Vec::new(), "db".to_owned());
        let why = none.check(&spec(&[("db", "")])).unwrap_err();
        assert!(why.obstacle == Obstacle::NoSecret && why.message.contains("db"), "{why:?}");
        let other = Secrets::new(vec![value("db", "")], String::new());
        assert!(other.check(&spec(&[("db", "")])).is_ok());
        assert!(other.check(&spec(&[("db", ""), ("db", "DB")])).is_err(), "from a node that knows none");
        assert!(Secrets::default().check(&spec(&[])).is_ok());
    }
}
