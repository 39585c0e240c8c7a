"""Pickles that ask for more time or memory than they should get: a function for each trick."""

from __future__ import annotations

import struct
from collections.abc import Callable

from checkpoint_bytes import FLOATS, MILLION, PRIME, as_zip, kept, number, repeated, storage, text


def encoded_text() -> bytes:
    setup = kept(b"c_codecs\nencode\n", 0) + kept(b"(" + text("x" * 200_000) + text("latin1") + b"t", 1)
    return repeated(setup, b"h\x00h\x01R")


def encoded_wide_text() -> bytes:
    setup = kept(b"c_codecs\nencode\n", 0) + kept(b"(" + text("\xe9" * 200_000) + text("utf-8") + b"t", 1)
    return repeated(setup, b"h\x00h\x01R")


def copied_lists() -> bytes:
    setup = kept(b"c__builtin__\nlist\n", 0) + kept(b"((" + b"N" * 200_000 + b"lt", 1)
    return repeated(setup, b"h\x00h\x01R")


def copied_dictionaries() -> bytes:
    pairs = b"".join(number(k) + b"N\x86" for k in range(30_000))
    setup = kept(b"ccollections\nOrderedDict\n", 0) + kept(b"((" + pairs + b"lt", 1)
    return repeated(setup, b"h\x00h\x01R")


def million_arguments() -> bytes:
    setup = kept(b"ccollections\ndefaultdict\n", 0) + kept(b"(" + b"N" * MILLION + b"t", 1)
    return repeated(setup, b"h\x00h\x01R")


def million_arguments_of_a_subclass() -> bytes:
    setup = kept(b"ctorch._tensor\n_rebuild_from_type_v2\n", 0)
    setup += kept(b"(ctorch._utils\n_rebuild_tensor_v2\nN(" + b"N" * MILLION + b"tNt", 1)
    return repeated(setup, b"h\x00h\x01R")


