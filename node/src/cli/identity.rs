//! Who a client is and whom it asks: `--server`/`HODEI_SERVER`, `--identity`/`HODEI_IDENTITY`, and what stands in
//! `~/.config/hodei/client.toml` for what is not given.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::ClientConfig;
use serde::{Deserialize, Serialize};

use super::{Global, exit::Failure};
use crate::net::tls;

/// The defaults of this user: where the cluster is and who they are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// host:port of nodes.
    #[serde(default)]
    pub servers: Vec<String>,
    /// A directory with ca.pem, cert.pem and key.pem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<PathBuf>,
}

/// Where the defaults of this user lie: `$XDG_CONFIG_HOME/hodei/client.toml`, by default below `~/.config`.
#[must_use]
pub fn client_file_path() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(base.join("hodei").join("client.toml"))
}

/// Servers and identity of this invocation.
#[derive(Debug)]
pub struct Target {
    /// host:port, at least one.
    pub servers: Vec<String>,
    /// Trusts the cluster's authorities and shows the client's certificate.
    pub tls: Arc<ClientConfig>,
}

impl Target {
    /// Puts together flags, environment and the user's file, and reads the identity.
    ///
    /// # Errors
    /// Bad input, where there is no server, no identity, or an unreadable one.
    pub fn resolve(global: &Global) -> Result<Self, Failure> {
        let file = match client_file_path() {
            Some(path) if global.server.is_empty() || global.identity.is_none() => read_client_file(&path)?,
            _ => ClientFile::default(),
        };
        let servers = if global.server.is_empty() { file.servers } else { global.server.clone() };
        if servers.is_empty() {
            return Err(Failure::bad_input(
                "no server: give --server HOST:PORT or set HODEI_SERVER (`hodei-node init` and `dev` write a default)",
            ));
        }
        let servers = servers.iter().map(|server| with_default_port(server)).collect::<Result<_, _>>()?;
        let dir = global.identity.clone().or(file.identity).ok_or_else(|| {
            Failure::bad_input(
                "no identity: give --identity DIR or set HODEI_IDENTITY (a directory with ca.pem, cert.pem, key.pem)",
            )
        })?;
        Ok(Self { servers, tls: read_identity(&dir)? })
    }
}

/// Reads the user's file; one that does not exist is empty.
///
/// # Errors
/// Bad input, where it cannot be read or understood.
pub fn read_client_file(path: &Path) -> Result<ClientFile, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text)
            .map_err(|error| Failure::bad_input(format!("{}: {}", path.display(), error.message()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(ClientFile::default()),
        // An unreadable home is as good as none: flags and environment still work.
        Err(_) => Ok(ClientFile::default()),
    }
}

/// `host` or `host:port`; the default port is 50051. IPv6 literals stand in brackets.
///
/// # Errors
/// Bad input, where it is neither.
pub fn with_default_port(server: &str) -> Result<String, Failure> {
    let bad = || Failure::bad_input(format!("server {server:?}: expected HOST:PORT, for example 10.0.0.1:50051"));
    let server = server.trim();
    let has_port = match server.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            port.parse::<u16>().ok().filter(|&port| port > 0).ok_or_else(bad)?;
            true
        }
        Some(_) if server.starts_with('[') && server.ends_with(']') => false,
        Some(_) => return Err(bad()),
        None => false,
    };
    let full = if has_port { server.to_owned() } else { format!("{server}:50051") };
    let authority: http::uri::Authority = full.parse().map_err(|_| bad())?;
    if authority.host().is_empty() || authority.as_str().contains('@') { Err(bad()) } else { Ok(full) }
}

/// Reads `ca.pem`, `cert.pem` and `key.pem`.
///
/// # Errors
/// Bad input.
pub fn read_identity(dir: &Path) -> Result<Arc<ClientConfig>, Failure> {
    let read = |name: &str| {
        fs::read(dir.join(name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::bad_input(format!("no identity in {}: there is no {name}", dir.display()))
            }
            _ => Failure::bad_input(format!("cannot read {}: {error}", dir.join(name).display())),
        })
    };
    let (ca, cert, key) = (read("ca.pem")?, read("cert.pem")?, read("key.pem")?);
    tls::client_config(&ca, Some((&cert, &key)))
        .map(Arc::new)
        .map_err(|error| Failure::bad_input(format!("the identity in {} is not usable: {error}", dir.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_get_the_default_port() {
        assert_eq!(with_default_port("10.0.0.1").unwrap(), "10.0.0.1:50051");
        assert_eq!(with_default_port("n1.example:7").unwrap(), "n1.example:7");
        assert_eq!(with_default_port("[::1]").unwrap(), "[::1]:50051");
        assert_eq!(with_default_port("[::1]:9").unwrap(), "[::1]:9");
        for bad in ["", ":5", "a:b", "a:0", "::1", "a b:1", "u@h:1", "http://x:1"] {
            assert_eq!(with_default_port(bad).unwrap_err().exit, 2, "{bad}");
        }
    }
}
