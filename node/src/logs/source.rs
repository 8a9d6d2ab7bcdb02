//! Where one log is read from on this node: its own copy, or a cache filled from another holder.
//!
//! The worker's gateway is asked first, because that is where the agent delivers now, then the other holders, newest
//! first. When one fails, the next is asked from the sequence reached so far, and then the gateway again; when the worker
//! moves, the source moves with it. A copy of this node's own that is complete is used whatever else there is. Once the
//! attempt has ended, all holders are asked until the log is complete; where it was lost there is nothing to complete it
//! by, and nobody can tell who has the most.

pub(super) mod place;

use std::{io, sync::Arc, time::Duration};

use futures::StreamExt as _;
use hodei_proto::v1::{self, pull_log_response::Kind};
use hodei_state::ids::NodeId;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::place::{Place, Wakes};
use super::{
    entries,
    file::{LogFile, Progress},
    frame::LogKey,
    hub::{Hub, Open},
};

/// For a holder to begin to answer and, where no more may come than it has, to send what is new beside what it has given.
const PULL_TIMEOUT: Duration = Duration::from_secs(2);
/// For each batch of what it has, there.
const STALL: Duration = Duration::from_secs(10);
/// Why nothing can be kept, where a file has failed.
const NOT_TAKEN: &str = "its disk does not take it";
/// Between rounds over holders of which none has all.
const RETRY: Duration = Duration::from_millis(250);
/// The same once all have given what they have of a lost attempt, whose agent may still bring something.
const LATE: Duration = Duration::from_secs(10);

/// What a source offers.
#[derive(Clone, Default)]
pub struct Feed {
    /// What is to be read; it may be replaced by another that holds more.
    pub file: Option<Arc<LogFile>>,
    /// Everything that the holders had when they were asked last is in the file.
    pub settled: bool,
    /// The attempt was known to have ended when they were asked. Before that not all of them are.
    pub ended: bool,
    /// Holders that do not answer, while something of theirs may be lacking; this node, where its copy cannot be opened.
    pub missing: Vec<NodeId>,
    /// All holders were asked, and either do not answer or lack something.
    pub asked_all: bool,
    /// The highest sequence that has come from other holders. It may have gone to a file that is not offered yet, since this one
    /// is longer.
    pub pulled: u64,
    /// Why this node cannot keep what holders send, if it cannot.
    pub broken: Option<String>,
    /// See [`Silent`].
    pub silent: Option<Silent>,
}

/// The gateway of a running attempt's worker, which may give others what the worker sends it but does not answer this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent {
    /// Which node that is.
    pub gateway: NodeId,
    /// When it was first asked in vain, and nothing has come from it since.
    pub since: Instant,
    /// When it was last asked in vain.
    pub asked: Instant,
}

/// See the module.
pub struct Source {
    feed: watch::Receiver<Feed>,
    _stop: DropGuard,
}

impl Source {
    /// What it offers, to read and to wait for.
    #[must_use]
    pub fn feed(&self) -> watch::Receiver<Feed> {
        self.feed.clone()
    }
}

pub(super) fn start(hub: &Hub, key: LogKey) -> Arc<Source> {
    let stop = hub.stop().child_token();
    let (sender, feed) = watch::channel(Feed::default());
    let task = Task {
        hub: hub.clone(),
        key,
        feed: sender,
        own: None,
        is_own_broken: false,
        cache: None,
        given: Vec::new(),
        failed: Vec::new(),
        asked_all: false,
        pulled: 0,
        broken: None,
    };
    hub.spawn(task.run(stop.clone()));
    Arc::new(Source { feed, _stop: stop.drop_guard() })
}

struct Task {
    hub: Hub,
    key: LogKey,
    feed: watch::Sender<Feed>,
    /// This node's copy, which would be read through whenever it is opened anew.
    own: Option<Arc<LogFile>>,
    /// It could not be opened when that was tried last.
    is_own_broken: bool,
    cache: Option<Arc<LogFile>>,
    /// Holders at which a running attempt does not grow, and all that they have is in the cache.
    given: Vec<NodeId>,
    /// Holders that did not answer when they were asked last.
    failed: Vec<NodeId>,
    /// All were asked since the state last said something else of the log.
    asked_all: bool,
    pulled: u64,
    /// Of whom something could not be kept, and why.
    broken: Option<(NodeId, String)>,
}

