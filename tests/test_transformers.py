"""The folders that training and conversion write must load in transformers, with the scores and names of `predict`.

As for a user, it is done in processes that do not import this package: one of transformers, one of plain timm.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from warm_python import run_python

import seresnet_hub
from seresnet_hub.models.published_weights import OWN_WEIGHTS

pytest.importorskip("transformers", reason="transformers is in the extra 'test'")

LABELS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
TRANSFORMERS = """
import json, sys, warnings
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

pictures = [Image.open(path) for path in json.loads(sys.argv[2])]
found = {}
for folder in json.loads(sys.argv[1]):
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    scores = pipeline("image-classification", model=folder, top_k=10)(pictures)
    with torch.no_grad():
        logits = model(**processor([picture.convert("RGB") for picture in pictures])).logits
    names = [model.config.id2label[k] for k in range(model.config.num_labels)]
    found[folder] = {"scores": scores, "logits": logits.tolist(), "names": names}
assert "seresnet_hub" not in sys.modules
own = json.loads(sys.argv[3])  # of an architecture that plain timm does not have
try:
    AutoModelForImageClassification.from_pretrained(own)
except ImportError as error:
    found["without"] = str(error)
import seresnet_hub
found["with"] = AutoModelForImageClassification.from_pretrained(own).config.id2label[3]
print(json.dumps(found))
"""
PLAIN_TIMM = """
import json, sys
import timm, torch

found = {}
for folder in json.loads(sys.argv[1]):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.linspace(-1, 1, model.in_chans * 32 * 32).reshape(1, model.in_chans, 32, 32)
    with torch.no_grad():
        found[folder] = model(x).tolist()
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).num_classes == 3
assert "seresnet_hub" not in sys.modules
print(json.dumps(found))
"""


def run(code: str, *arguments: object) -> Any:
    command = [sys.executable, "-W", "ignore", "-c", code, *map(json.dumps, arguments)]
    done = run_python(command, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder of each kind, as the real functions write them; and one with other arguments than the usual."""
    place = tmp_path_factory.mktemp("models")
    tiny = replace(seresnet_hub.get_recipe("digits"), model="seresnet18", input_size=32, workers=0, batch_size=16)
    seresnet_hub.train(tiny, output=place / "trained", max_steps=1)
    pictures = place / "pictures"
    for label in LABELS[:3]:
        (pictures / label).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (32, 32), (50 * k, 80, 10 * len(label))).save(pictures / label / f"{k}.png")
    mine = replace(
        seresnet_hub.get_recipe("finetune"), model="seresnet18", weights=str(place / "trained"), input_size=32,
        epochs=1, batch_size=16, workers=0, holdout=0.25, warmup_epochs=0,
    )  # fmt: skip
    seresnet_hub.train(mine, output=place / "fine-tuned", data=str(pictures), max_steps=1)
    torch.manual_seed(0)
    (place / "labels.txt").write_text("\n".join(LABELS))
    for name, options in (("converted", {}), ("grey", {"in_chans": 1})):
        model = timm.create_model("seresnet18", num_classes=len(LABELS), zero_init_last=False, **options)
        torch.save({"arch": "seresnet18", "state_dict": model.state_dict()}, place / f"{name}.pth")
        seresnet_hub.convert(place / f"{name}.pth", place / name, labels=place / "labels.txt")
    return {name: place / name for name in ("trained", "fine-tuned", "converted", "grey")}


def test_transformers_gives_the_scores_of_predict(folders: dict[str, Path], tmp_path: Path) -> None:
    """In one process, since importing transformers takes longer than all the rest."""
    random = np.random.default_rng(0)
    pictures = []
    for k, size in enumerate(((32, 32, 3), (150, 90, 3), (20, 45))):
        pictures.append(str(tmp_path / f"{k}.png"))
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(pictures[-1])
    wanted = {name: folders[name] for name in ("trained", "fine-tuned", "converted")}
    own = OWN_WEIGHTS[0].folder
    found = run(TRANSFORMERS, [str(folder) for folder in wanted.values()], pictures, str(own))
    names = {"trained": [str(k) for k in range(10)], "fine-tuned": LABELS[:3], "converted": LABELS}
    for name, folder in wanted.items():
        theirs = found[str(folder)]
        ours = seresnet_hub.predict(folder, pictures, topk=10)
        assert theirs["names"] == names[name]
        for picture, (mine, scores) in enumerate(zip(ours, theirs["scores"], strict=True)):
            assert {c["name"]: c["score"] for c in mine} == pytest.approx(
                {c["label"]: c["score"] for c in scores}, abs=1e-6, rel=0
            )
            softmax = torch.tensor(theirs["logits"][picture]).softmax(-1)
            assert softmax.tolist() == pytest.approx(
                [c["score"] for c in sorted(mine, key=lambda c: c["index"])], abs=1e-6, rel=0
            )
    # An architecture of this package's: transformers' own advice does not help, importing this package does.
    assert "Please upgrade timm" in found["without"]
    assert found["with"] == json.loads((own / "config.json").read_text())["label_names"][3]


def test_plain_timm_loads_them_all(folders: dict[str, Path]) -> None:
    found = run(PLAIN_TIMM, [str(folder) for folder in folders.values()])
    for folder in folders.values():
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        channels = tensors["conv1.weight"].shape[1]
        model = timm.create_model("seresnet18", num_classes=config["num_classes"], in_chans=channels).eval()
        model.load_state_dict(tensors)
        with torch.no_grad():
            expected = model(torch.linspace(-1, 1, channels * 32 * 32).reshape(1, channels, 32, 32))
        assert torch.equal(torch.tensor(found[str(folder)]), expected)


def test_what_transformers_passes_itself_is_not_in_the_arguments(folders: dict[str, Path]) -> None:
    """TimmWrapper calls `create_model(architecture, pretrained=False, num_classes=…, **model_args)`."""
    for name, folder in folders.items():
        config = json.loads((folder / "config.json").read_text())
        assert not {"num_classes", "pretrained", "model_name"} & config["model_args"].keys()
        assert config["num_classes"] == config["pretrained_cfg"]["num_classes"]
        assert config["model_args"]["in_chans"] == (1 if name == "grey" else 3)
