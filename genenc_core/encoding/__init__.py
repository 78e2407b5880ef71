"""Batches of images through an encoder, reduced to stored products, shard by shard."""
