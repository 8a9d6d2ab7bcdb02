//! The command line's connection to the cluster: over all its servers, inside one deadline.
//!
//! A request goes to one server. When that one cannot be reached, or says that it did nothing (`not_done`), or the
//! answer is lost, the same message, with the same ids in it, goes to the next, until the deadline. Repeating is safe
//! because every command is idempotent by an id that its client made before the first try. An answer that is definite
//! ends it. What is still open at the deadline is "unreachable" (exit 69) if no try can have had an effect, and
//! "unknown" (75) if one may have had.

use std::{future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout_at},
};
use tonic::{Code, Response, Status, metadata::MetadataMap, transport::Channel};

use super::{Global, exit::Failure, identity::Target, known_servers::KnownServers};
use crate::{
    error,
    net::{
        SERVERS_KEY,
        connector::{self, ConnectError},
        tls,
    },
};

/// Between rounds over all servers.
const PAUSE: Duration = Duration::from_millis(50);
/// No single try gets less than this while the deadline allows it.
const SHORTEST_TRY: Duration = Duration::from_secs(1);

/// A further try is not begun with less than this: cut off before its answer, it would turn "not done" into "unknown".
const TOO_SHORT: Duration = Duration::from_millis(500);

/// A connection to one server, with the time that a call on it may take.
#[derive(Clone)]
pub struct Conn {
    /// To make a generated client of.
    pub channel: Channel,
    timeout: Option<Duration>,
}

impl Conn {
    /// A request that carries its deadline, so that the node answers before the client gives up.
    pub fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(timeout) = self.timeout {
            // The node answers a little earlier than this side stops listening.
            request.set_timeout(timeout - (timeout / 10).min(Duration::from_millis(250)));
        }
        request
    }
}

/// What a try without a definite answer means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    WriteOnce,
}

/// The cluster, as the command line sees it.
pub struct Client {
    /// Grows while members are heard of.
    servers: Mutex<Vec<String>>,
    known: Mutex<Option<KnownServers>>,
    tls: Arc<ClientConfig>,
    request_timeout: Duration,
    /// Why the newest try brought no answer.
    trouble: Mutex<Option<String>>,
    /// Which server is asked next, and the channel to it while it works.
    current: Mutex<(usize, Option<Channel>)>,
}

impl Client {
    /// Reads identity and servers; connects to nobody yet.
    ///
    /// # Errors
    /// Bad input.
    pub fn new(global: &Global) -> Result<Self, Failure> {
        let target = Target::resolve(global)?;
        let client = Self::to(target.servers, target.tls, global.request_timeout);
        Ok(Self { known: Mutex::new(target.known), ..client })
    }

    /// A client of these servers (at least one) under this identity.
    #[must_use]
    pub fn to(servers: Vec<String>, tls: Arc<ClientConfig>, request_timeout: Duration) -> Self {
        Self {
            servers: Mutex::new(servers),
            known: Mutex::new(None),
            tls,
            request_timeout,
            trouble: Mutex::new(None),
            current: Mutex::new((0, None)),
        }
    }

    /// The same with a request timeout of at most this.
    #[must_use]
    pub fn at_most(self, request_timeout: Duration) -> Self {
        Self { request_timeout: self.request_timeout.min(request_timeout), ..self }
    }

