//! One handshake, byte by byte, for other implementations.
