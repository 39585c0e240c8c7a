"""What is to be exported, and the refusal of what cannot be, before a network is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seresnet_hub.engines.export_facts import DYNAMIC, MOST_IMAGES, PRECISIONS
from seresnet_hub.engines.exported_files import files_of, record_of
from seresnet_hub.engines.required_packages import require_package
from seresnet_hub.errors import InputError
from seresnet_hub.exporting.calibration_pictures import require_calibration
from seresnet_hub.exporting.formats import FORMATS
from seresnet_hub.recipes.field_types import LONGEST_SIDE, closest

WHY_NOT = {
    ("onnx", "bf16"): "ONNX Runtime has no bf16 kernels for CPUs: take fp16, or --format openvino",
    ("torch-export", "int8"): "int8 is for --format onnx and openvino, whose engines compute with it",
}


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What `export` is asked for, checked as far as that needs no network; see there."""

    output: Path
    format: str
    precision: str
    fuse: bool
    batch: int | None
    side: int | None
    dynamic_size: bool
    with_preprocessing: bool
    calibrate: str | None
    data: str | None
    split: str | None
    keep: tuple[str, ...]
    max_drop: float | None

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files in the format's folder, without the record."""
        return tuple(os.path.basename(name) for name in files_of(self.format, self.precision))

    @property
    def record(self) -> Path:
        """The path that the record will have, beside the files."""
        return self.output / record_of(self.format, self.precision)


def checked_request(
    output: str | Path, *, format: str, precision: str, fuse: bool, batch: int | str | None,
    input_size: int | str | None, with_preprocessing: bool, calibrate: str | None, data: str | None, split: str | None,
    keep: Sequence[str], max_drop: float | None, force: bool,
) -> ExportRequest:  # fmt: skip
    """Return the request. Errors: `InputError` where options contradict each other, or a package is missing."""
    if format not in FORMATS:
        raise InputError(f"format={format}: must be {', '.join(FORMATS)}{closest(format, tuple(FORMATS))}")
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision}: must be {', '.join(PRECISIONS)}{closest(precision, PRECISIONS)}")
    if precision not in FORMATS[format].precisions:
        raise InputError(f"{format} in {precision}: {WHY_NOT[format, precision]}")
    dynamic_size = input_size == DYNAMIC
    if dynamic_size and with_preprocessing:
        raise InputError("with the preprocessing inside, any size of pictures is taken: leave out --input-size dynamic")
    if precision != "int8" and (keep or max_drop is not None):
        raise InputError(f"--keep and --max-drop are for --precision int8, not {precision}: leave them out")
    if max_drop is not None and not 0 <= max_drop < math.inf:
        raise InputError(f"max_drop={max_drop}: must be a number of points of top-1, 0 or more")
    if max_drop is not None and not data:
        raise InputError("--max-drop needs labelled pictures to measure the accuracy on: name them with --data")
    if with_preprocessing and (data or max_drop is not None):
        raise InputError("--data measures files that take prepared images: export without --with-preprocessing too")
    if split is not None and not data:
        raise InputError(f"split={split}: it is of the data set that --data names")
    request = ExportRequest(
        output=Path(output).expanduser(), format=format, precision=precision, fuse=fuse,
        batch=_count("batch", batch), side=None if dynamic_size else _count("input_size", input_size, LONGEST_SIDE),
        dynamic_size=dynamic_size, with_preprocessing=with_preprocessing,
        calibrate=require_calibration(precision, calibrate, data), data=data, split=split, keep=tuple(keep),
        max_drop=max_drop,
    )  # fmt: skip
    FORMATS[format].require()
    if precision == "int8":
        require_package("nncf", format)
    _require_free(request, force)
    return request


def _count(name: str, value: int | str | None, most: int = MOST_IMAGES) -> int | None:
    if value is None or (name == "batch" and value == DYNAMIC):
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InputError(f"{name}={value}: must be a whole number from 1 to {most:,}, or {DYNAMIC}")
    return value


def _require_free(request: ExportRequest, force: bool) -> None:
    """Raise `InputError` where something is in the way of the files; with `force`, files are replaced."""
    folder = request.record.parent
    for path in (request.output, folder):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise InputError(f"{path} is a file, not a folder")
    for path in (request.record, *(folder / name for name in request.files)):
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder, where a file is to be written")
        if os.path.lexists(path) and not force:
            raise InputError(f"{path} exists; choose another folder, or replace the export with --force")