def shared_arrays() -> bytes:
    """A megabyte as the bytes of a thousand arrays."""
    setup = b"\x80\x02" + kept(text("x" * MILLION), 0) + kept(b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR", 1)
    setup += kept(
        b"(c_codecs\nencode\n(h\x00" + text("latin1") + b"tR1c_codecs\nencode\n(h\x00" + text("latin1") + b"tR", 2
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + number(MILLION // 4) + b"\x85h\x01\x89h\x02tb"
    return setup + b"}(" + b"".join(text(f"w{k}") + array for k in range(1000)) + b"u."


def million_element_keys() -> bytes:
    setup = b"\x80\x02" + kept(b"(" + b"N" * MILLION + b"t", 0) + b"}"
    return setup + b"h\x00Ns" * 250_000 + b"."


def long_equal_keys() -> bytes:
    setup = b"\x80\x02" + kept(text("x" * MILLION), 0) + kept(text("x" * MILLION), 1) + b"}"
    return setup + b"h\x00Nsh\x01Ns" * 125_000 + b"."


def colliding_keys() -> bytes:
    return b"\x80\x02}(" + b"".join(number(k * PRIME) + b"N" for k in range(1, 80_000)) + b"u."


def colliding_tuples() -> bytes:
    """Keys that are tuples, each of which is another object with the same hash."""
    pairs = b"".join(number(k * PRIME) + b"\x85N" for k in range(1, 80_000))
    return b"\x80\x02}(" + pairs + b"u."


def colliding_places() -> bytes:
    """Values kept at places whose hashes are equal."""
    return b"\x80\x02N" + b"".join(b"p%d\n" % (k * PRIME) for k in range(1, 80_000)) + b"."


def far_places() -> bytes:
    return b"\x80\x02N" + b"r\xff\xff\xff\xff" + b"."


def wide_text() -> bytes:
    step = text("x" * 60_000 + "\U0001f600")
    return repeated(b"", step, 200 * MILLION)


def one_wide_text() -> bytes:
    return b"\x80\x02" + text("x" * 400 * MILLION + "\U0001f600") + b"."


def wide_short_texts() -> bytes:
    return repeated(b"", text("x" * 200 + "\U0001f600"), 200 * MILLION)


def large_numbers() -> bytes:
    return repeated(b"", b"\x8a\xff" + b"\x7f" * 255, 50 * MILLION)


def one_large_number_as_key() -> bytes:
    return b"\x80\x02" + kept(b"\x8b" + struct.pack("<i", 50 * MILLION) + b"\x7f" * 50 * MILLION, 0) + b"}" + (
        b"h\x00Ns" * 100_000 + b"."
    )  # fmt: skip


def long_names() -> bytes:
    setup = kept(text("a" * MILLION), 0) + kept(text("b" * MILLION), 1)
    return b"\x80\x04" + setup + b"](" + b"h\x00h\x01\x93" * 200_000 + b"e."


def long_lines() -> bytes:
    return repeated(b"", b"c" + b"a" * 65_000 + b"\n" + b"b" * 65_000 + b"\n", 100 * MILLION)


def long_decimals() -> bytes:
    return repeated(b"", b"L" + b"9" * 4_200 + b"L\n", 100 * MILLION)


def one_table_under_many_names() -> bytes:
    """A table of 300,000 entries that stands under 30,000 names."""
    table = b"}(" + b"".join(text(str(k)) + b"N" for k in range(300_000)) + b"u"
    return b"\x80\x02" + kept(table, 0) + b"}(" + b"".join(text(str(k)) + b"h\x00" for k in range(30_000)) + b"u."


def instructions_without_end() -> bytes:
    return b"\x80\x02" + b"N0" * 50 * MILLION + b"N."


def numbers_without_end() -> bytes:
    return b"\x80\x02(" + (b"G" + bytes(8)) * 20 * MILLION + b"l."


def numbers_as_keys_without_end() -> bytes:
    return b"\x80\x02}(" + b"".join(b"J" + (k << 8).to_bytes(4, "little") + b"N" for k in range(3 * MILLION)) + b"u."


def empty_lists_without_end() -> bytes:
    return b"\x80\x02(" + b"]" * 100 * MILLION + b"l."


def empty_tables_without_end() -> bytes:
    return b"\x80\x02(" + b"}" * 100 * MILLION + b"l."


def records_without_end() -> bytes:
    return repeated(kept(b"cmmengine\nA\n", 0), b"h\x00)\x81", 20 * MILLION)


def records_by_name_without_end() -> bytes:
    return repeated(b"", b"(immengine\nA\n", 30 * MILLION)


def storages_without_end() -> bytes:
    setup = kept(b"(" + text("storage") + FLOATS + text("0") + text("cpu") + b"K\x01t", 0)
    return as_zip(repeated(setup, b"h\x00Q", 10 * MILLION), {"data/0": bytes(4)})


def tensors_without_end() -> bytes:
    setup = kept(storage("0", 1), 0) + kept(b"(h\x00K\x00(" + b"K\x01" * 8 + b"t(" + b"K\x01" * 8 + b"t\x89}t", 1)
    setup += kept(b"ctorch._utils\n_rebuild_tensor_v2\n", 2)
    return as_zip(repeated(setup, b"h\x02h\x01R", 10 * MILLION), {"data/0": bytes(4)})


def arrays_without_end() -> bytes:
    return repeated(kept(b"cnumpy.core.multiarray\n_reconstruct\n", 0), b"h\x00)R", 10 * MILLION)


def deep_lists() -> bytes:
    return b"\x80\x02" + b"]" * MILLION + b"a" * (MILLION - 1) + b"."


def deep_tuples() -> bytes:
    return b"\x80\x02)" + b"\x85" * 2 * MILLION + b"."


def deep_tables() -> bytes:
    return b"\x80\x02" + b"}N" * (MILLION // 2) + b"N" + b"s" * (MILLION // 2 - 1) + b"."


def doubled_tuples() -> bytes:
    return b"\x80\x02}" + text("state_dict") + b")" + b"2\x86" * 60 + b"s."


def list_in_itself() -> bytes:
    return b"\x80\x02}" + text("state_dict") + b"]q\x00h\x00a" + b"s."


def table_in_itself() -> bytes:
    return b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s."


PICKLES: dict[str, Callable[[], bytes]] = {
    function.__name__: function
    for function in (
        encoded_text, encoded_wide_text, copied_lists, copied_dictionaries, million_arguments,
        million_arguments_of_a_subclass, shared_arrays, million_element_keys, long_equal_keys, colliding_keys,
        colliding_tuples, colliding_places, far_places, wide_text, one_wide_text, wide_short_texts, large_numbers,
        one_large_number_as_key, long_names, long_lines, long_decimals, one_table_under_many_names,
        numbers_without_end, numbers_as_keys_without_end,
        instructions_without_end, empty_lists_without_end, empty_tables_without_end, records_without_end,
        records_by_name_without_end, storages_without_end, tensors_without_end, arrays_without_end, deep_lists,
        deep_tuples, deep_tables, doubled_tuples, list_in_itself, table_in_itself,
    )
}  # fmt: skip
