"""Train a model by a recipe, on as many processes as were started."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    is_compiled_module,
)
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy
from timm.utils.model import freeze
from torch import distributed, nn
from torch.nn import functional as F
from tqdm import tqdm

from seresnet_hub.data.batch_augmentation import Mixer, finish, on_device
from seresnet_hub.data.damaged_images import require_few_damaged
from seresnet_hub.data.held_out import learnt_before
from seresnet_hub.data.loader import Split, epoch_plan, loader
from seresnet_hub.data.plan import Plan
from seresnet_hub.data.repeated_augmentation import dealt, part_rows
from seresnet_hub.data.splits import open_splits, require_same_shards
from seresnet_hub.data.transforms import seed_from
from seresnet_hub.environment import usable_cpus
from seresnet_hub.errors import InputError, printable
from seresnet_hub.files.locks import STATES_FOLDER
from seresnet_hub.files.model_folder import OTHER_WEIGHTS_FACTS
from seresnet_hub.inference.baseline import chance_of
from seresnet_hub.inference.evaluate import Accuracy, evaluate
from seresnet_hub.models.blocks import use_compiled_sync_norms, use_training_blocks
from seresnet_hub.models.create import create
from seresnet_hub.models.load import load, origin_of
from seresnet_hub.models.names import architecture_of
from seresnet_hub.recipes.inductor import options_of
from seresnet_hub.recipes.recipe import AUTO, Recipe
from seresnet_hub.torch_settings import settings_of_run
from seresnet_hub.training.batchnorm_statistics import RunningStatistics
from seresnet_hub.training.checkpoint import list_checkpoints, load_optimizer, save_checkpoint
from seresnet_hub.training.checkpoint_checks import Run, require_fitting, require_whole
from seresnet_hub.training.finetuning import resolved, start_of
from seresnet_hub.training.history import Row, add_row, is_best, is_due, is_measured
from seresnet_hub.training.lost_processes import lost_processes_named, watched
from seresnet_hub.training.optimizer import MovingAverage, classifier_of, optimizer_of, schedule_of
from seresnet_hub.training.outputs import facts_of_run, save_run
from seresnet_hub.training.profiling import Profile, require_profile
from seresnet_hub.training.rendezvous import join_again
from seresnet_hub.training.signals import Interruption
from seresnet_hub.training.start_or_resume import BEST, BEST_RAW, RAW, begin, processes_started, require_launcher
from seresnet_hub.training.throughput import Clock

# Fields that may differ between machines: these, and the names of local folders.
OF_A_MACHINE = frozenset({"data", "weights", "workers", "license", "keep_states"})
# Fields that do not change what is learnt, but for rounding.
NOT_LEARNT = OF_A_MACHINE | {
    *("checkpoint_steps", "eval_every", "save_every", "eval_precision", "corrupt_share"),
    *("compile", "inductor", "se_blocks", "grad_checkpointing"),
}
# What a state that is older than a field was trained with.
DEFAULTS = json.loads(
    json.dumps({f.name: f.default for f in dataclasses.fields(Recipe) if f.default is not dataclasses.MISSING})
)
BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# The steps between two looks at the losses and at signals, for each of which the host waits for the device.
LOOK_STEPS = 20
# How long a process waits for the others before it takes them for lost.
WAIT_FOR_OTHERS = timedelta(minutes=10)
# How long it waits for the first one to read a data set.
WAIT_FOR_READING = timedelta(days=1)
Answer = TypeVar("Answer")


@lost_processes_named()
def train(
    recipe: Recipe,
    *,
    output: str | Path,
    data: str | None = None,
    resume: bool = False,
    max_steps: int | None = None,
    trackers: Sequence[str] = (),
    profile: str | Path | None = None,
) -> dict[str, Any]:
    """Train `recipe` on `data` (default: the recipe's own) into the folder `output`, and return the measured result.

    After each epoch (of every `eval_every`) `output` gets `model.safetensors`, `config.json` and `README.md` for timm,
    `summary.csv` and `curves.png`; its folder `best` the same of the best epoch; and `training/` what `resume` needs to
    go on. Where there is no state yet, `resume` begins. With a moving average, these are the averaged weights, and
    `raw` and `best_raw` hold the others. `max_steps` ends the run early, counted from its very start; SIGTERM and
    SIGUSR1 save its state and end it, as `stopped` in the result says. `trackers` are names that Accelerate knows. The
    result's speed is that of the steady run (`timing.Clock`), and `profile` a JSON file to write where the device's
    time goes into (`profiling.Profile`). Runs on every process that the launcher started; only the main one needs
    `output`, which no other run may use meanwhile, and profiles.
    Errors: `InputError` on a bad argument or data set, before anything is written, and where the loss is no longer
    finite; `LostProcessError` where another process is gone.
    """
    with ExitStack() as on_exit:
        return _train(
            recipe, output=Path(output), data=data, resume=resume, max_steps=max_steps, trackers=trackers,
            profile=Path(profile) if profile else None, on_exit=on_exit,
        )  # fmt: skip


def _train(
    recipe: Recipe, *, output: Path, data: str | None, resume: bool, max_steps: int | None, trackers: Sequence[str],
    profile: Path | None, on_exit: ExitStack,
) -> dict[str, Any]:  # fmt: skip
    """Train; what must be undone at the end, whatever happens, is put on `on_exit`."""

    # ------------------------------------------------------------------ arguments
    require_launcher(os.environ)
    source = recipe.data if data is None else data
    if not source:
        raise InputError(f"recipe {recipe.name!r} has no data set of its own: name one with --data")
    if max_steps is not None and max_steps < 1:
        raise InputError(f"max_steps={max_steps}: must be at least 1")
    if recipe.model is not AUTO:
        architecture_of(recipe.model)
    for name in trackers:
        if name not in {str(tracker) for tracker in get_available_trackers()}:
            known = ", ".join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))
            raise InputError(f"tracker {name!r}: not installed, or not one of {known}")

    options = options_of(recipe.inductor, deterministic=recipe.deterministic) if recipe.compile else {}
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    on_exit.enter_context(settings_of_run(device_type, deterministic=recipe.deterministic))

    # ------------------------------------------------------------------ processes
    join_again(WAIT_FOR_OTHERS)
    # Accelerate joins CPU processes only when it is told that there is nothing but a CPU.
    try:
        accelerator = Accelerator(
            cpu=device_type == "cpu", mixed_precision=recipe.mixed_precision,
            log_with=list(trackers) or None, project_dir=output / STATES_FOLDER,
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=WAIT_FOR_OTHERS),
                # No copy of the gradients, and no sending of buffers before each step: see `RunningStatistics`.
                DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
            ],
        )  # fmt: skip
    except ValueError as error:  # it keeps the settings of the first one that a process makes
        raise InputError(f"mixed_precision={recipe.mixed_precision}: {error}") from error
    _share_cores(accelerator)
    on_exit.enter_context(watched())
    rank, world_size = accelerator.process_index, accelerator.num_processes
    main = accelerator.is_main_process

    def say(line: str) -> None:
        if main:
            tqdm.write(printable(line), file=sys.stderr)

    say(f"{world_size} process{'es' if world_size > 1 else ''} on {accelerator.device.type}")
    asked = processes_started(os.environ) or world_size
    if asked != world_size:  # they would all write the same folder
        raise InputError(f"the launcher started {asked} processes, but they were not joined: {world_size} runs here")
    if world_size == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        say(
            "warning: the launcher was asked for more processes but started only this one; "
            "on CPUs start them with: accelerate launch --multi_gpu --num_processes N scripts/train.py"
        )
    if recipe.sync_bn and accelerator.device.type != "cuda":
        raise InputError("sync_bn=True: torch has it for CUDA devices only")
    if profile is not None:
        _from_main(accelerator, lambda: require_profile(profile, max_steps))
    saved = _from_main(accelerator, lambda: begin(output, resume=resume, say=say, on_exit=on_exit))

    # ------------------------------------------------------------------ data
    with accelerator.main_process_first():
        beginning = start_of(recipe)
    with _main_first(accelerator):  # where a format does not say its number of rows, this reads all of it
        train_split, eval_split = open_splits(
            source, recipe.train_split, recipe.eval_split, holdout=recipe.holdout, seed=recipe.seed
        )
    num_classes = _num_classes(recipe, train_split)
    unresolved = recipe
    recipe, chosen = resolved(recipe, beginning, images=train_split.rows)
    if chosen:
        say(chosen)
    if recipe.batch_size < world_size:
        raise InputError(f"batch_size={recipe.batch_size} cannot be shared by {world_size} processes")
    plan = epoch_plan(train_split, recipe, seed=recipe.seed, epoch=0)
    steps_per_epoch = plan.steps
    if steps_per_epoch == 0:
        way_out = f", less than a batch of {recipe.batch_size}: set drop_last=false" if train_split.rows else ""
        raise InputError(f"split {train_split.name!r} of {source} has {train_split.rows} images{way_out}")
    total_steps = recipe.epochs * steps_per_epoch
    last_step = min(total_steps, max_steps or total_steps)
    _require_same_run_everywhere(recipe, train_split, last_step)
    say(
        f"{train_split.rows:,} training and {eval_split.rows:,} {eval_split.name} images of {num_classes} classes, "
        f"{steps_per_epoch} steps an epoch, {last_step:,} steps"
    )
    if eval_split.subset is None and eval_split.name == train_split.name:
        say("warning: what is measured here are the training images, so the accuracy says nothing of others")
    chance = chance_of(eval_split)
    if before := learnt_before(beginning.config, eval_split, share=recipe.holdout, seed=recipe.seed):
        say(f"warning: {before}")
    if chance is not None and chance.too_few_images:
        say(f"warning: {chance.too_few()}")

    # ------------------------------------------------------------------ model
    torch.manual_seed(recipe.seed)  # the same start on every process
    with accelerator.main_process_first():
        origin = origin_of(recipe.weights) if recipe.weights else None
        model = _start(recipe, num_classes)
    model = model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if origin is not None and not (recipe.license or origin.license):
        say(f"warning: {recipe.weights} name no licence, so push.py will refuse the result: add --set license=ID")
    config = _config(recipe, model)
    model.pretrained_cfg = config  # evaluation reads its transform from here, as a user of the saved model does
    repeats = recipe.repeated_augmentation
    shares = [part_rows(plan, k, repeats=repeats, world_size=world_size) for k in (0, steps_per_epoch - 1)]
    _require_trainable(model, recipe, images=min(min(_piece_sizes(share, recipe.accumulation)) for share in shares))
    _require_mixable(recipe, plan, world_size)
    if recipe.grad_checkpointing:
        try:
            model.set_grad_checkpointing()
        except Exception as error:  # whatever the model makes of it
            raise InputError(f"grad_checkpointing=true: {recipe.model} has none ({error})") from error
    if recipe.sync_bn:
        model = convert_sync_batchnorm(model)
        if recipe.compile:
            use_compiled_sync_norms(model)
    if recipe.se_blocks:
        if not recipe.compile:
            raise InputError("se_blocks=True: it gains something where compile=True alone")
        if not use_training_blocks(model):
            raise InputError(f"se_blocks=True: {recipe.model} has no block of timm's with an SE unit")
    optimizer = optimizer_of(model, recipe, device_type=device_type)
    schedule = schedule_of(optimizer, recipe, steps_per_epoch, total_steps)
    average = MovingAverage(model, decay=recipe.ema_decay) if recipe.ema_decay else None
    prepared, optimizer = accelerator.prepare(model, optimizer)
    # Accelerate made the model compute in mixed precision wherever it is called; what is saved is measured as it is.
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    if recipe.compile and not is_compiled_module(prepared):  # here, since Accelerate's setting is one for the process
        # For the sizes of a full batch alone: a graph for any size would be made after the first short batch, so a
        # resumed run, which begins elsewhere, would be another one's bits.
        prepared = torch.compile(prepared, dynamic=False, options=options)
    # What a short batch runs through: compiling for its size as well takes a minute on a GPU, for a step an epoch.
    uncompiled = getattr(prepared, "_orig_mod", prepared)
    compiled_sizes = _piece_sizes(shares[0], recipe.accumulation)
    statistics = RunningStatistics({"model": model, **({"average": average.module} if average else {})}, accelerator)
    _from_main(accelerator, lambda: _start_trackers(accelerator, recipe))

    # ------------------------------------------------------------------ resume
    step, seen = 0, 0
    history: list[Row] = []  # a row an epoch
    losses: list[float] = []  # of each step, the mean over its batch
    if saved is not None:
        state, warnings = saved
        for warning in warnings:
            say(f"warning: {warning}; going back to the one before")
        _require_same_run(state, _settings(recipe, train_split), total_steps)
        if state["step"] > last_step:
            raise InputError(f"max_steps={max_steps}: the run in {output} is at step {state['step']:,} already")
        make = partial(optimizer_of, recipe=recipe, device_type="cpu")
        shape = (3, recipe.input_size, recipe.input_size)
        run = Run(model, average.module if average else None, optimizer, make, shape)
        require_fitting(state, run, what=recipe.model)
        model.load_state_dict(state["model"])
        load_optimizer(optimizer, state["optimizer"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        if average is not None:
            average.module.load_state_dict(state["average"])
        statistics.load(state.get("statistics", {}))  # none in states of an older version
        if main:  # the others were compared with it, and a copy of a file may have another time of change
            require_same_shards(train_split, state["shards"])
        step, seen = state["step"], state["seen"]
        history, losses = state["history"], state["losses"].tolist()
        say(f"resuming {output} at step {step:,} of {last_step:,}")

    def due(every: int) -> bool:
        return is_due(step, every=every, steps_per_epoch=steps_per_epoch, last_step=last_step)

    def end_epoch() -> None:
        rate = optimizer.param_groups[0]["lr"]
        add_row(history, losses, steps_per_epoch=steps_per_epoch, learning_rate=rate)

    def statistics_of_processes() -> dict[str, torch.Tensor]:
        return statistics.gathered() if step % steps_per_epoch else {}  # they are equal at the end of an epoch

    def save(of_processes: Mapping[str, torch.Tensor]) -> None:
        if main:
            state = {
                "settings": _settings(recipe, train_split), "step": step, "seen": seen, "history": history,
                "losses": torch.tensor(losses, dtype=torch.float64), "shards": train_split.fingerprint,
                "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
                "average": average.module.state_dict() if average is not None else {}, "statistics": of_processes,
            }  # fmt: skip
            save_checkpoint(output, state, keep=recipe.keep_states)

    # ------------------------------------------------------------------ loop
    precision = next(model.parameters()).dtype
    measured = model if average is None else average.module
    mixer = Mixer(recipe, num_classes, accelerator.device)
    accuracy: Accuracy | None = None
    trained, stopped = 0, False
    profiler = Profile(profile, accelerator.device, recipe, world_size) if profile and main else None
    clock = Clock(profiler)
    kept = saved is not None  # whether there is a state to resume from
    of_step = [plan.batch_rows(batch) * repeats for batch in range(steps_per_epoch)]
    images_until = {end: end // steps_per_epoch * sum(of_step) + sum(of_step[: end % steps_per_epoch])
                    for end in (step, last_step)}  # fmt: skip
    with (
        Interruption() as interruption,
        tqdm(
            total=images_until[last_step], initial=images_until[step], desc=f"training {printable(recipe.model)}",
            unit="images", unit_scale=True, disable=not main,
        ) as bar,
    ):  # fmt: skip
        while not stopped and (step < last_step or not is_measured(history, step)):
            # Whether the run ended when this epoch was trained, but not yet measured.
            trained_before = due(recipe.eval_every) and not is_measured(history, step)
            epoch = (step - trained_before) // steps_per_epoch
            batches = loader(
                train_split, None, recipe, rank=rank, world_size=world_size, workers=recipe.workers, seed=recipe.seed,
                epoch=epoch, position=step % steps_per_epoch,
            )  # fmt: skip
            prepared.train()
            _rest(model)
            step_losses: list[torch.Tensor] = []  # on the device: reading one would wait for it
            skipped_here = skipped = 0  # rows of this process, and of all
            clock.start()
            for batch in clock.batches(on_device(() if trained_before else batches, accelerator.device)):
                # Drop-outs draw from the step's own stream, so a resumed run draws what the uninterrupted one drew.
                torch.manual_seed(seed_from(recipe.seed, step, rank))
                schedule.step_update(step)
                batch = dealt(
                    batch, plan, step % steps_per_epoch, repeats=repeats, rank=rank, world_size=world_size,
                    seed=(recipe.seed, step, rank),
                )  # fmt: skip
                images = finish(batch, mean=config["mean"], std=config["std"], dtype=precision)
                images, targets = mixer(images, batch.labels, batch.whole or batch.mask, recipe.seed, step, rank)
                optimizer.zero_grad()
                loss = torch.zeros((), device=accelerator.device)
                pieces = list(zip(*(t.chunk(recipe.accumulation) for t in (images, targets, batch.mask)), strict=True))
                for number, (piece, wanted, counts) in enumerate(pieces):
                    waits = number < len(pieces) - 1  # only the last piece's gradients are sent to the other processes
                    with accelerator.no_sync(prepared) if waits else nullcontext():
                        with accelerator.autocast():
                            logits = (prepared if len(piece) in compiled_sizes else uncompiled)(piece)
                        part = (_losses(logits.to(precision), wanted, recipe) * counts).sum() / batch.total
                        # Processes average their gradients; times their number, that is the mean over the whole batch.
                        with _statistics_kept(model) if recipe.grad_checkpointing else nullcontext():
                            accelerator.backward(part * world_size)
                    loss += part.detach()
                if recipe.clip_grad:
                    accelerator.clip_grad_norm_(model.parameters(), recipe.clip_grad)
                optimizer.step()
                step_losses.append(loss)
                step, seen, trained = step + 1, seen + batch.total, trained + batch.total
                skipped_here += batch.missing
                clock.step(len(images))
                if average is not None:
                    average.update(model, step)
                bar.update(batch.total)
                ends = step == last_step or step % steps_per_epoch == 0
                saves = due(recipe.save_every) or (recipe.checkpoint_steps and step % recipe.checkpoint_steps == 0)
                # A model folder without a state beside it is no run that could go on.
                saves = saves or (not kept and due(recipe.eval_every))
                # Alone, a signal is looked for after every step; several processes have to agree on the step.
                if ends or saves or step % LOOK_STEPS == 0 or (world_size == 1 and interruption.name):
                    *newest, skipped_now = _summed([*step_losses, loss.new_tensor(skipped_here)], accelerator)
                    losses += newest
                    step_losses.clear()
                    newly_skipped, skipped = int(skipped_now) - skipped, int(skipped_now)
                    seen, trained = seen - newly_skipped, trained - newly_skipped
                    require_few_damaged(skipped // repeats, train_split, recipe.corrupt_share)
                    _require_finite(losses, step, output, recipe)
                    bar.set_postfix(epoch=epoch + 1, loss=f"{losses[-1]:.3f}", refresh=False)
                    if trackers:
                        accelerator.log({"loss": losses[-1], "learning_rate": optimizer.param_groups[0]["lr"]}, step)
                    stopped = _any_rank(interruption.name is not None, accelerator)
                    clock.stop(trained)
                    if step % steps_per_epoch == 0:
                        statistics.share()
                    if ends:
                        end_epoch()
                    if ends or saves or stopped:
                        _require_finite_weights(model, step, output, recipe, accelerator)
                    if saves or stopped:
                        save(statistics_of_processes())
                        kept = True
                    if not (ends or stopped):
                        clock.start()
                if stopped or step == last_step:
                    break
            if skipped:
                left_out = skipped // repeats
                say(f"epoch {epoch + 1}: {left_out} undecodable image{' was' if left_out == 1 else 's were'} left out")

            if stopped or not due(recipe.eval_every):
                continue

            # -------------------------------------------------------------- end of an epoch, or of the run
            end_epoch()  # no more than a look where its last step was made here
            of_processes = statistics_of_processes()
            if step % steps_per_epoch:  # the run ends within an epoch
                statistics.share()
            _require_same_on_all_ranks(measured)
            accuracy = _evaluate(measured, eval_split, recipe, accelerator)
            say(
                f"epoch {epoch + 1}/{recipe.epochs}: {accuracy.top1:.2f} % top-1, loss {accuracy.loss:.4f} over "
                f"{accuracy.seen:,} {eval_split.name} images"
            )
            history[-1] |= _figures(accuracy)
            kinds = [("top1", measured, accuracy, output, output / BEST)]
            if average is not None:
                raw = _evaluate(model, eval_split, recipe, accelerator)
                history[-1] |= _figures(raw, "raw_")
                kinds.append(("raw_top1", model, raw, output / RAW, output / BEST_RAW))
            if trackers:
                accelerator.log(history[-1], step)
            for key, weights, its_accuracy, last, best in kinds if main else []:
                for folder in (last, best) if is_best(history, key) else (last,):
                    facts = facts_of_run(
                        recipe, source, its_accuracy, split=eval_split, origin=origin, step=step, steps=total_steps,
                        seen=seen, world_size=world_size, asked=unresolved, max_steps=max_steps,
                        kind=folder.name if folder != output else "",
                        chance=chance, learnt_before=before,
                    )  # fmt: skip
                    save_run(folder, weights, train_split.class_names, facts, history)
            stopped = step < last_step and _any_rank(interruption.name is not None, accelerator)
            if stopped or step == last_step:  # a run that goes on has a state without these figures: see `add_row`
                save(of_processes)
            accelerator.wait_for_everyone()
    if accuracy is None and not stopped:  # a finished run was resumed
        say(f"{output} is finished: it is measured once more")
        if step % steps_per_epoch:
            statistics.share()
        accuracy = _evaluate(measured, eval_split, recipe, accelerator)
    accelerator.end_training()
    if chance is not None and accuracy is not None and step == total_steps and (doubt := chance.doubt(accuracy.top1)):
        say(f"warning: there is no evidence that the model learnt anything: {doubt}")
    if stopped:
        say(f"stopped by {interruption.name or 'a signal to another process'} at step {step:,}: go on with --resume")
    if profiler is not None and profiler.summary is None:
        say(f"warning: no profile: {profiler.missing}")
    return {
        "output": str(output),
        "recipe": recipe.name,
        "model": recipe.model,
        "steps": step,
        "epochs": round(step / steps_per_epoch, 4),
        "seen": seen,
        "top1": round(accuracy.top1, 4) if accuracy else None,
        "top5": round(accuracy.top5, 4) if accuracy else None,
        **clock.result(accelerator.device),
        "stopped": (interruption.name or "signal") if stopped else None,
        **({"profile": profiler and profiler.summary} if profile else {}),
    }


def _from_main(accelerator: Accelerator, ask: Callable[[], Answer]) -> Answer:
    """Return on all processes what `ask` says on the main one; an `InputError` there is one on all."""
    answers: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            answers = [ask()]
        except InputError as error:
            answers = [error]
    broadcast_object_list(answers)
    if isinstance(answers[0], InputError):
        raise answers[0]
    answer: Answer = answers[0]
    return answer


@contextmanager
def _main_first(accelerator: Accelerator) -> Iterator[None]:
    """Let the main process go first, and let the others wait for it as long as it takes."""
    alone = accelerator.num_processes == 1
    group: Any = None if alone else distributed.new_group(timeout=WAIT_FOR_READING, backend="gloo")
    if group is not None and not accelerator.is_main_process:
        distributed.barrier(group)
    yield
    if group is not None and accelerator.is_main_process:
        distributed.barrier(group)


def _start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the trackers that were asked for; `InputError` where one of them cannot, as without a login."""
    try:
        accelerator.init_trackers("seresnet_hub", config={k: str(v) for k, v in dataclasses.asdict(recipe).items()})
    except Exception as error:  # each tracker has its own
        raise InputError(f"the trackers {accelerator.log_with} do not start: {error}") from error


def _any_rank(flag: bool, accelerator: Accelerator) -> bool:
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(int(flag), device=accelerator.device)).item())


