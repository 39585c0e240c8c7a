"""The options of the benchmarks, apart from what they measure, so that --help loads none of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from seresnet_hub.engines.export_facts import PRECISIONS as EXPORT_PRECISIONS

OURS, TIMM = "seresnet_hub", "timm"  # programs and loaders, as results name them
OTHER_DECODERS = ("pil", "region")  # this package with another of its decoders
PEERS = (TIMM, "datasets", "webdataset", "litdata", "mosaicml-streaming", *OTHER_DECODERS)
PRECISIONS = ("fp32", "tf32", "bf16")
MODES = ("eager", "compiled")
SETTINGS = ("default", "epilogue")
NETWORKS = ("plain", "timm", "own")  # ResNet-50, timm's SE-ResNet-50, this package's
NETWORK_BENCHMARKS = ("inference", "training")  # their results are kept as `benchmark_NAME.json` and such
TARGETS = ("sm_90",)
ENGINE_FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}  # engines, and the format of their files


def checkout(text: str) -> Path:
    """Return a folder that holds this package."""
    folder = Path(text).resolve()
    if not (folder / "seresnet_hub" / "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"{text}: no checkout of this repository; make one with git worktree add")
    return folder


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="measured processes each (default: 5)")
    parser.add_argument("--legacy", action="store_true", help="write the checkpoint in PyTorch's legacy format")
    parser.add_argument("--no-verify", action="store_true", help="convert without the comparison in float64")


def add_loader(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", default="digits", help="data set to repeat (default: the embedded digits)")
    parser.add_argument("--split", default="train")
    parser.add_argument("--peer", action="append", default=[], choices=[*PEERS, "all"], help="compare with it")
    parser.add_argument("--images", type=int, default=8000, metavar="N", help="images an epoch (default: 8000)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds; all loaders take turns in each")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="copies of an image, each augmented anew")
    parser.add_argument(
        "--against", type=checkout, metavar="FOLDER", help="compare with the package in another checkout"
    )
    parser.add_argument("--step-time", type=float, metavar="SECONDS", help="measure the stall share at this step time")
    parser.add_argument(
        "--remote", choices=("cold", "cached"),
        help="read from a double of the Hub on this machine, with empty caches or in a second epoch",
    )  # fmt: skip
    parser.add_argument("--latency-ms", type=float, default=0.0, metavar="MS", help="of each answer, with --remote")
    parser.add_argument(
        "--mbit", type=float, metavar="N", help="bandwidth in Mbit/s, with --remote (default: no limit)"
    )
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="NAME=PATH",
        help="run a peer by another Python; mosaicml-streaming needs an older huggingface_hub; repeatable",
    )  # fmt: skip
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the result into this PNG file")


def add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="folder of pictures")
    parser.add_argument(
        "--timm-inference", type=Path, metavar="FILE", help="timm's inference.py, from its repository, to compare with"
    )
    parser.add_argument(
        "--timm-passive", action="store_true", help="run it also with OMP_WAIT_POLICY=passive, as our command sets it"
    )
    parser.add_argument(
        "--model", action="append", metavar="NAME", help="repeatable (default: seresnet18 and seresnet50)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="the programs take turns in each")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of each program (default: 2)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet", help="of the answers")
    parser.add_argument(
        "--few", type=int, default=320, metavar="N",
        help="pictures of a shorter run, whose time is taken off, as it has the start too (default: 320)",
    )  # fmt: skip
    parser.add_argument(
        "--alone", type=int, default=960, metavar="N",
        help="images that are decoded without a network, and computed without decoding (default: 960)",
    )  # fmt: skip


def add_networks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="seresnet50", metavar="NAME", help="SE network (default: seresnet50)")
    parser.add_argument("--plain", default="resnet50", metavar="NAME", help="the same without SE (default: resnet50)")
    parser.add_argument(
        "--batch-size", type=int, action="append", metavar="N", help="repeatable (default: 16; on a GPU 1, 32 and 256)"
    )
    parser.add_argument(
        "--dtype", action="append", choices=PRECISIONS, help="repeatable (default: fp32; on a GPU bf16 and tf32)"
    )
    parser.add_argument("--mode", action="append", choices=MODES, help="repeatable (default: both)")
    parser.add_argument(
        "--network", action="append", choices=NETWORKS, help="measure it alone; repeatable (default: all three)"
    )
    parser.add_argument(
        "--inductor", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of Inductor's, on top of the usual ones; as in a recipe; repeatable",
    )  # fmt: skip
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="of the images (default: 224)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="all networks take turns in each")
    parser.add_argument(
        "--seconds", type=float, metavar="S",
        help="repeat calls until a measurement takes about so long (default: 0.25; on a CPU one call)",
    )  # fmt: skip
    parser.add_argument("--kernels", action="store_true", help="list the kernels that are made of one block of each")
    parser.add_argument(
        "--target", choices=TARGETS, help="time nothing: count the kernels of this GPU, without it, and predict times"
    )
    parser.add_argument("--build", action="store_true", help="with --target, also compile each of the kernels")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append what is known, as soon as it is: JSON lines")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the result into this PNG file")


def add_inference(parser: argparse.ArgumentParser) -> None:
    add_networks(parser)
    parser.add_argument(
        "--settings", choices=SETTINGS, default="default", help="of the compiler, for inference (default: default)"
    )
    parser.add_argument(
        "--peer", action="append", default=[], choices=[*ENGINE_FORMATS],
        help="export the networks and measure them in this engine too, on the CPU, by rounds in turn; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--precision", action="append", choices=EXPORT_PRECISIONS,
        help="of the exported networks; repeatable (default: fp32, int8, and of OpenVINO bf16)",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate", metavar="SOURCE", help="pictures for int8: a folder or data set (default: made ones)"
    )
    parser.add_argument(
        "--exports",
        type=Path,
        metavar="DIR",
        help="keep exported files there, for the next time",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write what is measured into this JSON file after each round"
    )
