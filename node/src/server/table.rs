//! The one table of who may call what. What does not stand here, nobody may call.

use hodei_state::ids::{Caller, Role};

/// Who may call an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, with or without a certificate.
    Anyone,
    /// Parties of the cluster in one of these roles, known to the state and not revoked.
    Roles(&'static [Role]),
    /// Nodes by their certificate alone, unless they are known to be removed: a lagging node has to accept a leader
    /// that it has not heard of yet.
    Peers,
    /// As [`Access::Peers`], and those that are removed, too, for as long as Raft counts them in: the change that takes
    /// them out may need them, be it as the leader that makes it.
    Members,
    /// Nodes by their certificate alone, whatever has become of them since: what they may still ask for is for the
    /// state to say.
    AnyNode,
}

use Access::{AnyNode, Anyone, Members, Peers, Roles};

const ALL: Access = Roles(&[Role::Node, Role::Agent, Role::User, Role::Admin]);
const AGENTS: Access = Roles(&[Role::Agent]);
const USERS: Access = Roles(&[Role::User, Role::Admin]);
const AGENTS_AND_ADMINS: Access = Roles(&[Role::Agent, Role::Admin]);
const ADMINS: Access = Roles(&[Role::Admin]);

/// Path of each RPC, and who may call it.
pub const TABLE: &[(&str, Access)] = &[
    ("/hodei.v1.ClusterService/Enroll", Anyone),
    ("/hodei.v1.ClusterService/Replace", AnyNode),
    ("/hodei.v1.ClusterService/Status", USERS),
    ("/hodei.v1.ClusterService/Members", USERS),
    ("/hodei.v1.ClusterService/Remove", ADMINS),
    ("/hodei.v1.ClusterService/TransferLeader", ADMINS),
    ("/hodei.v1.ClusterService/CreateToken", ADMINS),
    ("/hodei.v1.ClusterService/ListTokens", ADMINS),
    ("/hodei.v1.ClusterService/RevokeToken", ADMINS),
    ("/hodei.v1.SecretService/PutSecret", ADMINS),
    ("/hodei.v1.SecretService/ListSecrets", ADMINS),
    ("/hodei.v1.SecretService/RemoveSecret", ADMINS),
    ("/hodei.v1.SecretService/ListSecretUses", ADMINS),
    ("/hodei.v1.SchedulerService/GetQueueStatus", USERS),
    ("/hodei.v1.SchedulerService/GetAvailableWorkers", USERS),
    ("/hodei.v1.SchedulerService/GetSchedulingDecision", USERS),
    ("/hodei.v1.SchedulerService/GetSchedulerConfig", USERS),
    ("/hodei.v1.SchedulerService/ConfigureScheduler", ADMINS),
    ("/hodei.v1.JobExecutionService/QueueJob", USERS),
    ("/hodei.v1.JobExecutionService/GetJob", USERS),
    ("/hodei.v1.JobExecutionService/ListJobs", USERS),
    ("/hodei.v1.JobExecutionService/CancelJob", USERS),
    ("/hodei.v1.JobExecutionService/RetryJob", USERS),
    ("/hodei.v1.JobExecutionService/WatchJobs", USERS),
    ("/hodei.v1.JobExecutionService/ExecutionEventStream", USERS),
    ("/hodei.v1.LogStreamService/SubscribeLogs", USERS),
    ("/hodei.v1.WorkerAgentService/Register", AGENTS),
    ("/hodei.v1.WorkerAgentService/WorkerStream", AGENTS),
    ("/hodei.v1.WorkerAgentService/UpdateWorkerStatus", AGENTS_AND_ADMINS),
    ("/hodei.v1.WorkerAgentService/UnregisterWorker", AGENTS_AND_ADMINS),
    ("/hodei.v1.RaftService/Append", Members),
    ("/hodei.v1.RaftService/Vote", Members),
    ("/hodei.v1.RaftService/PreVote", Members),
    ("/hodei.v1.RaftService/TransferLeader", Members),
    ("/hodei.v1.RaftService/Snapshot", Members),
    ("/hodei.v1.RaftService/SnapshotOffset", Members),
    ("/hodei.v1.RaftService/Forward", Peers),
    ("/hodei.v1.RaftService/ReadIndex", Peers),
    ("/hodei.v1.RaftService/Probe", Peers),
    ("/hodei.v1.PeerService/Hello", Members),
    ("/hodei.v1.PeerService/Liveness", Peers),
    ("/hodei.v1.PeerService/Explain", Peers),
    ("/hodei.v1.PeerService/QueueStatus", Peers),
    ("/hodei.v1.PeerService/PullLog", Peers),
    ("/grpc.health.v1.Health/Check", ALL),
    ("/grpc.health.v1.Health/Watch", ALL),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", USERS),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", USERS),
];

/// Who may call the RPC with this path; `None`: there is no such RPC.
#[must_use]
pub fn access(path: &str) -> Option<Access> {
    TABLE.iter().find(|(known, _)| *known == path).map(|(_, access)| *access)
}

/// What the RPCs do that some people may not call, as one says what somebody may not do.
const ACTIONS: &[(&str, &str)] = &[
    ("ClusterService/Remove", "remove nodes"),
    ("ClusterService/TransferLeader", "say who leads"),
    ("ClusterService/CreateToken", "create tokens"),
    ("ClusterService/ListTokens", "list tokens"),
    ("ClusterService/RevokeToken", "revoke tokens"),
    ("SecretService/PutSecret", "give secrets their values"),
    ("SecretService/ListSecrets", "list secrets"),
    ("SecretService/RemoveSecret", "remove secrets"),
    ("SecretService/ListSecretUses", "see what secrets were used for"),
    ("SchedulerService/ConfigureScheduler", "change how workers are chosen"),
    ("WorkerAgentService/UpdateWorkerStatus", "drain workers or take that back"),
    ("WorkerAgentService/UnregisterWorker", "remove workers"),
];

/// What the RPC with this path does, as in "may not …".
#[must_use]
pub fn action(path: &str) -> Option<&'static str> {
    let call = path.strip_prefix("/hodei.v1.")?;
    ACTIONS.iter().find(|(known, _)| *known == call).map(|(_, action)| *action)
}

/// The role that a caller's certificate gives it.
#[must_use]
pub fn role(caller: Caller) -> Role {
    match caller {
        Caller::Node(_) => Role::Node,
        Caller::Agent(_) => Role::Agent,
        Caller::User(_) => Role::User,
        Caller::Admin(_) => Role::Admin,
    }
}
