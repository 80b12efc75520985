"""Embeddings -> ranking (search) -> pure metrics -> one flat dict (evaluator)."""
