"""Deal out the copies that repeated augmentation makes of an image (arXiv 1901.09335) among the processes.

Were all copies of an image in one process, its batch norms would see fewer images, and mixing would pair copies with
each other. So they are dealt out as in DeiT and in timm's `RepeatAugSampler`: of N processes and R copies of an image,
copy r of the image in place p of a global batch goes to process (p R + r) mod N.

A process decodes the images of its own places, each once, and makes all copies of them; finished rows then go to where
they belong. The other way is to read an image wherever a copy of it belongs, which reads and decodes it R times: for
258 rows of `rsb_a2` a step that was 28.5 MB instead of 9.5 and 0.27 s more of a core, while sending their 39 MB through
gloo took 0.01 to 0.02 s of one (two and eight processes on one machine).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import torch
from torch import distributed

from seresnet_hub.data.loader import Batch
from seresnet_hub.data.plan import Plan, Reader

ORDER = 1  # the stream of random numbers that orders rows, apart from those that mix them


def part_rows(plan: Plan, batch: int, *, repeats: int, world_size: int) -> int:
    """Return the length of every process's part of a batch, copies included; some have a row less and a padded one."""
    return -(-plan.batch_rows(batch) * repeats // world_size)


def dealt(
    batch: Batch, plan: Plan, number: int, *, repeats: int, rank: int, world_size: int, seed: Sequence[int]
) -> Batch:
    """Return this process's part of batch `number`, given what its loader made; all processes have to call it.

    The rows are in an order in which mixing the part with itself turned round (as timm does) mixes no image with its
    own copy, and no two copies of an image with the same other image. Only a part of too few images breaks this rule,
    such as two images of three copies each. The order depends on the part and `seed` alone.
    """
    if repeats == 1:
        return batch
    images = batch.images.permute(0, 2, 3, 1)
    facts = torch.stack([batch.labels, batch.mask.long(), batch.mirror.long(), batch.indices], dim=1)
    if world_size > 1:
        images, facts = _exchanged((images, facts), plan, number, repeats, rank, world_size)
    own = np.arange(rank, plan.batch_rows(number) * repeats, world_size) // repeats
    padding = part_rows(plan, number, repeats=repeats, world_size=world_size) - len(own)
    order = mixing_order(np.concatenate([own, -1 - np.arange(padding)]), np.random.default_rng([*seed, ORDER]))
    if not len(own):  # a last batch of fewer rows than processes
        images, facts = images.new_zeros(1, *images.shape[1:]), facts.new_zeros(1, 4)
    row, none = (_sent(values, images.device) for values in (order % max(len(own), 1), order >= len(own)))
    images, facts = images[row], facts[row]  # another row's picture upsets batch statistics less than a black one
    nobodys = torch.zeros_like(facts)
    nobodys[:, 3].fill_(-1)
    facts = torch.where(none[:, None], nobodys, facts)
    labels, mask, mirror, indices = facts.unbind(dim=1)
    return batch._replace(
        images=images.permute(0, 3, 1, 2), labels=labels, mask=mask.bool(), mirror=mirror.bool(), indices=indices,
        whole=batch.whole and world_size == 1,  # of others' rows it is not known here
    )  # fmt: skip


def _exchanged(
    tensors: Sequence[torch.Tensor], plan: Plan, number: int, repeats: int, rank: int, world_size: int
) -> list[torch.Tensor]:
    """Send every row to the process that it belongs to; what comes back is in the order of the places."""
    spans = [plan.places(number, Reader(process, world_size)) for process in range(world_size)]
    low, high = spans[rank]
    to = np.arange(low * repeats, high * repeats) % world_size
    row = _sent(np.argsort(to, kind="stable"), tensors[0].device)
    sent = np.bincount(to, minlength=world_size).tolist()
    received = [_count(low * repeats, high * repeats, rank, world_size) for low, high in spans]
    results = []
    for tensor in tensors:
        result = tensor.new_empty(sum(received), *tensor.shape[1:])
        distributed.all_to_all_single(result, tensor[row], received, sent)
        results.append(result)
    return results


def _sent(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return `values` on the device; from pinned memory, since the host would wait for any other copy."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _count(first: int, last: int, remainder: int, divisor: int) -> int:
    """Return how many numbers from `first` to before `last` leave a remainder."""
    return len(range(first + (remainder - first) % divisor, last, divisor))


def mixing_order(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return an order of rows, given which image each shows, that is fit to be mixed with itself turned round.

    Row k of n is then mixed with row n - 1 - k. Each pair of rows is an edge between two images, and each image has as
    many edges as copies. The construction of Havel and Hakimi finds a graph without loops and double edges where there
    is one: the image with most copies left is joined to those with most copies left among the others.
    """
    found, number, copies = np.unique(images, return_inverse=True, return_counts=True)
    if len(found) == len(images):
        return np.arange(len(images))
    rows_of: list[list[int]] = [[] for _ in found]
    for row in random.permutation(len(images)).tolist():
        rows_of[number[row]].append(row)
    ties = random.permutation(len(found)).tolist()
    left = [(-count, tie, image) for image, (count, tie) in enumerate(zip(copies.tolist(), ties, strict=True))]
    heapq.heapify(left)
    pairs: list[tuple[int, int]] = []
    while left:
        _, _, image = heapq.heappop(left)
        partners = [heapq.heappop(left) for _ in range(min(len(rows_of[image]), len(left)))]
        for count, tie, partner in partners:
            pairs.append((rows_of[image].pop(), rows_of[partner].pop()))
            if count < -1:
                heapq.heappush(left, (count + 1, tie, partner))
    # What no such graph can join; sorted by image and halved, rows meet their own image only where it has most of them.
    rest = [row for image in sorted(rows_of, key=len) for row in image]
    half = len(rest) // 2
    pairs += list(zip(rest[:half], rest[len(rest) - half :], strict=True))
    pairs = [pairs[k] for k in random.permutation(len(pairs)).tolist()]
    middle = rest[half : len(rest) - half]
    return np.array([a for a, _ in pairs] + middle + [b for _, b in reversed(pairs)])
