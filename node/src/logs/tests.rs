//! The log plane as its clients see it, over a scripted state and other nodes' copies that are kept in memory.

mod lost;
mod running;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use hodei_proto::v1::{self, LogBatch, log_event::Kind};
use hodei_state::{
    State,
    command::{Command, PlaceSegment},
    ids::{AttemptRef, Caller, JobId, NodeId, WorkerId},
    job::LogEnd,
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    entries::{self, tests::lines},
    frame::LogKey,
    hub::{Hub, Ledger, Open, Pulled, Upstream},
    pull, subscribe,
    tally::Tally,
};
use crate::{
    convert::{from_proto, to_proto},
    testing::{ADMIN, JOB, Replica, WORKER},
};

impl Ledger for Replica {
    fn state(&self) -> State {
        Replica::state(self)
    }

    fn watch_job(&self, _: JobId) -> watch::Receiver<u64> {
        self.watch()
    }

    fn watch_worker(&self, _: WorkerId) -> watch::Receiver<u64> {
        self.watch()
    }

    fn reaches_majority(&self, _: Instant) -> BoxFuture<'_, bool> {
        async { !self.is_alone.load(Ordering::Relaxed) }.boxed()
    }

    fn describe(&self, job: JobId) -> BoxFuture<'_, Option<v1::JobEnd>> {
        let state = Replica::state(self);
        let job = state.job(job).map(|row| to_proto::job(row, state.attempts(job), None));
        async move { Some(v1::JobEnd { job, position: None }) }.boxed()
    }
}

/// The other nodes: each has a log plane of its own over the same state. A dead one refuses and breaks its streams, a frozen
/// one does not answer, a hanging one begins to, a slow one takes half a second for each message.
#[derive(Clone, Default)]
struct Others {
    frozen: Arc<Mutex<HashSet<NodeId>>>,
    hanging: Arc<Mutex<HashSet<NodeId>>>,
    slow: Arc<Mutex<HashSet<NodeId>>>,
    nodes: Arc<Mutex<HashMap<NodeId, (Hub, CancellationToken)>>>,
    pulls: Arc<Mutex<Vec<(NodeId, u64)>>>,
}

impl Upstream for Others {
    fn pull(&self, holder: NodeId, request: v1::PullLogRequest) -> BoxFuture<'_, Result<Pulled, Status>> {
        self.pulls.lock().push((holder, request.from_sequence));
        let node = self.nodes.lock().get(&holder).cloned();
        let [is_frozen, is_hanging] = [&self.frozen, &self.hanging].map(|these| these.lock().contains(&holder));
        let pause = Duration::from_millis(if self.slow.lock().contains(&holder) { 500 } else { 0 });
        async move {
            if is_frozen {
                return std::future::pending().await;
            }
            if is_hanging {
                return Ok(futures::stream::pending().boxed());
            }
            let (hub, dead) = node.ok_or_else(|| Status::unavailable("dead"))?;
            let answers = ReceiverStream::new(pull::serve(&hub, &request)?).then(move |answer| async move {
                tokio::time::sleep(pause).await;
                answer
            });
            Ok(answers.take_until(dead.cancelled_owned()).boxed())
        }
        .boxed()
    }
}

struct Nodes {
    replica: Replica,
    others: Others,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

impl Nodes {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { replica: Replica::new(), others: Others::default(), stop: CancellationToken::new(), dir }
    }

    fn start(&self, node: NodeId) -> Hub {
        let dir = self.dir.path().join(node.to_string());
        let (ledger, upstream) = (Arc::new(self.replica.clone()), Arc::new(self.others.clone()));
        let hub = Hub::start(node, &dir, ledger, upstream, self.stop.clone()).unwrap();
        self.others.nodes.lock().insert(node, (hub.clone(), CancellationToken::new()));
        hub
    }

    /// Its agent goes from one gateway to the next.
    fn hand_on(&self, attempt: AttemptRef, holders: &[NodeId]) {
        for (stream, &holder) in (2..).zip(holders) {
            self.replica.attach(stream, holder);
            self.place(attempt, holder);
        }
        assert_eq!(self.holders(attempt), holders);
    }

