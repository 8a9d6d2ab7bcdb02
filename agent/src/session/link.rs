//! Which node to try next, how long to wait before, and how to dial it.

use std::{future::Future, io, time::Duration};

use rand::Rng as _;
use tonic::transport::Channel;

/// This binary's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Makes a connection to a node. A seam: the product dials TLS, tests may do without.
pub trait Dial: Send + Sync + 'static {
    /// A connection that is established; it must not connect again by itself.
    fn dial(&self, address: &str) -> impl Future<Output = io::Result<Channel>> + Send;
}

/// Jittered, from 50 ms to 2 s.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: FIRST_PAUSE }
    }
}

impl Backoff {
    /// The next pause: between half and all of it, so that agents do not come back in step.
    pub fn pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}

/// The nodes in the order in which they are tried.
#[derive(Debug)]
pub struct Servers {
    given: Vec<String>,
    all: Vec<String>,
    at: usize,
    /// Failures since the last success; one round over all nodes costs no pause.
    failed: usize,
    backoff: Backoff,
}

impl Servers {
    /// Those given by the operator first, then those remembered.
    #[must_use]
    pub fn new(given: Vec<String>, remembered: &[String]) -> Self {
        let mut servers = Self { given, all: Vec::new(), at: 0, failed: 0, backoff: Backoff::default() };
        servers.learn(remembered);
        servers
    }

    /// The members, as a node named them. Returns whether the list has changed.
    pub fn learn(&mut self, members: &[String]) -> bool {
        let current = self.all.get(self.at).cloned();
        let mut all = self.given.clone();
        for member in members {
            if !member.is_empty() && !all.contains(member) {
                all.push(member.clone());
            }
        }
        let changed = all != self.all;
        self.all = all;
        self.at = current.and_then(|server| self.all.iter().position(|other| *other == server)).unwrap_or(0);
        changed
    }

    /// Whether there is another node to go to.
    #[must_use]
    pub fn has_choice(&self) -> bool {
        self.all.len() > 1
    }

    /// Whether there is another node to go to that has not failed since the last success.
    #[must_use]
    pub fn has_untried(&self) -> bool {
        self.failed + 1 < self.all.len()
    }

    /// The node to try now.
    #[must_use]
    pub fn current(&self) -> Option<String> {
        self.all.get(self.at).cloned()
    }

    /// The current node serves.
    pub fn succeeded(&mut self) {
        self.failed = 0;
        self.backoff = Backoff::default();
    }

    /// The current node does not, or no longer: the next one's turn, after this pause.
    pub fn failed(&mut self) -> Duration {
        self.at = (self.at + 1) % self.all.len().max(1);
        self.failed += 1;
        if self.failed < self.all.len() { Duration::ZERO } else { self.backoff.pause() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_node_is_tried_at_once_and_only_a_whole_round_costs_a_pause() {
        let mut servers = Servers::new(vec!["a".into()], &["b".into(), "a".into(), "c".into()]);
        let mut tried: Vec<String> = Vec::new();
        let mut pauses = Vec::new();
        let mut untried = Vec::new();
        for _ in 0..4 {
            tried.push(servers.current().unwrap());
            untried.push(servers.has_untried());
            pauses.push(servers.failed());
        }
        assert_eq!(
            (tried, untried),
            (vec!["a".into(), "b".into(), "c".into(), "a".into()], vec![true, true, false, false])
        );
        assert_eq!(pauses[..2], [Duration::ZERO; 2]);
        assert!(pauses[2] >= FIRST_PAUSE / 2 && pauses[2] < FIRST_PAUSE && pauses[3] >= FIRST_PAUSE);
        assert_eq!(servers.current().unwrap(), "b");
        assert!(servers.learn(&["b".into(), "d".into()]));
        assert_eq!(servers.current().unwrap(), "b", "learning does not move the agent");
        servers.succeeded();
        assert_eq!(servers.failed(), Duration::ZERO);
    }
}
