"""Where embeddings are kept and found; each has `build` and `open_store`, and the next room knows no other."""
