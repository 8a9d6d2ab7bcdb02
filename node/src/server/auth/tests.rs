//! Walks the whole service list with each kind of identity, and with none, through the layer itself.

use std::{collections::BTreeSet, fmt::Write as _};

use hodei_state::ids::{UserId, WorkerId};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::Code;

use super::*;
use crate::pki::subject::Subject;

const OURS: ClusterId = ClusterId(1);

struct Known {
    standing: Standing,
    quorum: bool,
}

impl Registry for Known {
    fn cluster(&self) -> ClusterId {
        OURS
    }

    fn standing(&self, _: Caller) -> Standing {
        self.standing
    }

    fn servers(&self) -> String {
        "a:1,b:1".to_owned()
    }

    async fn refresh(&self, by: Instant) -> Result<(), Status> {
        if self.quorum { Ok(()) } else { Err(error::no_quorum(format!("alone for {:?}", by - Instant::now()))) }
    }
}

fn certified(cluster: ClusterId, caller: Caller) -> Certified {
    Certified { subject: Subject { cluster, caller }, key: [0; 32], not_before: 0, not_after: i64::MAX }
}

/// Sends a request through the layer; the service behind it answers with who it saw.
async fn send(known: Known, path: &str, shown: Option<Certified>) -> Result<Option<Caller>, Status> {
    let inner = tower::service_fn(|request: http::Request<Body>| async move {
        let mut response = http::Response::new(Body::empty());
        response.extensions_mut().insert(request.extensions().get::<Peer>().copied());
        Ok::<_, Infallible>(response)
    });
    let mut request = http::Request::new(Body::empty());
    *request.uri_mut() = path.parse().unwrap();
    request.headers_mut().insert("grpc-timeout", "3S".parse().unwrap());
    request.extensions_mut().insert(ConnInfo { certified: shown });
    // A caller cannot bring its own.
    request.extensions_mut().insert(Peer { caller: Caller::Node(99) });
    let response = AuthLayer::new(Arc::new(known)).layer(inner).call(request).await.unwrap();
    match Status::from_header_map(response.headers()) {
        Some(status) => Err(status),
        None => Ok(response.extensions().get::<Option<Peer>>().unwrap().map(|peer| peer.caller)),
    }
}

fn good() -> Known {
    Known { standing: Standing::Good, quorum: true }
}

const CALLERS: [Caller; 4] =
    [Caller::Node(2), Caller::Agent(WorkerId(3)), Caller::User(UserId(4)), Caller::Admin(UserId(5))];