def _figures(accuracy: Accuracy, prefix: str = "") -> dict[str, float]:
    assert accuracy.loss is not None  # every image has one label
    return {f"{prefix}eval_loss": accuracy.loss, f"{prefix}top1": accuracy.top1, f"{prefix}top5": accuracy.top5}


def _kept(output: Path) -> str:
    saved = list_checkpoints(output)
    return f"the last good state, {saved[0]}, is kept" if saved else "nothing was saved yet"


def _require_finite(losses: Sequence[float], step: int, output: Path, recipe: Recipe) -> None:
    """Raise `InputError` where one of the newest losses is not a number."""
    for number, loss in enumerate(losses[-LOOK_STEPS:], start=max(len(losses) - LOOK_STEPS, 0) + 1):
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {number:,} (noticed at {step:,}): "
                f"lower learning_rate={recipe.learning_rate}; {_kept(output)}"
            )


def _require_finite_weights(
    model: nn.Module, step: int, output: Path, recipe: Recipe, accelerator: Accelerator
) -> None:
    finite = torch.stack([tensor.isfinite().all() for tensor in model.state_dict().values()]).all()
    if _any_rank(not finite, accelerator):
        raise InputError(
            f"the weights are no longer finite after step {step:,}: lower learning_rate={recipe.learning_rate}; "
            f"{_kept(output)}"
        )


