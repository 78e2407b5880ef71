"""Encoding of image batches and their reduction to stored products, shard by shard."""
