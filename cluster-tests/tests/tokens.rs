//! Who gets in, and who is told at the door why not.

use std::{fs, path::Path, time::Duration};

use cluster_tests::{Cli, Client, Cluster, Output, cli};
use hodei_proto::v1::{
    HelloRequest, ListJobsRequest, RaftMessage, peer_service_client::PeerServiceClient,
    raft_service_client::RaftServiceClient,
};
use tonic::Code;

/// Tries to join from a fresh directory and checks that nothing was left there.
async fn refused_join(cluster: &mut Cluster, token: &str) -> Output {
    let seed = cluster.nodes[0].address.to_string();
    let index = cluster.prepare();
    let node = &cluster.nodes[index];
    let (data, listen) = (node.data.clone(), node.address.to_string());
    let args = ["join", &seed, "--token", token, "--listen", &listen, "--http", "off", "--data-dir"];
    let output = Cli::nobody(cluster.dir())
        .run(&[&args[..], &[data.to_str().expect("a temporary path is UTF-8")]].concat())
        .await;
    assert!(is_empty(&data), "a refused join left something in its directory:\n{}", output.stderr);
    assert!(output.stdout.is_empty());
    output
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

/// Tries to start an agent.
async fn refused_agent(cluster: &Cluster, token: &str) -> (i32, String) {
    let data = cluster.dir().join("refused-agent");
    let mut command = cli::clean("hodei-agent", cluster.dir());
    command.args(["--server", &cluster.nodes[0].address.to_string(), "--token", token, "--data-dir"]).arg(&data);
    let mut agent = cluster_tests::Proc::spawn("refused-agent", &mut command, cluster.dir());
    let code = cli::exit_code(agent.exit(Duration::from_secs(20)).await);
    assert!(is_empty(&data), "a refused agent left something in its directory:\n{}", agent.stderr_text());
    (code, agent.stderr_text())
}

#[tokio::test]
async fn a_token_lets_one_party_in_once_and_only_in_its_role() {
    let mut cluster = Cluster::one().await;
    let used = cluster.token("node").await;
    let seed = cluster.nodes[0].address.to_string();
    let index = cluster.prepare();
    cluster.nodes[index].start(&["join", &seed, "--token", &used]).await;
    cluster.wait_healthy(2).await;

    let output = refused_join(&mut cluster, &used).await.expect(77);
    assert!(output.stderr.contains("used"), "{}", output.stderr);
    let agents = cluster.token("agent").await;
    refused_join(&mut cluster, &agents).await.expect(77);
    let nodes = cluster.token("node").await;
    assert_eq!(refused_agent(&cluster, &nodes).await.0, 77);
    // Another text with the same secret does not help: the cluster knows what it was made for.
    let forged = agents.replace("hodei1.agent.", "hodei1.node.");
    refused_join(&mut cluster, &forged).await.expect(77);
    // The tries cost the cluster nothing.
    cluster.join().await;
    cluster.wait_healthy(3).await;
}

#[tokio::test]
async fn expired_revoked_and_foreign_tokens_are_refused() {
    let mut cluster = Cluster::one().await;
    let cli = cluster.cli();

    let short = cli.ok(&["token", "create", "--role", "node", "--ttl", "100ms", "--output", "quiet"]).await;
    cluster.until_newest_token_expired().await;
    let output = refused_join(&mut cluster, &short).await.expect(77);
    assert!(output.stderr.contains("expired"), "{}", output.stderr);

    for role in ["node", "agent"] {
        let revoked = cluster.token(role).await;
        let listed = cli.json(&["token", "list"]).await;
        let mut newest = listed.as_array().unwrap().iter().filter(|row| row["role"] == role && row["revoked"] == false);
        let id = newest.next_back().unwrap()["id"].as_str().unwrap().to_owned();
        cli.ok(&["token", "revoke", &id]).await;
        let (code, said) = match role {
            "node" => refused_join(&mut cluster, &revoked).await.code_and_stderr(),
            _ => refused_agent(&cluster, &revoked).await,
        };
        assert_eq!(code, 77, "{said}");
        assert!(said.contains("revoked"), "{said}");
    }

    let other = Cluster::one().await;
    // The other cluster's token names another CA: bad input, and its secret is never sent here.
    let foreign = other.token("node").await;
    let output = refused_join(&mut cluster, &foreign).await.expect(2);
    assert!(output.stderr.contains("another cluster"), "{}", output.stderr);
    let foreign = other.token("agent").await;
    assert_eq!(refused_agent(&cluster, &foreign).await.0, 2);

    for nonsense in ["", "hodei1", "hodei1.node.x.y", "hello"] {
        refused_join(&mut cluster, nonsense).await.expect(2);
    }
    // A right form with a wrong secret.
    let token = cluster.token("node").await;
    let (head, secret) = token.rsplit_once('.').unwrap();
    let first = if secret.starts_with('a') { "b" } else { "a" };
    let wrong = format!("{first}{}", &secret[1..]);
    refused_join(&mut cluster, &format!("{head}.{wrong}")).await.expect(77);
}

trait CodeAndStderr {
    fn code_and_stderr(self) -> (i32, String);
}

impl CodeAndStderr for Output {
    fn code_and_stderr(self) -> (i32, String) {
        (self.code, self.stderr)
    }
}

/// An identity directory put together from two.
fn identity(dir: &Path, ca: &Path, cert: &Path, key: &Path) {
    fs::create_dir_all(dir).expect("the test's directory is writable");
    for (from, to) in [(ca, "ca.pem"), (cert, "cert.pem"), (key, "key.pem")] {
        fs::copy(from, dir.join(to)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
}

#[tokio::test]
async fn foreign_certificates_and_wrong_roles_are_refused() {
    let cluster = Cluster::one().await;
    let other = Cluster::one().await;
    let address = cluster.nodes[0].address;

    // The other cluster's administrator, though it trusts this cluster's CA.
    let stranger = cluster.dir().join("stranger");
    let admin = other.admin();
    identity(&stranger, &cluster.admin().join("ca.pem"), &admin.join("cert.pem"), &admin.join("key.pem"));
    let client = Client::new(address, &stranger).unwrap();
    assert!(client.jobs().list_jobs(ListJobsRequest::default()).await.is_err());
    let output = cluster.cli().with_identity(&stranger).run(&["job", "list"]).await;
    assert!([69, 77].contains(&output.code), "exit code {}: {}", output.code, output.stderr);

    // The same, trusting its own CA: said at once, without waiting for the request timeout.
    let output = cluster.cli().with_identity(other.admin()).run(&["job", "list"]).await.expect(77);
    assert!(output.stderr.contains("belongs to another cluster than this identity"), "{}", output.stderr);
    assert!(output.took < Duration::from_secs(3), "took {:?}", output.took);

    // The other cluster's node.
    let peer = cluster.dir().join("peer");
    let pki = other.nodes[0].data.join("pki");
    identity(&peer, &cluster.admin().join("ca.pem"), &pki.join("node.pem"), &pki.join("node.key"));
    let channel = Client::new(address, &peer).unwrap().channel();
    assert!(PeerServiceClient::new(channel).hello(HelloRequest::default()).await.is_err());

    // An administrator of this cluster is no node.
    let channel = cluster.client(0).channel();
    let vote = RaftServiceClient::new(channel.clone()).vote(RaftMessage::default()).await;
    assert_eq!(vote.unwrap_err().code(), Code::PermissionDenied);
    let hello = PeerServiceClient::new(channel).hello(HelloRequest::default()).await;
    assert_eq!(hello.unwrap_err().code(), Code::PermissionDenied);

    // This cluster's node under another cluster's id.
    let own = cluster.dir().join("own");
    let pki = cluster.nodes[0].data.join("pki");
    identity(&own, &pki.join("ca.pem"), &pki.join("node.pem"), &pki.join("node.key"));
    let channel = Client::new(address, &own).unwrap().channel();
    let foreign = RaftMessage {
        cluster_id: "01900000-0000-7000-8000-000000000000".to_owned(),
        from: 1,
        to: 1,
        ..RaftMessage::default()
    };
    assert!(RaftServiceClient::new(channel).vote(foreign).await.is_err());
}

#[tokio::test]
async fn a_client_without_a_certificate_gets_nothing() {
    let cluster = Cluster::one().await;
    let bare = cluster.dir().join("bare");
    fs::create_dir_all(&bare).unwrap();
    fs::copy(cluster.admin().join("ca.pem"), bare.join("ca.pem")).unwrap();
    cluster.cli().with_identity(&bare).run(&["job", "list"]).await.expect(2);
    cluster.cli().with_identity("/no/such/directory").run(&["job", "list"]).await.expect(2);
    let client = Client::without_identity(cluster.nodes[0].address, &bare).unwrap();
    let status = client.jobs().list_jobs(ListJobsRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
}
