"""Compare an exported file, run by its own runtime, with the network that it was made of, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn
from tqdm import tqdm

from seresnet_hub.data.transforms import model_transform, normalize
from seresnet_hub.errors import InputError
from seresnet_hub.inference.run_batches import run_batches
from seresnet_hub.inference.sources import open_sources
from seresnet_hub.models.create import eval_mode

Run = Callable[[np.ndarray], np.ndarray]

BATCHES = (1, 2, 7)
PICTURES = sum(BATCHES)  # one for each row of the batches, so that no two rows of a batch are alike
PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # those that scikit-learn carries, 427 x 640

SIZES = ((427, 640), (427, 300), (240, 400))  # height and width of the photographs in each batch


class Limits(NamedTuple):
    """What a precision may change.

    `tolerance` is the largest difference of an output, as a share of the largest absolute one of all pictures. A
    picture's first class is clear where it leads by more than the share `apart`: then the export has to name it too.
    """

    tolerance: float
    apart: float


# Measured on nine SE networks, one trained and eight with drawn weights, at 32 and 128 pixels, in the engines (fp16 in
# torch, which was furthest off):
#        largest difference          largest lead of a first class that changed
# fp32   1.3e-6                      none: a rounding is 6e-8, and sums of some thousand products are in another order
# fp16   1.7e-3                      none: a rounding is 5e-4, of weights and of each activation
# bf16   1.5e-2                      0.001: a rounding is 4e-3, of weights and of each activation
# int8   0.34 (median 0.06)          0.022: 255 levels for a tensor of activations, and what lies outside them is cut
# Differences grow with depth; the tolerances are about three times what was found, for int8 half as much again. So an
# int8 file says little of the graph, which `export` proves in float before it is quantised.
LIMITS = {
    "fp32": Limits(tolerance=1e-5, apart=2e-5),
    "fp16": Limits(tolerance=5e-3, apart=5e-3),
    "bf16": Limits(tolerance=5e-2, apart=1e-2),
    "int8": Limits(tolerance=5e-1, apart=1e-1),
}
# The graph was proven before it was rounded, so the calibration or a layer is at fault.
ADVICE = {
    "int8": ": calibrate on pictures like those it will see (--calibrate), or keep layers in float (--keep LAYER)"
}
# Probabilities of a file that prepares pictures itself differ by 5e-7 where every level is rounded as Pillow does; this
# leaves room for a few pixels that an engine rounds to the next of the 255 levels.
PREPROCESSING_TOLERANCE = 2e-3


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How far an exported file is from the network that it was made of.

    `largest_difference` and `tolerance` are shares of the largest absolute output of the network in float64, over all
    pictures; `worst_batch` is the size of the batch with the largest difference. `argmax_agreement` is the share of
    pictures with the same first class, ties included; `clear_pictures` have a first class that leads by more than the
    precision may change, and `clear_agreement` is the share of these.
    """

    precision: str
    largest_difference: float
    worst_batch: int
    argmax_agreement: float
    clear_pictures: int
    clear_agreement: float
    tolerance: float
    batches: tuple[int, ...]
    pictures: int

    def to_json(self) -> dict[str, Any]:
        """Return the proof as a record holds it: without the agreement on clear pictures, which is whole in each."""
        rounded = float(f"{self.largest_difference:.3g}")
        values = asdict(self) | {"batches": list(self.batches), "largest_difference": rounded}
        del values["clear_agreement"]
        return values


def proof_pictures(model: nn.Module, *, input_size: tuple[int, int] | None = None) -> np.ndarray:
    """Return pictures prepared as the model's config says, normalised float32 `(10, 3, height, width)`.

    They are crops of two photographs, so that nothing is downloaded. `input_size` replaces the config's height and
    width.
    """
    overrides = {} if input_size is None else {"input_size": (3, *input_size)}
    transform, config = model_transform(model, **overrides)
    levels = torch.stack([torch.as_tensor(np.asarray(transform(picture))) for picture in photograph_crops(PICTURES)])
    return normalize(levels, mean=config["mean"], std=config["std"]).contiguous().numpy()


class Reference(NamedTuple):
    """Batches of inputs, with the network's outputs in float64, which files in any precision are compared with.

    `scale` is the largest absolute output of all `pictures`, and `margin` is what their preparation may add to the
    tolerance.
    """

    batches: tuple[tuple[np.ndarray, np.ndarray], ...]
    pictures: int
    scale: float
    margin: float


