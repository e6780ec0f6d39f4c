"""The thin front: HTTP and gRPC in, frames on the bus out. Stateless; run as many as needed."""
