"""An exported file that computes something else than the network must be refused, whatever is wrong with it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from plausible_networks import network
from timm.data import resolve_model_data_config
from timm.layers import SEModule
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.exporting.export_proof import (
    BATCHES,
    PICTURES,
    Proof,
    Run,
    compared,
    proof_pictures,
    reference,
    reference_with_preprocessing,
    require_equal,
)
from seresnet_hub.exporting.preprocessing import Preparation
from seresnet_hub.models.fusion import fuse


@pytest.fixture(scope="module")
def model() -> Any:
    return network("seresnet20_cifar").float()


@pytest.fixture(scope="module")
def pictures(model: Any) -> np.ndarray:
    return proof_pictures(model)


def running(model: nn.Module) -> Run:
    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    return run


def proof(run: Run, model: nn.Module, pictures: np.ndarray, precision: str, **batch: int) -> Proof:
    return compared(run, reference(model, pictures, **batch), precision)


def refuses(found: Proof) -> str:
    with pytest.raises(InputError) as error:
        require_equal(found)
    return str(error.value)


def test_the_fused_network_is_equal(model: Any, pictures: np.ndarray) -> None:
    found = proof(running(fuse(model)), model, pictures, "fp32")
    require_equal(found)
    assert 0 < found.largest_difference < 1e-6
    assert (found.batches, found.pictures, found.argmax_agreement) == ((1, 2, 7), 10, 1.0)
    assert next(model.parameters()).dtype == torch.float32, "the network itself stays as it was"


def test_pictures_differ_and_are_prepared_as_the_config_says(model: Any, pictures: np.ndarray) -> None:
    assert (pictures.shape, pictures.dtype) == ((PICTURES, 3, 32, 32), np.float32)
    assert len({picture.tobytes() for picture in pictures}) == PICTURES
    config = resolve_model_data_config(model)
    levels = 255 * (pictures * np.reshape(config["std"], (3, 1, 1)) + np.reshape(config["mean"], (3, 1, 1)))
    assert np.abs(levels - levels.round()).max() < 1e-3
    assert -0.01 < levels.min() <= levels.max() < 255.01


def without_a_gate(model: Any) -> Run:
    changed = copy.deepcopy(model)
    changed.layer3[1].se = nn.Identity()
    return running(changed)


def without_gates(model: Any) -> Run:
    changed = copy.deepcopy(model)
    for stage in (changed.layer1, changed.layer2, changed.layer3):
        for block in stage:
            block.se = nn.Identity()
    return running(changed)


def with_other_weights(model: Any) -> Run:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        weight = changed.layer2[0].conv2.weight
        weight += 1e-3 * weight.abs().mean() * torch.randn_like(weight)
    return running(changed)


def with_other_class_order(model: Any) -> Run:
    return lambda images: running(model)(images)[:, ::-1]


def with_swapped_rows(model: Any) -> Run:
    def run(images: np.ndarray) -> np.ndarray:
        found = running(model)(images)
        return found if len(images) < 7 else found[[0, 1, 3, 2, 4, 5, 6]]

    return run


def with_the_first_row_for_all(model: Any) -> Run:
    return lambda images: np.repeat(running(model)(images[:1]), len(images), 0)


# One gate of nine changes as much as int8 does, so a network is proven in float before it is quantised.
BROKEN = {"fp32": [without_a_gate, with_other_weights], "int8": [without_gates]}
ALWAYS = [with_other_class_order, with_swapped_rows, with_the_first_row_for_all]


@pytest.mark.parametrize(
    ("precision", "broken"),
    [
        (one, how)
        for one in ("fp32", "int8")
        for how in [*BROKEN[one], *ALWAYS]
        if (one, how) != ("int8", with_swapped_rows)
    ],
)
def test_a_planted_error_is_refused(model: Any, pictures: np.ndarray, precision: str, broken: Any) -> None:
    found = proof(broken(model), model, pictures, precision)
    message = refuses(found)
    if broken in (with_swapped_rows, with_the_first_row_for_all):
        assert found.worst_batch == 7 or broken is with_the_first_row_for_all
    assert precision in message or "another class" in message


def test_what_is_no_number_and_what_has_another_shape_is_refused(model: Any, pictures: np.ndarray) -> None:
    def with_a_nan(images: np.ndarray) -> np.ndarray:
        found = running(model)(images)
        found[-1, 3] = np.nan
        return found

    with pytest.raises(InputError, match="not finite"):
        proof(with_a_nan, model, pictures, "int8")
    with pytest.raises(InputError, match=r"gives \(1, 9\) values at batch 1, not \(1, 10\)"):
        proof(lambda images: running(model)(images)[:, :9], model, pictures, "fp32")


def test_ties_count_as_they_are_and_refuse_nothing(model: Any, pictures: np.ndarray) -> None:
    tied = copy.deepcopy(model)
    with torch.no_grad():
        tied.fc.weight[:] = tied.fc.weight[:1]
        tied.fc.bias[:] = 1.0
        tied.fc.bias[2] -= 1.0
    found = proof(lambda images: running(tied)(images)[:, [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]], tied, pictures, "fp32")
    require_equal(found)
    assert found.clear_pictures == 0


def test_a_network_that_gives_nothing_but_zeros_has_to_give_zeros(model: Any, pictures: np.ndarray) -> None:
    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent.fc.weight.zero_()
        silent.fc.bias.zero_()
    require_equal(proof(running(silent), silent, pictures, "fp32"))
    found = proof(lambda images: running(silent)(images) + np.float32(1e-9), silent, pictures, "int8")
    assert found.largest_difference == float("inf")
    refuses(found)


def test_another_first_class_is_refused_where_it_leads_clearly() -> None:
    found = Proof(
        precision="int8", largest_difference=0.01, worst_batch=1, argmax_agreement=0.9, clear_pictures=8,
        clear_agreement=0.875, tolerance=0.3, batches=BATCHES, pictures=10,
    )  # fmt: skip
    message = refuses(found)
    assert "another class for 1 of 8 pictures" in message
    assert "--calibrate" in message
    assert "--calibrate" not in refuses(replace(found, precision="bf16"))
    require_equal(replace(found, clear_agreement=1.0))


def test_a_fixed_batch_is_proven_at_that_batch_alone(model: Any, pictures: np.ndarray) -> None:
    def of_twelve(images: np.ndarray) -> np.ndarray:
        assert len(images) == 12
        return running(model)(images)

    found = proof(of_twelve, model, pictures, "fp32", batch=12)
    require_equal(found)
    assert found.batches == (12,)


def test_a_batch_of_one_is_proven_with_all_pictures(model: Any, pictures: np.ndarray) -> None:
    """A file that is wrong about the last of them alone is noticed."""

    def wrong_about_the_last(images: np.ndarray) -> np.ndarray:
        assert len(images) == 1
        return running(model)(images) + np.float32(np.array_equal(images, pictures[-1:]))

    found = proof(running(model), model, pictures, "fp32", batch=1)
    require_equal(found)
    assert (found.batches, found.pictures, found.argmax_agreement) == ((1,), PICTURES, 1.0)
    refuses(proof(wrong_about_the_last, model, pictures, "fp32", batch=1))


def prepared(model: Any, **changed: Any) -> Run:
    preparation = Preparation(resolve_model_data_config(model) | changed)

    def run(photographs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(preparation(torch.from_numpy(photographs))).softmax(1).numpy()

    return run


def test_preprocessing_inside_is_that_of_predict(model: Any) -> None:
    found = compared(prepared(model), reference_with_preprocessing(model), "fp32")
    require_equal(found)
    assert (found.batches, found.argmax_agreement) == ((1, 2, 7), 1.0)


@pytest.mark.parametrize(
    "changed", [{"mean": (0.5, 0.5, 0.5)}, {"std": (0.2, 0.2, 0.2)}, {"crop_pct": 0.9}, {"interpolation": "bicubic"}]
)
def test_other_preprocessing_is_refused(model: Any, changed: dict[str, Any]) -> None:
    refuses(compared(prepared(model, **changed), reference_with_preprocessing(model), "fp32"))


def test_every_gate_counts(model: Any, pictures: np.ndarray) -> None:
    """The networks that proofs are tested with are such that no gate can be left out unseen."""
    units = [name for name, module in model.named_modules() if isinstance(module, SEModule)]
    for name in units[::4]:
        changed = copy.deepcopy(model)
        changed.set_submodule(name, nn.Identity())
        refuses(proof(running(changed), model, pictures, "fp32"))
