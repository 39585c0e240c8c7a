"""What is frozen must stay, what is scaled must be scaled, what is held out must not be trained on, and a person's own
images must become a folder that can be pushed, by one command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import WriteSplit, encode, numbered_picture, numbers_in
from hub_server import WRITE_TOKEN, HubServer
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.torch import load_file

import seresnet_hub
from seresnet_hub.data import held_out
from seresnet_hub.data.loader import Loader, evaluation_spec
from seresnet_hub.data.split import Split
from seresnet_hub.data.transforms import training_transform
from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import FACTS_KEY, timm_config, write_model
from seresnet_hub.models.load import origin_of
from seresnet_hub.publishing.push import push
from seresnet_hub.recipes.recipe import Recipe, get_recipe
from seresnet_hub.training import train as training
from seresnet_hub.training.initial_model import eval_frozen_parts, initial_model
from seresnet_hub.training.optimizer_and_schedule import parameter_groups, schedule_of

# The client's own business with its transport's newest version.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SMALL = replace(get_recipe("digits"), epochs=1, batch_size=10, input_size=8, shuffle_window=20, workers=0)
CARD = "---\nlicense: mit\nlibrary_name: timm\npipeline_tag: image-classification\n---\n# A model\n"


def write_base(directory: Path, *, license: str = "mit") -> Path:
    """A CIFAR network of 10 classes whose statistics are not those of a new one."""
    torch.manual_seed(5)
    model = timm.create_model("seresnet20_cifar", num_classes=10, zero_init_last=False)
    for name, tensor in model.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    config = {**timm_config(model, pretrained_cfg={"license": ""}), FACTS_KEY: {"license": license}}
    write_model(directory, model.state_dict(), config=config, card=lambda _: CARD)
    return directory


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of images without splits: 20 reddish cats, 10 bluish dogs, one grey emu."""
    draws = np.random.default_rng(0)
    for name, count, colour in (("cat", 20, (200, 30, 30)), ("dog", 10, (30, 30, 200)), ("emu", 1, (90, 90, 90))):
        (tmp_path / "my pets" / name).mkdir(parents=True)
        for k in range(count):
            pixels = np.clip(np.array(colour) + draws.integers(-25, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
            (tmp_path / "my pets" / name / f"{k}.jpg").write_bytes(encode(Image.fromarray(pixels), "JPEG"))
    return tmp_path / "my pets"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
        yield server


def steps_of(monkeypatch: pytest.MonkeyPatch, optimizer: type[torch.optim.Optimizer]) -> list[list[dict[str, Any]]]:
    """Return a list that gets the parameter groups, without their parameters, of each step to come."""
    found: list[list[dict[str, Any]]] = []
    step = optimizer.step

    def record(self: torch.optim.Optimizer, *arguments: object) -> object:
        found.append([{**group, "params": sum(p.numel() for p in group["params"])} for group in self.param_groups])
        return step(self, *arguments)

    monkeypatch.setattr(optimizer, "step", record)
    return found


def refused(message: str, recipe: Recipe, **arguments: Any) -> None:
    with pytest.raises(InputError, match=message):
        training.train(recipe, **arguments)


# --- frozen parts -----------------------------------------------------------------------------------------------------


def test_frozen_parts_keep_weights_and_statistics(tmp_path: Path, numbers: str, base: Path) -> None:
    recipe = replace(SMALL, weights=f"local-dir:{base}", freeze="layer1", weight_decay=0.1, ema_decay=0.5)
    training.train(recipe, data=numbers, output=tmp_path / "run")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.split(".")[0] in ("conv1", "bn1", "layer1")}


@pytest.mark.parametrize(
    ("freeze", "learning"),
    [("stem", {"layer1", "layer2", "layer3", "fc"}), ("layer2", {"layer3", "fc"}), ("backbone", {"fc"})],
)
def test_what_is_frozen_is_counted_from_the_image(base: Path, freeze: Any, learning: set[str]) -> None:
    model = initial_model(replace(SMALL, weights=f"local-dir:{base}", freeze=freeze), 10).train()
    eval_frozen_parts(model)
    assert {name.split(".")[0] for name, tensor in model.named_parameters() if tensor.requires_grad} == learning
    assert {name.split(".")[0] for name, part in model.named_modules() if part.training and name} == learning
    groups = parameter_groups(model, SMALL)
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


def test_frozen_norms_compute_with_their_statistics(base: Path) -> None:
    """With the backbone frozen, features in training are those in evaluation, whatever else is in the batch."""
    recipe = replace(SMALL, weights=f"local-dir:{base}", freeze="backbone", drop_path=0.5)
    model = initial_model(recipe, 10).train()
    eval_frozen_parts(model)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    reference = timm.create_model(f"local-dir:{base}", pretrained=True).eval()
    torch.testing.assert_close(model.forward_features(images), reference.forward_features(images))
    assert model.fc.training


def test_a_part_that_is_not_there_cannot_be_frozen(tmp_path: Path, numbers: str, base: Path) -> None:
    recipe = replace(SMALL, weights=f"local-dir:{base}", freeze="layer4")
    message = "freeze=layer4: seresnet20_cifar has no such part, it is made of conv1, bn1, layer1, layer2, layer3, fc"
    refused(message, recipe, data=numbers, output=tmp_path / "run")


# --- the optimiser ----------------------------------------------------------------------------------------------------


def test_the_backbone_has_a_rate_of_its_own(
    tmp_path: Path, numbers: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one step of plain descent the backbone has moved a quarter of its way, the classifier all of it."""
    recipe = replace(SMALL, weights=f"local-dir:{base}", optimizer="momentum", momentum=0.0, learning_rate=0.5)
    training.train(recipe, data=numbers, output=tmp_path / "whole", max_steps=1)
    groups = steps_of(monkeypatch, torch.optim.SGD)
    slower = replace(recipe, backbone_lr_factor=0.25)
    training.train(slower, data=numbers, output=tmp_path / "slow", max_steps=1)
    assert [(group["lr"], group["params"]) for group in groups[0]] == [(0.5, 650), (0.125, 274_847 - 650)]
    start, whole, slow = (
        load_file(folder / "model.safetensors") for folder in (base, tmp_path / "whole", tmp_path / "slow")
    )
    for name in (name for name, _ in timm.create_model("seresnet20_cifar").named_parameters()):
        share = 1 if name.startswith("fc.") else 0.25
        torch.testing.assert_close(slow[name] - start[name], share * (whole[name] - start[name]), rtol=1e-3, atol=1e-6)
        assert not torch.equal(slow[name], start[name])


def test_groups_by_decay_are_divided_too() -> None:
    recipe = replace(SMALL, backbone_lr_factor=0.1, decay_all=False, weight_decay=0.125)
    model = timm.create_model("seresnet20_cifar")
    groups = parameter_groups(model, recipe)
    assert [(group.get("lr_scale"), group["weight_decay"]) for group in groups] == [
        (None, 0.0), (None, 0.125), (0.1, 0.0), (0.1, 0.125),
    ]  # fmt: skip
    assert [tuple(tensor.shape) for group in groups[:2] for tensor in group["params"]] == [(10,), (10, 64)]
    assert all(tensor.ndim == 1 for tensor in groups[2]["params"])
    assert all(tensor.ndim == 4 for tensor in groups[3]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_the_rate_follows_the_batch(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = steps_of(monkeypatch, torch.optim.SGD)
    recipe = replace(SMALL, lr_scaling="linear", base_batch_size=40)
    training.train(recipe, data=numbers, output=tmp_path / "run", max_steps=1)
    assert groups[0][0]["lr"] == pytest.approx(0.025)


def test_the_staircase_descends_every_so_many_epochs() -> None:
    recipe = replace(SMALL, epochs=3, schedule="staircase", decay_every=0.75, decay_rate=0.5, warmup_epochs=1)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr_scale": 0.1}], lr=0.1)
    schedule = schedule_of(optimizer, recipe, 4, 12)
    rates = []
    for step in range(12):
        schedule.step_update(step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    expected = [0, 0.025, 0.05, 0.075, *[0.05] * 2, *[0.025] * 3, *[0.0125] * 3]
    assert [rate for rate, _ in rates] == pytest.approx(expected)
    assert [rate for _, rate in rates] == pytest.approx([0.1 * rate for rate in expected])


def test_epsilon_reaches_the_optimiser_or_is_refused(
    tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.optim import RMSpropTF

    groups = steps_of(monkeypatch, RMSpropTF)
    recipe = replace(SMALL, optimizer="rmsproptf", optimizer_eps=0.125, learning_rate=1e-4)
    training.train(recipe, data=numbers, output=tmp_path / "run", max_steps=1)
    assert groups[0][0]["eps"] == 0.125
    refused(
        "optimizer_eps=0.125: optimizer=sgd has none", replace(recipe, optimizer="sgd"), data=numbers,
        output=tmp_path / "other",
    )  # fmt: skip


# --- the model --------------------------------------------------------------------------------------------------------


def test_the_momentum_of_norms_is_the_weight_of_a_new_batch(tmp_path: Path, numbers: str, base: Path) -> None:
    means = {}
    for momentum in (0.25, 1.0):
        recipe = replace(SMALL, weights=f"local-dir:{base}", bn_momentum=momentum)
        training.train(recipe, data=numbers, output=tmp_path / str(momentum), max_steps=1)
        means[momentum] = load_file(tmp_path / str(momentum) / "model.safetensors")["bn1.running_mean"]
    before = load_file(base / "model.safetensors")["bn1.running_mean"]
    torch.testing.assert_close(means[0.25], 0.75 * before + 0.25 * means[1.0])
    assert not torch.allclose(before, means[1.0])


def test_residual_branches_begin_at_zero_where_it_is_asked_for(tmp_path: Path, numbers: str) -> None:
    for zero in (True, False):
        model = initial_model(replace(SMALL, zero_init_last=zero), 10)
        assert {block.bn2.weight.unique().item() for block in model.layer1} == {0.0 if zero else 1.0}
    legacy = replace(SMALL, model="legacy_seresnet18", zero_init_last=True, input_size=32)
    refused("zero_init_last", legacy, data=numbers, output=tmp_path / "run")


def test_dropout_reaches_the_model() -> None:
    assert initial_model(replace(SMALL, dropout=0.3), 10).drop_rate == 0.3
    model = timm.create_model("resmlp_12_224", drop_rate=0.3).train()
    eval_frozen_parts(model)
    assert model.head_drop.training, "a part without parameters is not a frozen one"


def test_the_classifier_is_new_where_it_is_asked_for(base: Path) -> None:
    before = load_file(base / "model.safetensors")
    recipe = replace(SMALL, weights=f"local-dir:{base}")
    kept, new, other = (
        initial_model(chosen, classes).state_dict()
        for chosen, classes in ((recipe, 10), (replace(recipe, new_head=True), 10), (recipe, 3))
    )
    assert torch.equal(kept["fc.weight"], before["fc.weight"])
    assert new["fc.weight"].shape == before["fc.weight"].shape
    assert not torch.equal(new["fc.weight"], before["fc.weight"])
    assert other["fc.weight"].shape == (3, 64)
    assert all(torch.equal(new[name], before[name]) for name in before if not name.startswith("fc."))


# --- what is held out -------------------------------------------------------------------------------------------------


def contents(split: Split) -> list[tuple[int, int]]:
    """The number that each picture spells, and its label, in the order of the split."""
    transform = training_transform(
        crop="pad", input_size=(3, 8, 8), interpolation="bilinear", crop_padding=0, scale=(1, 1), horizontal_flip=0,
        auto_augment=None, color_jitter=0,
    )  # fmt: skip
    found = {}
    spec = evaluation_spec(split, transform, input_size=(8, 8), batch_size=7, num_classes=10)
    for batch in Loader(spec):
        pairs = zip(numbers_in(batch.images), batch.labels.tolist(), strict=True)
        found.update(zip(batch.indices.tolist(), pairs, strict=True))
    return [found[index] for index in range(split.rows)]


def test_held_out_images_are_a_share_of_each_class_and_of_nothing_else(write_split: WriteSplit) -> None:
    labels = [0] * 20 + [1] * 9 + [2] * 2 + [3] + [0] * 8
    folder = str(write_split([[9, 0, 8], [16, 7]], labels=labels))
    rest, held = held_out.open_splits(folder, "train", None, holdout=0.25, seed=3)
    assert (rest.name, held.name, rest.rows, held.rows) == ("train", "held-out", 30, 10)
    trained, measured = contents(rest), contents(held)
    assert sorted(trained + measured) == [(k, label) for k, label in enumerate(labels)]
    assert [[label for _, label in measured].count(k) for k in range(4)] == [7, 2, 1, 0]
    assert contents(held_out.open_splits(folder, "train", None, holdout=0.25, seed=3)[1]) == measured
    assert contents(held_out.open_splits(folder, "train", None, holdout=0.25, seed=4)[1]) != measured
    for k, (number, _) in enumerate(measured):
        assert held.place(k).startswith(f"row {number} of split 'train' of ")
        shard, first = (0, 0) if number < 17 else (1, 17)
        assert f"(row {number - first} of train-0000{shard}-of-00002.parquet)" in held.place(k)


def test_a_split_of_its_own_is_measured_on_where_there_is_one(write_split: WriteSplit) -> None:
    folder = str(write_split([[20]]))
    with pytest.raises(InputError, match=r"neither a validation nor a test split, only train: .*set holdout=0.2"):
        held_out.open_splits(folder, "train", None)
    with pytest.raises(InputError, match="has no split 'val'"):
        held_out.open_splits(folder, "train", "val")
    write_split([[5]], split="test")
    rest, measured = held_out.open_splits(folder, "train", None, holdout=0.5)
    assert (rest.rows, measured.name, measured.rows) == (20, "test", 5)
    write_split([[4]], split="validation")
    assert held_out.open_splits(folder, "train", None, holdout=0.5)[1].name == "validation"


def test_single_images_cannot_be_held_out(write_split: WriteSplit) -> None:
    with pytest.raises(InputError, match="has one image a class, so none can be held out"):
        held_out.open_splits(str(write_split([[10]])), "train", None, holdout=0.5)


@pytest.mark.parametrize("broken", [1, 7])
def test_a_broken_picture_among_the_held_out_is_left_out_and_the_card_counts_the_rest(
    write_split: WriteSplit, tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: int
) -> None:
    """An epoch's work is not lost for it; of too many the state of the epoch stays, to go on with a larger share."""
    recipe = replace(
        get_recipe("digits"), eval_split=None, holdout=0.2, input_size=8, epochs=1, batch_size=16, workers=0, seed=3
    )
    folder = write_split([[30, 30]])
    kept = held_out.open_splits(str(folder), "train", None, holdout=0.2, seed=3)[1].subset
    assert kept is not None
    rows = [30 * unit + int(row) for unit, inside in enumerate(kept.rows) for row in inside][:broken]
    write_split([[30, 30]], images=[numbered_picture(k)[: 40 if k in rows else None] for k in range(60)])
    run = tmp_path / "run"
    if broken > 6:
        with pytest.raises(InputError, match=r"row \d+ .*7 undecodable images, more than 6 of 60: .* to 0.117"):
            training.train(recipe, data=str(folder), output=run)
        recipe = replace(recipe, corrupt_share=0.117)
    result = training.train(recipe, data=str(folder), output=run, resume=broken > 6)
    assert result["seen"] == 60 - 10
    assert f"left out: row {rows[0]} of split 'train'" in caplog.text
    card = (run / "README.md").read_text()
    assert f"measured on {10 - broken} images held out from the same collection" in card
    (measured,) = json.loads((run / "config.json").read_text())[FACTS_KEY]["results"]
    assert measured["images"] == 10 - broken


# --- one command ------------------------------------------------------------------------------------------------------

QUICK = ["--set", "model=seresnet20_cifar", "input_size=32", "batch_size=16", "epochs=6", "workers=0",
         "learning_rate=0.05", "bn_momentum=0.5", "holdout=0.1"]  # fmt: skip


def test_a_folder_of_images_becomes_a_model_on_the_hub(
    tmp_path: Path, pictures: Path, base: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seresnet_hub.commands.train import main

    out = tmp_path / "pets"
    result = main(
        ["--recipe", "finetune", "--data", str(pictures), "--output", str(out), *QUICK, f"weights=local-dir:{base}"]
    )
    assert (result["steps"], result["seen"]) == (6 * 2, 6 * 28)  # two cats and a dog are held out
    assert result["top1"] == 100
    config = json.loads((out / "config.json").read_text())
    assert config["label_names"] == ["cat", "dog", "emu"]
    card = (out / "README.md").read_text()
    front = ModelCard(card, ignore_metadata_errors=False).data
    assert (front.license, front.base_model, front.datasets) == ("mit", None, None)
    assert "| my pets, held-out | 3 | 32 | 100.00 |" in card
    assert "op-5" not in card
    for row in ("| cat | 2 | 100.00 |", "| dog | 1 | 100.00 |", "| emu | 0 | not measured |"):
        assert row in card, row
    assert "measured on 3 images held out from the same collection it was trained on (10 % of each class)" in card
    assert "| starting weights | local-dir:base |" in card
    assert "| licence of the starting weights | mit |" in card
    assert str(tmp_path) not in card + json.dumps(config)

    dry = push(out, "someone/pets", dry_run=True)
    assert dry["changed"] == ["model.safetensors", "config.json", "README.md", "summary.csv", "curves.png"]
    assert "someone/pets" not in {name for _, name in hub.repositories}
    push(out, "someone/pets")
    model = seresnet_hub.load("hf-hub:someone/pets")
    classes = seresnet_hub.predict(model, [str(pictures / "cat" / "0.jpg"), str(pictures / "dog" / "0.jpg")], topk=1)
    assert [best[0]["name"] for best in classes] == ["cat", "dog"]


def test_weights_of_the_hub_are_named_as_the_base(
    tmp_path: Path, numbers: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(write_base(tmp_path / "base", license="cc-by-nc-4.0"), "someone/base")
    recipe = replace(SMALL, weights="hf-hub:someone/base", new_head=True)
    training.train(recipe, data=numbers, output=tmp_path / "run", max_steps=1)
    card = ModelCard((tmp_path / "run" / "README.md").read_text(), ignore_metadata_errors=False)
    assert (card.data.base_model, card.data.license) == ("someone/base", "cc-by-nc-4.0")
    assert "trained from `hf-hub:someone/base` by the recipe" in card.content
    training.train(replace(recipe, license="openrail"), data=numbers, output=tmp_path / "other", max_steps=1)
    other = ModelCard((tmp_path / "other" / "README.md").read_text(), ignore_metadata_errors=False)
    assert other.data.license == "openrail"
    assert "| licence of the starting weights | cc-by-nc-4.0 |" in other.content


def test_weights_without_a_licence_give_a_card_without_one(
    tmp_path: Path, numbers: str, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_base(tmp_path / "base", license="")
    training.train(replace(SMALL, weights=f"local-dir:{base}"), data=numbers, output=tmp_path / "run", max_steps=1)
    assert f"warning: local-dir:{base} name no licence" in capsys.readouterr().err
    with pytest.raises(InputError, match="names no licence"):
        push(tmp_path / "run", "someone/pets", dry_run=True)


def test_timms_tags_say_where_they_come_from() -> None:
    assert origin_of("seresnet50.ra2_in1k") == ("seresnet50.ra2_in1k", "timm/seresnet50.ra2_in1k", "apache-2.0")
    assert origin_of("seresnet50_8xb32_in1k") == ("seresnet50.mm_in1k", "", "apache-2.0")


def test_the_default_recipe_starts_from_weights_that_exist() -> None:
    recipe = get_recipe("finetune")
    assert recipe.weights is not None
    assert timm.get_pretrained_cfg(recipe.weights).has_weights