    /// Why the cluster does not answer at present, if it does not.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    fn count(&self) -> usize {
        self.servers.lock().len()
    }

    /// Takes over the members that an answer names. Those that are asked already keep their places.
    /// Returns what is to be kept.
    fn learn(&self, metadata: &MetadataMap) -> Option<KnownServers> {
        let named = metadata.get(SERVERS_KEY)?.to_str().ok()?;
        let mut known = self.known.lock();
        let known = known.as_mut()?;
        if !known.learn(named) {
            return None;
        }
        let mut servers = self.servers.lock();
        let new: Vec<_> = known.all().into_iter().filter(|server| !servers.contains(server)).collect();
        servers.extend(new);
        Some(known.clone())
    }

    /// Asks something that changes nothing.
    ///
    /// # Errors
    /// A definite refusal, or that nobody answered within the request timeout (exit 69).
    pub async fn read<T, F, Fut>(&self, call: F) -> Result<T, Failure>
    where
        F: FnMut(Conn) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(Kind::Read, Instant::now() + self.request_timeout, call).await
    }

    /// Asks for a change. `call` may run several times and must send the same message, ids included, each time.
    ///
    /// # Errors
    /// A definite refusal, not done within the request timeout (exit 69), or outcome unknown (exit 75).
    pub async fn write<T, F, Fut>(&self, call: F) -> Result<T, Failure>
    where
        F: FnMut(Conn) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(Kind::Write, Instant::now() + self.request_timeout, call).await
    }

    /// Asks for a change that would be another one if it were asked for again: only what certainly did nothing is tried
    /// again.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn write_once<T, F, Fut>(&self, call: F) -> Result<T, Failure>
    where
        F: FnMut(Conn) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(Kind::WriteOnce, Instant::now() + self.request_timeout, call).await
    }

    /// Opens a stream on whichever server answers first in turn. The stream itself has no deadline: what bounds the
    /// wait for the response's head is `within`, by default the request timeout.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn open<T, F, Fut>(&self, within: Option<Duration>, mut call: F) -> Result<T, Failure>
    where
        F: FnMut(Conn) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + within.unwrap_or(self.request_timeout);
        self.call(Kind::Read, deadline, |conn| call(Conn { timeout: None, ..conn })).await
    }

    /// Leaves the current server, for example when a stream from it broke.
    pub fn next_server(&self) {
        let mut current = self.current.lock();
        *current = ((current.0 + 1) % self.count(), None);
    }

    async fn call<T, F, Fut>(&self, kind: Kind, deadline: Instant, mut call: F) -> Result<T, Failure>
    where
        F: FnMut(Conn) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut open = Open::default();
        let mut tries = 0;
        // Servers of another cluster in a row.
        let mut foreign = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || (tries > 0 && left < TOO_SHORT) {
                return Err(open.failure(kind));
            }
            let share = if self.count() > 1 { (left / 2).max(SHORTEST_TRY).min(left) } else { left };
            match self.attempt(share, &mut call).await {
                Ok(answer) => {
                    *self.trouble.lock() = None;
                    return Ok(answer);
                }
                Err(Tried::Definite(failure)) => return Err(failure),
                Err(Tried::Foreign { server }) => {
                    foreign += 1;
                    let message = format!("{server} belongs to another cluster than this identity");
                    if foreign >= self.count() && !open.may_have_had_effect {
                        return Err(Failure::not_allowed(message));
                    }
                    open.add(false, None, message);
                }
                Err(Tried::Open { sent, code, why }) => {
                    foreign = 0;
                    *self.trouble.lock() = Some(why.clone());
                    open.add(sent, code, why);
                    if sent && kind == Kind::WriteOnce {
                        return Err(open.failure(kind));
                    }
                }
            }
            self.next_server();
            tries += 1;
            if tries % self.count() == 0 {
                sleep(PAUSE.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
        }
    }

    /// One try on the current server.
    async fn attempt<T, F, Fut>(&self, share: Duration, call: &mut F) -> Result<T, Tried>
    where
        F: FnMut(Conn) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + share;
        let (server, channel) = self.connected().await?;
        let timeout = until.saturating_duration_since(Instant::now());
        let conn = Conn { channel, timeout: Some(timeout) };
        match timeout_at(until, call(conn)).await {
            Ok(Ok(response)) => {
                if let Some(known) = self.learn(response.metadata()) {
                    // Where it cannot be written, the next invocation hears it again.
                    let _ = timeout_at(until, spawn_blocking(move || known.keep())).await;
                }
                Ok(response.into_inner())
            }
            Ok(Err(status)) => Err(classify(&server, &status)),
            Err(_) => Err(Tried::Open { sent: true, code: None, why: format!("{server}: no answer in time") }),
        }
    }

    async fn connected(&self) -> Result<(String, Channel), Tried> {
        let (at, channel) = self.current.lock().clone();
        let server = self.servers.lock()[at].clone();
        if let Some(channel) = channel {
            return Ok((server, channel));
        }
        match connector::connect(&server, tls::ANY_NODE, self.tls.clone()).await {
            Ok(channel) => {
                *self.current.lock() = (at, Some(channel.clone()));
                Ok((server, channel))
            }
            Err(error @ ConnectError::Identity(_)) => {
                Err(Tried::Definite(Failure::not_allowed(format!("{server}: {error}"))))
            }
            Err(ConnectError::Foreign) => Err(Tried::Foreign { server }),
            Err(error) => Err(Tried::Open { sent: false, code: None, why: format!("{server}: {error}") }),
        }
    }
}

