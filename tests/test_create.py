"""Every architecture we register must do all that a timm user expects of a model, through timm's own calls."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable

import pytest
import timm
import timm.data
import torch
from torch import nn
from warm_python import run_python

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.models import create as models
from seresnet_hub.models.published_weights import OWN_WEIGHTS

pytestmark = pytest.mark.usefixtures("quick_weights")
NAMES = seresnet_hub.list_models()
# Those whose only difference from another is a number: a depth, a ratio, a stage, a gate.
LIKE_ANOTHER = [
    name for name in NAMES if any(part in name for part in ("56", "110", "_r2", "_r4", "_r32", "tanh", "relu"))
]
LIKE_ANOTHER += ["seresnet50_stage2", "seresnet50_stage4", "resnet164_cifar"]
LIKE_ANOTHER += ["seresnet164_cifar_pre", "seresnet164_cifar_post", "seresnet164_cifar_identity", "seresnet50_identity"]
DESIGNS = [pytest.param(name, marks=pytest.mark.slow if name in LIKE_ANOTHER else ()) for name in NAMES]
SMALL_DESIGNS = [name for name in NAMES if "20_cifar" in name] + [
    "seresnet50_pre",
    "seresnet50_max",
    "seresnet50_stage3",
]


def size_for(name: str) -> int:
    return 16 if "cifar" in name else 64


def shallow(name: str) -> dict[str, tuple[int, ...]]:
    """Arguments for a network with each kind of block that it has, and no more of them than it takes."""
    return {"layers": (2, 2, 1) if "cifar" in name else (1, 2, 1, 1)}


def images(name: str, batch: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, size_for(name), size_for(name), generator=torch.Generator().manual_seed(0))


def total_stride(name: str) -> int:
    return 4 if "cifar" in name else 32


@pytest.fixture(autouse=True)
def _same_weights_each_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_its_parts(name: str) -> None:
    model = timm.create_model(name).eval()
    x = images(name)
    with torch.no_grad():
        logits = model(x)
        features = model.forward_features(x)
        assert logits.shape == (1, model.num_classes)
        side = size_for(name) // total_stride(name)
        assert features.shape == (1, model.num_features, side, side)
        assert torch.equal(model.forward_head(features), logits)
        assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
        assert logits.isfinite().all()
        # Not the logits: SE on the identity path halves it in each of 54 blocks at the start, below their rounding.
        assert not torch.equal(model.forward_features(x.flip(-1)).flip(-1), features)
        assert features.abs().max() > 0


@pytest.mark.parametrize("name", DESIGNS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = timm.create_model(name, zero_init_last=False, **shallow(name)).train()
    model(images(name, batch=2)).square().mean().backward()
    missing = [key for key, value in model.named_parameters() if value.grad is None]
    assert not missing
    assert all(value.grad.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize("name", DESIGNS)
def test_the_default_config_describes_the_model(name: str) -> None:
    model = timm.create_model(name)
    config = model.pretrained_cfg
    assert config["architecture"] == name
    state = model.state_dict()
    assert f"{config['classifier']}.weight" in state
    assert f"{config['first_conv']}.weight" in state
    assert state[f"{config['first_conv']}.weight"].shape[1] == config["input_size"][0]
    assert model.num_classes == config["num_classes"]
    side = config["input_size"][1] // total_stride(name)
    assert tuple(config["pool_size"]) == (side, side)
    resolved = timm.data.resolve_model_data_config(model)
    assert resolved["input_size"] == ((3, 32, 32) if "cifar" in name else (3, 224, 224))
    assert not any(key.startswith("layer4") for key in state) or "cifar" not in name


@pytest.mark.parametrize("name", DESIGNS)
def test_the_classifier_can_be_changed(name: str) -> None:
    model = timm.create_model(name, num_classes=7, **shallow(name)).eval()
    assert model.get_classifier().out_features == 7
    assert model.get_classifier(name_only=True) == "fc"
    x = images(name)
    assert model(x).shape == (1, 7)
    model.reset_classifier(3)
    assert model(x).shape == (1, 3)
    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    assert model(x).ndim == 4
    assert timm.create_model(name, num_classes=0, global_pool="", **shallow(name)).eval()(x).ndim == 4
    # Not head_hidden_size: timm doubles that for this pooling in its newer versions only.
    doubled = timm.create_model(name, global_pool="catavgmax", **shallow(name)).eval()
    assert doubled.get_classifier().in_features == 2 * model.num_features
    assert doubled(x).shape == (1, doubled.num_classes)


@pytest.mark.parametrize("name", DESIGNS)
def test_other_channel_counts(name: str) -> None:
    assert timm.create_model(name, in_chans=1, **shallow(name)).eval()(images(name, channels=1)).isfinite().all()


@pytest.mark.parametrize("name", DESIGNS)
def test_features_only_gives_the_stages(name: str) -> None:
    x = images(name)
    whole = timm.create_model(name, **shallow(name)).eval()
    torch.manual_seed(0)
    taps = timm.create_model(name, features_only=True, **shallow(name)).eval()
    with torch.no_grad():
        maps = taps(x)
        intermediates = whole.forward_intermediates(x, intermediates_only=True)
        final = whole.forward_features(x)
    assert len(maps) == len(intermediates) == len(whole.feature_info)
    for k, (feature, intermediate) in enumerate(zip(maps, intermediates, strict=True)):
        torch.testing.assert_close(feature, intermediate)
        assert feature.shape[1] == taps.feature_info.channels()[k]
        assert size_for(name) // feature.shape[-1] == taps.feature_info.reduction()[k]
    torch.testing.assert_close(maps[-1], final)
    chosen = timm.create_model(name, features_only=True, out_indices=(1, -1), **shallow(name)).eval()
    assert [f.shape for f in chosen(x)] == [maps[1].shape, maps[-1].shape]
    getter = timm.create_model(
        name, features_only=True, feature_cls="getter", out_indices=(0, 2), **shallow(name)
    ).eval()
    assert [f.shape for f in getter(x)] == [maps[0].shape, maps[2].shape]


@pytest.mark.parametrize("name", ["seresnet20_cifar", "seresnet50_post"])
def test_intermediates_can_be_chosen_and_pruned(name: str) -> None:
    model = timm.create_model(name).eval()
    x = images(name)
    last = len(model.feature_info) - 1
    with torch.no_grad():
        everything = model.forward_intermediates(x, intermediates_only=True)
        final, two = model.forward_intermediates(x, indices=[1, last])
        assert torch.equal(two[1], everything[last])
        assert torch.equal(final, everything[last])
        assert torch.equal(model.forward_intermediates(x, indices=2, intermediates_only=True)[0], everything[-2])
        pruned = copy.deepcopy(model)
        pruned.prune_intermediate_layers([1])
        early = pruned.forward_intermediates(x, indices=[1], intermediates_only=True, stop_early=True)
        assert torch.equal(early[0], everything[1])
    with pytest.raises((ValueError, AssertionError)):
        model.forward_intermediates(x, indices=[last + 1])


@pytest.mark.parametrize("name", DESIGNS)
def test_output_stride_keeps_resolution(name: str) -> None:
    stride = 2 if "cifar" in name else 8
    model = timm.create_model(name, output_stride=stride, **shallow(name)).eval()
    assert model.forward_features(images(name)).shape[-1] == size_for(name) // stride
    assert model.state_dict().keys() == timm.create_model(name, **shallow(name)).state_dict().keys()


@pytest.mark.parametrize("name", DESIGNS)
def test_grad_checkpointing_changes_nothing_but_memory(name: str) -> None:
    model = timm.create_model(name, zero_init_last=False, **shallow(name)).train()
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    x = images(name, batch=2)
    for one in (model, twin):
        one(x).sum().backward()
    for (key, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)


@pytest.mark.parametrize("name", DESIGNS)
def test_parameter_groups_cover_the_network(name: str) -> None:
    from timm.models import group_modules, group_parameters

    model = timm.create_model(name)
    groups = group_parameters(model, model.group_matcher(coarse=False))
    assert sorted(key for keys in groups.values() for key in keys) == sorted(k for k, _ in model.named_parameters())
    assert len(group_modules(model, model.group_matcher(coarse=True))) >= 4


@pytest.mark.parametrize("name", DESIGNS)
def test_drop_path_is_for_training_alone(name: str) -> None:
    model = timm.create_model(name, drop_path_rate=0.5, drop_rate=0.1, zero_init_last=False, **shallow(name))
    x = images(name, batch=2)
    assert torch.equal(model.eval()(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", DESIGNS)
def test_state_dict_round_trip_and_channels_last(name: str) -> None:
    model = timm.create_model(name, **shallow(name)).eval()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(1)
    twin = timm.create_model(name, **shallow(name)).eval()
    x = images(name)
    twin.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))
        wide = twin.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(wide, model(x), rtol=1e-4, atol=1e-4)


def check_script(name: str, **options: object) -> None:
    model = timm.create_model(name, scriptable=True, **options).eval()
    x = images(name)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def check_export(name: str, **options: object) -> None:
    model = timm.create_model(name, exportable=True, **options).eval()
    x = images(name)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def check_compile_without_graph_breaks(name: str, **options: object) -> None:
    model = timm.create_model(name, **options).eval()
    x = images(name)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))
    torch.compiler.reset()


CHECKS = [check_script, check_export, check_compile_without_graph_breaks]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", SMALL_DESIGNS)
def test_blocks_script_export_and_compile(name: str, check: Callable[..., None]) -> None:
    check(name, **shallow(name))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_networks_script_export_and_compile(name: str, check: Callable[..., None]) -> None:
    check(name)


def test_registration_survives_reloads() -> None:
    """In a process of its own: the other tests hold the classes of the modules that were imported first."""
    code = """
