"""Nothing that data, folders or classes are called may become markup, HTML or a code for the terminal in a card."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from seresnet_hub.cards.card import Card, Result, card_of, render
from seresnet_hub.cards.markdown import code, plain, prose, shell_block
from seresnet_hub.models.cost import Sizes

HOSTILE = "<img src=x onerror=alert(1)>\n---\n```\n# [a](javascript:1) `b` ``c`` \x1b[31m\u202e&lt; $x$ | __d__ *e*"
RESULT = Result(dataset="fruit", split="test", top1=9.0, top5=9.5, image_size=64, origin="measured", source="train.py")
CARD = Card(
    title="a, trained on fruit", summary="A summary.", architecture="seresnet20_cifar", needs_plugin=True,
    license="mit", sizes=Sizes(parameters=1, multiply_adds=1, activations=1), num_classes=2, results=(RESULT,),
    preprocessing={
        "input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1,
    },
    class_names=("a", "b"), class_counts=((1, 1), (2, 2)), command="train.py", notes=("A note.",),
)  # fmt: skip


def parsed(text: str) -> list[Any]:
    """The tokens of a page, as an independent reader of CommonMark with tables and HTML sees them."""
    parser = (
        pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    )
    tokens: list[Any] = parser.parse(text)
    return [*tokens, *(child for token in tokens for child in token.children or ())]


def assert_no_more_markup(text: str) -> None:
    assert all(character.isprintable() for character in text.replace("\n", ""))
    front = ModelCard(text, ignore_metadata_errors=False).data
    assert front.library_name == "timm"
    body, usual = (parsed(card.split("\n---\n", 1)[1]) for card in (text, render(CARD)))
    kinds, usually = (Counter(token.type for token in tokens) for tokens in (body, usual))
    for kind in (
        "html_inline",
        "html_block",
        "image",
        "heading_open",
        "fence",
        "hr",
        "table_open",
        "tr_open",
        "td_open",
        "s_open",
    ):
        assert kinds[kind] == usually[kind], kind
    links = {token.attrs["href"] for token in body if token.type == "link_open"}
    assert links == {token.attrs["href"] for token in usual if token.type == "link_open"}


def test_hostile_names_add_no_markup_to_a_card() -> None:
    command = f"python scripts/train.py --data {shlex.quote(HOSTILE)}"
    for source in (command, f"other {shlex.quote(HOSTILE)}"):
        result = replace(RESULT, dataset=HOSTILE, split=HOSTILE, source=source, commit="")
        card = replace(
            CARD, title=HOSTILE, summary=f"From {code(HOSTILE)}.", license=HOSTILE, results=(result,), command=command,
            class_names=(HOSTILE, "b"), datasets=(HOSTILE,), notes=(f"Perhaps {plain(HOSTILE)}.",), base_model=HOSTILE,
            architecture=HOSTILE,
        )  # fmt: skip
        assert_no_more_markup(render(card))


def test_hostile_facts_of_a_config_add_no_markup_to_a_card() -> None:
    facts = {
        "title": HOSTILE, "summary": HOSTILE.replace("\n", " "), "license": HOSTILE, "sha256": {}, "results": [],
        "per_class": {"images": [1, 2], "correct": [1, 2]}, "notes": [HOSTILE.replace("[a](javascript:1)", "")],
    }  # fmt: skip
    config = {
        "architecture": HOSTILE, "num_classes": 2, "label_names": [HOSTILE, "b"], "seresnet_hub": facts,
        "pretrained_cfg": {**CARD.preprocessing, "input_size": [3, 32, 32]},
    }  # fmt: skip
    text = render(card_of(config, CARD.sizes, needs_plugin=True))
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert "<img" not in text.split("\n---\n", 1)[1].replace("\\<img", "").replace("`` <img", "").replace(
        "``` <img", ""
    )
    assert not [token for token in parsed(text.split("\n---\n", 1)[1]) if token.type in ("html_inline", "html_block")]


@pytest.mark.parametrize(
    "text",
    ["a", "_a_b_", "a`b", "``", "x <b>", "*", "a\\b", "# a", "- a", "+ a", "&amp;", "[a](b)", "~~a~~", "a_b", "é|ü"],
)
def test_a_name_is_shown_as_it_is(text: str) -> None:
    for marked, kind in ((plain(text), "text"), (code(text), "code_inline")):
        (paragraph,) = (token for token in parsed(marked) if token.type == "inline")
        assert "".join(token.content for token in paragraph.children) == text
        assert {token.type for token in paragraph.children} <= {kind, "text_special"}


def test_a_sentence_keeps_its_own_markup_and_gets_no_html() -> None:
    assert prose("**Assumed:** `a`\n<b>\x07") == "**Assumed:** `a` &lt;b>\\x07"


def test_a_command_cannot_end_its_block() -> None:
    text = shell_block(f"train.py --data {shlex.quote(HOSTILE)} --set a=1")
    assert [token.type for token in parsed(text)] == ["fence"]
    assert text.isprintable() or text.replace("\n", "").isprintable()
