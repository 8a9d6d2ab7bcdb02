use std::collections::BTreeMap;

use hodei_proto::v1;
use hodei_state::{
    codec,
    ids::{Caller, WorkerId},
    job::{Deadline, Reason, StartFailure},
    spec::{Body, JobSpec},
};
use proptest::prelude::*;

use super::{from_proto, to_proto};

fn minimal() -> v1::JobSpec {
    let shell = v1::Shell { cmd: "true".into(), args: vec![] };
    v1::JobSpec { command: Some(v1::Command { kind: Some(v1::command::Kind::Shell(shell)) }), ..v1::JobSpec::default() }
}

fn execution(spec: &JobSpec) -> hodei_state::spec::Execution {
    match &spec.body {
        Body::Inline(bytes) => codec::decode_execution(bytes).unwrap(),
        Body::Payload { .. } => panic!("from_proto makes inline bodies"),
    }
}

/// There and back: what was defaulted is stated, the rest is what came in, and a second round changes nothing.
fn round(spec: v1::JobSpec) -> v1::JobSpec {
    let core = from_proto::spec(spec).unwrap();
    to_proto::spec(&core, Some(&execution(&core)))
}

#[test]
fn defaults_are_filled_in() {
    let spec = round(minimal());
    assert_eq!((spec.lost_after_ms, spec.grace_period_ms), (120_000, 10_000));
    let retry = spec.retry.unwrap();
    assert_eq!((retry.infrastructure, retry.failure, retry.timeout), (Some(3), Some(0), Some(0)));
}

#[test]
fn the_digest_is_over_what_was_received() {
    let explicit = v1::JobSpec { lost_after_ms: 120_000, ..minimal() };
    assert_eq!(from_proto::spec(minimal()), from_proto::spec(explicit.clone()));
    assert_ne!(from_proto::digest(&minimal()), from_proto::digest(&explicit));
    assert_eq!(from_proto::digest(&minimal()), from_proto::digest(&minimal()));
}

#[test]
fn bad_fields_are_named() {
    let field = |spec: v1::JobSpec| from_proto::spec(spec).unwrap_err().field;
    assert_eq!(field(v1::JobSpec::default()), "command");
    assert_eq!(field(v1::JobSpec { output_policy: 9, ..minimal() }), "output_policy");
    assert_eq!(field(v1::JobSpec { depends_on: vec!["x".into()], ..minimal() }), "depends_on[0]");
    assert_eq!(field(v1::JobSpec { preferences: vec![v1::Preference::default()], ..minimal() }), "preferences[0]");
    assert_eq!(field(v1::JobSpec { name: "x".repeat(129), ..minimal() }), "name");
    let request = v1::QueueJobRequest { id: "7".into(), spec: Some(minimal()), ..Default::default() };
    assert_eq!(from_proto::submission(request).unwrap_err().field, "id");
}

#[test]
fn reasons_survive() {
    let by = Caller::Agent(WorkerId(7));
    for reason in [
        Reason::Exited { code: 7 },
        Reason::Signaled { signal: 9 },
        Reason::OutOfMemory,
        Reason::WorkerLost { message: "gone".into() },
        Reason::Cancelled { by, reason: "asked".into(), exit_code: Some(143), signal: None },
        Reason::Timeout { deadline: Deadline::Run },
        Reason::CouldNotStart { cause: StartFailure::NotFound, message: "no such file".into() },
        Reason::CouldNotStart { cause: StartFailure::NoDirectory, message: "no such directory".into() },
    ] {
        assert_eq!(from_proto::reason(to_proto::reason(&reason), by).unwrap(), reason);
    }
}

prop_compose! {
    fn spec()(
        name in "[g-z]{0,20}",
        script in any::<bool>(),
        // One that says nothing is refused.
        text in "[ -~]{0,39}[!-~]",
        env in prop::collection::btree_map("[A-Z_]{1,8}", "[ -~]{0,20}", 0..4),
        cpu_millis in 0u64..64_000,
        memory_mb in 0u64..10_000,
        timeout_ms in 0u64..10_000_000,
        priority in -100i32..100,
        lost_after_ms in prop_oneof![Just(0), 5_000u64..1_000_000],
        failure in prop::option::of(0u32..5),
        drop in any::<bool>(),
        image in "[a-z]{0,5}",
    ) -> v1::JobSpec {
        let kind = if script {
            v1::command::Kind::Script(v1::Script { interpreter: String::new(), content: text })
        } else {
            v1::command::Kind::Shell(v1::Shell { cmd: "sh".into(), args: vec![text] })
        };
        v1::JobSpec {
            name,
            command: Some(v1::Command { kind: Some(kind) }),
            env,
            resources: Some(v1::Resources { cpu_millis, memory_mb, ..Default::default() }),
            timeout_ms,
            priority,
            labels: BTreeMap::new(),
            lost_after_ms,
            retry: Some(v1::Retry { failure, ..Default::default() }),
            output_policy: i32::from(drop),
            image,
            ..Default::default()
        }
    }
}

proptest! {
    #[test]
    fn specs_survive(spec in spec()) {
        let once = round(spec.clone());
        prop_assert_eq!(&once.name, &spec.name);
        prop_assert_eq!(&once.command, &spec.command);
        prop_assert_eq!(&once.env, &spec.env);
        prop_assert_eq!(&once.resources, &spec.resources);
        prop_assert_eq!((once.timeout_ms, once.priority), (spec.timeout_ms, spec.priority));
        prop_assert_eq!(round(once.clone()), once);
    }
}