def _start(recipe: Recipe, num_classes: int) -> nn.Module:
    """Return the model as training begins: random, or the recipe's weights, with a new classifier for other classes."""
    options: dict[str, Any] = {"num_classes": num_classes}
    if recipe.dropout:
        options["drop_rate"] = recipe.dropout
    if recipe.drop_path:
        options["drop_path_rate"] = recipe.drop_path
    if recipe.zero_init_last is not None:
        options["zero_init_last"] = recipe.zero_init_last
    if recipe.weights is None:
        model = create(recipe.model, pretrained=False, **options)
    else:
        model = load(recipe.weights, **options)
        found, wanted = model.pretrained_cfg["architecture"], architecture_of(recipe.model)  # type: ignore[index]
        if found != wanted:
            raise InputError(
                f"weights={recipe.weights} are of {found}, but the recipe trains {wanted}: set model={found}"
            )
        if recipe.new_head:
            model.reset_classifier(num_classes)  # type: ignore[operator]
        if frozen := _frozen_parts(model, recipe):
            freeze(model, frozen, include_bn_running_stats=False)  # else they would become norms of another state dict
    if recipe.bn_momentum is not None:
        norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
        if not norms:
            raise InputError(f"bn_momentum={recipe.bn_momentum}: {recipe.model} has no batch norms")
        for norm in norms:
            norm.momentum = recipe.bn_momentum
    return model


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a second forward pass, within the backward one, does to BatchNorm's running statistics."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


