"""The benchmark of training steps, which stands on the insides of the package, still runs."""

import sys

from benchmarks import training


def test_training_prints_a_rate_for_each_case(monkeypatch, capsys):
    small = ["--networks", "convnet", "--precisions", "32", "--size", "16", "--rounds", "1", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmarks.training", *small, "--processor-time"])
    training.main()
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ours")]
    assert [name.strip() for name, *_ in lines] == [
        "ours, nra",
        "ours, hard triplet",
        "ours, nra, engine.reuse_memory=false",
    ]
    assert all(float(rate) > 0 for _, rate, _ in lines)
