"""The gRPC services: each decodes a request, calls one domain method, and encodes the answer."""
