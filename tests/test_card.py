"""A card must say what the facts say, tell published from measured, and be read by the Hub's client."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cards as script
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from references import networks
from warm_python import run_python

import seresnet_hub
from seresnet_hub.cards.card import Card, Result, card_of, card_of_weights, render
from seresnet_hub.cards.markdown import shell_block
from seresnet_hub.cards.snippets import on_the_hub
from seresnet_hub.conversion.convert import convert
from seresnet_hub.errors import InputError
from seresnet_hub.files import model_folder
from seresnet_hub.models import pretrained
from seresnet_hub.models.cost import Sizes, sizes_of
from seresnet_hub.models.published_weights import OWN_WEIGHTS, WEIGHTS, OwnWeights
from seresnet_hub.recipes.recipe import Recipe, get_recipe

pytestmark = pytest.mark.usefixtures("quick_weights")
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
        "| fruit, test | 500 | 64 | 91.23 | 99.50 | *measured* by the training command below at commit `abc",
        "resized (bicubic) short edge to 73, centre crop of 64",
        "mean (0.1000, 0.2000, 0.3000)",
        "![Loss and accuracy over the course of training](curves.png)",
        "> **Not for navigation.**",
    ):
        assert expected in text, expected
    assert "*measured* with `accelerate launch scripts/train.py` at commit `abc" in render(
        replace(CARD, command="other")
    )
    assert "licence is known" not in text
    assert "curves.png" not in render(replace(CARD, has_curves=False))
    assert "No accuracy is known" in render(replace(CARD, results=()))
    assert "import seresnet_hub" not in render(replace(CARD, needs_plugin=False))


def write_model(
    directory: Path, architecture: str, *, names: list[str] | None, size: int, num_classes: int = 7
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=num_classes).eval()
    config = model_folder.timm_config(model, pretrained_cfg={"input_size": (3, size, size)}, label_names=names)
    config["model_args"] = {}  # transformers gives the number of classes itself
    model_folder.write_model(directory, model.state_dict(), config=config, card=lambda _: "")


def run_snippets(text: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run every Python block of a card in turn, in one namespace, in `directory` beside a picture."""
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(directory)
    Image.new("RGB", (80, 70), (200, 30, 60)).save("picture.jpg")
    names: dict[str, Any] = {}
    for block in blocks:
        if "transformers" in block and importlib.util.find_spec("transformers") is None:
            continue
        exec(block, names)
    return {**names, "blocks": blocks}


LETTERS = list("abcdefg")


