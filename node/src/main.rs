//! `hodei-node`: the one binary of a Hodei cluster, server and command line.

mod api;
mod app;
mod bad_toml;
mod cli;
mod clock;
mod config;
mod convert;
#[cfg(test)]
mod damage;
mod data_dir;
mod durable;
mod enrol;
mod error;
mod files;
mod gateway;
mod jobfile;
mod leader;
mod logging;
mod logs;
mod membership;
mod net;
mod peers;
mod pki;
mod prepare;
mod recovery;
mod replacement;
mod seal;
mod secrets;
mod server;
#[cfg(test)]
mod testing;
mod work;

use std::process::ExitCode;

/// Under load glibc's allocator took a tenth of a node's processor time, part of it in thousands of mprotect(2) a second.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::read();
    install_crypto();
    let format = cli.global.output;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(&cli::exit::Failure::other(format!("cannot start the runtime: {error}")), format),
    };
    match runtime.block_on(cli.command.run(cli.global)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => end(&failure, format),
    }
}

/// One provider for the whole process; every TLS configuration takes it.
fn install_crypto() {
    // Fails only where one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn end(failure: &cli::exit::Failure, format: cli::output::Format) -> ExitCode {
    failure.tell(format);
    ExitCode::from(failure.exit)
}
