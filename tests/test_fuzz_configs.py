"""No config of a stranger's may run anything, hang, fill the memory, end in a traceback, or change a tensor."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from fuzzing import Case, Report, attack
from PIL import Image
from safetensors import safe_open

import seresnet_hub
from seresnet_hub.files.atomic_writing import sha256_of, write_json
from seresnet_hub.files.model_folder import timm_config, write_weights
from seresnet_hub.hub.messages import say
from seresnet_hub.models.strict_loading import STEP_COUNT
from seresnet_hub.publishing.verify import verify

SMALL, LARGE = 100, 10_000
# Ours, timm's SE families made small, and others of timm's that are: convolutions, attention, and both. Of each the
# sides of its images, and what its folder says of the network.
SHALLOW = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}
ARCHITECTURES: dict[str, tuple[int, dict[str, Any]]] = {
    "seresnet20_cifar": (32, {}), "seresnet20_cifar_pre": (32, {}), "seresnet18": (64, SHALLOW),
    "seresnext50_32x4d": (64, {**SHALLOW, "cardinality": 4, "base_width": 32}), "test_resnet": (96, {}),
    "test_byobnet": (96, {}), "test_convnext": (96, {}), "test_efficientnet": (96, {}), "test_vit": (160, {}),
    "test_vit_relpos": (160, {}), "test_nfnet": (96, {}), "starnet_s050": (96, {}), "test_maxvit": (160, {}),
}  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 3, 7, 31, 33, 512, 2048, 10_000, 100_000, 1_000_000, 2**31, 2**63, 10**30, 0.5, 1e-9, 1e300, -0.0,
    float("nan"), float("inf"),
]  # fmt: skip
TEXTS = [
    "", "a", "0", "None", "x" * 5000, "\x1b[31m", "../../etc/passwd", "/dev/zero", "hf-hub:timm/resnet18", "os.system",
    "__import__('os')", "bicubic", "gelu", "silu", "swish", "batchnorm", "layernorm", "max", "fast", "avg", "\u202e",
    "http://127.0.0.1:9/x.pth", "resnet18.a1_in1k", "se", "eca", "cbam", "Bottleneck", "\0", "ü",
]  # fmt: skip
ARGUMENTS = [
    "layers", "block", "channels", "block_args", "depths", "depth", "dims", "embed_dim", "num_heads", "img_size",
    "act_layer", "norm_layer", "global_pool", "in_chans", "num_classes", "drop_rate", "drop_path_rate",
    "output_stride", "stem_type", "stem_width", "cardinality", "base_width", "avg_down", "aa_layer", "patch_size",
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only",
    "out_indices", "feature_cls", "kwargs_filter", "pretrained_strict", "pretrained_filter_fn", "model_cls",
    "scriptable", "exportable", "no_jit", "device", "dtype", "cfg", "block_types", "window_size", "mlp_ratio",
    "init_values", "class_token", "pos_embed", "dynamic_img_size", "strict_img_size", "stem_chs", "width_factor",
    "attn_layer", "replace_stride_with_dilation", "zero_init_last", "pruned", "model_name", "self", "weight_init",
    "fix_init", "use_abs_pos_emb", "reduce_first", "down_kernel_size",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each architecture, with random weights."""
    root = tmp_path_factory.mktemp("models")
    for name, (side, arguments) in ARCHITECTURES.items():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=4, **arguments)
        write_weights(root / name, model.state_dict())
        size = {"input_size": (3, side, side)}
        labels = ["ant", "bee", "cat", "dog"]
        config = timm_config(model, pretrained_cfg=size, model_args=arguments, label_names=labels)
        config["seresnet_hub"] = {"sha256": {"model.safetensors": sha256_of(root / name / "model.safetensors")}}
        write_json(root / name / "config.json", config)
    return {name: root / name for name in ARCHITECTURES}


