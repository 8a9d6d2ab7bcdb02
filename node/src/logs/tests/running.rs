//! What readers of an attempt that goes on see while its copies, or who has them, fail and come back.

use super::*;

/// Node 1 is the gateway and has one line; node 2 has nothing.
async fn with_a_line_on_node_1() -> (Nodes, [Hub; 2], AttemptRef) {
    let nodes = Nodes::new();
    let hubs = [1, 2].map(|node| nodes.start(node));
    let attempt = nodes.replica.assigned();
    write(&hubs[0], attempt, lines(1, &["a\n"])).await;
    nodes.place(attempt, 1);
    (nodes, hubs, attempt)
}

/// A disk that was full for a moment: the gateway has opened its copy anew, and so do those who read it.
#[tokio::test]
async fn a_copy_that_has_failed_is_read_on_once_it_is_opened_anew() {
    let (_nodes, [gateway, elsewhere], attempt) = with_a_line_on_node_1().await;
    let mut readers = [Reader::follow(&gateway), Reader::follow(&elsewhere)];
    for reader in &mut readers {
        assert_eq!(reader.text(1).await, "a\n");
    }
    let key = LogKey { job: attempt.job, attempt: attempt.attempt };
    let copy = gateway.copy(key, Open::Existing).await.unwrap().unwrap();
    copy.watch().wait_for(|progress| progress.durable == 1).await.unwrap();
    copy.give_up();
    write(&gateway, attempt, lines(2, &["b\n"])).await;
    for reader in &mut readers {
        assert_eq!(reader.text(1).await, "b\n");
    }
}

