"""Generated protobuf messages and gRPC stubs of the package nablad.v1; see protos/generate.py."""
