import csv

import pytest

from dml.report.__main__ import main


def test_prints_the_table_and_writes_all(tmp_path, write_run, capsys):
    write_run("a", "nra")
    write_run("b", "lifted")
    main([str(tmp_path)])
    assert "| nra | 45.0 | 90.0 | 1 |" in capsys.readouterr().out
    assert "| lifted | 45.0 | 90.0 | 1 |" in (tmp_path / "table.md").read_text()
    assert "lifted & 45.0 & 90.0 & 1" in (tmp_path / "table.tex").read_text()
    assert len(list(csv.DictReader((tmp_path / "table.csv").open()))) == 4
    assert (tmp_path / "figure4.png").stat().st_size > 5000
    assert not (tmp_path / "figure3.png").exists()


def test_a_sweep_of_alpha_is_told_apart_and_drawn(tmp_path, write_run, capsys):
    for alpha in (1, 4):
        write_run(str(alpha), loss={"alpha": alpha}, dimension=64)
    write_run("other", "triplet", dimension=64)
    main([str(tmp_path), "--out", str(tmp_path / "report")])
    out = capsys.readouterr().out
    assert "| nra, loss.alpha=1 |" in out and "| nra, loss.alpha=4 |" in out and "| triplet |" in out
    assert (tmp_path / "report" / "figure3.png").stat().st_size > 5000
    assert not (tmp_path / "report" / "figure4.png").exists()


def test_repeated_seeds_are_said(tmp_path, write_run, capsys):
    write_run("a")
    write_run("b")
    main([str(tmp_path)])
    assert "1 runs repeat a seed of another and were not counted" in capsys.readouterr().out


def test_runs_that_are_not_finished_are_said(tmp_path, write_run, capsys):
    write_run("0")
    main([str(tmp_path)])
    assert "not finished" not in capsys.readouterr().out
    (tmp_path / "1" / ".hydra").mkdir(parents=True)
    for name in ("0/config.yaml", "1/config.yaml", "1/.hydra/config.yaml"):
        (tmp_path / name).touch()
    main([str(tmp_path)])
    assert f"1 runs are not finished and were not counted; the first: {tmp_path / '1'}" in capsys.readouterr().out


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
