//! Every file that a node or an agent writes below its data directory, and what shows that damage to it is never silent.
//!
//! That nothing is missing here is shown by `cluster-tests/tests/durable_files.rs`, which lets a cluster do all it can and
//! looks for each file that it finds.

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Below a node's data directory.
    Node,
    /// Below an agent's; its watchdogs and their guardians write there, too.
    Agent,
}

/// What is known of damage to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// This test goes through it.
    By(&'static str),
    /// Nobody relies on what it holds, for this reason.
    Needless(&'static str),
}

/// What an older copy of a file means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// The test puts older copies back; this becomes of them.
    Tried(&'static str),
    /// There never is an older copy, for this reason.
    Never(&'static str),
}

/// One kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose it is.
    pub of: Of,
    /// Relative to the data directory; `*` stands for anything but `/`, `**` for anything.
    pub path: &'static str,
    /// What it holds, and how damage to it is noticed.
    pub what: &'static str,
    /// What shows that.
    pub shown: Shown,
    /// And what an older copy is.
    pub stale: Stale,
}

const LOG: Shown = Shown::By("raft/tests/storage_damage.rs");
const STATE: Shown = Shown::By("raft/tests/state_damage.rs");
const TRANSFER: Shown = Shown::By("raft/src/network/receive.rs");
const NODE: Shown = Shown::By("node/src/damage.rs");
const AGENT: Shown = Shown::By("agent/tests/damage.rs");

const WRITTEN_ONCE: Stale = Stale::Never("it is written once");
const NOT_READ: Stale = Stale::Never("it is not read");

const fn node(path: &'static str, what: &'static str, shown: Shown, stale: Stale) -> Row {
    Row { of: Of::Node, path, what, shown, stale }
}

const fn agent(path: &'static str, what: &'static str, shown: Shown, stale: Stale) -> Row {
    Row { of: Of::Agent, path, what, shown, stale }
}

/// The table. The first row that fits a path is its own.
pub const FILES: &[Row] = &[
    // What is in preparation, wherever it is: it counts once it is renamed, and is written anew or removed otherwise.
    node(
        "**/.*.new",
        "a small file before it is renamed",
        Shown::Needless("it is removed before it is written"),
        NOT_READ,
    ),
    node(".*.new", "the same at the top", Shown::Needless("it is removed before it is written"), NOT_READ),
    node("**/*.tmp", "a file before it is renamed", Shown::Needless("it is removed at the next start"), NOT_READ),
    node("lock", "nothing: it is locked", Shown::Needless("it is empty"), NOT_READ),
    node(
        "identity.toml",
        "who this node is; sealed",
        NODE,
        Stale::Tried(
            "before it had a log: that is there, and noted again; of earlier starts: the state knows the newest; as a founder: \
             the cluster answers that it is founded; of the id before a replacement: the certificate is another one's",
        ),
    ),
    node(
        "peers.toml",
        "where the others were; sealed",
        NODE,
        Stale::Tried("an address is a hint: whoever answers there proves who they are, and tells where the others are"),
    ),
    node("pki/ca.pem", "the authority; sealed", NODE, WRITTEN_ONCE),
    node("pki/ca.key", "the authority's key; sealed", NODE, WRITTEN_ONCE),
    node(
        "pki/node.pem",
        "this node's certificate; sealed",
        NODE,
        Stale::Tried("it is as good until it is due, and then renewed; that of another id is refused"),
    ),
    node(
        "pki/node.key",
        "this node's key; sealed",
        NODE,
        Stale::Tried("that of the id before a replacement: the certificate is for another one"),
    ),
    node("pki/secrets.key", "the key of the secrets; sealed", NODE, WRITTEN_ONCE),
    node("pki/enrolment.toml", "an attempt to join; sealed", NODE, WRITTEN_ONCE),
    node("pki/replacement.key", "the key of an attempt to be replaced; sealed", NODE, WRITTEN_ONCE),
    node(
        "pki/replacement.toml",
        "such an attempt; sealed",
        NODE,
        Stale::Tried("without the answer: the same is asked again, and answered alike"),
    ),
    node("admin/ca.pem", "for the first administrator, whose command line reads it; sealed", NODE, WRITTEN_ONCE),
    node("admin/cert.pem", "the same", NODE, WRITTEN_ONCE),
    node("admin/key.pem", "the same", NODE, WRITTEN_ONCE),
    node(
        "wal/*.wal",
        "a segment of the log: CRC32C and a chain over all records",
        LOG,
        Stale::Tried("it ends before the high-water mark, or its records are void"),
    ),
    node(
        "wal/mark",
        "the log's high-water mark: two slots with a CRC32C each",
        LOG,
        Stale::Tried("what the log has beyond it is kept"),
    ),
    node(
        "db/**",
        "the state, written behind: CRC32C over each page of rows, a hash over all",
        STATE,
        Stale::Tried("an entry that the log knows: what follows is applied again; another one: made again"),
    ),
    node(
        "snapshots/*.snap",
        "the state at an entry: CRC32C over each block, a hash over all",
        STATE,
        Stale::Tried("the log must reach it"),
    ),
    node(
        "snapshots/*.partial",
        "what has come of a snapshot: verified as a whole before it is installed",
        TRANSFER,
        Stale::Tried("what is missing is sent"),
    ),
    node("payloads/*", "a job's script: named by its SHA-256", STATE, WRITTEN_ONCE),
    node("logs/cache/*", "what others hold of a log", Shown::Needless("it goes at the next start"), NOT_READ),
    node(
        "logs/*/*.log",
        "output of an attempt: CRC32C over each frame; its end states figures and a checksum",
        NODE,
        Stale::Tried("it ends before the figures that the end of the attempt states"),
    ),
    node("damaged/**", "what is left of a replica that was replaced", Shown::Needless("for people"), NOT_READ),
    node(
        "recovering/**",
        "a new replica in preparation",
        Shown::Needless("it counts once it is whole, and is then what the rows above say"),
        NOT_READ,
    ),
    agent("**/*.new", "a file before it is renamed", Shown::Needless("it is written anew"), NOT_READ),
    agent("*.new", "the same at the top", Shown::Needless("it is written anew"), NOT_READ),
    agent("lock", "nothing: it is locked", Shown::Needless("it is empty"), NOT_READ),
    agent("place", "where this directory is; sealed", AGENT, Stale::Never("it is written once, or again by hand")),
    agent("state", "where the nodes were; sealed", AGENT, Stale::Tried("an address is a hint, as above")),
    agent("pki/ca.pem", "whom it believes; sealed", AGENT, WRITTEN_ONCE),
    agent("pki/cert.pem", "who it is; sealed", AGENT, WRITTEN_ONCE),
    agent("pki/key.pem", "its key; sealed", AGENT, WRITTEN_ONCE),
    agent("pki/nonce", "an attempt to enrol; sealed", AGENT, WRITTEN_ONCE),
    agent("attempts/*/intent", "that a process may have been made, and what it has; sealed", AGENT, WRITTEN_ONCE),
    agent("attempts/*/process", "which process; sealed", AGENT, WRITTEN_ONCE),
    agent(
        "attempts/*/spool-*",
        "output: CRC32C over each frame; its end states figures and a checksum",
        AGENT,
        Stale::Tried("it ends before the figures, or the progress that its watchdog keeps"),
    ),
    agent("attempts/*/result", "how it ended; sealed", AGENT, WRITTEN_ONCE),
    agent(
        "attempts/*/ended",
        "how it ended, by its watchdog; sealed",
        AGENT,
        Stale::Tried("without how far the spool goes: the end is the same, and the log is said to be incomplete"),
    ),
    agent("attempts/*/rest-out", "output that no agent has taken; sealed", AGENT, WRITTEN_ONCE),
    agent("attempts/*/rest-err", "the same", AGENT, WRITTEN_ONCE),
    agent("attempts/*/guardian", "nothing: it is locked", Shown::Needless("it is empty"), NOT_READ),
    agent("attempts/*/watchdog", "a socket", Shown::Needless("it has no content"), NOT_READ),
    agent("attempts/*/watchdog.err", "what a watchdog said", Shown::Needless("for people"), NOT_READ),
    agent("attempts/*/nothing-left", "that it is there", Shown::Needless("it is empty"), NOT_READ),
    agent("attempts/.*/**", "what is being removed", Shown::Needless("it goes at the next start"), NOT_READ),
    agent("work/**", "the jobs' own files", Shown::Needless("they are removed before another agent looks"), NOT_READ),
];

/// The row of a file, by its path below the data directory.
#[must_use]
pub fn row(of: Of, path: &str) -> Option<&'static Row> {
    FILES.iter().find(|row| row.of == of && fits(row.path.as_bytes(), path.as_bytes()))
}

