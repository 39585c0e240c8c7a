"""A compiled model must compute what it computed before, keep its face, and never compile for a shorter last batch."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch._inductor import config as inductor
from torch._inductor.choices import InductorChoices

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.models.compiling import (
    INFERENCE_SETTINGS,
    compile_for_inference,
    compiler_errors,
    inference_settings,
    require_compiler,
)
from seresnet_hub.models.fusion import fuse


def network() -> nn.Module:
    """A small SE-ResNet with statistics that are not the initial ones."""
    torch.manual_seed(0)
    model = timm.create_model("seresnet164_cifar", layers=(1, 1, 1), zero_init_last=False)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 3, 32, 32))
    return model.eval()


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """What takes a compiler the least time."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 15 * 15, 10)
    model = nn.Sequential(*layers)
    model(pictures(8))
    return model.eval()


@pytest.fixture(scope="module")
def compiled(tiny: nn.Module) -> nn.Module:
    """`tiny`, compiled by Inductor for four images."""
    compiled = compile_for_inference(tiny)
    compiled(pictures(4))
    return compiled


Compilation = dict[str, Any]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Compilation]:
    """Replace `torch.compile` by one that runs the function as it is, and note what it is called with and when."""
    seen: list[Compilation] = []

    def compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        made: Compilation = {"freezing": inductor.freezing, "grad": torch.is_grad_enabled(), "sizes": [], **options}
        seen.append(made)

        def call(images: torch.Tensor) -> torch.Tensor:
            made["sizes"].append(len(images))
            made["strides"] = images.stride()
            return function(images)

        return call

    monkeypatch.setattr(torch, "compile", compile)
    return seen


@torch.no_grad()
def test_it_computes_the_same(tiny: nn.Module, compiled: nn.Module) -> None:
    images = pictures(4)
    expected = tiny(images)
    assert expected.std() > 0.01, "equal constants would prove nothing"
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(compiled(given), expected, rtol=1e-4, atol=1e-5)
    with torch.enable_grad():
        assert not compiled(images.requires_grad_()).requires_grad


