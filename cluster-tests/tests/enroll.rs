//! People get identities of their own: a token against a certificate, and what each role may do with it.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cluster_tests::{Cli, Cluster, Output, net};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A user of this machine with a home of their own.
struct Person {
    dir: PathBuf,
}

impl Person {
    fn new(cluster: &Cluster, name: &str) -> Self {
        Self { dir: cluster.dir().join(name) }
    }

    fn cli(&self) -> Cli {
        Cli::nobody(&self.dir)
    }

    /// Where everything goes by default.
    fn config(&self) -> PathBuf {
        self.dir.join("home/.config")
    }

    async fn enroll(&self, address: impl ToString, token: &str) -> Output {
        self.cli().run(&["enroll", &address.to_string(), "--token", token]).await
    }

    /// Enrols in vain: the exit code, one line that says `why`, and nothing that was not there before.
    async fn refused(&self, address: impl ToString, token: &str, code: i32, why: &str) {
        let output = self.enroll(address, token).await.expect(code);
        assert_one_line(&output, why);
        assert!(!self.config().exists(), "a refused enrolment left something behind:\n{}", output.stderr);
    }
}

fn assert_one_line(output: &Output, why: &str) {
    assert!(output.stderr.contains(why), "not because of {why:?}: {}", output.stderr);
    assert_eq!(output.stderr.trim_end().lines().count(), 1, "{}", output.stderr);
    assert!(output.stdout.is_empty(), "{}", output.text());
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_user_has_jobs_and_an_administrator_everything() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[1], &[]).await;
    let first = cluster.nodes[0].address;

    let alice = Person::new(&cluster, "alice");
    let output = alice.enroll(first, &cluster.token("user").await).await.expect(0);
    assert!(output.text().starts_with("enrolled as user/"), "{}", output.text());
    assert_eq!(output.text().lines().count(), 1, "{}", output.text());
    let identity = alice.config().join("hodei/identity");
    assert_eq!(names(&identity), ["ca.pem", "cert.pem", "key.pem"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&identity), mode(&identity.join("key.pem"))), (0o700, 0o600));

    // It is her default, with every node in it: the one that she named may die.
    let default = fs::read_to_string(alice.config().join("hodei/client.toml")).unwrap();
    assert!(cluster.nodes.iter().all(|node| default.contains(&node.address.to_string())), "{default}");
    cluster.nodes[0].kill();
    cluster.leader().await;
    let cli = alice.cli();
    let output = cli.run(&["job", "run", "--name", "hers", "--", "bash", "-c", "echo hello; exit 3"]).await.expect(3);
    assert_eq!(output.text(), "hello");
    cluster.nodes[0].restart().await;
    cluster.wait_healthy(3).await;

    let job = cli.ok(&["job", "submit", "--output", "quiet", "--", "sleep", "600"]).await;
    for allowed in [
        &["job", "list"][..],
        &["job", "get", &job],
        &["job", "logs", "hers"],
        &["job", "cancel", &job],
        &["worker", "list"],
        &["cluster", "status"],
        &["cluster", "members"],
    ] {
        cli.run(allowed).await.expect(0);
    }
    let administration = [
        &["token", "create", "--role", "user"][..],
        &["token", "list"],
        &["token", "revoke", "01900000-0000-7000-8000-000000000000"],
        &["cluster", "remove", "3"],
        &["cluster", "transfer-leader"],
    ];
    for forbidden in administration {
        assert_one_line(&cli.run(forbidden).await.expect(77), "role user may not");
    }

    let bob = Person::new(&cluster, "bob");
    let token = cluster.token("admin").await;
    let args = ["enroll", &first.to_string(), "--token", &token, "--output", "json"];
    let enrolled: serde_json::Value = serde_json::from_str(&bob.cli().ok(&args).await).unwrap();
    assert_eq!((&enrolled["role"], &enrolled["default"]), (&"admin".into(), &true.into()), "{enrolled}");
    // An administrator lets the next one in.
    let token = bob.cli().ok(&["token", "create", "--role", "user", "--output", "quiet"]).await;
    Person::new(&cluster, "carol").enroll(first, &token).await.expect(0);
    bob.cli().run(&["cluster", "transfer-leader"]).await.expect(0);
}

