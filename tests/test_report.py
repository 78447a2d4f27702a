"""The pages: what they say, what they never say, and that nothing of a student's runs in them."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from test_results import make_record, of, without_score

from semigen_lib.grading.report import (
    MAX_IMAGES,
    MAX_TEXT,
    RUN_REASONS,
    feedback_page,
    report_page,
    visible_output,
    write_reports,
)

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' onload=x"


def png(side: int = 4) -> str:
    content = io.BytesIO()
    Image.new("L", (side, side)).save(content, "png")
    return base64.b64encode(content.getvalue()).decode()


def notebook(*outputs: object, name: str | None = "train") -> dict:
    metadata = {"nbgrader": {"grade_id": name}} if name else {}
    return {"cells": [{"cell_type": "code", "metadata": metadata, "outputs": [*outputs]}]}


def stream(text: object) -> dict:
    return {"output_type": "stream", "name": "stdout", "text": text}


def display(**data: object) -> dict:
    data = {name.replace("_", "/"): value for name, value in data.items()}
    return {"output_type": "display_data", "data": data, "metadata": {}}


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


# ---- what a notebook showed ----


def test_text_and_images_are_shown() -> None:
    shown = visible_output(
        notebook(stream(["a\n", "b\n"]), display(image_png=png(), text_plain="F"))
    )
    assert shown == [{"cell": "train", "text": "a\nb", "images": [png()]}]
    assert visible_output(notebook(stream("x"), name=None))[0]["cell"] == "cell 1"
    assert visible_output(notebook()) == []


def test_errors_are_shown_without_colours() -> None:
    error = {"output_type": "error", "traceback": ["\x1b[0;31mValueError\x1b[0m: no", "  line 2"]}
    assert visible_output(notebook(error))[0]["text"] == "ValueError: no\n  line 2"


def test_a_progress_bar_is_shown_once() -> None:
    shown = visible_output(notebook(stream("1%|x\r50%|xx\r100%|xxx\ndone\r\nend")))
    assert shown[0]["text"] == "100%|xxx\ndone\nend"


@pytest.mark.fault("intake")
@pytest.mark.parametrize(
    "forged",
    [
        {},
        {"cells": None},
        {"cells": [None, 3, {"outputs": "x"}]},
        notebook(None, 3, [], {}),
        notebook(display(image_png=[3], text_plain={"a": 1})),
        notebook({"output_type": "error", "traceback": {"a": 1}}),
        notebook({"output_type": "display_data", "data": [1]}, stream(None)),
        {"cells": [{"metadata": [], "outputs": [stream("\n")]}]},
    ],
)
def test_a_forged_notebook_shows_nothing(forged) -> None:
    assert visible_output(forged) == []


@pytest.mark.fault("intake")
@pytest.mark.parametrize(
    "image",
    [
        "not base64 !",
        base64.b64encode(b"<svg onload=alert(1)>").decode(),
        base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(),
        png(4001),
    ],
    ids=["text", "svg", "cut", "huge"],
)
def test_only_real_images_are_shown(image) -> None:
    assert visible_output(notebook(display(image_png=image))) == []


@pytest.mark.fault("intake")
def test_html_scripts_and_svg_are_left_out() -> None:
    rich = {"text_html": EVIL, "application_javascript": "alert(1)", "image_svg+xml": "<svg/>"}
    assert visible_output(notebook(display(**rich))) == []


@pytest.mark.fault("intake")
def test_a_flood_is_cut_and_the_unprintable_replaced() -> None:
    # Two million characters: work that grows with their square would take half an hour.
    text = visible_output(notebook(stream("a" * 99 * MAX_TEXT + "end")))[0]["text"]
    assert len(text) < MAX_TEXT + 20 and text.endswith("aend")
    images = visible_output(notebook(*[display(image_png=png())] * 99))[0]["images"]
    assert len(images) == MAX_IMAGES
    text = visible_output(notebook(stream("a\ud800\x00\u202eb")))[0]["text"]
    assert text == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b"


# ---- pages ----


def test_a_student_reads_points_messages_and_output() -> None:
    text = feedback_page(
        make_record(output=[{"cell": "train", "text": "x < 1", "images": [png()]}])
    )
    page = Page(text)
    for part in ("A3: GAN losses", "ada", "3 of 5 points", "2: expected 1, got 2", "x < 1"):
        assert part.replace("2: exp", "two: exp") in page.text
    (image,) = page.all("img")
    assert image["alt"] == "Figure 1 that train showed" and image["src"].endswith(png())


def test_what_went_wrong_is_said_in_a_sentence() -> None:
    refused = make_record(status="refused", reason="not_json", detail="line 3", score=0.0, tasks=[])
    assert "The notebook is damaged: it is no strict JSON (line 3)" in feedback_page(refused)
    for reason, sentence in RUN_REASONS.items():
        assert sentence[5:] in feedback_page(make_record(reason=reason))
    changed = make_record(problems=[["locked_changed", "setup"]], flags=["copied_weights"])
    assert "setup" in feedback_page(changed) and "do not depend on the seed" in feedback_page(
        changed
    )


def test_a_student_does_not_read_of_our_faults_or_of_others() -> None:
    page = feedback_page(without_score("ada"))
    assert "KeyError" not in page and "not graded yet" in page and "on our side" in page
    copied = {"submission": ["x"], "answers": [], "weights": []}
    pair = of(make_record(fingerprints=copied), make_record("bob", fingerprints=copied))
    assert "bob" not in feedback_page(pair["ada"])
    assert "the same" not in feedback_page(pair["ada"]).lower()
    assert Page(report_page(pair)).text.count("same submission") == 3, "both rows and the legend"


def test_the_instructor_sees_the_class() -> None:
    records = of(
        make_record("ada", score=5.0),
        make_record("bob", flags=["unsandboxed"]),
        without_score("carl"),
        make_record("dora", status="refused", reason="not_json", score=0.0, tasks=[]),
    )
    page = Page(report_page(records))
    assert "UNSANDBOXED" in page.text and "KeyError: 'x'" in page.text
    assert "53 %" in page.text and "60 %" in page.text, "mean and median of 100, 60 and 0"
    links = [attributes["href"] for attributes in page.all("a")]
    assert links == [f"feedback/{name}.html" for name in ("carl", "dora", "bob", "ada")]


def test_an_empty_class_has_a_page() -> None:
    assert "No submissions" in report_page({})


@pytest.mark.fault("intake")
def test_nothing_of_a_student_becomes_html() -> None:
    record = make_record(
        EVIL,
        detail=EVIL,
        reason="other_notebook",
        problems=[["locked_changed", EVIL]],
        tasks=[{"grade_id": EVIL, "points": 5.0, "score": 0.0, "message": EVIL}],
        output=[{"cell": EVIL, "text": EVIL, "images": [png()]}],
    )
    for text in (feedback_page(record), report_page(of(record))):
        page = Page(text)
        assert not [tag for tag, attributes in page.tags for a in attributes if a.startswith("on")]
        assert len(page.all("script")) == text.count("<script>") <= 1
        assert all(image["src"].startswith("data:image/png") for image in page.all("img"))
        assert EVIL.partition("<img")[2] in page.text.replace("\n", ""), "shown as it was written"


@pytest.mark.parametrize("make", [feedback_page, lambda record: report_page(of(record))])
def test_a_page_needs_nothing_and_can_be_heard(make) -> None:
    text = make(make_record(output=[{"cell": "c", "text": "", "images": [png()]}]))
    page = Page(text)
    assert not re.search(r"https?://|url\(|@import|<link", text), "nothing from elsewhere"
    policy = page.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'") and "unsafe-eval" not in policy
    assert (
        page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == len(page.all("main")) == 1
    )
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert all("scope" in head for head in page.all("th"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["aria-label"] for svg in page.all("svg"))
    assert "prefers-color-scheme: dark" in text


def test_reports_are_files_named_safely(tmp_path) -> None:
    write_reports(tmp_path, of(make_record("../x"), make_record("ada")))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("feedback", "grades.csv", "report.html"),
    ]
    names = {path.name for path in (tmp_path / "feedback").iterdir()}
    assert "ada.html" in names and len(names) == 2
    links = {a["href"] for a in Page((tmp_path / "report.html").read_text()).all("a")}
    assert links == {f"feedback/{name}" for name in names}
