"""A fused network must be the same function: exact in float64, and no less accurate than timm's below it."""

from __future__ import annotations

import copy
import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from plausible_networks import network
from timm.layers import SEModule
from timm.models import senet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.models.fusion import BlockFusion, FusedBottleneck, fuse
from seresnet_hub.models.training_blocks import use_training_blocks
from seresnet_hub.models.variants import CIFAR_VARIANTS, PAPER_VARIANTS

# Every SE network of timm's ResNet and SENet code. Those of bottlenecks are fused, the others' norms are folded.
BOTTLENECKS = {
    "seresnet50", "seresnet50t", "seresnet101", "seresnet152", "seresnet152d", "seresnet200d", "seresnet269d",
    "seresnetaa50d", "seresnext26d_32x4d", "seresnext26t_32x4d", "seresnext50_32x4d", "seresnext101_32x4d",
    "seresnext101_32x8d", "seresnext101_64x4d", "seresnext101d_32x8d", "seresnextaa101d_32x8d",
    "seresnextaa201d_32x8d", "senet154", "legacy_senet154", "legacy_seresnet50", "legacy_seresnet101",
    "legacy_seresnet152", "legacy_seresnext26_32x4d", "legacy_seresnext50_32x4d", "legacy_seresnext101_32x4d",
    "resnetrs50", "resnetrs101", "resnetrs152", "resnetrs200", "resnetrs270", "resnetrs350", "resnetrs420",
}  # fmt: skip
BASIC = {"seresnet18", "seresnet34", "legacy_seresnet18", "legacy_seresnet34"}
# Other code of timm's with SE-ResNets: without norms, or with attention in place of convolutions (byobnet).
NOT_COVERED = {
    "nf_seresnet26", "nf_seresnet50", "nf_seresnet101", "sebotnet33ts_256", "sehalonet33ts", "seresnet33ts",
    "seresnext26ts",
}  # fmt: skip
QUICK = (
    "seresnet18", "seresnet50", "seresnext26t_32x4d", "seresnetaa50d", "legacy_seresnet18", "legacy_seresnext26_32x4d",
    "resnetrs50",
)  # fmt: skip


def pictures(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@torch.no_grad()
def assert_same(model: nn.Module, fused: nn.Module, images: torch.Tensor) -> None:
    expected, found = model(images), fused(images)
    assert expected.std() > 0.01, "equal constants would prove nothing"
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-12


def outcomes(fused: nn.Module) -> set[str]:
    return {block.outcome for block in fused.fusion}


QUICK_WEIGHTS = pytest.mark.usefixtures("quick_weights")


def sure(name: str) -> object:
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [sure(name) for name in sorted(BOTTLENECKS | BASIC)])
@QUICK_WEIGHTS
def test_logits_are_timms_in_float64(name: str) -> None:
    model = network(name)
    fused = fuse(model)
    assert outcomes(fused) == ({"fused"} if name in BOTTLENECKS else {"folded"})
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert_same(model, fused, pictures())


@pytest.mark.parametrize(("name", "outcome"), [("seresnext26t_32x4d", "fused"), ("seresnet18", "folded")])
@QUICK_WEIGHTS
def test_blocks_for_training_are_fused_like_timms(name: str, outcome: str) -> None:
    model = network(name)
    assert use_training_blocks(model)
    fused = fuse(model)
    assert outcomes(fused) == {outcome}
    assert_same(model, fused, pictures())


def test_the_list_of_timms_se_networks_is_complete() -> None:
    named = {name for name in timm.list_models() if re.match(r"(legacy_|nf_)?se(res|net|bot|halo)|resnetrs", name)}
    assert named - set(seresnet_hub.list_models()) == BOTTLENECKS | BASIC | NOT_COVERED


@pytest.mark.slow
def test_no_other_resnet_of_timms_has_se() -> None:
    with torch.device("meta"):
        found = {
            name
            for module in ("resnet", "senet")
            for name in timm.list_models(module=module)
            if any(isinstance(m, (SEModule, senet.SEModule)) for m in timm.create_model(name).modules())
        }
    assert found == BOTTLENECKS | BASIC


