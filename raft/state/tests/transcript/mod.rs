//! Runs one transcript: its commands, and what they show.

mod names;
mod parse;
mod show;

use std::{error::Error, fmt::Write as _};

use goldenscript::Command as Line;
use hodei_state::{
    Liveness, Now, Retention, State,
    backlog::backlog,
    command::{Command, Envelope},
    explain::{Subject, explain},
    ids::{Caller, Millis, Mono},
    invariants,
    outcome::Outcome,
    plan, retention,
    score::Usage,
    validate,
};

use parse::Arguments;

type Shown = Result<String, Box<dyn Error>>;

/// One state under one script. The leader's monotonic clock and the stamp move together; an entry of the log carries
/// one command, unless `batch` says otherwise.
pub struct Runner {
    state: State,
    liveness: Option<Liveness>,
    index: u64,
    offset: u32,
    batching: bool,
    now: u64,
}

impl Default for Runner {
    fn default() -> Self {
        Self { state: State::new(), liveness: None, index: 0, offset: 0, batching: false, now: 1_000_000 }
    }
}

impl goldenscript::Runner for Runner {
    fn run(&mut self, line: &Line) -> Shown {
        let view = self.state.clone();
        let arguments = Arguments::new(line, &view);
        if let Some(envelope) = arguments.envelope()? {
            if let Command::SubmitJob(submission) = &envelope.command
                && let Err(invalid) = validate::supported(&submission.spec)
            {
                // What a node does before it proposes anything.
                return Ok(format!("turned away: {invalid}"));
            }
            return Ok(self.apply(&envelope));
        }
        match line.name.as_str() {
            "setup" => self.setup(&arguments),
            "advance" => {
                self.now += arguments.number_at(0)?;
                Ok(String::new())
            }
            "stamp" => Ok(format!("stamp {}", self.state.stamp().0)),
            "batch" => {
                self.batching = arguments.word(0)? == "begin";
                if self.batching {
                    (self.index, self.offset) = (self.index + 1, 0);
                }
                Ok(String::new())
            }
            "restart" => self.restart(),
            "changes" => {
                let changes = self.state.take_changes();
                Ok(show::changes(&changes, &self.state))
            }
            "elect" => {
                self.liveness = Some(Liveness::elected(arguments.number("term", 1)?, &self.state, Mono(self.now)));
                Ok(String::new())
            }
            "heartbeat" => self.heartbeat(&arguments),
            "expire" | "lose" => self.expire(line.name == "lose"),
            "deadline" => {
                let deadline = self.liveness()?.next_deadline(&view);
                Ok(deadline.map_or("none".to_string(), |at| format!("in {} ms", at.0.saturating_sub(self.now))))
            }
            "plan" | "schedule" => self.plan(line.name == "schedule"),
            "explain" => self.explain(&arguments),
            "queue" => Ok(self.queue(&arguments)),
            "retain" => self.retain(&arguments),
            "use-many" => self.use_many(&arguments),
            "use-and-remove" => self.use_and_remove(&arguments),
            _ => show::query(&self.state, &arguments),
        }
    }
}

impl Runner {
    fn liveness(&mut self) -> Result<&mut Liveness, Box<dyn Error>> {
        self.liveness.as_mut().ok_or_else(|| "elect a leader first".into())
    }

    /// Applies a command, and checks what must hold of every state, and that a refusal changed nothing.
    fn apply(&mut self, envelope: &Envelope) -> String {
        if !self.batching {
            (self.index, self.offset) = (self.index + 1, 0);
        }
        let before = self.state.clone();
        let outcome = self.state.apply(self.index, self.offset, Millis(self.now), envelope);
        self.offset += 1;
        let violations = invariants::check(&self.state);
        assert!(violations.is_empty(), "after {envelope:?}: {violations:?}");
        if matches!(outcome, Outcome::Refused(_) | Outcome::Unchanged) {
            let mut idle = before;
            // The same command from a caller nobody knows moves the time, and nothing else.
            let nobody = Envelope { caller: Caller::Node(u64::MAX), command: envelope.command.clone() };
            idle.apply(self.index, self.offset, Millis(self.now), &nobody);
            assert_eq!(idle.hash(), self.state.hash(), "{outcome:?} changed the state");
        }
        show::outcome(&outcome)
    }

