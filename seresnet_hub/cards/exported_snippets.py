"""Show how to run exported files, most of all without this package, in code that runs as it is written."""

from __future__ import annotations

import math
from pathlib import PurePath

from seresnet_hub.engines.export_facts import INTERPOLATIONS, ExportFacts
from seresnet_hub.engines.exported_files import Record, files_of, record_of

WEB_RUNTIME = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/ort.wasm.min.mjs"
SHOWN_CLASSES = 3


def shows_preparation(facts: ExportFacts) -> bool:
    """Return whether a few lines prepare pictures as the file wants them: square ones of three colours, cropped."""
    channels, height, width = facts.input_size
    return facts.preprocessing or (
        channels == 3 and height == width and facts.crop_mode == "center" and facts.interpolation in INTERPOLATIONS
        and facts.crop_pct <= 1
    )  # fmt: skip


def with_the_package(record: Record, repo_id: str) -> str:
    """Return a code block that names what a picture shows with this package."""
    facts = record.facts
    return f"""```python
import seresnet_hub

name = "{facts.format}:{repo_id}/{files_of(facts.format, facts.precision)[0]}"
print(seresnet_hub.predict(name, "picture.jpg"))
```"""


def with_onnxruntime(record: Record, repo_id: str) -> str:
    """Return a code block that names what a picture shows with ONNX Runtime."""
    facts = record.facts
    (name,) = files_of(facts.format, facts.precision)
    return _python(
        facts, "import onnxruntime\nfrom huggingface_hub import hf_hub_download",
        f'''repository = "{repo_id}"
file = hf_hub_download(repository, "{name}")
session = onnxruntime.InferenceSession(file)
[answers] = session.run(None, {{session.get_inputs()[0].name: images}})''',
        'json.loads(session.get_modelmeta().custom_metadata_map["class_names"])',
    )  # fmt: skip


def with_openvino(record: Record, repo_id: str) -> str:
    """Return a code block that names what a picture shows with OpenVINO."""
    facts = record.facts
    xml, weights = files_of(facts.format, facts.precision)
    hint = "bf16" if facts.precision == "bf16" else "f32"
    return _python(
        facts, "import openvino\nfrom huggingface_hub import hf_hub_download",
        f'''repository = "{repo_id}"
hf_hub_download(repository, "{weights}")
file = hf_hub_download(repository, "{xml}")
model = openvino.Core().read_model(file)
options = {{"INFERENCE_PRECISION_HINT": "{hint}"}}
compiled = openvino.compile_model(model, "CPU", options)
answers = compiled(images)[0]''',
        'json.loads(model.get_rt_info(["seresnet_hub", "class_names"]).astype(str))',
    )  # fmt: skip


def _python(facts: ExportFacts, imports: str, run: str, names: str) -> str:
    open_picture = 'picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")'
    if facts.preprocessing:
        prepare = "images = np.asarray(picture)[None]  # the file does the rest"
        scores = "scores = answers[0]"
    else:
        size, edge = facts.input_size[-1], _edge(facts)
        prepare = f"""short = min(picture.size)
size = [int({edge} * side / short) for side in picture.size]
picture = picture.resize(size, Image.Resampling.{facts.interpolation.upper()})
left, top = (round((side - {size}) / 2) for side in picture.size)
picture = picture.crop((left, top, left + {size}, top + {size}))
mean = {_numbers(facts.mean)}
std = {_numbers(facts.std)}
values = (np.asarray(picture) / 255 - mean) / std
images = values.transpose(2, 0, 1)[None].astype(np.float32)"""
        scores = "scores = np.exp(answers[0] - answers[0].max())\nscores /= scores.sum()"
    if facts.batch not in (None, 1):
        prepare += f"\nimages = np.repeat(images, {facts.batch}, 0)  # it takes {facts.batch} at once"
    named = facts.class_names is not None
    show = "{names[number]}" if named else "class {number}"
    return f"""```python
{"import json" * named}
import numpy as np
{imports}
from PIL import Image, ImageOps

{open_picture}
{prepare}

{run}
{scores}
{f"names = {names}" * named}
for number in scores.argsort()[::-1][:{min(SHOWN_CLASSES, facts.num_classes)}]:
    print(f"{show}: {{scores[number]:.1%}}")
```""".replace("```python\n\n", "```python\n").replace("\n\nfor number", "\nfor number")  # fmt: skip


