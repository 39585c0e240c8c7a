"""Show how to run exported files, most of all without this package, in code that runs as it is written."""

from __future__ import annotations

import math
from pathlib import PurePath

from seresnet_hub.engines.export_facts import INTERPOLATIONS, ExportFacts
from seresnet_hub.engines.exported_files import Record, files_of, record_of

WEB_RUNTIME = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/ort.wasm.min.mjs"
SHOWN_CLASSES = 5


def shows_preparation(facts: ExportFacts) -> bool:
    """Return whether a few lines prepare pictures as the file wants them: square ones of three colours, cropped."""
    channels, height, width = facts.input_size
    return facts.preprocessing or (
        channels == 3 and height == width and facts.crop_mode == "center" and facts.interpolation in INTERPOLATIONS
        and facts.crop_pct <= 1
    )  # fmt: skip


def shows_page(facts: ExportFacts) -> bool:
    """Return whether a page can run the file: one of ONNX, that takes one picture and needs no filter but these."""
    return (
        facts.format == "onnx" and facts.batch in (None, 1) and shows_preparation(facts)
        and (facts.preprocessing or facts.interpolation in _FILTERS)
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
    prepare, gives, constants, functions = _LEVELS, "  return outputs;", "", ""
    tensor = '"uint8", values, [1, picture.height, picture.width, 3]'
    if not facts.preprocessing:
        prepare, gives = _NORMALISED, _SOFTMAX
        tensor = '"float32", values, [1, 3, size, size]'
        support, functions = _FILTERS[facts.interpolation]
        functions = f"\n{functions}\n{_SHRUNK}\n"
        constants = (
            f"const size = {facts.input_size[-1]}, edge = {_edge(facts)}, support = {support};\n"
            f"const mean = {_numbers(facts.mean)};\nconst std = {_numbers(facts.std)};\n"
        )
    return f"""```html
{_PAGE}
<script type="module">
const repository = "{repo_id}";
const base = `https://huggingface.co/${{repository}}/resolve/main/onnx/`;
const runtime =
  "{WEB_RUNTIME}";
{constants}const [input, img] = document.querySelectorAll("input, img");
const list = document.querySelector("ol");
const say = (text) => {{ document.querySelector("p").textContent = text; }};
let ort, names, session;

try {{
  ort = await import(runtime);
  const answer = await fetch(base + "{described}");
  if (!answer.ok) throw new Error(`${{answer.url}} answers ${{answer.status}}`);
  names = (await answer.json()).facts.class_names;
  session = await ort.InferenceSession.create(base + "{file}");
  say("Choose a picture, or drop one on the field. It stays on this device.");
  input.disabled = false;
}} catch (error) {{
  say(`The model ${{repository}} could not be loaded: ${{error.message}}`);
}}
{functions}
async function scoresOf(picture) {{
  const {{width, height}} = picture;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(picture, 0, 0);
  const levels = context.getImageData(0, 0, width, height).data;
{prepare}
  const images = new ort.Tensor({tensor});
  const answers = await session.run({{[session.inputNames[0]]: images}});
  const outputs = Array.from(answers[session.outputNames[0]].data);
{gives}
}}

input.onchange = async () => {{
  const [file] = input.files;
  if (!file) return;
  say(`The model looks at ${{file.name}}.`);
  list.replaceChildren();
  img.removeAttribute("src");
  try {{
    const options = {{colorSpaceConversion: "none"}};  // the bytes of the file
    const picture = await createImageBitmap(file, options).catch(() => null);
    if (!picture)
      return say(`${{file.name}} is no picture that can be read here.`);
    img.src = URL.createObjectURL(file);
    const scores = await scoresOf(picture);
    const best = scores.map((score, number) => [score, number]);
    best.sort((one, other) => other[0] - one[0]);
    for (const [score, number] of best.slice(0, {min(SHOWN_CLASSES, facts.num_classes)})) {{
      const line = list.appendChild(document.createElement("li"));
      const name = names?.[number] ?? `class ${{number}}`;
      line.textContent = `${{name}}: ${{(100 * score).toFixed(1)}} %`;
    }}
    say(`${{file.name}} shows most probably:`);
  }} catch (error) {{
    say(`The model could not run on ${{file.name}}: ${{error.message}}`);
  }}
}};
</script>
```"""


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>What does the picture show?</title>
<style>
  body { max-width: 36rem; margin: auto; padding: 1rem; }
  body { font: 1rem/1.5 sans-serif; overflow-wrap: anywhere; }
  input { width: 100%; box-sizing: border-box; }
  input { padding: 1rem; border: 2px dashed; }
  img { max-width: 100%; max-height: 50vh; }
</style>
<input type="file" accept="image/*" disabled>
<p>The model is being loaded.</p>
<ol></ol>
<img alt="">"""
# How far each of Pillow's filters reaches, and what it is.
_FILTERS = {
    "bilinear": (1, "const filter = (x) => Math.max(0, 1 - x);"),
    "bicubic": (2, """const filter = (x) => x < 1 ? (1.5 * x - 2.5) * x * x + 1
  : x < 2 ? ((2.5 - 0.5 * x) * x - 4) * x + 2 : 0;"""),
}  # fmt: skip
# A canvas shrinks by filters of its own: by these, a network can see something else in a large picture.
_SHRUNK = """
// Resizes rows as Pillow does, keeps their middle, and makes them columns.
function shrunk(levels, side, lines, shorter) {
  const wide = Math.floor(edge * side / shorter), step = side / wide;
  const spare = wide - size, half = spare >> 1;
  const first = half + (spare & half & 1);  // as Python rounds: halves to even
  const stretch = Math.max(1, step), reach = support * stretch;
  const found = new Uint8ClampedArray(4 * size * lines);
  for (let at = 0; at < size; at++) {
    const middle = (first + at + 0.5) * step, weights = [];
    const from = Math.max(0, Math.floor(middle - reach));
    const end = Math.min(side, Math.ceil(middle + reach));
    for (let one = from; one < end; one++)
      weights.push(filter(Math.abs(one + 0.5 - middle) / stretch));
    const sum = weights.reduce((one, other) => one + other);
    for (let line = 0; line < lines; line++)
      for (let colour = 0; colour < 3; colour++) {
        let level = 0, place = 4 * (line * side + from) + colour;
        for (const weight of weights) {
          level += weight * levels[place];
          place += 4;
        }
        found[4 * (at * lines + line) + colour] = level / sum;
      }
  }
  return found;
}"""
_NORMALISED = """  const shorter = Math.min(width, height);
  const columns = shrunk(levels, width, height, shorter);
  const pixels = shrunk(columns, height, size, shorter);
  const values = new Float32Array(3 * size * size);
  for (let at = 0; at < size * size; at++)
    for (let colour = 0; colour < 3; colour++)
      values[colour * size * size + at] =
        (pixels[4 * at + colour] / 255 - mean[colour]) / std[colour];"""
_LEVELS = """  const values = new Uint8Array(3 * width * height);
  for (let at = 0; at < values.length; at++)
    values[at] = levels[at + Math.floor(at / 3)];"""
_SOFTMAX = """  const largest = Math.max(...outputs);
  const powers = outputs.map((output) => Math.exp(output - largest));
  const sum = powers.reduce((one, other) => one + other);
  return powers.map((power) => power / sum);"""


def _edge(facts: ExportFacts) -> int:
    """Return the length of the shorter side before the crop, as timm computes it."""
    return math.floor(facts.input_size[-1] / facts.crop_pct)


def _numbers(values: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{value:.9g}' for value in values)}]"
