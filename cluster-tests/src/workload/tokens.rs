//! One-time tokens, raced by several parties at several nodes and on both sides of a cut, repeated and revoked, kept for
//! later, and grown too old.

use std::{collections::VecDeque, time::Duration};

use futures::future::join_all;
use hodei_proto::v1::{CreateTokenRequest, EnrollRequest, EnrollResponse, RevokeTokenRequest, Role};
use rand::{Rng as _, RngCore as _, rngs::SmallRng, seq::IndexedRandom as _};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use uuid::Uuid;

use crate::{
    history::{CreateToken, Enroll, Enrolled, Reply, Request},
    run::field::{Field, Seat, within},
};

/// Between two tokens.
const PAUSE: Duration = Duration::from_millis(1_500);
/// How often a party asks again that got no answer.
const REPEATS: u32 = 3;
/// For how long a token may be used: longer than a run, and shorter than most jumps of a clock.
pub(super) const LONG: Duration = Duration::from_secs(900);
/// For how long one that is to grow too old.
const BRIEF: Duration = Duration::from_secs(4);
/// From when on it is too old for certain: leaders agree on the time by asking each other.
const OVER: Duration = Duration::from_secs(6);
/// How many tokens are kept for later.
const KEPT: usize = 3;

/// Somebody who wants to be let in.
#[derive(Debug)]
pub(super) struct Party {
    nonce: [u8; 16],
    request: Vec<u8>,
    public_key: String,
    /// PEM.
    pub(super) key: String,
}

impl Party {
    pub(super) fn new(rng: &mut SmallRng) -> Self {
        let key = KeyPair::generate().expect("a key can be made");
        let request = CertificateParams::default().serialize_request(&key).expect("a key can sign");
        let mut nonce = [0; 16];
        rng.fill_bytes(&mut nonce);
        Self {
            nonce,
            request: request.der().to_vec(),
            public_key: hex(&Sha256::digest(key.subject_public_key_info())),
            key: key.serialize_pem(),
        }
    }

    /// What it says to be let in.
    pub(super) fn request(&self, token: &Token) -> EnrollRequest {
        EnrollRequest {
            token: token.text.clone(),
            nonce: self.nonce.to_vec(),
            csr_der: self.request.clone(),
            ..EnrollRequest::default()
        }
    }
}

/// What a token is to be like.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewToken {
    pub(super) role: Role,
    pub(super) uses: u32,
    pub(super) ttl: Duration,
}

/// A token that somebody holds.
#[derive(Debug)]
pub(super) struct Token {
    id: String,
    text: String,
}

/// One token after the other, until the end.
pub async fn race(field: Field) {
    let (proc, mut rng) = field.process();
    // Each party is a process of its own: they ask at the same time.
    let procs = [field.process().0, field.process().0, field.process().0];
    let mut kept = VecDeque::new();
    while !field.is_quiet() {
        let uses = if rng.random_bool(0.2) { 2 } else { 1 };
        let ttl = if rng.random_bool(0.15) { BRIEF } else { LONG };
        let seat = field.any(&mut rng);
        if let Ok(token) = create(&field, proc, seat, NewToken { role: Role::User, uses, ttl }, &mut rng).await {
            let made = Instant::now();
            let parties: Vec<Party> = (0..rng.random_range(1..=3)).map(|_| Party::new(&mut rng)).collect();
            let seeds: Vec<SmallRng> = parties.iter().map(|_| rand::SeedableRng::from_rng(&mut rng)).collect();
            let entering = parties
                .iter()
                .zip(procs)
                .zip(seeds)
                .map(|((party, proc), rng)| enter(&field, proc, &token, party, None, rng));
            join_all(entering).await;
            if ttl == BRIEF {
                sleep_until(made + OVER).await;
                // Whoever was let in is so again, and nobody else.
                for party in [&parties[0], &Party::new(&mut rng)] {
                    let _ = enroll(&field, proc, field.any(&mut rng), &token, party).await;
                }
            } else if rng.random_bool(0.25) {
                revoke(&field, proc, field.any(&mut rng), &token.id).await;
                let _ = enroll(&field, proc, field.any(&mut rng), &token, &Party::new(&mut rng)).await;
            }
        }
        keep(&field, proc, &mut kept, &mut rng).await;
        Field::pause(&mut rng, PAUSE).await;
    }
}

/// Keeps one token more, and uses one that was kept for long: no clock that jumped since may have made it too old.
async fn keep(field: &Field, proc: u32, kept: &mut VecDeque<Token>, rng: &mut SmallRng) {
    let wanted = NewToken { role: Role::User, uses: 1, ttl: LONG };
    kept.extend(create(field, proc, field.any(rng), wanted, rng).await.ok());
    if kept.len() > KEPT
        && let Some(token) = kept.pop_front()
    {
        let _ = enroll(field, proc, field.any(rng), &token, &Party::new(rng)).await;
    }
}