def value(rng: random.Random, old: Any, depth: int = 0) -> Any:
    """A value in the place of `old`: of another type, a near number, or nested."""
    kind = rng.randrange(12 if depth < 3 else 7)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3:
        return rng.choice([None, True, False, [], {}])
    if kind in (4, 5) and isinstance(old, int | float):
        return old * rng.choice([2, 10, 1000, -1, 0.5]) + rng.choice([0, 1, -1])
    if kind in (4, 5) and isinstance(old, list) and old:
        changed = list(old)
        changed[rng.randrange(len(old))] = value(rng, changed[0], depth + 1)
        return changed if rng.random() < 0.7 else changed * rng.choice([0, 2, 100])
    if kind < 9:
        return rng.choice(NUMBERS[:14])
    if kind == 9:
        return [value(rng, old, depth + 1) for _ in range(rng.randrange(5))]
    if kind == 10:
        return {rng.choice(ARGUMENTS): value(rng, old, depth + 1) for _ in range(rng.randrange(4))}
    inner: Any = old
    for _ in range(rng.choice([2, 50, 900])):
        inner = [inner] if rng.random() < 0.5 else {"a": inner}
    return inner


def tables_in(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [config, *(inner for inner in config.values() if isinstance(inner, dict))]


def change(rng: random.Random, config: dict[str, Any]) -> None:
    """Change one thing in the config: a value, a key, an argument of the network, or what timm reads of it."""
    kind = rng.randrange(8)
    table = rng.choice(tables_in(config))
    if kind < 3 and table:
        key = rng.choice(sorted(table))
        table[key] = value(rng, table[key])
    elif kind == 3 and table:
        del table[rng.choice(sorted(table))]
    elif kind in (4, 5):
        arguments = config.setdefault("model_args", {})
        if isinstance(arguments, dict):
            name = rng.choice(ARGUMENTS)
            likely = [
                [1_000_000, 1, 1],
                [3, 3, 3],
                [1, 1, 1, 1],
                4,
                8,
                64,
                1024,
                16_000,
                True,
                "gelu",
                {"attn_layer": "se"},
            ]
            arguments[name] = rng.choice(likely) if rng.random() < 0.6 else value(rng, 3)
    elif kind == 6:
        names = [
            *ARCHITECTURES,
            "resnet18",
            "seresnet50",
            "vit_giant_patch14_clip_224",
            "levit_128s",
            "test_vit.r160_in1k",
        ]
        config["architecture"] = rng.choice([*names, *TEXTS])
    else:
        config["pretrained_cfg"] = rng.choice([None, [], "a", {}, {rng.choice(ARGUMENTS): value(rng, 3)}, config])
        if config["pretrained_cfg"] is config:
            config["pretrained_cfg"] = {**config, "pretrained_cfg": {}}


def text_of(rng: random.Random, config: dict[str, Any]) -> bytes:
    """The file: mostly plain JSON; else cut, twice the key, in another encoding, too deep, or large."""
    text = json.dumps(config)
    kind = rng.randrange(40)
    if kind == 0:
        return text.encode()[: rng.randrange(len(text))]
    if kind == 1:
        return (text[:-1] + ', "architecture": "resnet18", "num_classes": 5}').encode()
    if kind == 2:
        return text.encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-le"]))
    if kind == 3:
        return text.replace('"ant"', '"\\ud800"').encode()
    if kind == 4:
        depth = rng.choice([900, 10_000, 1_000_000])
        return (text[:-1] + ', "a": ' + "[" * depth + "]" * depth + "}").encode()
    if kind == 5:
        data = bytearray(text.encode())
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    if kind == 6:
        return text.replace("4", "4" * rng.choice([20, 5000]), 1).encode()
    return text.encode()


def large(config: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Files of 15 to 100 MB, those that a config may have and those that it may not."""
    start = json.dumps(config)[:-1].encode()
    for size in (15_000_000, 100_000_000):
        for name, piece in (
            ("lists", b"[],"),
            ("tables", b'{"a":{}},'),
            ("texts", b'"abcdefgh",'),
            ("numbers", b"0.1,"),
        ):
            yield f"{name} of {size:,}", start + b', "more": [' + piece * (size // len(piece)) + b"0]}"
    yield "white space", start + b" " * 100_000_000 + b"}"
    yield "one text", start + b', "license": "' + b"a" * 15_000_000 + b'"}'
    yield "zero bytes", b"\0" * 1_000_000


def mutations(folders: dict[str, Path], seed: int, cases: int) -> Iterator[Case]:
    rng = random.Random(seed)
    originals = {name: json.loads((folder / "config.json").read_text()) for name, folder in folders.items()}
    for number in range(cases):
        name = rng.choice(list(folders))
        config = json.loads(json.dumps(originals[name]))
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            change(rng, config)
        data = text_of(rng, config)
        size = len(data) + (folders[name] / "model.safetensors").stat().st_size
        yield Case(f"{number} {name}", (folders[name], data), size)


def acting(place: Path) -> Callable[[tuple[Path, bytes]], str]:
    """Return what a person does with a folder: verify it, load it, and name what a picture shows."""
    picture = Image.new("RGB", (50, 40), (200, 30, 90))

    def act(value: tuple[Path, bytes]) -> str:
        source, data = value
        for file in place.iterdir():
            file.unlink()
        (place / "model.safetensors").symlink_to(source / "model.safetensors")
        (place / "config.json").write_bytes(data)
        model = seresnet_hub.load(place)
        with safe_open(source / "model.safetensors", "pt") as file:
            state = model.state_dict()
            assert {name for name in state if not name.endswith(STEP_COUNT)} <= set(file.keys())
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                assert torch.equal(state[name], file.get_tensor(name).to(state[name].dtype)), name
        said = verify(place)["ok"] if "sha256" in data.decode(errors="replace") else None
        classes = seresnet_hub.predict(model, picture)[0]
        assert abs(sum(one["score"] for one in classes)) <= 1.001
        return f"verified: {said}"

    return act


def assert_harmless(report: Report) -> None:
    shown = [
        f"{one.kind}: {one.name}: {one.seconds:.1f} s, {one.peak_bytes:,}: {one.detail}" for one in report.findings
    ]
    assert not shown, f"{len(shown)} of {report.summary()}: " + "\n".join(shown[:20])


def warmed(folders: dict[str, Path], place: Path) -> Callable[[tuple[Path, bytes]], str]:
    """Return `acting`, after the originals went through it here: what Python and timm load once is loaded."""
    act = acting(place)
    say("\x1b")  # tqdm makes a lock, and Python loads the codec of escapes
    for folder in folders.values():
        assert act((folder, (folder / "config.json").read_bytes())) == "verified: True"
    return act


def test_mutated_configs_are_harmless(folders: dict[str, Path], tmp_path: Path) -> None:
    report = attack(warmed(folders, tmp_path), mutations(folders, seed=1, cases=SMALL))
    assert_harmless(report)
    kinds = {outcome.kind for outcome in report.outcomes}
    assert kinds == {"accepted", "refused"}


@pytest.mark.slow
def test_many_mutated_configs_are_harmless(folders: dict[str, Path], tmp_path: Path) -> None:
    report = attack(warmed(folders, tmp_path), mutations(folders, seed=2, cases=LARGE))
    print(json.dumps(report.summary()))
    assert_harmless(report)


@pytest.mark.slow
def test_large_configs_are_harmless(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["seresnet20_cifar"]
    config = json.loads((folder / "config.json").read_text())
    cases = (Case(name, (folder, data), len(data)) for name, data in large(config))
    report = attack(warmed({"": folder}, tmp_path), cases, batch=1)
    print(json.dumps(report.summary()))
    assert_harmless(report)
