"""The command line is a contract: these arguments, these JSON keys, one clear line and exit code 2 on bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import WriteSplit, encode
from PIL import Image
from warm_python import run_python

from seresnet_hub.commands.main import COMMANDS
from seresnet_hub.commands.result_or_error import run
from seresnet_hub.commands.terminal import as_table
from seresnet_hub.environment import loader_workers
from seresnet_hub.recipes.field_types import declarations
from seresnet_hub.recipes.recipe import RECIPES, Recipe, get_recipe

SCRIPTS = Path(__file__).parents[1] / "scripts"


def command(name: str) -> ModuleType:
    """Return the module of a command, or of a script that is for a clone."""
    return import_module(f"seresnet_hub.commands.{name}" if name in COMMANDS else name)


def call(name: str, *arguments: object, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = run(command(name).main, [str(argument) for argument in arguments])
    return code, *capfd.readouterr()


QUICK = ["--set", "input_size=8", "workers=0", "--max-steps", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "digits"
    assert run(command("train").main, ["--output", str(output), *QUICK]) == 0
    return output


def test_train_prints_its_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call("train", "--output", tmp_path / "run", *QUICK, capfd=capfd)
    assert code == 0
    assert out.count("\n") == 1
    result = json.loads(out)
    assert list(result) == [
        "output", "recipe", "model", "steps", "epochs", "seen", "top1", "top5", "images_per_second", "waiting_share",
        "first_steps_seconds", "peak_bytes", "stopped",
    ]  # fmt: skip
    assert (result["output"], result["recipe"], result["steps"], result["seen"]) == (
        str(tmp_path / "run"), "digits", 2, 128,
    )  # fmt: skip
    assert "1 process on" in err
    assert "training seresnet20_cifar" in err  # the progress bar


def test_validate_prints_its_result(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("validate", f"local-dir:{trained}", "--data", "digits", capfd=capfd)
    assert code == 0
    result = json.loads(out)
    assert list(result) == [
        "model", "data", "split", "seen", "counted", "top1", "top5", "loss", "input_size", "crop_pct",
        "images_per_second", "precision", "compile", "workers", "processes", "batch_size", "tta", "classes",
        "precision_macro", "recall_macro", "f1_macro", "precision_weighted", "recall_weighted", "f1_weighted",
        "balanced_accuracy", "ece", "temperature", "ece_at_temperature",
    ]  # fmt: skip
    assert (result["processes"], result["batch_size"], result["tta"], result["classes"]) == (1, 128, None, None)
    assert (result["precision"], result["compile"], result["workers"]) == ("no", None, loader_workers())
    assert (result["split"], result["seen"], result["counted"]) == ("validation", 360, 360)
    assert (result["input_size"], result["crop_pct"]) == ([8, 8], 1.0)
    options = ["--input-size", 12, "--crop-pct", 0.75, "--report", tmp_path / "report"]
    code, out, _ = call("validate", f"local-dir:{trained}", "--data", "digits", *options, capfd=capfd)
    assert code == 0
    reported = json.loads(out)
    assert list(reported) == [*result, "report", "worst_classes"]
    assert (reported["input_size"], reported["crop_pct"], reported["seen"]) == ([12, 12], 0.75, 360)
    assert [list(row) for row in reported["worst_classes"]] == [["index", "name", "top1"]] * 5
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "confusion.csv", "confusion.png", "index.html", "metrics.json", "per_class.csv", "reliability.png",
    ]  # fmt: skip


def test_predict_prints_its_result(
    trained: Path, tmp_path: Path, photo: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    photo.save(tmp_path / "a.png")
    photo.convert("L").save(tmp_path / "b.jpg")
    code, out, _ = call("predict", f"local-dir:{trained}", tmp_path, "--topk", 2, capfd=capfd)
    assert code == 0
    result = json.loads(out)
    assert list(result) == ["model", "predictions", "unreadable", "failed"]
    assert [Path(p["image"]).name for p in result["predictions"]] == ["a.png", "b.jpg"]
    assert all(list(c) == ["index", "name", "score"] for p in result["predictions"] for c in p["classes"])
    assert all(len(p["classes"]) == 2 for p in result["predictions"])


def test_a_bad_picture_among_others_costs_no_prediction(
    trained: Path, tmp_path: Path, photo: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "c.png"):
        photo.save(tmp_path / name)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    code, out, err = call("predict", f"local-dir:{trained}", tmp_path, capfd=capfd)
    result = json.loads(out)
    assert (code, result["failed"]) == (0, 1)
    assert [Path(p["image"]).name for p in result["predictions"]] == ["a.png", "c.png"]
    assert result["predictions"][0]["classes"] == result["predictions"][1]["classes"]
    (bad,) = result["unreadable"]
    assert Path(bad["image"]).name == "b.png"
    assert f"unreadable: {tmp_path / 'b.png'}: not a whole image" in err
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes(b"no picture")
    code, out, err = call("predict", f"local-dir:{trained}", tmp_path, capfd=capfd)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "error: none of the 3 pictures can be read"


def test_compiled_models_say_the_same(
    trained: Path,
    tmp_path: Path,
    photo: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The compiler itself is left out here: `test_compiling.py` has it."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: (compiled.append(function), function)[1])
    photo.save(tmp_path / "a.png")
    results = []
    for options in ([], ["--fuse", "--compile"], ["--compile", "epilogue"]):
        code, out, err = call("predict", trained, tmp_path / "a.png", *options, capfd=capfd)
        assert code == 0, err
        results.append([one["index"] for one in json.loads(out)["predictions"][0]["classes"]])
    assert results[0] == results[1] == results[2]
    assert len(compiled) == 2
    words = ["validate", trained, "--data", "digits", "--workers", 0]
    code, out, _ = call(*words, capfd=capfd)
    plain = json.loads(out)
    code, out, err = call(*words, "--compile", "--amp", "bf16", capfd=capfd)
    assert code == 0, err
    result = json.loads(out)
    assert (result["precision"], result["compile"], result["workers"]) == ("bf16", "default", 0)
    assert abs(result["top1"] - plain["top1"]) < 3
    assert "compiling the model at its first batch" in err
    assert len(compiled) == 3


def test_what_cannot_be_compiled_is_one_line(
    trained: Path, tmp_path: Path, photo: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor import config

    photo.save(tmp_path / "a.png")
    commands = (["predict", trained, tmp_path / "a.png"], ["validate", trained, "--data", "digits"])
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        for command in commands:
            code, out, err = call(*command, "--compile", capfd=capfd)
            assert (code, out) == (2, "")
            assert err.splitlines()[-1].startswith("error: torch.compile needs a C++ compiler")


def test_predict_says_which_model_answers(
    trained: Path,
    tmp_path: Path,
    photo: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A folder with a model in it is no folder of pictures: another network would name its curves, or 1.png."""
    monkeypatch.chdir(trained.parent)
    (tmp_path / "photos").mkdir()
    photo.save(tmp_path / "photos" / "1.png")
    code, out, err = call("predict", trained.name, tmp_path / "photos" / "1.png", "--topk", 1, capfd=capfd)
    assert code == 0, err
    result = json.loads(out)
    assert (result["model"], len(result["predictions"])) == (trained.name, 1)
    assert result["predictions"][0]["classes"][0]["name"] in map(str, range(10))
    assert f"model: {trained.name} (seresnet20_cifar, 10 classes)" in err
    code, out, err = call("predict", tmp_path / "photos", capfd=capfd)
    assert code == 0, err
    assert json.loads(out)["model"] == "seresnet20_cifar.c10"
    assert "model: seresnet20_cifar.c10, the default, which comes with the package" in err
    code, out, err = call("validate", trained.name, "--data", "digits", capfd=capfd)
    assert code == 0, err
    assert json.loads(out)["model"] == trained.name
    code, out, err = call("verify", trained.name, capfd=capfd)
    assert code == 0, err
    assert json.loads(out)["ok"]


