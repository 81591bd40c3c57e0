"""The engine process: weights, KV cache and data sockets of one device."""
