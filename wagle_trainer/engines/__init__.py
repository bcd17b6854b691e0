"""Training engines and the weights that they shard."""