def reference(model: nn.Module, pictures: np.ndarray, *, batch: int | None = None) -> Reference:
    """Return the logits of `model` in float64 on the CPU, run by eager torch, for normalised float32 pictures.

    `model` is the network before anything was fused; it is copied. Without a fixed `batch` there are batches of 1, 2
    and 7, else as many of its size as show all pictures. The network itself sees one picture at a time, so that
    whatever an export makes of a batch shows.
    """
    expected = _logits(model, pictures)
    batches = BATCHES if batch is None else (batch,) * -(-len(pictures) // batch)
    rows = _rows(batches, len(pictures))
    return Reference(
        tuple((pictures[some], expected[some]) for some in rows), len(pictures), float(np.abs(expected).max()), 0.0
    )


def reference_with_preprocessing(model: nn.Module, *, batch: int | None = None) -> Reference:
    """Return what `predict` makes of uint8 pictures `(batch, height, width, 3)`, prepared by Pillow: probabilities."""
    batches = BATCHES if batch is None else (batch,) * len(SIZES)
    photographs = [_photographs(count, size) for count, size in zip(batches, SIZES, strict=True)]
    exact = _exact(model)
    pairs = tuple((pictures, probabilities(exact, pictures, "predicting in float64")) for pictures in photographs)
    scale = max(float(expected.max()) for _, expected in pairs)
    return Reference(pairs, sum(batches), scale, PREPROCESSING_TOLERANCE)


def compared(run: Run, reference: Reference, precision: str) -> Proof:
    """Return how far `run`, an exported file in its runtime, is from the network.

    Errors: `InputError` where the outputs have another shape or are not finite.
    """
    limits, scale = LIMITS[precision], reference.scale
    largest, worst, agree, apart, apart_agree, rows = 0.0, len(reference.batches[0][0]), 0, 0, 0, 0
    for inputs, expected in reference.batches:
        found, size = run(inputs), len(inputs)
        if found.shape != expected.shape:
            raise InputError(f"the exported file gives {found.shape} values at batch {size}, not {expected.shape}")
        if not np.isfinite(found).all():
            raise InputError(f"the exported file gives values at batch {size} that are not finite numbers")
        difference = float(np.abs(found.astype(np.float64) - expected).max())
        share = difference / scale if scale else float("inf") if difference else 0.0
        if share > largest:
            largest, worst = share, size
        same = found.argmax(1) == expected.argmax(1)
        clear = _leads(expected) > limits.apart * scale
        rows, agree = rows + size, agree + int(same.sum())
        apart, apart_agree = apart + int(clear.sum()), apart_agree + int((same & clear).sum())
    return Proof(
        precision=precision, largest_difference=largest, worst_batch=worst, argmax_agreement=agree / rows,
        clear_pictures=apart, clear_agreement=apart_agree / apart if apart else 1.0,
        tolerance=limits.tolerance + reference.margin,
        batches=tuple(dict.fromkeys(len(inputs) for inputs, _ in reference.batches)),
        pictures=reference.pictures,
    )  # fmt: skip


def require_equal(proof: Proof, name: str = "the exported file") -> None:
    """Raise `InputError` where a proof finds more than its precision may change; `name` is what the file is called."""
    allowed = f"{proof.precision} may change {proof.tolerance:.0e}"
    nothing_written = f"; nothing was written{ADVICE.get(proof.precision, '')}"
    if not proof.largest_difference <= proof.tolerance:
        raise InputError(
            f"{name} does not compute what the network does: at batch {proof.worst_batch} an output differs by "
            f"{proof.largest_difference:.1e} of the largest one, and {allowed}{nothing_written}"
        )
    if proof.clear_agreement < 1:
        raise InputError(
            f"{name} does not compute what the network does: it names another class for "
            f"{round((1 - proof.clear_agreement) * proof.clear_pictures)} of {proof.clear_pictures} pictures whose "
            f"first class leads clearly{nothing_written}"
        )


def probabilities(network: nn.Module, pictures: Iterable[np.ndarray], what: str) -> np.ndarray:
    """Return what `predict` makes of uint8 pictures `(height, width, 3)`, one at a time, in float64 as numbers.

    `what` names it in the line of progress.
    """
    with closing(run_batches(network, open_sources(list(pictures)), batch_size=1)) as batches:
        logits = [answers.logits for answers in tqdm(batches, desc=what, leave=False, delay=1.0)]
    return torch.cat([one.double() for one in logits if one is not None]).softmax(1).numpy()


def photograph_crops(count: int) -> Iterator[Image.Image]:
    """Yield different parts of the photographs, whole ones first."""
    photographs = [Image.fromarray(load_sample_image(name)) for name in PHOTOGRAPHS]
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        width, height = photograph.size
        step = number // len(photographs) % 8
        side = 1 - 0.08 * step  # of what is left the place moves, so no crop holds another's middle
        left, top = width * (1 - side) * (step * 0.37 % 1), height * (1 - side) * (step * 0.61 % 1)
        yield photograph.crop((int(left), int(top), int(left + width * side), int(top + height * side)))


def _rows(batches: tuple[int, ...], pictures: int) -> Iterator[np.ndarray]:
    """Yield which pictures are in each batch: the next ones, from the beginning again after the last."""
    first = 0
    for size in batches:
        yield np.arange(first, first + size) % pictures
        first += size


def _exact(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("cpu", torch.float64)


def _logits(model: nn.Module, pictures: np.ndarray) -> np.ndarray:
    exact = _exact(model)
    with eval_mode(exact), torch.inference_mode():
        one_by_one = tqdm(torch.from_numpy(pictures), desc="the network in float64", leave=False, delay=1.0)
        return np.concatenate([exact(picture[None].double()).numpy() for picture in one_by_one])


def _photographs(count: int, size: tuple[int, int]) -> np.ndarray:
    """Return different parts of the photographs, uint8 `(count, height, width, 3)`."""
    photographs, (height, width) = [load_sample_image(name) for name in PHOTOGRAPHS], size
    pictures = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        top, left = (round((length - side) * (number * share % 1)) for length, side, share in
                     zip(photograph.shape, size, (0.37, 0.61), strict=False))  # fmt: skip
        pictures.append(photograph[top : top + height, left : left + width])
    return np.stack(pictures)


def _leads(values: np.ndarray) -> np.ndarray:
    """Return by how much the largest value of each row leads the second: infinite where there is one class."""
    if values.shape[1] < 2:
        return np.full(len(values), np.inf)
    best = np.sort(values, 1)[:, -2:]
    leads: np.ndarray = best[:, 1] - best[:, 0]
    return leads
