//! From a line to a command.

use std::error::Error;

use goldenscript::Command as Line;
use hodei_state::{
    State,
    command::{
        Command, CreateToken, DrainWorker, Envelope, Init, NodeHello, OpenSession, PlaceSegment, PutSecret,
        ReplaceNode, SubmitJob, UseToken,
    },
    flapping::SetAsideChange,
    ids::{AttemptRef, Caller, ClusterId, Role, UserId},
    job::{Deadline, LogEnd, Reason, StartFailure},
    registry::{AgentInfo, Capacity},
    score::{Choice, WeightsChange},
    spec::{Body, Constraint, Extras, JobSpec, Preference, Resources, Retry, SecretRef, defaults},
};

use super::names;

type Parsed<T> = Result<T, Box<dyn Error>>;

/// The arguments of a line, read by position and by key.
pub(super) struct Arguments<'a> {
    pub(super) line: &'a Line,
    words: Vec<&'a str>,
    state: &'a State,
}

impl<'a> Arguments<'a> {
    pub(super) fn new(line: &'a Line, state: &'a State) -> Self {
        let words = line.args.iter().filter(|arg| arg.key.is_none()).map(|arg| arg.value.as_str()).collect();
        Self { line, words, state }
    }

    pub(super) fn words(&self) -> &[&'a str] {
        &self.words
    }