/// Lines come by way of the gateway only: an earlier holder is no place to stay, whoever reads.
#[tokio::test]
async fn a_gateway_that_answers_again_is_read_again() {
    for reading in [2, 3] {
        let nodes = Nodes::new();
        let [gateway, earlier, third] = [1, 2, 3].map(|node| nodes.start(node));
        let attempt = nodes.replica.assigned();
        write(&earlier, attempt, lines(1, &["a\n"])).await;
        write(&gateway, attempt, lines(1, &["a\n", "b\n"])).await;
        nodes.hand_on(attempt, &[2, 1]);
        let mut reader = Reader::follow(if reading == 2 { &earlier } else { &third });
        assert_eq!(reader.text(2).await, "a\nb\n");
        nodes.kill(1);
        let refused = |pulls: &[(NodeId, u64)]| pulls.iter().filter(|(node, _)| *node == 1).count() > 2;
        timeout(Duration::from_secs(10), async {
            while !refused(&nodes.others.pulls.lock()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("the gateway is asked again");
        let asked = nodes.others.pulls.lock().iter().filter(|(node, _)| *node == 2).count();
        assert!(asked <= 1, "what an earlier holder has is asked for {asked} times");
        nodes.others.nodes.lock().insert(1, (gateway.clone(), CancellationToken::new()));
        write(&gateway, attempt, lines(3, &["c\n"])).await;
        assert_eq!(reader.text(1).await, "c\n", "node {reading}");
    }
}

/// The job goes on, and another node may have room: a reader is told to ask there, in good time.
#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_keep_what_a_running_attempt_prints_says_so() {
    let (nodes, [_gateway, elsewhere], _) = with_a_line_on_node_1().await;
    // What should be a directory is a file.
    let cache = nodes.dir.path().join("2").join("cache");
    std::fs::write(&cache, "").unwrap();
    let mut reader = Reader::follow(&elsewhere);
    let event = timeout(Duration::from_secs(20), reader.events.recv()).await.expect("not silent").unwrap();
    let status = event.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    assert!(status.message().contains("cannot keep"), "{status:?}");

    // Before that it is waited for.
    let mut reader = Reader::follow(&elsewhere);
    tokio::time::sleep(Duration::from_secs(5)).await;
    std::fs::remove_file(&cache).unwrap();
    tokio::time::resume();
    assert_eq!(reader.text(1).await, "a\n");
}

/// While the gateway does not answer, this node's own copy is what there is, and its end is where the tail is counted from.
#[tokio::test(start_paused = true)]
async fn an_earlier_holder_shows_its_own_copy_while_the_gateway_is_silent() {
    for follow in [false, true] {
        for (tail, text) in [(0, "a\nb\nc\n"), (2, "b\nc\n")] {
            let nodes = Nodes::new();
            let [reading, _, _] = [3, 2, 1].map(|node| nodes.start(node));
            let attempt = nodes.replica.assigned();
            write(&reading, attempt, lines(1, &["a\n", "b\n", "c\n"])).await;
            nodes.hand_on(attempt, &[3, 2, 1]);
            nodes.others.frozen.lock().extend([1, 2]);
            let mut reader = Reader::open(&reading, &v1::SubscribeLogsRequest { follow, tail, ..Default::default() });
            assert_eq!(reader.text(text.len() as u64 / 2).await, text, "follow: {follow}, tail: {tail}");
            if !follow {
                assert!(matches!(reader.next().await, Some(Kind::Notice(_))));
                assert!(reader.next().await.is_none());
            }
        }
    }
}

/// Its agent was on its way to a gateway that had no more than the beginning when its machine died.
#[tokio::test]
async fn a_gateway_that_has_less_is_left_once_the_attempt_has_ended() {
    let nodes = Nodes::new();
    let [earlier, gateway, reading] = [1, 2, 3].map(|node| nodes.start(node));
    let attempt = nodes.replica.assigned();
    let batches = [lines(1, &["a\n"]), lines(2, &["b\n"])];
    for batch in &batches {
        write(&earlier, attempt, batch.clone()).await;
    }
    write(&gateway, attempt, batches[0].clone()).await;
    nodes.hand_on(attempt, &[1, 2]);
    let mut reader = Reader::follow(&reading);
    assert_eq!(reader.text(1).await, "a\n");
    nodes.replica.result(attempt, figures(&batches));
    assert_eq!(reader.text(1).await, "b\n");
    assert!(reader.attempt_end().await.complete);
}

/// The log may go on where this node cannot see it. Before that, all that is here is sent, and whatever comes here; lines of
/// an agent that speaks to this node may come nowhere else.
#[tokio::test]
async fn a_node_without_a_majority_sends_its_readers_elsewhere_once_nothing_comes() {
    for is_gateway in [false, true] {
        let (nodes, [gateway, other], attempt) = with_a_line_on_node_1().await;
        let reading = if is_gateway { &gateway } else { &other };
        nodes.replica.is_alone.store(true, Ordering::Relaxed);
        let mut reader = Reader::follow(reading);
        assert_eq!(reader.text(1).await, "a\n");
        write(&gateway, attempt, lines(2, &["b\n"])).await;
        assert_eq!(reader.text(1).await, "b\n");
        tokio::time::pause();
        let begun = Instant::now();
        let status = reader.events.recv().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
        let after = begun.elapsed().as_millis();
        let patience = if is_gateway { 15_000 } else { 2_000 };
        assert!((patience - 500..patience + 2_000).contains(&after), "after {after} ms");

        // One that waits for the job's next attempt, too; not one that only wants what there is.
        nodes.replica.is_alone.store(false, Ordering::Relaxed);
        let request = v1::SubscribeLogsRequest { attempt: 2, follow: true, ..Default::default() };
        let mut waiting = Reader::open(reading, &request);
        assert!(timeout(Duration::from_secs(60), waiting.events.recv()).await.is_err(), "there is a majority");
        nodes.replica.is_alone.store(true, Ordering::Relaxed);
        assert_eq!(waiting.events.recv().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
        tokio::time::resume();
        let mut once = Reader::open(reading, &v1::SubscribeLogsRequest::default());
        assert_eq!(once.text(2).await, "a\nb\n");
        assert!(once.next().await.is_none());
    }
}

/// Its sync failed while a slow reader had yet to read the end of it: what was cut off has to come once more.
#[tokio::test]
async fn a_log_is_not_complete_for_a_reader_that_has_not_read_what_was_cut_off() {
    let nodes = Nodes::new();
    let gateway = nodes.start(1);
    let attempt = nodes.replica.assigned();
    let line = format!("{}\n", "x".repeat(63 << 10));
    let batches: Vec<_> = (1..=30).map(|sequence| lines(sequence, &[&line])).collect();
    let (last, before) = batches.split_last().unwrap();
    for batch in before {
        write(&gateway, attempt, batch.clone()).await;
    }
    nodes.place(attempt, 1);
    let key = LogKey { job: attempt.job, attempt: attempt.attempt };
    let copy = gateway.copy(key, Open::Existing).await.unwrap().unwrap();
    copy.watch().wait_for(|progress| progress.durable == 29).await.unwrap();
    let mut slow = Reader::follow(&gateway);
    let mut quick = Reader::follow(&gateway);
    quick.text(29).await;
    write(&gateway, attempt, last.clone()).await;
    copy.give_up();
    assert_eq!(copy.progress().durable, 29, "too slow to fail before it is synced");
    nodes.replica.result(attempt, figures(&batches));
    // It has seen all of it, by way of another node.
    let request = v1::SubscribeLogsRequest { follow: true, from_sequence: 31, ..Default::default() };
    let knowing = Reader::open(&gateway, &request);

    assert_eq!(slow.text(29).await.len(), 29 * line.len());
    assert!(timeout(Duration::from_secs(1), slow.events.recv()).await.is_err(), "it is not complete");
    write(&gateway, attempt, last.clone()).await;
    assert_eq!(slow.text(1).await, line);
    for mut reader in [slow, knowing] {
        assert!(reader.attempt_end().await.complete);
    }
}

/// Neither can its copy be opened anew: readers are told that it is not complete, in good time.
#[tokio::test]
async fn a_log_that_cannot_be_opened_anew_ends_incomplete() {
    let nodes = Nodes::new();
    let gateway = nodes.start(1);
    let attempt = nodes.replica.assigned();
    let line = format!("{}\n", "x".repeat(63 << 10));
    for sequence in 1..=30 {
        write(&gateway, attempt, lines(sequence, &[&line])).await;
    }
    nodes.place(attempt, 1);
    let key = LogKey { job: attempt.job, attempt: attempt.attempt };
    let copy = gateway.copy(key, Open::Existing).await.unwrap().unwrap();
    let mut slow = Reader::follow(&gateway);
    let mut quick = Reader::follow(&gateway);
    quick.text(30).await;
    let path = nodes.dir.path().join("1").join(attempt.job.to_string()).join(format!("{}.1.log", attempt.attempt));
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    copy.give_up();
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    nodes.replica.done(Caller::Node(1), Command::AttemptLost { attempt });
    let mut seen = 0;
    let end = loop {
        match slow.next().await {
            Some(Kind::Batch(batch)) => seen += batch.lens.len(),
            Some(Kind::AttemptEnd(end)) => break end,
            other => panic!("{other:?}"),
        }
    };
    assert!(seen < 30 && !end.complete, "{seen} lines, {end:?}");
    assert_eq!(end.missing_holders, ["1"]);
}

/// An earlier holder whose disk hangs is no reason not to ask the gateway again.
#[tokio::test(start_paused = true)]
async fn a_holder_that_hangs_is_left() {
    let nodes = Nodes::new();
    let [gateway, _, reading] = [1, 2, 3].map(|node| nodes.start(node));
    let attempt = nodes.replica.assigned();
    write(&gateway, attempt, lines(1, &["a\n"])).await;
    nodes.hand_on(attempt, &[2, 1]);
    nodes.others.hanging.lock().insert(2);
    nodes.kill(1);
    let mut reader = Reader::follow(&reading);
    tokio::time::sleep(Duration::from_secs(1)).await;
    nodes.others.nodes.lock().insert(1, (gateway.clone(), CancellationToken::new()));
    tokio::time::sleep(Duration::from_secs(15)).await;
    tokio::time::resume();
    assert_eq!(reader.text(1).await, "a\n");
}

/// This node is in the majority, but the link to the gateway is cut: another node may reach it.
#[tokio::test]
async fn a_reader_is_sent_elsewhere_where_only_the_gateway_is_out_of_reach() {
    for is_frozen in [false, true] {
        let (nodes, [gateway, elsewhere], attempt) = with_a_line_on_node_1().await;
        let mut reader = Reader::follow(&elsewhere);
        assert_eq!(reader.text(1).await, "a\n");
        if is_frozen {
            nodes.others.frozen.lock().insert(1);
        }
        nodes.kill(1);
        tokio::time::pause();
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let request = v1::SubscribeLogsRequest { follow: true, from_sequence: 2, ..Default::default() };
        let mut late = Reader::open(&elsewhere, &request);
        for (reader, patience) in [(&mut reader, 15_000), (&mut late, 25_000)] {
            let status = reader.events.recv().await.unwrap().unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
            assert!(status.message().contains("the log goes on at node 1"), "{status:?}");
            let after = begun.elapsed().as_millis();
            assert!((patience - 500..patience + 4_000).contains(&after), "after {after} ms, frozen: {is_frozen}");
        }

        // It comes anew, since it knows no other node. Not long after that the gateway answers once more, and is silent.
        let mut reader = Reader::open(&elsewhere, &request);
        tokio::time::sleep(Duration::from_secs(10)).await;
        nodes.others.frozen.lock().clear();
        nodes.others.nodes.lock().insert(1, (gateway.clone(), CancellationToken::new()));
        assert!(timeout(Duration::from_secs(60), reader.events.recv()).await.is_err(), "the gateway answers");
        tokio::time::resume();
        write(&gateway, attempt, lines(2, &["b\n"])).await;
        assert_eq!(reader.text(1).await, "b\n");
    }
}

/// Its agent has gone on, and the job has printed nothing since.
#[tokio::test]
async fn a_gateway_of_before_that_is_out_of_reach_sends_nobody_elsewhere() {
    let (nodes, [_gateway, elsewhere], _) = with_a_line_on_node_1().await;
    let mut reader = Reader::follow(&elsewhere);
    assert_eq!(reader.text(1).await, "a\n");
    nodes.kill(1);
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(10)).await;
    nodes.replica.attach(2, 3);
    assert!(timeout(Duration::from_secs(60), reader.events.recv()).await.is_err(), "its agent has gone on");
}

/// All that it has comes once more, and slowly, to a node whose reader knows it already; much later it is away for a moment again.
#[tokio::test]
async fn a_gateway_that_is_away_for_a_moment_is_waited_for() {
    let (nodes, [gateway, elsewhere], attempt) = with_a_line_on_node_1().await;
    for sequence in 2..=40 {
        write(&gateway, attempt, lines(sequence, &["a\n"])).await;
    }
    nodes.others.slow.lock().insert(1);
    tokio::time::pause();
    let request = v1::SubscribeLogsRequest { follow: true, from_sequence: 41, ..Default::default() };
    let mut reader = Reader::open(&elsewhere, &request);
    // The first time it breaks off, too, before all has come.
    for lasts in [17, 60, 60] {
        nodes.kill(1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        nodes.others.nodes.lock().insert(1, (gateway.clone(), CancellationToken::new()));
        assert!(timeout(Duration::from_secs(lasts), reader.events.recv()).await.is_err(), "it answers");
    }
    tokio::time::resume();
    write(&gateway, attempt, lines(41, &["b\n"])).await;
    assert_eq!(reader.text(1).await, "b\n");
}
