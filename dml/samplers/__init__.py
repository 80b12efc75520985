"""Batch samplers, one a file: `Sampler(labels=..., seed=..., rank=..., world_size=...)` iterates lists of indices."""