#[tokio::test]
async fn a_refused_enrolment_says_why_and_leaves_nothing() {
    let cluster = Cluster::one().await;
    let address = cluster.nodes[0].address;
    let admin = cluster.cli();
    let person = Person::new(&cluster, "dave");

    for nonsense in ["", "hodei1", "hodei1.user.x.y", "hello"] {
        person.refused(address, nonsense, 2, "hodei1.ROLE.HASH.SECRET").await;
    }
    for role in ["node", "agent"] {
        person.refused(address, &cluster.token(role).await, 77, &format!("the token is for role {role}")).await;
    }
    // Another text with the same secret: the cluster knows what it was made for.
    let token = cluster.token("user").await;
    person.refused(address, &token.replace(".user.", ".admin."), 77, "for another role").await;
    let (head, secret) = token.rsplit_once('.').unwrap();
    let wrong = format!("{head}.{}{}", if secret.starts_with('a') { "b" } else { "a" }, &secret[1..]);
    person.refused(address, &wrong, 77, "not known to this cluster").await;

    let ids = |listed: &serde_json::Value| -> Vec<String> {
        let valid = listed.as_array().unwrap().iter().filter(|token| token["state"] == "valid");
        valid.map(|token| token["id"].as_str().unwrap().to_owned()).collect()
    };
    let before = ids(&admin.json(&["token", "list"]).await);
    let revoked = cluster.token("user").await;
    let id = ids(&admin.json(&["token", "list"]).await).into_iter().find(|id| !before.contains(id)).unwrap();
    admin.ok(&["token", "revoke", &id]).await;
    person.refused(address, &revoked, 77, "revoked").await;

    // Of another cluster: its secret is not sent here.
    let other = Cluster::one().await;
    person.refused(address, &other.token("user").await, 2, "another cluster").await;

    // Nobody there.
    let nowhere = net::fresh();
    let args = ["enroll", &nowhere.to_string(), "--token", &token, "--request-timeout", "300ms"];
    assert_one_line(&person.cli().run(&args).await.expect(69), "can be reached");
    assert!(!person.config().exists());
    for bad in ["", "a:b", ":1"] {
        person.refused(bad, &token, 2, "expected HOST:PORT").await;
    }

    // A directory that cannot be made: a file is in its way.
    let blocked = person.dir.join("file/identity");
    fs::write(person.dir.join("file"), "").unwrap();
    let args = ["enroll", &address.to_string(), "--token", &token, "--identity", blocked.to_str().unwrap()];
    assert_one_line(&person.cli().run(&args).await.expect(2), "is not writable");

    // None of this has used the token up. An identity that is there is not replaced.
    person.enroll(address, &token).await.expect(0);
    let key = person.config().join("hodei/identity/key.pem");
    let before = fs::read(&key).unwrap();
    let output = person.enroll(address, &cluster.token("user").await).await.expect(2);
    assert_one_line(&output, "is there already");
    assert_eq!(fs::read(&key).unwrap(), before);
    Person::new(&cluster, "erin").refused(address, &token, 77, "used").await;

    // A second identity beside it does not become the default.
    let second = person.dir.join("second");
    let token = cluster.token("admin").await;
    let args = ["enroll", &address.to_string(), "--token", &token, "--identity", second.to_str().unwrap()];
    let said = person.cli().ok(&args).await;
    assert!(said.contains("use it with --identity"), "{said}");
    person.cli().run(&["token", "list"]).await.expect(77);
    person.cli().with_identity(&second).run(&["token", "list"]).await.expect(0);
}

#[tokio::test]
async fn an_expired_token_lets_nobody_in() {
    let cluster = Cluster::one().await;
    let token = cluster.cli().ok(&["token", "create", "--role", "user", "--ttl", "1ms", "--output", "quiet"]).await;
    cluster.until_newest_token_expired().await;
    Person::new(&cluster, "frank").refused(cluster.nodes[0].address, &token, 77, "expired").await;
}