/// Tokens that were made before a cut, raced on both sides of it, until the end.
pub async fn race_across_cuts(field: Field) {
    let (proc, mut rng) = field.process();
    let procs = [proc, field.process().0];
    let wanted = NewToken { role: Role::User, uses: 1, ttl: LONG };
    let mut kept: Vec<Token> = Vec::new();
    while !field.is_quiet() {
        match (field.sides(), kept.pop()) {
            (Some(sides), Some(token)) => {
                let parties = [Party::new(&mut rng), Party::new(&mut rng)];
                let seeds: Vec<SmallRng> = parties.iter().map(|_| rand::SeedableRng::from_rng(&mut rng)).collect();
                let entering = parties.iter().zip(&sides).zip(procs).zip(seeds);
                let entering = entering
                    .map(|(((party, side), proc), rng)| enter(&field, proc, &token, party, Some(side.as_slice()), rng));
                join_all(entering).await;
            }
            (Some(_), None) => {}
            (None, token) => {
                kept.extend(token);
                if kept.len() < KEPT {
                    kept.extend(create(&field, proc, field.any(&mut rng), wanted, &mut rng).await.ok());
                }
            }
        }
        Field::pause(&mut rng, PAUSE / 6).await;
    }
}

/// Asks until there is a definite answer, on one node of these after the other or on any, and sometimes once more.
async fn enter(field: &Field, proc: u32, token: &Token, party: &Party, side: Option<&[Seat]>, mut rng: SmallRng) {
    for _ in 0..REPEATS {
        let of_side = side.and_then(|seats| seats.choose(&mut rng)).copied();
        let seat = of_side.unwrap_or_else(|| field.any(&mut rng));
        let answer = enroll(field, proc, seat, token, party).await;
        if answer.is_ok() && rng.random_bool(0.6) {
            return;
        }
        Field::pause(&mut rng, PAUSE / 8).await;
    }
}

/// A new token.
pub(super) async fn create(
    field: &Field,
    proc: u32,
    seat: Seat,
    NewToken { role, uses, ttl }: NewToken,
    rng: &mut SmallRng,
) -> Result<Token, Status> {
    let id = Uuid::now_v7().to_string();
    let mut secret = [0; 32];
    rng.fill_bytes(&mut secret);
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let open =
        field.history().invoke(proc, seat.id, &id, Request::CreateToken(CreateToken { uses, ttl_ms: Some(ttl_ms) }));
    let secret_sha256 = Sha256::digest(secret).to_vec();
    let request = CreateTokenRequest { role: role.into(), ttl_ms, uses, id: id.clone(), secret_sha256 };
    let mut client = field.client(seat, proc).cluster();
    let answer = within(client.create_token(Field::ask(request))).await.map(tonic::Response::into_inner);
    open.answer(&answer, |_| (Reply::CreateToken, None));
    answer.map(|made| Token { text: format!("hodei1.{}.{}.{}", named(role), made.ca_hash, base32(&secret)), id })
}

async fn revoke(field: &Field, proc: u32, seat: Seat, id: &str) {
    let open = field.history().invoke(proc, seat.id, id, Request::RevokeToken);
    let request = RevokeTokenRequest { id: id.to_owned() };
    let mut client = field.client(seat, proc).cluster();
    let answer = within(client.revoke_token(Field::ask(request))).await.map(tonic::Response::into_inner);
    open.answer(&answer, |done| (Reply::RevokeToken, done.position));
}

pub(super) async fn enroll(
    field: &Field,
    proc: u32,
    seat: Seat,
    token: &Token,
    party: &Party,
) -> Result<EnrollResponse, Status> {
    let asked = Enroll { nonce: hex(&party.nonce), public_key: party.public_key.clone() };
    let open = field.history().invoke(proc, seat.id, &token.id, Request::Enroll(asked));
    let mut client = field.stranger(seat).cluster();
    let answer = within(client.enroll(Field::ask(party.request(token)))).await.map(tonic::Response::into_inner);
    open.answer(&answer, |done| (Reply::Enroll(Enrolled { identity: identity(done) }), done.position));
    answer
}

/// Who was let in: `role/id`.
pub(super) fn identity(done: &EnrollResponse) -> String {
    done.identity.as_ref().map(|of| format!("{}/{}", named(of.role()), of.id)).unwrap_or_default()
}

/// A role as tokens and identities spell it: without the prefix that the protocol has.
fn named(role: Role) -> String {
    role.as_str_name().trim_start_matches("ROLE_").to_lowercase()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 4648 in lower case, without padding.
fn base32(bytes: &[u8]) -> String {
    let bits = |at: usize| (0..5).fold(0, |value, bit| value << 1 | bit_of(bytes, at * 5 + bit));
    (0..(bytes.len() * 8).div_ceil(5)).map(|at| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[bits(at)])).collect()
}

fn bit_of(bytes: &[u8], at: usize) -> usize {
    bytes.get(at / 8).map_or(0, |byte| usize::from(byte >> (7 - at % 8) & 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_32_is_that_of_the_rfc() {
        let pairs = [("", ""), ("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foobar", "mzxw6ytboi")];
        pairs.iter().for_each(|(bytes, text)| assert_eq!(base32(bytes.as_bytes()), *text));
    }
}
