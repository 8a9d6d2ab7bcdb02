//! The wire between clients, agents and nodes: the messages and services of `proto/hodei/v1/*.proto` and what is
//! generated from them, nothing else. Translation to and from the core's types lives where it is used
//! (`node/src/convert`), so that the core never sees this crate.

/// Messages, clients and servers of package `hodei.v1`.
#[allow(missing_docs, unused_qualifications, clippy::all, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("hodei.v1");
}

/// The encoded `FileDescriptorSet` of all files, for gRPC reflection and for the test that walks every RPC.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hodei_descriptor.bin"));
