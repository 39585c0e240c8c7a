"""Training must learn, write what timm loads, refuse what would be lost, and continue to the bit after a stop."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import timm
import torch
from conftest import write_numbers
from PIL import Image
from safetensors import SafetensorError
from small_runs import SMALL, refused, same, weights
from warm_python import run_python, run_ranks

import seresnet_hub
from seresnet_hub.data.open_split import open_split
from seresnet_hub.data.plan import Plan
from seresnet_hub.evaluation.evaluate import evaluate
from seresnet_hub.models.load import load
from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.training import checkpoint
from seresnet_hub.training import train as training

SPEED = ["images_per_second", "waiting_share", "first_steps_seconds", "peak_bytes"]
KEYS = ["output", "recipe", "model", "steps", "epochs", "seen", "top1", "top5", *SPEED, "stopped"]


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
    row = (
        f"| digits, validation | 360 | 8 | {result['top1']:.2f} | {result['top5']:.2f} | *measured* by the training com"
    )
    assert row in card
    assert "\nseresnet-hub train --recipe digits --set epochs=4 --set batch_size=32 " in card.replace(" \\\n  ", " ")
    assert measured.class_counts is not None
    for name, (images, right) in enumerate(measured.class_counts.tolist()):
        assert f"\n| {name} | {images} | {100 * right / images:.2f} |\n" in card
    with (tmp_path / "model" / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    assert [int(row["step"]) for row in summary] == [45, 90, 135, 180]
    assert round(float(summary[-1]["top1"]), 4) == result["top1"]
    losses = [float(row["train_loss"]) for row in summary]
    assert losses == sorted(losses, reverse=True)
    with Image.open(tmp_path / "model" / "curves.png") as curves:
        assert curves.width > 500


def test_equal_runs_give_equal_weights(tmp_path: Path, numbers: str, whole_run: Path) -> None:
    training.train(SMALL, data=numbers, output=tmp_path / "again")
    assert same(whole_run, tmp_path / "again")
    training.train(replace(SMALL, seed=1), data=numbers, output=tmp_path / "c")
    assert not same(whole_run, tmp_path / "c")


AUGMENTED = replace(SMALL, crop_padding=2, horizontal_flip=0.5)


@pytest.fixture(scope="module")
def augmented(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("augmented")
    return folder / "run", training.train(AUGMENTED, data=write_numbers(folder), output=folder / "run")


@pytest.mark.parametrize("stop", [1, 3, 4, 5, pytest.param(7, marks=pytest.mark.slow)])
def test_a_stopped_run_continues_to_the_bit(
    tmp_path: Path, numbers: str, stop: int, augmented: tuple[Path, dict[str, Any]]
) -> None:
    folder, whole = augmented
    partial = training.train(AUGMENTED, data=numbers, output=tmp_path / "parts", max_steps=stop)
    assert partial["steps"] == stop
    resumed = training.train(AUGMENTED, data=numbers, output=tmp_path / "parts", resume=True)
    assert (resumed["steps"], resumed["seen"]) == (whole["steps"], whole["seen"]) == (8, 66)
    assert same(folder, tmp_path / "parts")


def test_resuming_a_finished_run_measures_it_again(tmp_path: Path, numbers: str) -> None:
    first = training.train(SMALL, data=numbers, output=tmp_path / "run")
    again = training.train(SMALL, data=numbers, output=tmp_path / "run", resume=True)
    assert {**again, "first_steps_seconds": first["first_steps_seconds"]} == first
    assert again["first_steps_seconds"] == 0


def test_a_model_that_timm_knows_needs_no_plugin(tmp_path: Path, numbers: str) -> None:
    recipe = replace(SMALL, model="seresnet18", input_size=32, epochs=1)
    training.train(recipe, data=numbers, output=tmp_path / "run", max_steps=1)
    code = (
        "import sys, timm, torch\n"
        f"model = timm.create_model('local-dir:{tmp_path / 'run'}', pretrained=True).eval()\n"
        "assert 'seresnet_hub' not in sys.modules\n"
        "torch.manual_seed(0); print(model(torch.randn(1, 3, 32, 32)).double().sum().item())"
    )
    done = run_python([sys.executable, "-c", code])
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


def test_two_processes_share_the_work(tmp_path: Path, numbers: str) -> None:
    """Every image is trained on and measured once, one result is printed, and one process measures the same."""
    script = Path(__file__).parents[1] / "scripts" / "train.py"
    settings = ["input_size=8", "batch_size=10", "epochs=2", "workers=0"]
    command = [sys.executable, script, "--data", numbers, "--output", tmp_path / "run", "--set", *settings]
    done, other = run_ranks(command, 2)
    assert (done.returncode, other.returncode, other.stdout) == (0, 0, ""), done.stderr + other.stderr
    result = json.loads(done.stdout)
    assert (result["steps"], result["seen"]) == (8, 66)
    assert "2 processes on cpu" in done.stderr
    assert "over 7 validation images" in done.stderr
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    measured = seresnet_hub.evaluate(model, seresnet_hub.open_split(numbers, None), workers=0)
    assert (round(measured.top1, 4), round(measured.top5, 4)) == (result["top1"], result["top5"])


def test_a_full_disk_keeps_the_last_state(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    training.train(SMALL, data=numbers, output=out, max_steps=4)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.parent.name == "training"}

    def full(_: object, path: Path, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    message = r"cannot write \S+/run/training/step-00000008.safetensors: .*No space left .* MiB are free"
    refused(message, data=numbers, output=out, resume=True)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.parent.name == "training"}
    assert after == before


def test_what_cannot_work_is_refused_and_writes_nothing(tmp_path: Path, numbers: str) -> None:
    out = tmp_path / "run"
    refused("the folder does not exist", data=str(tmp_path / "nowhere"), output=out)
    refused("has no split 'test'", replace(SMALL, eval_split="test"), data=numbers, output=out)
    refused("timm has no architecture 'seresnet9000'", replace(SMALL, model="seresnet9000"), data=numbers, output=out)
    refused("max_steps=0", data=numbers, output=out, max_steps=0)
    refused("num_classes=3, but .* has 10 classes", replace(SMALL, num_classes=3), data=numbers, output=out)
    refused("no data set of its own", replace(SMALL, data=None), output=out)
    refused("optimizer=sgdd: ", replace(SMALL, optimizer="sgdd"), data=numbers, output=out)
    refused("igloo/gloo: the folder does not exist", data=str(tmp_path / "igloo" / "gloo"), output=out)
    checkpointed = replace(SMALL, model="legacy_seresnet18", input_size=32, grad_checkpointing=True)
    refused("grad_checkpointing=true: legacy_seresnet18 has none", checkpointed, data=numbers, output=out)
    # The last batch holds three images, of which each piece has one.
    pieces = replace(SMALL, input_size=4, accumulation=3)
    refused("cannot train on 1 images of 4 pixels: Expected more than 1 value", pieces, data=numbers, output=out)
    # The last batch holds one image, on which a network of stride 32 has one number a channel to normalise.
    single = replace(SMALL, model="resnet18", batch_size=16)
    refused(
        "resnet18 cannot train on 1 images of 8 pixels: Expected more than 1 value", single, data=numbers, output=out
    )
    refused(
        "vit_tiny_patch16_224 cannot train on", replace(SMALL, model="vit_tiny_patch16_224"), data=numbers, output=out
    )
    refused("timm has no weights 'resnet18.nope'", replace(SMALL, model="resnet18.nope"), data=numbers, output=out)
    assert not out.exists()
    (tmp_path / "file").write_text("in the way")
    refused("cannot write to .*file/run: Not a directory", data=numbers, output=tmp_path / "file" / "run")
    refused("cannot write to .*: File name too long", data=numbers, output=tmp_path / ("x" * 300))


@pytest.mark.slow
def test_what_is_reported_is_the_accuracy_of_what_is_saved(tmp_path: Path, numbers: str) -> None:
    """In mixed precision too: the saved weights are float32, and are used so. A process of its own, for Accelerate."""
    settings = [f"{name}={getattr(SMALL, name)}" for name in ("epochs", "batch_size", "input_size", "workers")]
    script = str(Path(__file__).parents[1] / "scripts" / "train.py")
    subprocess.run(
        [sys.executable, script, "--data", numbers, "--output", tmp_path / "run", "--set", *settings,
         "mixed_precision=bf16"],
        check=True,
    )  # fmt: skip
    with (tmp_path / "run" / "summary.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    split = open_split(numbers, "validation")
    accuracy = evaluate(load(f"local-dir:{tmp_path / 'run'}"), split)
    assert float(row["top1"]) == accuracy.top1
    assert float(row["eval_loss"]) == pytest.approx(accuracy.loss, rel=1e-6)


def test_weights_that_explode_are_not_written(tmp_path: Path, numbers: str) -> None:
    exploding = replace(SMALL, learning_rate=1e38)
    message = r"the loss is (nan|inf) at step 2 \(noticed at 4\): lower learning_rate=1e\+38; nothing was saved yet"
    refused(message, exploding, data=numbers, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    last_step_explodes = replace(exploding, weight_decay=1e9, drop_last=True, batch_size=32, epochs=1)
    message = "the weights are no longer finite after step 1: lower learning_rate"
    refused(message, last_step_explodes, data=numbers, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_last_good_state_survives_an_explosion(tmp_path: Path, numbers: str) -> None:
    out = tmp_path / "run"
    late = replace(SMALL, schedule="step", decay_epochs=(1,), decay_rate=1e38)
    kept = r"lower learning_rate=0.1; the last good state, \S+/step-00000004.safetensors, is kept"
    refused(rf"the loss is \S+ at step [67] \(noticed at 8\): {kept}", late, data=numbers, output=out)
    assert [path.name for path in checkpoint.list_checkpoints(out)] == ["step-00000004.safetensors"]
    assert all(tensor.isfinite().all() for tensor in weights(out).values())


def test_an_existing_folder_is_left_alone(tmp_path: Path, numbers: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    refused("already exists: choose another --output", data=numbers, output=out)
    (out / "training").mkdir()
    (out / "training" / "step-00000001.safetensors").touch()
    refused("already exists: continue it with --resume, or choose another --output", data=numbers, output=out)
    assert (out / "thesis.txt").read_text() == "mine"


def test_a_damaged_state_gives_way_to_the_one_before(
    tmp_path: Path, numbers: str, capsys: pytest.CaptureFixture[str], whole_run: Path
) -> None:
    recipe = replace(SMALL, checkpoint_steps=3)
    training.train(recipe, data=numbers, output=tmp_path / "run", max_steps=6)
    newest, before = checkpoint.list_checkpoints(tmp_path / "run")
    assert (newest.stem, before.stem) == ("step-00000006", "step-00000004")
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    training.train(recipe, data=numbers, output=tmp_path / "run", resume=True)
    assert "step-00000006.safetensors is damaged (its sha256 is another)" in capsys.readouterr().err
    assert same(whole_run, tmp_path / "run")


def test_a_full_disk_leaves_no_new_folder(tmp_path: Path, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, path: Path, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    message = r"cannot write \S+/run/training/step-00000004.safetensors: .*No space left .* MiB are free"
    refused(message, data=numbers, output=tmp_path / "run")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "run" in path.parts]


def test_a_moving_average_is_kept_beside_the_weights_themselves(tmp_path: Path, numbers: str) -> None:
    """Last and best, of both kinds: each folder loads, and has the accuracy that its card names."""
    out = tmp_path / "run"
    training.train(replace(SMALL, epochs=4, ema_decay=0.5), data=numbers, output=out)
    with (out / "summary.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    expected = {
        ".": rows[-1]["top1"], "best": max(row["top1"] for row in rows),
        "raw": rows[-1]["raw_top1"], "best_raw": max(row["raw_top1"] for row in rows),
    }  # fmt: skip
    assert not same(out, out / "raw")
    for name, top1 in expected.items():
        model = timm.create_model(f"local-dir:{out / name}", pretrained=True)
        measured = seresnet_hub.evaluate(model, seresnet_hub.open_split(numbers, None), workers=0)
        assert measured.top1 == pytest.approx(top1), name
        assert measured.class_counts is not None
        assert f"| {top1:.2f} |" in (out / name / "README.md").read_text(), name
        counted = json.loads((out / name / "config.json").read_text())["seresnet_hub"]["per_class"]
        assert [
            *map(list, zip(counted["images"], counted["correct"], strict=True))
        ] == measured.class_counts.tolist(), name
    assert "chosen by the accuracy below" in (out / "best" / "README.md").read_text()


def test_accelerates_one_setting_a_process_is_no_surprise(tmp_path: Path, numbers: str) -> None:
    """It keeps the settings of the first `Accelerator` of a process; another precision must not become that one."""
    training.train(SMALL, data=numbers, output=tmp_path / "first", max_steps=1)
    refused("mixed_precision=bf16: .*restart your runtime", replace(SMALL, mixed_precision="bf16"),
            data=numbers, output=tmp_path / "second")  # fmt: skip
    assert not (tmp_path / "second").exists()


def test_trackers_get_losses_and_accuracies(tmp_path: Path, numbers: str) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    refused("tracker 'nope': not installed, or not one of", data=numbers, output=tmp_path / "run", trackers=["nope"])
    training.train(SMALL, data=numbers, output=tmp_path / "run", trackers=["tensorboard"])
    log = tmp_path / "run" / "training" / "seresnet_hub"
    events = EventAccumulator(str(log)).Reload()
    with (tmp_path / "run" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [event.step for event in events.Scalars("top1")] == [4, 8]
    assert [event.value for event in events.Scalars("top1")] == pytest.approx([float(row["top1"]) for row in rows])
    assert len(events.Scalars("loss")) == 2


def test_a_card_tells_an_unfinished_run_and_its_own_images(
    tmp_path: Path, numbers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(SMALL, eval_split="train")
    training.train(recipe, data=numbers, output=tmp_path / "run", max_steps=2)
    card = (tmp_path / "run" / "README.md").read_text()
    assert re.search(r"by the recipe `\w+`: 2 of its \d+ steps", card)
    assert "measured on the images that it was trained on" in card
    assert "--max-steps 2" in card
    assert "warning: what is measured here are the training images" in capsys.readouterr().err


def test_a_card_says_in_which_precision_its_accuracy_was_measured(tmp_path: Path, numbers: str) -> None:
    for precision, words in (("no", None), ("bf16", "under autocast in bfloat16")):
        out = tmp_path / precision
        training.train(replace(SMALL, epochs=1, eval_precision=precision), data=numbers, output=out)
        notes = json.loads((out / "config.json").read_text())["seresnet_hub"]["notes"]
        assert ("autocast" in " ".join(notes), "autocast" in (out / "README.md").read_text()) == (bool(words),) * 2
        assert words is None or words in (out / "README.md").read_text()
    assert same(tmp_path / "no", tmp_path / "bf16"), "what is learnt is the same"


@pytest.mark.parametrize(("keeps_all", "workers", "times"), [(False, 12, 1.5), (False, 8, None), (True, 12, None)])
def test_fetching_a_unit_several_times_is_said(keeps_all: bool, workers: int, times: float | None) -> None:
    """Workers that share lanes fetch the same units, unless these are kept on the disk."""
    recipe = replace(SMALL, workers=workers)
    plan = Plan(unit_rows=(100,) * 2000, batch_size=256, lanes=128, order=None)
    split = SimpleNamespace(
        source="far/away", streamed=True, parquet=SimpleNamespace(cache=SimpleNamespace(keeps_all=keeps_all))
    )
    line = training._fetched_again(recipe, cast(Any, split), plan, 8)
    assert (line is None) == (times is None)
    if line is not None:
        assert f"far/away is fetched {times} times an epoch, as 8 x 12 workers share 128 lanes" in line
