"""Whether a measured accuracy is better than what needs no model at all: always naming the largest class."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from seresnet_hub.data.split import Split
from seresnet_hub.data.units import labels_of

# Labels of larger splits are not read: what has so many images does not end at chance unseen.
MOST_IMAGES = 20_000
# An accuracy that guessing reaches more often than this is no evidence of anything.
SIGNIFICANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Chance:
    """What always naming the largest class of a split reaches: `share` (0 to 1) of its `images`."""

    share: float
    images: int
    largest: str
    held_out: bool = False

    @property
    def too_few_images(self) -> bool:
        """Whether not even all images right would be evidence of anything."""
        return binomial_tail(self.images, self.images, self.share) > SIGNIFICANCE

    def too_few(self) -> str:
        """Return in one sentence that no accuracy on so few images shows anything, and what to do."""
        more = "add images, or hold out more of them with --set holdout=0.3" if self.held_out else "add images"
        return f"{self.images} images are too few to show that an accuracy is better than chance: {more}"

    def doubt(self, top1: float) -> str:
        """Return in one sentence why an accuracy in percent does not show that anything was learnt, or nothing.

        It does not where so many images would be right by chance with a probability above 5 % (binomial tail).
        """
        correct = round(top1 * self.images / 100)
        if binomial_tail(correct, self.images, self.share) <= SIGNIFICANCE:
            return ""
        guess = f"always naming {self.largest!r}, the largest class, has {100 * self.share:.2f} %"
        if self.too_few_images:
            return f"{self.too_few()} ({guess})"
        return (
            f"{top1:.2f} % of {self.images:,} images is not better than chance by more than its uncertainty ({guess}): "
            "try more images of each class, more epochs (--set epochs=100), another learning_rate (ten times as large, "
            "or a tenth), or other weights; and look whether the folders hold what their names say"
        )


def chance_of(split: Split) -> Chance | None:
    """Return what chance reaches on `split`; `None` where its labels would have to be fetched, are too many, or lists.

    Errors: `InputError` where the labels cannot be read.
    """
    if split.right_classes is not None or split.rows > MOST_IMAGES or (split.remote and split.subset is None):
        return None
    counts = Counter(labels_of(split).tolist())
    if not counts:
        return None
    label, most = counts.most_common(1)[0]
    names = split.class_names or ()
    largest = names[label] if 0 <= label < len(names) else str(label)
    return Chance(
        share=most / counts.total(), images=counts.total(), largest=largest, held_out=split.subset is not None
    )


def binomial_tail(correct: int, images: int, share: float) -> float:
    """Return the probability of `correct` or more right answers of `images`, each right with probability `share`."""
    if correct <= 0 or share >= 1:
        return 1.0
    logarithm = math.lgamma(images + 1)
    return sum(
        math.exp(
            logarithm - math.lgamma(k + 1) - math.lgamma(images - k + 1)
            + k * math.log(share) + (images - k) * math.log1p(-share)
        )
        for k in range(correct, images + 1)
    )  # fmt: skip
