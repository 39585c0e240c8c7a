"""A page must hold all it shows, run nothing, ask for nothing, and stay small however large the data set is."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import WriteSplit, encode
from image_records import records_of
from PIL import Image

from seresnet_hub.data.open_split import open_split
from seresnet_hub.evaluation.image_records import ImageRecords
from seresnet_hub.evaluation.metrics import metrics_of
from seresnet_hub.evaluation.report_page import Measured, _percent, page_of

VOID = {"meta", "img", "br", "link", "input", "hr"}
STEP = 8  # of red, from one picture to the next: JPEG changes it by less


class Page(HTMLParser):
    """What a page holds: its elements, texts and addresses; every element must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alternatives: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]
        self.alternatives += [value or "" for name, value in attributes if name == "alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Sequence[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def reds(self) -> list[int]:
        """Which of `coloured` pictures it shows, in order."""
        files = [base64.b64decode(one.partition(",")[2]) for one in self.addresses if one.startswith("data:image/jpeg")]
        return [round(Image.open(io.BytesIO(file)).getpixel((5, 5))[0] / STEP) for file in files]  # type: ignore[index]


def coloured(number: int) -> bytes:
    return encode(Image.new("RGB", (12, 8), (STEP * number, 60, 60)))


def page(records: ImageRecords, split: object, names: Sequence[str], **facts: str) -> tuple[Page, str]:
    labelled = records.labelled()
    confusion = np.zeros((len(names),) * 2, np.int64)
    np.add.at(confusion, (labelled.labels, labelled.classes[:, 0]), 1)
    measured = Measured(records=records, metrics=metrics_of(records), split=split, title="m on d", facts=facts)  # type: ignore[arg-type]
    text = page_of(measured, confusion, names)
    return Page(text), text


@pytest.fixture
def split(write_split: WriteSplit) -> object:
    return open_split(str(write_split([[20, 10]], images=[coloured(row) for row in range(30)], classes=3)), "train")


def answers(labels: Sequence[int], predicted: Sequence[int], sure: Sequence[float]) -> ImageRecords:
    return records_of(np.eye(3)[list(predicted)] * np.array(sure)[:, None], np.array(labels))


def test_it_shows_the_surest_mistakes_and_says_what_they_are(split: object) -> None:
    labels = [row % 3 for row in range(30)]
    predicted, sure = list(labels), [5.0] * 30
    for row, wrong, strength in ((4, 0, 3.0), (7, 0, 4.0), (25, 2, 6.0), (9, 1, 2.0)):
        predicted[row], sure[row] = wrong, strength
    records, names = answers(labels, predicted, sure), ["cat", "dog", "emu"]
    found, text = page(records, split, names, model="m.x", sha256="ab" * 32)
    pairs, sheets = [7, 4, 9, 25], [25, 7, 4, 9]  # dog for cat, cat for dog, dog for emu; the worst class is dog
    assert sorted(found.reds[:4]) == sorted(pairs)
    assert found.reds[:2] == [7, 4]
    assert found.reds[4:] == sheets
    score = 100 * np.exp(6) / (np.exp(6) + 2)
    assert f"emu {score:.1f} % dog {100 / (np.exp(6) + 2):.1f} %" in found.text
    assert "dog 3 of 10 wrong" in found.text
    assert "row 25: dog, taken for emu" in found.alternatives
    assert "The best answer is right for 26 of 30 images" in found.text
    assert "between 70.3 and 94.7 %" in found.text  # Wilson's interval of 26 of 30
    assert "ab" * 32 in found.text
    assert (
        text == page(answers(labels, predicted, sure), split, ["cat", "dog", "emu"], model="m.x", sha256="ab" * 32)[1]
    )


def test_it_runs_nothing_and_asks_for_nothing(split: object) -> None:
    names = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "a\u202eb\n\x1b[31m" + "c" * 500]
    labels = [row % 3 for row in range(30)]
    records = answers(labels, [(row + row // 10) % 3 for row in range(30)], [2.0] * 30)
    found, text = page(records, split, names, data="</dd><script>alert(3)</script>")
    assert "script" not in found.tags
    assert all(one.startswith(("data:image/jpeg;base64,", "#")) for one in found.addresses)
    assert names[0] in found.text
    assert names[1] in found.text
    assert "a\\u202eb \\x1b[31mccc" in found.text
    text = text.replace("http://www.w3.org/", "")  # the names of SVG's namespaces
    assert not any(sign in text for sign in ("\u202e", "\x1b", "c" * 200, "http://", "https://", "@import", "url(http"))


def test_all_right_shows_no_mistakes(split: object) -> None:
    labels = [row % 3 for row in range(30)]
    found, _ = page(answers(labels, labels, [4.0] * 30), split, ["cat", "dog", "emu"])
    assert found.reds == []
    assert "surest" not in found.text
    assert "100.00 %" in found.text
    assert "No temperature makes the scores of these images best" in found.text


def test_damaged_images_are_listed(write_split: WriteSplit) -> None:
    images = [coloured(row) for row in range(12)]
    images[3], images[7] = b"<b>none", images[7][:60]
    split = open_split(str(write_split([[12]], images=images, classes=3)), "train")
    read = np.array([row for row in range(12) if row not in (3, 7)])
    some = answers([row % 3 for row in read], [(row + row // 11) % 3 for row in read], [1.0] * 10)
    records = ImageRecords(read, some.labels, some.classes, some.scores, some.losses, some.logits, some.logit_rows)
    found, _ = page(records, split, ["cat", "dog", "emu"])
    assert "2 more could not be read" in found.text
    assert "(3.png) : not an image of a kind that is read" in found.text.replace("):", ") :")
    assert "(7.png)" in found.text


def test_a_large_page_is_bounded(write_split: WriteSplit) -> None:
    """1,100 classes of one image each, of which most are mistakes, and pictures that JPEG can hardly make smaller."""
    random_numbers = np.random.default_rng(0)
    noise = [
        encode(Image.fromarray(random_numbers.integers(0, 256, (144, 144, 3), np.uint8)), "JPEG") for _ in range(4)
    ]
    split = open_split(str(write_split([[550, 550]], images=noise * 275, classes=3)), "train")
    logits = random_numbers.normal(size=(1100, 1100)).astype(np.float32)
    found, text = page(records_of(logits, np.arange(1100)), split, [f"kind {k}, or another name" for k in range(1100)])
    assert len(text) < 6_000_000
    assert found.tags.count("img") <= 20 * 8 + 10 * 4
    assert "Of 1,100 classes, the 1,000 worst are here" in found.text
    assert "the 20 worst are here" in found.text
    assert found.tags.count("svg") == 2


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0.0"), (1.0, "100.0"), (0.99999, "99.9"), (0.00001, "<0.1"), (0.5, "50.0"), (None, "–")]
)
def test_what_is_not_all_is_not_called_all(share: float | None, text: str) -> None:
    assert _percent(share) == text