def _frozen_parts(model: nn.Module, recipe: Recipe) -> list[str]:
    """Return the names of the model's children that the recipe freezes; `InputError` where it has no such part."""
    if recipe.freeze == "nothing":
        return []
    children = [name for name, _ in model.named_children()]
    parts = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    classifier, first_stage = classifier_of(model), "layer1"
    before = {"backbone": classifier, "stem": first_stage}.get(recipe.freeze)
    if (before or recipe.freeze) not in parts:
        raise InputError(f"freeze={recipe.freeze}: {recipe.model} has no such part, it is made of {', '.join(parts)}")
    end = children.index(before) if before else children.index(recipe.freeze) + 1
    return [name for name in children[:end] if name in parts]


def _rest(model: nn.Module) -> None:
    """Put the frozen parts of a model in eval mode: nothing is dropped there, and no statistics are taken."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        return  # parts without parameters may be drop-outs
    for part in model.children():
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.eval()


def _losses(logits: torch.Tensor, targets: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Return the loss of each image; `targets` are labels, or class probabilities with all smoothing in them."""
    smoothing = 0.0 if targets.is_floating_point() else recipe.label_smoothing
    if recipe.loss == "softmax":
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    binary = BinaryCrossEntropy(smoothing=smoothing, target_threshold=recipe.target_threshold, reduction="none")
    return binary(logits, targets).mean(dim=1)


