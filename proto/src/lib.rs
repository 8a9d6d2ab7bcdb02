//! The wire between clients, agents and nodes: the messages and services of `proto/hodei/v1/*.proto` and what is
//! generated from them, nothing else. Translation to and from the core's types lives where it is used
//! (`node/src/convert`), so that the core never sees this crate.

/// Messages, clients and servers of package `hodei.v1`.
#[allow(missing_docs, unused_qualifications, clippy::all, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("hodei.v1");

    // What carries secrets is shown without them.

    impl std::fmt::Debug for PutSecretRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("PutSecretRequest").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
        }
    }

    impl std::fmt::Debug for SecretValue {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("SecretValue").field("name", &self.name).field("env", &self.env).finish_non_exhaustive()
        }
    }

    impl std::fmt::Debug for EnrollResponse {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("EnrollResponse").field("identity", &self.identity).finish_non_exhaustive()
        }
    }
}

/// The encoded `FileDescriptorSet` of all files, for gRPC reflection and for the test that walks every RPC.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hodei_descriptor.bin"));
