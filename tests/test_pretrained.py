"""Published weights must arrive whole and under the right names, or not at all; never random, never executed."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from hub_faults import FlipByte
from hub_server import HubServer
from safetensors.torch import save_file
from torch import nn

from seresnet_hub.errors import InputError
from seresnet_hub.models import create as models
from seresnet_hub.models import pretrained
from seresnet_hub.models.names import parse_name
from seresnet_hub.models.published_weights import WEIGHTS, Weights

pytestmark = pytest.mark.usefixtures("quick_weights")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A loopback web server, and the folder it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", folder
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(autouse=True)
def _own_checkpoint_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(pretrained.NAMESPACE_VARIABLE, raising=False)
    pretrained.fetch.cache_clear()
    yield
    pretrained.fetch.cache_clear()


def as_mmpretrain(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors under the names mmpretrain gives them, in its order of modules (SE last in a block)."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        *path, leaf = name.split(".")
        if path[0] == "fc":
            named[f"head.fc.{leaf}"] = tensor
        elif "se" in path:
            block, layer = ".".join(path[:-2]), path[-1][-1]
            named[f"backbone.{block}.se_layer.conv{layer}.conv.{leaf}"] = tensor
        else:
            named["backbone." + name] = tensor
    return named


def randomized(architecture: str) -> nn.Module:
    torch.manual_seed(3)
    model = timm.create_model(architecture, zero_init_last=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def publish(checkpoint: object, url: str, folder: Path, architecture: str = "seresnet18") -> Weights:
    """Serve a checkpoint as mmpretrain does, with the beginning of its sha256 in its name."""
    path = folder / "model.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    prefix = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path.rename(folder / f"model-{prefix}.pth")
    return Weights(
        architecture=architecture, tag="test", source_name="test", url=f"{url}/model-{prefix}.pth",
        sha256_prefix=prefix, top1=0, top5=0, params_millions=0, gflops=0,
    )  # fmt: skip


def load(weights: Weights, **kwargs: object) -> nn.Module:
    return timm.create_model(
        weights.architecture, pretrained=True, pretrained_cfg=models.tag_cfg(weights), **kwargs
    ).eval()


def test_a_published_file_gives_its_model(server: tuple[str, Path]) -> None:
    source = randomized("seresnet18")
    weights = publish({"meta": {"epoch": 100}, "state_dict": as_mmpretrain(source)}, *server)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load(weights)(x), source(x))
        # timm's adaptations work as for its own weights.
        maps = load(weights, features_only=True)(x)
        assert torch.equal(maps[-1], source.forward_features(x))
        grey = load(weights, in_chans=1)
        assert torch.equal(grey.conv1.weight, source.conv1.weight.sum(1, keepdim=True))
        other = load(weights, num_classes=7)
        assert other(x).shape == (2, 7)
        assert torch.equal(other.forward_features(x), source.forward_features(x))
    # The second time, and in another process, the server is not needed.
    (server[1] / weights.url.rsplit("/", 1)[-1]).unlink()
    pretrained.fetch.cache_clear()
    assert torch.equal(load(weights).fc.weight, source.fc.weight)


def test_both_tags_are_in_timms_registry() -> None:
    for weights in WEIGHTS:
        config = timm.models.get_pretrained_cfg(weights.name)
        assert (config.interpolation, config.crop_pct, config.license) == ("bilinear", 0.875, "apache-2.0")
        assert tuple(round(255 * value, 3) for value in config.mean) == (123.675, 116.28, 103.53)
        assert tuple(round(255 * value, 3) for value in config.std) == (58.395, 57.12, 57.375)
        assert config.paper_ids == "arXiv:1709.01507"
        assert config.origin_url.endswith("open-mmlab/mmpretrain")
        assert weights.name in timm.list_pretrained("seresnet*")
        assert weights.sha256_prefix == weights.url.removesuffix(".pth")[-8:]
        assert timm.create_model(weights.architecture, num_classes=2).num_classes == 2  # fetches nothing
    assert timm.models.get_pretrained_cfg("seresnet50").tag == "a1_in1k"
    assert timm.models.get_pretrained_cfg("seresnet101").tag == "mm_in1k"
    assert not Path(os.environ["TORCH_HOME"]).exists()


@pytest.mark.parametrize("name", ["seresnet50.mm_in1k", "seresnet101", "seresnet50_8xb32_in1k"])
def test_without_a_network_the_error_says_what_was_tried(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(url: str, *_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(
        InputError, match=r"tried https://download.openmmlab.com/\S+\.pth \(Network is unreachable\)"
    ) as e:
        models.create(name)
    assert "If you have the original file, put it at" in str(e.value)
    with pytest.raises(InputError):  # a head of one's own must not hide that nothing was loaded
        timm.create_model(parse_name(name).name, pretrained=True, num_classes=3)


def test_a_missing_file_on_the_server_is_an_error(server: tuple[str, Path]) -> None:
    weights = publish({"state_dict": {}}, *server)
    (server[1] / weights.url.rsplit("/", 1)[-1]).unlink()
    with pytest.raises(InputError, match="404"):
        load(weights)


def test_other_bytes_are_refused_from_the_server_and_from_the_cache(server: tuple[str, Path]) -> None:
    weights = publish({"state_dict": as_mmpretrain(randomized("seresnet18"))}, *server)
    served = server[1] / weights.url.rsplit("/", 1)[-1]
    whole = served.read_bytes()
    served.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    with pytest.raises(InputError, match="invalid hash value"):
        load(weights)
    cached = Path(torch.hub.get_dir(), "checkpoints", served.name)
    assert not cached.exists()
    cached.write_bytes(served.read_bytes())
    with pytest.raises(InputError, match=r"has sha256 .* not .*: delete it"):
        load(weights)
    assert cached.read_bytes() == served.read_bytes()


def test_a_foreign_file_is_refused_by_name(server: tuple[str, Path]) -> None:
    weights = publish({"state_dict": {"backbone.layers.0.attn.qkv.weight": torch.ones(2)}}, *server)
    with pytest.raises(InputError, match=r"1 unmapped.*: 'backbone.layers.0.attn.qkv.weight'"):
        load(weights)


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.canary),)


def test_a_pickle_that_would_run_something_is_refused(server: tuple[str, Path], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    weights = publish({"state_dict": Evil(canary)}, *server)
    with pytest.raises(InputError, match="is refused: it names posix.mkdir"):
        load(weights)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Evil(canary)))
    assert canary.exists(), "the trap works where pickle runs it"


def namespace(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, weights: Weights, tensors: Mapping[str, torch.Tensor], folder: Path
) -> None:
    """Put tensors into the double of the Hub under the weights' name, and have that namespace asked."""
    save_file(dict(tensors), folder / "from_hub.safetensors")
    files = {"model.safetensors": folder / "from_hub.safetensors", "pytorch_model.bin": b"a pickle"}
    hub.create("model", f"somebody/{weights.name}", files)
    monkeypatch.setenv(pretrained.NAMESPACE_VARIABLE, "somebody")
    pretrained.fetch.cache_clear()


