"""Training engines, one file each, and the tensors that they shard. Every module of this folder is imported on first use."""