@pytest.mark.slow
@torch.no_grad()
def test_a_fused_network_computes_the_same(model: nn.Module) -> None:
    images = pictures(4)
    expected = model(images)
    assert expected.std() > 0.01, "equal constants would prove nothing"
    torch.testing.assert_close(fuse(model, compile=True)(images), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_fewer_images_run_the_same_code(compiled: nn.Module) -> None:
    images = pictures(4)
    whole = compiled(images)
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (3, 1):
            part = compiled(images[:count])
            assert part.shape == (count, 10)
            assert torch.equal(part, whole[:count])
            assert part.untyped_storage().nbytes() == part.nbytes, "a part keeps the whole in memory"
        picture = images[2].permute(1, 2, 0).contiguous().permute(2, 0, 1)[None]  # as Pillow's pixels lie
        assert torch.equal(compiled(picture), whole[2:3])


@torch.no_grad()
def test_weights_are_constants_to_the_compiler(tiny: nn.Module) -> None:
    """Which they are only where Inductor's `freezing` is on before dynamo begins."""
    compiled = compile_for_inference(tiny)
    images = pictures(2)
    before = compiled(images)
    compiled._orig_mod[-1].weight.zero_()
    assert torch.equal(compiled(images), before)
    compiled.load_state_dict(compiled.state_dict())  # says that the weights are others
    torch.testing.assert_close(compiled(images), tiny[-1].bias.expand(2, -1), rtol=1e-4, atol=1e-5)
    assert tiny[-1].weight.any(), "the model itself was changed"
    assert not inductor.freezing


@pytest.mark.slow
@torch.no_grad()
def test_it_computes_the_same_in_bf16(model: nn.Module) -> None:
    """Whole, and under autocast, with errors no larger than the uncompiled model's."""
    images = pictures(4)
    exact = copy.deepcopy(model).double()(images.double())
    compiled = fuse(model, compile="epilogue")

    def distance(logits: torch.Tensor) -> float:
        return float((logits.double() - exact).norm() / exact.norm())

    with torch.autocast("cpu", torch.bfloat16):
        assert distance(compiled(images)) < 1.5 * distance(model(images))
    narrow, narrow_images = copy.deepcopy(model).bfloat16(), images.bfloat16()
    logits = compiled.bfloat16()(narrow_images)
    assert logits.dtype == torch.bfloat16
    assert distance(logits) < 1.5 * distance(narrow(narrow_images))


def test_it_compiles_again_only_for_what_is_new(model: nn.Module, stand_in: list[Compilation]) -> None:
    compiled = compile_for_inference(model)
    for count in (4, 2, 4, 1):
        compiled(pictures(count))
    assert [one["sizes"] for one in stand_in] == [[4, 4, 4, 4]]
    compiled(pictures(6))
    compiled(pictures(5))
    assert [one["sizes"] for one in stand_in[1:]] == [[6, 6]]
    with torch.inference_mode():
        compiled(pictures(6))
    with torch.autocast("cpu", torch.bfloat16):
        compiled(pictures(6))
    compiled(torch.randn(6, 3, 64, 64))
    assert len(stand_in) == 5
    compiled.bfloat16()(pictures(3).bfloat16())
    assert stand_in[-1]["sizes"] == [3]
    assert all(one["freezing"] and not one["grad"] for one in stand_in)
    assert all(one["dynamic"] is False and one["fullgraph"] for one in stand_in)
    assert not inductor.freezing
    assert stand_in[0]["strides"] == (3 * 32 * 32, 1, 3 * 32, 3)


def test_it_keeps_the_models_face(model: nn.Module, photo: Image.Image, stand_in: list[Compilation]) -> None:
    compiled = fuse(model, compile=True)
    for name in ("num_classes", "pretrained_cfg", "feature_info"):
        assert getattr(compiled, name) == getattr(model, name)
    assert [block.outcome for block in compiled.fusion] == ["fused"] * 3
    assert not compiled.training
    with pytest.raises(AttributeError, match="no_such_attribute"):
        _ = compiled.no_such_attribute
    (expected,), (found,) = (seresnet_hub.predict(one, photo) for one in (model, compiled))
    assert [one["index"] for one in found] == [one["index"] for one in expected]
    assert len(stand_in) == 1
    features = [seresnet_hub.extract_features(one, photo) for one in (model, compiled)]
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-5)
    copied = copy.deepcopy(compiled)
    copied.to("meta")(torch.zeros(1, 3, 32, 32, device="meta"))
    assert len(stand_in) == 1, "shapes need no compiler"
    torch.testing.assert_close(compiled(pictures(2)), model(pictures(2)).detach(), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_compiled_is_one_line(model: nn.Module, compiled: nn.Module) -> None:
    with pytest.raises(InputError, match="takes a model, not 'seresnet50'"):
        compile_for_inference("seresnet50")  # type: ignore[arg-type]
    for already in (compiled, torch.compile(model)):
        with pytest.raises(InputError, match="compiled already"):
            compile_for_inference(already)
        with pytest.raises(InputError, match="compiled already"):
            fuse(already)
    for make in (compile_for_inference, fuse):
        with pytest.raises(InputError, match="settings 'fast': there are default, epilogue"):
            make(model, "fast")
    with pytest.raises(InputError, match="cannot be trained"):
        compiled.train()

    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(InputError, match="the model cannot be compiled") as caught:
        compile_for_inference(Branching())(pictures(1))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be compiled"):
        compiled(torch.randn(1, 4, 32, 32))  # a channel too many


def test_without_a_compiler_nothing_is_begun(model: nn.Module) -> None:
    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}):
        for make in (compile_for_inference, lambda given: fuse(given, compile=True)):
            with pytest.raises(InputError, match=r"needs a C\+\+ compiler, and there is none: install g\+\+"):
                make(model)
        fuse(model)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="needs Triton on a GPU"):
            require_compiler(torch.device("cuda"))


def test_errors_that_are_not_the_compilers_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError), compiler_errors():
        raise ZeroDivisionError


def test_this_torch_has_the_settings() -> None:
    known = inductor.get_config_copy()
    for settings in INFERENCE_SETTINGS.values():
        for kind, chosen in settings.items():
            assert not chosen.keys() - known.keys()
            json.dumps(chosen)  # benchmarks note them
            assert chosen.items() <= inference_settings("epilogue", torch.device(kind)).items()


def test_few_of_tritons_products_are_candidates_and_never_none() -> None:
    """Of those that Inductor has, by what it calls them; tiles shrink with the product, stages do not."""
    wanted = re.compile(INFERENCE_SETTINGS["epilogue"]["cuda"]["test_configs.autotune_choice_desc_regex"])

    def kept(smallest: int) -> set[tuple[int, ...]]:
        tiles = set()
        for one in InductorChoices().get_config_heuristics("cuda").mm_configs:
            m, n, k = (min(size, smallest) for size in (one.block_m, one.block_n, one.block_k))
            tile = f"BLOCK_K={k}, BLOCK_M={m}, BLOCK_N={n}, EVEN_K=True, GROUP_M=8"
            if wanted.search(f"{tile}, num_stages={one.num_stages}, num_warps=4"):
                tiles.add((m, n, k, one.num_stages))
        return tiles

    assert 5 <= len(kept(1024)) <= 8
    assert min(min(m, n) for m, n, _, _ in kept(1024)) == 64
    assert kept(16)
    assert wanted.search(""), "cuDNN's convolutions have no description"