def test_a_namespace_is_asked_first_and_only_if_set(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer
) -> None:
    source = randomized("seresnet18")
    weights = publish({"state_dict": as_mmpretrain(source)}, *server)
    assert torch.equal(load(weights).fc.bias, source.fc.bias)
    assert hub.requests == []
    sevens = {**source.state_dict(), "fc.bias": torch.full((1000,), 7.0)}
    namespace(hub, monkeypatch, weights, sevens, tmp_path)
    assert torch.equal(load(weights).fc.bias, torch.full((1000,), 7.0))
    assert not any("pytorch_model.bin" in request.path for request in hub.requests)


def test_bytes_of_a_namespace_are_compared_with_the_hash_that_the_hub_gives(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer
) -> None:
    """On the way they are fetched once more; those in the cache, too; damaged for ever, the original takes over."""
    source = randomized("seresnet18")
    weights = publish({"state_dict": as_mmpretrain(source)}, *server)
    sevens = {**source.state_dict(), "fc.bias": torch.full((1000,), 7.0)}
    namespace(hub, monkeypatch, weights, sevens, tmp_path)
    hub.fault("GET", "/cdn/", FlipByte(-5))
    wanted = (tmp_path / "from_hub.safetensors").read_bytes()
    path = pretrained.fetch(weights)
    assert path.read_bytes() == wanted
    blob = path.resolve()
    blob.write_bytes(wanted[:-5] + bytes([wanted[-5] ^ 1]) + wanted[-4:])
    pretrained.fetch.cache_clear()
    assert pretrained.fetch(weights).read_bytes() == wanted
    hub.fault("GET", "/cdn/", FlipByte(-5), times=None)
    blob.write_bytes(wanted[:-5] + bytes([wanted[-5] ^ 1]) + wanted[-4:])
    pretrained.fetch.cache_clear()
    assert torch.equal(load(weights).fc.bias, source.fc.bias)


