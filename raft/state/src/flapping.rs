//! Workers that lose what they run are set aside for a while: they get no jobs, and what runs there goes on.
//!
//! # What a flap is
//!
//! - **A lost session**: a new agent process takes over its worker although the one before neither ended its session nor
//!   said that it was ending. It is none where the new process adopts all that the old one ran, and that was something:
//!   then nothing was lost.
//! - **A lost attempt**: its lease ran out, or a later session found it dead. It is none where something else accounts for
//!   that: its job was cancelled, it was taken back, it had run out of time.
//!
//! What goes wrong at once counts once: a session or attempt that began before the newest flap is part of that one. A
//! machine that dies with a hundred jobs and comes back has flapped once. Streams that break are no flaps, nor is
//! anything that an agent reports itself, so that neither an agent that is restarted as it should be nor an outage or
//! upgrade of the nodes counts at all.
//!
//! # What comes of it
//!
//! So many flaps within a window set the worker aside. A flap while it is set aside prolongs that to the same span from
//! then on; each time that it is set aside anew, the span doubles, up to a bound. Once it has had jobs again for as long
//! as that bound without being set aside, the span starts over. An operator may end it at once ([`Command::UndrainWorker`]).
//!
//! Time is the state's: the leader says when a span is over ([`Command::SetAsideOver`]), and the stamp of that command
//! judges.
//!
//! [`Command::UndrainWorker`]: crate::command::Command::UndrainWorker
//! [`Command::SetAsideOver`]: crate::command::Command::SetAsideOver

use serde::{Deserialize, Serialize};

use crate::{
    ids::Millis,
    registry::Worker,
    validate::{Invalid, check},
};

/// The most flaps that may be allowed for: each is kept in the worker's row.
const MAX_FLAPS: u32 = 16;
const SECOND_MS: u64 = 1_000;
const DAY_MS: u64 = 24 * 3_600_000;

/// When workers are set aside, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAsidePolicy {
    /// So many flaps set a worker aside; 0: none ever does.
    pub flaps: u32,
    /// If they come within this time.
    pub window_ms: u64,
    /// For so long at first.
    pub first_ms: u64,
    /// For so long at most.
    pub longest_ms: u64,
}

impl Default for SetAsidePolicy {
    /// Three flaps in five minutes; from one minute to a quarter of an hour.
    fn default() -> Self {
        Self { flaps: 3, window_ms: 300_000, first_ms: 60_000, longest_ms: 900_000 }
    }
}

impl SetAsidePolicy {
    /// For how long a worker is set aside for the nth time in a row.
    fn span_ms(&self, spells: u32) -> u64 {
        let doublings = spells.saturating_sub(1).min(63);
        self.first_ms.saturating_mul(1 << doublings).min(self.longest_ms)
    }
}

/// A new policy; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAsideChange {
    /// See [`SetAsidePolicy`].
    pub flaps: Option<u32>,
    /// See [`SetAsidePolicy`].
    pub window_ms: Option<u64>,
    /// See [`SetAsidePolicy`].
    pub first_ms: Option<u64>,
    /// See [`SetAsidePolicy`].
    pub longest_ms: Option<u64>,
}

impl SetAsideChange {
    /// Whether it changes anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The policy after the change.
    ///
    /// # Errors
    /// A value that is out of bounds.
    pub fn of(&self, policy: SetAsidePolicy) -> Result<SetAsidePolicy, Invalid> {
        let policy = SetAsidePolicy {
            flaps: self.flaps.unwrap_or(policy.flaps),
            window_ms: self.window_ms.unwrap_or(policy.window_ms),
            first_ms: self.first_ms.unwrap_or(policy.first_ms),
            longest_ms: self.longest_ms.unwrap_or(policy.longest_ms),
        };
        check(policy.flaps <= MAX_FLAPS, "set_aside.flaps", "0 to 16")?;
        check((SECOND_MS..=DAY_MS).contains(&policy.window_ms), "set_aside.window", "1 s to 24 h")?;
        check((SECOND_MS..=DAY_MS).contains(&policy.longest_ms), "set_aside.longest", "1 s to 24 h")?;
        let first = (SECOND_MS..=policy.longest_ms).contains(&policy.first_ms);
        check(first, "set_aside.first", "1 s to set_aside.longest")?;
        Ok(policy)
    }
}

/// What was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loss {
    /// An agent process, with all that it said.
    Session,
    /// An attempt.
    Attempt,
}

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flap {
    /// When.
    pub at: Millis,
    /// Of what.
    pub loss: Loss,
}

/// What is remembered of a worker's flaps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flaps {
    /// Those within the window before the newest, newest last; no more than set a worker aside.
    pub recent: Vec<Flap>,
    /// How often it has been set aside in a row.
    pub spells: u32,
    /// When it was last set aside until.
    pub spell_end: Millis,
}

/// A worker gets no jobs for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    /// Since when.
    pub since: Millis,
    /// Until when, unless it flaps once more before.
    pub until: Millis,
    /// Lost sessions among the flaps that led to it.
    pub sessions: u32,
    /// Lost attempts among them.
    pub attempts: u32,
}

impl Worker {
    /// Takes up that something which began at `began` was lost now. `Some`: the worker is set aside for it.
    pub(crate) fn lose(&mut self, loss: Loss, began: Millis, now: Millis, policy: SetAsidePolicy) -> Option<SetAside> {
        let flaps = &mut self.flaps;
        let counted = flaps.recent.last().is_some_and(|newest| began < newest.at);
        if policy.flaps == 0 || counted {
            return None;
        }
        flaps.recent.retain(|flap| flap.at.plus(policy.window_ms) > now);
        flaps.recent.push(Flap { at: now, loss });
        let most = policy.flaps as usize;
        flaps.recent.drain(..flaps.recent.len().saturating_sub(most));
        if flaps.recent.len() < most {
            return None;
        }
        if self.set_aside.is_none() {
            let quiet = now > flaps.spell_end.plus(policy.longest_ms);
            flaps.spells = if quiet { 1 } else { flaps.spells.saturating_add(1) };
        }
        let until = now.plus(policy.span_ms(flaps.spells));
        let lost = |what: Loss| flaps.recent.iter().filter(|flap| flap.loss == what).count();
        let set_aside = SetAside {
            since: self.set_aside.map_or(now, |set_aside| set_aside.since),
            until: self.set_aside.map_or(until, |set_aside| set_aside.until.max(until)),
            sessions: u32::try_from(lost(Loss::Session)).unwrap_or(u32::MAX),
            attempts: u32::try_from(lost(Loss::Attempt)).unwrap_or(u32::MAX),
        };
        self.flaps.spell_end = set_aside.until;
        self.set_aside = Some(set_aside);
        Some(set_aside)
    }
}
