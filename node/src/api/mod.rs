//! The services: each RPC is translated, decided by the state or a command, and translated back.

pub mod cluster;
pub mod explain;
pub mod jobs;
pub mod logs;
pub mod peer;
pub mod scheduler;
pub mod secrets;
pub mod workers;

use hodei_proto::DESCRIPTOR_SET;
use tonic::service::RoutesBuilder;

/// Mounts gRPC reflection: the service list, for people with a generic client.
pub fn add_reflection(routes: &mut RoutesBuilder) {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (v1, v1alpha) = (builder().build_v1(), builder().build_v1alpha());
    routes.add_service(v1.expect("the descriptor set was generated with this binary"));
    routes.add_service(v1alpha.expect("the descriptor set was generated with this binary"));
}
