//! Who a client is and whom it asks: `--server`/`HODEI_SERVER`, `--identity`/`HODEI_IDENTITY`, and what stands in
//! `~/.config/hodei/client.toml` ([`client_file`]) for what is not given.

use std::{fs, io, path::Path, sync::Arc};

use rustls::ClientConfig;

use super::{
    Global,
    client_file::{self, ClientFile},
    exit::Failure,
    known_servers::KnownServers,
};
use crate::{net::tls, seal};

/// Servers and identity of this invocation.
#[derive(Debug)]
pub struct Target {
    /// host:port, at least one.
    pub servers: Vec<String>,
    /// Present where they are this user's default.
    pub known: Option<KnownServers>,
    /// Trusts the cluster's authorities and shows the client's certificate.
    pub tls: Arc<ClientConfig>,
}

impl Target {
    /// Puts together flags, environment and the user's file, and reads the identity.
    ///
    /// # Errors
    /// Bad input, where there is no server, no identity, or an unreadable one.
    pub fn resolve(global: &Global) -> Result<Self, Failure> {
        let path = client_file::path();
        let file = match &path {
            Some(path) if global.server.is_empty() || global.identity.is_none() => client_file::read(path)?,
            _ => ClientFile::default(),
        };
        // Another identity may be of another cluster.
        let default = global.server.is_empty() && global.identity.is_none();
        let servers = if global.server.is_empty() { file.servers } else { global.server.clone() };
        if servers.is_empty() {
            return Err(Failure::bad_input(
                "no server: give --server HOST:PORT or set HODEI_SERVER (`hodei-node init`, `enroll` and `dev` write a default)",
            ));
        }
        let servers = servers.iter().map(|server| with_default_port(server)).collect::<Result<Vec<_>, _>>()?;
        let known = path.filter(|_| default).map(|path| KnownServers::beside(&path, &servers));
        let servers = known.as_ref().map_or(servers, KnownServers::all);
        let dir = global.identity.clone().or(file.identity).ok_or_else(|| {
            Failure::bad_input(
                "no identity: give --identity DIR or set HODEI_IDENTITY (a directory with ca.pem, cert.pem, key.pem)",
            )
        })?;
        Ok(Self { servers, known, tls: read_identity(&dir)? })
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

/// What an identity consists of, in PEM.
pub struct Parts {
    /// Whom it believes.
    pub ca: Vec<u8>,
    /// The certificate, those of its authorities behind it.
    pub cert: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

/// Reads `ca.pem`, `cert.pem` and `key.pem`.
///
/// # Errors
/// Bad input: not there, or damaged.
pub fn read_files(dir: &Path) -> Result<Parts, Failure> {
    let read = |name: &str| {
        let path = dir.join(name);
        let sealed = fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::bad_input(format!("no identity in {}: there is no {name}", dir.display()))
            }
            _ => Failure::bad_input(format!("cannot read {}: {error}", path.display())),
        })?;
        let content = seal::unseal(&sealed).map(<[u8]>::to_vec);
        content.ok_or_else(|| Failure::bad_input(format!("{} is damaged: {}", path.display(), seal::BROKEN)))
    };
    Ok(Parts { ca: read("ca.pem")?, cert: read("cert.pem")?, key: read("key.pem")? })
}

/// How a client with this identity connects.
///
/// # Errors
/// Bad input: see [`read_files`], or of no use.
pub fn read_identity(dir: &Path) -> Result<Arc<ClientConfig>, Failure> {
    let Parts { ca, cert, key } = read_files(dir)?;
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
