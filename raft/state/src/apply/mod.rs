//! How a command changes the state: a flat match, and a file per family of commands.
//!
//! Every function checks first and writes after its last check, so that a refusal leaves everything as it was but for
//! the stamp. Nothing here panics on any input: commands come from the log, where a refusal is an outcome like any
//! other and has to be the same on every replica.

mod caller;
mod ending;
mod jobs;
mod members;
mod recovery;
mod scheduling;
mod secrets;
mod sessions;
mod tokens;
mod workers;

use crate::{
    command::{Command, Envelope},
    ids::{Caller, Millis},
    outcome::{Outcome, Refusal},
    state::State,
};

pub(crate) use ending::may_be_preempted;
pub(crate) use jobs::MAX_REMOVALS;

type Result = std::result::Result<Outcome, Refusal>;

/// Where in the log a command stands, and who asks for it.
#[derive(Clone, Copy, Debug)]
struct Context {
    /// Log index of its entry: an attempt's fence, a submission's age.
    index: u64,
    /// Its position within the entry.
    offset: u32,
    caller: Caller,
}

impl State {
    /// Applies one command. `index` is the log index of its entry, `offset` its position in it, `at` the entry's stamp,
    /// which counts only as far as it is later than all before it.
    pub fn apply(&mut self, index: u64, offset: u32, at: Millis, envelope: &Envelope) -> Outcome {
        self.events.begin(index);
        self.advance(at);
        let context = Context { index, offset, caller: envelope.caller };
        self.dispatch(context, &envelope.command).unwrap_or_else(Outcome::Refused)
    }

    fn dispatch(&mut self, context: Context, command: &Command) -> Result {
        if let Command::Init(init) = command {
            return self.initialise(context, init);
        }
        self.check_caller(context, command)?;
        match command {
            Command::Init(_) => Err(Refusal::WrongClusterState),
            Command::NodeHello(hello) => self.node_hello(hello),
            Command::RemoveNode { node } => self.remove_node(context, *node),
            Command::ReplaceNode(replace) => self.replace_node(replace),
            Command::SetFeatureLevel { level } => self.set_feature_level(context, *level),
            Command::Recover { survivor } => self.recover(context, *survivor),

            Command::CreateToken(create) => self.create_token(context, create),
            Command::RevokeToken { token } => self.revoke_token(context, *token),
            Command::UseToken(used) => self.use_token(used),

            Command::SubmitJob(submission) => self.submit_job(context, submission),
            Command::CancelJob { job, reason } => self.cancel_job(context, *job, reason),
            Command::RemoveJobs { jobs } => self.remove_jobs(context, jobs),

            Command::Assign { job, attempt, on, heartbeat, choice } => {
                self.assign(context, *job, *attempt, *on, *heartbeat, *choice)
            }
            Command::AttemptLost { attempt } => self.attempt_lost(*attempt),
            Command::AttemptOverdue { attempt } => self.attempt_overdue(*attempt),

            Command::OpenSession(open) => self.open_session(open),
            Command::AttachWorker { worker, stream, gateway } => self.attach_worker(*worker, *stream, *gateway),
            Command::DetachWorker { worker, stream } => self.detach_worker(*worker, *stream),
            Command::CloseSession { worker } => self.close_session(*worker),

            Command::JobStarted { attempt, by, segment } => self.job_started(*attempt, *by, *segment),
            Command::JobDeclined { attempt, by, reason } => self.job_declined(*attempt, *by, reason),
            Command::JobResult { attempt, by, reason, log, segment } => {
                self.job_result(*attempt, *by, reason, *log, *segment)
            }
            Command::PlaceLog { attempt, segment } => self.place_log(*attempt, *segment),

            Command::DrainWorker(drain) => self.drain_worker(context, drain),
            Command::DrainOverdue { worker, nonce } => self.drain_overdue(*worker, *nonce),
            Command::SetAsideOver { worker } => self.set_aside_over(*worker),
            Command::UndrainWorker { worker } => self.undrain_worker(context, *worker),
            Command::RemoveWorker { worker, force } => self.remove_worker(context, *worker, *force),
            Command::ConfigureScheduler { weights, set_aside } => self.configure_scheduler(weights, set_aside),
            Command::RetryJob { job, of } => self.retry_job(context, *job, *of),
            Command::Preempt { attempt, for_job } => self.preempt(*attempt, *for_job),

            Command::PutSecret(put) => self.put_secret(context, put),
            Command::RemoveSecret { secret } => self.remove_secret(*secret),
        }
    }
}