PLAIN_OR_ELSEWHERE = {"pre", "post", "identity", "3x3", None}


@pytest.mark.parametrize("variant", [v for v in CIFAR_VARIANTS if v.name.split("_")[0].endswith(("t20", "t164"))])
def test_cifar_variants(variant: object) -> None:
    # Where the shortcut is gated too, many blocks are chaotic with any weights that are drawn.
    model = network(variant.name, size=16, layers=(3, 3, 3))
    fused = fuse(model)
    fusible = variant.block == "bottleneck" and variant.placement == "standard"
    assert outcomes(fused) == ({"fused"} if fusible else {"folded"})
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert_same(model, fused, pictures(size=16))


@pytest.mark.parametrize("variant", PAPER_VARIANTS, ids=lambda variant: variant.name)
@QUICK_WEIGHTS
def test_paper_variants(variant: object) -> None:
    model = network(variant.name, layers=(1, 2, 1, 1))
    fused = fuse(model)
    if variant.stage is not None:
        stage = f"layer{variant.stage - 1}."
        assert {block.block for block in fused.fusion if block.outcome == "fused"} == {
            block.block for block in fused.fusion if block.block.startswith(stage)
        }
        assert outcomes(fused) == {"fused", "folded"}
    else:
        assert outcomes(fused) == ({"fused"} if variant.from_timm else {"folded"})
    assert_same(model, fused, pictures())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"drop_path_rate": 0.2, "drop_block_rate": 0.1, "drop_rate": 0.3},
        {"output_stride": 8},
        {"stem_type": "deep", "stem_width": 32, "avg_down": True, "replace_stem_pool": True},
        {"act_layer": nn.SiLU},
        {"norm_layer": partial(nn.BatchNorm2d, affine=False), "zero_init_last": False},
        {"block_args": {"attn_layer": partial(SEModule, norm_layer=nn.BatchNorm2d, bias=False)}},
        {"block_args": {"attn_layer": "eca"}},
        {"block_args": {"attn_layer": None}},
        {"global_pool": "max", "num_classes": 7, "in_chans": 3},
    ],
    ids=str,
)
@QUICK_WEIGHTS
def test_timms_arguments(kwargs: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(self: SEModule, *args: object, **rest: object) -> None: ...

    torch.manual_seed(0)
    model = timm.create_model("seresnet50", layers=(1, 2, 1, 1), **kwargs).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.6, 1.6)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
    fused = fuse(model)
    attention = kwargs.get("block_args", {"attn_layer": SEModule})["attn_layer"]
    assert outcomes(fused) == ({"folded"} if attention in ("eca", None) else {"fused"})
    assert_same(model, fused, pictures())


@QUICK_WEIGHTS
def test_blocks_that_cannot_be_fused_are_listed_with_the_reason() -> None:
    class Own(Bottleneck):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    cases = {
        "Own is a block this package does not know": ("left", {"block": Own}),
        "not all its norms are batch norms": ("left", {"norm_layer": timm.layers.GroupNorm}),
        "max squeeze": ("folded", {"block_args": {"attn_layer": partial(SEModule, add_maxpool=True)}}),
        "EcaModule, not timm's SE module": ("folded", {"block_args": {"attn_layer": "eca"}}),
        "no SE unit": ("folded", {"block_args": {"attn_layer": None}}),
        "basic block": ("folded", {"block": BasicBlock}),
    }
    for reason, (outcome, kwargs) in cases.items():
        torch.manual_seed(0)
        model = timm.create_model("seresnet50", layers=(1, 1, 1, 1), zero_init_last=False, **kwargs).double().eval()
        fused = fuse(model)
        assert [block.block for block in fused.fusion] == ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
        assert all(block.outcome == outcome and reason in block.reason for block in fused.fusion), fused.fusion
        assert_same(model, fused, pictures())
    assert fuse(network("seresnet50", layers=(1, 1, 1, 1))).fusion[0] == BlockFusion(block="layer1.0", outcome="fused")