def _summed(values: list[torch.Tensor], accelerator: Accelerator) -> list[float]:
    """Return the values, each summed over the processes."""
    summed: torch.Tensor = accelerator.reduce(torch.stack(values).double(), reduction="sum")
    return summed.tolist()


def _require_trainable(model: nn.Module, recipe: Recipe, *, images: int) -> None:
    """Raise `InputError` where the model cannot take the smallest batch of the recipe's size; computes shapes only."""
    try:
        with torch.no_grad():
            size = recipe.input_size
            trial = copy.deepcopy(model).to("meta").train()
            _rest(trial)
            trial(torch.zeros(images, 3, size, size, device="meta"))
    except Exception as error:  # whatever the model makes of it
        raise InputError(
            f"{recipe.model} cannot train on {images} images of {recipe.input_size} pixels: {error}"
        ) from error


def _require_mixable(recipe: Recipe, plan: Plan, world_size: int) -> None:
    """Raise `InputError` where a process could not mix its part of a batch: filled up to the others', or odd."""
    rows = plan.batch_rows(0) * recipe.repeated_augmentation
    if (recipe.mixup or recipe.cutmix) and rows % (2 * world_size):
        raise InputError(
            f"batch_size={recipe.batch_size}: mixup and cutmix need an equal, even number of images on each of "
            f"{world_size} processes, and these share {rows:,} in a batch"
        )