    fn apply_all(&mut self, commands: Vec<Command>) -> String {
        let mut shown = String::new();
        for command in commands {
            let text = show::command(&command);
            let outcome = self.apply(&Envelope { caller: Caller::Node(1), command });
            writeln!(shown, "{text}\n  {outcome}").unwrap();
        }
        shown
    }

    /// setup [workers=N] [slots=N] [cpu=MILLIS] [memory=MB]: a cluster of one node with admin a1, user u1, and workers
    /// w1 … with sessions s1 … attached to n1, a leader elected, and a heartbeat of each worker.
    fn setup(&mut self, arguments: &Arguments<'_>) -> Shown {
        let steps = parse::setup(arguments)?;
        for envelope in steps {
            let shown = self.apply(&envelope);
            assert!(!shown.starts_with("refused"), "{envelope:?}: {shown}");
        }
        self.liveness = Some(Liveness::elected(1, &self.state, Mono(self.now)));
        for worker in 1..=arguments.number("workers", 0)? {
            let on = names::session_ref(&format!("w{worker}/s{worker}"))?;
            let now = Mono(self.now);
            let (state, liveness) = (&self.state, self.liveness.as_mut().expect("elected above"));
            liveness.confirm(state, on, 1, &[], now, now);
        }
        self.state.take_changes();
        Ok(String::new())
    }

    /// use-many TOKEN N: agents w3001 … use a token, each under its own nonce and key.
    fn use_many(&mut self, arguments: &Arguments<'_>) -> Shown {
        let token = arguments.word(0)?;
        for at in 1..=arguments.number_at(1)? {
            let shown = self.apply(&parse::command(&format!("use {token} id=w{} nonce={at} key={at}", 3000 + at))?);
            assert!(!shown.starts_with("refused"), "{shown}");
        }
        Ok(String::new())
    }

    /// use-and-remove TOKEN N: agents use a token, open a session, and are removed, one after the other.
    fn use_and_remove(&mut self, arguments: &Arguments<'_>) -> Shown {
        let token = arguments.word(0)?;
        for at in 1..=arguments.number_at(1)? {
            let worker = format!("w{}", 10_000 + at);
            for line in [
                // Keys are a byte each, and void once their bearer is removed: the nonce alone tells these apart.
                format!("use {token} id={worker} nonce=1 key=1"),
                format!("open {worker}/s1"),
                format!("remove-worker {worker}"),
            ] {
                let mut envelope = parse::command(&line)?;
                if let Command::UseToken(used) = &mut envelope.command {
                    used.nonce[..8].copy_from_slice(&at.to_be_bytes());
                    used.key[..8].copy_from_slice(&at.to_be_bytes());
                }
                self.index += 1;
                let outcome = self.state.apply(self.index, 0, Millis(self.now), &envelope);
                assert!(!matches!(outcome, Outcome::Refused(_)), "{line}: {outcome:?}");
            }
        }
        let violations = invariants::check(&self.state);
        assert!(violations.is_empty(), "{violations:?}");
        Ok(String::new())
    }

    /// A node that starts again from its rows is the same node.
    fn restart(&mut self) -> Shown {
        let hash = self.state.hash();
        self.state = State::from_rows(self.state.rows())?;
        assert_eq!(hash, self.state.hash());
        Ok(String::new())
    }

