"""Render the tables of the Markdown pages from the tables of facts, with sizes counted on the models themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import _tables_engines as engine_tables
import _tables_gpu as gpu_tables
import _tables_kernels as kernel_tables
import _tables_loader as loader_tables
import _tables_package as package_tables
import _tables_predict as predict_tables
import _tables_simulated as simulated_tables
import timm
import torch
from _benchmark_options import NETWORK_BENCHMARKS

from seresnet_hub.cards.markdown import table
from seresnet_hub.errors import InputError
from seresnet_hub.files.atomic_writing import read_json
from seresnet_hub.models.cost import Sizes, sizes_of
from seresnet_hub.models.published_weights import WEIGHTS
from seresnet_hub.models.variants import CIFAR_VARIANTS, PAPER_VARIANTS, WHERE, CifarVariant, PaperVariant
from seresnet_hub.recipes.recipe import AUTO, RECIPES

# The pages whose tables are rendered; each table is on one of them.
PAGES = ("README.md", "model_cards/README.md", "scripts/README.md", "seresnet_hub/README.md")

# mmpretrain's call, ours or timm's, and what to know.
MIGRATION: tuple[tuple[str, str, str], ...] = (
    ("`get_model('seresnet50_8xb32_in1k', pretrained=True)`",
     "`timm.create_model('seresnet50.mm_in1k', pretrained=True)` after `import seresnet_hub`, or "
     "`seresnet_hub.get_model('seresnet50_8xb32_in1k', pretrained=True)`", "same weights, same logits, in eval mode"),
    ("`get_model(NAME, pretrained='my.pth')`", "`seresnet_hub.get_model(NAME, pretrained='my.pth')`",
     "converted each time, or refused where it does not fit; `seresnet_hub.convert('my.pth', DIR)` keeps the result"),
    ("`inference_model(model, image)`", "`seresnet_hub.inference_model(model, image)`",
     "`pred_label`, `pred_score`, `pred_class`; no `pred_scores` array: use `predict(…, topk=1000)`. "
     "An array is RGB here, BGR there"),
    ("`model.extract_feat(inputs, stage='neck')`", "`seresnet_hub.extract_features(model, image)`",
     "features after global pooling, mmpretrain's \"neck\"; takes pictures and prepares them"),
    ("`model.extract_feat(inputs, stage='backbone')`", "`seresnet_hub.extract_features(model, image, stage=-1)`",
     "stages count from the stem, 0; mmpretrain's `out_indices=(0, 1, 2, 3)` are 1 to 4"),
    ("`ImageClassificationInferencer(model)(images, batch_size=…)`",
     "`seresnet_hub.predict(model, images, batch_size=…)`", "on the model's device"),
    ("`FeatureExtractor(model)(images, stage=…)`", "`seresnet_hub.extract_features(model, images, stage=…)`, "
     "`seresnet_hub.iterate_features(model, images)`",
     "to a file: `predict --features … --output FILE`"),
    ("`ImageRetrievalInferencer(model, prototype=DIR)`", "`seresnet-hub search INDEX.parquet IMAGE`",
     "the index is of `predict DIR --features --output INDEX.parquet`"),
    ("`list_models('seresnet')`", "`timm.list_models('seresnet*')`, `timm.list_pretrained('seresnet*')`", ""),
    ("`mim test mmpretrain CONFIG --checkpoint …`", "`seresnet-hub validate MODEL --data DIR_OR_HUB_ID`", ""),
    ("`tools/test.py … --out FILE`, `analyze_results.py`",
     "`seresnet-hub validate MODEL --data DIR --predictions FILE --report DIR`", ""),
    ("mmdeploy's `tools/deploy.py DEPLOY_CFG MODEL_CFG CHECKPOINT IMAGE`",
     "`seresnet-hub export MODEL --output DIR --format onnx`, or openvino",
     "any batch size unless `--batch` fixes one; a file that computes something else is refused"),
    ("mmdeploy's `tools/test.py DEPLOY_CFG MODEL_CFG --model FILE`",
     "`seresnet-hub validate onnx:DIR --data DIR_OR_HUB_ID`", ""),
    ("`mim train mmpretrain CONFIG`", "`accelerate launch -m seresnet_hub train --recipe NAME`", ""),
)  # fmt: skip

# What timm's own scripts do, and what does it here.
TIMM_SCRIPTS: tuple[tuple[str, str, str], ...] = (
    ("`inference.py --data-dir DIR --model NAME --topk 5`", "`seresnet-hub predict NAME DIR --topk 5 --output FILE`",
     "a damaged picture is a row with its error; timm's puts another picture in its place. Goes on after a kill"),
    ("`--results-format csv json parquet`", "the ending of `--output`",
     "`.jsonl` for JSON; one column for each class and score, as with `--results-separate-col`"),
    ("`--topk 0 --output-type prob`", "`--scores`", "all probabilities"),
    ("`--use-train-size`", "", "the input size of the model's config, always; with `validate --input-size N` another"),
    ("`validate.py --results-file FILE`, models by a pattern",
     "`seresnet-hub validate MODEL MODEL --data DIR --output FILE.csv`", "or `.md`"),
    ("`--retry`", "", "always: where the memory is not enough, the batch is halved"),
    ("`--valid-labels FILE`", "`--classes FILE`", "not needed where the data set names its classes"),
    ("`--real-labels real.json`", "`--real`", ""),
    ("`onnx_export.py FILE --model NAME --checkpoint FILE`", "`seresnet-hub export MODEL --output DIR --format onnx`",
     "any batch size, where timm's has a fixed one; `--check-forward` is always on, in float64 and with real pictures"),
    ("`--dynamic-size`, `--img-size N`", "`--input-size dynamic`, `--input-size N`", ""),
    ("`onnx_validate.py DIR --onnx-input FILE`", "`seresnet-hub validate onnx:FILE --data DIR`",
     "size, mean, std and crop are in the file, and need not be given again"),
)  # fmt: skip


@cache
def sizes(name: str) -> Sizes:
    """Return the sizes of the architecture `name` at its usual image size."""
    with torch.device("meta"):  # shapes alone: nothing is initialised or computed
        model = timm.create_model(name).eval()
    return sizes_of(model, model.pretrained_cfg["input_size"])


def variants() -> str:
    """Return the table of the architectures that this package adds."""
    rows = [*map(_variant_row, PAPER_VARIANTS), *map(_variant_row, CIFAR_VARIANTS)]
    header = ("model", "params (M)", "MACs (G)", "where SE sits", "otherwise", "in plain timm",
              "top-1 / top-5 (paper's training)")  # fmt: skip
    return table(header, rows)


def _variant_row(variant: PaperVariant | CifarVariant) -> tuple[str, ...]:
    counted = sizes(variant.name)
    where, otherwise = WHERE[variant.placement], ""
    in_timm, accuracy = "no", ""
    if isinstance(variant, PaperVariant):
        if variant.stage is not None:
            where += f", in stage {variant.stage} (`layer{variant.stage - 1}`) alone"
        differences = {
            f"r = {variant.ratio}": variant.ratio != 16,
            f"{variant.squeeze} squeeze": variant.squeeze != "avg",
            f"{variant.gate} gate": variant.gate != "sigmoid",
        }
        otherwise = ", ".join(text for text, differs in differences.items() if differs)
        in_timm = "Python arguments" if variant.from_timm else "no"
        accuracy = f"{100 - variant.top1_error:.2f} / {100 - variant.top5_error:.2f}"
    size = f"{counted.parameters / 1e6:.3f}", f"{counted.multiply_adds / 1e9:.3f}"
    return f"`{variant.name}`", *size, where, otherwise, in_timm, accuracy


def weights() -> str:
    """Return the table of the pretrained tags that this package adds, with the accuracy their authors publish."""
    rows = []
    for row in WEIGHTS:
        counted = sizes(row.architecture)
        rows.append(
            (f"`{row.name}`", f"`{row.source_name}`", f"{counted.parameters / 1e6:.2f}",
             f"{counted.multiply_adds / 1e9:.2f}",
             f"{row.top1:.2f}", f"{row.top5:.2f}", f"{row.license}", f"[{row.url.rsplit('/', 1)[-1]}]({row.url})")
        )  # fmt: skip
    header = ("timm name", "mmpretrain's name", "params (M)", "MACs (G)", "top-1 (published)", "top-5 (published)",
              "licence", "original file")  # fmt: skip
    return table(header, rows)


def migration() -> str:
    """Return the table that takes mmpretrain's users to our calls and timm's."""
    return table(("mmpretrain", "here", ""), MIGRATION)


def timm_scripts() -> str:
    """Return the table that takes users of timm's scripts to our commands."""
    return table(("timm", "here", ""), TIMM_SCRIPTS)


