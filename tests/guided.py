"""Fuzz with guidance by coverage: inputs that reach new code are kept, and changed further.

    python tests/guided.py pickles --seconds 3600
    python tests/guided.py configs --seconds 600

Needs atheris (`pip install '.[fuzz]'`). Each finding is one line, and its input a file in `--findings`. The last line
of stdout is a JSON object. The inputs that are worth keeping are in `--corpus`, where a later run begins.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

SECONDS_PER_INPUT = 20
MEGABYTES = 2048
LONGEST_INPUT = 4096
# What no file may cause, by the names of Python's audit events.
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class", "socket.connect",
    "marshal.loads", "ctypes.dlopen",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600, metavar="N", help="how long to fuzz (default: 600)")
    parser.add_argument("--findings", type=Path, default=Path("findings"), metavar="FOLDER")
    parser.add_argument("--corpus", type=Path, metavar="FOLDER", help="inputs to begin with, and to keep new ones in")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.findings.mkdir(parents=True, exist_ok=True)
    if options.child:
        fuzz(options.target, options.seconds, options.findings, options.corpus)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        corpus = options.corpus or Path(scratch)
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS[options.target]()):
            (corpus / f"seed-{number}").write_bytes(seed)
        result = supervise(options, corpus)
    print(json.dumps(result))
    return 1 if result["findings"] else 0


def supervise(options: argparse.Namespace, corpus: Path) -> dict[str, Any]:
    """Let children fuzz until the time is over: one ends where an input takes too long or too much memory."""
    start, executions, ended = time.monotonic(), 0, 0
    coverage = 0
    while (left := options.seconds - (time.monotonic() - start)) > 1:
        command = [sys.executable, __file__, options.target, "--child", "--seconds", str(int(left))]
        command += ["--findings", str(options.findings), "--corpus", str(corpus)]
        done = 0
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as child:
            for line in child.stderr or ():
                sys.stderr.write(line)
                sys.stderr.flush()
                if found := re.match(r"#(\d+)\s", line):
                    done = int(found.group(1))
                if found := re.search(r" cov: (\d+)", line):
                    coverage = max(coverage, int(found.group(1)))
        executions += done
        if child.returncode == 0:
            break
        ended += 1
        if ended > 100 or done == 0:
            break
    findings = sorted(path.name for path in options.findings.iterdir() if path.suffix != ".txt")
    return {
        "target": options.target, "executions": executions, "seconds": round(time.monotonic() - start),
        "coverage": coverage, "children_that_ended": ended, "findings": findings,
    }  # fmt: skip


def fuzz(target: str, seconds: int, findings: Path, corpus: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["seresnet_hub", "pickletools"]):
        act = TARGETS[target]()
    from seresnet_hub.errors import InputError

    events: list[str] = []
    sys.addaudithook(lambda event, arguments: events.append(event) if event in FORBIDDEN else None)
    known: set[str] = set()

    def once(data: bytes) -> None:
        events.clear()
        start = time.monotonic()
        try:
            act(data)
        except InputError as error:
            if not str(error).isprintable():
                report("unprintable", data, str(error)[:100])
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            report(f"{type(error).__name__}-{Path(last.filename).stem}-{last.lineno}", data, traceback.format_exc())
        if events:
            report(f"executed-{events[0]}", data, ", ".join(events))
        if time.monotonic() - start > SECONDS_PER_INPUT:
            report("slow", data, f"{time.monotonic() - start:.1f} s")

    def report(kind: str, data: bytes, detail: str) -> None:
        if kind not in known:
            known.add(kind)
            name = f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
            (findings / name).write_bytes(data)
            (findings / f"{name}.txt").write_text(detail)
            print(f"FINDING {findings / name}", file=sys.stderr, flush=True)

    words = Path(tempfile.mkstemp(suffix=".dict")[1])
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in WORDS[target]()))
    arguments = [sys.argv[0], f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT}", f"-dict={words}",
                 f"-rss_limit_mb={MEGABYTES}", f"-timeout={3 * SECONDS_PER_INPUT}", f"-artifact_prefix={findings}/",
                 "-print_final_stats=1", str(corpus)]  # fmt: skip
    for codec in ("ascii", "latin_1", "raw_unicode_escape", "unicode_escape"):  # imported where text is written so
        importlib.import_module(f"encodings.{codec}")
    for seed in SEEDS[target]():  # what reading imports on its way is imported now
        with contextlib.suppress(InputError):
            act(seed)
    atheris.Setup(arguments, once)
    atheris.Fuzz()


# --- checkpoints ------------------------------------------------------------------------------------------------------

NUMBERS = b"\0\0\x80\x3f" * 4


def pickles() -> Callable[[bytes], None]:
    """Return what reads bytes as a file, or as the pickle in a zip or in a legacy file: the first byte says which."""
    import torch

    from seresnet_hub.checkpoints.reader import read_bytes
    from seresnet_hub.checkpoints.reading_budget import Refused

    def act(data: bytes) -> None:
        kind, inner = data[:1], data[1:]
        if kind == b"z":
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("archive/data.pkl", inner)
                archive.writestr("archive/data/0", NUMBERS)
            content = buffer.getvalue()
        elif kind == b"l":
            content = LEGACY_HEAD + inner
        else:
            content = inner
        if not content:
            return
        whole = torch.frombuffer(bytearray(content), dtype=torch.uint8).clone()
        try:
            read_bytes(whole, Future())
        except Refused:
            raise
        except Exception:
            return  # `read_checkpoint` makes one line of it

    return act


LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}X\r\0\0\0little_endian\x88s."


def pickle_seeds() -> list[bytes]:
    import checkpoint_seeds
    from checkpoint_bytes import storage, tensor, text

    seeds = []
    for name, make in checkpoint_seeds.SEEDS.items():
        content = make()
        whole = content if len(content) < LONGEST_INPUT else b""
        inner = checkpoint_seeds.pickle_in(content)
        kind = b"z" if content.startswith(b"PK") else b"f"
        if "legacy" in name:
            kind, inner = b"l", content[content.index(b"little_endian") :].split(b".", 1)[1]
        seeds += [kind + inner[: LONGEST_INPUT - 1], *([b"f" + whole] if whole and kind != b"f" else ())]
    one = b"\x80\x02}" + text("w") + tensor(storage("0", 4), (2, 2), (2, 1)) + b"s."
    return [b"z" + one, b"l" + one + b"\x80\x02]X\x01\0\0\x000a.\x04\0\0\0\0\0\0\0" + NUMBERS, *seeds]


def pickle_words() -> list[bytes]:
    from checkpoint_seeds import FRAGMENTS, OPCODES

    return [*FRAGMENTS, *OPCODES]


# --- configs ----------------------------------------------------------------------------------------------------------


def configs() -> Callable[[bytes], None]:
    from seresnet_hub.models.config_checks import check_architecture, checked_config

    path = Path(tempfile.mkdtemp(), "config.json")

    def act(data: bytes) -> None:
        path.write_bytes(data)
        checked_config(path)
        check_architecture(path)

    return act


def config_seeds() -> list[bytes]:
    trained = {
        "architecture": "seresnet50", "num_classes": 3, "num_features": 2048, "global_pool": "avg",
        "model_args": {"in_chans": 3, "layers": [3, 4, 6, 3]}, "label_names": ["a", "b", "c"],
        "label_descriptions": {"a": "b"},
        "pretrained_cfg": {
            "tag": "x", "input_size": [3, 224, 224], "test_input_size": [3, 288, 288], "mean": [0.5, 0.5, 0.5],
            "std": [0.2, 0.2, 0.2], "crop_pct": 0.95, "interpolation": "bicubic", "crop_mode": "center",
            "num_classes": 3, "first_conv": "conv1", "classifier": "fc", "license": "mit",
        },
    }  # fmt: skip
    plain = {"architecture": "resnet18", "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32]}
    return [json.dumps(one).encode() for one in (trained, plain, {})]


def config_words() -> list[bytes]:
    seed = config_seeds()[0].decode()
    keys = re.findall(r'"\w+"', seed)
    values = (
        "null",
        "true",
        "[]",
        "{}",
        "-1",
        "1e999",
        "NaN",
        "Infinity",
        "[[[[",
        '{"a":',
        "9" * 25,
        '"\\ud800"',
        '"\\u0000"',
    )
    return [word.encode() for word in (*dict.fromkeys(keys), *values)]


TARGETS: dict[str, Callable[[], Callable[[bytes], None]]] = {"pickles": pickles, "configs": configs}
SEEDS: dict[str, Callable[[], list[bytes]]] = {"pickles": pickle_seeds, "configs": config_seeds}
WORDS: dict[str, Callable[[], list[bytes]]] = {"pickles": pickle_words, "configs": config_words}

if __name__ == "__main__":
    sys.exit(main())
