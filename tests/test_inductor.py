"""Settings of the compiler must be checked by name and type before anything starts, and reach it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seresnet_hub.errors import InputError
from seresnet_hub.recipes.inductor import options_of
from seresnet_hub.recipes.recipe import get_recipe, override
from seresnet_hub.training import train as training

WORTH_TRYING = "realize_reads_threshold=2,triton.max_tiles=1,triton.cudagraphs=true"


def test_a_recipes_settings_are_torchs_options() -> None:
    recipe = override(get_recipe("digits"), ["compile=true", f"inductor={WORTH_TRYING}"])
    options = options_of(recipe.inductor)
    assert options == {"realize_reads_threshold": 2, "triton.max_tiles": 1, "triton.cudagraphs": True}
    torch.compile(torch.nn.Linear(2, 2), options=options)  # torch checks names and types itself
    assert override(recipe, ["inductor="]).inductor == ()
    assert options_of([], deterministic=True) == {"deterministic": True}
    given = ["triton.max_tiles=1", "triton.max_tiles = none", "max_autotune_gemm_search_space=EXHAUSTIVE"]
    assert options_of([*given, "max_autotune_gemm_backends=ATEN"]) == {
        "triton.max_tiles": None, "max_autotune_gemm_search_space": "EXHAUSTIVE", "max_autotune_gemm_backends": "ATEN",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("realize_reads_treshold=2", "no setting 'realize_reads_treshold'; did you mean 'realize_reads_threshold'"),
        ("max_tiles=1", "no setting 'max_tiles'; did you mean 'triton.max_tiles'"),
        ("zzzzzz=1", r"no setting 'zzzzzz' \(see torch._inductor.config of torch"),
        ("triton.cudagraphs=1", "expected true or false"),
        ("realize_reads_threshold=many", "expected a whole number"),
        ("max_autotune_gemm_search_space=ALL", "expected one of DEFAULT, EXHAUSTIVE"),
        ("joint_custom_pre_pass=x", "cannot be written as text"),
        ("triton.cudagraphs", "write it as key=value"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(tmp_path: Path, setting: str, message: str) -> None:
    recipe = replace(get_recipe("digits"), compile=True, inductor=(setting,))
    with pytest.raises(InputError, match=message):
        training.train(recipe, data=str(tmp_path), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_need_a_compiler_and_fit_the_rest() -> None:
    with pytest.raises(InputError, match="inductor=.*: of no effect without compile=true: set both"):
        override(get_recipe("digits"), [f"inductor={WORTH_TRYING}"])
    with pytest.raises(InputError, match="accumulation=2: gradients are not summed over pieces with triton"):
        override(get_recipe("digits"), ["compile=true", "accumulation=2", f"inductor={WORTH_TRYING}"])


def test_the_settings_reach_the_compiler(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def compile(model: torch.nn.Module, **arguments: object) -> torch.nn.Module:
        given.append(arguments)
        return model

    monkeypatch.setattr(torch, "compile", compile)
    small = replace(get_recipe("digits"), epochs=1, batch_size=10, input_size=8, workers=0, compile=True)
    recipe = replace(small, inductor=("realize_reads_threshold=2",), deterministic=True)
    training.train(recipe, data=numbers, output=tmp_path / "run", max_steps=1)
    assert given == [{"dynamic": False, "options": {"deterministic": True, "realize_reads_threshold": 2}}]
    # No part of what must be the same.
    training.train(replace(recipe, inductor=()), data=numbers, output=tmp_path / "run", resume=True, max_steps=2)
