"""A page has the scores that `predict` has: the card's own code and the exported file, in the runtime of browsers.

It needs Node and the package onnxruntime-web: `ONNXRUNTIME_WEB=FOLDER` names a folder with it in `node_modules`, and
`EXPORT_WEB_NPM=1` has npm install it. A browser's pictures and its page are stood in for; the rest is what runs there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from test_export_architectures import on_photographs

import seresnet_hub
from seresnet_hub.cards.exported_snippets import WEB_RUNTIME, on_a_page
from seresnet_hub.engines.exported_files import read_record

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra 'onnx'")
pytest.importorskip("onnxscript", reason="onnxscript is in the extra 'onnx'")
pytestmark = pytest.mark.slow

HUB = "https://huggingface.co/${repository}/resolve/main/onnx/"
CHOOSE = "Choose a picture, or drop one on the field. It stays on this device."
# How far scores may be off, as shares of the largest one: engines round float32 differently, and in int8 that can move
# a value by a whole level.
TOLERANCES = {"fp32": 5e-5, "fp16": 5e-5, "int8": 0.05}
STAGE = """
import {readFileSync} from "node:fs";

const element = () => ({
  textContent: "", disabled: true, children: [],
  replaceChildren() { this.children = []; },
  appendChild(child) { this.children.push(child); return child; },
  removeAttribute() {},
});
const page = {p: element(), ol: element(), input: element(), img: element()};
globalThis.document = {
  querySelector: (name) => page[name],
  querySelectorAll: (names) => names.split(", ").map((name) => page[name]),
  createElement: element,
};
globalThis.fetch = async (path) => ({ok: true, json: async () => JSON.parse(readFileSync(path))});
globalThis.createImageBitmap = async (file) => {
  if (!file.width) throw new Error("no picture");
  return file;
};
globalThis.OffscreenCanvas = class {
  getContext() { return this; }
  drawImage(picture) { this.data = new Uint8ClampedArray(readFileSync(picture.path)); }
  getImageData() { return this; }
};
URL.createObjectURL = () => "";

const {scoresOf} = await import(process.argv[2]);
const files = JSON.parse(process.argv[3]);
const found = {before: page.p.textContent, disabled: page.input.disabled, shown: []};
for (const file of files) {
  page.input.files = [file];
  await page.input.onchange();
  const scores = file.width ? await scoresOf(file) : null;
  found.shown.push({says: page.p.textContent, lines: page.ol.children.map((line) => line.textContent), scores});
}
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of onnxruntime-web, in the version that cards name."""
    if shutil.which("node") is None:
        pytest.skip("needs node")
    folder = os.environ.get("ONNXRUNTIME_WEB")
    if folder is None:
        if os.environ.get("EXPORT_WEB_NPM") != "1" or shutil.which("npm") is None:
            pytest.skip("needs ONNXRUNTIME_WEB=FOLDER with node_modules/onnxruntime-web, or EXPORT_WEB_NPM=1 and npm")
        folder = str(tmp_path_factory.mktemp("npm"))
        [package] = re.findall(r"onnxruntime-web@[\d.]+", WEB_RUNTIME)
        subprocess.run(
            ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", package], cwd=folder, check=True
        )
    return Path(folder).resolve() / "node_modules" / "onnxruntime-web"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two photographs, flat and upright, as files for the page, whose canvas has four bytes a pixel."""
    folder, files = tmp_path_factory.mktemp("photos"), []
    china, flower = load_sample_images().images
    for name, pixels in (("china.jpg", china), ("flower.jpg", flower[:, 100:401])):
        (folder / name).write_bytes(np.pad(pixels, ((0, 0), (0, 0), (0, 1)), constant_values=255).tobytes())
        files.append({"name": name, "path": str(folder / name), "width": pixels.shape[1], "height": pixels.shape[0]})
    return files


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("calibration"), np.random.default_rng(0)
    for number in range(24):
        pixels = load_sample_images().images[number % 2]
        side = int(generator.integers(120, 400))
        top, left = (int(generator.integers(0, length - side + 1)) for length in pixels.shape[:2])
        Image.fromarray(pixels[top : top + side, left : left + side]).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def networks() -> dict[str, Any]:
    return {"seresnet20_cifar.c10": "seresnet20_cifar.c10", "seresnet18": on_photographs("seresnet18", 224)}


