"""Run the parts of the kit, the most wanted first, each in its own time; a failing one does not touch the others."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _kit import Kit, Running

PYTHON = sys.executable
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


# --- training runs ----------------------------------------------------------------------------------------------------


def train(kit: Kit, output: Path, *words: str) -> list[str]:
    return [PYTHON, "scripts/train.py", "--json", *words, "--output", str(output)]


def cifar10(kit: Kit) -> list[str]:
    """Return the options of all runs on CIFAR-10: compiled and in bf16."""
    small = ("batch_size=16",) if kit.small else ()
    return [
        "--recipe",
        "cifar10",
        "--data",
        str(kit.data / "cifar10"),
        "--set",
        "mixed_precision=bf16",
        "compile=true",
        *small,
    ]


def smoke(kit: Kit) -> None:
    """Runs that are killed and resumed, beside runs that are not, with `deterministic` and without: the same bits?

    All at once, as nothing is timed here.
    """
    steps, every = ("8", "3") if kit.small else ("300", "50")
    ends = time.time() + min(kit.budget(150), kit.left() - 8)
    workers = f"workers={max(1, min(3, kit.cores // 4))}"
    words = {
        name: [*cifar10(kit), "se_blocks=true", f"checkpoint_steps={every}", workers, f"deterministic={flag}",
               "--max-steps", steps]
        for name, flag in (("deterministic", "true"), ("default", "false"))
    }  # fmt: skip
    whole = {name: kit.begin(train(kit, kit.work / f"{name}_whole", *words[name])) for name in words}
    cut = {name: kit.begin(train(kit, kit.work / f"{name}_killed", *words[name])) for name in words}
    states = {}
    with ThreadPoolExecutor() as pool:
        found = {name: pool.submit(_kill_after_a_state, kit.work / f"{name}_killed", cut[name], ends) for name in words}
        states = {name: one.result() for name, one in found.items()}
    resumed = {name: kit.begin(train(kit, kit.work / f"{name}_killed", *words[name], "--resume")) for name in words}
    for name in words:
        codes = {
            kind: one.wait(ends - time.time(), grace=0)
            for kind, one in (("whole", whole[name]), ("resumed", resumed[name]))
        }
        digests = [digest(kit.work / f"{name}_{one}") for one in ("whole", "killed")]
        kit.record(
            f"smoke_{name}", rc=max(codes.values(), key=abs), codes=codes, seconds=whole[name].seconds,
            states_when_killed=states[name], whole=whole[name].result, resumed=resumed[name].result, digests=digests,
            same_bits=None if None in digests else digests[0] == digests[1],
        )  # fmt: skip


def _kill_after_a_state(output: Path, running: Running, ends: float) -> list[str]:
    """Kill a run as soon as it has kept its first state; return the states that there are then."""
    states: list[str] = []
    while running.process.poll() is None and time.time() < ends and not states:
        states = sorted(path.name for path in (output / "training").glob("step-*"))
        time.sleep(0.02)
    running.kill()
    return states


def digest(output: Path) -> str | None:
    """Return the sha256 of a model's tensors: its file names the time and the command as well."""
    file = output / "model.safetensors"
    if not file.exists():
        return None
    from safetensors import safe_open

    total = hashlib.sha256()
    with safe_open(file, framework="np") as opened:
        for name in sorted(opened.keys()):
            total.update(name.encode() + opened.get_tensor(name).tobytes())
    return total.hexdigest()


def imagenet(kit: Kit, name: str, *, training: int, validation: int) -> Path:
    """Return a folder in which the few ImageNet shards stand over and over, under names of their own."""
    folder = kit.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shards = sorted((kit.data / "imagenet").glob("*.parquet"))
    for split, count in (("train", training), ("validation", validation)):
        for number in range(count):
            link = folder / f"{split}-{number:05d}-of-{count:05d}.parquet"
            link.symlink_to(shards[number % len(shards)])
    return folder


def workers(kit: Kit) -> int:
    """Return how many loader workers a command that runs alone has."""
    return max(1, min(12, kit.cores - 2))


def e2e(kit: Kit) -> None:
    """The whole of train.py on `seresnet50_8xb32_in1k`: images/s, waiting for batches, an idle GPU, longest kernels."""
    # Of 75 pictures each: one epoch is longer than the run.
    data = imagenet(kit, "imagenet", training=12 if kit.small else 600, validation=1)
    small = ("model=seresnet18", "input_size=64", "batch_size=16") if kit.small else ()
    output = kit.work / "e2e"
    shutil.rmtree(output, ignore_errors=True)
    kit.run("e2e", 120, train(
        kit, output, "--recipe", "seresnet50_8xb32_in1k", "--data", str(data),
        "--max-steps", "60" if kit.small else "120", "--profile", str(kit.out / "profile.json"), "--set",
        "num_classes=1000", "mixed_precision=bf16", "compile=true", "se_blocks=true", "decoder=fast", "drop_last=true",
        f"workers={workers(kit)}", *small,
    ))  # fmt: skip


