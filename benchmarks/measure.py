"""What the benchmarks share: medians of cases that take turns, and the peak memory of a process of its own."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def by_turns(cases: dict[str, Callable[[], Any]], rounds: int, repeats: int = 1) -> dict[str, float]:
    """Median seconds of each case over rounds in which all take turns, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            seconds = [_timed(case) for _ in range(repeats)]
            if turn:
                times[name] += seconds
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _timed(case: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    case()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def extra_memory(case: Callable[[], Any], warm_up: Callable[[], Any], device: str) -> float:
    """Peak [MB] of a call over what was held before it, for a process of its own; libraries allocate when warmed up."""
    warm_up()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten (Linux)
    before = _peak()
    case()
    return _peak() - before


def _peak() -> float:
    """Largest resident memory [MB] of this process since its last reset."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def in_process(module: str, *arguments: object) -> str:
    """The last word that `python -m module arguments` prints, or "failed"."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split()[-1] if done.returncode == 0 else "failed"