    /// heartbeat W/S seq=N [age=MS] [attempt=J/N]… [cpu=MILLIS] [memory=MB total=MB]: confirmed now, received `age` ago.
    fn heartbeat(&mut self, arguments: &Arguments<'_>) -> Shown {
        let on = names::session_ref(arguments.word(0)?)?;
        let attempts = arguments.attempts("attempt")?;
        let now = Mono(self.now);
        let received = Mono(self.now - arguments.number("age", 0)?);
        let sequence = arguments.number("seq", 1)?;
        let liveness = self.liveness.as_mut().ok_or("elect a leader first")?;
        let grants = liveness.confirm(&self.state, on, sequence, &attempts, received, now);
        if arguments.text("cpu").or(arguments.text("total")).is_some() {
            let cpu_used_millis = arguments.number("cpu", 0)?;
            let memory_used_mb = arguments.number("memory", 0)?;
            let memory_total_mb = arguments.number("total", 0)?;
            liveness.report(on, Usage { cpu_used_millis, memory_used_mb, memory_total_mb });
        }
        Ok(show::grants(&grants))
    }

    /// expire: what has become due. lose: the same, applied.
    fn expire(&mut self, apply: bool) -> Shown {
        let now = Mono(self.now);
        let liveness = self.liveness.as_mut().ok_or("elect a leader first")?;
        let commands = liveness.expire(&self.state, now);
        if commands.is_empty() {
            return Ok("nothing is due".to_string());
        }
        Ok(if apply { self.apply_all(commands) } else { show::commands(&commands) })
    }

    /// plan: what the scheduler would do. schedule: the same, applied, and asked for.
    fn plan(&mut self, apply: bool) -> Shown {
        let now = Now { mono: Mono(self.now), stamp: Millis(self.now) };
        let planned = plan(&self.state, self.liveness.as_ref().ok_or("elect a leader first")?, now);
        let rest = show::plan_rest(&planned, self.now);
        if apply && let Some(liveness) = self.liveness.as_mut() {
            liveness.asked(&self.state, &planned.ask_heartbeat, &planned.held, now.mono);
        }
        let shown = if apply { self.apply_all(planned.commands) } else { show::commands(&planned.commands) };
        let shown = format!("{shown}{rest}");
        Ok(if shown.is_empty() { "nothing to do".to_string() } else { shown })
    }

    /// explain J: as the leader; explain J unheard: as a node that reaches no leader; explain [cpu=MILLIS]…: a spec as of
    /// `submit`, without submitting it.
    fn explain(&mut self, arguments: &Arguments<'_>) -> Shown {
        let now = Now { mono: Mono(self.now), stamp: Millis(self.now) };
        let spec = arguments.spec()?;
        let (subject, unheard) = match arguments.words() {
            [] => (Subject::Spec(&spec), false),
            [job, rest @ ..] => (Subject::Job(names::job(job)?), !rest.is_empty()),
        };
        let hearing = self.liveness.as_ref().filter(|_| !unheard).map(Liveness::hearing);
        let explanation = explain(&self.state, hearing, now, subject);
        Ok(explanation.map_or("no such job".to_string(), |explanation| show::explanation(&explanation, self.now)))
    }

    /// queue: as the leader; queue unheard: as a node that reaches no leader.
    fn queue(&self, arguments: &Arguments<'_>) -> String {
        let now = Now { mono: Mono(self.now), stamp: Millis(self.now) };
        let hearing = self.liveness.as_ref().filter(|_| arguments.words().is_empty()).map(Liveness::hearing);
        show::backlog(&backlog(&self.state, hearing, now), self.now)
    }

    /// retain age=MS count=N: the next removals, applied.
    fn retain(&mut self, arguments: &Arguments<'_>) -> Shown {
        let keep =
            Retention { age_ms: arguments.number("age", u64::MAX)?, count: arguments.number("count", u64::MAX)? };
        let command = retention(&self.state, Millis(self.now), keep);
        Ok(command.map_or("nothing to remove".to_string(), |command| self.apply_all(vec![command])))
    }
}
