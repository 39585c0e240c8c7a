"""Export a network to a file of another runtime, and show that it computes the same there."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from seresnet_hub.data.class_names import class_names
from seresnet_hub.data.held_out import recorded, split_for
from seresnet_hub.data.split import Split
from seresnet_hub.data.transforms import model_transform
from seresnet_hub.engines.export_facts import DYNAMIC, ExportFacts
from seresnet_hub.engines.export_facts import FORMATS as FORMAT_NAMES
from seresnet_hub.engines.exported_files import Record, exports_in, read_record, record_text
from seresnet_hub.engines.exported_model import ExportedModel
from seresnet_hub.environment import version
from seresnet_hub.errors import InputError, PrintableLog
from seresnet_hub.exporting.calibration_pictures import CalibrationPictures, calibration_pictures
from seresnet_hub.exporting.calibration_proof import require_calibrated
from seresnet_hub.exporting.export_accuracy import accuracy_on, export_accuracy, warn_of_large_drop
from seresnet_hub.exporting.export_proof import (
    Proof,
    Reference,
    compared,
    proof_pictures,
    reference,
    reference_with_preprocessing,
    require_equal,
)
from seresnet_hub.exporting.export_request import ExportRequest, checked_request
from seresnet_hub.exporting.formats import FORMATS, ExportUnderTest
from seresnet_hub.exporting.forms import form_for
from seresnet_hub.exporting.int8 import Int8Network, to_int8
from seresnet_hub.exporting.preprocessing import Preparation
from seresnet_hub.exporting.tracing import traced
from seresnet_hub.files.atomic_writing import sha256_of, staging
from seresnet_hub.inference.model_identity import ModelIdentity, model_identity
from seresnet_hub.inference.run_batches import require_classifier
from seresnet_hub.models import fusion
from seresnet_hub.models.load import load, origin_of
from seresnet_hub.models.names import is_model_folder

OTHER_SIZE = 32  # by which the second size is larger that a file for any size is tried at

log = PrintableLog(__name__)


def export(
    model: str | Path | nn.Module,
    output: str | Path,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    fuse: bool = True,
    batch: int | str | None = None,
    input_size: int | str | None = None,
    with_preprocessing: bool = False,
    calibrate: str | None = None,
    data: str | None = None,
    split: str | None = None,
    keep: Sequence[str] = (),
    max_drop: float | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write a network into the folder `output` as `format`, when its own runtime computes the same from the file.

    `model` is a name that `load` takes, or a network. `format` is onnx, openvino or torch-export, `precision` fp32,
    fp16, bf16 or int8. It takes normalised float32 images `(batch, 3, height, width)` and gives logits; with
    `with_preprocessing`, uint8 RGB pictures `(batch, height, width, 3)` of any size, and gives probabilities. `batch`
    is a number of images, or None for any; `input_size` a side in pixels, None for the model's own, or "dynamic".
    With `fuse`, norms and SE units are folded first. int8 is calibrated on pictures of the data set `calibrate`; `keep`
    names layers that stay in float, and `max_drop` has those found that cost more points of top-1. On the `split` of
    `data`, accuracy is measured before and after. Files go to `output/FORMAT`, with a record of all this beside them;
    `output` may be the model's own folder. What is there already is replaced with `force` only. Returns what the record
    says, flat. Errors: `InputError` where the network cannot be exported so, or differs from the file beyond the
    tolerance of the precision; then nothing is left in `output`.
    """
    request = checked_request(
        output, format=format, precision=precision, fuse=fuse, batch=batch, input_size=input_size,
        with_preprocessing=with_preprocessing, calibrate=calibrate, data=data, split=split, keep=keep,
        max_drop=max_drop, force=force,
    )  # fmt: skip
    with closing(_Progress()) as progress:
        return _exported(model, request, progress)


class _Progress:
    """One line of progress at a time: what is done now, or the bars of what is done picture by picture."""

    def __init__(self) -> None:
        self._line: Any = None

    def __call__(self, step: str) -> None:
        self.close()
        self._line = tqdm(desc=f"exporting: {step}", bar_format="{desc}", leave=False)

    def close(self) -> None:
        """Take the line away."""
        if self._line is not None:
            self._line.close()