    pub(super) fn word(&self, at: usize) -> Parsed<&'a str> {
        self.words.get(at).copied().ok_or_else(|| format!("argument {} is missing", at + 1).into())
    }

    pub(super) fn number_at(&self, at: usize) -> Parsed<u64> {
        Ok(self.word(at)?.parse()?)
    }

    pub(super) fn all(&self, key: &str) -> impl Iterator<Item = &'a str> {
        self.line.args.iter().filter(move |arg| arg.key.as_deref() == Some(key)).map(|arg| arg.value.as_str())
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.all(key).last()
    }

    pub(super) fn number<T: std::str::FromStr<Err: Error + 'static>>(&self, key: &str, otherwise: T) -> Parsed<T> {
        Ok(self.text(key).map(str::parse).transpose()?.unwrap_or(otherwise))
    }

    /// `j1/1`: under the fence that the state knows; `j1/1@7`: under that one.
    pub(super) fn attempt(&self, name: &str) -> Parsed<AttemptRef> {
        let (name, fence) = name.split_once('@').map_or((name, None), |(name, fence)| (name, Some(fence)));
        let (job, attempt) = name.split_once('/').ok_or("expected JOB/ATTEMPT")?;
        let (job, attempt) = (names::job(job)?, attempt.parse()?);
        let known = self.state.attempt(job, attempt).map_or(0, |attempt| attempt.id.fence);
        Ok(AttemptRef { job, attempt, fence: fence.map(str::parse).transpose()?.unwrap_or(known) })
    }

    pub(super) fn attempts(&self, key: &str) -> Parsed<Vec<AttemptRef>> {
        self.all(key).map(|name| self.attempt(name)).collect()
    }

    /// What the line proposes; `None`: it is no command of the core.
    pub(super) fn envelope(&self) -> Parsed<Option<Envelope>> {
        let (default_caller, command) = match self.line.name.as_str() {
            "init" => ("n1", self.init()?),
            "hello" => (self.word(0)?, self.hello()?),
            "replace-node" => (self.word(0)?, self.replace_node()?),
            "remove-node" => ("a1", Command::RemoveNode { node: names::node(self.word(0)?)? }),
            "recover" => (self.word(0)?, Command::Recover { survivor: names::node(self.word(0)?)? }),
            "level" => ("n1", Command::SetFeatureLevel { level: self.word(0)?.parse()? }),
            "token" => ("a1", self.token()?),
            "revoke-token" => ("a1", Command::RevokeToken { token: names::token(self.word(0)?)? }),
            "use" => ("n1", self.use_token()?),
            "submit" => ("u1", self.submit()?),
            "cancel" => {
                let reason = self.text("reason").unwrap_or("no longer wanted").to_string();
                ("u1", Command::CancelJob { job: names::job(self.word(0)?)?, reason })
            }
            "retry" => {
                let (job, of) = (names::job(self.word(0)?)?, names::job(self.text("of").ok_or("expected of=JOB")?)?);
                ("u1", Command::RetryJob { job, of })
            }
            "preempt" => {
                let for_job = names::job(self.text("for").ok_or("expected for=JOB")?)?;
                ("n1", Command::Preempt { attempt: self.attempt(self.word(0)?)?, for_job })
            }
            "remove" => {
                let jobs = self.words.iter().map(|name| names::job(name)).collect::<Parsed<_>>()?;
                ("n1", Command::RemoveJobs { jobs })
            }
            "assign" => ("n1", self.assign()?),
            "lost" => ("n1", Command::AttemptLost { attempt: self.attempt(self.word(0)?)? }),
            "overdue" => ("n1", Command::AttemptOverdue { attempt: self.attempt(self.word(0)?)? }),
            "configure" => ("a1", self.configure()?),
            "open" => (self.word(0)?.split('/').next().unwrap_or_default(), self.open()?),
            "attach" => ("n1", self.attach()?),
            "detach" => {
                let worker = names::session_ref(self.word(0)?)?;
                ("n1", Command::DetachWorker { worker, stream: self.number("stream", 1)? })
            }
            "close" => ("n1", Command::CloseSession { worker: names::session_ref(self.word(0)?)? }),
            "started" => ("n1", self.started()?),
            "declined" => ("n1", self.declined()?),
            "result" => ("n1", self.result()?),
            "place" => {
                let segment = self.segment()?.ok_or("expected holder=NODE")?;
                ("n1", Command::PlaceLog { attempt: self.attempt(self.word(0)?)?, segment })
            }
            "secret" => ("a1", self.secret()?),
            "remove-secret" => ("a1", Command::RemoveSecret { secret: names::secret(self.word(0)?)? }),
            "drain" => ("a1", self.drain()?),
            "drain-overdue" => {
                let worker = names::worker(self.word(0)?)?;
                ("n1", Command::DrainOverdue { worker, nonce: self.number("nonce", 1)? })
            }
            "set-aside-over" => ("n1", Command::SetAsideOver { worker: names::worker(self.word(0)?)? }),
            "undrain" => ("a1", Command::UndrainWorker { worker: names::worker(self.word(0)?)? }),
            "remove-worker" => {
                let (worker, force) = (names::worker(self.word(0)?)?, self.number("force", false)?);
                ("a1", Command::RemoveWorker { worker, force })
            }
            _ => return Ok(None),
        };
        let caller = names::caller(self.text("by").unwrap_or(default_caller))?;
        Ok(Some(Envelope { caller, command }))
    }

    fn init(&self) -> Parsed<Command> {
        Ok(Command::Init(Init {
            cluster: ClusterId(self.number("cluster", 1)?),
            ca: vec![1; 8],
            address: self.text("address").unwrap_or("127.0.0.1:1").to_string(),
            key: [self.number("key", 1)?; 32],
            version: "1".to_string(),
            feature_level: self.number("level", 1)?,
            admin: (UserId(names::id("a1", 'a')?), [200; 32]),
        }))
    }

    fn hello(&self) -> Parsed<Command> {
        Ok(Command::NodeHello(NodeHello {
            node: names::node(self.word(0)?)?,
            address: self.text("address").unwrap_or("127.0.0.1:1").to_string(),
            start_counter: self.number("counter", 1)?,
            version: self.text("version").unwrap_or("1").to_string(),
            feature_level: self.number("level", 1)?,
        }))
    }

    fn replace_node(&self) -> Parsed<Command> {
        Ok(Command::ReplaceNode(ReplaceNode {
            node: names::node(self.word(0)?)?,
            nonce: [self.number("nonce", 1)?; 16],
            key: [self.number("key", 10)?; 32],
            address: self.text("address").unwrap_or("127.0.0.2:1").to_string(),
            version: "1".to_string(),
            feature_level: self.number("level", 1)?,
        }))
    }

    fn token(&self) -> Parsed<Command> {
        Ok(Command::CreateToken(CreateToken {
            token: names::token(self.word(0)?)?,
            role: self.text("role").unwrap_or("agent").parse()?,
            secret: [self.number("secret", secret_of(self.word(0)?)?)?; 32],
            ttl_ms: self.number("ttl", 3_600_000)?,
            uses: self.number("uses", 1)?,
        }))
    }

    fn use_token(&self) -> Parsed<Command> {
        let id = self.text("id").unwrap_or("n0");
        let kind = id.chars().next().ok_or("expected an id")?;
        let role = match kind {
            'w' => Role::Agent,
            'u' => Role::User,
            'a' => Role::Admin,
            _ => Role::Node,
        };
        Ok(Command::UseToken(UseToken {
            secret: [secret_of(self.word(0)?)?; 32],
            role: self.number("role", role)?,
            nonce: [self.number("nonce", 1)?; 16],
            key: [self.number("key", 10)?; 32],
            id: if kind == 'n' { 0 } else { names::id(id, kind)? },
            address: self.text("address").unwrap_or("127.0.0.2:1").to_string(),
            version: "1".to_string(),
            feature_level: self.number("level", 1)?,
        }))
    }

    /// secret NAME ID [len=BYTES]
    fn secret(&self) -> Parsed<Command> {
        Ok(Command::PutSecret(Box::new(PutSecret {
            name: self.word(0)?.to_string(),
            secret: names::secret(self.word(1)?)?,
            key: [8; 8],
            sealed: vec![9; self.number("len", 30)?],
        })))
    }

    fn submit(&self) -> Parsed<Command> {
        Ok(Command::SubmitJob(Box::new(SubmitJob {
            job: names::job(self.word(0)?)?,
            digest: [self.number("digest", 1)?; 32],
            idempotency_key: self.text("key").map(str::to_string),
            spec: self.spec()?,
        })))
    }

    pub(super) fn spec(&self) -> Parsed<JobSpec> {
        let labels = self.all("label").filter_map(|pair| pair.split_once('@'));
        let labels = labels.map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let zones = self.all("zone").map(|zone| constraint(&format!("label.zone = {zone}")));
        let extras = Extras {
            constraints: zones.chain(self.all("constraint").map(constraint)).collect(),
            preferences: self.all("prefer").map(preference).collect::<Parsed<_>>()?,
            secrets: self.all("secret").map(secret).collect(),
            ..Extras::default()
        };
        let exit_codes: Vec<i32> = self.all("exit_code").map(str::parse).collect::<Result<_, _>>()?;
        Ok(JobSpec {
            name: self.text("name").map(str::to_string),
            priority: self.number("priority", 0)?,
            resources: Resources {
                cpu_millis: self.number("cpu", 0)?,
                memory_mb: self.number("memory", 0)?,
                storage_mb: self.number("storage", 0)?,
                gpu: self.number("gpu", 0)?,
                architecture: self.text("arch").map(str::to_string),
            },
            labels,
            timeout_ms: self.text("timeout").map(str::parse).transpose()?,
            lost_after_ms: self.number("lost_after", defaults::LOST_AFTER_MS)?,
            grace_period_ms: self.number("grace", defaults::GRACE_PERIOD_MS)?,
            retry: Retry {
                infrastructure: self.number("infrastructure", 3)?,
                failure: self.number("failure", 0)?,
                exit_codes,
                timeout: self.number("timeouts", 0)?,
                preemption: self.number("preemptions", 3)?,
                backoff_initial_ms: self.number("backoff", 0)?,
                backoff_max_ms: self.number("backoff_max", 60_000)?,
                max_attempts: self.number("max_attempts", 0)?,
            },
            preemptible: self.number("preemptible", false)?,
            extras: (extras != Extras::default()).then(|| Box::new(extras)),
            body: Body::Inline(vec![7; self.number("body", 4)?]),
            ..JobSpec::default()
        })
    }

    fn assign(&self) -> Parsed<Command> {
        let (job, attempt) = self.word(0)?.split_once('/').ok_or("expected JOB/ATTEMPT")?;
        Ok(Command::Assign {
            job: names::job(job)?,
            attempt: attempt.parse()?,
            on: names::session_ref(self.word(1)?)?,
            heartbeat: self.number("heartbeat", 1)?,
            choice: Choice::default(),
        })
    }

    fn configure(&self) -> Parsed<Command> {
        let weight = |key: &str| self.text(key).map(str::parse).transpose();
        let span = |key: &str| self.text(key).map(str::parse).transpose();
        Ok(Command::ConfigureScheduler {
            set_aside: SetAsideChange {
                flaps: weight("flaps")?,
                window_ms: span("window")?,
                first_ms: span("first")?,
                longest_ms: span("longest")?,
            },
            weights: WeightsChange {
                bin_packing: weight("bin_packing")?,
                spread: weight("spread")?,
                load: weight("load")?,
                affinity: weight("affinity")?,
                reliability: weight("reliability")?,
            },
        })
    }

    fn open(&self) -> Parsed<Command> {
        Ok(Command::OpenSession(Box::new(OpenSession {
            on: names::session_ref(self.word(0)?)?,
            previous: self.text("previous").map(names::session).transpose()?,
            info: AgentInfo {
                capacity: Capacity {
                    slots: self.number("slots", 1)?,
                    cpu_millis: self.number("cpu", 4_000)?,
                    memory_mb: self.number("memory", 4_096)?,
                    storage_mb: self.number("storage", 0)?,
                    gpu: self.number("gpu", 0)?,
                },
                labels: self
                    .all("zone")
                    .map(|zone| ("zone", zone))
                    .chain(self.all("label").filter_map(|pair| pair.split_once('@')))
                    .map(|(key, value)| (key.to_string(), value.to_string()))
                    .collect(),
                architecture: self.text("arch").unwrap_or("x86_64").to_string(),
                kernel: self.text("kernel").unwrap_or_default().to_string(),
                hostname: self.text("hostname").unwrap_or_default().to_string(),
                boot_id: self.text("boot").unwrap_or_default().to_string(),
                provider: self.text("provider").map(str::to_string),
                ..AgentInfo::default()
            },
            adopted: self.attempts("adopted")?,
            dead: self.attempts("dead")?,
        })))
    }

    fn attach(&self) -> Parsed<Command> {
        Ok(Command::AttachWorker {
            worker: names::session_ref(self.word(0)?)?,
            stream: self.number("stream", 1)?,
            gateway: names::node(self.text("node").unwrap_or("n1"))?,
        })
    }

    fn drain(&self) -> Parsed<Command> {
        Ok(Command::DrainWorker(DrainWorker {
            worker: names::worker(self.word(0)?)?,
            nonce: self.number("nonce", 1)?,
            deadline_ms: self.text("deadline").map(str::parse).transpose()?,
            requeue: self.number("requeue", false)?,
            session: self.text("session").map(names::session).transpose()?,
        }))
    }

    fn segment(&self) -> Parsed<Option<PlaceSegment>> {
        let holder = self.text("holder").map(names::node).transpose()?;
        let first_sequence = self.number("from", 1)?;
        Ok(holder.map(|holder| PlaceSegment { holder, first_sequence }))
    }

    fn started(&self) -> Parsed<Command> {
        let (attempt, by) = (self.attempt(self.word(0)?)?, names::session_ref(self.word(1)?)?);
        Ok(Command::JobStarted { attempt, by, segment: self.segment()? })
    }

    fn declined(&self) -> Parsed<Command> {
        let (attempt, by) = (self.attempt(self.word(0)?)?, names::session_ref(self.word(1)?)?);
        Ok(Command::JobDeclined { attempt, by, reason: self.text("reason").unwrap_or("no disk").to_string() })
    }

    /// result J/N W/S exit=N | signal=N | oom | timeout | lost | cancelled | not-provisioned | not-found | not-permitted
    fn result(&self) -> Parsed<Command> {
        let (attempt, by) = (self.attempt(self.word(0)?)?, names::session_ref(self.word(1)?)?);
        let message = self.text("message").unwrap_or("because").to_string();
        let reason = if let Some(code) = self.text("exit") {
            Reason::Exited { code: code.parse()? }
        } else if let Some(signal) = self.text("signal") {
            Reason::Signaled { signal: signal.parse()? }
        } else {
            match self.word(2)? {
                "oom" => Reason::OutOfMemory,
                "timeout" => Reason::Timeout { deadline: Deadline::Run },
                "lost" => Reason::WorkerLost { message },
                "not-provisioned" => Reason::NotProvisioned { message },
                "not-found" => Reason::CouldNotStart { cause: StartFailure::NotFound, message },
                "no-directory" => Reason::CouldNotStart { cause: StartFailure::NoDirectory, message },
                "no-secret" => Reason::CouldNotStart { cause: StartFailure::NoSecret, message },
                "not-permitted" => Reason::CouldNotStart { cause: StartFailure::NotPermitted, message },
                "cancelled" => Reason::Cancelled {
                    by: Caller::Agent(by.worker),
                    reason: message,
                    exit_code: None,
                    signal: Some(15),
                },
                other => return Err(format!("{other} is no result").into()),
            }
        };
        let log =
            LogEnd { last_sequence: self.number("lines", 0)?, lines: self.number("lines", 0)?, ..LogEnd::default() };
        Ok(Command::JobResult { attempt, by, reason, log, segment: self.segment()? })
    }
}

