"""Compare an int8 file with its network over all pictures that it was calibrated on."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from seresnet_hub.errors import InputError
from seresnet_hub.exporting.calibration_pictures import CalibrationPictures
from seresnet_hub.exporting.export_proof import ADVICE, Run, probabilities
from seresnet_hub.models.create import eval_mode

# The largest `calibration_error`. Measured: 0.05 for seresnet20_cifar.c10 on 300 pictures of CIFAR-10 (0.16 on 300 of
# cats alone, 0.09 of probabilities), 0.14 on parts of two photographs, and 0.15 to 0.17 for networks of 18 and 50
# layers with drawn weights. With one of 43 convolutions and classifiers at zero it was 0.48 or more, with two of ten
# classes exchanged 0.68 or more. Of first classes, up to 87 % were still the same then, so these show less. A
# set that shows a network nothing, such as noise, makes it 0.45, as outputs hardly vary there.
LIMIT = 0.3


def calibration_error(run: Run, network: nn.Module, pictures: CalibrationPictures) -> float:
    """Return how far the class that is furthest off is, as a share of how much outputs vary from picture to picture.

    That is the root mean square of its error over the pictures, divided by the outputs' standard deviation over
    pictures, pooled over classes. `network` is the one before anything was fused, in float32; `run` takes the batches
    of pictures, and gives logits, or probabilities of pictures in uint8.
    """
    expected = _outputs(network, pictures)
    parts = tqdm(pictures.inputs, desc="comparing over the calibration pictures", leave=False, delay=1.0)
    found = np.concatenate([run(one) for one in parts])
    spread = np.sqrt(expected.var(0).mean())
    error = np.sqrt(np.square(found - expected).mean(0).max())
    return float(error / spread) if spread else float("inf") if error else 0.0


def require_calibrated(run: Run, network: nn.Module, pictures: CalibrationPictures, name: str) -> dict[str, float]:
    """Return the `calibration_error` of a file and the largest that is allowed, as the record of an export holds them.

    `name` is what the file is called. Errors: `InputError` where the error is larger.
    """
    error = calibration_error(run, network, pictures)
    if not error <= LIMIT:
        raise InputError(
            f"{name} does not compute what the network does: over the {pictures.count} calibration pictures an "
            f"output is wrong by {100 * error:.0f} % of how much outputs vary from picture to picture, and int8 may "
            f"change {100 * LIMIT:.0f} %; nothing was written{ADVICE['int8']}"
        )
    return {"calibration_error": round(error, 4), "calibration_error_allowed": LIMIT}


def _outputs(network: nn.Module, pictures: CalibrationPictures) -> np.ndarray:
    """Return what PyTorch makes of the pictures, in float64 as numbers, which float32 computes exactly enough."""
    inputs = pictures.inputs
    what = "the network over the calibration pictures"
    with eval_mode(network), torch.inference_mode():
        if inputs[0].dtype == np.uint8:
            return probabilities(network, [picture for one in inputs for picture in one], what)
        progress = tqdm(inputs, desc=what, leave=False, delay=1.0)
        return np.concatenate([network(torch.from_numpy(one)).double().numpy() for one in progress])
