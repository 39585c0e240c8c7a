"""A process that is measured: it decodes the pictures of a folder without a network, or runs a network alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from _benchmark_options import OURS
from torch import nn

WARM_UP = 4  # batches that come before the measurement, as the first of several workers come together


def main(what: str, program: str, model: str, folder: str, settings: dict[str, Any]) -> float:
    """Return images a second."""
    make = {"decoding": _decoding, "network": _network}[what]
    return _images_per_second(make(program, model, folder, settings), settings["images"])


def _decoding(program: str, model: str, folder: str, settings: dict[str, Any]) -> Iterator[int]:
    """Yield the number of images of each batch that workers have decoded and the main process has normalised."""
    network, batch_size, workers = _loaded(model), settings["batch_size"], settings["workers"]
    if program == OURS:
        from seresnet_hub.inference.run_batches import run_batches
        from seresnet_hub.inference.sources import open_sources

        nothing = _Nothing(network)
        for answers in run_batches(nothing, open_sources([folder]), batch_size=batch_size, workers=workers):
            yield len(answers.labels)
        return
    from timm.data import create_dataset, create_loader, resolve_model_data_config

    config = resolve_model_data_config(network)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader: Iterable[Any] = create_loader(
        create_dataset(root=folder, name=""), batch_size=batch_size, num_workers=workers, device=device, **config
    )
    for images, _ in loader:
        yield len(images)


class _Nothing(nn.Module):
    """A network that computes nothing and answers for another one, whose images it takes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pretrained_cfg, self.num_classes = model.pretrained_cfg, model.num_classes
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.new_zeros(len(images), self.num_classes)


def _network(program: str, model: str, folder: str, settings: dict[str, Any]) -> Iterator[int]:
    """Yield the number of images of each batch that the network has answered, in the layout that the program uses."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, size = _loaded(model).to(device), settings["batch_size"]
    side = network.pretrained_cfg["input_size"][-1]
    images = torch.rand(size, 3, side, side, device=device)
    call: Callable[[torch.Tensor], torch.Tensor] = network
    if program == OURS:
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        while True:
            call(images).softmax(-1).cpu()
            yield size


def _loaded(model: str) -> Any:
    import timm

    return timm.create_model(f"local-dir:{Path(model).resolve()}", pretrained=True).eval()


def _images_per_second(batches: Iterator[int], images: int) -> float:
    """Return the speed of the batches that come after the first ones, until there were so many images or no more."""
    seen, start = 0, 0.0
    for number, count in enumerate(batches):
        if number == WARM_UP - 1:
            seen, start = 0, time.perf_counter()
        elif number >= WARM_UP:
            seen += count
        if seen >= images:
            break
    return seen / (time.perf_counter() - start)


if __name__ == "__main__":
    what, program, model, folder, settings = sys.argv[1:]
    print(json.dumps(main(what, program, model, folder, json.loads(settings))))