ADAPTATIONS = [{}, {"num_classes": 7}, {"features_only": True}, {"in_chans": 1}]


@pytest.mark.parametrize("kwargs", ADAPTATIONS, ids=str)
@pytest.mark.parametrize("damage", ["foreign", "missing", "shape"])
def test_a_file_of_other_tensors_never_leaves_a_random_network(
    kwargs: dict[str, object], damage: str, server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    hub: HubServer,
) -> None:  # fmt: skip
    """timm loads without strictness where the head differs or only features are wanted: the file must fit before."""
    state = dict(randomized("seresnet18").state_dict())
    if damage == "foreign":
        state = {"backbone.conv1.weight": torch.ones(2)}
    elif damage == "missing":
        del state["layer2.0.conv1.weight"]
    else:
        state["layer2.0.conv1.weight"] = torch.ones(3, 3)
    weights = publish({"state_dict": {}}, *server)
    (server[1] / weights.url.rsplit("/", 1)[-1]).unlink()  # the original cannot be had either
    namespace(hub, monkeypatch, weights, state, tmp_path)
    culprit = "conv1.weight" if damage == "foreign" else "layer2.0.conv1.weight"
    with pytest.raises(InputError, match=rf"tried somebody/seresnet18.test on the Hub \(.*{culprit}.*and http.*404"):
        load(weights, **kwargs)


@pytest.mark.parametrize("kwargs", ADAPTATIONS, ids=str)
def test_an_original_with_a_tensor_missing_is_refused_with_its_name(
    kwargs: dict[str, object], server: tuple[str, Path]
) -> None:
    tensors = as_mmpretrain(randomized("seresnet18"))
    del tensors["backbone.layer3.1.bn2.weight"]
    weights = publish({"state_dict": tensors}, *server)
    with pytest.raises(InputError, match=r"model-\w{8}\.pth.*layer3\.1\.bn2\.weight"):
        load(weights, **kwargs)


def test_a_namespace_that_fails_leads_to_the_original(
    server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = randomized("seresnet18")
    weights = publish({"state_dict": as_mmpretrain(source)}, *server)
    monkeypatch.setenv(pretrained.NAMESPACE_VARIABLE, "somebody")  # the Hub is offline in these tests
    assert torch.equal(load(weights).fc.weight, source.fc.weight)
    Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[-1]).unlink()
    (server[1] / weights.url.rsplit("/", 1)[-1]).unlink()
    pretrained.fetch.cache_clear()
    with pytest.raises(InputError, match=r"tried somebody/seresnet18.test on the Hub \(.*\) and http://127.0.0.1.*404"):
        load(weights)