@QUICK_WEIGHTS
def test_what_a_fused_block_would_not_call_stays() -> None:
    model = network("seresnext26t_32x4d", size=64)
    seen: list[torch.Tensor] = []
    model.layer2[0].conv3.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.bn1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    fused = fuse(model)
    left = [block for block in fused.fusion if block.outcome == "left"]
    assert [(block.block, block.reason) for block in left] == [("layer2.0", "it has hooks, which would not be called")]
    assert type(fused.bn1) is not torch.nn.Identity
    assert_same(model, fused, pictures())
    assert len(seen) == 4


def test_norms_that_use_the_batch_are_not_folded() -> None:
    norm = partial(nn.BatchNorm2d, track_running_stats=False)
    torch.manual_seed(0)
    model = timm.create_model("seresnet50", layers=(1, 1, 1, 1), norm_layer=norm).double().eval()
    fused = fuse(model)
    assert outcomes(fused) == {"left"}
    assert_same(model, fused, pictures(4))


@QUICK_WEIGHTS
def test_frozen_norms_are_folded() -> None:
    model = network("seresnet50", layers=(1, 1, 1, 1))
    frozen = timm.layers.freeze_batch_norm_2d(copy.deepcopy(model)).double()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    fused = fuse(frozen)
    assert outcomes(fused) == {"fused"}
    assert_same(model, fused, pictures())