def test_predict_reads_standard_input(trained: Path, photo: Image.Image) -> None:
    command = [sys.executable, str(SCRIPTS / "predict.py"), f"local-dir:{trained}", "-", "--topk", "1"]
    done = run_python(command, input=encode(photo))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"][0]["image"] == "-"


def test_recipes_are_listed_and_explained(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("train", "--list-recipes", capfd=capfd)
    assert (code, out.count("\n")) == (0, 1)
    rows = json.loads(out)["recipes"]
    assert [row["recipe"] for row in rows] == list(RECIPES)
    assert all(row["summary"] and row["model"] for row in rows)
    assert re.search(r"^finetune +auto +yours +your own classes", as_table(json.loads(out)), re.MULTILINE)

    code, out, _ = call("train", "--show-recipe", "finetune", "--set", "epochs=7", capfd=capfd)
    assert (code, out.count("\n")) == (0, 1)
    result = json.loads(out)
    fields = {row["field"]: row for row in result["fields"]}
    assert (result["recipe"], len(fields)) == ("finetune", len(declarations(Recipe)))
    assert (fields["epochs"]["value"], fields["batch_size"]["value"]) == ("7", "auto")
    shown = as_table(result)
    assert re.search(r"^crop +resized +pad \| resized +pad: resize", shown, re.MULTILINE)
    assert all(len(line) <= 120 for line in shown.splitlines())
    assert json.loads(call("train", "--show-recipe", capfd=capfd)[1])["recipe"] == "digits"


def test_a_recipe_is_printed_as_a_file_that_trains_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('base = "finetune"\ndata = "nowhere"\nepochs = 3\n')
    words = ["--recipe", "mine.toml", "--set", "seed=7", "--print-recipe"]
    code, out, _ = call("train", *words, capfd=capfd)
    assert (code, out.count("\n"), os.listdir()) == (0, 1, ["mine.toml"])
    result = json.loads(out)
    assert result["recipe"] == "mine"
    assert set(result["origins"]) == {*declarations(Recipe)} - {"name"}
    origins = ("epochs", "seed", "weights", "dropout")
    assert [result["origins"][name] for name in origins] == ["mine.toml", "--set", "finetune.toml", "default"]
    assert as_table(result) + "\n" == result["toml"]
    Path("again").mkdir()
    Path("again", "mine.toml").write_text(result["toml"])
    again = json.loads(call("train", "--recipe", "again/mine.toml", "--print-recipe", capfd=capfd)[1])
    assert tomllib.loads(again["toml"]) == tomllib.loads(result["toml"])
    assert get_recipe("again/mine.toml") == replace(get_recipe("mine.toml"), seed=7)


def test_a_run_by_a_recipe_of_ones_own_is_called_as_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('base = "digits"\nepochs = 1\nworkers = 0\n')
    code, out, _ = call("train", "--recipe", "mine.toml", "--max-steps", 1, capfd=capfd)
    result = json.loads(out)
    assert (code, result["recipe"], result["output"]) == (0, "mine", "runs/mine")
    facts = json.loads(Path("runs/mine/config.json").read_text())["seresnet_hub"]
    assert (facts["recipe"]["name"], facts["recipe"]["epochs"]) == ("mine", "1")
    assert facts["command"] == "seresnet-hub train --recipe mine.toml --max-steps 1"
    card = Path("runs/mine/README.md").read_text()
    assert "by the recipe `mine`" in card
    assert facts["command"] in card


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", ["--recipe", "./none.toml"], "cannot read the recipe none.toml: No such file or directory"),
        ("train", ["--recipe", "cifar100"], "'cifar10'?; there are: cifar10, cifar10_paper, digits"),
        ("train", ["--set", "learningrate=1"], "a recipe has no such field; did you mean 'learning_rate'?"),
        ("train", ["--show-recipe", "fintune"], "no recipe 'fintune'; did you mean 'finetune'?"),
        ("train", ["--set", "epochs=many"], "--set epochs=many: expected a whole number"),
        ("train", ["--data", "./nowhere"], "no data at ./nowhere: the folder does not exist"),
        (
            "train",
            ["--output", ".", "--resume"],
            "nothing to resume: . holds cut.jpg, but no state of a run in",
        ),
        ("train", ["--output", "."], ". already exists: choose another --output"),
        ("train", ["--stopped-exit-code", "256"], "--stopped-exit-code 256: must be between 0 and 255"),
        ("train", ["--set", "eval_every=0"], "eval_every=0: must be a finite number greater than 0"),
        ("train", ["--set", "save_every=-1"], "save_every=-1: must be a finite number greater than 0"),
        ("validate", ["seresnet20_cifar", "--data", "./nowhere"], "no data at ./nowhere"),
        ("validate", ["seresnet9000", "--data", "digits"], "cannot create model 'seresnet9000'"),
        ("validate", ["local-dir:./nowhere", "--data", "digits"], "nowhere: there is no such folder"),
        ("validate", ["local-dir:MODEL", "--data", "digits", "--real"], "1,000 classes of ImageNet-1k, the model 10"),
        ("validate", ["local-dir:MODEL", "--data", "digits", "--input-size", "2"], "input size 2: the model makes one"),
        ("validate", ["local-dir:MODEL", "--data", "digits", "--crop-pct", "2"], "crop_pct=2.0: must be between 0.1"),
        ("validate", ["local-dir:MODEL", "--data", "digits", "--crop-pct", "1e-9"], "crop_pct=1e-09: must be between"),
        (
            "validate",
            ["local-dir:MODEL", "--data", "digits", "--input-size", "100000"],
            "size 100000: must be at most 2048",
        ),
        ("train", ["--set", "model=resnet18.some/one"], "timm has no architecture 'resnet18.some/one'"),
        (
            "convert",
            ["local", "--output", "o", "--labels", "/dev/zero"],
            "cannot read the labels /dev/zero: it is no file",
        ),
        ("convert", ["x", "--output", "o", "--model", "hf-hub:a/b"], "x: no such file"),
        ("validate", ["local-dir:MODEL", "--data", "digits", "--label-column", "real"], "no column 'real'"),
        ("validate", ["local-dir:MODEL", "--data", "digits", "--report", "TEXT"], "notes.txt is no folder"),
        ("predict", ["seresnet20_cifar", "missing.png"], "missing.png: no such file or folder"),
        ("predict", ["local-dir:MODEL", "TEXT"], "notes.txt: not an image"),
        ("predict", ["local-dir:MODEL", "CUT"], "cut.jpg: not a whole image"),
        ("predict", ["MODEL"], "digits is taken for a model; name pictures after it"),
        ("predict", ["CUT", "MODEL"], "digits is a model folder, not a picture"),
        ("predict", ["HALF", "CUT"], "half has no model.safetensors"),
        ("predict", ["seresnet50.mm_in1k_", "CUT"], "timm has no weights 'seresnet50.mm_in1k_'"),
        ("validate", ["HALF", "--data", "digits"], "half has no model.safetensors"),
        ("verify", ["HALF"], "half has no model.safetensors"),
        ("verify", ["seresnet20_cifar"], "'seresnet20_cifar' has no files to verify: name a repository or a folder"),
    ],
)
def test_bad_input_is_one_line(
    name: str, arguments: list[str], message: str, trained: Path, tmp_path: Path, photo: Image.Image,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "cut.jpg").write_bytes(encode(photo.resize((300, 300)), "JPEG")[:1500])
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    places = {
        "local-dir:MODEL": f"local-dir:{trained}",
        "MODEL": str(trained),
        "HALF": "half",
        "TEXT": "notes.txt",
        "CUT": "cut.jpg",
    }
    code, out, err = call(name, *(places.get(argument, argument) for argument in arguments), capfd=capfd)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_truncated_jpeg_in_a_shard_is_one_line(
    write_split: WriteSplit, tmp_path: Path, photo: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = encode(photo.resize((200, 200)), "JPEG")
    root = write_split([[8]], images=[*[whole] * 5, whole[:900], *[whole] * 2])
    write_split([[4]], split="validation", images=[whole] * 4)
    code, out, err = call("train", "--data", root, "--output", tmp_path / "run", "--set", "input_size=8", capfd=capfd)
    assert (code, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert "error: row 5 of split 'train' of" in last
    assert "not a whole image" in last
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_standard_input_that_is_not_there_is_one_line(
    trained: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it where the descriptor is closed
    code, out, err = call("predict", trained, "-", capfd=capfd)
    assert (code, out) == (2, "")
    assert "closed" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["0<&-", ">&-"])
def test_a_closed_stream_is_one_line(trained: Path, tmp_path: Path, photo: Image.Image, closed: str) -> None:
    photo.save(tmp_path / "a.png")
    picture = "-" if closed == "0<&-" else str(tmp_path / "a.png")
    script = f'"$0" "$1" "$2" "$3" {closed}'
    command = ["bash", "-c", script, sys.executable, str(SCRIPTS / "predict.py"), str(trained), picture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "closed" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_predict_counts_what_folders_named_after_classes_say(
    trained: Path, tmp_path: Path, photo: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("3", "8"):
        (tmp_path / name).mkdir()
        photo.save(tmp_path / name / "a.png")
    code, out, err = call("predict", f"local-dir:{trained}", tmp_path, "--topk", 1, capfd=capfd)
    assert code == 0
    best = [found["classes"][0]["name"] for found in json.loads(out)["predictions"]]
    right = sum(name == folder for name, folder in zip(best, ("3", "8"), strict=True))
    assert f"{right} of 2 pictures show what the folder they are in is called" in err
    photo.save(tmp_path / "b.png")
    assert "what the folder" not in call("predict", f"local-dir:{trained}", tmp_path, capfd=capfd)[2]


def test_an_interrupted_training_is_one_line_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    code, out, err = call("train", "--output", tmp_path / "run", *QUICK, capfd=capfd)
    assert (code, out) == (130, "")
    assert err.strip().splitlines()[-1].endswith("interrupted")
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "train.py"), "--output", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, env=environment
    ) as process:
        assert process.stderr is not None
        heard = b""
        while not re.search(rb"\| [1-9][\d.]*k?/28\.7k ", heard):  # a step is done
            piece = process.stderr.read1(200)
            assert piece, heard
            heard += piece
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b""
    assert err.strip().splitlines()[-1].endswith(b"interrupted"), err.decode()
    assert b"Traceback" not in err
    assert not (tmp_path / "run").exists()
