"""Find the pictures of an index that look most like others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seresnet_hub.commands.parser import Parser, command
from seresnet_hub.commands.speed_options import require_numbers

EXAMPLE = "seresnet-hub search photos.parquet holiday.jpg --sheet similar.png"


def parser() -> Parser:
    parser = command(__doc__, prog="seresnet-hub search", example=EXAMPLE)
    parser.any_bytes = frozenset({"images"})
    parser.add_argument("index", metavar="INDEX", help="a parquet file, or a folder of them, of predict --features")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+",
        help="what to find similar pictures to: picture files, folders of them, addresses, - for standard input, or a "
        "data set",
    )  # fmt: skip
    parser.add_argument("--model", metavar="MODEL", help="the model that made the index (default: the one it names)")
    parser.add_argument(
        "--stage", type=int, metavar="N", help="compare the features of this stage, if the index has them"
    )
    answer = parser.add_argument_group("the answer")
    answer.add_argument("--top", type=int, default=10, metavar="K", help="pictures to find for each (default: 10)")
    answer.add_argument(
        "--exact", action="store_true",
        help="compare all rows, also of more than a million where faiss is installed, which proposes some",
    )  # fmt: skip
    answer.add_argument("--sheet", type=Path, metavar="FILE.png", help="show them with their classes in one picture")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    speed.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that decode images (default: none)"
    )
    return parser


def main(arguments: Sequence[str]) -> dict[str, Any]:
    options = parser().parse_args(arguments)
    import torch

    from seresnet_hub.commands.terminal import tell
    from seresnet_hub.errors import InputError
    from seresnet_hub.inference.embedding_index import open_index
    from seresnet_hub.inference.kept_faiss_index import FEW_ROWS, is_worth_it
    from seresnet_hub.inference.search import model_of, queries_of
    from seresnet_hub.inference.search_sheet import MOST_QUERIES, write_sheet
    from seresnet_hub.inference.sources import named_error, open_sources
    from seresnet_hub.inference.table_files import require_place

    if options.sheet is not None and options.sheet.suffix.lower() != ".png":
        raise InputError(f"--sheet {options.sheet}: it is a PNG picture, so let its name end in .png")
    if options.sheet is not None:
        require_place(options.sheet)
    require_numbers(options)
    index = open_index(options.index, options.stage)
    split = open_sources(options.images)
    model = model_of(index, options.model)
    name = options.model or index.facts["model"]
    tell(f"model: {name} ({index.channels} features, {index.rows:,} rows in {index.path})")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    exact = options.exact or not is_worth_it(index)
    if not exact:
        tell("faiss proposes which rows are compared, and may miss some; --exact compares all")
    elif index.rows > FEW_ROWS and not options.exact:
        tell("all rows are compared; with faiss (pip install 'seresnet-hub[search]') later searches are faster")
    queries = queries_of(
        index, model, split, options.top, exact=exact, batch_size=options.batch_size, workers=options.workers
    )
    unreadable = [{"image": query.image, "error": query.error} for query in queries if query.error is not None]
    for query in queries:
        if query.error is not None:
            tell(f"unreadable: {named_error(query.image, query.error)}")
    read = [query for query in queries if query.error is None]
    if not read:
        raise InputError(f"none of the {len(queries)} pictures can be read ({unreadable[0]['error']})")
    if options.sheet is not None:
        write_sheet(options.sheet, index, read, split)
        if len(read) > MOST_QUERIES:
            tell(f"{options.sheet} shows the first {MOST_QUERIES} of {len(read)} pictures")
    return {
        "index": str(index.path),
        "model": str(name),
        "rows": index.rows,
        "exact": exact,
        "queries": [{"query": query.image, "neighbours": query.neighbours} for query in read],
        "failed": len(unreadable),
        "unreadable": unreadable,
        "sheet": None if options.sheet is None else str(options.sheet),
    }
