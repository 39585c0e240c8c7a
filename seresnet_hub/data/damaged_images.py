"""How many images of a data set may be undecodable before a run ends."""

from __future__ import annotations

import math

from seresnet_hub.data.split import Split
from seresnet_hub.errors import InputError

# So many images may be undecodable where `corrupt_share` of them would be fewer.
FEW_DAMAGED = 10


def most_damaged(split: Split, share: float) -> int:
    """Return how many images of a split may be undecodable: `share` of them, or a few where they are few.

    A few are 10, or a tenth of fewer than 100 images: one broken file of a small folder ends no run, and nothing trains
    on a folder of broken ones. A held-out part is judged by the collection that it was taken from. With `share=0` none
    may be.
    """
    images = sum(split.whole_unit_rows)
    return max(int(share * images), min(FEW_DAMAGED, images // 10)) if share else 0


def require_few_damaged(damaged: int, split: Split, share: float, named: str = "") -> None:
    """Raise `InputError` where more images are undecodable than may be (see `most_damaged`); says what to do."""
    most, images = most_damaged(split, share), sum(split.whole_unit_rows)
    if damaged <= most:
        return
    if not share:
        way_out = f"{damaged} undecodable, and no image may be left out here: repair or remove what is damaged"
    else:
        way_out = (
            f"{damaged} undecodable images, more than {most:,} of {images:,}: repair or remove what is damaged, or set "
            f"corrupt_share, the share that may be left out, to {math.ceil(1000 * damaged / images) / 1000:g}"
        )
    named = named or f"the output of the processes names the damaged images of {split.source}"
    raise InputError(f"{named} ({way_out})")
