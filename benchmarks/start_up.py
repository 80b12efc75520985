"""Seconds from the command to the help, and to the end of the first step on the digits.

`python -m benchmarks.start_up [--rounds 3]`
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start_up(rounds: int) -> None:
    """From the command to the help, and to the checkpoint that follows the first step, in processes of their own."""
    helped, stepped = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        helped.append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "train.py",
                "experiment=digits",
                "logger=csv",
                "checkpoint_minutes=1e-9",
                f"hydra.run.dir={folder}",
            ]
            start = time.perf_counter()
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
            while not list(Path(folder).glob("checkpoints/last*.ckpt")) and process.poll() is None:
                time.sleep(0.01)
            stepped.append(time.perf_counter() - start)
            process.kill()
            process.wait()
    print(f"\n| start-up | s |\n|---|---:|\n| train.py --help | {statistics.median(helped):.1f} |")
    print(f"| train.py to the end of its first step | {statistics.median(stepped):.1f} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    start_up(parser.parse_args().rounds)


if __name__ == "__main__":
    main()