    fn holders(&self, attempt: AttemptRef) -> Vec<NodeId> {
        let state = self.replica.state();
        state.segments(attempt.job, attempt.attempt).flat_map(|segment| segment.holders.iter().copied()).collect()
    }

    fn kill(&self, node: NodeId) {
        self.others.nodes.lock().remove(&node).unwrap().1.cancel();
    }

    fn place(&self, attempt: AttemptRef, holder: NodeId) {
        let segment = PlaceSegment { holder, first_sequence: 1 };
        self.replica.done(Caller::Node(holder), Command::PlaceLog { attempt, segment });
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn write(hub: &Hub, attempt: AttemptRef, batch: LogBatch) {
    let key = LogKey { job: attempt.job, attempt: attempt.attempt };
    let file = hub.copy(key, Open::OrCreate).await.unwrap().unwrap();
    let last = entries::last_sequence(&batch);
    hub.append(&file, batch, 0).await.unwrap();
    file.watch().wait_for(|progress| progress.tally.last_sequence >= last).await.unwrap();
}

/// What a client has seen.
struct Reader {
    events: mpsc::Receiver<Result<v1::LogEvent, Status>>,
}

impl Reader {
    fn open(hub: &Hub, request: &v1::SubscribeLogsRequest) -> Self {
        Self { events: subscribe::serve(hub, JOB, request) }
    }

    fn follow(hub: &Hub) -> Self {
        Self::open(hub, &v1::SubscribeLogsRequest { follow: true, ..Default::default() })
    }

    async fn next(&mut self) -> Option<Kind> {
        let event = timeout(Duration::from_secs(20), self.events.recv()).await.expect("an event in time");
        event.map(|event| event.unwrap().kind.unwrap())
    }

    /// The text of the next `count` entries, each once and in order.
    async fn text(&mut self, count: u64) -> String {
        let (mut text, mut seen) = (String::new(), 0);
        while seen < count {
            match self.next().await {
                Some(Kind::Batch(batch)) => {
                    seen += batch.lens.len() as u64;
                    text.push_str(std::str::from_utf8(&batch.data).unwrap());
                }
                other => panic!("after {text:?}: {other:?}"),
            }
        }
        text
    }

    async fn attempt_end(&mut self) -> v1::AttemptLogEnd {
        match self.next().await {
            Some(Kind::AttemptEnd(end)) => end,
            other => panic!("{other:?}"),
        }
    }
}

fn figures(batches: &[LogBatch]) -> LogEnd {
    let mut tally = Tally::default();
    for batch in batches {
        tally.add(batch);
    }
    let Tally { last_sequence, lines, dropped, bytes, checksum, .. } = tally;
    from_proto::log_end(Some(&v1::LogEnd { last_sequence, lines, dropped, bytes, checksum }))
}

#[tokio::test]
async fn history_then_live_on_the_gateway_and_elsewhere() {
    let nodes = Nodes::new();
    let (gateway, elsewhere) = (nodes.start(1), nodes.start(2));
    let attempt = nodes.replica.assigned();
    let batches = [lines(1, &["a\n", "b\n"]), lines(3, &["c\n"])];
    write(&gateway, attempt, batches[0].clone()).await;
    nodes.place(attempt, 1);

    let mut readers = [Reader::follow(&gateway), Reader::follow(&elsewhere)];
    for reader in &mut readers {
        assert_eq!(reader.text(2).await, "a\nb\n");
    }
    write(&gateway, attempt, batches[1].clone()).await;
    for reader in &mut readers {
        assert_eq!(reader.text(1).await, "c\n");
    }
    nodes.replica.result(attempt, figures(&batches));
    for reader in &mut readers {
        let end = reader.attempt_end().await;
        assert!(end.complete && end.missing_holders.is_empty(), "{end:?}");
        assert!(matches!(reader.next().await, Some(Kind::JobEnd(_))));
        assert!(reader.next().await.is_none());
    }
}

#[tokio::test]
async fn a_subscription_before_the_first_attempt_sees_it_all() {
    let nodes = Nodes::new();
    let (gateway, elsewhere) = (nodes.start(1), nodes.start(2));
    let attempt = nodes.replica.assigned();
    let mut reader = Reader::follow(&elsewhere);
    let batch = lines(1, &["a\n"]);
    write(&gateway, attempt, batch.clone()).await;
    nodes.place(attempt, 1);
    assert_eq!(reader.text(1).await, "a\n");
    nodes.replica.result(attempt, figures(&[batch]));
    assert!(reader.attempt_end().await.complete);
}

/// Ten subscribers of a log on a node that does not hold it cost its holder one stream.
#[tokio::test]
async fn one_upstream_serves_all_subscribers() {
    let nodes = Nodes::new();
    let (gateway, elsewhere) = (nodes.start(1), nodes.start(2));
    let attempt = nodes.replica.assigned();
    write(&gateway, attempt, lines(1, &["a\n"])).await;
    nodes.place(attempt, 1);
    let mut readers: Vec<Reader> = (0..10).map(|_| Reader::follow(&elsewhere)).collect();
    for reader in &mut readers {
        assert_eq!(reader.text(1).await, "a\n");
    }
    assert_eq!(*nodes.others.pulls.lock(), [(1, 1)]);
}

/// The holder dies; the agent delivers to another gateway from the beginning; nobody sees a line twice or misses one.
#[tokio::test]
async fn a_dead_holder_is_replaced_without_a_lost_or_doubled_line() {
    let nodes = Nodes::new();
    let (first, second, reading) = (nodes.start(1), nodes.start(2), nodes.start(3));
    let attempt = nodes.replica.assigned();
    let batches = [lines(1, &["a\n", "b\n"]), lines(3, &["c\n"]), lines(4, &["d\n"])];
    write(&first, attempt, batches[0].clone()).await;
    nodes.place(attempt, 1);
    let mut readers = [Reader::follow(&reading), Reader::follow(&second)];
    for reader in &mut readers {
        assert_eq!(reader.text(2).await, "a\nb\n");
    }
    nodes.kill(1);
    nodes.replica.attach(2, 2);
    for batch in &batches {
        write(&second, attempt, batch.clone()).await;
    }
    nodes.place(attempt, 2);
    for reader in &mut readers {
        assert_eq!(reader.text(2).await, "c\nd\n");
    }
    nodes.replica.result(attempt, figures(&batches));
    for reader in &mut readers {
        assert!(reader.attempt_end().await.complete);
    }
    let from: Vec<_> = nodes.others.pulls.lock().iter().filter(|(node, _)| *node == 2).copied().collect();
    assert_eq!(from, [(2, 3)], "the next holder is asked for what is new only");
}

/// The agent comes back to a gateway that is a holder already: no row of the log changes, the worker's does.
#[tokio::test]
async fn the_worker_is_followed_back_to_an_earlier_gateway() {
    let nodes = Nodes::new();
    let (first, second, reading) = (nodes.start(1), nodes.start(2), nodes.start(3));
    let attempt = nodes.replica.assigned();
    for (hub, node) in [(&first, 1), (&second, 2)] {
        write(hub, attempt, lines(1, &["a\n"])).await;
        nodes.place(attempt, node);
    }
    nodes.replica.attach(2, 2);
    let mut reader = Reader::follow(&reading);
    assert_eq!(reader.text(1).await, "a\n");
    nodes.replica.attach(3, 1);
    write(&first, attempt, lines(2, &["b\n"])).await;
    assert_eq!(reader.text(1).await, "b\n");
}

#[tokio::test]
async fn a_lost_attempt_ends_incomplete_and_the_next_one_follows() {
    let nodes = Nodes::new();
    let gateway = nodes.start(1);
    let attempt = nodes.replica.assigned();
    write(&gateway, attempt, lines(1, &["a\n"])).await;
    nodes.place(attempt, 1);
    let mut reader = Reader::follow(&gateway);
    assert_eq!(reader.text(1).await, "a\n");
    nodes.replica.done(Caller::Node(1), Command::AttemptLost { attempt });
    let end = reader.attempt_end().await;
    assert!(!end.complete && end.log.is_none(), "{end:?}");

    let attempt = nodes.replica.assign(2);
    let batch = lines(1, &["again\n"]);
    write(&gateway, attempt, batch.clone()).await;
    nodes.place(attempt, 1);
    assert_eq!(reader.text(1).await, "again\n");
    nodes.replica.result(attempt, figures(&[batch]));
    assert!(reader.attempt_end().await.complete);
    assert!(matches!(reader.next().await, Some(Kind::JobEnd(_))));
}

/// Also while they are asked once more.
#[tokio::test(start_paused = true)]
async fn holders_that_do_not_answer_are_named() {
    for is_frozen in [false, true] {
        let nodes = Nodes::new();
        let reading = nodes.start(3);
        let attempt = nodes.replica.assigned();
        nodes.place(attempt, 2);
        if is_frozen {
            nodes.others.frozen.lock().insert(2);
        }
        nodes.replica.result(attempt, figures(&[lines(1, &["a\n"])]));
        nodes.replica.detach(1);
        let mut reader = Reader::follow(&reading);
        let end = reader.attempt_end().await;
        assert_eq!((end.complete, end.missing_holders), (false, vec!["2".to_owned()]), "frozen: {is_frozen}");
        assert!(matches!(reader.next().await, Some(Kind::JobEnd(_))));
    }
}

/// Unless a member, or somebody who was not asked yet, may have the rest.
#[tokio::test(start_paused = true)]
async fn what_has_left_the_cluster_with_its_holder_is_told_to_be_lost() {
    // Holders, whether the one that leaves is frozen, whether the worker is removed, and how many lines are told lost.
    let cases: [(&[NodeId], _, _, _); 5] = [
        (&[2], false, false, Some(1)),
        (&[2], false, true, Some(1)),
        (&[1, 2], false, false, None),
        (&[2, 1], false, false, None),
        (&[2], true, false, Some(1)),
    ];
    for (holders, is_frozen, is_removed, gone) in cases {
        let nodes = Nodes::new();
        let reading = nodes.start(3);
        let attempt = nodes.replica.assigned();
        holders.iter().for_each(|&holder| nodes.place(attempt, holder));
        if is_frozen {
            nodes.others.frozen.lock().insert(2);
        }
        nodes.replica.done(Caller::Admin(ADMIN), Command::RemoveNode { node: 2 });
        nodes.replica.result(attempt, figures(&[lines(1, &["a\n"])]));
        nodes.replica.detach(1);
        if is_removed {
            nodes.replica.done(Caller::Admin(ADMIN), Command::RemoveWorker { worker: WORKER, force: false });
        }
        let begun = Instant::now();
        let end = Reader::follow(&reading).attempt_end().await;
        // A worker that is there may be on its way to another gateway with them.
        assert_eq!(begun.elapsed() < Duration::from_secs(5), is_removed, "{holders:?} after {:?}", begun.elapsed());
        assert_eq!(
            (end.gone, end.lost),
            (gone.is_some(), gone.unwrap_or_default()),
            "{holders:?}, frozen: {is_frozen}"
        );
        assert!(!end.complete && end.missing_holders.contains(&"2".to_owned()));
    }
}

/// Its gateway's disk may be full for a while; nobody else is said to have the rest.
#[tokio::test]
async fn what_an_agent_has_yet_to_deliver_is_waited_for() {
    for is_delivered in [true, false] {
        let nodes = Nodes::new();
        let (gateway, elsewhere) = (nodes.start(1), nodes.start(2));
        let attempt = nodes.replica.assigned();
        let batches = [lines(1, &["a\n"]), lines(2, &["b\n"])];
        write(&gateway, attempt, batches[0].clone()).await;
        nodes.place(attempt, 1);
        nodes.replica.result(attempt, figures(&batches));
        let mut reader = Reader::follow(&elsewhere);
        assert_eq!(reader.text(1).await, "a\n");
        tokio::time::pause();
        assert!(timeout(Duration::from_secs(45), reader.events.recv()).await.is_err(), "it gave up");
        if is_delivered {
            // What threads do takes its time.
            tokio::time::resume();
            write(&gateway, attempt, batches[1].clone()).await;
            assert_eq!(reader.text(1).await, "b\n");
        }
        let end = reader.attempt_end().await;
        assert_eq!((end.complete, end.missing_holders), (is_delivered, vec![]));
        if !is_delivered {
            tokio::time::resume();
        }
    }
}

/// Where the disk of the node that is asked takes nothing, no holder is blamed.
#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_keep_what_it_reads_says_so() {
    let nodes = Nodes::new();
    let (gateway, elsewhere) = (nodes.start(1), nodes.start(2));
    let attempt = nodes.replica.assigned();
    let batch = lines(1, &["a\n"]);
    write(&gateway, attempt, batch.clone()).await;
    nodes.place(attempt, 1);
    nodes.replica.result(attempt, figures(&[batch]));
    // What should be a directory is a file.
    std::fs::write(nodes.dir.path().join("2").join("cache"), "").unwrap();
    for follow in [true, false] {
        let mut reader = Reader::open(&elsewhere, &v1::SubscribeLogsRequest { follow, ..Default::default() });
        let status = timeout(Duration::from_secs(20), reader.events.recv()).await.unwrap().unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
        assert!(status.message().contains("cannot keep"), "{status:?}");
        assert!(reader.next().await.is_none());
    }
}

#[tokio::test]
async fn without_follow_there_is_what_there_is() {
    let nodes = Nodes::new();
    let (gateway, elsewhere) = (nodes.start(1), nodes.start(2));
    let attempt = nodes.replica.assigned();
    write(&gateway, attempt, lines(1, &["a\n", "b\n", "c\n"])).await;
    nodes.place(attempt, 1);
    for hub in [&gateway, &elsewhere] {
        let mut reader = Reader::open(hub, &v1::SubscribeLogsRequest::default());
        assert_eq!(reader.text(3).await, "a\nb\nc\n");
        assert!(reader.next().await.is_none());
        let mut reader = Reader::open(hub, &v1::SubscribeLogsRequest { tail: 2, ..Default::default() });
        assert_eq!(reader.text(2).await, "b\nc\n");
        assert!(reader.next().await.is_none());
        let mut reader = Reader::open(hub, &v1::SubscribeLogsRequest { since_ms: 1_020, ..Default::default() });
        assert_eq!(reader.text(1).await, "c\n");
        let mut reader = Reader::open(hub, &v1::SubscribeLogsRequest { from_sequence: 3, ..Default::default() });
        assert_eq!(reader.text(1).await, "c\n");
    }
}

/// The gateway of an ended attempt's worker has only the beginning of its log: the last lines are those of the whole.
#[tokio::test]
async fn the_tail_is_that_of_the_longest_copy() {
    let nodes = Nodes::new();
    let (first, second, reading) = (nodes.start(1), nodes.start(2), nodes.start(3));
    let attempt = nodes.replica.assigned();
    let batches = [lines(1, &["a\n", "b\n"]), lines(3, &["c\n", "d\n", "e\n"])];
    write(&first, attempt, batches[0].clone()).await;
    nodes.place(attempt, 1);
    for batch in &batches {
        write(&second, attempt, batch.clone()).await;
    }
    nodes.place(attempt, 2);
    nodes.replica.result(attempt, figures(&batches));
    for hub in [&first, &second, &reading] {
        let mut reader = Reader::open(hub, &v1::SubscribeLogsRequest { tail: 2, ..Default::default() });
        assert_eq!(reader.text(2).await, "d\ne\n");
        assert!(reader.attempt_end().await.complete);
    }
}

/// Somebody who reads nothing holds up neither the writer nor another reader.
#[tokio::test]
async fn a_slow_subscriber_slows_nobody() {
    let nodes = Nodes::new();
    let gateway = nodes.start(1);
    let attempt = nodes.replica.assigned();
    let mut slow = Reader::follow(&gateway);
    let mut quick = Reader::follow(&gateway);
    nodes.place(attempt, 1);
    for sequence in 1..=1_000 {
        write(&gateway, attempt, lines(sequence, &["line\n"])).await;
    }
    assert_eq!(quick.text(1_000).await.len(), 5_000);
    assert_eq!(slow.text(1_000).await.len(), 5_000);
}
