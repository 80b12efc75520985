"""What the benchmarks share: medians of cases that take turns, seconds of a call, memory of a process of its own."""

import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def by_turns(cases: dict[str, Callable[[], Any]], rounds: int, repeats: int = 1) -> dict[str, Any]:
    """The median of the numbers (or arrays) that each case returns, over rounds of turns after one to warm up."""
    found: dict[str, list[Any]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            values = [case() for _ in range(repeats)]
            if turn:
                found[name] += values
    return {name: np.median(np.array(values), axis=0) for name, values in found.items()}


def finish(device: str) -> None:
    """Wait until a GPU has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def machine(device: str) -> str:
    """What a table is of: the card or the processor, threads and PyTorch."""
    name = platform.processor() or platform.machine() if device == "cpu" else torch.cuda.get_device_name(device)
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def timed(
    case: Callable[..., Any], *given: Any, device: str, clock: Callable[[], float] = time.perf_counter
) -> Callable[[], float]:
    """The case, returning the seconds it took by the clock."""

    def seconds() -> float:
        finish(device)
        start = clock()
        case(*given)
        finish(device)
        return clock() - start

    return seconds


def most_memory(device: str, forget: bool = False) -> float:
    """Most memory [MB] that the device, or this process, has held since the last call that forgot (Linux)."""
    if device != "cpu":
        if forget:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    return float(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def extra_memory(case: Callable[..., Any], large: tuple[Any, ...], small: tuple[Any, ...], device: str) -> float:
    """Peak [MB] of a call over what was held before it, for a process of its own; a small one warms libraries up."""
    case(*small)
    before = most_memory(device, forget=True)
    case(*large)
    return most_memory(device) - before


def in_process(module: str, *arguments: object) -> str:
    """The last number that `python -m module arguments` prints, without its digits, or "failed"."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{float(done.stdout.split()[-1]):.0f}" if done.returncode == 0 else "failed"
