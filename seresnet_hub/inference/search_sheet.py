"""Show what a search found as a contact sheet: rows of a query and its neighbours, with their classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from seresnet_hub.data.picture_list import is_address
from seresnet_hub.data.read_image import read_image
from seresnet_hub.data.split import Split
from seresnet_hub.data.units import picture_of, rows_of
from seresnet_hub.errors import InputError, PrintableLog
from seresnet_hub.files.atomic_writing import replacing
from seresnet_hub.inference.contact_sheet import SIDE, Tile, contact_sheet
from seresnet_hub.inference.embedding_index import EmbeddingIndex
from seresnet_hub.inference.search import Query
from seresnet_hub.inference.sources import open_sources
from seresnet_hub.inference.thumbnails import thumbnail

MOST_QUERIES = 50  # on a sheet, which is then some 12,000 pixels high

log = PrintableLog(__name__)


def write_sheet(path: Path, index: EmbeddingIndex, queries: Sequence[Query], split: Split) -> None:
    """Write the first `MOST_QUERIES` that were read, of the pictures of `split`, with their neighbours as a PNG file.

    Pictures of a data set are read from it by their rows. A picture that cannot be read any more is a grey box with its
    name; so is one at an address, which only the index names and not this call, so that nothing is fetched from it.
    Errors: `InputError` where the file cannot be written.
    """
    shown = [query for query in queries if query.error is None][:MOST_QUERIES]
    asked = _pictures(split, [query.row for query in shown])
    found = {neighbour["row"]: neighbour["image"] for query in shown for neighbour in query.neighbours}
    pictures = _found_pictures(index, found)
    rows = [
        [
            Tile(asked[query.row], _file_name(query.image or f"row {query.row}"), name=query.image or ""),
            *(_tile(neighbour, pictures[neighbour["row"]]) for neighbour in query.neighbours),
        ]
        for query in shown
    ]
    sheet = contact_sheet(rows)
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")


def _tile(neighbour: Mapping[str, Any], picture: Image.Image | None) -> Tile:
    image = neighbour["image"] or f"row {neighbour['row']}"
    label, predicted = neighbour.get("label_name"), neighbour.get("name_1")
    name = str(label or predicted or "").partition(",")[0]  # the first of a class's several words
    detail = f"{neighbour['similarity']:.3f}" + (", predicted" if predicted and not label else "")
    if name and not neighbour["image"]:
        detail += f", {image}"  # which one it is, as nothing else tells
    return Tile(picture, name or _file_name(image), detail, name=image)


def _file_name(image: str) -> str:
    return Path(image).name


def _found_pictures(index: EmbeddingIndex, names: Mapping[int, str | None]) -> dict[int, Image.Image | None]:
    """Return the small pictures of rows of an index: files, or rows of the data set that it names."""
    facts = index.facts
    if not facts.get("sources") or facts.get("split") in (None, "pictures"):
        return {
            row: None if name is None or is_address(name) else _small(partial(read_image, name))
            for row, name in names.items()
        }
    try:
        if str(facts["sources"]).startswith(("http://", "https://")):
            raise InputError(f"{facts['sources']} is not fetched, since only the index names it")
        split = open_sources([facts["sources"]], split=facts["split"])
        if split.fingerprint == facts.get("source_fingerprint"):
            return _pictures(split, names)
        log.warning("%s has changed since %s was made: its pictures are not shown", facts["sources"], index.path)
    except InputError as error:
        log.warning("the pictures of %s are not shown: %s", index.path, error)
    return dict.fromkeys(names)  # what a data set calls its pictures is no file of this machine


def _pictures(split: Split, rows: Iterable[int]) -> dict[int, Image.Image | None]:
    """Return the small pictures of some rows of a split, `None` where one cannot be read."""
    found: dict[int, Image.Image | None] = dict.fromkeys(rows)
    said: InputError | None = None
    for number, row in rows_of(split, rows):
        if not isinstance(row, InputError):
            found[number] = _small(partial(picture_of, split, row))
        elif row is not said:  # all rows of a unit have the same one
            log.warning("%s", said := row)
    return found


def _small(read: Callable[[], Image.Image]) -> Image.Image | None:
    """Return a picture as it is put on the sheet, `None` where it cannot be read."""
    try:
        return thumbnail(read(), SIDE)
    except InputError:
        return None