def on_the_page(record: Path, runtime: Path, folder: Path, files: list[dict[str, Any]]) -> Any:
    """What the card's page says and shows, and the scores behind it, one picture after the other."""
    page = on_a_page(read_record(record), "somebody/model")
    [program] = re.findall(r'<script type="module">\n(.*)</script>', page, re.DOTALL)
    for there, here in ((HUB, f"{record.parent}/"), (WEB_RUNTIME, str(runtime / "dist" / "ort.node.min.mjs"))):
        assert there in program
        program = program.replace(there, here)
    (folder / "page.mjs").write_text(program + "\nexport {scoresOf};\n")
    (folder / "stage.mjs").write_text(STAGE)
    command = ["node", folder / "stage.mjs", folder / "page.mjs", json.dumps(files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def expected_scores(model: Any, record: Path, photo: dict[str, Any]) -> np.ndarray:
    """What `predict` has of the network, or what ONNX Runtime has of a file that is rounded."""
    made = read_record(record)
    pixels = np.fromfile(photo["path"], dtype=np.uint8).reshape(photo["height"], photo["width"], 4)[..., :3]
    if made.facts.precision != "fp32" and made.facts.preprocessing:
        session = onnxruntime.InferenceSession(made.name)
        return np.asarray(session.run(None, {session.get_inputs()[0].name: pixels[None]})[0][0])
    model = model if made.facts.precision == "fp32" else f"onnx:{made.name}"
    [classes] = seresnet_hub.predict(model, pixels, topk=made.facts.num_classes)
    return np.array([one["score"] for one in sorted(classes, key=lambda one: one["index"])])


@pytest.mark.parametrize("preprocessing", [False, True], ids=["normalised", "preprocessing"])
@pytest.mark.parametrize(("name", "precision"), [
    ("seresnet20_cifar.c10", "fp32"), ("seresnet20_cifar.c10", "fp16"), ("seresnet20_cifar.c10", "int8"),
    ("seresnet18", "fp32"), ("seresnet18", "int8"),
])  # fmt: skip
def test_a_page_shows_what_predict_says(
    name: str, precision: str, preprocessing: bool, networks: dict[str, Any], calibration: Path,
    photos: list[dict[str, Any]], runtime: Path, tmp_path: Path,
) -> None:  # fmt: skip
    model = networks[name]
    made = seresnet_hub.export(
        model, tmp_path, precision=precision, with_preprocessing=preprocessing,
        calibrate=str(calibration) if precision == "int8" else None,
    )  # fmt: skip
    record = Path(made["record"])
    names = read_record(record).facts.class_names or [f"class {number}" for number in range(1000)]
    found = on_the_page(record, runtime, tmp_path, [{"name": "notes.txt"}, *photos])
    assert (found["before"], found["disabled"]) == (CHOOSE, False)
    refused, *shown = found["shown"]
    assert (refused["says"], refused["lines"]) == ("notes.txt is no picture that can be read here.", [])
    for one, photo in zip(shown, photos, strict=True):
        expected, scores = expected_scores(model, record, photo), np.array(one["scores"])
        np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCES[precision] * expected.max())
        best, ranked = (values.argsort()[::-1][:5].tolist() for values in (expected, scores))
        assert ranked == best
        assert one["says"] == f"{photo['name']} shows most probably:"
        assert one["lines"] == [f"{names[number]}: {100 * scores[number]:.1f} %" for number in best]
        print(f"{photo['name']}: off by {np.abs(scores - expected).max():.1e}, the best score is {expected.max():.4f}")


def test_a_model_that_is_not_there_is_said(networks: dict[str, Any], runtime: Path, tmp_path: Path) -> None:
    record = Path(seresnet_hub.export(networks["seresnet20_cifar.c10"], tmp_path)["record"])
    (tmp_path / "onnx" / "model.onnx").unlink()
    found = on_the_page(record, runtime, tmp_path, [])
    assert found["disabled"]
    assert found["before"].startswith("The model somebody/model could not be loaded: ")
