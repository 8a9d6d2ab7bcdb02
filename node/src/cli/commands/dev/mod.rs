//! `dev`: a whole cluster on loopback, made the way an operator makes one, and gone when it ends.

mod children;
mod place;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hodei_proto::v1::{GetAvailableWorkersRequest, scheduler_service_client::SchedulerServiceClient};
use hodei_state::ids::Role;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use self::{
    children::Children,
    place::{ClientDefault, Place},
};
use super::token;
use crate::cli::{
    Global,
    client::Client,
    exit::{CommandResult, Failure},
    identity, output,
};

/// For one process to become ready.
const START: Duration = Duration::from_secs(60);
/// For one request to the cluster that is being made.
const REQUEST: Duration = Duration::from_secs(20);
/// Between looks at the workers.
const LOOK: Duration = Duration::from_millis(50);
/// In the environment, other users of the machine cannot read a token, as they can in an argument.
const TOKEN: &str = "HODEI_TOKEN";
/// A token is used at once.
const TOKEN_LIFE: Duration = Duration::from_secs(300);

/// Run a whole cluster on this machine until Ctrl-C, which removes it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hodei-node dev --nodes 3 --agents 2\n\nPrints `ready` once jobs are taken; then, in another terminal:\n  hodei-node job run -- echo hello"
)]
pub struct Args {
    /// Number of nodes; of three one may die, of two none
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: u16,
    /// Number of agents
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=64))]
    agents: u16,
    /// Where the cluster lives; must be empty or not exist [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Args {
    pub async fn run(self, _: &Global) -> CommandResult {
        let programs = Programs::find(self.agents > 0)?;
        let failed = |error: std::io::Error| Failure::other(format!("cannot listen for signals: {error}"));
        let mut ends = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .map(signal)
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        let [interrupt, terminate, hangup] = ends.as_mut_slice() else { return Ok(1) };
        let place = Place::make(self.data_dir.as_deref())?;
        let mut children = Children::new(&place);
        let mut default = None;
        let ended = tokio::select! {
            ended = self.serve(&programs, &place, &mut children, &mut default) => ended,
            _ = interrupt.recv() => Ok(0),
            _ = terminate.recv() => Ok(0),
            _ = hangup.recv() => Ok(0),
        };
        // The default goes first: nobody shall be sent to a cluster that ends.
        drop(default);
        children.end().await;
        drop(place);
        ended
    }

    /// Makes the cluster, and returns only when too many of its processes have ended.
    async fn serve(
        &self,
        programs: &Programs,
        place: &Place,
        children: &mut Children,
        default: &mut Option<ClientDefault>,
    ) -> CommandResult {
        let addresses = free_addresses(self.nodes)?;
        for (index, address) in addresses.iter().enumerate() {
            let name = format!("node{}", index + 1);
            let mut arguments = vec!["init".to_owned()];
            let mut variables = Vec::new();
            if index > 0 {
                let client = client(place, &addresses[..index])?;
                let token = token::make(&client, Role::Node, TOKEN_LIFE, 1).await?;
                let known = addresses[..index].join(",");
                arguments = vec!["join".into(), known];
                variables.push((TOKEN, token.reveal()));
            }
            arguments.extend(["--data-dir".into(), text(&place.path().join(&name))?]);
            arguments.extend(["--listen".into(), address.clone(), "--http".into(), "off".into()]);
            children.start(&name, &programs.node, &arguments, &variables)?;
            children.ready(&name, START).await?;
        }
        let client = client(place, &addresses)?;
        self.start_agents(programs, place, children, &client, &addresses).await?;
        *default = ClientDefault::set(&addresses, &place.path().join("node1/admin")).await;
        output::note(format_args!(
            "{} node(s) at {}, {} agent(s); everything lives in {} and goes with Ctrl-C",
            self.nodes,
            addresses.join(","),
            self.agents,
            place.path().display()
        ));
        output::line("ready")?;
        Err(children.outlived().await)
    }

    async fn start_agents(
        &self,
        programs: &Programs,
        place: &Place,
        children: &mut Children,
        client: &Client,
        addresses: &[String],
    ) -> Result<(), Failure> {
        for index in 0..usize::from(self.agents) {
            let name = format!("agent{}", index + 1);
            let token = token::make(client, Role::Agent, TOKEN_LIFE, 1).await?;
            // Each begins with another node.
            let mut servers = addresses.to_vec();
            servers.rotate_left(index % addresses.len());
            let data_dir = text(&place.path().join(&name))?;
            let arguments = ["--server", &servers.join(","), "--data-dir", &data_dir, "--drain-timeout", "1s"];
            let arguments: Vec<_> = arguments.into_iter().map(str::to_owned).collect();
            children.start(&name, &programs.agent, &arguments, &[(TOKEN, token.reveal())])?;
        }
        let deadline = Instant::now() + START;
        while self.agents > 0 && workers(client).await? < usize::from(self.agents) {
            if let Some(failure) = children.failed() {
                return Err(failure);
            }
            if Instant::now() >= deadline {
                return Err(Failure::unreachable("the agents do not become ready"));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

/// The programs that a cluster is made of.
struct Programs {
    node: PathBuf,
    agent: PathBuf,
}

impl Programs {
    fn find(agents: bool) -> Result<Self, Failure> {
        let node = std::env::current_exe()
            .map_err(|error| Failure::other(format!("cannot find this program's own file: {error}")))?;
        let agent = node.with_file_name("hodei-agent");
        if agents && !agent.is_file() {
            return Err(Failure::other(format!("{} is missing: agents need it (or use --agents 0)", agent.display())));
        }
        Ok(Self { node, agent })
    }
}

/// An administrator's client of the cluster that is being made.
fn client(place: &Place, addresses: &[String]) -> Result<Client, Failure> {
    let tls = identity::read_identity(&place.path().join("node1/admin"))?;
    Ok(Client::to(addresses.to_vec(), Arc::clone(&tls), REQUEST))
}

/// How many workers take jobs.
async fn workers(client: &Client) -> Result<usize, Failure> {
    let answer = client
        .read(|conn| {
            let request = conn.request(GetAvailableWorkersRequest { stale: false, ..Default::default() });
            async move { SchedulerServiceClient::new(conn.channel).get_available_workers(request).await }
        })
        .await?;
    Ok(answer.workers.iter().filter(|worker| worker.state == "Ready" && worker.gateway.is_some()).count())
}

/// Free ports on loopback. All are held until all are found, so that no two are the same.
fn free_addresses(count: u16) -> Result<Vec<String>, Failure> {
    let fail = |error: std::io::Error| Failure::other(format!("no free port on loopback: {error}"));
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let held = (0..count).map(|_| TcpListener::bind(any)).collect::<Result<Vec<_>, _>>().map_err(fail)?;
    held.iter().map(|socket| Ok(socket.local_addr().map_err(fail)?.to_string())).collect()
}

fn text(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| Failure::bad_input(format!("{} is not text", path.display())))
}
