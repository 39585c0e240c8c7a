"""A stranger's config must be checked, and held against the file's header, before anything is made or read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import write_json
from seresnet_hub.files.model_folder import timm_config, write_weights
from seresnet_hub.models.create import create


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return written(tmp_path / "model", "seresnet20_cifar")


def written(folder: Path, architecture: str) -> Path:
    """Write the folder of a network of 4 classes."""
    model = timm.create_model(architecture, num_classes=4)
    write_weights(folder, model.state_dict())
    write_json(folder / "config.json", timm_config(model, pretrained_cfg={}))
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    write_json(path, {**json.loads(path.read_text()), **changes})


def test_no_tensor_is_read_before_the_header_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(
        "seresnet_hub.models.strict_loading.load_file", lambda path: (read.append(path), load_file(path))[1]
    )
    edit(folder, num_classes=5)
    with pytest.raises(InputError, match="expected"):
        seresnet_hub.load(folder)
    assert not read
    edit(folder, num_classes=4)
    seresnet_hub.load(folder)
    assert read


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [{"layers": [900_000, 1, 1]}, {"checkpoint_path": "/etc/passwd"}],
    ids=str,
)
def test_a_network_without_its_weights_is_checked_as_well(
    folder: Path, arguments: dict[str, Any], pretrained: bool
) -> None:
    assert seresnet_hub.load(folder, pretrained=False, num_classes=7).num_classes == 7
    edit(folder, model_args=arguments)
    with pytest.raises(InputError, match="far more|checkpoint_path"):
        seresnet_hub.load(folder, pretrained=pretrained)


def test_a_network_that_takes_forever_to_describe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TinyViT pairs all positions of a window in a loop of Python's own."""
    monkeypatch.setattr("seresnet_hub.models.build_limits.BUILD_SECONDS", 1.0)
    folder = written(tmp_path / "model", "tiny_vit_5m_224")
    edit(folder, model_args={"window_sizes": [64, 64, 64, 64]})
    with pytest.raises(InputError, match="takes more than 1 seconds to make"):
        seresnet_hub.load(folder)


def test_create_leaves_strangers_folders_to_load(folder: Path) -> None:
    for name in (folder, str(folder), f"LOCAL-DIR:{folder}", "hf-hub:someone/model"):
        with pytest.raises(InputError, match="use load, which checks"):
            create(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-1] + b', "num_classes": 4}', "'num_classes' is there twice"),
        (lambda text: b"\xef\xbb\xbf" + text, "cannot read"),
        (lambda text: text.decode().encode("utf-16"), "cannot read"),
        (lambda text: text[:-1] + b', "a": [' + b"[]," * 300_000 + b"0]}", "it has more than 500,000 entries"),
        (lambda text: text[:-1] + b" " * 2**24 + b"}", "it has more than 16,777,216 bytes"),
        (
            lambda text: text.replace(b"seresnet20_cifar", b"seresnet20_cifar.c10"),
            "no architecture 'seresnet20_cifar.c10'",
        ),
    ],
)
def test_a_config_of_another_form_is_one_line(folder: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = folder / "config.json"
    path.write_bytes(damage(path.read_bytes().strip()))
    with pytest.raises(InputError, match=message):
        seresnet_hub.load(folder)


def test_a_model_that_gives_maps_has_no_classes_to_name(folder: Path, photo: Image.Image) -> None:
    edit(folder, model_args={"global_pool": ""}, seresnet_hub={"sha256": {}})
    with pytest.raises(InputError, match="not one for each class|does not run|cannot create"):
        seresnet_hub.predict(folder, photo)