def _exported(model: str | Path | nn.Module, request: ExportRequest, begin: _Progress) -> dict[str, Any]:
    network, identity, license = _loaded(model, request)
    _require_same_network(request, model, identity)
    measured = split_for(network, request.data, request.split) if request.data else None
    pictures = _calibration(network, request) if request.calibrate else None
    _, config = model_transform(network)
    size = (int(config["input_size"][1]), int(config["input_size"][2]))
    begin("tracing")
    fused = _fused(network) if request.fuse else None
    form = form_for(request.format, request.precision)
    format = FORMATS[request.format]
    program = traced(
        network if fused is None else fused, batch=request.batch, size=size,
        dynamic_size=request.dynamic_size,
        preprocessing=Preparation(config) if request.with_preprocessing else None,
        precision=request.precision if request.precision in format.traced_in else "fp32",
    )  # fmt: skip
    facts = ExportFacts(
        format=request.format, precision=request.precision, architecture=identity.architecture, model=identity.model,
        num_classes=int(network.num_classes), class_names=tuple(class_names(network) or ()) or None,
        input_size=(int(config["input_size"][0]), *size), mean=tuple(config["mean"]), std=tuple(config["std"]),
        interpolation=config["interpolation"], crop_pct=config["crop_pct"],
        crop_mode=config.get("crop_mode") or "center", license=license, sha256=identity.sha256,
        tensors_sha256=identity.tensors_sha256, fused=fused is not None or hasattr(network, "fusion"), form=form,
        batch=request.batch, dynamic_size=request.dynamic_size, preprocessing=request.with_preprocessing,
        version=version(), held_out=recorded(network),
    )  # fmt: skip
    begin("converting")
    converted = format.convert(program)
    begin.close()
    references = _references(network, request, size)
    with _only_if_whole(request) as staged:
        if request.precision != "fp32" and request.precision not in format.traced_in:
            # What rounding changes would hide small faults of the graph, so it is proven before anything is rounded.
            begin("comparing")
            exact = replace(facts, precision="fp32")
            _require_proven(format.run(_written(converted, exact, request, staged)), references, request, "fp32")
        int8: Int8Network | None = None
        if pictures is not None and format.layers is not None:
            begin.close()
            pictures = _batched(pictures, request.batch)
            int8 = to_int8(
                request.format, converted, pictures, layers=format.layers(converted),
                form=form, keep=request.keep, max_drop=request.max_drop,
                top1=lambda one: _top1(one, facts, request, network, measured, staged),
            )  # fmt: skip
            converted, facts = int8.model, replace(facts, form=int8.form)
        begin("writing")
        record = _written(converted, facts, request, staged)
        begin("comparing")
        run = format.run(record)
        proven = _require_proven(run, references, request, request.precision)
        quantization = None
        if pictures is not None and int8 is not None:
            begin.close()
            found = require_calibrated(run, network, pictures, str(_file(request)))
            quantization = {**int8.record, **found}
        accuracy = None
        if measured is not None:
            begin.close()
            accuracy = export_accuracy(network, ExportUnderTest(run, network, request.batch), measured)
            warn_of_large_drop(accuracy, request.precision)
        text = record_text(
            facts, record.sha256, proven.to_json(), None if accuracy is None else accuracy.to_json(),
            quantization,
        )  # fmt: skip
        sizes = sum((staged / name).stat().st_size for name in request.files)
        (staged / request.record.name).write_text(text, encoding="utf-8")
    return {
        "output": str(request.output), "files": [str(request.record.parent / name) for name in request.files],
        "record": str(request.record), "bytes": sizes, "format": facts.format, "precision": facts.precision,
        "model": facts.model, "architecture": facts.architecture, "fused": facts.fused, "form": facts.form,
        "batch": facts.batch or DYNAMIC, "input_size": list(facts.input_size), "dynamic_size": facts.dynamic_size,
        "preprocessing": facts.preprocessing, **{k: v for k, v in proven.to_json().items() if k != "precision"},
        **({} if accuracy is None else accuracy.to_json()),
        **({} if quantization is None else {"quantization": quantization}),
    }  # fmt: skip


# --- the network ------------------------------------------------------------------------------------------------------


def _loaded(model: str | Path | nn.Module, request: ExportRequest) -> tuple[Any, ModelIdentity, str]:
    """Return a copy of the network in float32 on the CPU, which it is, and its licence."""
    if isinstance(model, nn.Module):
        given, name = model, None
    else:
        given, name = load(model), model
    if isinstance(given, ExportedModel):
        raise InputError(f"{name or 'the model'} is an exported file already: export the network it was made of")
    if hasattr(given, "_orig_mod"):
        raise InputError("the model is compiled: export the one it was made of")
    require_classifier(given)
    identity = model_identity(given, name)
    config: dict[str, Any] = dict(getattr(given, "pretrained_cfg", None) or {})
    license = str(config.get("license") or "")
    if name is not None:
        origin = origin_of(name)
        identity, license = replace(identity, model=origin.name), origin.license
    network: Any = copy.deepcopy(given).to("cpu", torch.float32).eval()
    if request.side is not None:
        channels = (config.get("input_size") or (3,))[0]
        network.pretrained_cfg = {**config, "input_size": (channels, request.side, request.side)}
    return network, identity, license


