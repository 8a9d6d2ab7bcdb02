//! What only the leader does: schedule, judge leases, remove what is old.
//!
//! One supervisor follows who leads. When this node does, it runs one [`term`], which owns the table of leases and the
//! scheduler and ends with the leadership: nothing decided in one term is proposed in another. Everything it knows
//! beside the state is rebuilt at the next election. Gateways reach it through the [`door`].

pub mod door;
mod retention;
mod term;

use hodei_raft::{Handle, Leadership};
use tokio_util::sync::CancellationToken;

use self::door::Door;

/// Runs the leader's loops whenever this node leads, until `stop`.
pub async fn supervise(handle: Handle, door: Door, stop: CancellationToken) {
    let mut leadership = handle.leadership();
    loop {
        let now = *leadership.borrow_and_update();
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leadership.changed() => if changed.is_err() { return },
            () = lead(&handle, &door, now) => {}
        }
        door.close();
    }
}

/// Leads, if this node does, for as long as it is let.
async fn lead(handle: &Handle, door: &Door, now: Leadership) {
    let Leadership::Leading { term } = now else { return std::future::pending().await };
    tracing::info!(term, "leading");
    let inbox = door.open();
    tokio::join!(term::Term::new(handle.clone(), term).run(inbox), retention::run(handle.clone(), term));
}
