//! Server to proxy: protobuf and gRPC.
