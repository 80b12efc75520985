import csv
import io
import re
import sys

import pytest

from dml.report.__main__ import main


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"{}", b'{"metrics": {"test/map": null}, "row": %s}'])
def test_a_file_that_is_none_of_ours_is_named(tmp_path, content):
    row = b'{"method": "a", "data": "b", "dimension": 2, "seed": 0}'
    (tmp_path / "metrics.json").write_bytes(content.replace(b"%s", row))
    with pytest.raises(SystemExit, match=r"metrics\.json is not the metrics\.json of a run"):
        main([str(tmp_path)])


def test_prints_the_table_and_writes_all(tmp_path, write_run, capsys):
    write_run("a", "nra")
    write_run("b", "lifted")
    main([str(tmp_path)])
    assert "| nra | 45.0 | 90.0 | 1 |" in capsys.readouterr().out
    assert "| lifted | 45.0 | 90.0 | 1 |" in (tmp_path / "table.md").read_text()
    assert r"lifted & \textbf{45.0} & \textbf{90.0} & 1" in (tmp_path / "table.tex").read_text()
    assert len(list(csv.DictReader((tmp_path / "table.csv").open()))) == 4
    assert (tmp_path / "figure4.png").stat().st_size > 5000
    assert not (tmp_path / "figure3.png").exists()


def test_a_sweep_of_alpha_is_told_apart_and_drawn(tmp_path, write_run, capsys):
    for alpha in (1, 4):
        write_run(str(alpha), loss={"alpha": alpha}, dimension=64)
    write_run("other", "triplet", dimension=64)
    for seed, alpha in enumerate((1, 4)):  # of another loss: nobody's transfer function
        write_run(f"own{alpha}", "own.nra.Loss", dimension=64, seed=seed, loss={"_target_": "own.nra.Loss", "alpha": 2})
    main([str(tmp_path), "--out", str(tmp_path / "report")])
    out = capsys.readouterr().out
    assert "| nra, loss.alpha=1 |" in out and "| nra, loss.alpha=4 |" in out and "| triplet |" in out
    assert "| own.nra.Loss |" in out
    drawn = {path.name for path in (tmp_path / "report").glob("figure*")}
    assert drawn == {"figure3.png", "figure3.pdf", "figure3.svg"} <= set(out.split())


def test_the_alpha_of_a_wrapped_nra_is_swept_by_its_own_key_and_no_other_is(tmp_path, write_run, capsys):
    for alpha in (1, 4):
        inner = {"_target_": "dml.losses.nra.NRALoss", "alpha": alpha}
        write_run(str(alpha), "memory(nra)", dimension=64, loss={"_target_": "dml.losses.memory.M", "loss": inner})
    write_run("plain", dimension=64, loss={"alpha": 4})
    main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "| memory(nra), loss.loss.alpha=4 |" in out and "| nra |" in out
    assert (tmp_path / "figure3.svg").is_file()


def test_other_losses_that_differ_in_an_alpha_are_neither_averaged_nor_drawn(tmp_path, write_run):
    for alpha in (1, 2):
        write_run(str(alpha), "own.Loss", seed=alpha, dimension=64, loss={"_target_": "own.Loss", "alpha": alpha})
    with pytest.raises(SystemExit, match=r"differ in loss\.alpha"):
        main([str(tmp_path)])
    main([str(tmp_path), "--by", "loss.alpha"])
    assert not list(tmp_path.glob("figure3*"))


def test_any_name_has_a_table(tmp_path, write_run, monkeypatch):
    name = "m\udcfcll|$5 to $10\nb"
    write_run("a", data=name)
    write_run("b", "lifted", data="digits")
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    main([str(tmp_path)])
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert r"| m\udcfcll\|$5 to $10\nb recall@1 |" in text
    assert r"m\textbackslash{}udcfcll$|$\$5" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert "udcfcll" in (tmp_path / "table.csv").read_text(encoding="utf-8")


def test_repeated_seeds_are_said(tmp_path, write_run, capsys):
    write_run("a")
    write_run("b")
    main([str(tmp_path)])
    assert "Not counted, as they repeat a seed of another: 1 run." in capsys.readouterr().out


def test_runs_that_are_not_finished_are_said(tmp_path, write_run, capsys):
    write_run("0")
    main([str(tmp_path)])
    assert "not finished" not in capsys.readouterr().out
    (tmp_path / "1" / ".hydra").mkdir(parents=True)
    for name in ("0/config.yaml", "1/config.yaml", "1/.hydra/config.yaml"):
        (tmp_path / name).touch()
    main([str(tmp_path)])
    assert f"Not counted, as they are not finished: 1 run; the first: {tmp_path / '1'}" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path, write_run):
    with pytest.raises(SystemExit, match="no finished run"):
        main([str(tmp_path)])
    write_run("a", dimension=64, optimizer={"lr": 1})
    write_run("b", dimension=64, seed=1, optimizer={"lr": 2})
    with pytest.raises(SystemExit, match=r"differ in optimizer\.lr"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match=r"--by loss\.nosuch is no key"):
        main([str(tmp_path), "--by", "loss.nosuch"])
    assert not list(tmp_path.glob("table.*"))


def test_the_value_that_validation_chooses_is_reported(tmp_path, write_run, capsys):
    def sweep(method, values):
        for i, (lr, validation, test) in enumerate(values):
            metrics = {"val/map": validation, "test/map": test}
            seed, row = i % 2, {"optimizer": {"lr": lr}, "protocol": {"monitor": "val/map"}}
            write_run(f"{method}{i}", method, seed=seed, metrics=metrics, **row)

    sweep(
        "nra", [(0.1, 0.5, 0.9), (0.1, 0.7, 0.9), (0.2, 0.7, 0.4), (0.2, 0.6, 0.6)]
    )  # the worse test, the better mean
    sweep("lifted", [(0.1, 0.8, 0.3), (0.1, 0.8, 0.3), (0.2, 0.6, 0.8), (0.2, 0.6, 0.8)])
    main([str(tmp_path), "--choose", "optimizer.lr"])
    out = capsys.readouterr().out
    assert "nra on digits: optimizer.lr=0.2 has the best val/map of 60.0 (0.1), 65.0 (0.2)" in out
    assert re.search(r"\| nra \| 50\.0 ± 127\.1 \| 2 \|", out) and re.search(r"\| lifted \| 30\.0 ± 0\.0 \| 2 \|", out)
    write_run("more", seed=2, optimizer={"lr": 0.2}, protocol={"monitor": "val/map"})
    with pytest.raises(SystemExit, match=r"--choose optimizer\.lr: nra has other seeds .*0\.2: 3, 0\.1: 2"):
        main([str(tmp_path), "--choose", "optimizer.lr"])
    with pytest.raises(SystemExit, match=r"--choose loss\.nosuch is no key of"):
        main([str(tmp_path), "--choose", "loss.nosuch"])
