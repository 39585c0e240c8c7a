"""Run the parts of the kit, the most wanted first, each in its own time; a failing one does not touch the others."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _kit import PYTHON, Kit
from _runs import cifar, e2e, evaluation, predictions, smoke

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
# Inductor's settings that are tried in training, the most promising first; each costs a compilation.
VARIANTS: tuple[tuple[str, ...], ...] = (("realize_reads_threshold=2",), ("triton.cudagraphs=true",))
NETWORKS = ("plain", "timm", "own")


def env(kit: Kit) -> None:
    """What the machine is, and what its GPU reaches at most."""
    kit.run("env", 60, [PYTHON, str(FOLDER / "ceilings.py")])


def tests(kit: Kit) -> None:
    """The project's tests that need a GPU."""
    files = sorted(str(path) for path in Path("tests").glob("test_*.py") if "mark.gpu" in path.read_text("utf-8"))
    # The machine has other packages than the tests were written with, whose warnings say nothing about the GPU.
    options = ["-o", "addopts=--strict-markers", "-W", "default", "-p", "no:cacheprovider", "--color=no",
               "--tb=short", "--show-capture=stdout"]  # fmt: skip
    on_cpu = ("env", "GPU_TESTS_ON_CPU=1") if kit.small else ()
    if find_spec("xdist") and not kit.small:  # most of the time goes to compiling, on one core each
        options += ["-n", "4"]
    kit.run("tests", 200, [*on_cpu, PYTHON, "-m", "pytest", "-v", "-rA", "-m", "gpu", *options, *files])


def command(kit: Kit, what: str, *options: str) -> list[str]:
    """Return the command that measures networks in bf16."""
    networks = ("--model", "seresnet18", "--plain", "resnet18", "--size", "32") if kit.small else ()
    return [PYTHON, "scripts/benchmark.py", what, "--json", "--dtype", "bf16", *networks, *options]


def benchmark(kit: Kit, what: str, *options: str) -> list[str]:
    """Return the command that also writes down what is known, in the usual number of rounds."""
    rounds = () if "--rounds" in options else ("--rounds", "2" if kit.small else "7")
    return command(kit, what, "--log", str(kit.results), *rounds, *options)


def batch(kit: Kit, *sizes: int) -> list[str]:
    chosen = (2,) if kit.small else sizes
    return [word for size in chosen for word in ("--batch-size", str(size))]


def training_steps(kit: Kit) -> list[str]:
    return ["--mode", "compiled", *batch(kit, 256)]


def inference_calls(kit: Kit) -> list[str]:
    return ["--mode", "compiled", *batch(kit, 256, 1)]


def epilogue_calls(kit: Kit) -> list[str]:
    return ["--mode", "compiled", "--settings", "epilogue", *batch(kit, 256)]


def variant_steps(kit: Kit, settings: Sequence[str]) -> list[str]:
    return [*training_steps(kit), "--network", "own", *(word for one in settings for word in ("--inductor", one))]


def warm(kit: Kit) -> None:
    """Compile what `training` and `inference` measure, all networks at the same time, into the caches of compilers."""
    # At worst one runs out of memory beside the others, and is compiled where it is measured.
    wanted = {"training": training_steps(kit), "inference": inference_calls(kit)}
    compile_at_once(kit, "warm", 110, {
        f"{what} {network}": command(kit, what, *ONCE, *options, "--network", network)
        for what, options in wanted.items() for network in NETWORKS
    })  # fmt: skip


def warm_rest(kit: Kit) -> None:
    """Compile what `epilogue` and `variants` measure, beside what is not timed."""
    # A product's best candidate is a part of what Inductor keeps, and beside other work it may be the wrong one: what
    # is kept of these is Triton's alone, the compiled candidates.
    elsewhere = ("env", f"TORCHINDUCTOR_CACHE_DIR={kit.work / 'inductor'}")
    calls = {
        f"epilogue {one}": [*elsewhere, *command(kit, "inference", *ONCE, *epilogue_calls(kit), "--network", one)]
        for one in NETWORKS
    }  # fmt: skip
    steps = {",".join(one): command(kit, "training", *ONCE, *variant_steps(kit, one)) for one in tried(kit)}
    compile_at_once(kit, "warm_rest", 150, {**calls, **steps})


ONCE = ("--rounds", "1", "--seconds", "0")


