//! Faults after which the cluster has other members, or the same ones elsewhere.

use std::time::Duration;

use hodei_proto::v1::RemoveRequest;
use rand::rngs::SmallRng;

use super::{Active, Class, Kind, Undo, everyone, follower, leader, of_nodes};
use crate::{
    history::{Reply, Request},
    run::{
        field::{Field, within},
        world::World,
    },
};

/// How often somebody tries to have a node removed.
const AGAIN: Duration = Duration::from_millis(500);

const fn kind(name: &'static str, begin: fn(&mut World, &mut SmallRng) -> Option<Active>) -> Kind {
    Kind { name, class: Class::Membership, nodes: 3, alone: false, lasts_ms: super::BRIEF, begin }
}

/// Of two such at once a cluster of three does not recover: the second disk is that of a majority.
const fn alone(name: &'static str, begin: fn(&mut World, &mut SmallRng) -> Option<Active>) -> Kind {
    Kind { alone: true, ..kind(name, begin) }
}

pub(super) const KINDS: &[Kind] = &[
    kind("address_of_leader", |world, _| Some(moved(world, &[leader(world)?]))),
    kind("address_of_follower", |world, rng| Some(moved(world, &[follower(world, rng)?]))),
    kind("all_addresses", |world, _| {
        let nodes = everyone(world)?;
        Some(moved(world, &nodes))
    }),
    alone("wiped_disk", |world, rng| {
        let node = follower(world, rng)?;
        world.hold(node);
        Some(gone(world, node))
    }),
    alone("removed_leader", |world, _| {
        let leader = leader(world)?;
        world.hold_down(leader);
        Some(gone(world, leader))
    }),
    alone("removed_follower", |world, rng| {
        let node = follower(world, rng)?;
        world.hold_down(node);
        Some(gone(world, node))
    }),
];

/// Killed, and started again somewhere else.
fn moved(world: &mut World, nodes: &[usize]) -> Active {
    nodes.iter().for_each(|&node| world.relocate(node));
    if nodes.len() == world.nodes.len() {
        world.relocate_agents();
    }
    Active { fault: of_nodes(world, nodes), nodes: nodes.to_vec(), agents: Vec::new(), undo: Vec::new() }
}

/// Somebody removes it from the cluster; it comes back as a new node, with an empty disk.
fn gone(world: &World, node: usize) -> Active {
    let (id, field) = (world.id(node), world.field.clone());
    let (proc, _) = field.process();
    tokio::spawn(async move {
        while !field.is_quiet() {
            for seat in field.seats().into_iter().filter(|seat| seat.id != Some(id)) {
                let open = field.history().invoke(proc, seat.id, &format!("node/{id}"), Request::Revoke);
                let mut client = field.client(seat, proc).cluster();
                let asked = client.remove(Field::ask(RemoveRequest { node_id: id, lose_logs: true }));
                let answer = within(asked).await.map(tonic::Response::into_inner);
                open.answer(&answer, |done| (Reply::Revoke, done.position));
                // It is removed, or somebody's earlier wish has been granted.
                match answer {
                    Ok(_) => return,
                    Err(status) if status.code() == tonic::Code::NotFound => return,
                    Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
        }
    });
    Active { fault: of_nodes(world, &[node]), nodes: vec![node], agents: Vec::new(), undo: vec![Undo::JoinAnew(node)] }
}