@pytest.mark.parametrize("names", [LETTERS, None], ids=["named", "numbered"])
@pytest.mark.parametrize(("architecture", "size"), [("seresnet20_cifar", 64), ("seresnet18", 64)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers")
def test_the_snippets_run(
    architecture: str, size: int, names: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Protects a reader who pastes: every Python block of a folder's card is run in that folder, and names classes."""
    ours = architecture in seresnet_hub.list_models()
    write_model(tmp_path, architecture, names=names, size=size)
    card = replace(CARD, architecture=architecture, needs_plugin=ours, class_names=tuple(names or ()))
    found = run_snippets(render(card), tmp_path, monkeypatch)
    assert len(found["blocks"]) == 5
    assert found["scores"].shape == (7,)
    assert found["embedding"].ndim == 2
    best = int(found["scores"].argmax())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{names[best] if names else f'class {best}'}: {found['scores'].max():.1%}"
    assert len([line for line in lines if line.endswith("%")]) == 3
    if importlib.util.find_spec("transformers") and names:
        assert f"'label': '{names[best]}'" in lines[3]


def test_timm_alone_runs_the_snippets_of_its_architectures(tmp_path: Path) -> None:
    write_model(tmp_path, "seresnet18", names=LETTERS, size=32)
    Image.new("RGB", (80, 70), (200, 30, 60)).save(tmp_path / "picture.jpg")
    text = render(replace(CARD, architecture="seresnet18", needs_plugin=False, class_names=tuple(LETTERS)))
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "transformers" not in block]
    code = "\n".join([*blocks, "import sys; assert 'seresnet_hub' not in sys.modules"])
    done = run_python([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[a-g]: \d+\.\d%", done.stdout.splitlines()[0])


@pytest.mark.slow
def test_an_architecture_of_ours_is_imported_first(tmp_path: Path) -> None:
    """Protects from transformers' "please upgrade timm": in a new process, its block works alone."""
    pytest.importorskip("transformers")
    write_model(tmp_path, "seresnet20_cifar", names=LETTERS, size=32)
    Image.new("RGB", (80, 70), (200, 30, 60)).save(tmp_path / "picture.jpg")
    blocks = re.findall(r"```python\n(.*?)```", render(replace(CARD, class_names=tuple(LETTERS))), re.DOTALL)
    assert "import seresnet_hub" in blocks[0]
    done = subprocess.run([sys.executable, "-c", blocks[1]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_snippets_of_a_model_without_classes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, "seresnet18", names=None, size=64, num_classes=0)
    text = render(replace(CARD, architecture="seresnet18", needs_plugin=False, num_classes=0, results=()))
    assert "softmax" not in text
    assert "transformers" not in text
    assert len(run_snippets(text, tmp_path, monkeypatch)["blocks"]) == 4


def test_the_snippets_of_a_model_that_takes_no_pictures_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of one channel becomes a model whose card must not speak of RGB, nor of transformers."""
    original = networks.randomise(timm.create_model("seresnet18", num_classes=7, in_chans=1))
    torch.save(original.state_dict(), tmp_path / "grey.pth")
    convert(tmp_path / "grey.pth", tmp_path / "grey")
    text = (tmp_path / "grey" / "README.md").read_text(encoding="utf-8")
    assert "RGB" not in text
    assert "transformers" not in text
    found = run_snippets(text, tmp_path / "grey", monkeypatch)
    assert found["image"].shape[1] == 1
    torch.testing.assert_close(found["scores"], original.eval()(found["image"])[0].softmax(-1))


def test_fine_tuning_makes_a_new_classifier() -> None:
    """timm keeps the classifier where the number of classes stays, so the snippet must not name the card's own."""
    for num_classes in (7, 10, 12):
        (asked,) = re.findall(r"num_classes=(\d+)\)\.train", render(replace(CARD, num_classes=num_classes)))
        assert int(asked) not in (num_classes, 0)


@pytest.mark.parametrize("weights", OWN_WEIGHTS, ids=lambda weights: weights.name)
def test_the_snippets_of_the_packaged_weights_run(
    weights: OwnWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (Path(__file__).parents[1] / "model_cards" / f"{weights.name}.md").read_text(encoding="utf-8")
    found = run_snippets(card, tmp_path, monkeypatch)
    assert f'name = "{weights.name}"\n' in found["blocks"][0]
    reference = timm.create_model(f"local-dir:{weights.folder}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(found["scores"], reference(found["image"])[0].softmax(-1))


def test_the_snippets_of_published_weights_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The names are the ones that timm has after the import; random tensors stand for the download."""
    weights, *others = WEIGHTS
    write_model(tmp_path / "model", weights.architecture, names=None, size=32, num_classes=1000)
    monkeypatch.setattr(pretrained, "fetch", lambda _: tmp_path / "model" / "model.safetensors")
    card = render(card_of_weights(weights, SIZES))
    use = card[card.index("## Use") : card.index("## Preprocessing")]
    for other in others:
        assert use.replace(weights.name, other.name).replace(weights.url, other.url) in render(
            card_of_weights(other, SIZES)
        )
    found = run_snippets(card, tmp_path, monkeypatch)
    assert f'name = "{weights.name}"\n' in found["blocks"][0]
    best = timm.data.ImageNetInfo().label_descriptions()[int(found["scores"].argmax())]
    assert capsys.readouterr().out.startswith(f"{best}: ")


def test_pushing_puts_the_repository_in_the_place_of_the_folder() -> None:
    text = render(CARD)
    pushed = on_the_hub(text, "someone/model")
    assert "local-dir:." not in pushed
    assert '"."' not in pushed
    assert 'name = "hf-hub:someone/model"\n' in pushed
    assert 'source = "someone/model"\n' in pushed
    assert "in the folder of this file" not in pushed
    assert "`hf download someone/model --local-dir model`" in pushed
    assert on_the_hub(pushed, "another/one") == pushed


def test_code_is_no_wider_than_a_page() -> None:
    text = on_the_hub(render(replace(CARD, class_names=tuple(LETTERS))), "somebody/a-model-with-quite-a-long-name")
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert max(map(len, code.splitlines())) <= 80


def test_tags_say_what_loads_the_model() -> None:
    timms = replace(CARD, architecture="seresnet18", needs_plugin=False)
    assert {"timm", "transformers"} <= set(front_matter(render(timms)).tags)
    assert "seresnet_hub" not in front_matter(render(timms)).tags
    assert "transformers" not in front_matter(render(CARD)).tags
    assert "seresnet_hub" in front_matter(render(CARD)).tags


@pytest.mark.parametrize(("num_classes", "has_top5"), [(5, False), (6, True)])
def test_five_classes_have_no_top5_accuracy(num_classes: int, has_top5: bool) -> None:
    text = render(replace(CARD, num_classes=num_classes))
    assert ("99.5" in text, "op-5" in text) == (has_top5, has_top5)
    assert "| fruit, test | 500 | 64 | 91.23 |" in text


def test_a_licence_that_nobody_knows_is_none() -> None:
    text = render(replace(CARD, license=""))
    assert front_matter(text).license is None
    assert "| Licence | none known |" in text
    assert "> **No licence is known for these weights" in text


def test_classes_have_names_and_accuracies() -> None:
    names, counts = ("a|b", "*c*", "d", "e"), ((4, 3), (2, 2), (0, 0), (494, 0))
    text = render(replace(CARD, num_classes=4, class_names=names, class_counts=counts))
    assert "Top-1 accuracy of each class on fruit, test:" in text
    for row in (r"| a\|b | 4 | 75.00 |", r"| \*c\* | 2 | 100.00 |", "| d | 0 | not measured |", "| e | 494 | 0.00 |"):
        assert row in text, row
    assert "\n\na, \\_b_c.\n\n" in render(replace(CARD, num_classes=2, class_names=("a", "_b_c")))


def test_of_many_classes_the_extremes_are_listed() -> None:
    counts = tuple((200, number) for number in range(101))
    text = render(replace(CARD, num_classes=101, class_names=tuple(f"c{k}" for k in range(101)), class_counts=counts))
    rows = re.findall(r"^\| c(\d+) \| 200 \|", text, re.MULTILINE)
    assert [int(row) for row in rows] == [*range(10), *range(100, 90, -1)]
    assert "`config.json` has all of them" in text


def config_of(recipe: Recipe) -> dict[str, Any]:
    return {
        "architecture": "resnet18", "num_classes": 7, "pretrained_cfg": CARD.preprocessing,
        "seresnet_hub": {"title": "t", "summary": "s", "sha256": {},
                         "recipe": {name: str(value) for name, value in asdict(recipe).items()}},
    }  # fmt: skip


def test_only_recipe_fields_that_matter_are_listed() -> None:
    recipe = replace(get_recipe("cifar10_paper"), clip_grad=2.5, workers=7, keep_states=9)
    rows = dict(card_of(config_of(recipe), SIZES, needs_plugin=False).recipe)
    assert rows == {
        "recipe": "cifar10_paper", "epochs": "164", "batch_size": "128", "optimizer": "momentum",
        "learning_rate": "0.1", "momentum": "0.9", "weight_decay": "0.0001", "schedule": "step",
        "decay_epochs": "(82, 123)", "decay_rate": "0.1", "clip_grad": "2.5", "crop": "pad", "crop_padding": "4",
        "input_size": "32", "seed": "0",
    }  # fmt: skip
    rows = dict(card_of(config_of(get_recipe("rsb_a2")), SIZES, needs_plugin=False).recipe)
    assert (rows["scale"], rows["target_threshold"], "decay_rate" in rows) == ("(0.08, 1.0)", "0.2", False)


def test_a_long_command_is_wrapped_and_stays_the_same_command() -> None:
    command = f"accelerate launch scripts/train.py --data 'my pets' {'--set learning_rate=0.1 ' * 9}--set {'x' * 120}=1"
    block = shell_block(command)
    lines = block.splitlines()
    assert (lines[0], lines[-1]) == ("```bash", "```")
    assert max(map(len, lines[1:-2])) <= 80
    assert all(line.endswith(" \\") for line in lines[1:-2])
    shell = ["bash", "-c", "printf '%s\\n' " + "\n".join(lines[1:-1])]
    said = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == shlex.split(command)


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