def evaluation(kit: Kit) -> None:
    """The speed of validate.py, with all that makes it fast, on CIFAR-10 and on pictures of ImageNet's sizes."""
    folder = imagenet(kit, "imagenet_evaluation", training=0, validation=1 if kit.small else 240)
    size = "16" if kit.small else "256"
    fast = ("--fuse", "--compile", "--amp", "bf16", "--workers", str(workers(kit)), "--batch-size", size)
    models = {"imagenet": (str(kit.work / "e2e"), folder), "cifar10": ("seresnet20_cifar.c10", kit.data / "cifar10")}
    for name, (model, data) in models.items():
        if name == "imagenet" and not (kit.work / "e2e" / "config.json").exists():
            kit.record(f"evaluation_{name}", skipped="there is no model of the part e2e")
            continue
        kit.run(f"evaluation_{name}", 60, [PYTHON, "scripts/validate.py", model, "--json", "--data", str(data), *fast])


def predictions(kit: Kit) -> None:
    """A table of predictions, by many workers and by few: images/s, and whether its rows are the same."""
    if not (kit.work / "e2e" / "config.json").exists():
        return kit.record("predictions", skipped="there is no model of the part e2e")
    folder = imagenet(kit, "imagenet_predictions", training=0, validation=1 if kit.small else 80)
    fast = ("--fuse", "--amp", "bf16", "--decoder", "fast", "--batch-size", "16" if kit.small else "256", "--json")
    codes, found, tables = [], [], []
    for count in (workers(kit), workers(kit) // 4):
        table = kit.work / f"predictions_{count}.jsonl"
        words = [PYTHON, "scripts/predict.py", str(kit.work / "e2e"), str(folder), "--output", str(table), *fast]
        running = kit.begin([*words, "--force", "--workers", str(count)])
        codes.append(running.wait(min(kit.budget(50), kit.left() - 6)))
        found.append({"workers": count, "seconds": running.seconds, "result": running.result})
        tables.append(hashlib.sha256(table.read_bytes()).hexdigest() if table.is_file() else None)
    same = None if None in tables else len(set(tables)) == 1
    return kit.record("predictions", rc=max(codes, key=abs), result=found[0]["result"], runs=found, same_bytes=same)


def cifar(kit: Kit) -> None:
    """`seresnet56_cifar` and `resnet56_cifar` side by side, in as many epochs as fit."""
    seconds = kit.left() - 12
    compiling, an_epoch = 75, 9  # both at once, on such a machine; estimates
    epochs = 1 if kit.small else min(30, int((seconds - compiling) // an_epoch))
    if epochs < 2 and not kit.small:
        return kit.record("cifar", skipped=f"{seconds:.0f} s are left")
    names = ("seresnet20_cifar", "resnet20_cifar") if kit.small else ("seresnet56_cifar", "resnet56_cifar")
    running: dict[str, Running] = {}
    for name in names:
        fields = (
            f"model={name}", f"se_blocks={str(name.startswith('se')).lower()}", f"epochs={epochs}",
            f"warmup_epochs={0 if kit.small else 1}", f"workers={max(1, min(6, kit.cores // 2 - 1))}",
        )  # fmt: skip
        few = ("--max-steps", "4") if kit.small else ()
        running[name] = kit.begin(train(kit, kit.work / name, *cifar10(kit), *fields, *few))
    ends = time.time() + min(kit.budget(seconds), kit.left() - 10)
    for name, one in running.items():
        code = one.wait(ends - time.time())
        summary = kit.work / name / "summary.csv"
        kit.record(
            f"cifar_{name}", rc=code, seconds=one.seconds, epochs=epochs, result=one.result,
            summary=summary.read_text().splitlines() if summary.exists() else None,
        )  # fmt: skip
    with tarfile.open(kit.out / "runs.tar.gz", "w:gz") as archive:
        for name in names:
            for file in ("model.safetensors", "config.json", "README.md", "summary.csv", "curves.png"):
                if (kit.work / name / file).exists():
                    archive.add(kit.work / name / file, f"{name}/{file}")
    return None


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
