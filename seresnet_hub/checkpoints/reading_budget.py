"""How much a checkpoint file may make its reader do: every limit in one place, and the account of what a file has used.

A stranger's file can ask for far more than its own size: one megabyte can describe gigabytes of lists, or an hour of
hashing. Each limit is far above what a checkpoint of an image classifier needs. Together they keep the reader's memory
under three times the file's size and 1 GB more, and its time under 20 seconds for files that the disk delivers in less.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from seresnet_hub.errors import InputError


class Refused(InputError):
    """The reason a file is refused; the file's name is put before it on the way out."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits; `Account` counts those whose name it takes, over the whole file."""

    # A SENet-154 with optimizer state, EMA and history is under 3 GB.
    file_bytes: int = 8 * 2**30
    # Everything in a zip but the tensors: names, configuration, training history.
    pickle_bytes: int = 256 * 2**20
    # safetensors' own limit, and what its JSON may consist of: a tensor has three brackets and some ten commas.
    header_bytes: int = 100_000_000
    header_parts: int = 500_000
    # A zip's members and the bytes of its directory, which is read before any of them.
    members: int = 65_535
    directory_bytes: int = 16 * 2**20
    # Tensors of the state dict; a SENet-154 has a thousand. Each is looked at on its own.
    tensors: int = 20_000
    dimensions: int = 8
    # Of all the file's pickles together; a SENet-154 with optimizer state takes 130,000.
    instructions: int = 600_000
    # Plain numbers, which take a fraction of the time: a history of ninety epochs of ImageNet, two values a step, has
    # 900,000.
    numbers: int = 4_000_000
    # Classes and functions that it names, each time anew.
    names: int = 50_000
    # Elements of containers that are copied or passed on by one instruction, however many that one may be.
    elements: int = 1_000_000
    # Keys that are neither text nor whole numbers of 32 bits, as the steps of a history are: their hashes can be chosen
    # so that each is compared with all others.
    number_keys: int = 32_768
    key_characters: int = 4_096
    key_parts: int = 16
    # Of a module, a class, a storage; a line has two of them.
    name_characters: int = 1_000
    line_bytes: int = 2_100
    # Text beyond Latin-1, which takes up to four times its bytes in memory.
    wide_text_bytes: int = 64 * 2**20
    # Tensors may share a storage (tied weights); a file in which all do it many times over is a bomb.
    sharing: int = 4


BUDGET = Budget()
WAY_OUT = "nothing in it was run; get the weights as safetensors, or from a source you trust"
WORDS = {
    "instructions": "its pickles have more than {:,} instructions",
    "numbers": "its pickles have more than {:,} numbers",
    "names": "it names classes and functions more than {:,} times",
    "elements": "it copies more than {:,} elements of its containers",
    "number_keys": "its tables have more than {:,} keys that are neither text nor small whole numbers",
    "wide_text_bytes": "it has more than {:,} bytes of text beyond Latin-1",
    "encoded": "it encodes more text than the {:,} bytes that the file has",
    "copied": "it has more tensors out of alignment than the {:,} bytes of the file",
    "shared": "its tensors claim more than {:,} bytes, " + f"{BUDGET.sharing} times the bytes of the file",
}


class Account:
    """What one file has left of its budget; some limits grow with its `size` in bytes."""

    def __init__(self, size: int) -> None:
        self._limits = {field.name: getattr(BUDGET, field.name) for field in fields(BUDGET)}
        self._limits |= {"encoded": size, "copied": size, "shared": BUDGET.sharing * size}
        self._left = dict(self._limits)

    def spend(self, what: str, amount: int) -> None:
        """Take `amount` from what is left of the limit `what`. Errors: `Refused` where that is not enough."""
        self._left[what] -= amount
        if self._left[what] < 0:
            raise Refused(f"{WORDS[what].format(self._limits[what])}, which no checkpoint needs: {WAY_OUT}")

    def left(self, what: str) -> int:
        """Return what is left of a limit."""
        return self._left[what]