/// How reading from one holder ended.
enum Turn {
    /// The holder does not answer, or stops to, or does not have it, or its disk has failed.
    Failed,
    /// This node cannot keep what the holder sends.
    Broken(String),
    /// It has given all that it has, or seems to, and another holder may have more.
    Short,
    /// The state says something else now, or this node's copy has to be opened anew.
    Moved,
    /// All there will ever be is here.
    Complete,
}

impl Task {
    async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&mut self) {
        let mut wakes = Wakes::new(&self.hub, self.key);
        let mut asked = Place::default();
        loop {
            let place = wakes.look(&self.hub, self.key);
            if place != asked {
                self.asked_all = false;
                self.given.clear();
                asked = place.clone();
            }
            self.failed.retain(|holder| place.holders.contains(holder));
            self.broken.take_if(|(holder, _)| !place.holders.contains(holder));
            self.set_silent(self.silent().filter(|silent| self.is_gateway(silent.gateway)));
            match self.round(&place, &mut wakes).await {
                Turn::Moved => {}
                Turn::Complete => tokio::select! {
                    () = wakes.changed() => {}
                    () = self.offered_failed() => {}
                },
                Turn::Failed | Turn::Broken(_) | Turn::Short => {
                    self.asked_all = true;
                    let (missing, broken) = (self.failed.clone(), self.why_broken());
                    let settled = missing.is_empty() && broken.is_none();
                    self.feed.send_modify(|feed| {
                        (feed.settled, feed.ended) = (settled, place.ended);
                        (feed.missing, feed.broken, feed.asked_all) = (missing, broken, true);
                    });
                    tokio::select! {
                        () = wakes.changed() => {}
                        () = sleep(if settled && place.is_lost() { LATE } else { RETRY }) => {}
                        () = self.offered_failed() => {}
                    }
                }
            }
        }
    }

    /// Waits until what is offered has failed, and a little longer, so that it is not opened anew without a pause.
    async fn offered_failed(&self) {
        let offered = self.feed.borrow().file.clone();
        match offered {
            Some(file) => file.failed().await,
            None => std::future::pending().await,
        }
        sleep(RETRY).await;
    }

    /// Tries every holder in turn.
    async fn round(&mut self, place: &Place, wakes: &mut Wakes) -> Turn {
        let (own, is_readable) = self.open_own().await;
        // The cache too: a change that was not looked at yet, such as the attempt's end, is no reason to ask again.
        if let Some(complete) = [&own, &self.cache].into_iter().flatten().find(|copy| place.is_reached(copy)) {
            self.publish(complete.clone(), true, place);
            return Turn::Complete;
        }
        if place.holders.is_empty() {
            // Nothing is placed yet. What this node's own gateway has begun may be read already.
            self.feed.send_modify(|feed| {
                (feed.file, feed.settled, feed.ended) = (own.clone().or(feed.file.take()), true, place.ended);
            });
            return self.until_moved(place, wakes, own.as_ref()).await;
        }
        let to_ask = self.whom_to_ask(place);
        if let Some(own) = &own {
            // However long others take to answer. They may have the rest.
            self.answered(self.hub.node());
            self.publish(own.clone(), false, place);
        }
        for holder in to_ask {
            let turn = match (holder == self.hub.node(), &own) {
                (true, Some(_)) if place.ended || !place.grows_at(holder) => Turn::Short,
                (true, Some(own)) => {
                    // It will have all, and nothing of others has to be kept.
                    self.broken = None;
                    self.offer(own.clone(), true, place);
                    self.until_moved(place, wakes, Some(own)).await
                }
                (true, None) if is_readable => self.has_none(holder, place),
                (true, None) => Turn::Failed,
                // Who has left the cluster does not serve it.
                (false, _) if !self.hub.ledger().state().is_member(holder) => self.has_none(holder, place),
                (false, _) => self.pull(holder, place, wakes).await,
            };
            match turn {
                Turn::Failed if self.failed.contains(&holder) => {}
                Turn::Failed => {
                    self.failed.push(holder);
                    // Before the next one is asked, who may take his time.
                    self.feed.send_modify(|feed| feed.missing.clone_from(&self.failed));
                }
                Turn::Broken(why) => self.broken = Some((holder, why)),
                Turn::Short => {}
                turn => return turn,
            }
        }
        Turn::Failed
    }

    /// All holders, but who has given all that it will have. Of a lost attempt each is missing until it has answered, and who
    /// has is not asked again before that.
    fn whom_to_ask(&mut self, place: &Place) -> Vec<NodeId> {
        if place.is_lost() && !self.asked_all {
            self.failed.clone_from(&place.holders);
        }
        let answered = |holder: &NodeId| place.is_lost() && !self.failed.is_empty() && !self.failed.contains(holder);
        let is_asked = |holder: &NodeId| !answered(holder) && !self.given.contains(holder);
        place.holders.iter().copied().filter(is_asked).collect()
    }

    /// Waits until the state says something else of the log, or this node's copy must be opened anew.
    async fn until_moved(&self, place: &Place, wakes: &mut Wakes, own: Option<&Arc<LogFile>>) -> Turn {
        let failed = async {
            match own {
                Some(own) => own.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(failed);
        loop {
            tokio::select! {
                () = wakes.changed() => {}
                () = &mut failed => {
                    sleep(RETRY).await;
                    return Turn::Moved;
                }
            }
            if wakes.look(&self.hub, self.key) != *place {
                return Turn::Moved;
            }
        }
    }

    async fn pull(&mut self, holder: NodeId, place: &Place, wakes: &mut Wakes) -> Turn {
        let cache = match self.open_cache().await {
            Ok(cache) => cache,
            Err(error) => {
                if self.broken.is_none() {
                    tracing::warn!(%error, "cannot make a cache file for a log");
                }
                return Turn::Broken(error.to_string());
            }
        };
        let request = v1::PullLogRequest {
            job_id: self.key.job.to_string(),
            attempt: self.key.attempt,
            from_sequence: cache.progress().tally.next(),
            follow: true,
        };
        self.feed.send_if_modified(|feed| std::mem::replace(&mut feed.settled, false));
        let mut pulled = match timeout(PULL_TIMEOUT, self.hub.upstream().pull(holder, request)).await {
            Ok(Ok(pulled)) => pulled,
            Ok(Err(error)) => {
                tracing::debug!(holder, error = error.message(), "cannot pull a log");
                return self.unanswered(holder);
            }
            Err(_) => return self.unanswered(holder),
        };
        // Others are asked for the rest, once this one is silent; while the log grows here it may be silent for ever.
        let mut is_limited = place.ended || !place.grows_at(holder);
        let (mut heard, mut is_marked) = (Instant::now(), false);
        loop {
            let until = heard + if is_marked { PULL_TIMEOUT } else { STALL };
            tokio::select! {
                () = sleep_until(until), if is_limited => {
                    return if is_marked { Turn::Short } else { Turn::Failed };
                }
                () = wakes.changed() => {
                    // The end alone is no reason to leave a holder that is still sending, unless nothing says how much.
                    let now = wakes.look(&self.hub, self.key);
                    if now.ended && !is_limited {
                        (is_limited, heard) = (true, Instant::now());
                    }
                    if now.holders != place.holders || (now.is_lost() && !place.is_lost()) {
                        return Turn::Moved;
                    }
                }
                message = pulled.next() => match message {
                    Some(Ok(v1::PullLogResponse { kind: Some(kind) })) => {
                        // Not only once all of it has come, which may take long.
                        self.set_silent(self.silent().filter(|silent| silent.gateway != holder));
                        is_marked |= matches!(kind, Kind::Mark(_));
                        if let Some(turn) = self.take(holder, &cache, kind, place).await {
                            return turn;
                        }
                        heard = Instant::now();
                    }
                    _ => return self.unanswered(holder),
                },
            }
        }
    }

    /// Takes one answer of a holder; `Some` ends the pull.
    async fn take(&mut self, holder: NodeId, cache: &Arc<LogFile>, kind: Kind, asked: &Place) -> Option<Turn> {
        let mark = match kind {
            Kind::Batch(batch) if entries::check(&batch).is_ok() => {
                self.pulled = self.pulled.max(entries::last_sequence(&batch));
                if cache.progress().failed {
                    return Some(Turn::Broken(NOT_TAKEN.to_owned()));
                }
                let appended = self.hub.append(cache, batch, 0).await;
                let is_offered = self.feed.borrow().file.as_ref().is_some_and(|file| Arc::ptr_eq(file, cache));
                if !is_offered {
                    self.publish(cache.clone(), false, &Place::of(&self.hub.ledger().state(), self.key));
                }
                return appended.err().map(|_| Turn::Failed);
            }
            Kind::Mark(mark) if !mark.unknown => mark,
            Kind::Mark(_) => return Some(self.has_none(holder, &Place::of(&self.hub.ledger().state(), self.key))),
            Kind::Batch(_) => return Some(Turn::Failed),
        };
        let mut progress = cache.watch();
        let written = |p: &Progress| p.failed || p.tally.last_sequence >= mark.last_sequence;
        let waited = timeout(PULL_TIMEOUT, progress.wait_for(written)).await.map(|progress| progress.map(|p| p.failed));
        match waited {
            Ok(Ok(false)) => self.answered(holder),
            Ok(Ok(true)) => return Some(Turn::Broken(NOT_TAKEN.to_owned())),
            _ => return Some(Turn::Failed),
        }
        let place = Place::of(&self.hub.ledger().state(), self.key);
        if !place.ended && place.grows_at(holder) {
            // It will have all: what others sent need not be kept.
            self.broken = None;
        }
        let settled = if place.ended { place.is_reached(cache) } else { place.grows_at(holder) };
        self.publish(cache.clone(), settled, &place);
        if place.is_reached(cache) || (mark.closed && place.worker.is_none()) {
            return Some(Turn::Complete);
        }
        if mark.closed || place.ended {
            // Closed: it has heard of an end that this node has not, or has not heard of the attempt yet.
            return Some(Turn::Short);
        }
        if !asked.grows_at(holder) && !place.grows_at(holder) {
            self.given.push(holder);
            return Some(Turn::Short);
        }
        None
    }

    /// A holder has left the cluster, or has lost its copy. Of a lost attempt that is an answer, unless it was the last one:
    /// nothing more comes from it, and what it had was given to the next one, too.
    fn has_none(&mut self, holder: NodeId, place: &Place) -> Turn {
        if place.is_lost() && place.last != Some(holder) {
            self.answered(holder);
            return Turn::Short;
        }
        Turn::Failed
    }

    /// Until then who failed is missing, also while it is asked once more, and what it sent could not be kept.
    fn answered(&mut self, holder: NodeId) {
        self.failed.retain(|failed| *failed != holder);
        self.broken.take_if(|(of, _)| *of == holder);
    }

    /// It does not answer, or has stopped to.
    fn unanswered(&self, holder: NodeId) -> Turn {
        if self.is_gateway(holder) {
            let asked = Instant::now();
            let since = self.silent().filter(|silent| silent.gateway == holder).map_or(asked, |silent| silent.since);
            self.set_silent(Some(Silent { gateway: holder, since, asked }));
        }
        Turn::Failed
    }

    fn silent(&self) -> Option<Silent> {
        self.feed.borrow().silent
    }

    fn set_silent(&self, silent: Option<Silent>) {
        self.feed.send_if_modified(|feed| std::mem::replace(&mut feed.silent, silent) != silent);
    }

    /// Whether a running attempt's lines come to that node, and to this one by way of it.
    fn is_gateway(&self, holder: NodeId) -> bool {
        place::live_gateway(&self.hub.ledger().state(), self.key) == Some(holder) && holder != self.hub.node()
    }

    fn why_broken(&self) -> Option<String> {
        self.broken.as_ref().map(|(_, why)| why.clone())
    }

    /// This node's copy, if it has one, and whether that is known.
    async fn open_own(&mut self) -> (Option<Arc<LogFile>>, bool) {
        match self.hub.copy(self.key, Open::Existing).await {
            Ok(own) => {
                (self.own, self.is_own_broken) = (own.clone(), false);
                (own, true)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_own_broken, true) {
                    let LogKey { job, attempt } = self.key;
                    tracing::warn!(%job, attempt, %error, "cannot open this node's copy of a log");
                }
                (None, false)
            }
        }
    }

    async fn open_cache(&mut self) -> io::Result<Arc<LogFile>> {
        if let Some(cache) = self.cache.as_ref().filter(|cache| !cache.progress().failed) {
            return Ok(cache.clone());
        }
        let cache = self.hub.cache(self.key).await?;
        self.cache = Some(cache.clone());
        self.given.clear();
        Ok(cache)
    }

    /// Offers a file, or the one that is offered if that is longer: what one holder has is not hidden by another's.
    fn publish(&self, file: Arc<LogFile>, settled: bool, place: &Place) {
        let is_longer =
            |offered: &Arc<LogFile>| !offered.progress().failed && last_sequence(offered) > last_sequence(&file);
        let longer = self.feed.borrow().file.clone().filter(is_longer);
        self.offer(longer.unwrap_or(file), settled, place);
    }

    fn offer(&self, file: Arc<LogFile>, settled: bool, place: &Place) {
        let (missing, broken) = (self.failed.clone(), self.why_broken());
        let (ended, asked_all, pulled, silent) = (place.ended, self.asked_all, self.pulled, self.silent());
        self.feed.send_replace(Feed { file: Some(file), settled, ended, missing, asked_all, pulled, broken, silent });
    }
}

fn last_sequence(file: &LogFile) -> u64 {
    file.progress().tally.last_sequence
}
