"""OpenVINO gives each image of a batch what it gives the image alone, in the images' order, at any size of batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

openvino = pytest.importorskip("openvino", reason="networks of OpenVINO are run by it")

from openvino import opset13 as op  # noqa: E402

from seresnet_hub.engines.openvino_batches import PART, Batches  # noqa: E402

SIDE = 4


def network(*shape: int) -> Any:
    """Return a network whose output names the image: its sum, and its first value."""
    images = op.parameter(list(shape), np.float32)
    total = op.reduce_sum(images, op.constant([1, 2, 3]), keep_dims=False)
    first = op.slice(
        images, op.constant([0, 0, 0]), op.constant([1, 1, 1]), op.constant([1, 1, 1]), op.constant([1, 2, 3])
    )
    both = op.concat([op.unsqueeze(total, op.constant(1)), op.reshape(first, op.constant([-1, 1]), False)], 1)
    return openvino.Model([op.result(both)], [images])


def batches(*shape: int, threads: int = 2) -> Batches:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    return Batches(openvino.Core(), network(*shape), settings)


def images(count: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, side, side)).astype(np.float32)


def expected(given: np.ndarray) -> np.ndarray:
    return np.stack([given.sum((1, 2, 3)), given[:, 0, 0, 0]], 1)


def assert_right(engine: Batches, given: np.ndarray) -> None:
    np.testing.assert_allclose(engine.run(given), expected(np.ascontiguousarray(given)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_of_any_size(threads: int) -> None:
    engine = batches(-1, 3, SIDE, SIDE, threads=threads)
    for count in (1, PART * threads - 1, PART * threads, 4 * PART * threads, 4 * PART * threads + 1, 7, 1):
        assert_right(engine, images(count))


def test_what_is_returned_is_kept_when_another_batch_is_run() -> None:
    engine, given = batches(-1, 3, SIDE, SIDE), images(9)
    output = engine.run(given)
    engine.run(images(8))
    np.testing.assert_allclose(output, expected(given), rtol=1e-5, atol=1e-5)


def test_images_in_another_memory_order() -> None:
    given = np.ascontiguousarray(images(9).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not given.flags.c_contiguous
    assert_right(batches(-1, 3, SIDE, SIDE), given)


def test_a_network_for_one_batch_size_or_for_any_image_size_is_run_as_it_is() -> None:
    assert_right(batches(5, 3, SIDE, SIDE), images(5))
    engine = batches(-1, 3, -1, -1)
    for side in (4, 6):
        assert_right(engine, images(9, side))


def test_a_wrong_size_is_the_runtimes_error() -> None:
    with pytest.raises(RuntimeError):
        batches(-1, 3, SIDE, SIDE).run(images(1, SIDE + 1))
