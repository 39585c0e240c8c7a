"""The card that is pushed says which exports there are and how they were proven, and its code runs as it is printed."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hub_fixtures
import numpy as np
import pytest
import torch
from exported_by_hand import PROOF, logits_of, prepared_by_timm, write_export
from hub_fixtures import REPO, write_folder
from hub_server import HubServer
from huggingface_hub import ModelCard
from PIL import Image

import seresnet_hub
from seresnet_hub.cards.exported_files import exported_section, with_exports
from seresnet_hub.engines.exported_files import read_record
from seresnet_hub.publishing.push import push
from seresnet_hub.publishing.verify import verify

pytest.importorskip("onnx", reason="needs the extra [onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
pytest.importorskip("openvino", reason="needs the extra [openvino]")

# The client's own business with its transport's newest version.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CARD = hub_fixtures.CARD.replace("mit", "apache-2.0") + "\n## Use\n\nUse it.\n\n## Preprocessing\n\nPrepare.\n"
INT8 = {**PROOF, "precision": "int8", "largest_difference": 0.0512, "tolerance": 0.3, "argmax_agreement": 0.9}
ACCURACY = {"data": "fruit", "split": "test", "images": 1234, "top1_before": 91.234, "top5_before": 99.0,
            "top1_after": 90.5, "top5_after": 99.0, "drop": 0.734}  # fmt: skip
QUANTIZATION = {
    "calibration": {"data": "fruit", "split": "train", "pictures": 300, "classes": 10}, "keep": ["layer1.*"],
    "kept_for_accuracy": ["fc"], "int8_layers": 20, "calibration_error": 0.0478, "calibration_error_allowed": 0.3,
    "sensitive": [{"layer": "conv1", "gain": 0.5}],
}  # fmt: skip
SIZES = {"onnx/model.onnx": 1_234_567, "onnx/model_int8.onnx": 345_678,
         "openvino/openvino_model.xml": 1_000_000, "openvino/openvino_model.bin": 200_000}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "model"
    write_folder(folder, card=CARD)
    write_export(folder)
    write_export(folder, precision="int8", proof=INT8, accuracy=ACCURACY, quantization=QUANTIZATION)
    write_export(folder, format="openvino")
    return folder


@pytest.fixture
def exported(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def records(folder: Path, *names: str) -> list[Any]:
    return [read_record(folder / name) for name in names]


def test_the_section_says_what_the_records_say(made: Path) -> None:
    found = records(made, "onnx/model.json", "onnx/model_int8.json", "openvino/openvino_model.json")
    text = exported_section(found, SIZES, REPO)
    for expected in (
        "| ONNX | fp32 | `onnx/model.onnx` | 1.2 | 3.2e-07 | 1e-05 | 100.0 |  |  |",
        "| ONNX | int8 | `onnx/model_int8.onnx` | 0.3 | 5.1e-02 | 3e-01 | 90.0 | 91.23 | 90.50 |",
        "| OpenVINO | fp32 | `openvino/openvino_model.xml`, `openvino/openvino_model.bin` | 1.2 | 3.2e-07 |",
        "compared with the network in float64, run by PyTorch, on 10 real pictures at batches of 1, 2 and 7.",
        "Accuracy *measured* on 1,234 images of test, before and after the export.",
        "`onnx/model_int8.onnx` is quantised to int8 per channel, calibrated with 300 pictures, over which the class "
        "furthest off is wrong by 4.8 % of how much outputs vary from picture to picture (30 % are allowed); kept in "
        "float: `layer1.*`; kept in float for their accuracy: `fc`; the layers that cost most: `conv1`.",
    ):
        assert expected in text, expected
    assert "top-1" not in exported_section(found[:1], SIZES, REPO)
    assert "OpenVINO" not in exported_section(found[:2], SIZES, REPO)


def test_the_section_stands_before_the_preprocessing_and_is_there_once(made: Path) -> None:
    found = records(made, "onnx/model.json", "openvino/openvino_model.json")
    once = with_exports(CARD, found, SIZES, REPO)
    assert re.findall("^## .*", once, re.MULTILINE) == ["## Use", "## Exported files", "## Preprocessing"]
    assert with_exports(once, found, SIZES, REPO) == once
    fewer = with_exports(once, found[:1], SIZES, REPO)
    assert (fewer.count("## Exported files"), "OpenVINO" in fewer) == (1, False)
    assert with_exports(CARD, [], SIZES, REPO) == CARD
    assert with_exports(once, [], SIZES, REPO).endswith(CARD[CARD.index("# A model") :])
    data: Any = ModelCard(once).data
    assert (data.tags, data.library_name, data.license) == (["onnx", "openvino"], "timm", "apache-2.0")
    assert with_exports("---\nlicense: mit\n---\n# Mine\n", found, SIZES, REPO).count("\n## Exported files\n") == 1


def test_names_of_layers_are_shown_as_they_are(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "m")
    write_export(tmp_path / "m", quantization={"keep": ["<b>`x`|y\n# z"]}, proof={"batches": "", "pictures": "<i>"})
    text = exported_section(records(tmp_path / "m", "onnx/model.json"), SIZES, REPO)
    assert "kept in float: `` <b>`x`|y # z ``." in text
    assert "| `onnx/model.onnx` | 1.2 |  |  |  |" in text


def test_a_file_that_prepares_pictures_is_shown_as_one(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "m")
    write_export(tmp_path / "m", preprocessing=True, batch=3)
    text = exported_section(records(tmp_path / "m", "onnx/model.json"), SIZES, REPO)
    assert "`onnx/model.onnx` prepares pictures itself: it takes bytes in RGB order" in text
    assert "`onnx/model.onnx` takes 3 at once" in text
    [block] = run_blocks(text)  # `predict` prepares pictures, and refuses such a file
    assert "images = np.repeat(images, 3, 0)" in block
    assert not run_blocks(text, "html")
    both = exported_section(records(tmp_path / "m", "onnx/model.json", "onnx/model_int8.json"), SIZES, REPO)
    assert f'name = "onnx:{REPO}/onnx/model_int8.onnx"' in both


def run_blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("size", [(80, 70), (70, 83), (32, 32), (31, 500)])
@pytest.mark.parametrize("preparation", [{}, {"crop_pct": 0.9, "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3]}])
def test_the_printed_code_names_what_the_network_does(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    size: tuple[int, int], preparation: dict[str, Any],
) -> None:  # fmt: skip
    """Each block is run as it stands, with the file from the Hub; what it says is compared with timm's preparation."""
    folder = tmp_path / "model"
    write_folder(folder, card=CARD, label_names=["red", "green", "blue", "grey"], **preparation)
    write_export(folder)
    write_export(folder, format="openvino")
    push(folder, REPO)
    card = hub.files(REPO)["README.md"].read().decode()
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save("picture.jpg")
    logits = logits_of(prepared_by_timm(folder, Image.open("picture.jpg")))[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    names = ["red", "green", "blue", "grey"]
    blocks = [block for block in run_blocks(card) if "seresnet_hub" not in block.replace('"seresnet_hub"', "")]
    assert len(blocks) == 2
    for block in blocks:
        capsys.readouterr()
        found: dict[str, Any] = {}
        exec(block, found)
        np.testing.assert_allclose(found["scores"], expected, atol=2e-6)
        best = [f"{names[number]}: {expected[number]:.1%}" for number in expected.argsort()[::-1]]
        assert capsys.readouterr().out.splitlines() == best


def test_code_is_no_wider_than_a_page(made: Path) -> None:
    found = records(made, "onnx/model.json", "openvino/openvino_model.json")
    text = exported_section(found, SIZES, "somebody/a-model-with-quite-a-long-name")
    lines = [line for kind in ("python", "html") for block in run_blocks(text, kind) for line in block.splitlines()]
    assert max(map(len, lines)) <= 80


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("preprocessing", [False, True])
def test_the_page_is_a_program(exported: Path, tmp_path: Path, preprocessing: bool) -> None:
    """Only its syntax: a browser is no part of these tests."""
    write_export(exported, preprocessing=preprocessing)
    [page] = run_blocks(exported_section(records(exported, "onnx/model.json"), SIZES, REPO), "html")
    [program] = re.findall(r'<script type="module">\n(.*)</script>', page, re.DOTALL)
    (tmp_path / "page.mjs").write_text(program)
    done = subprocess.run(["node", "--check", tmp_path / "page.mjs"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f'const repository = "{REPO}";\n' in program


@pytest.mark.slow
def test_the_whole_way_of_an_export(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Export a network really, push it, run the card's code as somebody else, and compare with the network itself."""
    model, folder = write_folder(tmp_path / "model", card=CARD), tmp_path / "model"
    for format in ("onnx", "openvino"):
        seresnet_hub.export(folder, folder, format=format)
    files = push(folder, REPO)["files"]
    assert "not pushed" not in capsys.readouterr().err
    assert {"onnx/model.onnx", "onnx/model.json", "openvino/openvino_model.xml", "openvino/openvino_model.bin"} < {
        *files
    }
    assert verify(REPO)["ok"]
    card = hub.files(REPO)["README.md"].read().decode()
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)).save("picture.jpg")
    with torch.inference_mode():
        expected = model(torch.from_numpy(prepared_by_timm(folder, Image.open("picture.jpg"))))[0].softmax(0).numpy()
    package, *blocks = run_blocks(card)
    capsys.readouterr()
    exec(package, {})
    [classes] = ast.literal_eval(capsys.readouterr().out)
    assert [one["index"] for one in classes] == expected.argsort()[::-1].tolist()
    assert [one["score"] for one in classes] == pytest.approx(sorted(expected, reverse=True), abs=1e-6)
    assert len(blocks) == 2
    for block in blocks:
        found: dict[str, Any] = {}
        exec(block, found)
        np.testing.assert_allclose(found["scores"], expected, atol=1e-6)


def test_a_number_that_no_float_holds_is_left_out(exported: Path) -> None:
    write_export(exported, proof={**PROOF, "largest_difference": 10**400, "argmax_agreement": 10**400})
    record = read_record(exported / "onnx/model.json")
    assert "| 1e-05 |" in exported_section([record], SIZES, REPO).replace("  ", " ")
