//! `hodei-agent`: is a job's watchdog where it was started as one; else reads its flags, installs what a process has one of
//! (logger, TLS provider, signals), runs the agent and turns its end into an exit code.

use std::{io::IsTerminal as _, process::ExitCode};

use hodei_agent::{config::Config, error::Exit, shutdown::Shutdown, watchdog};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::filter::LevelFilter;

/// More threads would only cost memory: the work is done by the jobs.
const THREADS: usize = 2;

fn main() -> ExitCode {
    // Before anything that only an agent needs.
    if std::env::args_os().nth(1).is_some_and(|command| command == watchdog::COMMAND) {
        return watchdog::main();
    }
    let config = Config::read();
    log_to_stderr();
    match rustls::crypto::ring::default_provider().install_default().map_err(|_| "another TLS provider is installed") {
        Ok(()) => {}
        Err(error) => return fail(&Exit::other(error)),
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Exit::other(format!("cannot start: {error}"))),
    };
    let ended = runtime.block_on(async {
        let (requests, shutdown) = Shutdown::new();
        let signals = tokio::spawn(count_signals(requests));
        let ended = hodei_agent::run(config, shutdown).await;
        signals.abort();
        ended
    });
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => fail(&exit),
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(THREADS).thread_stack_size(1 << 20).enable_all().build()
}

fn fail(exit: &Exit) -> ExitCode {
    eprintln!("hodei-agent: {exit}");
    ExitCode::from(exit.code)
}

fn log_to_stderr() {
    let level = std::env::var("HODEI_LOG").ok().filter(|level| !level.is_empty());
    let level = level.and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::INFO);
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(level)
        .init();
}

async fn count_signals(requests: watch::Sender<u32>) {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("cannot listen for signals: SIGTERM will not drain");
        return;
    };
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        requests.send_modify(|count| *count += 1);
    }
}
