import pytest

from dml.report.__main__ import main


def test_figure4_prints_the_table_and_writes_both(tmp_path, write_run, capsys):
    write_run("a", "nra")
    write_run("b", "lifted")
    main(["figure4", str(tmp_path)])
    assert "| nra | 45.0 | 90.0 | 1 |" in capsys.readouterr().out
    assert (tmp_path / "figure4.png").stat().st_size > 5000
    assert (tmp_path / "table.md").read_text().count("\n") == 4


def test_mistakes_are_one_line(tmp_path, write_run):
    with pytest.raises(SystemExit, match="no finished run"):
        main(["table", str(tmp_path)])
    write_run("a", dimension=64)
    with pytest.raises(SystemExit, match="64 dimensions"):
        main(["figure4", str(tmp_path)])