def recipes() -> str:
    """Return the table of the recipes."""
    rows = []
    for name, recipe in RECIPES.items():
        size = f"{recipe.input_size or 'auto'}" + (f" → {recipe.eval_size}" if recipe.eval_size else "")
        begins = f"from `{recipe.weights}`" if recipe.weights else ""
        rate = f"{recipe.learning_rate:g}" if recipe.learning_rate is not AUTO else "auto"
        rows.append(
            (f"`{name}`", " ".join([*([f"`{recipe.model}`"] if recipe.model else []), *([begins] if begins else [])]),
             recipe.data or "yours", size, f"{recipe.epochs or 'auto'}",
             f"{recipe.batch_size:,}" if recipe.batch_size is not AUTO else "auto",
             f"{recipe.optimizer}, {rate}, {recipe.schedule}")
        )  # fmt: skip
    return table(("recipe", "model", "data", "image size", "epochs", "batch", "optimiser, rate, schedule"), rows)


def speed(measured: Path) -> str:
    """Return the table of what `scripts/benchmark.py inference` and `training` measured, from a folder of results."""
    rows = []
    for result in _results(measured):
        names = ("plain", "timm", result["own"])
        for measurement in result["measurements"]:
            plain, timms, own = (measurement["networks"][name] for name in names)
            kind = f"{result['benchmark']}, {measurement['mode']}, {measurement['dtype']}"
            speeds = (f"{one['images_per_second']:.1f}" for one in (plain, timms, own))
            ratios = (f"{own[key]:.3f}" for key in ("times_timm", "times_plain"))
            rows.append((f"{kind}, batch {measurement['batch_size']}", result["device"], *speeds, *ratios))
    header = ("", "device", "ResNet-50 (images/s)", "SE-ResNet-50, timm", "SE-ResNet-50, here", "here / timm",
              "here / ResNet-50")  # fmt: skip
    return table(header, rows)


