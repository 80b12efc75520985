"""The page of a sweep: its table, intervals, figures and runs; any name is text; a browser has no complaint."""

import os

from dml.report.__main__ import main
from tests.report.pages import NAMES, look_at
from tests.report.test_page import Read


def test_a_sweep_on_one_page(tmp_path, write_run):
    for i, name in enumerate(("nra", NAMES[0], NAMES[2])):
        for seed in range(2):
            folder = write_run(f"{i} & {seed}", name, seed, score=0.5 + 0.1 * i + 0.01 * seed)
            if i == 0:
                (folder / "report.html").write_text("a page")
    main([str(tmp_path), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    read = Read(text)
    words = " ".join(read.words)
    assert "script" not in read.tags and NAMES[0] in words and NAMES[2] in words
    assert "50.5 ± 6.4" in words and "Intervals" in words and "figure4.png" in words
    links = [address for address in read.addresses if not address.startswith("data:image/png;base64,")]
    assert links == ["../0%20%26%200/report.html", "../0%20%26%201/report.html"]
    assert look_at(tmp_path / "out" / "report.html", tmp_path / "page.png") == []


def test_a_page_of_a_run_is_not_written_over(tmp_path, write_run):
    folder = write_run("a", dimension=64)
    (folder / "report.html").write_text("a page")
    main([str(folder)])
    assert (folder / "report.html").read_text() == "a page" and (folder / "table.md").is_file()
    assert os.listdir(folder).count("report.html") == 1