#[tokio::test]
async fn an_answer_that_was_lost_is_asked_for_again() {
    let cluster = Cluster::one().await;
    let token = cluster.token("user").await;
    let person = Person::new(&cluster, "grace");
    let silencer = Silencer::before(cluster.nodes[0].address).await;

    let silenced = silencer.address.to_string();
    let args = ["enroll", &silenced, "--token", &token, "--request-timeout", "2s"];
    assert_one_line(&person.cli().run(&args).await.expect(75), "outcome unknown");
    let identity = person.config().join("hodei/identity");
    assert_eq!(names(&identity), ["enrolment.toml", "key.pem"]);
    let issued = cluster.cli().json(&["token", "list"]).await;
    let issued = issued.as_array().unwrap().iter().find(|row| row["role"] == "user").unwrap().clone();
    assert_eq!(issued["state"], "used", "the cluster did enrol somebody");

    // Nobody there is no reason to forget it.
    drop(silencer);
    let nowhere = net::fresh().to_string();
    let args = ["enroll", &nowhere, "--token", &token, "--request-timeout", "300ms"];
    person.cli().run(&args).await.expect(69);
    assert_eq!(names(&identity), ["enrolment.toml", "key.pem"]);

    let output = person.enroll(cluster.nodes[0].address, &token).await.expect(0);
    let id = issued["issued"][0]["id"].as_str().unwrap();
    assert!(output.text().contains(id), "the same identity: {}", output.text());
    assert_eq!(names(&identity), ["ca.pem", "cert.pem", "key.pem"]);
    person.cli().run(&["job", "list"]).await.expect(0);
}

/// Stands before a node. The first connection passes whole and shows how much a node says until it is asked something;
/// of every further one the node's answers are swallowed.
struct Silencer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

/// Settings and acknowledgements pass; an answer with certificates in it is far longer.
const SMALL_TALK: usize = 200;

impl Silencer {
    async fn before(node: SocketAddr) -> Self {
        let listener = TcpListener::bind(net::fresh()).await.expect("the address is free");
        let address = listener.local_addr().expect("it is bound");
        let greeting = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(async move {
            let mut first = true;
            loop {
                let (client, _) = listener.accept().await.expect("a client connects");
                let node = TcpStream::connect(node).await.expect("the node listens");
                let limit = if first { usize::MAX } else { greeting.load(Ordering::SeqCst) + SMALL_TALK };
                first = false;
                tokio::spawn(pass(client, node, limit, greeting.clone()));
            }
        });
        Self { address, task }
    }
}

impl Drop for Silencer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes everything to the node and at most `limit` bytes back.
async fn pass(client: TcpStream, node: TcpStream, limit: usize, counted: Arc<AtomicUsize>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_node, mut to_node) = node.into_split();
    let up = async { drop(copy(&mut from_client, &mut to_node).await) };
    let down = async {
        let (mut buffer, mut passed) = (vec![0; 1 << 14], 0);
        while let Ok(read @ 1..) = from_node.read(&mut buffer).await {
            passed += read;
            if limit == usize::MAX {
                counted.fetch_add(read, Ordering::SeqCst);
            }
            if passed <= limit && to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    // The client hangs up, whatever the node still has to say.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
    // Ends what is still open on either side.
    tokio::time::timeout(Duration::from_secs(1), to_client.shutdown()).await.ok();
}

#[tokio::test]
async fn who_made_the_first_node_finds_the_others_when_it_is_down() {
    let mut cluster = Cluster::start(3).await;
    // What `init` made this user's default: the first node alone.
    let founder = Cli::nobody(cluster.dir());
    let default = fs::read_to_string(cluster.dir().join("home/.config/hodei/client.toml")).unwrap();
    founder.ok(&["job", "list"]).await;
    cluster.nodes[0].kill();
    cluster.leader_other_than(Some(0)).await;
    founder.ok(&["job", "submit", "--", "true"]).await;
    assert_eq!(fs::read_to_string(cluster.dir().join("home/.config/hodei/client.toml")).unwrap(), default);
    // Who names a server is served by that one alone.
    cluster.cli_at(0).request_timeout(Duration::from_secs(1)).run(&["job", "list"]).await.expect(69);
}
