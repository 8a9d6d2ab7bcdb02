//! Parties that submit under one idempotency key, or as one id, at several nodes at once, some of them another job (S5).

use std::time::Duration;

use futures::future::join_all;
use rand::Rng as _;
use uuid::Uuid;

use super::jobs::{self, patient};
use crate::{client::shell, run::field::Field};

/// Between two races.
const PAUSE: Duration = Duration::from_millis(1_500);
/// How often a party tries that got no answer, or asks again although it did.
const REPEATS: u32 = 3;
/// The same where all name one id: what has no answer may take effect at any later time, and more than so many operations
/// that are open at once nobody can judge.
const REPEATS_BY_ID: u32 = 2;

/// What all parties of a race have in common.
enum Name {
    /// The key; each has an id of its own.
    Key(String),
    /// The id; nobody has a key.
    Id(String),
}

/// One race after the other, until the end.
pub async fn race(field: Field) {
    let (proc, mut rng) = field.process();
    let mut races = 0_u32;
    while !field.is_quiet() {
        races += 1;
        let by_id = rng.random_bool(0.3);
        let name = if by_id { Name::Id(Uuid::now_v7().to_string()) } else { Name::Key(format!("race-{proc}-{races}")) };
        // More at once than a job's operations can be judged with would prove less.
        let parties = rng.random_range(2..=3);
        join_all((0..parties).map(|_| party(&field, &name))).await;
        Field::pause(&mut rng, PAUSE).await;
    }
}

/// Goes on until it has an answer, and at times beyond that: wherever it asks, the answer is the same.
async fn party(field: &Field, name: &Name) {
    let (proc, mut rng) = field.process();
    let payload = if rng.random_bool(0.3) { "another" } else { "one" };
    let own = Uuid::now_v7().to_string();
    let (id, key, repeats) = match name {
        Name::Key(key) => (&own, Some(key.as_str()), REPEATS),
        Name::Id(id) => (id, None, REPEATS_BY_ID),
    };
    for _ in 0..repeats {
        let (seat, spec) = (field.any(&mut rng), patient(shell("true", &[payload])));
        let answered = jobs::queue(field, proc, seat, id, key, spec, (payload, Some(0))).await.is_ok();
        if answered && rng.random_bool(0.7) {
            return;
        }
        Field::pause(&mut rng, PAUSE / 10).await;
    }
}