def _fused(network: nn.Module) -> nn.Module | None:
    """Return the fused network, None where it has no blocks to fuse, or they are fused."""
    if hasattr(network, "fusion"):
        return None
    try:
        return fusion.fuse(network)
    except InputError as error:
        log.warning("exported as it is: %s", error)
        return None


def _require_same_network(request: ExportRequest, model: str | Path | nn.Module, identity: ModelIdentity) -> None:
    """Raise `InputError` where the folder is a model folder, or has exports, of another network."""
    if is_model_folder(request.output):
        there = model_identity(load(request.output), request.output)
        if there.tensors_sha256 != identity.tensors_sha256:
            raise InputError(f"{request.output} is the folder of another network, whose tensors differ: choose another")
    for format in FORMAT_NAMES:
        for path in exports_in(request.output, format):
            if path != request.record and read_record(path).facts.tensors_sha256 != identity.tensors_sha256:
                raise InputError(f"{path} is of another network, whose tensors differ: choose another folder")


# --- int8 -------------------------------------------------------------------------------------------------------------


def _calibration(network: nn.Module, request: ExportRequest) -> CalibrationPictures:
    assert request.calibrate is not None
    return calibration_pictures(request.calibrate, network, prepared=not request.with_preprocessing)


def _batched(pictures: CalibrationPictures, batch: int | None) -> CalibrationPictures:
    """Return the pictures in batches of a fixed number of images, from the first again at the end.

    Where they have sizes of their own, a batch is one picture, repeated.
    """
    if batch in (None, 1):
        return pictures
    count, number = len(pictures.inputs), batch or 1
    of_one_size = len({one.shape for one in pictures.inputs}) == 1
    step = number if of_one_size else 1
    rows = [[(start + k) % count if of_one_size else start for k in range(number)] for start in range(0, count, step)]
    inputs = tuple(np.concatenate([pictures.inputs[k] for k in some]) for some in rows)
    return replace(pictures, inputs=inputs, repeated=number * len(rows) - count)


def _top1(
    converted: Any, facts: ExportFacts, request: ExportRequest, network: nn.Module, split: Split | None, staged: Path
) -> float:
    """Return the accuracy of a converted network in percent, by way of its file."""
    assert split is not None
    run = FORMATS[request.format].run(_written(converted, facts, request, staged))
    return accuracy_on(ExportUnderTest(run, network, request.batch), network, split).top1


# --- the files --------------------------------------------------------------------------------------------------------


@contextmanager
def _only_if_whole(request: ExportRequest) -> Iterator[Path]:
    """Yield a folder for the files; they go to their places when the block succeeds, and nothing stays if not."""
    folder = request.record.parent
    created = [one for one in Path(os.path.abspath(folder)).parents if not os.path.lexists(one)]
    try:
        # The record last, and before it the file that names the others, as programs open the export by these two.
        names = (*reversed(request.files), request.record.name)
        with staging(folder, names, needed=(request.record.name, *request.files[:-1])) as staged:
            yield staged
    except BaseException:
        for one in created:
            with suppress(OSError):
                one.rmdir()
        raise


def _written(converted: Any, facts: ExportFacts, request: ExportRequest, staged: Path) -> Record:
    """Write the network and return its record, which has no proof yet."""
    FORMATS[request.format].write(converted, staged / request.files[0], facts)
    hashes = {name: sha256_of(staged / name) for name in request.files}
    return Record(path=staged / request.record.name, facts=facts, sha256=hashes, proof={})


def _references(network: nn.Module, request: ExportRequest, size: tuple[int, int]) -> list[Reference]:
    """Return what files of any precision are compared with; of a file for any size, at two of them."""
    if request.with_preprocessing:
        return [reference_with_preprocessing(network, batch=request.batch)]
    sizes = [size, (size[0] + OTHER_SIZE, size[1])] if request.dynamic_size else [size]
    return [reference(network, proof_pictures(network, input_size=one), batch=request.batch) for one in sizes]


def _require_proven(run: Any, references: Sequence[Reference], request: ExportRequest, precision: str) -> Proof:
    """Return how far the file is from the network. Errors: `InputError` where that is too far."""
    proofs = [compared(run, one, precision) for one in references]
    for found in proofs:
        require_equal(found, str(_file(request)))
    return max(proofs, key=lambda one: one.largest_difference)


def _file(request: ExportRequest) -> Path:
    """Return the first of the files, which messages name."""
    return request.record.parent / request.files[0]
