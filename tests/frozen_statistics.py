"""Run by the tests: train as scripts/train.py does, with batch norms in eval mode, and write down what each rank saw.

A process normalises by the statistics of its own part of a batch, so where these are not frozen, several processes do
not compute what one does. Arguments: the folder for the notes, then those of scripts/train.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from seresnet_hub.commands import train
from seresnet_hub.commands.result_or_error import run
from seresnet_hub.data.loader import Batch, Loader

notes = Path(sys.argv.pop(1))


def stay_in_eval_mode(self: nn.BatchNorm2d, mode: bool = True) -> nn.Module:
    return nn.Module.train(self, mode=False)


def noted(self: Loader) -> Iterator[Batch]:
    for number, batch in enumerate(iterate(self)):
        if self.plan.order is not None:  # evaluation has none
            with (notes / f"{os.environ.get('RANK', '0')}.jsonl").open("a") as file:
                seen = batch.indices[batch.mask].tolist()
                file.write(json.dumps([self.plan.order.epoch, number, len(batch.mask), seen]) + "\n")
        yield batch


iterate = Loader.__iter__
Loader.__iter__ = noted  # type: ignore[method-assign]
nn.BatchNorm2d.train = stay_in_eval_mode  # type: ignore[method-assign, assignment]
sys.exit(run(train.main))