import importlib, timm, seresnet_hub
names = seresnet_hub.list_models()
before = {name: timm.models.model_entrypoint(name) for name in names}
listed = timm.list_pretrained("seresnet*")
for module in ("variants", "published_weights", "blocks", "registry", "pretrained", "create"):
    importlib.reload(importlib.import_module(f"seresnet_hub.models.{module}"))
importlib.reload(seresnet_hub)
assert {name: timm.models.model_entrypoint(name) for name in names} == before
assert timm.list_pretrained("seresnet*") == listed
assert seresnet_hub.list_models() == names
assert len(set(names)) == len(names) == 38, len(names)
"""
    run_python([sys.executable, "-c", code], check=True)


def test_our_models_are_listed_as_a_module_of_timms() -> None:
    assert set(timm.list_models("seresnet*_cifar*")) == {n for n in NAMES if n.startswith("seresnet") and "cifar" in n}
    assert all(timm.is_model(name) for name in NAMES)
    trained = {name for name in NAMES if timm.models.is_model_pretrained(name)}
    assert trained == {weights.architecture for weights in OWN_WEIGHTS}


@pytest.mark.parametrize("filter", ["seresnet*_cifar*", "*164*", "seresnet", ["*_pre", "seresnet50_r*"], "", "none*"])
def test_our_models_are_filtered_as_timm_filters(filter: str | list[str]) -> None:
    ours = seresnet_hub.list_models(filter)
    assert set(ours) == set(timm.list_models(filter)) & set(NAMES)
    assert ours == [name for name in NAMES if name in ours]


def test_mmpretrains_names_are_understood() -> None:
    model = seresnet_hub.get_model("seresnet50_8xb32_in1k")
    assert model.pretrained_cfg["tag"] == "mm_in1k"


def test_an_unknown_name_is_one_clear_error() -> None:
    with pytest.raises(InputError, match="cannot create model 'seresnet9000': Unknown model"):
        models.create("seresnet9000")


@pytest.mark.parametrize("indices", [0, 5])
def test_cifar_feature_indices_are_checked(indices: int) -> None:
    model = timm.create_model("seresnet20_cifar")
    with pytest.raises(ValueError, match="out of range"):
        model.forward_intermediates(images("seresnet20_cifar"), indices=indices)


def test_an_impossible_output_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="output_stride=1"):
        timm.create_model("seresnet20_cifar", output_stride=1)


def test_modules_are_what_the_type_says() -> None:
    assert isinstance(timm.create_model("seresnet20_cifar"), models.CifarResNet)
    assert isinstance(timm.create_model("seresnet20_cifar").maxpool, nn.Identity)
