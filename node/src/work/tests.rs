//! The node's part of a job's life on a replica of one, with an agent that is played by the test.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use hodei_proto::v1::{
    self, NodeMessage, WorkerMessage, attempt_status::Phase, log_event, node_message::Kind as Down,
    worker_message::Kind as Up,
};
use hodei_raft::{Dialer, Handle, Topic};
use hodei_state::{
    command::{Command, Envelope},
    ids::{Caller, ClusterId, NodeId},
    job::{Job, JobState},
    registry::WorkerState,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use super::{Work, start};
use crate::secrets::{Vault, new_key};
use crate::{
    convert::from_proto,
    logs::{entries::tests::lines, subscribe, tally::Tally},
    testing::{ADMIN, JOB, ON, WORKER, founding, submission},
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Alone;

impl Dialer for Alone {
    fn channel(&self, _: NodeId) -> Option<Channel> {
        None
    }
}

struct Node {
    handle: Handle,
    work: Work,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = hodei_raft::Config::new(1, ClusterId(1), dir.path().to_owned());
        let handle = hodei_raft::start(config, Arc::new(Alone)).await.unwrap();
        handle.initialize().await.unwrap();
        let logs = dir.path().join("logs");
        let work = start(
            handle.clone(),
            Arc::new(Alone),
            &logs,
            Arc::new(Vault::new(ClusterId(1), new_key())),
            CancellationToken::new(),
        )
        .unwrap();
        let node = Self { handle, work, _dir: dir };
        for envelope in founding() {
            node.propose(envelope).await;
        }
        node
    }

    async fn propose(&self, envelope: Envelope) {
        self.handle.propose(envelope, Instant::now() + PATIENCE).await.unwrap();
    }

    async fn job(&self, until: impl Fn(&Job) -> bool) -> Job {
        let mut changes = self.handle.subscribe(Topic::Job(JOB));
        let found = async {
            loop {
                changes.borrow_and_update();
                if let Some(job) = self.handle.view().state.job(JOB).filter(|job| until(job)) {
                    return job.clone();
                }
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, found).await.expect("the job to get there in time")
    }

    async fn worker(&self, until: WorkerState) {
        let mut changes = self.handle.subscribe(Topic::Worker(WORKER));
        let reached = async {
            while self.handle.view().state.worker(WORKER).unwrap().state != until {
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, reached).await.expect("the worker to get there in time");
    }

    async fn attach(&self, stream: u64, attempts: Vec<v1::AttemptStatus>) -> Agent {
        let (up, messages) = mpsc::channel(16);
        let down = self.work.workers.gateway.serve(WORKER, ReceiverStream::new(messages).boxed());
        let agent = Agent { up, down, heartbeats: stream * 1_000 };
        agent.say(Up::Attach(v1::Attach { session_id: ON.session.to_string(), stream, attempts })).await;
        agent
    }

    async fn stop(self) {
        self.work.stop.cancel();
        self.work.shutdown().await;
        self.handle.shutdown().await;
    }
}

/// The agent's side of a stream. Answers heartbeats that are asked for.
struct Agent {
    up: mpsc::Sender<Result<WorkerMessage, Status>>,
    down: mpsc::Receiver<Result<NodeMessage, Status>>,
    heartbeats: u64,
}

impl Agent {
    async fn say(&self, kind: Up) {
        self.up.send(Ok(WorkerMessage { kind: Some(kind) })).await.unwrap();
    }

    /// The next message that `pick` takes; others are passed over.
    async fn hear<T>(&mut self, pick: impl Fn(&Down) -> Option<T>) -> T {
        loop {
            let message = timeout(PATIENCE, self.down.recv()).await.expect("a message in time");
            let kind = message.expect("the stream goes on").unwrap().kind.unwrap();
            if matches!(kind, Down::KeepAlive(_)) {
                self.heartbeats += 1;
                let session_id = ON.session.to_string();
                let heartbeat = v1::WorkerHeartbeat { session_id, sequence: self.heartbeats, ..Default::default() };
                self.say(Up::Heartbeat(heartbeat)).await;
            }
            if let Some(picked) = pick(&kind) {
                return picked;
            }
        }
    }

    async fn run_job(&mut self) -> v1::RunJob {
        self.hear(|kind| if let Down::RunJob(run) = kind { Some(run.clone()) } else { None }).await
    }

    async fn ack(&mut self, enough: impl Fn(&v1::Ack) -> bool) -> v1::Ack {
        self.hear(|kind| if let Down::Ack(ack) = kind { enough(ack).then(|| ack.clone()) } else { None }).await
    }

    async fn log(&self, attempt: &v1::AttemptRef, batch: v1::LogBatch) {
        self.say(Up::LogBatch(v1::LogBatch { attempt: Some(attempt.clone()), ..batch })).await;
    }
}

fn result(attempt: &v1::AttemptRef, batches: &[v1::LogBatch]) -> Up {
    let mut tally = Tally::default();
    batches.iter().for_each(|batch| tally.add(batch));
    let Tally { last_sequence, lines, dropped, bytes, checksum, .. } = tally;
    let reason = v1::Reason { kind: "exited".into(), exit_code: Some(3), ..Default::default() };
    let log = Some(v1::LogEnd { last_sequence, lines, dropped, bytes, checksum });
    Up::JobResult(v1::JobResult { attempt: Some(attempt.clone()), reason: Some(reason), log })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_from_submission_to_the_end_of_its_log() {
    let node = Node::start().await;
    let mut agent = node.attach(1, vec![]).await;
    agent.hear(|kind| matches!(kind, Down::Attached(_)).then_some(())).await;
    node.propose(submission()).await;
    let run = agent.run_job().await;
    let attempt = run.attempt.clone().unwrap();
    assert_eq!(run.session_id, ON.session.to_string());
    let mut log =
        subscribe::serve(&node.work.hub, JOB, &v1::SubscribeLogsRequest { follow: true, ..Default::default() });

    agent.say(Up::JobStarted(v1::JobStarted { attempt: Some(attempt.clone()), pid: 1 })).await;
    agent.ack(|ack| ack.started).await;
    node.job(|job| job.state == JobState::Running).await;
    let batches = [lines(1, &["a\n", "b\n"]), lines(3, &["c\n"])];
    agent.log(&attempt, batches[0].clone()).await;
    agent.ack(|ack| ack.durable == 2).await;
    // The end is reported before the last lines arrive: it is committed at once, and acknowledged with the log.
    agent.say(result(&attempt, &batches)).await;
    node.job(|job| job.state == JobState::Failed).await;
    agent.log(&attempt, batches[1].clone()).await;
    let ack = agent.ack(|ack| ack.ended).await;
    assert_eq!((ack.received, ack.durable), (3, 3));

    let mut text = Vec::new();
    loop {
        let event = timeout(PATIENCE, log.recv()).await.unwrap().unwrap().unwrap();
        match event.kind.unwrap() {
            log_event::Kind::Batch(batch) => text.extend_from_slice(&batch.data),
            log_event::Kind::AttemptEnd(end) => assert!(end.complete, "{end:?}"),
            log_event::Kind::JobEnd(end) => {
                assert_eq!(end.job.unwrap().exit_code, Some(3));
                break;
            }
            log_event::Kind::Notice(notice) => panic!("{notice:?}"),
        }
    }
    assert_eq!(text, b"a\nb\nc\n");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_stream_is_resumed_where_the_log_ends_here() {
    let node = Node::start().await;
    let mut agent = node.attach(1, vec![]).await;
    node.propose(submission()).await;
    let attempt = agent.run_job().await.attempt.unwrap();
    agent.log(&attempt, lines(1, &["a\n", "b\n"])).await;
    agent.ack(|ack| ack.durable == 2).await;
    drop(agent);
    node.worker(WorkerState::Disconnected).await;

    // The process has started meanwhile, and there are more lines.
    let running = v1::AttemptStatus { attempt: Some(attempt.clone()), phase: Phase::Running.into(), last_sequence: 3 };
    let mut agent = node.attach(2, vec![running]).await;
    let wanted = agent.hear(|kind| if let Down::LogWanted(wanted) = kind { Some(wanted.from_sequence) } else { None });
    assert_eq!(wanted.await, 3);
    agent.ack(|ack| ack.started).await;
    agent.log(&attempt, lines(3, &["c\n"])).await;
    agent.say(result(&attempt, &[lines(1, &["a\n", "b\n"]), lines(3, &["c\n"])])).await;
    agent.ack(|ack| ack.ended).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_stream_supersedes_and_a_cancel_reaches_it() {
    let node = Node::start().await;
    let mut old = node.attach(1, vec![]).await;
    node.propose(submission()).await;
    let attempt = old.run_job().await.attempt.unwrap();
    let running = v1::AttemptStatus { attempt: Some(attempt.clone()), phase: Phase::Running.into(), last_sequence: 0 };
    let mut agent = node.attach(2, vec![running]).await;
    agent.ack(|ack| ack.started).await;
    let ended = async { while let Some(Ok(_)) = old.down.recv().await {} };
    timeout(PATIENCE, ended).await.expect("the older stream to end");
    node.worker(WorkerState::Busy).await;

    let command = Command::CancelJob { job: JOB, reason: "enough".into() };
    node.propose(Envelope { caller: Caller::Admin(ADMIN), command }).await;
    let cancel = agent.hear(|kind| if let Down::Cancel(cancel) = kind { Some(cancel.clone()) } else { None }).await;
    assert_eq!((cancel.reason.as_str(), cancel.attempt.as_ref()), ("enough", Some(&attempt)));
    agent.say(result(&attempt, &[])).await;
    agent.ack(|ack| ack.ended).await;
    assert_eq!(node.job(|job| job.state.is_terminal()).await.state, JobState::Cancelled);
    node.stop().await;
}

/// What the state has freed is released, and its report acknowledged all the same, so that the agent can forget it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freed_attempt_is_released_and_its_late_lines_are_kept() {
    let node = Node::start().await;
    let mut agent = node.attach(1, vec![]).await;
    node.propose(submission()).await;
    let attempt = agent.run_job().await.attempt.unwrap();
    agent.say(Up::JobStarted(v1::JobStarted { attempt: Some(attempt.clone()), pid: 1 })).await;
    agent.ack(|ack| ack.started).await;
    let lost = Command::AttemptLost { attempt: from_proto::attempt(Some(&attempt)).unwrap() };
    node.propose(Envelope { caller: Caller::Node(1), command: lost }).await;
    let id = attempt.clone();
    agent
        .hear(|kind| matches!(kind, Down::Release(release) if release.attempt.as_ref() == Some(&id)).then_some(()))
        .await;
    let late = lines(1, &["late\n"]);
    agent.log(&attempt, late.clone()).await;
    agent.say(result(&attempt, &[late])).await;
    agent.ack(|ack| ack.ended && ack.attempt.as_ref() == Some(&id)).await;
    let state = node.handle.view().state;
    assert_eq!(state.segments(JOB, 1).count(), 1);
    node.stop().await;
}
