//! `ListJobs`: newest first, in pages.

use std::collections::BTreeMap;

use hodei_proto::v1::{Job, ListJobsRequest, ListJobsResponse};
use hodei_raft::{Handle, View};
use hodei_state::{
    State,
    job::{Job as Row, JobState},
};
use prost::Message as _;
use tonic::Status;

use super::describe;
use crate::{
    convert::{from_proto, to_proto},
    error,
};

const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1_000_000;
/// Jobs and bytes of one answer; the client asks for the next page.
const PAGE_JOBS: usize = 1_000;
const PAGE_BYTES: usize = 2 << 20;
/// Jobs looked at for one page, so that a rare selection does not hold up the node.
const PAGE_LOOKS: usize = 100_000;

/// What is asked for.
pub struct Query {
    /// Whether a read of this node alone will do.
    pub stale: bool,
    states: Vec<JobState>,
    labels: BTreeMap<String, String>,
    limit: usize,
    before: Option<(u64, u32)>,
}

impl Query {
    /// Checks a request.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn parse(request: ListJobsRequest) -> Result<Self, Status> {
        if request.limit > MAX_LIMIT {
            return Err(error::invalid("limit", "at most 1,000,000"));
        }
        let limit = if request.limit == 0 { DEFAULT_LIMIT } else { request.limit };
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(parse_token(token).ok_or_else(|| error::invalid("page_token", "one from an answer"))?),
        };
        Ok(Self {
            stale: request.stale,
            states: from_proto::states(&request.states)?,
            labels: request.labels,
            limit: limit as usize,
            before,
        })
    }

    fn selects(&self, state: &State, job: &Row) -> bool {
        let by_state = self.states.is_empty() || self.states.contains(&job.state);
        by_state
            && (self.labels.is_empty()
                || state
                    .spec(job.id)
                    .is_some_and(|spec| self.labels.iter().all(|(key, value)| spec.labels.get(key) == Some(value))))
    }
}

/// One page.
///
/// # Errors
/// None yet; a page is always made.
pub async fn page(handle: &Handle, view: View, query: Query) -> Result<ListJobsResponse, Status> {
    let View { state, position } = view;
    let mut rows = Vec::new();
    let mut last_looked_at = None;
    let mut more = false;
    for (looks, job) in state.jobs_newest_first(query.before).enumerate() {
        if rows.len() == query.limit.min(PAGE_JOBS) || looks == PAGE_LOOKS {
            more = rows.len() < query.limit;
            break;
        }
        if query.selects(&state, job) {
            rows.push(job.id);
        }
        last_looked_at = Some((job.submitted_index, job.submitted_offset));
    }
    let mut jobs: Vec<Job> = Vec::with_capacity(rows.len());
    let mut bytes = 0;
    for id in rows {
        let Some(job) = describe(handle, &state, id).await else { continue };
        bytes += job.encoded_len();
        if bytes > PAGE_BYTES && !jobs.is_empty() {
            more = true;
            last_looked_at = jobs.last().and_then(|last| {
                let row = state.job(last.id.parse().ok()?)?;
                Some((row.submitted_index, row.submitted_offset))
            });
            break;
        }
        jobs.push(job);
    }
    let next_page_token = match last_looked_at {
        Some((index, offset)) if more => format!("{index}.{offset}"),
        _ => String::new(),
    };
    Ok(ListJobsResponse { jobs, position: Some(to_proto::position(position.term, position.index)), next_page_token })
}

fn parse_token(token: &str) -> Option<(u64, u32)> {
    let (index, offset) = token.split_once('.')?;
    Some((index.parse().ok()?, offset.parse().ok()?))
}
