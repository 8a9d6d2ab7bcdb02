//! The process tree of an attempt as the agent reaches it: through its watchdog, and past it, where that is stopped, by its
//! control group.

use super::{cgroup::Cgroup, outcome::Cause};
use crate::{
    clock::Boot,
    watchdog::{guard::Voice, wire::Order},
};

/// What can be ended.
pub struct Tree {
    watchdog: Voice,
    cgroup: Option<Cgroup>,
}

impl Tree {
    /// Behind this watchdog.
    #[must_use]
    pub fn new(watchdog: Voice, cgroup: Option<Cgroup>) -> Self {
        Self { watchdog, cgroup }
    }

    /// The leader has granted more time.
    pub fn extend(&self, to: Boot) {
        self.watchdog.extend(to);
    }

    /// Kills all of it. May be repeated.
    pub fn kill(&self, cause: Cause) {
        // Told first, so that the watchdog knows why.
        self.watchdog.say(&Order::Kill(cause));
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
    }
}