/// `label.zone = a`, `label.ssd exists`.
fn constraint(text: &str) -> Constraint {
    let mut words = text.splitn(3, ' ').map(str::to_string);
    let mut word = || words.next().unwrap_or_default();
    Constraint { attribute: word(), operator: word(), value: word() }
}

/// `label.zone = a:10`.
fn preference(text: &str) -> Parsed<Preference> {
    let (text, weight) = text.rsplit_once(':').ok_or("expected CONSTRAINT:WEIGHT")?;
    Ok(Preference { constraint: constraint(text), weight: weight.parse()? })
}

/// `NAME` goes to standard input, `NAME@VARIABLE` to the environment.
fn secret(text: &str) -> SecretRef {
    match text.split_once('@') {
        Some((name, env)) => SecretRef { name: name.to_string(), env: Some(env.to_string()) },
        None => SecretRef { name: text.to_string(), env: None },
    }
}

fn secret_of(token: &str) -> Parsed<u8> {
    Ok(u8::try_from(names::token(token)?.0 & 0xff)?)
}

/// See `setup` in the runner.
pub(super) fn setup(arguments: &Arguments<'_>) -> Parsed<Vec<Envelope>> {
    let workers: u64 = arguments.number("workers", 0)?;
    let nodes: u64 = arguments.number("nodes", 1)?;
    let offered = ["slots", "cpu", "memory"].map(|key| arguments.text(key).map(|value| format!(" {key}={value}")));
    let offered: String = offered.into_iter().flatten().collect();
    let mut lines = vec![
        "init".to_string(),
        "token tfd role=user".to_string(),
        "use tfd id=u1 key=201".to_string(),
        "token tfe role=agent uses=100".to_string(),
        "token tff role=node uses=10".to_string(),
    ];
    for node in 2..=nodes {
        lines.push(format!("use tff nonce={node} key={} address=\"127.0.0.{node}:1\"", 100 + node));
    }
    for at in 1..=workers {
        lines.push(format!("use tfe id=w{at} nonce={at} key={}", 50 + at));
        lines.push(format!("open w{at}/s{at}{offered}"));
        lines.push(format!("attach w{at}/s{at}"));
    }
    lines.iter().map(|line| command(line)).collect()
}

/// A command that names nothing that has to be looked up in the state.
pub(super) fn command(line: &str) -> Parsed<Envelope> {
    let (line, state) = (line_of(line), State::new());
    Arguments::new(&line, &state).envelope()?.ok_or_else(|| "not a command of the core".into())
}

/// Parses one line as goldenscript does, which keeps its parser to itself: a script of one line, run by a runner that
/// only remembers it.
fn line_of(text: &str) -> Line {
    struct Remember(Option<Line>);
    impl goldenscript::Runner for Remember {
        fn run(&mut self, line: &Line) -> Parsed<String> {
            self.0 = Some(line.clone());
            Ok(String::new())
        }
    }
    let mut remember = Remember(None);
    goldenscript::generate(&mut remember, &format!("{text}\n---\nok\n")).expect("setup lines parse");
    remember.0.expect("one line was run")
}