fn fits(pattern: &[u8], path: &[u8]) -> bool {
    let rest_from = |rest: &[u8], stop: fn(&u8) -> bool| {
        let end = path.iter().position(stop).unwrap_or(path.len());
        (0..=end).any(|skipped| fits(rest, &path[skipped..]))
    };
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => rest_from(rest, |_| false),
        [b'*', rest @ ..] => rest_from(rest, |byte| *byte == b'/'),
        [first, rest @ ..] => path.first() == Some(first) && fits(rest, &path[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_the_first_row_that_fits() {
        let of = |of, path| row(of, path).map(|row| row.path);
        assert_eq!(of(Of::Node, "wal/00000000000000000042.wal"), Some("wal/*.wal"));
        assert_eq!(of(Of::Node, "wal/mark.tmp"), Some("**/*.tmp"));
        assert_eq!(of(Of::Node, "pki/.node.pem.new"), Some("**/.*.new"));
        assert_eq!(of(Of::Node, ".identity.toml.new"), Some(".*.new"));
        assert_eq!(of(Of::Node, "db/blobs/1"), Some("db/**"));
        assert_eq!(of(Of::Node, "logs/cache/x.log"), Some("logs/cache/*"));
        assert_eq!(of(Of::Node, "logs/job/1.1.log"), Some("logs/*/*.log"));
        assert_eq!(of(Of::Agent, "attempts/job-1/spool-00000000000000000001"), Some("attempts/*/spool-*"));
        assert_eq!(of(Of::Agent, "attempts/job-1/ended.new"), Some("**/*.new"));
        for nobodys in ["notes", "pki/other", "wal/a/b.wal", "snapshots/x"] {
            assert_eq!(of(Of::Node, nobodys), None, "{nobodys}");
        }
    }
}
