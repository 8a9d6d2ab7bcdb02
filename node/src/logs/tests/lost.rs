//! What readers are told of an attempt that was lost: all that its holders have, and who has not answered.

use super::*;

/// Node 1 has one line of an attempt that went from one of these to the next and was lost.
async fn lost_with_a_line_on_node_1(holders: &[NodeId]) -> (Nodes, Hub, AttemptRef) {
    let nodes = Nodes::new();
    let hub = nodes.start(1);
    let attempt = nodes.replica.assigned();
    write(&hub, attempt, lines(1, &["a\n"])).await;
    nodes.hand_on(attempt, holders);
    nodes.replica.done(Caller::Node(1), Command::AttemptLost { attempt });
    (nodes, hub, attempt)
}

/// Of a lost attempt's log nobody can tell who has the most: a gateway that stood still while another one was given more may
/// have named itself the last holder.
#[tokio::test]
async fn of_a_lost_attempt_all_that_any_holder_has_is_read() {
    for last in [1, 2] {
        let nodes = Nodes::new();
        let hubs = [nodes.start(1), nodes.start(2), nodes.start(3)];
        let attempt = nodes.replica.assigned();
        let batches = [lines(1, &["a\n", "b\n"]), lines(3, &["c\n", "d\n", "e\n"])];
        write(&hubs[0], attempt, batches[0].clone()).await;
        nodes.place(attempt, 1);
        nodes.replica.attach(2, 2);
        for batch in &batches {
            write(&hubs[1], attempt, batch.clone()).await;
        }
        nodes.place(attempt, 2);
        nodes.replica.detach(2);
        nodes.place(attempt, last);
        assert_eq!(nodes.holders(attempt).last(), Some(&last));

        // These have read what the last holder has before anybody knows of the end.
        let mut early: Vec<_> = hubs.iter().map(Reader::follow).collect();
        for reader in &mut early {
            assert_eq!(reader.text(2).await, "a\nb\n");
        }
        nodes.replica.done(Caller::Node(1), Command::AttemptLost { attempt });
        for (node, reader) in (1..).zip(&mut early) {
            assert_eq!(reader.text(3).await, "c\nd\ne\n", "node {node}, the last holder {last}");
            let end = reader.attempt_end().await;
            assert_eq!((end.complete, end.missing_holders), (false, vec![]));
        }
        for (node, hub) in (1..).zip(&hubs) {
            for (tail, text) in [(0, "a\nb\nc\nd\ne\n"), (2, "d\ne\n")] {
                let request = v1::SubscribeLogsRequest { tail, ..Default::default() };
                let read = Reader::open(hub, &request).text(text.len() as u64 / 2).await;
                assert_eq!(read, text, "node {node}, the last holder {last}");
            }
        }
    }
}

/// One that has left is not waited for, unless it was the last; one that may come back is.
#[tokio::test(start_paused = true)]
async fn a_lost_attempt_names_the_holders_that_may_have_more() {
    // Holders, who is removed, who is missing in the end.
    let cases: [(&[NodeId], Option<NodeId>, &[&str]); 4] =
        [(&[2, 1], None, &["2"]), (&[2, 1], Some(2), &[]), (&[1, 2], None, &["2"]), (&[1, 2], Some(2), &["2"])];
    for (holders, gone, missing) in cases {
        let nodes = Nodes::new();
        let hub = nodes.start(1);
        let attempt = nodes.replica.assigned();
        let key = LogKey { job: attempt.job, attempt: attempt.attempt };
        hub.copy(key, Open::OrCreate).await.unwrap().unwrap();
        nodes.hand_on(attempt, holders);
        if let Some(node) = gone {
            nodes.replica.done(Caller::Admin(ADMIN), Command::RemoveNode { node });
        }
        nodes.replica.done(Caller::Node(1), Command::AttemptLost { attempt });
        let begun = Instant::now();
        let end = Reader::follow(&hub).attempt_end().await;
        assert_eq!(end.missing_holders, missing, "{holders:?}, gone: {gone:?}");
        assert_eq!(end.gone, gone.is_some() && !missing.is_empty(), "{holders:?}, gone: {gone:?}");
        assert_eq!(begun.elapsed() < Duration::from_secs(5), gone.is_some(), "{holders:?}, gone: {gone:?}");
    }
}