/// All RPCs that this node serves: ours by the descriptor set, and those of health and reflection.
fn every_path() -> Vec<String> {
    let mut paths = Vec::new();
    for set in [
        hodei_proto::DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ] {
        for file in FileDescriptorSet::decode(set).unwrap().file {
            for service in &file.service {
                for method in &service.method {
                    paths.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
    }
    paths
}

/// Reviewed by people: an RPC that is added, or a permission that changes, shows here.
const EXPECTED: &str = "\
/hodei.v1.ClusterService/Enroll: node agent user admin nobody
/hodei.v1.ClusterService/Replace: node
/hodei.v1.ClusterService/Status: user admin
/hodei.v1.ClusterService/Members: user admin
/hodei.v1.ClusterService/Remove: admin
/hodei.v1.ClusterService/TransferLeader: admin
/hodei.v1.ClusterService/CreateToken: admin
/hodei.v1.ClusterService/ListTokens: admin
/hodei.v1.ClusterService/RevokeToken: admin
/hodei.v1.SecretService/PutSecret: admin
/hodei.v1.SecretService/ListSecrets: admin
/hodei.v1.SecretService/RemoveSecret: admin
/hodei.v1.SecretService/ListSecretUses: admin
/hodei.v1.SchedulerService/GetQueueStatus: user admin
/hodei.v1.SchedulerService/GetAvailableWorkers: user admin
/hodei.v1.SchedulerService/GetSchedulingDecision: user admin
/hodei.v1.SchedulerService/GetSchedulerConfig: user admin
/hodei.v1.SchedulerService/ConfigureScheduler: admin
/hodei.v1.WorkerAgentService/Register: agent
/hodei.v1.WorkerAgentService/WorkerStream: agent
/hodei.v1.WorkerAgentService/UpdateWorkerStatus: agent admin
/hodei.v1.WorkerAgentService/UnregisterWorker: agent admin
/hodei.v1.JobExecutionService/QueueJob: user admin
/hodei.v1.JobExecutionService/GetJob: user admin
/hodei.v1.JobExecutionService/ListJobs: user admin
/hodei.v1.JobExecutionService/CancelJob: user admin
/hodei.v1.JobExecutionService/RetryJob: user admin
/hodei.v1.JobExecutionService/WatchJobs: user admin
/hodei.v1.JobExecutionService/ExecutionEventStream: user admin
/hodei.v1.LogStreamService/SubscribeLogs: user admin
/hodei.v1.RaftService/Append: node
/hodei.v1.RaftService/Vote: node
/hodei.v1.RaftService/PreVote: node
/hodei.v1.RaftService/TransferLeader: node
/hodei.v1.RaftService/Snapshot: node
/hodei.v1.RaftService/SnapshotOffset: node
/hodei.v1.RaftService/Forward: node
/hodei.v1.RaftService/ReadIndex: node
/hodei.v1.RaftService/Probe: node
/hodei.v1.PeerService/Hello: node
/hodei.v1.PeerService/Liveness: node
/hodei.v1.PeerService/Explain: node
/hodei.v1.PeerService/QueueStatus: node
/hodei.v1.PeerService/PullLog: node
/grpc.health.v1.Health/Check: node agent user admin
/grpc.health.v1.Health/Watch: node agent user admin
/grpc.reflection.v1.ServerReflection/ServerReflectionInfo: user admin
/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo: user admin
";

#[tokio::test]
async fn who_may_call_what() {
    let mut found = String::new();
    for path in every_path() {
        write!(found, "{path}:").unwrap();
        for caller in CALLERS {
            match send(good(), &path, Some(certified(OURS, caller))).await {
                Ok(seen) => {
                    assert!(seen == Some(caller) || table::access(&path) == Some(Access::Anyone));
                    write!(found, " {}", table::role(caller)).unwrap();
                }
                Err(status) => assert_eq!(status.code(), Code::PermissionDenied, "{path} {caller}"),
            }
        }
        match send(good(), &path, None).await {
            Ok(seen) => {
                assert_eq!(seen, None);
                found.push_str(" nobody");
            }
            Err(status) => assert_eq!(status.code(), Code::Unauthenticated, "{path}"),
        }
        found.push('\n');
    }
    let sorted = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&found), sorted(EXPECTED));
}

#[test]
fn the_table_names_nothing_that_does_not_exist() {
    let paths = every_path();
    for (path, _) in table::TABLE {
        assert!(paths.iter().any(|known| known == path), "{path}");
    }
}

#[tokio::test]
async fn identities_that_are_not_ours_or_not_any_more() {
    let judged = |access| !matches!(access, Some(Access::Anyone | Access::AnyNode));
    for path in every_path().iter().filter(|path| judged(table::access(path))) {
        let peers = matches!(table::access(path), Some(Access::Peers | Access::Members));
        for caller in CALLERS.into_iter().filter(|caller| match table::access(path) {
            Some(Access::Roles(roles)) => roles.contains(&table::role(*caller)),
            _ => matches!(caller, Caller::Node(_)),
        }) {
            let ours = certified(OURS, caller);
            let refused = |known, shown| async move { send(known, path, Some(shown)).await.unwrap_err().code() };
            assert_eq!(refused(good(), certified(ClusterId(2), caller)).await, Code::Unauthenticated);
            assert_eq!(refused(good(), Certified { not_after: 1, ..ours }).await, Code::Unauthenticated);
            let revoked = Known { standing: Standing::Revoked, quorum: true };
            assert_eq!(refused(revoked, ours).await, Code::Unauthenticated);

            // Who is removed, but still has a vote, takes part in Raft and in nothing else.
            let leaving = send(Known { standing: Standing::Leaving, quorum: true }, path, Some(ours)).await;
            match table::access(path) {
                Some(Access::Members) => assert_eq!(leaving.unwrap(), Some(caller)),
                _ => assert_eq!(leaving.unwrap_err().code(), Code::Unauthenticated, "{path}"),
            }

            // Only a peer may be somebody that this node has not heard of yet.
            for (quorum, code) in [(true, Code::Unauthenticated), (false, Code::Unavailable)] {
                let answer = send(Known { standing: Standing::Unknown, quorum }, path, Some(ours)).await;
                if peers {
                    assert_eq!(answer.unwrap(), Some(caller));
                } else {
                    assert_eq!(answer.unwrap_err().code(), code, "{path}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_not_known_here_is_answered_in_time() {
    let path = "/hodei.v1.ClusterService/Members";
    let user = certified(OURS, Caller::User(UserId(4)));
    let answer = send(Known { standing: Standing::Unknown, quorum: false }, path, Some(user)).await.unwrap_err();
    // Less than the three seconds that the caller waits, of which some go by on the way back.
    assert!(answer.message().contains("alone for 2.7s"), "{}", answer.message());
}

#[tokio::test]
async fn a_node_that_was_removed_may_still_ask_to_be_replaced() {
    let node = Caller::Node(2);
    let path = "/hodei.v1.ClusterService/Replace";
    let revoked = || Known { standing: Standing::Revoked, quorum: true };
    assert_eq!(send(revoked(), path, Some(certified(OURS, node))).await.unwrap(), Some(node));
    let foreign = send(revoked(), path, Some(certified(ClusterId(2), node))).await;
    assert_eq!(foreign.unwrap_err().code(), Code::Unauthenticated);
    let expired = Certified { not_after: 1, ..certified(OURS, node) };
    assert_eq!(send(revoked(), path, Some(expired)).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn what_is_not_in_the_table_does_not_exist() {
    let shown = certified(OURS, CALLERS[3]);
    for path in ["/hodei.v1.ClusterService/Format", "/", "/hodei.v1.ClusterService/Enroll/"] {
        assert_eq!(send(good(), path, Some(shown)).await.unwrap_err().code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn a_refusal_says_what_one_may_not_do_and_which_role_may() {
    let user = certified(OURS, Caller::User(UserId(4)));
    let for_admins = |access: &Access| matches!(access, Access::Roles(roles) if roles.contains(&Role::Admin) && !roles.contains(&Role::User));
    let mut paths = table::TABLE.iter().filter(|(_, access)| for_admins(access)).map(|(path, _)| path).peekable();
    assert!(paths.peek().is_some());
    for path in paths {
        let refused = send(good(), path, Some(user)).await.unwrap_err();
        let said = refused.message();
        assert!(
            said.starts_with("role user may not ") && said.contains("takes role") && said.contains("admin"),
            "{said}"
        );
        assert!(!said.contains("hodei.v1"), "{said}: add it to the table's ACTIONS");
    }
}
