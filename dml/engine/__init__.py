"""The Lightning layer: module, data module, callbacks, and the only file that speaks torch.distributed."""
