"""Losses, one a file. The contract: `loss(embeddings [m, d] float, labels [m] int64) -> scalar`.

Mining happens inside; a loss computes in float32 (or float64) also under autocast, knows nothing of processes, and
returns a zero that back-propagates when the batch holds no valid anchor or pair.
`min_samples_per_class` on the class says how many images of a class a batch must hold for the loss to learn.
"""
