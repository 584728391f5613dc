"""The page says what the predictions say, and nothing in a name becomes markup."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cmamil_sdk.explain import ReportRow, write_report
from cmamil_sdk.predict import Prediction

EVIL = '<script>alert("1")</script>&\''


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str | None] = []
        self.classes: list[str | None] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.sources += [values[name] for name in ("src", "href") if name in values]
        if "class" in values:
            self.classes.append(values["class"])

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(path: Path, rows: list[ReportRow], **texts: object) -> Page:
    settings = {"title": "Slides", "introduction": "What was found.", "facts": {"AUC": "0.900"}}
    write_report(path, **(settings | texts), rows=rows)  # type: ignore[arg-type]
    return Page(path.read_text(encoding="utf-8"))


def test_every_slide_has_its_row_and_its_picture(prediction: Prediction, tmp_path: Path) -> None:
    rows = [
        ReportRow(prediction, "benign", "heatmaps/case-1.png"),
        ReportRow(replace(prediction, slide="case-2"), "invasive", "heatmaps/case-2.png"),
        ReportRow(replace(prediction, slide="own"), None, None),
    ]
    page = page_of(tmp_path / "report.html", rows)
    pictures = ["heatmaps/case-1.png", "heatmaps/case-2.png"]
    assert page.sources == [name for name in pictures for _ in ("link", "picture")]
    assert page.tags.count("img") == 2
    # One row of facts, one of headings, three of slides.
    assert page.tags.count("tr") == 5
    assert page.text.count("0.625") == 3
    assert page.text.count("10x 2, 20x 2") == 3
    for expected in ("case-1", "case-2", "own", "0.900", "What was found.", "1.25"):
        assert expected in page.text
    assert "their values are added up where tiles overlap" in page.text
    assert page.text.count("truth invasive; benign 0.62, in_situ 0.25, invasive 0.12") == 1


@pytest.mark.parametrize(("truth", "wrong"), [("benign", 0), (None, 0), ("in_situ", 1)])
def test_only_a_wrong_answer_is_marked(
    prediction: Prediction, tmp_path: Path, truth: str | None, wrong: int
) -> None:
    page = page_of(tmp_path / "report.html", [ReportRow(prediction, truth, None)])
    assert page.classes.count("wrong") == wrong


def test_no_name_becomes_markup(prediction: Prediction, tmp_path: Path) -> None:
    evil = replace(
        prediction, slide=EVIL, label=EVIL, probabilities={EVIL: 0.5, "b": 0.5}, tiles={EVIL: 1}
    )
    rows = [ReportRow(evil, EVIL, f'maps/"><script>{EVIL}.png')]
    path = tmp_path / "report.html"
    page = page_of(path, rows, title=EVIL, introduction=EVIL, facts={EVIL: EVIL})
    assert "script" not in page.tags
    assert "<script" not in path.read_text(encoding="utf-8")
    # As text all of it is there: two titles, the introduction, the fact, and four places per slide
    # in the table (slide, truth, label, tiles), then name, truth and class under the picture.
    assert page.text.count(EVIL) == 2 + 1 + 2 + 4 + 3
    assert page.sources == [rows[0].heatmap] * 2


def test_the_page_needs_nothing_else(prediction: Prediction, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    page_of(path, [ReportRow(prediction, None, "heatmaps/a.png")])
    text = path.read_text(encoding="utf-8")
    assert "http" not in text
    assert text.startswith("<!doctype html>")
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]