/// However many holders do not answer, and whoever is asked before it, what one has is read.
#[tokio::test(start_paused = true)]
async fn whoever_answers_of_a_lost_attempt_is_read_and_the_others_are_named() {
    let (nodes, hub, _) = lost_with_a_line_on_node_1(&[1, 2, 3]).await;
    nodes.others.frozen.lock().extend([2, 3]);
    for follow in [false, true] {
        let mut reader = Reader::open(&hub, &v1::SubscribeLogsRequest { follow, ..Default::default() });
        assert_eq!(reader.text(1).await, "a\n", "follow: {follow}");
        let mut missing = reader.attempt_end().await.missing_holders;
        missing.sort();
        assert_eq!(missing, ["2", "3"], "follow: {follow}");
    }
}

/// Who has lost its copy has answered, and who is removed is not waited for any longer.
#[tokio::test(start_paused = true)]
async fn a_holder_of_a_lost_attempt_is_missing_until_nothing_can_come_from_it() {
    for is_removed in [false, true] {
        let (nodes, hub, _) = lost_with_a_line_on_node_1(&[2, 1]).await;
        let mut reader = Reader::follow(&hub);
        assert_eq!(reader.text(1).await, "a\n");
        assert!(timeout(Duration::from_secs(3), reader.events.recv()).await.is_err(), "it gave up");
        if is_removed {
            nodes.replica.done(Caller::Admin(ADMIN), Command::RemoveNode { node: 2 });
        } else {
            nodes.start(2);
        }
        let since = Instant::now();
        let end = reader.attempt_end().await;
        assert_eq!((end.missing_holders, since.elapsed() < Duration::from_secs(2)), (vec![], true), "{is_removed}");
    }
}

/// Late lines of a lost attempt, by way of a gateway that it did not have before, while another one does not answer.
#[tokio::test]
async fn who_is_given_lines_after_the_end_is_asked_whoever_else_is_silent() {
    let (nodes, hub, attempt) = lost_with_a_line_on_node_1(&[2, 1]).await;
    let other = nodes.start(3);
    let mut reader = Reader::follow(&hub);
    assert_eq!(reader.text(1).await, "a\n");
    let asked = || nodes.others.pulls.lock().iter().filter(|(node, _)| *node == 2).count();
    while asked() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    write(&other, attempt, lines(1, &["a\n", "b\n"])).await;
    nodes.replica.attach(4, 3);
    nodes.place(attempt, 3);
    assert_eq!(reader.text(1).await, "b\n");
}

/// Neither what a reader has seen of a shorter copy nor the time that a longer one takes to come ends its patience.
#[tokio::test]
async fn a_copy_that_takes_long_to_come_is_waited_for_while_it_grows() {
    for is_lost in [true, false] {
        let nodes = Nodes::new();
        let (hub, other) = (nodes.start(1), nodes.start(2));
        let attempt = nodes.replica.assigned();
        let batches: Vec<_> = (1..=8).map(|sequence| lines(sequence, &["line\n"])).collect();
        for batch in &batches {
            write(&other, attempt, batch.clone()).await;
        }
        for batch in &batches[..7] {
            write(&hub, attempt, batch.clone()).await;
        }
        nodes.hand_on(attempt, &[2, 1]);
        nodes.others.slow.lock().insert(2);
        if is_lost {
            nodes.replica.done(Caller::Node(1), Command::AttemptLost { attempt });
        } else {
            nodes.replica.result(attempt, figures(&batches));
        }
        let mut reader = Reader::open(&hub, &v1::SubscribeLogsRequest::default());
        assert_eq!(reader.text(8).await, "line\n".repeat(8), "lost: {is_lost}");
        let end = reader.attempt_end().await;
        assert_eq!((end.complete, end.missing_holders), (!is_lost, vec![]), "lost: {is_lost}");
    }
}
