"""The loaders that are measured: each yields the uint8 images of a batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _benchmark_options import OTHER_DECODERS

SIZE = 224
# Rows in a shuffle window or in the buffers of all workers: one row group in each of the plan's 24 lanes. timm and
# mosaicml-streaming keep their defaults.
SHUFFLE = 2400


class Source(NamedTuple):
    """Where the images are, and how they are read."""

    scratch: Path  # their folder, with one folder for each format
    remote: bool  # read them from the Hub, where the format's name is that of a data set
    batch_size: int
    workers: int
    repeats: int = 1  # copies of an image, each augmented anew

    def of(self, kind: str) -> str:
        return hub_name(kind) if self.remote else str(self.scratch / kind)

    def cache(self, kind: str) -> str:
        """Return the folder for a loader's copies of what is remote, whose name is the measurement's to choose."""
        folder = Path(os.environ["HF_HOME"], kind)
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def files(self, kind: str) -> list[str]:
        names = sorted(file.name for file in (self.scratch / kind).glob("train-*"))
        base = f"{os.environ['HF_ENDPOINT']}/datasets/{hub_name(kind)}/resolve/main" if self.remote else self.of(kind)
        return [f"{base}/{name}" for name in names]


def hub_name(kind: str) -> str:
    return f"benchmark/{kind}"


def _transform() -> Any:
    from seresnet_hub.data.transforms import training_transform

    return training_transform(
        crop="resized", input_size=(3, SIZE, SIZE), interpolation="bilinear", crop_padding=0, scale=(0.08, 1.0),
        horizontal_flip=0.5,
    )  # fmt: skip


def _decode(data: bytes) -> torch.Tensor:
    """Decode as this package's fast way does, one picture into a tensor of its own."""
    global _decoder
    try:
        from seresnet_hub.data.decoding import Decoder
    except ImportError:  # in a peer's own interpreter
        return _decode_with_torchvision(data)
    if _decoder is None:
        _decoder = Decoder(_transform(), "fast")
    out = torch.empty(3, SIZE, SIZE, dtype=torch.uint8, memory_format=torch.contiguous_format)
    return out.flip(-1) if _decoder.apply(_decoder.decode(data), out) else out


_decoder: Any = None


def _decode_with_torchvision(data: bytes) -> torch.Tensor:
    """Do the same by torchvision's operations alone."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    global _decoder
    if _decoder is None:
        _decoder = v2.Compose([v2.RandomResizedCrop(SIZE, scale=(0.08, 1.0)), v2.RandomHorizontalFlip()])
    image: torch.Tensor = _decoder(
        decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    )
    return image


def _ours(decoder: str, source: Source) -> Iterator[torch.Tensor]:
    try:
        loader, recipes = import_module("seresnet_hub.data.loader").loader, import_module("seresnet_hub.recipes.recipe")
    except ModuleNotFoundError as error:
        if error.name != "seresnet_hub.data.loader":
            raise
        # An older checkout.
        loader, recipes = import_module("seresnet_hub.data").loader, import_module("seresnet_hub.recipes")
    recipe = replace(
        recipes.get_recipe("digits"), crop="resized", input_size=SIZE, batch_size=source.batch_size,
        horizontal_flip=0.5, decoder=decoder, shuffle_window=SHUFFLE, repeated_augmentation=source.repeats,
    )  # fmt: skip
    for batch in loader(source.of("parquet"), "train", recipe, workers=source.workers):
        for row in batch.mirror.nonzero().flatten().tolist():  # the other loaders do this in their workers
            batch.images[row] = batch.images[row].flip(-1)
        yield batch.images


def _timm(source: Source) -> Iterator[torch.Tensor]:
    from timm.data import create_dataset, create_loader

    dataset = create_dataset(
        f"hfids/{source.of('parquet')}", root=None, split="train", is_training=True, batch_size=source.batch_size,
        num_samples=int((source.scratch / "images").read_text()),
    )  # fmt: skip
    batches = create_loader(
        dataset, (3, SIZE, SIZE), source.batch_size, is_training=True, color_jitter=None, hflip=0.5,
        interpolation="bilinear", num_workers=source.workers, device=torch.device("cpu"), persistent_workers=False,
        pin_memory=False,
    )  # fmt: skip
    for images, _ in batches.loader:  # uint8; the prefetcher around it only normalises
        yield images


def _datasets(source: Source) -> Iterator[torch.Tensor]:
    import datasets
    from torch.utils.data import DataLoader

    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    stream = datasets.load_dataset(source.of("parquet"), split="train", streaming=True)
    stream = stream.decode(False).shuffle(seed=0, buffer_size=SHUFFLE // source.workers)
    stream = stream.map(
        lambda row: {"image": _decode(row["image"]["bytes"]), "label": row["label"]}, features=datasets.Features()
    )
    for batch in DataLoader(
        stream, batch_size=source.batch_size, num_workers=source.workers, worker_init_fn=_one_thread
    ):
        yield batch["image"]


def _webdataset(source: Source) -> Iterator[torch.Tensor]:
    import webdataset

    shards = source.files("tar")
    kept = {"cache_dir": source.cache("tar")} if source.remote else {}
    stream = webdataset.WebDataset(shards, shardshuffle=len(shards), **kept).shuffle(SHUFFLE // source.workers)
    stream = stream.to_tuple("jpg", "cls").map_tuple(_decode, int).batched(source.batch_size)
    for images, _ in webdataset.WebLoader(
        stream, batch_size=None, num_workers=source.workers, worker_init_fn=_one_thread
    ):
        yield images


def _decoding(dataset: Any) -> Any:
    """Return a kind of data set whose rows are decoded as they are taken."""

    class Decoded(dataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            row = super().__getitem__(index)
            return _decode(row["image"]), row["label"]

    return Decoded


def _litdata(source: Source) -> Iterator[torch.Tensor]:
    import litdata

    stream = _decoding(litdata.StreamingDataset)(source.of("litdata"), shuffle=True)
    batches = litdata.StreamingDataLoader(
        stream, batch_size=source.batch_size, num_workers=source.workers, worker_init_fn=_one_thread
    )
    for images, _ in batches:
        yield images


def _mosaicml(source: Source) -> Iterator[torch.Tensor]:
    import streaming
    from torch.utils.data import DataLoader

    streaming.base.util.clean_stale_shared_memory()
    place = {"local": source.of("mds")}
    if source.remote:
        place = {"remote": f"hf://datasets/{source.of('mds')}", "local": source.cache("mds")}
    stream = _decoding(streaming.StreamingDataset)(**place, shuffle=True, batch_size=source.batch_size)
    batches: DataLoader[Any] = DataLoader(
        stream, batch_size=source.batch_size, num_workers=source.workers, worker_init_fn=_one_thread
    )  # fmt: skip
    for images, _ in batches:
        yield images


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


LOADERS: dict[str, Callable[[Source], Iterator[torch.Tensor]]] = {
    "seresnet_hub": partial(_ours, "fast"),
    **{name: partial(_ours, name) for name in OTHER_DECODERS},
    "timm": _timm,
    "datasets": _datasets,
    "webdataset": _webdataset,
    "litdata": _litdata,
    "mosaicml-streaming": _mosaicml,
}
