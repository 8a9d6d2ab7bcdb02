//! Who may ask for what.

use super::Context;
use crate::{
    command::Command,
    ids::{Caller, WorkerId},
    outcome::Refusal,
    state::State,
};

/// Who may give a command.
enum Right {
    /// A member: what the leader's loops and the gateways decide.
    Node,
    /// This member itself.
    ThisNode(u64),
    /// An administrator.
    Admin,
    /// A member or an administrator.
    NodeOrAdmin,
    /// A user or an administrator.
    User,
    /// An administrator, or the worker's own agent.
    AdminOrAgent(WorkerId),
    /// The worker's own agent.
    Agent(WorkerId),
    /// The worker's own agent, or a member that speaks for it: its gateway.
    AgentOrGateway(WorkerId),
}

fn right(command: &Command) -> Right {
    match command {
        Command::NodeHello(hello) => Right::ThisNode(hello.node),
        Command::ReplaceNode(replace) => Right::ThisNode(replace.node),
        Command::Recover { survivor } => Right::ThisNode(*survivor),
        Command::Init(_)
        | Command::UseToken(_)
        | Command::Assign { .. }
        | Command::AttemptLost { .. }
        | Command::AttemptOverdue { .. }
        | Command::PlaceLog { .. }
        | Command::DrainOverdue { .. }
        | Command::SetAsideOver { .. }
        | Command::Preempt { .. } => Right::Node,
        Command::RemoveNode { .. }
        | Command::CreateToken(_)
        | Command::RevokeToken { .. }
        | Command::UndrainWorker { .. }
        | Command::RemoveWorker { .. }
        | Command::ConfigureScheduler { .. }
        | Command::PutSecret(_)
        | Command::RemoveSecret { .. } => Right::Admin,
        Command::DrainWorker(drain) => Right::AdminOrAgent(drain.worker),
        Command::SetFeatureLevel { .. } | Command::RemoveJobs { .. } => Right::NodeOrAdmin,
        Command::SubmitJob(_) | Command::CancelJob { .. } | Command::RetryJob { .. } => Right::User,
        Command::OpenSession(open) => Right::Agent(open.on.worker),
        Command::AttachWorker { worker, .. }
        | Command::DetachWorker { worker, .. }
        | Command::CloseSession { worker } => Right::AgentOrGateway(worker.worker),
        Command::JobStarted { by, .. } | Command::JobDeclined { by, .. } | Command::JobResult { by, .. } => {
            Right::AgentOrGateway(by.worker)
        }
    }
}

impl Right {
    fn covers(&self, caller: Caller) -> bool {
        match (self, caller) {
            (Self::Node | Self::NodeOrAdmin | Self::AgentOrGateway(_), Caller::Node(_))
            | (Self::Admin | Self::AdminOrAgent(_) | Self::NodeOrAdmin | Self::User, Caller::Admin(_))
            | (Self::User, Caller::User(_)) => true,
            (Self::ThisNode(node), Caller::Node(caller)) => *node == caller,
            (
                Self::Agent(worker) | Self::AdminOrAgent(worker) | Self::AgentOrGateway(worker),
                Caller::Agent(caller),
            ) => *worker == caller,
            _ => false,
        }
    }
}

impl State {
    /// Whether a member that was replaced asks to be: the answer may have been lost, and only it can ask.
    fn asks_again(&self, command: &Command) -> bool {
        let Command::ReplaceNode(replace) = command else { return false };
        self.member(replace.node).is_some_and(|member| member.replaced_by.is_some())
    }

    /// The cluster exists, the caller is one of its parties still, and may give this command.
    pub(super) fn check_caller(&self, context: Context, command: &Command) -> Result<(), Refusal> {
        if self.cluster().is_none() {
            return Err(Refusal::WrongClusterState);
        }
        let caller = context.caller;
        if self.is_revoked(caller) && !self.asks_again(command) && !crate::armed!("bug::revoked-obeyed") {
            return Err(Refusal::CallerRevoked { caller });
        }
        if right(command).covers(caller) { Ok(()) } else { Err(Refusal::NotAllowed { caller }) }
    }
}
