//! Nodes come, move, and go.

use std::time::Duration;

use cluster_tests::{Cluster, cluster::START, net, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_node_that_joins_becomes_a_voter_and_holds_everything() {
    let mut cluster = Cluster::one().await;
    let early = cluster.submit(&[], &["true"]).await;
    cluster.join().await;
    cluster.join().await;
    cluster.wait_healthy(3).await;
    for node in 0..3 {
        let listed = cluster.cli_at(node).json(&["job", "list"]).await;
        assert_eq!(listed[0]["id"], early.as_str(), "node {node}");
    }
    // A voter counts: with the first node gone, the two that joined are a majority.
    cluster.nodes[0].kill();
    cluster.leader_other_than(Some(0)).await;
    cluster.submit(&[], &["true"]).await;
}

#[tokio::test]
async fn a_node_comes_back_under_another_address() {
    let mut cluster = Cluster::start(3).await;
    let id = cluster.id_of(2).await;
    cluster.nodes[2].stop().await;
    cluster.nodes[2].address = net::fresh();
    cluster.nodes[2].restart().await;
    cluster.wait_healthy(3).await;
    assert_eq!(cluster.id_of(2).await, id, "the same node at another place");

    // It is no phantom: it can lead from there.
    cluster.lead(2).await;
    cluster.submit(&[], &["true"]).await;
}

#[tokio::test]
async fn joining_again_is_running() {
    let mut cluster = Cluster::one().await;
    let (seed, token) = (cluster.nodes[0].address.to_string(), cluster.token("node").await);
    let index = cluster.prepare();
    let join = ["join", &seed, "--token", &token];
    cluster.nodes[index].start(&join).await;
    cluster.wait_healthy(2).await;
    cluster.nodes[index].stop().await;
    // The token is spent, and ignored on a directory that is prepared.
    cluster.nodes[index].start(&join).await;
    cluster.wait_healthy(2).await;
    cluster.nodes[0].stop().await;
    cluster.nodes[0].start(&["init"]).await;
    cluster.wait_healthy(2).await;
}

#[tokio::test]
async fn a_removed_node_is_refused_for_good() {
    let mut cluster = Cluster::start(3).await;
    // The leader itself: the leadership goes first.
    let gone = cluster.leader().await;
    let id = cluster.id_of(gone).await;
    cluster.cli().ok(&["cluster", "remove", &id.to_string()]).await;
    let stays: Vec<_> = (0..3).filter(|&node| node != gone).collect();
    for &node in &stays {
        wait::until_true("two members are left", SOON, || async {
            let Some(status) = cluster.status(node).await else { return false };
            let members = status["nodes"].as_array().unwrap();
            !status["leader"].is_null() && members.len() == 2 && members.iter().all(|member| member["id"] != id)
        })
        .await;
    }
    cluster.cli_at(stays[0]).ok(&["job", "submit", "--", "true"]).await;

    // It learns of it, or is refused when it starts again: it never serves as a member.
    let cli = cluster.cli_at(gone).request_timeout(Duration::from_secs(2));
    wait::until_true("the removed node serves nobody", SOON, || async { cli.run(&["job", "list"]).await.code != 0 })
        .await;
    cluster.nodes[gone].kill();
    cluster.nodes[gone].launch(&["run"]);
    wait::until_true("the removed node serves nobody after a restart", SOON, || async {
        cli.run(&["job", "submit", "--", "true"]).await.code != 0
    })
    .await;
    cluster.nodes[gone].kill();

    // A newcomer gets a new id.
    let admin = cluster.nodes[stays[0]].address;
    assert!(cluster.addresses().contains(&admin.to_string()));
    let newcomer = cluster.join().await;
    assert!(cluster.id_of(newcomer).await > 3, "ids are never reused");
}

#[tokio::test]
async fn the_only_copy_of_a_log_is_not_removed_by_mistake() {
    let mut cluster = Cluster::start(3).await;
    // Its logs lie on that node.
    let agent = cluster.agent(&[2], &[]).await;
    let job = cluster.submit(&[], &["echo", "precious"]).await;
    cluster.wait_state(&job, "Succeeded").await;
    let id = cluster.id_of(2).await.to_string();
    let refused = cluster.cli().run(&["cluster", "remove", &id]).await.expect(1);
    assert!(refused.stderr.contains("only copy of the output of 1 attempt,"), "{}", refused.stderr);
    assert!(
        refused.stderr.contains(&format!("{job}/1")) && refused.stderr.contains("--lose-logs"),
        "{}",
        refused.stderr
    );
    assert_eq!(cluster.wait_status(0).await["nodes"].as_array().unwrap().len(), 3);
    let other = cluster.id_of(1).await.to_string();
    cluster.cli().ok(&["cluster", "remove", &other]).await;
    cluster.cli().ok(&["cluster", "remove", &id, "--lose-logs"]).await;
    cluster.nodes[2].kill();
    // It might have the rest, for a minute from the end on.
    cluster.agents[agent].kill();
    let cli = cluster.cli_at(0);
    for verb in [&["job", "logs", &job] as &[_], &["job", "logs", "-f", &job]] {
        let told = cli.run(verb).await.expect(0).stderr;
        let lost =
            format!("lost with nodes that have left the cluster ({id}): the last line of the output of attempt 1");
        assert!(told.contains(&lost), "{told}");
    }
}

#[tokio::test]
async fn who_was_a_gateway_for_a_while_has_not_all_of_the_log() {
    let mut cluster = Cluster::start(3).await;
    let agent = cluster.agent(&[1, 2], &[]).await;
    let worker = cluster.agents[agent].worker.clone();
    let go = cluster.dir().join("go");
    let script = format!("echo first; until [[ -e {} ]]; do sleep 0.05; done; echo last", go.display());
    let job = cluster.submit(&[], &["bash", "-c", &script]).await;
    wait::until_true("the first line is there", SOON, || async {
        cluster.cli().run(&["job", "logs", &job]).await.stdout == b"first\n"
    })
    .await;
    let gateway = async |cluster: &Cluster, other_than: Option<usize>| {
        let status = cluster.wait_status(0).await;
        let of = |row: &Value| cluster.index_of(&status, &row["gateway"]);
        let row = cluster.wait_worker(&worker, |row| of(row).is_some_and(|node| Some(node) != other_than)).await;
        of(&row).unwrap()
    };
    let old = gateway(&cluster, None).await;
    let old_id = cluster.id_of(old).await.to_string();
    cluster.nodes[old].stop().await;
    let new = gateway(&cluster, Some(old)).await;
    cluster.nodes[old].restart().await;
    cluster.wait_healthy(3).await;
    std::fs::write(&go, "").unwrap();
    cluster.wait_state(&job, "Succeeded").await;

    let new_id = cluster.id_of(new).await.to_string();
    let refused = cluster.cli().run(&["cluster", "remove", &new_id]).await.expect(1);
    assert!(refused.stderr.contains("only copy of the output of 1 attempt,"), "{}", refused.stderr);
    cluster.cli().ok(&["cluster", "remove", &old_id]).await;
    assert_eq!(cluster.cli_at(0).run(&["job", "logs", &job]).await.expect(0).stdout, b"first\nlast\n");
}

#[tokio::test]
async fn a_node_may_be_killed_as_soon_as_it_is_removed() {
    let mut cluster = Cluster::start(3).await;
    for gone in [1, 2] {
        let id = cluster.id_of(gone).await;
        cluster.cli_at(0).ok(&["cluster", "remove", &id.to_string()]).await;
        cluster.nodes[gone].kill();
    }
    // Whoever led: what is left is a majority, of two and then of one.
    cluster.cli_at(0).ok(&["job", "submit", "--", "true"]).await;
    let status = cluster.wait_status(0).await;
    assert_eq!(status["nodes"].as_array().unwrap().len(), 1, "{status}");
}

/// What the leader appends after its own removal has to reach the other one, whose vote alone elects nobody.
#[tokio::test]
async fn the_leader_of_two_is_removed_while_it_works() {
    let mut cluster = Cluster::start(2).await;
    for _ in 0..3 {
        let gone = cluster.leader().await;
        let stays = (0..cluster.nodes.len()).find(|&node| node != gone && cluster.nodes[node].is_started()).unwrap();
        let id = cluster.id_of(gone).await.to_string();
        let cli = cluster.cli_at(gone).request_timeout(Duration::from_secs(1));
        let work = async {
            // Until it is refused.
            while cli.run(&["job", "submit", "--", "true"]).await.code == 0 {}
        };
        let admin = cluster.cli_at(stays).request_timeout(Duration::from_secs(30));
        let remove = ["cluster", "remove", &id];
        tokio::join!(admin.ok(&remove), work);
        cluster.cli_at(stays).ok(&["job", "submit", "--", "true"]).await;
        cluster.nodes[gone].kill();
        let newcomer = cluster.join().await;
        cluster.cli_at(newcomer).ok(&["job", "submit", "--", "true"]).await;
    }
}

#[tokio::test]
async fn a_directory_and_a_port_belong_to_one_process() {
    let mut cluster = Cluster::one().await;
    let second = cluster.prepare();
    cluster.nodes[second].data = cluster.nodes[0].data.clone();
    let output = cluster.nodes[second].command(&["run"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("in use"), "{said}");
    cluster.nodes.pop();

    let index = cluster.prepare();
    cluster.nodes[index].address = cluster.nodes[0].address;
    let output = cluster.nodes[index].command(&["init"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("in use"), "{said}");
    assert!(!cluster.nodes[index].data.join("pki").exists(), "nothing is written before the port is ours");
    cluster.nodes.pop();
    assert_eq!(cluster.cli().run(&["job", "list"]).await.code, 0, "the first one goes on");
}

#[tokio::test]
async fn preparing_does_not_serve() {
    let mut cluster = Cluster::empty();
    let first = cluster.prepare();
    let output = cluster.nodes[first].command(&["init", "--prepare-only"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cluster.nodes[first].start(&["run"]).await;
    wait::until_true("it leads its cluster of one", START, || async {
        cluster.cli().run(&["job", "submit", "--", "true"]).await.code == 0
    })
    .await;
}