def _piece_sizes(images: int, pieces: int) -> set[int]:
    """Return the sizes of the pieces that `torch.chunk` makes of a batch; only the last may be smaller."""
    size = -(-images // pieces)
    return {size, images - (-(-images // size) - 1) * size}


def _share_cores(accelerator: Accelerator) -> None:
    """Let the processes on this machine share its cores, where a launcher has left each of them a single thread.

    `accelerate launch` and `torchrun` set OMP_NUM_THREADS=1 on their own; a person's own setting is kept otherwise.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if accelerator.device.type == "cpu" and launched and os.environ.get("OMP_NUM_THREADS") == "1":
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, usable_cpus() // local_processes))


def _num_classes(recipe: Recipe, split: Split) -> int:
    named = len(split.class_names) if split.class_names else None
    if recipe.num_classes and named and recipe.num_classes != named:
        raise InputError(f"num_classes={recipe.num_classes}, but {split.source} has {named} classes")
    number = recipe.num_classes or named
    if not number:
        raise InputError(f"{split.source} does not say how many classes it has: add --set num_classes=N")
    if number == 1:
        raise InputError(f"{split.source} has one class only: a classifier needs two or more")
    return number


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
        batch_size=128 * accelerator.num_processes, total=total,
        # A held-out part is of the collection that is trained on, damage and all.
        corrupt_share=0.0 if split.subset is None else recipe.corrupt_share, precision=recipe.eval_precision,
    )  # fmt: skip


def _require_same_on_all_ranks(model: nn.Module) -> None:
    """Raise `RuntimeError` where the processes hold different weights or buffers, by their sha256."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digests = gather_object([digest.hexdigest()])
    if len(set(digests)) != 1:
        raise RuntimeError(f"the processes have drifted apart: {digests}")


def _settings(recipe: Recipe, split: Split, *, but: frozenset[str] = NOT_LEARNT) -> str:
    """Return, as JSON, what must be the same for a run to go on as the same run: the recipe and the data's shape."""
    settings = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in but}
    rows = hashlib.sha256(json.dumps(split.unit_rows).encode()).hexdigest()[:16]
    return json.dumps({**settings, "training_images": split.rows, "shards": rows, "classes": split.class_names})


def _require_same_run(state: Mapping[str, Any], wanted: str, total_steps: int) -> None:
    """Raise `InputError` where a state belongs to another run, or to another version of this code."""
    require_whole(state)
    try:
        saved = {**DEFAULTS, **json.loads(state["settings"])}
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"cannot resume: the state is not one of this version ({error})") from error
    changed = [
        f"{key} was {reprlib.repr(saved.get(key))}, now {value!r}" if key != "shards" else "the shards are others"
        for key, value in json.loads(wanted).items()
        if saved.get(key) != value
    ]
    if changed:
        raise InputError(
            f"cannot resume with another recipe or other data: {'; '.join(changed)}; another run needs another --output"
        )
    if not 0 <= state["step"] <= total_steps:
        raise InputError(f"cannot resume: the state is at step {state['step']:,} of a run of {total_steps:,}")


def _require_same_run_everywhere(recipe: Recipe, split: Split, last_step: int) -> None:
    """Raise `InputError` on every process where one was started with another recipe or reads other data."""
    names = json.dumps([(shard.name, shard.size) for shard in split.shards])
    files = f"{len(split.shards)} ({hashlib.sha256(names.encode()).hexdigest()[:12]}, by names and sizes)"
    settings = _settings(recipe, split, but=OF_A_MACHINE)
    runs = gather_object([{**json.loads(settings), "files": files, "last step": last_step}])
    for number, run in enumerate(runs):
        for key, value in run.items():
            if value != runs[0].get(key):
                raise InputError(
                    f"process {number} has {key} {reprlib.repr(value)}, process 0 {reprlib.repr(runs[0].get(key))}: "
                    "start all machines with the same command, on the same data"
                )
