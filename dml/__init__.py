"""Deep metric learning: images -> batches -> embeddings -> loss, and embeddings -> ranking -> metrics -> tables."""
