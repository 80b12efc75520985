"""What two processes make of one batch in pytorch-metric-learning: the check behind a line of the README's comparison.

python -m benchmarks.peers

A linear layer embeds 16 rows, half of them in each of two gloo processes, in float64. The mean of both gradients
(what DDP gives) is held against the gradient of one process. (For our losses tests/engine/test_ddp.py does the same.)
"""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_SIZE, _CLASSES, _FEATURES, _DIM = 16, 4, 8, 4


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_SIZE, _FEATURES, dtype=torch.float64, generator=generator)
    labels = (torch.arange(_SIZE) % _CLASSES)[torch.randperm(_SIZE, generator=generator)]
    return x, labels, torch.randn(_FEATURES, _DIM, dtype=torch.float64, generator=generator)


def _process(rank: int, port: int, efficient: bool) -> None:
    from pytorch_metric_learning import losses
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    x, labels, start = _batch()
    mine = slice(0, _SIZE // 2) if rank == 0 else slice(_SIZE // 2, _SIZE)
    for name in ("ContrastiveLoss", "TripletMarginLoss", "MultiSimilarityLoss"):
        alone, shared = start.clone().requires_grad_(), start.clone().requires_grad_()
        getattr(losses, name)()(x @ alone, labels).backward()
        loss = DistributedLossWrapper(getattr(losses, name)(), efficient=efficient)
        loss(x[mine] @ shared, labels[mine]).backward()
        assert shared.grad is not None and alone.grad is not None
        gradient = shared.grad.clone()
        dist.all_reduce(gradient)
        difference = ((gradient / 2 - alone.grad).norm() / alone.grad.norm()).item()
        if rank == 0:
            print(f"| {name} | {str(efficient).lower()} | {difference:.1e} |", flush=True)
    dist.destroy_process_group()


def main() -> None:
    print("| pytorch-metric-learning | efficient | relative difference of the gradient |\n|---|---|---:|", flush=True)
    for efficient in (False, True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(_process, args=(port, efficient), nprocs=2)


if __name__ == "__main__":
    main()
