"""A card must say what the facts say, tell published from measured, and be read by the Hub's client."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cards as script
import pytest
import timm
import torch
from huggingface_hub import ModelCard

import seresnet_hub
from seresnet_hub.cards import REPO_ID, Card, Result, card_of, card_of_weights, render
from seresnet_hub.errors import InputError
from seresnet_hub.sizes import Sizes, sizes_of
from seresnet_hub.weights import OWN_WEIGHTS, WEIGHTS, OwnWeights

SIZES = Sizes(parameters=1_234_567, multiply_adds=89_000_000, activations=4_560_000)
MEASURED = Result(
    dataset="fruit", split="test", top1=91.234, top5=99.5, image_size=64, origin="measured",
    source="accelerate launch scripts/train.py", images=500, commit="abc123",
)  # fmt: skip
CARD = Card(
    title="seresnet20_cifar, trained on fruit", summary="A summary.", architecture="seresnet20_cifar",
    needs_plugin=True, license="mit", sizes=SIZES, num_classes=7,
    preprocessing={"input_size": (3, 64, 64), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6),
                   "interpolation": "bicubic", "crop_pct": 0.875},
    results=(MEASURED,), recipe=(("epochs", "3"),), command="accelerate launch scripts/train.py", has_curves=True,
    provenance=(("commit", "abc123"),), notes=("Not for navigation.",),
)  # fmt: skip


def front_matter(text: str) -> object:
    return ModelCard(text, ignore_metadata_errors=False).data


def test_the_hubs_client_reads_what_was_measured() -> None:
    data = front_matter(render(CARD))
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-classification", "mit")
    top1, top5 = data.eval_results
    assert (top1.metric_value, top5.metric_value, top1.dataset_split) == (91.234, 99.5, "test")
    assert top1.metric_args == {"command": "accelerate launch scripts/train.py", "commit": "abc123"}
    assert "measured" in top1.metric_name
    assert top1.source_url is None


def test_the_hubs_client_reads_what_was_published() -> None:
    data = front_matter(render(card_of_weights(WEIGHTS[0], SIZES)))
    assert data.datasets == ["ILSVRC/imagenet-1k"]
    assert [result.metric_value for result in data.eval_results] == [77.74, 93.84]
    assert all("published" in result.metric_name for result in data.eval_results)
    assert all(result.source_url == "https://github.com/open-mmlab/mmpretrain" for result in data.eval_results)


def test_the_page_says_what_the_facts_say() -> None:
    text = render(CARD)
    for expected in (
        "| Parameters (M) | 1.235 |",
        "| Multiply-adds (G) | 0.089 |",
        "| Activations (M) | 4.56 |",
        "| fruit, test | 500 | 64 | 91.23 | 99.50 | *measured* with `accelerate launch scripts/train.py` at commit ",
        "resized (bicubic) short edge to 73, centre crop of 64",
        "mean (0.1000, 0.2000, 0.3000)",
        "![Loss and accuracy over the course of training](curves.png)",
        "> **Not for navigation.**",
    ):
        assert expected in text, expected
    assert "curves.png" not in render(replace(CARD, has_curves=False))
    assert "No accuracy is known" in render(replace(CARD, results=()))
    assert "import seresnet_hub" not in render(replace(CARD, needs_plugin=False))


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a reader who pastes: every Python block is run, on a local copy of the model."""
    from PIL import Image

    model = timm.create_model("seresnet20_cifar", num_classes=7).eval()
    config = seresnet_hub.folder.timm_config(model, pretrained_cfg={"input_size": (3, 64, 64)})
    seresnet_hub.folder.write_model(tmp_path / "model", model.state_dict(), config=config, card=lambda _: "")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 70), (200, 30, 60)).save("picture.jpg")
    text = render(CARD).replace(f"hf-hub:{REPO_ID}", "local-dir:model")
    names = {"loader": [(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))]}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    assert names["scores"].shape == (1, 7)
    assert names["embedding"].shape == (1, 64)
    assert len(names["maps"]) == 4
    shell = re.search(r'python -c "(.*)"', text)
    assert shell is not None
    exec(shell.group(1), {})


def test_a_config_without_the_facts_is_refused() -> None:
    with pytest.raises(InputError, match="lacks what a card says: 'seresnet_hub'"):
        card_of({"architecture": "resnet18"}, SIZES, needs_plugin=False)


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds", "activations"),
    [("resnet50", 25.56, 4.11, 11.11), ("seresnet50", 28.09, 4.11, 11.13), ("resnet18", 11.69, 1.82, 2.48)],
)
def test_sizes_are_those_of_timms_result_tables(
    name: str, parameters: float, multiply_adds: float, activations: float
) -> None:
    """timm's published tables: millions, billions, millions; its counter has small operations among the second."""
    with torch.device("meta"):
        sizes = sizes_of(timm.create_model(name).eval(), (3, 224, 224))
    assert round(sizes.parameters / 1e6, 2) == parameters
    assert sizes.multiply_adds / 1e9 == pytest.approx(multiply_adds, rel=0.006)
    assert round(sizes.activations / 1e6, 2) == activations


def test_the_committed_cards_are_current() -> None:
    result = script.main(["--check", "--directory", str(Path(__file__).parents[1] / "model_cards")])
    assert len(result["cards"]) == len(WEIGHTS) + len(OWN_WEIGHTS)


def test_cards_are_the_same_wherever_the_package_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package lies elsewhere and has no pictures; the page still links to the one in the repository."""
    for weights in OWN_WEIGHTS:
        (tmp_path / weights.name).mkdir()
        shutil.copy(weights.folder / "config.json", tmp_path / weights.name)
    monkeypatch.setattr(OwnWeights, "folder", property(lambda weights: tmp_path / weights.name))
    directory = Path(__file__).parents[1] / "model_cards"
    assert not script.main(["--check", "--directory", str(directory)])["changed"]
    for weights in OWN_WEIGHTS:
        [link] = re.findall(r"\((\S+curves\.png)\)", (directory / f"{weights.name}.md").read_text(encoding="utf-8"))
        assert (directory / link).is_file()


def test_measured_results_reach_the_card(tmp_path: Path) -> None:
    found = {"dataset": "ImageNet-1k", "split": "validation", "top1": 77.7, "top5": 93.8, "image_size": 224,
             "source": "python scripts/validate.py X", "images": 50000, "commit": "def456"}  # fmt: skip
    (tmp_path / "seresnet50.mm_in1k.json").write_text(json.dumps([found]))
    with pytest.raises(InputError, match="stale"):
        script.main(["--check", "--directory", str(tmp_path)])
    script.main(["--directory", str(tmp_path)])
    text = (tmp_path / "seresnet50.mm_in1k.md").read_text()
    assert "| 50,000 | 224 | 77.70 | 93.80 | *measured* with `python scripts/validate.py" in text
    assert "| 77.74 | 93.84 | *published*" in text
    assert script.main(["--check", "--directory", str(tmp_path)])["changed"] == []
    (tmp_path / "seresnet50.mm_in1k.json").write_text('[{"top1": 99.9}]')
    with pytest.raises(InputError, match=r"cannot read the measured results in .*seresnet50.mm_in1k.json"):
        script.main(["--directory", str(tmp_path)])
