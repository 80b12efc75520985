"""The page of a run: whole without network, any name is text, what is left out is said, a browser has no complaint."""

import dataclasses
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dml.report import page
from dml.report.page import render
from dml.report.thumbnails import Thumbnails
from tests.report.pages import NAMES, elements, look_at, made


class Read(HTMLParser):
    """Tags, text and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("gallery", [False, True])
def test_all_sections_and_any_name(gallery):
    text = render(made(gallery=gallery, noise=4))
    read = Read(text)
    assert read.tags.count("script") == 2 and "b" in read.tags  # ours alone
    words = " ".join(read.words)
    for name in NAMES[:3]:
        assert name in words
    assert "\\udcff\\n" in words and "x" * 61 not in words
    for heading in ("Metrics", "Curves", "The worst queries", "confused", "Recall@1 by class", "Labels", "Map"):
        assert heading in words
    assert read.addresses and all(address.startswith("data:image/") for address in read.addresses)
    assert not re.search(r"https?://|@import|url\((?!\$)", text)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    assert len(data["map"]["classes"]) == 60 and len(data["map"]["maps"]) == 1
    assert [name for name, *_ in data["classes"]] and data["pictured"] == 60


def test_further_searches_have_a_table_of_their_own():
    metrics = {"test/recall@1": 0.5, "test/qe/recall@1": 0.625, "test/qe/map": 0.5, "test/int8-6B/recall@1": 0.4375}
    words = " ".join(Read(render(made(metrics=metrics))).words).split()
    at = words.index("search")
    assert words[at : at + 9] == ["search", "recall@1", "map", "qe", "0.6250", "0.5000", "int8-6B", "0.4375", "-"]
    assert "test/qe/recall@1" not in words and "search" not in " ".join(Read(render(made())).words).split()


def test_what_is_left_out_is_said(monkeypatch):
    monkeypatch.setattr(page, "_POINTS", 30)
    monkeypatch.setattr(page, "_PICTURED", 10)
    monkeypatch.setattr(page, "_CLASSES", 2)
    monkeypatch.setattr(page, "Thumbnails", lambda picture: Thumbnails(picture, limit=9000))

    def picture(key, side):
        if key[1] == 0:
            raise ValueError("broken")
        return Image.effect_noise((side, side), 100).convert("RGB")

    words = " ".join(Read(render(made(picture=picture, first_rank=None))).words)
    assert "30 of 60 queries" in words and "(0 have a picture)" in words
    assert "3 better classes were left out" in words and "Of 60 test queries. How many" in words
    assert re.search(r"\d+ pictures were left out", words)


def test_a_page_of_many_images_is_small():
    noise = Image.effect_noise((96, 96), 100).convert("RGB")
    text = render(made(classes=30, images=33, picture=lambda _, side: noise.resize((side, side))))
    assert len(text) < 3_000_000


def test_embeddings_of_one_value_have_a_page_and_those_of_one_coordinate_a_map():
    flat = made()
    assert "Map" in render(dataclasses.replace(flat, embeddings=np.zeros((60, 6), dtype=np.float32)))
    assert "Map" in render(dataclasses.replace(flat, embeddings=np.ones((60, 1), dtype=np.float32)))


@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_has_no_complaint(tmp_path, width):
    file = tmp_path / "report.html"
    file.write_text(render(made(classes=7)), encoding="utf-8")
    assert look_at(file, tmp_path / "page.png", width) == []
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50  # frames, pictures, text: no empty page


def test_pointing_at_the_map_shows_the_picture_and_the_class(tmp_path):
    file, part = tmp_path / "report.html", made(classes=7)
    at = "{clientX: box.left + places[3][0], clientY: box.top + places[3][1]}"
    point = f"const box = canvas.getBoundingClientRect(); canvas.dispatchEvent(new PointerEvent('pointermove', {at}));"
    text = render(part)
    file.write_text(text.replace("buttons[0].click();", f"buttons[0].click(); {point}"), encoding="utf-8")
    found = elements(file, tmp_path)
    assert "<td>class 6</td>" in found  # the table of classes is filled
    tip = re.search(r'<div id="tip"(.*?)</div>', found, re.S)[1]
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])["map"]
    name = data["names"][data["classes"][3]]
    assert "display: block" in tip and f"<span>{html.escape(name, quote=False)}</span>" in tip
    assert "background-position: -120px 0px" in tip  # the fourth square of 40 pixels


def test_a_script_that_fails_is_seen(tmp_path):
    file = tmp_path / "report.html"
    file.write_text(render(made()).replace("buttons[0].click();", "nothing();"), encoding="utf-8")
    assert any("nothing is not defined" in line for line in look_at(file, tmp_path / "page.png"))
