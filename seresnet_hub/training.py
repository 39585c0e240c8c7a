"""Train a model by a recipe, on as many processes as were started."""

from __future__ import annotations

import copy
import csv
import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, distribute_bn
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from seresnet_hub.cards import card_of, render
from seresnet_hub.data import EMBEDDED, Split, epoch_plan, loader, open_split
from seresnet_hub.device import Mixer, finish, on_device
from seresnet_hub.environment import code_commit, package_version, versions
from seresnet_hub.errors import InputError
from seresnet_hub.evaluation import Accuracy, evaluate
from seresnet_hub.folder import CURVES_NAME, FACTS_KEY, SUMMARY_NAME, fill_folder, replacing, timm_config, write_model
from seresnet_hub.hub import load
from seresnet_hub.images import seed_from
from seresnet_hub.models import create, list_models, resolve_name
from seresnet_hub.pictures import draw_curves
from seresnet_hub.recipes import RECIPES, Recipe
from seresnet_hub.sizes import sizes_of
from seresnet_hub.splits import require_same_shards

STATE_NAME = Path("training", "state.pt")
# Fields that do not change what is learnt.
NOT_LEARNT = frozenset({"data", "workers", "license", "checkpoint_steps", "weights"})
STATE_KEYS = frozenset({"model", "optimizer", "history", "losses", "scaler", "average"})


