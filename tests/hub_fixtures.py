"""What tests of the Hub share: a model folder, and the double of the Hub that this process's client talks to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import WRITE_TOKEN, HubServer
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from seresnet_hub.files.model_folder import timm_config, write_model

REPO = "someone/model"
CARD = '---\nlicense: mit\nlibrary_name: timm\npipeline_tag: image-classification\n---\n# A model: "local-dir:."\n'


def write_folder(
    directory: Path, *, seed: int = 0, card: str = CARD, label_names: list[str] | None = None, **preparation: Any
) -> torch.nn.Module:
    torch.manual_seed(seed)
    model: torch.nn.Module = timm.create_model("seresnet20_cifar", num_classes=4).eval()
    config = timm_config(model, pretrained_cfg={"tag": str(seed), **preparation}, label_names=label_names)
    write_model(directory, model.state_dict(), config=config, card=lambda _: card)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pauses() -> list[float]:
    """How long the code under test, or the client in it, would have slept."""
    return []


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> Iterator[HubServer]:
    """The double, with this process's client pointed at it; nothing waits between tries."""
    with HubServer(tmp_path / "hub") as server:
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
        monkeypatch.setattr(time, "sleep", pauses.append)
        yield server


def outputs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32))


def commits(hub: HubServer, repo: str = REPO, revision: str = "main") -> int:
    """The number of commits after the one that creating a repository makes."""
    return len(hub.history(repo, revision)) - 1


@pytest.fixture
def published(hub: HubServer, tmp_path: Path) -> torch.nn.Module:
    """A model in the double, with a pickle beside it that must never be asked for."""
    model = write_folder(tmp_path / "source")
    files: dict[str, bytes | Path] = {
        name: tmp_path / "source" / name for name in ("model.safetensors", "config.json", "README.md")
    }
    hub.create("model", REPO, {**files, "pytorch_model.bin": b"a pickle"})
    return model


def nan_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["fc.bias"][1] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")
