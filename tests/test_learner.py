"""A step must be the textbook's, by the recipe's schedule and groups, and the same however it is computed."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from small_runs import SMALL, refused, weights
from torch._dynamo.testing import CompileCounter

import seresnet_hub
from seresnet_hub.data.plan import Plan
from seresnet_hub.errors import InputError
from seresnet_hub.training import train as training
from seresnet_hub.training.initial_model import require_mixable
from seresnet_hub.training.learner import piece_sizes


def test_the_learning_rate_follows_the_cosine(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def record(self: torch.optim.SGD, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    training.train(SMALL, data=numbers, output=tmp_path / "run")
    expected = [0.05 * (1 + torch.cos(torch.tensor(torch.pi * k / 8)).item()) for k in range(8)]
    assert rates == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "repeats", "processes", "message"),
    [
        (2064, 3, 8, None),
        (12, 4, 8, "these share 12 in a batch"),
        (48, 3, 8, None),  # 16 images, 2 of each process, and 6 rows
        (2046, 3, 8, "need an equal, even number of images on each of 8 processes, and these share 2,046 in a batch"),
        (100, 1, 4, "on each of 4 processes, and these share 100 in a batch"),
        (100, 1, 2, None),
        (10, 1, 3, "on each of 3 processes, and these share 10 in a batch"),
    ],
)
def test_no_process_is_left_out_of_mixing(batch_size: int, repeats: int, processes: int, message: str | None) -> None:
    recipe = replace(SMALL, mixup=0.1, batch_size=batch_size, repeated_augmentation=repeats)
    plan = Plan(unit_rows=(5000,), batch_size=batch_size // repeats, lanes=24, order=None)
    with pytest.raises(InputError, match=message) if message else nullcontext():
        require_mixable(recipe, plan, processes)


def test_the_recipe_reaches_the_optimiser(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    groups: list[list[tuple[float, int]]] = []
    step = torch.optim.SGD.step

    def record(self: torch.optim.SGD, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        groups.append([(group["weight_decay"], len(group["params"])) for group in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    warm = replace(SMALL, epochs=2, warmup_epochs=1, decay_all=False, weight_decay=0.125, label_smoothing=0.1)
    training.train(warm, data=numbers, output=tmp_path / "run")
    assert rates[:5] == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.05 * (1 + math.cos(math.pi / 2))], rel=1e-6)
    matrices = sum(p.ndim > 1 for p in timm.create_model("seresnet20_cifar").parameters())
    everything = len(list(timm.create_model("seresnet20_cifar").parameters()))
    assert sorted(groups[0]) == sorted([(0.0, everything - matrices), (0.125, matrices)])
    groups.clear()
    training.train(SMALL, data=numbers, output=tmp_path / "all")
    assert groups[0] == [(SMALL.weight_decay, everything)]


def test_the_first_step_is_the_textbooks(tmp_path: Path, numbers: str) -> None:
    """One step of plain SGD, recomputed here: the same start, batch, label smoothing and weight decay."""
    recipe = replace(SMALL, optimizer="momentum", label_smoothing=0.2, momentum=0.0, weight_decay=0.01, epochs=1)
    training.train(recipe, data=numbers, output=tmp_path / "run", max_steps=1)
    torch.manual_seed(recipe.seed)
    model = timm.create_model(recipe.model, num_classes=10).train()
    batch = next(iter(seresnet_hub.loader(numbers, "train", recipe, seed=recipe.seed)))
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    logits = model((batch.images / 255 - mean) / std)
    smooth = torch.full((10, 10), 0.02).scatter_(1, batch.labels[:, None], 0.82)
    (-(smooth * logits.log_softmax(1)).sum(1).mean()).backward()
    trained = weights(tmp_path / "run")
    for name, parameter in model.named_parameters():
        expected = parameter - recipe.learning_rate * (parameter.grad + 0.01 * parameter)
        torch.testing.assert_close(trained[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_what_only_changes_how_it_is_computed_gives_the_same_weights(tmp_path: Path, numbers: str) -> None:
    """Activation checkpointing repeats the forward pass; BatchNorm's statistics must not be updated twice by it."""
    training.train(SMALL, data=numbers, output=tmp_path / "plain", max_steps=2)
    training.train(replace(SMALL, grad_checkpointing=True), data=numbers, output=tmp_path / "again", max_steps=2)
    again = weights(tmp_path / "again")
    for name, tensor in weights(tmp_path / "plain").items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    refused("sync_bn=True: torch has it for CUDA", replace(SMALL, sync_bn=True), data=numbers, output=tmp_path / "c")


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(tmp_path: Path, numbers: str) -> None:
    training.train(SMALL, data=numbers, output=tmp_path / "eager", max_steps=4)
    for kind, recipe in (
        ("compiled", replace(SMALL, compile=True)),
        ("blocks", replace(SMALL, compile=True, se_blocks=True)),
    ):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        result = training.train(recipe, data=numbers, output=tmp_path / kind, max_steps=4)
        assert result["steps"] == 4
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"], "nothing was compiled"
        compiled = weights(tmp_path / kind)
        for name, tensor in weights(tmp_path / "eager").items():
            torch.testing.assert_close(compiled[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert any(not torch.equal(tensor, compiled[name]) for name, tensor in weights(tmp_path / "compiled").items()), (
        "to the last bit: the same blocks ran"
    )


@pytest.mark.slow
def test_a_compiled_run_resumes_to_the_bit(tmp_path: Path, numbers: str) -> None:
    """It stops after the first short batch, of another size; what was compiled for it must not serve whole ones."""
    compiled = replace(SMALL, compile=True)
    training.train(compiled, data=numbers, output=tmp_path / "whole", max_steps=6)
    torch._dynamo.reset()
    training.train(compiled, data=numbers, output=tmp_path / "parts", max_steps=4)
    torch._dynamo.reset()
    training.train(compiled, data=numbers, output=tmp_path / "parts", max_steps=6, resume=True)
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(tmp_path / "parts").items())


def test_short_batches_compile_nothing(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fourth one is short, and the run that goes on begins with it."""
    counter = CompileCounter()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, *, dynamic, options: compile(model, backend=counter))
    for stop, graphs in ((3, 1), (4, 0), (9, 1)):
        torch._dynamo.reset()
        counter.clear()
        recipe = replace(SMALL, compile=True, epochs=3)
        training.train(recipe, data=numbers, output=tmp_path / "run", max_steps=stop, resume=True)
        assert counter.frame_count == graphs, stop


@pytest.mark.parametrize(("images", "pieces", "sizes"), [(10, 1, {10}), (10, 3, {4, 2}), (12, 3, {4}), (2, 3, {1})])
def test_the_sizes_of_pieces_are_those_of_torchs_chunks(images: int, pieces: int, sizes: set[int]) -> None:
    assert piece_sizes(images, pieces) == sizes == {len(t) for t in torch.zeros(images).chunk(pieces)}


def test_blocks_for_training_need_something_to_gain(tmp_path: Path, numbers: str) -> None:
    refused("se_blocks=true has no effect without compile=true: set both", replace(SMALL, se_blocks=True),
            data=numbers, output=tmp_path / "out")  # fmt: skip
    plain = replace(SMALL, model="resnet20_cifar", se_blocks=True, compile=True)
    refused("resnet20_cifar has no block of timm's with an SE unit", plain, data=numbers, output=tmp_path / "out")
