"""Count right answers on the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from seresnet_hub.data.loader import Batch


class Counts:
    """What is counted over batches: images, losses, and images by class and by prediction.

    Where images have several right classes, `right_classes` lists them by image, `(images, most of them)` filled up
    with -1, and labels number the images; there are then no losses and no counts by class. Otherwise a label of -1 is
    none: the image is not counted.

    `images` has five counts: of images whose class is the best prediction, of those whose class is among the five best,
    of images with a label, of all that could be decoded, and of those that could not. `losses` is the sum of cross
    entropies in nats, `classes` counts each class's images and how many were right, `(classes, 2)`, and `confusion`
    images by class and prediction, `(classes, classes)`. `finite` is whether all logits were finite numbers.
    """

    def __init__(
        self, num_classes: int, device: torch.device, *, right_classes: torch.Tensor | None, confusion: bool
    ) -> None:
        self.right_classes, self._num_classes, self._damaged = right_classes, num_classes, 0
        self.images = torch.zeros(5, dtype=torch.int64, device=device)
        self.losses = torch.zeros(1, dtype=torch.float64, device=device)
        one_class = right_classes is None
        self.classes = torch.zeros((num_classes, 2), dtype=torch.int64, device=device) if one_class else None
        self.confusion = torch.zeros((num_classes,) * 2, dtype=torch.int64, device=device) if confusion else None
        self.finite = torch.tensor(True, device=device)

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Count one batch."""
        labels, counted = batch.labels, batch.mask
        self._damaged += batch.missing
        self.finite &= logits.isfinite().all()
        best = logits.topk(min(5, self._num_classes), dim=1).indices
        if self.right_classes is None:
            labels, counted = labels.clamp(min=0), counted & (labels >= 0)
            right = best == labels[:, None]
            losses = F.cross_entropy(logits.float(), labels, reduction="none") * counted
            self.losses += losses.sum(dtype=self.losses.dtype)
        else:
            wanted = self.right_classes[labels]
            right, counted = (best[:, :, None] == wanted[:, None]).any(2), batch.mask & (wanted[:, 0] >= 0)
        hits = right & counted[:, None]
        self.images[:4] += torch.stack([hits[:, 0].sum(), hits.any(1).sum(), counted.sum(), batch.mask.sum()])
        if self.classes is not None:
            self.classes.index_add_(0, labels, torch.stack([counted, hits[:, 0]], dim=1).long())
        if self.confusion is not None:
            self.confusion.view(-1).scatter_add_(0, labels * self._num_classes + best[:, 0], counted.long())

    def finish(self, total: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        """Sum everything over the ranks; `total` sums a vector."""
        self.images[4] = self._damaged
        if total is not None:
            for counted in (self.images, self.losses, self.classes, self.confusion):
                if counted is not None:
                    counted.copy_(total(counted.flatten()).view_as(counted))
