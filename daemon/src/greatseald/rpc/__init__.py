"""The network's door: gRPC services over the core, and the one way in and out of them."""
