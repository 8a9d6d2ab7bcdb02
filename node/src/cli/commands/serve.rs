//! What `init`, `join` and `run` have in common: configuration, directory, sockets, and then to serve.

use std::net::TcpListener;

use crate::{
    app::{self, Ready},
    cli::{
        exit::{CommandResult, Failure},
        output,
    },
    config::{self, Config, Http, NodeArgs},
    data_dir::{DataDir, Identity},
    enrol::Refused,
    logging,
};

/// A node before it serves: everything that can be in somebody's way is taken.
pub struct Node {
    /// How it runs.
    pub config: Config,
    /// Where it keeps everything; locked.
    pub dir: DataDir,
    /// Bound before anything is written; absent where nothing is to be served.
    pub sockets: Option<Sockets>,
}

/// Sockets that listen.
pub struct Sockets {
    /// For peers, agents and clients.
    pub grpc: TcpListener,
    /// For probes.
    pub http: Option<TcpListener>,
}

impl Node {
    /// Reads the configuration, locks the directory and binds the sockets, in this order. `None` where only the
    /// configuration was asked for.
    ///
    /// # Errors
    /// Bad input, in one line; nothing is written then.
    pub fn open(args: &NodeArgs, peers: &[String], serve: bool) -> Result<Option<Self>, Failure> {
        let config = Config::load(args, peers)?;
        if args.dump_config {
            output::line(config.dump()?.trim_end())?;
            return Ok(None);
        }
        logging::start();
        let dir = DataDir::open(&config.data_dir)?;
        let sockets = if serve { Sockets::bind(&config).map(Some) } else { Ok(None) };
        match sockets {
            Ok(sockets) => Ok(Some(Self { config, dir, sockets })),
            Err(failure) if dir.identity()?.is_some() => Err(failure),
            Err(failure) => {
                dir.discard();
                Err(failure)
            }
        }
    }

    /// Where others reach this node.
    #[must_use]
    pub fn reachable(&self) -> String {
        let bound = self.sockets.as_ref().and_then(|sockets| sockets.grpc.local_addr().ok());
        let configured = || self.config.listen.parse().ok();
        match bound.or_else(configured) {
            Some(address) => self.config.advertised(address),
            None => self.config.advertise.clone().unwrap_or_else(|| self.config.listen.clone()),
        }
    }

    /// Ends with a failure before the directory was prepared, and leaves nothing behind unless that is still needed.
    ///
    /// # Errors
    /// Always the failure.
    pub fn give_up(self, refused: impl Into<Refused>) -> CommandResult {
        let Refused { failure, keep } = refused.into();
        if !keep {
            self.dir.discard();
        }
        Err(failure)
    }
}

impl Sockets {
    fn bind(config: &Config) -> Result<Self, Failure> {
        let grpc = config.bind()?;
        let http = match &config.http {
            Http::Off => None,
            Http::On(address) => Some(config::bind("http", address)?),
        };
        Ok(Self { grpc, http })
    }
}

/// Serves until a signal, or stops where only preparing was asked for.
///
/// # Errors
/// What ends a node.
pub async fn or_stop(node: Node, identity: Identity, prepare_only: bool, ready: Ready) -> CommandResult {
    if prepare_only {
        output::note(format_args!(
            "node {} of cluster {} is prepared in {}",
            identity.node_id,
            identity.cluster_id,
            node.dir.path().display()
        ));
        return Ok(0);
    }
    app::serve(node, identity, ready).await
}
