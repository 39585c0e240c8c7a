"""The parts of the kit that train models, and what is done with these: runs of the scripts as people start them."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _kit import PYTHON, Kit, Running


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


NO_MODEL = "there is no model of the part e2e"


def model_of_e2e(kit: Kit) -> str | None:
    """Return the folder of the model that the part e2e has trained, None where it has not."""
    folder = kit.work / "e2e"
    return str(folder) if (folder / "config.json").exists() else None


def evaluation(kit: Kit) -> None:
    """The speed of validate.py, with all that makes it fast, on CIFAR-10 and on pictures of ImageNet's sizes."""
    folder = imagenet(kit, "imagenet_evaluation", training=0, validation=1 if kit.small else 240)
    size = "16" if kit.small else "256"
    fast = ("--fuse", "--compile", "--amp", "bf16", "--workers", str(workers(kit)), "--batch-size", size)
    models = {"imagenet": (model_of_e2e(kit), folder), "cifar10": ("seresnet20_cifar.c10", kit.data / "cifar10")}
    for name, (model, data) in models.items():
        if model is None:
            kit.record(f"evaluation_{name}", skipped=NO_MODEL)
            continue
        kit.run(f"evaluation_{name}", 60, [PYTHON, "scripts/validate.py", model, "--json", "--data", str(data), *fast])


def predictions(kit: Kit) -> None:
    """A table of predictions, by many workers and by few: images/s, and whether its rows are the same."""
    model = model_of_e2e(kit)
    if model is None:
        return kit.record("predictions", skipped=NO_MODEL)
    folder = imagenet(kit, "imagenet_predictions", training=0, validation=1 if kit.small else 80)
    fast = ("--fuse", "--amp", "bf16", "--decoder", "fast", "--batch-size", "16" if kit.small else "256", "--json")
    codes, found, tables = [], [], []
    for count in (workers(kit), workers(kit) // 4):
        table = kit.work / f"predictions_{count}.jsonl"
        words = [PYTHON, "scripts/predict.py", model, str(folder), "--output", str(table), *fast]
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
