"""Networks: images [B, 3, H, W] -> features [B, C] (backbones) -> embeddings [B, D] (embedder)."""