def _results(measured: Path) -> list[dict[str, Any]]:
    return [read_json(measured / f"benchmark_{benchmark}.json") for benchmark in NETWORK_BENCHMARKS]


TABLES: dict[str, Callable[[], str]] = {
    "variants": variants,
    "weights": weights,
    "migration": migration,
    "timm_scripts": timm_scripts,
    "recipes": recipes,
    "api": package_tables.api,
    "modules": package_tables.modules,
    "tolerances": engine_tables.tolerances,
}
MEASURED_TABLES: dict[str, Callable[[Path], str]] = {
    "speed": speed,
    "passes": kernel_tables.passes,
    "predicted": kernel_tables.predicted,
    "gpu": gpu_tables.speed,
    "gpu_runs": gpu_tables.runs,
    "loaders": loader_tables.loaders,
    "remote_loaders": loader_tables.remote_loaders,
    "simulated": simulated_tables.simulated,
    "predictions": predict_tables.predictions,
    "engines": engine_tables.engines,
}


MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(\n?<!-- end -->)", re.DOTALL)


def fill(text: str, measured: Path) -> str:
    """Return a Markdown text with each table between `<!-- table NAME -->` and `<!-- end -->` rendered anew.

    `measured` is the folder of measured results. Errors: `InputError` where a mark names no table, or there are no
    results.
    """
    return MARKED.sub(lambda match: f"{match.group(1)}{_rendered(match.group(2), measured)}\n<!-- end -->", text)


def _rendered(name: str, measured: Path) -> str:
    if name in TABLES:
        return TABLES[name]()
    if name in MEASURED_TABLES:
        return MEASURED_TABLES[name](measured)
    raise InputError(f"a mark names the table {name!r}; there are {', '.join([*TABLES, *MEASURED_TABLES])}")


def marks(text: str) -> list[str]:
    """Return the names of the tables that a text has marks for, in their order."""
    return [match.group(2) for match in MARKED.finditer(text)]
