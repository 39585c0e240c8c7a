"""A hostile name must mean the same at every door, or be refused at each of them in one line."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
import timm
import torch
from fuzzing import Case, Report, attack
from PIL import Image

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import sha256_of, write_json
from seresnet_hub.files.model_folder import timm_config, write_weights
from seresnet_hub.models.create import create
from seresnet_hub.models.load import origin_of
from seresnet_hub.models.names import architecture_of, is_model_name, parse_name
from seresnet_hub.publishing.verify import verify
from seresnet_hub.training.finetuning import start_of

SMALL, LARGE = 200, 10_000
PREFIXES = [
    "", "", "", "hf-hub:", "HF-HUB:", "hf_hub:", "Hf_Hub:", "local-dir:", "LOCAL-DIR:", "local_dir:", "Local-Dir:",
    "hf-hub::", "hf-hub://", "hub:", "file:", "file://", "http://", "HTTPS://", "data:", "C:", " hf-hub:",
]  # fmt: skip
STEMS = [
    "seresnet20_cifar", "seresnet20_cifar.c10", "SEResNet20_cifar.c10",
    "test_resnet", "test_resnet.r160_in1k", "model", "./model", "../place/model", "model/",
    "model/.", "model/../model", "test_vit", "someone/model", "a/b/c", "/etc/passwd", "/dev/zero", "~/model",
    "~root", "..", ".", "/", "-", "--help", "", " ", "test_resnet.evil/name", "seresnet20_cifar.c10/../model",
    "model\0", "mod\nel", "\x1b[2Jmodel", "\u202emodel", "mödel", "ｍodel", "model.safetensors", "runs",
    "127.0.0.1:9/x", "$(id)", "`id`", "model;id", "%6dodel", "someone%2Fmodel", "a" * 255, "a" * 256, "a/" * 3000,
    "a" * 100_000, "someone/" + "b" * 97, "s--x/model", "someone/model.git", "con", "nul",
]  # fmt: skip
ENDS = [
    "", "", "", "@main", "@v1", "@", "@@", "@../../x", "@refs/pr/1", "@refs/../../x", "@" + "f" * 40, "@" + "f" *
    5000, "@ ", "@a\nb", "@\0", "@-d", "@%2e%2e", ".tag", ".c10@x", "_", "/", "//", "#x", "?x=y", ":x", "\t",
    ".png", "\udcff",
]  # fmt: skip
LETTERS = "ab./\\@:-_~%\0\n\r\t\x1b\x7f ü\u202e\u200b\ud800\U0001f600\"'`$"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one model folder, whose network has 4 classes."""
    place = tmp_path / "place"
    place.mkdir()
    torch.manual_seed(0)
    model = timm.create_model("seresnet20_cifar", num_classes=4)
    write_weights(place / "model", model.state_dict())
    hashes = {"sha256": {"model.safetensors": sha256_of(place / "model" / "model.safetensors")}}
    write_json(place / "model" / "config.json", {**timm_config(model, pretrained_cfg={}), "seresnet_hub": hashes})
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))
    return place


def names(seed: int, cases: int) -> Iterator[Case]:
    """Names put together of likely pieces, then changed by letters here and there."""
    rng = random.Random(seed)
    for number in range(cases):
        name = rng.choice(PREFIXES) + rng.choice(STEMS) + rng.choice(ENDS)
        for _ in range(rng.choice([0, 0, 1, 3]) if len(name) < 1000 else 0):
            at = rng.randrange(len(name) + 1)
            name = name[:at] + rng.choice(LETTERS) + name[at + rng.randrange(2) :]
        name = rng.choice([name, name, name, name.upper(), quote(name, errors="replace")])
        yield Case(f"{number} {name[:80]!r}", name, len(name))


def outcome(door: Callable[[str], object], name: str) -> str:
    """What a door says, "" where it lets the name in."""
    try:
        door(name)
    except InputError as error:
        return str(error) if str(error).isprintable() else "an error with codes for the terminal"
    return ""


def doors(picture: Image.Image) -> dict[str, Callable[[str], object]]:
    recipe = seresnet_hub.get_recipe("finetune")
    return {
        "load": seresnet_hub.load,
        "predict": lambda name: seresnet_hub.predict(name, picture),
        "get_model": lambda name: seresnet_hub.get_model(name, pretrained=True),
        "untrained": lambda name: seresnet_hub.load(name, pretrained=False),
        "training": lambda name: start_of(replace(recipe, weights=name)),
        "origin_of": origin_of,
        "verify": verify,
        "create": lambda name: create(name, pretrained=False),
    }


def through_every_door(name: str) -> str:
    """Give a name to every call that takes one, without a network, and compare what they make of it."""
    every = doors(Image.new("RGB", (40, 40)))
    if refused := outcome(parse_name, name):
        if not name:  # which a recipe refuses by itself
            del every["training"]
        assert refused.isprintable()
        assert {outcome(door, name) for door in every.values()} == {refused}
        assert outcome(architecture_of, name)
        outcome(is_model_name, name)
    meant = parse_name(name)
    is_model_name(name)
    assert parse_name(meant.name) == meant  # what a name means, means itself
    assert meant.name.startswith("local-dir:") == (meant.folder is not None)
    assert meant.name.startswith("hf-hub:") == bool(meant.repo_id)
    said = {door: outcome(call, name) for door, call in every.items()}
    enters = {door for door, text in said.items() if not text}
    is_architecture = not outcome(architecture_of, name)
    if meant.folder is not None:
        is_model = os.path.isdir(meant.folder) and os.path.samefile(meant.folder, "model")
        assert enters == (every.keys() - {"create"} if is_model else set()), said
        assert not is_architecture
    elif meant.repo_id:
        assert not enters, said  # there is no network here
        assert not is_architecture
    else:
        architecture = meant.name.partition(".")[0]
        assert is_architecture == timm.is_model(architecture) == ("untrained" in enters) == ("create" in enters), said
        if is_architecture:
            assert architecture_of(name) == architecture
            assert meant.name == architecture or meant.name in timm.models.get_arch_pretrained_cfgs(architecture)
    return meant.name


def _warm() -> None:
    """Let Python and timm load what they load once."""
    for name in ("model", "seresnet20_cifar", "seresnet20_cifar.c10"):
        through_every_door(name)
    with pytest.raises(InputError):
        through_every_door("hf-hub:mod\x1bel/\udcff")


def may_open(path: str) -> bool:
    return path not in ("/etc/passwd", "/dev/zero")


def assert_harmless(report: Report) -> None:
    shown = [
        f"{one.kind}: {one.name}: {one.seconds:.1f} s, {one.peak_bytes:,}: {one.detail}" for one in report.findings
    ]
    assert not shown, f"{len(shown)} of {report.summary()}: " + "\n".join(shown[:20])


@pytest.mark.usefixtures("place")
def test_hostile_names_mean_one_thing_or_nothing() -> None:
    _warm()
    report = attack(through_every_door, names(seed=1, cases=SMALL), may_open=may_open)
    assert_harmless(report)
    assert {outcome.kind for outcome in report.outcomes} == {"accepted", "refused"}


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_many_hostile_names_mean_one_thing_or_nothing() -> None:
    _warm()
    report = attack(through_every_door, names(seed=2, cases=LARGE), may_open=may_open)
    print(json.dumps(report.summary()))
    assert_harmless(report)
