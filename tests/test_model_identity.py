"""A result must name the weights that made it, so that other weights under the same name are noticed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import timm
import torch

from seresnet_hub.files.model_folder import WEIGHTS_NAME
from seresnet_hub.inference.model_identity import model_identity, tensors_sha256
from seresnet_hub.models.fusion import fuse
from seresnet_hub.models.load import load
from seresnet_hub.models.published_weights import OWN_WEIGHTS

OWN = OWN_WEIGHTS[0]
WANTED = hashlib.sha256((OWN.folder / WEIGHTS_NAME).read_bytes()).hexdigest()


def test_a_name_and_a_folder_have_the_hash_of_their_file(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(OWN.folder, folder)
    of_name, of_folder, of_path = (
        model_identity(load(name), name) for name in (OWN.name, f"local-dir:{folder}", folder)
    )
    assert of_name.sha256 == of_folder.sha256 == of_path.sha256 == WANTED
    assert of_name.tensors_sha256 == of_folder.tensors_sha256 == model_identity(load(OWN.name)).tensors_sha256
    assert (of_name.model, of_name.architecture, of_name.commit) == (OWN.name, OWN.architecture, None)
    assert of_path.model == str(folder)


def test_a_model_made_in_python_has_the_hash_of_its_tensors() -> None:
    torch.manual_seed(0)
    model = timm.create_model("seresnet20_cifar", num_classes=3)
    identity = model_identity(model)
    assert (identity.model, identity.sha256) == ("seresnet20_cifar", None)
    before = tensors_sha256(model)
    model.bn1.num_batches_tracked += 1
    assert tensors_sha256(model) == before
    model.fc.bias.data[0] += 1
    assert tensors_sha256(model) != before
    assert tensors_sha256(fuse(model.eval())) != tensors_sha256(model)
    assert len(tensors_sha256(model.to(torch.bfloat16))) == 64


@pytest.mark.parametrize("name", [None, "a name"])
def test_a_module_of_any_kind_has_an_identity(name: str | None) -> None:
    assert model_identity(torch.nn.Linear(2, 2)).architecture == "Linear"