@QUICK_WEIGHTS
def test_the_model_is_not_changed() -> None:
    model = network("seresnet50", layers=(1, 1, 1, 1)).train()
    model.layer2.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    fused = fuse(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module.training for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert own.isdisjoint(parameter.data_ptr() for parameter in fused.parameters())


@QUICK_WEIGHTS
def test_gradients_of_maps_are_timms_where_the_images_take_some() -> None:
    """As for class activation maps (Grad-CAM); the weights are frozen, so nothing else makes a gradient."""
    torch.manual_seed(0)
    model = timm.create_model("seresnet50", zero_init_last=False).eval()
    gradients = []
    for made in (model.double(), fuse(model.double())):
        maps: list[torch.Tensor] = []
        hook = made.layer2.register_forward_hook(lambda _layer, _inputs, output, maps=maps: maps.append(output))
        images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        logits = made(images.requires_grad_())
        hook.remove()
        gradients.append(torch.autograd.grad(logits[0, 3], maps[0])[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12 * float(gradients[0].abs().max()))
    assert not fuse(model)(images.detach()).requires_grad


@QUICK_WEIGHTS
def test_what_scripts_use_is_kept(photo: object) -> None:
    model = network("seresnet50", layers=(1, 1, 1, 1), num_classes=12).float()
    fused = fuse(model)
    assert (fused.num_classes, fused.pretrained_cfg) == (12, model.pretrained_cfg)
    found, expected = (seresnet_hub.predict(one, photo) for one in (fused, model))
    assert [c["index"] for c in found[0]] == [c["index"] for c in expected[0]]
    for stage in (None, 0, 2, -1):
        features = [seresnet_hub.extract_features(one, photo, stage=stage) for one in (fused, model)]
        torch.testing.assert_close(*features, rtol=1e-4, atol=1e-4)
    model.set_grad_checkpointing()
    assert not fuse(model).grad_checkpointing
    taps = timm.create_model("seresnet50", features_only=True).eval()
    assert outcomes(fuse(taps)) == {"fused"}
    images = pictures().float()
    with torch.no_grad():
        for found_map, expected_map in zip(fuse(taps)(images), taps(images), strict=True):
            torch.testing.assert_close(found_map, expected_map, rtol=1e-3, atol=1e-4)


def test_scripts_fuse_on_request(
    tmp_path: Path, photo: Image.Image, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_scripts import QUICK, call

    photo.save(tmp_path / "photo.png")
    assert call("train", "--output", tmp_path / "run", *QUICK, capfd=capfd)[0] == 0
    model = f"local-dir:{tmp_path / 'run'}"
    fused: list[nn.Module] = []
    monkeypatch.setattr("seresnet_hub.models.fusion.fuse", lambda model: fused.append(model) or fuse(model))
    results = {}
    for arguments in (("predict", model, tmp_path / "photo.png"), ("validate", model, "--data", "digits")):
        for more in ((), ("--fuse",)):
            code, out, _ = call(*arguments, *more, capfd=capfd)
            assert code == 0
            results[arguments[0], more] = json.loads(out)
    assert len(fused) == 2
    best, best_fused = (results["predict", more]["predictions"][0]["classes"][0] for more in ((), ("--fuse",)))
    assert best_fused["score"] == pytest.approx(best["score"], abs=1e-4)
    loss, loss_fused = (results["validate", more]["loss"] for more in ((), ("--fuse",)))
    assert loss_fused == pytest.approx(loss, rel=1e-4)


def test_wrong_input_is_said() -> None:
    with pytest.raises(InputError, match="fuse takes a model, not 'seresnet50'"):
        fuse("seresnet50")
    with pytest.raises(InputError, match="MobileNetV3 has no blocks of a ResNet"):
        fuse(timm.create_model("mobilenetv3_small_050"))
    with pytest.raises(InputError, match="no blocks of a ResNet"):
        fuse(timm.create_model("seresnet20_cifar").layer1[0])  # a block alone is no network
    with pytest.raises(InputError, match="fused already"):
        fuse(fuse(timm.create_model("seresnet20_cifar")))
    with pytest.raises(InputError, match="compiled already"):
        fuse(torch.compile(timm.create_model("seresnet20_cifar")))
    with torch.device("meta"):
        model = timm.create_model("seresnet20_cifar")
    with pytest.raises(InputError, match="meta device"):
        fuse(model)


# --- precision --------------------------------------------------------------------------------------------------------

ERROR_NETWORKS: tuple[tuple[str, dict[str, object]], ...] = (
    ("seresnet50", {"layers": (1, 2, 2, 1)}),
    ("seresnext50_32x4d", {"layers": (1, 2, 2, 1)}),
    ("legacy_seresnet18", {"drop_rate": 0.0}),
)


def with_torchs_folding(model: nn.Module) -> nn.Module:
    """timm's network with its norms folded by torch's own function, as compilers do to frozen networks."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        children = module._modules
        for name, norm_name in (*pairwise(children), ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")):
            conv, norm = children.get(name), children.get(norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                children[name], children[norm_name] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return model


def ratios_of_errors(kinds: dict[str, Callable[[nn.Module], nn.Module]], draws: int) -> dict[str, float]:
    """Ratios of (fused / other) of the distance to float64, geometric means over networks and draws, in one layout."""
    logs: dict[str, list[float]] = {}
    for (name, kwargs), seed in product(ERROR_NETWORKS, range(draws)):
        model = network(name, seed=seed, **kwargs).float()
        networks = {"fused": fuse(model), "folded": with_torchs_folding(model), "timm": model}
        exact = copy.deepcopy(model).double()
        for kind, made in kinds.items():
            images = pictures(4).to(torch.bfloat16).to(torch.bfloat16 if kind == "bf16" else torch.float32)
            with torch.no_grad():
                expected = exact(images.double())
                with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
                    errors = {
                        whose: distance(
                            made(copy.deepcopy(one).to(memory_format=torch.channels_last))(images), expected
                        )
                        for whose, one in networks.items()
                    }
            for whose in ("folded", "timm"):
                logs.setdefault(f"{kind} {whose}", []).append(math.log(errors["fused"] / errors[whose]))
    ratios = {kind: round(math.exp(statistics.mean(values)), 3) for kind, values in logs.items()}
    print(ratios)
    return ratios


@pytest.mark.slow
def test_rounding_errors_are_no_larger_than_timms() -> None:
    """The bounds leave room for chance; in bf16 the norms' own roundings weigh more than those of folded weights."""
    kinds = {"fp32": lambda model: model, "autocast": lambda model: model, "bf16": lambda model: model.bfloat16()}
    ratios = ratios_of_errors(kinds, 2)
    assert all(ratio < 1.03 for ratio in ratios.values()), ratios
    assert ratios["bf16 timm"] < 0.95, ratios


@pytest.mark.slow
def test_rounding_errors_are_no_larger_than_timms_where_both_are_compiled() -> None:
    from torch._inductor import config

    with config.patch(freezing=True):
        ratios = ratios_of_errors({"compiled": torch.compile}, 1)
    assert all(ratio < 1.03 for ratio in ratios.values()), ratios


@QUICK_WEIGHTS
def test_folding_rounds_once() -> None:
    """The folded weights of a float32 network are those of its float64 copy, rounded."""
    model = network("seresnet50", layers=(1, 1, 1, 1)).float()
    single, double = fuse(model).state_dict(), fuse(copy.deepcopy(model).double()).state_dict()
    assert single.keys() == double.keys()
    assert all(torch.equal(tensor, double[name].to(tensor.dtype)) for name, tensor in single.items())


# --- compilers, layouts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seresnet50", "legacy_seresnet50"])
@QUICK_WEIGHTS
def test_layouts_and_autocast(name: str) -> None:
    model = network(name, **({"layers": (1, 1, 1, 1)} if name == "seresnet50" else {})).float()
    images = pictures().float()
    with torch.no_grad():
        expected = fuse(model)(images)
        for layout in (torch.contiguous_format, torch.channels_last):
            last = fuse(copy.deepcopy(model).to(memory_format=layout))
            assert all(
                parameter.is_contiguous(memory_format=torch.channels_last)
                for parameter in last.parameters()
                if parameter.ndim == 4
            )
            assert last.forward_features(images).is_contiguous(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(last(images), expected, rtol=1e-4, atol=1e-4)
        first = fuse(model).to(memory_format=torch.contiguous_format)
        torch.testing.assert_close(first(images.contiguous()), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            half = last(images)
        assert half.dtype == torch.bfloat16
        assert distance(half, expected.double()) < 0.1


@pytest.mark.parametrize("name", ["seresnet50", "seresnet164_cifar_pre"])
@QUICK_WEIGHTS
def test_it_compiles_without_graph_breaks(name: str) -> None:
    small = {"layers": (1, 1, 1, 1)} if name == "seresnet50" else {"layers": (1, 1, 1)}
    model = network(name, size=32, **small)
    images = pictures(size=32)
    torch._dynamo.reset()
    compiled = torch.compile(fuse(model), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-11, atol=1e-11)


@QUICK_WEIGHTS
def test_it_exports_for_any_batch() -> None:
    model = network("seresnet50", layers=(1, 1, 1, 1))
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(fuse(model), (pictures(),), dynamic_shapes=({0: batch},))
    images = pictures(5)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(images), model(images), rtol=1e-11, atol=1e-11)


@pytest.mark.slow
def test_inductor_passes_over_the_wide_map_one_time_less() -> None:
    """Counted in what Inductor generates: six reads and writes of the wide map in timm's block, five in the fused."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    from _benchmark_inference import INFERENCE
    from _benchmark_networks import list_kernels

    networks = {name: timm.create_model(name, layers=(2, 1, 1, 1)).eval() for name in ("resnet50", "seresnet50")}
    networks["fused"] = fuse(networks["seresnet50"])
    assert isinstance(networks["fused"].layer1[1], FusedBottleneck)
    kernels = list_kernels(INFERENCE, networks, 32, torch.device("cpu"))
    wide = {name: sum(k["wide_reads"] + k["wide_writes"] for k in listed) for name, listed in kernels.items()}
    assert wide == {"resnet50": 3, "seresnet50": 6, "fused": 5}


@pytest.mark.slow
def test_the_benchmark_prints_its_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from test_scripts import call

    picture = tmp_path / "inference.png"
    code, out, _ = call(
        "benchmark", "inference", "--batch-size", 2, "--size", 32, "--rounds", 2, "--mode", "eager",
        "--picture", picture, capfd=capfd,
    )  # fmt: skip
    assert code == 0
    (measurement,) = json.loads(out)["measurements"]
    networks = measurement["networks"]
    assert list(networks) == ["plain", "timm", "fused"]
    assert networks["timm"]["times_timm"] == networks["plain"]["times_plain"] == 1
    assert all(len(one["images_per_second_rounds"]) == 2 for one in networks.values())
    assert networks["plain"]["least_bytes"] < networks["fused"]["least_bytes"]
    assert picture.read_bytes().startswith(b"\x89PNG")
