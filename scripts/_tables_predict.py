"""The table of measured predictions of a folder, from a folder of results."""

from __future__ import annotations

from pathlib import Path

from _benchmark_options import OURS, TIMM
from _benchmark_predict import TIMM_PASSIVE

from seresnet_hub.cards.markdown import table
from seresnet_hub.files.atomic_writing import read_json

RESULT = "benchmark_predict.json"  # the kept result of `benchmark.py predict`
NAMES = {
    OURS: "`seresnet-hub predict`", TIMM: "timm's `inference.py`",
    TIMM_PASSIVE: "timm's `inference.py`, `OMP_WAIT_POLICY=passive`",
}  # fmt: skip


def predictions(measured: Path) -> str:
    """Return the table of programs that predict the same pictures: whole speeds, and those of their two parts alone."""
    rows = []
    for network, result in read_json(measured / RESULT)["networks"].items():
        for program, one in result["programs"].items():
            low, high = one["images_per_second_range"]
            spread = f" ({low:.1f}–{high:.1f})" if low < high else ""
            ratio = one.get("ours_times_images_per_second")
            rows.append((
                f"`{network}`", NAMES[program], f"{one['images_per_second']:.1f}{spread}",
                *(f"{one[f'{part}_images_per_second']:.1f}" for part in ("decoding", "network")),
                f"{1e3 * one['cpu_seconds_per_image']:.0f}", "" if ratio is None else f"{ratio:.2f}",
            ))  # fmt: skip
    return table(
        ("network", "program", "images/s", "decoding alone", "network alone", "CPU ms an image",
         "`seresnet-hub predict` is … × as fast"), rows,
    )  # fmt: skip
