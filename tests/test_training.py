"""Training must learn, write what timm loads, refuse what would be lost, and continue to the bit after a stop."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from conftest import WriteSplit
from PIL import Image

import seresnet_hub
from seresnet_hub import training
from seresnet_hub.errors import InputError
from seresnet_hub.recipes import Recipe, get_recipe

KEYS = ["output", "recipe", "model", "steps", "epochs", "seen", "top1", "top5", "images_per_second"]
SMALL = replace(get_recipe("digits"), epochs=2, batch_size=10, input_size=8, shuffle_window=20, workers=0)


@pytest.fixture
def numbers(write_split: WriteSplit) -> str:
    """33 training images (4 steps an epoch, the last of 3 images) and 7 validation images."""
    write_split([[9, 8], [16]])
    return str(write_split([[7]], split="validation"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_digits_are_learnt_and_named(tmp_path: Path) -> None:
    recipe = replace(get_recipe("digits"), epochs=4, batch_size=32, workers=0, input_size=8)
    result = seresnet_hub.train(recipe, output=tmp_path / "model")
    assert list(result) == KEYS
    assert (result["steps"], result["epochs"], result["seen"]) == (4 * 45, 4, 4 * 1437)
    assert result["top1"] > 50
    assert result["top5"] > result["top1"]
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    split = seresnet_hub.open_split("digits", None)
    measured = seresnet_hub.evaluate(model, split, workers=0)
    assert (round(measured.top1, 4), round(measured.top5, 4), measured.seen) == (result["top1"], result["top5"], 360)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["label_names"] == list("0123456789")
    assert config["pretrained_cfg"]["input_size"] == [3, 8, 8]
    card = (tmp_path / "model" / "README.md").read_text()
    command = "accelerate launch scripts/train.py --recipe digits --set epochs=4 --set batch_size=32 --set input_size=8"
    row = f"| digits, validation | 360 | 8 | {result['top1']:.2f} | {result['top5']:.2f} | *measured* with `{command}"
    assert row in card
    with (tmp_path / "model" / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    assert [int(row["step"]) for row in summary] == [45, 90, 135, 180]
    assert round(float(summary[-1]["top1"]), 4) == result["top1"]
    losses = [float(row["train_loss"]) for row in summary]
    assert losses == sorted(losses, reverse=True)
    with Image.open(tmp_path / "model" / "curves.png") as curves:
        assert curves.width > 500


def test_equal_runs_give_equal_weights(tmp_path: Path, numbers: str) -> None:
    for name in ("a", "b"):
        training.train(SMALL, data=numbers, output=tmp_path / name)
    assert same(tmp_path / "a", tmp_path / "b")
    training.train(replace(SMALL, seed=1), data=numbers, output=tmp_path / "c")
    assert not same(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7])
def test_a_stopped_run_continues_to_the_bit(tmp_path: Path, numbers: str, stop: int) -> None:
    recipe = replace(SMALL, crop_padding=2, horizontal_flip=0.5)
    whole = training.train(recipe, data=numbers, output=tmp_path / "whole")
    partial = training.train(recipe, data=numbers, output=tmp_path / "parts", max_steps=stop)
    assert partial["steps"] == stop
    resumed = training.train(recipe, data=numbers, output=tmp_path / "parts", resume=True)
    assert (resumed["steps"], resumed["seen"]) == (whole["steps"], whole["seen"]) == (8, 66)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_finished_run_measures_it_again(tmp_path: Path, numbers: str) -> None:
    first = training.train(SMALL, data=numbers, output=tmp_path / "run")
    again = training.train(SMALL, data=numbers, output=tmp_path / "run", resume=True)
    assert {**again, "images_per_second": 0} == {**first, "images_per_second": 0}


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


def test_a_model_that_timm_knows_needs_no_plugin(tmp_path: Path, numbers: str) -> None:
    recipe = replace(SMALL, model="seresnet18", input_size=32, epochs=1)
    training.train(recipe, data=numbers, output=tmp_path / "run", max_steps=1)
    code = (
        "import sys, timm, torch\n"
        f"model = timm.create_model('local-dir:{tmp_path / 'run'}', pretrained=True).eval()\n"
        "assert 'seresnet_hub' not in sys.modules\n"
        "torch.manual_seed(0); print(model(torch.randn(1, 3, 32, 32)).double().sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        expected = model(torch.randn(1, 3, 32, 32)).double().sum().item()
    assert float(done.stdout) == pytest.approx(expected, rel=1e-5)


def test_a_timm_models_config_keeps_no_facts_of_other_weights(tmp_path: Path, numbers: str) -> None:
    recipe = replace(SMALL, model="resnet18", input_size=32, epochs=1, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    training.train(recipe, data=numbers, output=tmp_path / "run", max_steps=1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["pretrained_cfg"]
    foreign = {"tag", "test_input_size", "test_crop_pct", "paper_ids", "origin_url", "license", "hf_hub_id", "url"}
    assert not foreign & config.keys()
    assert (config["input_size"], config["pool_size"], config["num_classes"]) == ([3, 32, 32], [1, 1], 10)
    assert (config["mean"], config["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    assert timm.data.resolve_model_data_config(model, use_test_size=True)["input_size"][1] == 32


def test_resume_refuses_other_data(tmp_path: Path, write_split: WriteSplit, numbers: str) -> None:
    training.train(SMALL, data=numbers, output=tmp_path / "run", max_steps=1)
    training.train(SMALL, data=numbers + "/", output=tmp_path / "run", max_steps=2, resume=True)
    write_split([[9, 8], [17]])
    refused("training_images was 33, now 34", data=numbers, output=tmp_path / "run", resume=True)


def test_two_processes_share_the_work(tmp_path: Path, numbers: str) -> None:
    """Every image is trained on and measured once, one result is printed, and one process measures the same."""
    script = Path(__file__).parents[1] / "scripts" / "train.py"
    settings = ["input_size=8", "batch_size=10", "epochs=2", "workers=0"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script),
               "--data", numbers, "--output", str(tmp_path / "run"), "--set", *settings]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["steps"], result["seen"]) == (8, 66)
    assert "2 processes on cpu" in done.stderr
    assert "over 7 validation images; weights " in done.stderr
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    measured = seresnet_hub.evaluate(model, seresnet_hub.open_split(numbers, None), workers=0)
    assert (round(measured.top1, 4), round(measured.top5, 4)) == (result["top1"], result["top5"])


def test_processes_that_drift_apart_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("seresnet20_cifar")
    other = timm.create_model("seresnet20_cifar")
    mine = training._same_on_all_ranks(model)
    monkeypatch.setattr(training, "gather_object", lambda own: [*own, training_digest(other)])
    with pytest.raises(RuntimeError, match="drifted apart"):
        training._same_on_all_ranks(model)
    monkeypatch.setattr(training, "gather_object", lambda own: [*own, mine])
    assert training._same_on_all_ranks(model) == mine


def training_digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_a_full_disk_keeps_the_last_state(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    training.train(SMALL, data=numbers, output=out, max_steps=4)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.parent.name == "training"}

    def full(_: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(torch, "save", full)
    refused("cannot write .*state.pt: .*failed writing", data=numbers, output=out, resume=True)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.parent.name == "training"}
    assert after == before


def refused(message: str, recipe: Recipe = SMALL, **arguments: object) -> None:
    with pytest.raises(InputError, match=message):
        training.train(recipe, **arguments)  # type: ignore[arg-type]


def test_what_cannot_work_is_refused_and_writes_nothing(tmp_path: Path, numbers: str) -> None:
    out = tmp_path / "run"
    refused("the folder does not exist", data=str(tmp_path / "nowhere"), output=out)
    refused("has no split 'test'", replace(SMALL, eval_split="test"), data=numbers, output=out)
    refused("timm knows no model 'seresnet9000'", replace(SMALL, model="seresnet9000"), data=numbers, output=out)
    refused("nothing to resume", data=numbers, output=out, resume=True)
    refused("max_steps=0", data=numbers, output=out, max_steps=0)
    refused("num_classes=3, but .* has 10 classes", replace(SMALL, num_classes=3), data=numbers, output=out)
    refused("no data set of its own", replace(SMALL, data=None), output=out)
    refused("optimizer=sgdd: ", replace(SMALL, optimizer="sgdd"), data=numbers, output=out)
    # The last batch holds one image, on which a network of stride 32 has one number a channel to normalise.
    single = replace(SMALL, model="resnet18", batch_size=16)
    refused(
        "resnet18 cannot train on 1 images of 8 pixels: Expected more than 1 value", single, data=numbers, output=out
    )
    refused(
        "vit_tiny_patch16_224 cannot train on", replace(SMALL, model="vit_tiny_patch16_224"), data=numbers, output=out
    )
    refused("Invalid pretrained tag", replace(SMALL, model="resnet18.nope"), data=numbers, output=out)
    assert not out.exists()
    (tmp_path / "file").write_text("in the way")
    refused("cannot write to .*file/run: Not a directory", data=numbers, output=tmp_path / "file" / "run")


def test_weights_that_explode_are_not_written(tmp_path: Path, numbers: str) -> None:
    exploding = replace(SMALL, learning_rate=1e38)
    refused("no longer finite after step 4: lower learning_rate", exploding, data=numbers, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_left_alone(tmp_path: Path, numbers: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    refused("already exists: choose another --output", data=numbers, output=out)
    (out / "training").mkdir()
    (out / "training" / "state.pt").touch()
    refused("already exists: continue it with --resume, or choose another --output", data=numbers, output=out)
    assert (out / "thesis.txt").read_text() == "mine"


def test_resume_refuses_another_recipe_and_a_damaged_state(tmp_path: Path, numbers: str) -> None:
    out = tmp_path / "run"
    training.train(SMALL, data=numbers, output=out, max_steps=1)
    refused(
        "cannot resume with another recipe or other data: learning_rate was 0.1, now 0.2",
        replace(SMALL, learning_rate=0.2),
        data=numbers,
        output=out,
        resume=True,
    )
    state = out / training.STATE_NAME
    state.write_bytes(state.read_bytes()[:1000])
    refused("state.pt is damaged", data=numbers, output=out, resume=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("model", None, "is damaged"), ("step", "1", "is damaged"), ("step", 10**6, "is damaged"),
     ("settings", "[]", "is damaged"), ("model", {"fc.bias": torch.ones(1)}, "does not fit seresnet20_cifar")],
)  # fmt: skip
def test_an_incomplete_state_is_refused(tmp_path: Path, numbers: str, key: str, value: object, message: str) -> None:
    out = tmp_path / "run"
    training.train(SMALL, data=numbers, output=out, max_steps=1)
    state = torch.load(out / training.STATE_NAME, weights_only=True)
    if value is None:
        del state[key]
    else:
        state[key] = value
    torch.save(state, out / training.STATE_NAME)
    refused(message, data=numbers, output=out, resume=True)


def test_a_full_disk_leaves_no_new_folder(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, path: Path) -> None:
        raise RuntimeError("unexpected pos 392576 vs 392472")

    monkeypatch.setattr(torch, "save", full)
    refused(
        r"cannot write \S+/run/training/state.pt: unexpected pos .* MiB are free", data=numbers, output=tmp_path / "run"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["numbers"]


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
