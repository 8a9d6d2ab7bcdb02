//! `job run`.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    cancel::cancel,
    ending::{self, exit_code},
    follow::{Followed, Follower, Wanted},
    options::Options,
    show,
    submit::submit,
};
use crate::{
    cli::{
        Global,
        client::Client,
        exit::{CommandResult, Failure, code},
        output::{self, Format},
    },
    jobfile::JobFile,
};

/// Submit a job, follow its output, exit with its exit code; Ctrl-C cancels it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node job run --timeout 10m -- make test")]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// The command and its arguments, executed as given
    #[arg(last = true, value_name = "CMD", required = true)]
    command: Vec<String>,
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let request = self.options.submission(JobFile::default(), self.command)?;
        let client = Client::new(global)?;
        // From here on a signal is for the job.
        let mut signals = Signals::listen()?;
        let answer = tokio::select! {
            answer = submit(&client, request) => answer?,
            () = signals.next() => return Ok(ending::CANCELLED),
        };
        if global.output != Format::Quiet {
            output::note(format_args!("hodei: job {}", answer.id));
        }
        let wanted = Wanted { job: answer.id.clone(), follow: true, ..Wanted::default() };
        let mut follower = Follower::new(&client, wanted);
        let followed = {
            let following = follower.run();
            tokio::pin!(following);
            tokio::select! {
                followed = &mut following => followed,
                () = signals.next() => {
                    output::note("hodei: cancelling the job; Ctrl-C again leaves it alone");
                    tokio::select! {
                        followed = cancel_and(&client, &answer.id, following) => followed,
                        () = signals.next() => return Ok(ending::CANCELLED),
                    }
                }
            }
        };
        let followed = followed.inspect_err(|_| output::note(format_args!("hodei: job {} goes on", answer.id)));
        match followed? {
            Followed::Ended(job) => {
                let exit = exit_code(&job);
                if let Some(reason) = job.reason.as_ref().filter(|reason| reason.kind != "exited") {
                    output::note(format_args!("hodei: {}", show::reason_text(reason)));
                }
                Ok(exit)
            }
            Followed::Printed | Followed::Lacking => Ok(code::FAILURE),
        }
    }
}

/// Cancels while the output goes on. A job that has ended by itself meanwhile needs no cancelling.
async fn cancel_and(
    client: &Client,
    job: &str,
    following: impl Future<Output = Result<Followed, Failure>>,
) -> Result<Followed, Failure> {
    let cancelling = async {
        if let Err(failure) = cancel(client, job, "interrupted").await {
            output::note(format_args!("hodei: cannot cancel: {failure}"));
        }
    };
    tokio::pin!(following);
    tokio::select! {
        followed = &mut following => return followed,
        () = cancelling => {}
    }
    following.await
}

/// Ctrl-C, or what a supervisor sends instead.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::other(format!("cannot listen for signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