def train(
    recipe: Recipe,
    *,
    output: str | Path,
    data: str | None = None,
    resume: bool = False,
    max_steps: int | None = None,
) -> dict[str, Any]:
    """Train `recipe` on `data` (default: the recipe's own) into the folder `output`, and return the measured result.

    After each epoch `output` gets `model.safetensors`, `config.json` and `README.md` for timm, `summary.csv` and
    `curves.png`, and `training/` with what `resume` needs. `max_steps` ends the run early, counted from its very start.
    Runs on every process that the launcher started. Errors: `InputError` on a bad argument or data set, before anything
    is written.
    """
    output = Path(output)

    # ------------------------------------------------------------------ arguments
    source = data or recipe.data
    if source is None:
        raise InputError(f"recipe {recipe.name!r} has no data set of its own: name one with --data")
    if max_steps is not None and max_steps < 1:
        raise InputError(f"max_steps={max_steps}: must be at least 1")
    if not timm.is_model(resolve_name(recipe.model).split(".")[0]):
        raise InputError(f"recipe {recipe.name!r}: timm knows no model {recipe.model!r}")
    if resume and not (output / STATE_NAME).is_file():
        raise InputError(f"nothing to resume: {output / STATE_NAME} does not exist")
    _require_writable(output)
    if not resume and output.exists() and (not output.is_dir() or any(output.iterdir())):
        way_out = "continue it with --resume, or choose" if (output / STATE_NAME).is_file() else "choose"
        raise InputError(f"{output} already exists: {way_out} another --output")

    # ------------------------------------------------------------------ processes
    # Accelerate joins CPU processes only when it is told that there is nothing but a CPU.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=recipe.mixed_precision)
    _share_cores(accelerator)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    main = accelerator.is_main_process

    def say(line: str) -> None:
        if main:
            tqdm.write(line, file=sys.stderr)

    say(f"{world_size} process{'es' if world_size > 1 else ''} on {accelerator.device.type}")
    asked = int(os.environ.get("WORLD_SIZE", world_size))
    if asked != world_size:  # they would all write the same folder
        raise InputError(f"the launcher started {asked} processes, but they were not joined: {world_size} runs here")
    if world_size == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        say(
            "warning: the launcher was asked for more processes but started only this one; "
            "on CPUs start them with: torchrun --nproc_per_node N scripts/train.py"
        )
    if recipe.batch_size < world_size:
        raise InputError(f"batch_size={recipe.batch_size} cannot be shared by {world_size} processes")

    # ------------------------------------------------------------------ data
    with accelerator.main_process_first():
        train_split = open_split(source, recipe.train_split)
    eval_split = open_split(source, recipe.eval_split)
    num_classes = _num_classes(recipe, train_split)
    plan = epoch_plan(train_split, recipe, seed=recipe.seed, epoch=0)
    steps_per_epoch = plan.steps
    if steps_per_epoch == 0:
        way_out = f", less than a batch of {recipe.batch_size}: set drop_last=false" if train_split.rows else ""
        raise InputError(f"split {train_split.name!r} of {source} has {train_split.rows} images{way_out}")
    total_steps = recipe.epochs * steps_per_epoch
    last_step = min(total_steps, max_steps or total_steps)
    say(
        f"{train_split.rows:,} training and {eval_split.rows:,} {eval_split.name} images of {num_classes} classes, "
        f"{steps_per_epoch} steps an epoch, {last_step:,} steps"
    )

    # ------------------------------------------------------------------ model
    torch.manual_seed(recipe.seed)  # the same start on every process
    with accelerator.main_process_first():
        model = _start(recipe, num_classes).to(memory_format=torch.channels_last)
    config = _config(recipe, model)
    model.pretrained_cfg = config  # type: ignore[assignment]  # evaluation reads its transform from here, as a user of the saved model does
    _require_trainable(model, recipe, images=plan.share(steps_per_epoch - 1, world_size) * recipe.repeated_augmentation)
    if (recipe.mixup or recipe.cutmix) and plan.share(0, world_size) * recipe.repeated_augmentation % 2:
        raise InputError(f"batch_size={recipe.batch_size}: each of {world_size} processes needs an even number to mix")
    try:
        optimizer = create_optimizer_v2(
            model, recipe.optimizer, lr=recipe.learning_rate, weight_decay=recipe.weight_decay,
            momentum=recipe.momentum, filter_bias_and_bn=not recipe.decay_all,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer={recipe.optimizer}: {error}") from error
    schedule = _schedule(recipe, optimizer, steps_per_epoch, total_steps)
    average = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None
    prepared, optimizer = accelerator.prepare(model, optimizer)

    # ------------------------------------------------------------------ resume
    step, seen = 0, 0
    history: list[dict[str, float]] = []  # a row an epoch
    losses: list[float] = []  # of each step, the mean over its batch
    if resume:
        state = _read_state(output / STATE_NAME, _settings(recipe, train_split), total_steps)
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
            if average is not None:
                average.module.load_state_dict(state["average"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"cannot resume: {output / STATE_NAME} does not fit {recipe.model} ({error})") from error
        require_same_shards(train_split, state["shards"])
        step, seen = state["step"], state["seen"]
        history, losses = state["history"], state["losses"].tolist()
        say(f"resuming {output} at step {step:,} of {last_step:,}")

    def state_now() -> dict[str, Any]:
        return {
            "settings": _settings(recipe, train_split), "step": step, "seen": seen, "history": history,
            "losses": torch.tensor(losses, dtype=torch.float64), "shards": train_split.fingerprint,
            "model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
            "average": average.module.state_dict() if average is not None else {},
        }  # fmt: skip

    # ------------------------------------------------------------------ loop
    precision = next(model.parameters()).dtype
    measured = model if average is None else average.module
    mixer = Mixer(recipe, num_classes, accelerator.device)
    accuracy: Accuracy | None = None
    trained, seconds = 0, 0.0
    with tqdm(total=last_step, initial=step, desc=f"training {recipe.model}", unit="step", disable=not main) as bar:
        while step < last_step:
            epoch, position = divmod(step, steps_per_epoch)
            batches = loader(
                train_split, None, recipe, rank=rank, world_size=world_size, workers=recipe.workers, seed=recipe.seed,
                epoch=epoch, position=position,
            )  # fmt: skip
            prepared.train()
            step_losses: list[torch.Tensor] = []  # on the device: reading one would wait for it
            start = time.perf_counter()
            for batch in on_device(batches, accelerator.device):
                # Drop-outs draw from the step's own stream, so a resumed run draws what the uninterrupted one drew.
                torch.manual_seed(seed_from(recipe.seed, step, rank))
                schedule.step_update(step)
                images = finish(batch, mean=config["mean"], std=config["std"], dtype=precision)
                images, targets = mixer(images, batch.labels, batch.mask, recipe.seed, step, rank)
                optimizer.zero_grad()
                loss = torch.zeros((), device=accelerator.device)
                pieces = list(zip(*(t.chunk(recipe.accumulation) for t in (images, targets, batch.mask)), strict=True))
                for number, (piece, wanted, counts) in enumerate(pieces):
                    waits = number < len(pieces) - 1  # only the last piece's gradients are sent to the other processes
                    with accelerator.no_sync(prepared) if waits else nullcontext():
                        with accelerator.autocast():
                            logits = prepared(piece)
                        part = (_losses(logits.to(precision), wanted, recipe) * counts).sum() / batch.total
                        # Processes average their gradients; times their number, that is the mean over the whole batch.
                        accelerator.backward(part * world_size)
                    loss += part.detach()
                if recipe.clip_grad:
                    accelerator.clip_grad_norm_(model.parameters(), recipe.clip_grad)
                optimizer.step()
                step_losses.append(loss)
                step, seen, trained = step + 1, seen + batch.total, trained + batch.total
                if average is not None:
                    average.update(model, step)
                bar.update()
                if step % 10 == 0 and main:
                    bar.set_postfix(epoch=epoch + 1, loss=f"{loss.item() * world_size:.3f}", refresh=False)
                if step == last_step:
                    break
                if recipe.checkpoint_steps and step % recipe.checkpoint_steps == 0 and step % steps_per_epoch:
                    losses += _summed(step_losses, accelerator)
                    step_losses = []
                    if main:
                        _save_state(output, state_now())
            losses += _summed(step_losses, accelerator)
            seconds += time.perf_counter() - start
            skipped = int(accelerator.reduce(torch.tensor(len(batches.skipped), device=accelerator.device)).item())
            seen, trained = seen - skipped, trained - skipped
            if skipped:
                say(f"epoch {epoch + 1}: {skipped} undecodable images were left out")

            # -------------------------------------------------------------- end of an epoch, or of the run
            if world_size > 1:
                distribute_bn(model, world_size, reduce=True)
                if average is not None:  # DistributedDataParallel lets the first process's statistics count meanwhile
                    distribute_bn(average.module, world_size, reduce=False)
            digest = _same_on_all_ranks(measured)
            if not all(tensor.isfinite().all() for tensor in measured.state_dict().values()):
                raise InputError(
                    f"the weights are no longer finite after step {step:,}: lower learning_rate={recipe.learning_rate} "
                    "(nothing of this epoch was written)"
                )
            accuracy = _evaluate(measured, eval_split, recipe, accelerator)
            say(
                f"epoch {epoch + 1}/{recipe.epochs}: {accuracy.top1:.2f} % top-1, {accuracy.top5:.2f} % top-5 over "
                f"{accuracy.seen:,} {eval_split.name} images; weights {digest[:12]} on {world_size} process(es)"
            )
            history.append({
                "step": step, "epoch": step / steps_per_epoch, "learning_rate": optimizer.param_groups[0]["lr"],
                "train_loss": statistics.fmean(losses[int(history[-1]["step"]) if history else 0 :]),
                "top1": accuracy.top1, "top5": accuracy.top5,
            })  # fmt: skip
            if main:
                facts = _facts(recipe, source, accuracy, step=step, seen=seen, world_size=world_size)
                _save(output, measured, train_split.class_names, facts, state_now())
            accelerator.wait_for_everyone()
    if accuracy is None:  # a finished run was resumed
        accuracy = _evaluate(measured, eval_split, recipe, accelerator)
    accelerator.end_training()
    return {
        "output": str(output),
        "recipe": recipe.name,
        "model": recipe.model,
        "steps": step,
        "epochs": round(step / steps_per_epoch, 4),
        "seen": seen,
        "top1": round(accuracy.top1, 4),
        "top5": round(accuracy.top5, 4),
        "images_per_second": round(trained / seconds, 1) if trained else 0.0,
    }


def _start(recipe: Recipe, num_classes: int) -> nn.Module:
    """Return the model as training begins: random, or the recipe's weights, with a new classifier for other classes."""
    options: dict[str, Any] = {"num_classes": num_classes}
    if recipe.drop_path:
        options["drop_path_rate"] = recipe.drop_path
    if recipe.weights is None:
        return create(recipe.model, pretrained=False, **options)
    model = load(recipe.weights, **options)
    found, wanted = model.pretrained_cfg["architecture"], resolve_name(recipe.model).split(".")[0]  # type: ignore[index]
    if found != wanted:
        raise InputError(f"weights={recipe.weights} are of {found}, but the recipe trains {wanted}: set model={found}")
    return model


def _schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int, total_steps: int) -> Scheduler:
    options: dict[str, Any] = {
        "warmup_t": recipe.warmup_epochs * steps_per_epoch, "warmup_lr_init": recipe.warmup_learning_rate,
        "warmup_prefix": False, "t_in_epochs": False,
    }  # fmt: skip
    if recipe.schedule == "cosine":
        return CosineLRScheduler(optimizer, t_initial=total_steps, **options)
    # timm's decays at the step before the one it is told.
    decays = [epoch * steps_per_epoch + 1 for epoch in recipe.decay_epochs]
    return MultiStepLRScheduler(optimizer, decay_t=decays, decay_rate=recipe.decay_rate, **options)


def _losses(logits: torch.Tensor, targets: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Return the loss of each image; `targets` are labels, or class probabilities with all smoothing in them."""
    smoothing = 0.0 if targets.is_floating_point() else recipe.label_smoothing
    if recipe.loss == "softmax":
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    binary = BinaryCrossEntropy(smoothing=smoothing, target_threshold=recipe.target_threshold, reduction="none")
    return binary(logits, targets).mean(dim=1)


def _summed(values: list[torch.Tensor], accelerator: Accelerator) -> list[float]:
    """Return the values, each summed over the processes."""
    if not values:
        return []
    summed: torch.Tensor = accelerator.reduce(torch.stack(values).double(), reduction="sum")
    return summed.tolist()


def _require_writable(output: Path) -> None:
    """Raise `InputError` where nothing could be written to `output` after an epoch's work."""
    if output.is_symlink() and not output.exists():
        raise InputError(f"cannot write to {output}: it is a link to nothing")
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {output}: {error.strerror or error}") from error


def _require_trainable(model: nn.Module, recipe: Recipe, *, images: int) -> None:
    """Raise `InputError` where the model cannot take the smallest batch of the recipe's size; computes shapes only."""
    try:
        with torch.no_grad():
            size = recipe.input_size
            copy.deepcopy(model).to("meta").train()(torch.zeros(images, 3, size, size, device="meta"))
    except Exception as error:  # whatever the model makes of it
        raise InputError(
            f"{recipe.model} cannot train on {images} images of {recipe.input_size} pixels: {error}"
        ) from error


def _share_cores(accelerator: Accelerator) -> None:
    """Let the processes on this machine share its cores, where a launcher has left each of them a single thread.

    `accelerate launch` and `torchrun` set OMP_NUM_THREADS=1 on their own; a person's own setting is kept otherwise.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if accelerator.device.type == "cpu" and launched and os.environ.get("OMP_NUM_THREADS") == "1":
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_processes))


def _num_classes(recipe: Recipe, split: Split) -> int:
    named = len(split.class_names) if split.class_names else None
    if recipe.num_classes and named and recipe.num_classes != named:
        raise InputError(f"num_classes={recipe.num_classes}, but {split.source} has {named} classes")
    number = recipe.num_classes or named
    if not number:
        raise InputError(f"{split.source} does not say how many classes it has: add --set num_classes=N")
    return number


# What timm's config says of the weights it names, and not of those trained here.
OTHER_WEIGHTS_FACTS = frozenset(
    {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "tag", "custom_load", "license", "description",
     "origin_url", "paper_name", "paper_ids", "notes", "test_input_size", "test_crop_pct", "test_pool_size",
     "label_names", "label_descriptions", "label_offset"}
)  # fmt: skip


def _config(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """Return timm's config of the weights to be trained: the architecture's facts, and the recipe's preprocessing."""
    size = recipe.eval_size or recipe.input_size
    given: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    pool = given.get("pool_size")  # the size of the last map, where the model has one (it scales with the input)
    if pool:
        pool = tuple(max(1, side * size // given["input_size"][-1]) for side in pool)
    return {
        **{key: value for key, value in given.items() if key not in OTHER_WEIGHTS_FACTS},
        "num_classes": model.num_classes,
        "input_size": (3, size, size),
        "pool_size": pool,
        "interpolation": recipe.interpolation,
        "crop_pct": recipe.crop_pct,
        "mean": recipe.mean or given["mean"],
        "std": recipe.std or given["std"],
    }


def _evaluate(model: nn.Module, split: Split, recipe: Recipe, accelerator: Accelerator) -> Accuracy:
    def total(counts: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = accelerator.reduce(counts, reduction="sum")
        return summed

    return evaluate(
        model, split, workers=recipe.workers, rank=accelerator.process_index, world_size=accelerator.num_processes,
        total=total,
    )  # fmt: skip


def _same_on_all_ranks(model: nn.Module) -> str:
    """Return the sha256 of the weights and buffers; `RuntimeError` if the processes hold different ones."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digests = gather_object([digest.hexdigest()])
    if len(set(digests)) != 1:
        raise RuntimeError(f"the processes have drifted apart: {digests}")
    return digest.hexdigest()


def _settings(recipe: Recipe, split: Split) -> str:
    """Return, as JSON, what must be the same for a run to go on as the same run: the recipe and the data's shape."""
    settings = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in NOT_LEARNT}
    rows = hashlib.sha256(json.dumps(split.unit_rows).encode()).hexdigest()[:16]
    return json.dumps({**settings, "training_images": split.rows, "shards": rows, "classes": split.class_names})


def _read_state(path: Path, wanted: str, total_steps: int) -> dict[str, Any]:
    """Return the training state in `path`; `InputError` where it is damaged, or belongs to another run."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved = json.loads(state["settings"])
        whole = state.keys() >= STATE_KEYS and all(isinstance(state[key], int) for key in ("step", "seen", "shards"))
        if not whole or not 0 <= state["step"] <= total_steps:
            raise ValueError("something is missing in it")
        changed = [
            f"{key} was {saved.get(key)!r}, now {value!r}"
            for key, value in json.loads(wanted).items()
            if saved.get(key) != value
        ]
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise InputError(f"cannot resume: {path} is damaged ({type(error).__name__})") from error
    if changed:
        raise InputError(f"cannot resume with another recipe or other data: {'; '.join(changed)}")
    return state


def _save(
    output: Path, model: nn.Module, class_names: tuple[str, ...] | None, facts: dict[str, Any], state: dict[str, Any]
) -> None:
    """Write the model folder and the training state that belongs to it; a new folder appears whole."""
    sizes = sizes_of(copy.deepcopy(model).to("meta").eval(), model.pretrained_cfg["input_size"])  # type: ignore[arg-type, index]

    def card(config: Mapping[str, Any]) -> str:
        needs_plugin = config["architecture"] in list_models()
        return render(card_of(config, sizes, needs_plugin=needs_plugin, has_curves=True))

    def fill(folder: Path) -> None:
        config = {**timm_config(model, pretrained_cfg={}, label_names=class_names), FACTS_KEY: facts}
        write_model(folder, model.state_dict(), config=config, card=card)
        with replacing(folder / SUMMARY_NAME) as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, list(state["history"][0]))
            table.writeheader()
            table.writerows(state["history"])
        with replacing(folder / CURVES_NAME) as temporary:
            draw_curves(state["history"], temporary)
        _save_state(folder, state)

    fill_folder(output, fill)


def _save_state(folder: Path, state: dict[str, Any]) -> None:
    with replacing(folder / STATE_NAME) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # how torch reports a full disk
            free = shutil.disk_usage(folder).free >> 20
            raise OSError(f"{str(error).splitlines()[0]} ({free} MiB are free there)") from error


def _facts(recipe: Recipe, source: str, accuracy: Accuracy, *, step: int, seen: int, world_size: int) -> dict[str, Any]:
    """Return what the card and `config.json` say of these weights."""
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not Path(source).exists()
    data = source if is_hub_id or source == EMBEDDED else Path(source).name  # a machine's folders are its owner's
    command, commit = _command(recipe, data if source != RECIPES.get(recipe.name, recipe).data else None), code_commit()
    fields = dataclasses.asdict(recipe)
    return {
        "title": f"{recipe.model}, trained on {data}",
        "summary": f"`{recipe.model}` trained by the recipe `{recipe.name}`: {step:,} steps, {seen:,} images seen.",
        "license": recipe.license,
        "datasets": [source] if is_hub_id else [],
        "results": [{
            "dataset": data, "dataset_id": source if is_hub_id else "", "split": recipe.eval_split,
            "top1": accuracy.top1, "top5": accuracy.top5, "image_size": recipe.eval_size or recipe.input_size,
            "origin": "measured",
            "source": command, "images": accuracy.seen, "commit": commit,
        }],
        "recipe": {name: str(value) for name, value in fields.items() if name not in ("license", "data")},
        "command": command,
        "provenance": {
            "trained by": package_version(), **({"commit": commit} if commit else {}),
            "processes": str(world_size), **versions(),
        },
    }  # fmt: skip


def _command(recipe: Recipe, data: str | None) -> str:
    """Return the command that trains `recipe` again: its name, and each field that differs from the table's."""
    words = ["accelerate", "launch", "scripts/train.py", "--recipe", recipe.name]
    words += ["--data", data] if data else []
    original = RECIPES.get(recipe.name)
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if original is not None and field.name not in ("name", "data") and value != getattr(original, field.name):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += ["--set", f"{field.name}={text}"]
    return shlex.join(words)