/// How a try ended that brought no answer.
enum Tried {
    /// Somebody who knows said no.
    Definite(Failure),
    /// The server is not of this cluster; another one may be.
    Foreign { server: String },
    /// Another try may help. `sent`: this one may have had an effect.
    Open { sent: bool, code: Option<String>, why: String },
}

fn classify(server: &str, status: &Status) -> Tried {
    // The failure begins with these words already.
    let message = status.message().strip_prefix("outcome unknown: ").unwrap_or(status.message());
    let why = || format!("{server}: {message}");
    match error::detail(status) {
        Some(detail) if status.code() == Code::Unavailable => {
            Tried::Open { sent: !detail.not_done, code: Some(detail.code), why: why() }
        }
        Some(detail) if detail.code == error::code::OUTCOME_UNKNOWN => {
            Tried::Open { sent: true, code: Some(detail.code), why: why() }
        }
        Some(_) => Tried::Definite(Failure::from_status(status)),
        // Worded by the transport on this side or the other: connection lost, deadline, stream reset.
        None => match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Internal => {
                Tried::Open { sent: true, code: None, why: format!("{server}: {}", connector::root_cause(status)) }
            }
            _ => Tried::Definite(Failure::from_status(status)),
        },
    }
}

/// What the tries so far add up to.
#[derive(Default)]
struct Open {
    may_have_had_effect: bool,
    last: String,
    code: Option<String>,
}

impl Open {
    fn add(&mut self, sent: bool, code: Option<String>, why: String) {
        // The try that may have had an effect is the one to tell of.
        if sent || !self.may_have_had_effect {
            self.last = why;
            self.code = code;
        }
        self.may_have_had_effect |= sent;
    }

    fn failure(self, kind: Kind) -> Failure {
        let why = if self.last.is_empty() { "the request timeout is too short".to_owned() } else { self.last };
        if kind != Kind::Read && self.may_have_had_effect {
            Failure::unknown(format!("outcome unknown: {why}"))
        } else {
            let failure = Failure::unreachable(format!("no answer within the request timeout: {why}"));
            match self.code {
                Some(code) => failure.coded(code),
                None => failure,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(status: &Status) -> Option<bool> {
        match classify("n1:1", status) {
            Tried::Definite(_) | Tried::Foreign { .. } => None,
            Tried::Open { sent, .. } => Some(sent),
        }
    }

    #[test]
    fn only_a_node_that_says_so_did_nothing() {
        assert_eq!(sent(&error::no_quorum("1 of 3")), Some(false));
        assert_eq!(sent(&error::unavailable("stopping")), Some(false));
        assert_eq!(sent(&error::outcome_unknown("leader changed")), Some(true));
        assert_eq!(sent(&Status::unavailable("transport error")), Some(true));
        assert_eq!(sent(&Status::cancelled("Timeout expired")), Some(true));
        assert_eq!(sent(&error::invalid("name", "shorter")), None);
        assert_eq!(sent(&error::not_allowed("no")), None);
    }

    #[test]
    fn a_read_is_never_unknown() {
        let open = |sent| {
            let mut open = Open::default();
            open.add(sent, None, "n1: gone".into());
            open
        };
        assert_eq!(open(true).failure(Kind::Read).exit, 69);
        assert_eq!(open(true).failure(Kind::Write).exit, 75);
        assert_eq!(open(false).failure(Kind::Write).exit, 69);
    }
}
