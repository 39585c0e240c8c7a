"""Write the same images in the formats of all loaders that are measured, and of some by their own interpreter."""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

ROWS_PER_SHARD, ROWS_PER_GROUP = 300, 100
WRITTEN_BY_ITSELF = ("litdata", "mosaicml-streaming")  # peers whose format their own package writes, out of parquet


def prepare(scratch: Path, options: argparse.Namespace, peers: tuple[str, ...]) -> None:
    """Write `--images` images, those of the source over and over, as parquet and tar files."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    from seresnet_hub.data.open_split import open_split
    from seresnet_hub.data.units import read_unit

    split = open_split(options.source, options.split)
    rows = [row for unit in range(len(split.unit_rows)) for row in read_unit(split, unit)]
    repeated = list(islice(cycle(rows), options.images))
    shards = [repeated[k : k + ROWS_PER_SHARD] for k in range(0, len(repeated), ROWS_PER_SHARD)]
    for kind in ("parquet", "tar"):
        (scratch / kind).mkdir()
    schema = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}).arrow_schema
    for number, shard in enumerate(shards):
        encoded = [bytes((row.image or {})["bytes"]) for row in shard]
        table = pyarrow.table(
            {"image": [{"bytes": data, "path": None} for data in encoded], "label": [row.label for row in shard]},
            schema.with_metadata(
                {**schema.metadata, b"shard": str(number).encode()}
            ),  # caches know files by their hash
        )
        name = f"train-{number:05d}-of-{len(shards):05d}"
        pyarrow.parquet.write_table(table, scratch / "parquet" / f"{name}.parquet", row_group_size=ROWS_PER_GROUP)
        if "webdataset" in peers:
            with tarfile.open(scratch / "tar" / f"{name}.tar", "w") as archive:
                for k, row in enumerate(shard):
                    for suffix, content in (("jpg", encoded[k]), ("cls", str(row.label).encode())):
                        member = tarfile.TarInfo(f"{number:05d}{k:05d}.{suffix}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
    (scratch / "images").write_text(str(len(repeated)))


def write_litdata(scratch: Path) -> None:
    import litdata

    files = sorted(str(file) for file in (scratch / "parquet").glob("*.parquet"))
    litdata.optimize(fn=_rows, inputs=files, output_dir=str(scratch / "litdata"), chunk_bytes="64MB", num_workers=1)


def write_mosaicml(scratch: Path) -> None:
    from streaming import MDSWriter

    files = sorted(str(file) for file in (scratch / "parquet").glob("*.parquet"))
    with MDSWriter(out=str(scratch / "mds"), columns={"image": "bytes", "label": "int"}) as writer:
        for row in (row for file in files for row in _rows(file)):
            writer.write(row)


def _rows(file: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    for image, label in zip(table.column("image").to_pylist(), table.column("label").to_pylist(), strict=True):
        yield {"image": image["bytes"], "label": label}