def compile_at_once(kit: Kit, part: str, seconds: float, commands: Mapping[str, list[str]]) -> None:
    """Run commands at the same time; of their results, only how they ended counts."""
    ends = time.time() + min(kit.budget(seconds), kit.left() - 10)
    running = {name: kit.begin(words) for name, words in commands.items()}
    codes = {name: one.wait(ends - time.time(), grace=0) for name, one in running.items()}
    kit.record(
        part, rc=max(codes.values(), key=abs), codes=codes, seconds={name: one.seconds for name, one in running.items()}
    )


def forget_tuning() -> None:
    """Remove Inductor's choices among the configurations of its own kernels, but nothing that was compiled.

    They may have been timed beside other work; what is measured makes them again, alone, in little time.
    """
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    for file in Path(folder).rglob("*.best_config") if folder else ():
        file.unlink(missing_ok=True)


def training(kit: Kit) -> None:
    """Training steps of ResNet-50, timm's SE-ResNet-50 and this package's."""
    kit.run("training", 120, benchmark(kit, "training", *training_steps(kit)))


def inference(kit: Kit) -> None:
    """Inference of the same three, ours fused."""
    kit.run("inference", 90, benchmark(kit, "inference", *inference_calls(kit)))


def epilogue(kit: Kit) -> None:
    """Inference where 1 x 1 convolutions are matrix products that take in what follows them."""
    kit.run("epilogue", 120, benchmark(kit, "inference", *epilogue_calls(kit)))


def kernels(kit: Kit) -> None:
    """The kernels that Inductor makes of one block on this GPU; what is measured on the way is of no interest."""
    for what in ("training", "inference"):
        kit.run(f"kernels_{what}", 60, benchmark(kit, what, "--kernels", "--mode", "eager", *ONCE, *batch(kit, 16)))


def tried(kit: Kit) -> tuple[tuple[str, ...], ...]:
    return VARIANTS[: 1 if kit.small else None]


def variants(kit: Kit) -> None:
    """What settings of Inductor bring to training steps of this package's blocks."""
    for settings in tried(kit):
        kit.run("variants", 90, benchmark(kit, "training", *variant_steps(kit, settings)), given=settings)


Part = Callable[[Kit], None]
# In this order; the parts of a group run at the same time, as none of them measures speed.
GROUPS: tuple[tuple[Part, ...], ...] = (
    (env,), (warm,), (training,), (inference,), (e2e,), (evaluation,), (predictions,),
    (tests, smoke), (kernels, warm_rest), (variants,), (cifar,), (epilogue,),
)  # fmt: skip
NAMES = tuple(part.__name__ for group in GROUPS for part in group)
LEAST = 20  # seconds that a part needs to be begun


def run_parts(kit: Kit, names: Sequence[str]) -> None:
    """Run the parts of these names."""
    for group in GROUPS:
        chosen = [part for part in group if part.__name__ in names]
        if not chosen:
            continue
        forget_tuning()
        print(f"\n== {', '.join(part.__name__ for part in chosen)}: {kit.left():.0f} s are left", flush=True)
        with ThreadPoolExecutor(1 if kit.small else len(chosen)) as pool:
            list(pool.map(lambda part: run_part(kit, part), chosen))


def run_part(kit: Kit, part: Part) -> None:
    """Run one part; what it raises is its result."""
    if kit.left() < LEAST:
        return kit.record(part.__name__, skipped=f"{kit.left():.0f} s are left")
    try:
        part(kit)
    except Exception as error:
        kit.record(part.__name__, failed=f"{type(error).__name__}: {error}")
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=530, metavar="SECONDS", help="of everything (default: 530)")
    parser.add_argument(
        "--start", type=float, default=time.time(), metavar="TIME", help="when that began (default: now)"
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for what is not kept")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    options = parser.parse_args()
    names = os.environ.get("KIT_PARTS", "").replace(",", " ").split() or list(NAMES)
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"KIT_PARTS names {', '.join(unknown)}; the parts are {', '.join(NAMES)}")
    os.chdir(ROOT)
    small = os.environ.get("KIT_SMALL") == "1"
    kit = Kit(
        options.out,
        options.work / "runs",
        ROOT / ".device" / "data",
        start=options.start,
        limit=options.limit,
        small=small,
    )
    shutil.rmtree(kit.work, ignore_errors=True)
    kit.work.mkdir(parents=True)
    commit = ROOT / ".device" / "commit"
    kit.record("kit", small=small, parts=names, commit=commit.read_text().strip() if commit.exists() else None)

    def stop(number: int, _: Any) -> None:
        kit.end()
        kit.record("stopped", by=signal.Signals(number).name)
        os._exit(0)

    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_REAL, max(kit.left() - 1, 0.1))
    run_parts(kit, names)
    kit.end()


if __name__ == "__main__":
    main()
