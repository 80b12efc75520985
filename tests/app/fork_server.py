"""Forks runs of train.py off a process that has loaded all modules: a start takes a tenth of a second, not eight.

Orders come as lines of JSON. {"folder", "overrides", ...} starts a run and answers with its pid; {"wait": pid} answers
with its exit status, negative for a signal.
"""

import json
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from timm.models import register_model
from torch import nn

from dml.app.errors import as_user_error
from dml.app.run import run_train
from dml.models.convnet import ConvNet
from dml.models.convnet import convnet as create
from tests.app.conftest import train


@register_model
def convnet_dropout(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """A network that needs the random numbers of the step, and running statistics."""
    network = create(pretrained, **kwargs)
    network.features.extend([nn.BatchNorm2d(32), nn.Dropout(0.3)])
    return network


def run(order: dict[str, Any]) -> int:
    """Train, and return the exit status."""
    if order.get("die_at"):
        die_at(*order["die_at"])
    if limit := order.get("max_bytes"):  # of any file
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        train(Path(order["folder"]), "threads=1", *order["overrides"], run=as_user_error(run_train))
    except SystemExit as stop:
        return int(stop.code or 0)
    except CompactHydraException as error:
        print(error)
        return 1
    return 0


def die_at(name: str, count: int) -> None:
    """Be killed in the `count`-th call of os.NAME."""
    original = getattr(os, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(os, name, dying)


def become_processes(count: int) -> None:
    """Fork the other processes of a run of several, and set the environment that torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    rank = next((rank for rank in range(1, count) if os.fork() == 0), 0)
    ranks = {name: str(rank) for name in ("RANK", "LOCAL_RANK", "GROUP_RANK")}
    sizes = {name: str(count) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    os.environ.update({**address, **ranks, **sizes, "TORCHELASTIC_RUN_ID": "tests"})
    rank_zero_only.rank = rank


def main() -> None:
    """Take orders until there are no more."""
    orders = sys.stdin
    print("ready", flush=True)
    for line in orders:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        elif pid := os.fork():
            os.setpgid(pid, pid)  # a group of its own: all its processes can be killed at once
            print(pid, flush=True)
        else:
            os.setpgrp()
            orders.close()
            Path(order["folder"]).mkdir(parents=True, exist_ok=True)
            said = os.open(f"{order['folder']}/said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            status = 1
            try:
                if order.get("processes", 1) > 1:
                    become_processes(order["processes"])
                status = run(order)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)


if __name__ == "__main__":
    main()