def on_a_page(record: Record, repo_id: str) -> str:
    """Return a page that names what a picture shows, with ONNX Runtime Web."""
    facts = record.facts
    (name,) = files_of(facts.format, facts.precision)
    file, described = (PurePath(one).name for one in (name, record_of(facts.format, facts.precision)))
    tensor = 'new ort.Tensor("float32", values, [1, 3, size, size])'
    prepare, scores = _ON_CANVAS, _SOFTMAX
    constants = (
        f"const size = {facts.input_size[-1]}, edge = {_edge(facts)};\n"
        f"const mean = {_numbers(facts.mean)};\nconst std = {_numbers(facts.std)};\n"
    )
    if facts.preprocessing:
        prepare, scores, constants = _LEVELS, _PROBABILITIES, ""
        tensor = 'new ort.Tensor("uint8", values, [1, picture.height, picture.width, 3])'
    return f"""```html
<!doctype html>
<meta charset="utf-8">
<input type="file" accept="image/*">
<pre></pre>
<script type="module">
import * as ort from
  "{WEB_RUNTIME}";

const repository = "{repo_id}";
const base = `https://huggingface.co/${{repository}}/resolve/main/onnx/`;
{constants}const record = await (await fetch(base + "{described}")).json();
const names = record.facts.class_names;
const session = await ort.InferenceSession.create(base + "{file}");

document.querySelector("input").onchange = async (event) => {{
  const picture = await createImageBitmap(event.target.files[0]);
{prepare}
  const images = {tensor};
  const answers = await session.run({{[session.inputNames[0]]: images}});
  const outputs = Array.from(answers[session.outputNames[0]].data);
{scores}
  const best = scores.map((score, number) => [score, number]);
  best.sort((one, other) => other[0] - one[0]);
  document.querySelector("pre").textContent = best.slice(0, {min(SHOWN_CLASSES, facts.num_classes)}).map(
    ([score, number]) =>
      `${{names?.[number] ?? number}}: ${{(100 * score).toFixed(1)}} %`
  ).join("\\n");
}};
</script>
```"""


_ON_CANVAS = """  const side = Math.min(picture.width, picture.height) * size / edge;
  const left = (picture.width - side) / 2, top = (picture.height - side) / 2;
  const context = new OffscreenCanvas(size, size).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, left, top, side, side, 0, 0, size, size);
  const levels = context.getImageData(0, 0, size, size).data;
  const values = new Float32Array(3 * size * size);
  for (let at = 0; at < size * size; at++)
    for (let colour = 0; colour < 3; colour++)
      values[colour * size * size + at] =
        (levels[4 * at + colour] / 255 - mean[colour]) / std[colour];"""
_LEVELS = """  const {width, height} = picture;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(picture, 0, 0);
  const levels = context.getImageData(0, 0, width, height).data;
  const values = Uint8Array.from(levels.filter((_, at) => at % 4 < 3));"""
_SOFTMAX = """  const largest = Math.max(...outputs);
  const powers = outputs.map((output) => Math.exp(output - largest));
  const sum = powers.reduce((one, other) => one + other);
  const scores = powers.map((power) => power / sum);"""
_PROBABILITIES = """  const scores = outputs;"""


def _edge(facts: ExportFacts) -> int:
    """Return the length of the shorter side before the crop, as timm computes it."""
    return math.floor(facts.input_size[-1] / facts.crop_pct)


def _numbers(values: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{value:.9g}' for value in values)}]"
