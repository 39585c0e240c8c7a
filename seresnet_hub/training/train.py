"""Train a model by a recipe, on as many processes as were started."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from tqdm import tqdm

from seresnet_hub.data.class_order_check import few_classes
from seresnet_hub.data.held_out import learnt_before, open_splits
from seresnet_hub.data.loader import epoch_plan
from seresnet_hub.data.plan import Plan
from seresnet_hub.data.split import Split
from seresnet_hub.data.units import require_same_shards
from seresnet_hub.errors import InputError, printable
from seresnet_hub.evaluation.majority_baseline import chance_of
from seresnet_hub.files.locks import STATES_FOLDER
from seresnet_hub.models.load import origin_of
from seresnet_hub.models.names import architecture_of
from seresnet_hub.recipes.inductor import options_of
from seresnet_hub.recipes.recipe import AUTO, Recipe
from seresnet_hub.torch_settings import settings_of_run
from seresnet_hub.training.finetuning import resolved, start_of
from seresnet_hub.training.initial_model import initial_model
from seresnet_hub.training.launchers import require_launcher
from seresnet_hub.training.learner import Learner
from seresnet_hub.training.loop import Loop
from seresnet_hub.training.lost_processes import lost_processes_named, watched
from seresnet_hub.training.processes import Processes
from seresnet_hub.training.profiling import Profile, require_profile
from seresnet_hub.training.progress import Progress
from seresnet_hub.training.rendezvous import left_on_error
from seresnet_hub.training.run_folder import facts_of_run
from seresnet_hub.training.same_run import require_same_run, require_same_run_everywhere, settings_of
from seresnet_hub.training.signals import Interruption
from seresnet_hub.training.start_or_resume import begin
from seresnet_hub.training.throughput import Clock


@left_on_error()  # outermost: what is said of a lost process depends on whether they were joined
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
    `summary.csv` and `curves.png`; its folder `best` the same of the best epoch; and `training/` the checkpoints that
    `resume` needs to go on. Without a checkpoint, `resume` starts a new run. With a moving average, the saved weights
    are the averaged ones, and `raw` and `best_raw` hold the others. `max_steps` ends the run early, counted from its
    very start; SIGTERM and SIGUSR1 save a checkpoint and end it, as `stopped` in the result says. `trackers` are names
    that Accelerate knows. The result's speed is that of the steady run (`throughput.Clock`), and `profile` a JSON file
    that says where the device's time goes (`profiling.Profile`). Runs on every process that the launcher started; only
    the main one needs `output`, which no other run may use meanwhile, and profiles.
    Errors: `InputError` on a bad argument or data set, before anything is written, and where the loss is no longer
    finite; `LostProcessError` where another process is gone.
    """
    output, profile = Path(output), Path(profile) if profile else None
    with ExitStack() as on_exit:  # what must be undone at the end, whatever happens
        # -------------------------------------------------------------- arguments
        require_launcher(os.environ)
        source = _require_arguments(recipe, data, max_steps, trackers)
        compile_options = options_of(recipe.inductor, deterministic=recipe.deterministic) if recipe.compile else {}
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
        on_exit.enter_context(settings_of_run(device_type, deterministic=recipe.deterministic))

        # -------------------------------------------------------------- processes
        processes = Processes(
            device_type=device_type, mixed_precision=recipe.mixed_precision, trackers=trackers,
            folder=output / STATES_FOLDER,
        )  # fmt: skip
        on_exit.enter_context(watched())
        processes.require_all_joined(os.environ)
        say, main_process_first = processes.say, processes.accelerator.main_process_first
        if recipe.sync_bn and processes.device.type != "cuda":
            raise InputError("sync_bn=True: torch has it for CUDA devices only")
        if profile is not None:
            processes.from_main(lambda: require_profile(profile, max_steps))
        checkpoint = processes.from_main(lambda: begin(output, resume=resume, say=say, on_exit=on_exit))

        # -------------------------------------------------------------- data
        with main_process_first():
            start = start_of(recipe)
        with processes.main_first():  # where a format does not say its number of rows, this reads all of it
            train_split, eval_split = open_splits(
                source, recipe.train_split, recipe.eval_split, holdout=recipe.holdout, seed=recipe.seed,
                cache_gb=recipe.cache_gb,
            )  # fmt: skip
        num_classes = _num_classes(recipe, train_split)
        asked, (recipe, chosen) = recipe, resolved(recipe, start, images=train_split.rows)
        if chosen:
            say(chosen)
        plan = _plan_of_an_epoch(recipe, train_split, processes.count)
        total_steps = recipe.epochs * plan.steps
        last_step = min(total_steps, max_steps or total_steps)
        require_same_run_everywhere(recipe, train_split, last_step)
        say(
            f"{train_split.rows:,} training and {eval_split.rows:,} {eval_split.name} images of {num_classes} classes, "
            f"{plan.steps} steps an epoch, {last_step:,} steps"
        )
        if train_split.remote and train_split.parquet is not None:
            say(f"of the training data, {train_split.parquet.cache.summary()}")
        if eval_split.subset is None and eval_split.name == train_split.name:
            say("warning: what is measured here are the training images, so the accuracy says nothing of others")
        if processes.main and (few := few_classes(train_split, plan)):
            say(f"warning: {few}")
        if again := _fetched_again(recipe, train_split, plan, processes.count):
            say(f"warning: {again}")
        chance = chance_of(eval_split)
        if before := learnt_before(start.config, eval_split, share=recipe.holdout, seed=recipe.seed):
            say(f"warning: {before}")
        if chance is not None and chance.too_few_images:
            say(f"warning: {chance.too_few()}")

        # -------------------------------------------------------------- model
        # What a run starts from is the first of these that there is:
        # 1. a checkpoint in `output`: weights, optimiser, statistics and progress of the run that goes on;
        # 2. the weights that the recipe names, in a new run (see `initial_model`);
        # 3. nothing: weights drawn at random from the recipe's seed.
        torch.manual_seed(recipe.seed)  # the same start on every process
        with main_process_first():
            origin = origin_of(recipe.weights) if recipe.weights else None
            model = initial_model(recipe, num_classes)
        if origin is not None and not (recipe.license or origin.license):
            say(f"warning: {recipe.weights} name no licence, so seresnet-hub push will refuse it: add --set license=ID")
        learner = Learner(
            model, recipe, processes, num_classes=num_classes, plan=plan, device_type=device_type,
            compile_options=compile_options,
        )  # fmt: skip
        progress = Progress(steps_per_epoch=plan.steps, last_step=last_step)
        processes.from_main(lambda: _start_trackers(processes.accelerator, recipe))
        if checkpoint is not None:
            saved, damaged = checkpoint
            for warning in damaged:
                say(f"warning: {warning}; going back to the one before")
            require_same_run(saved, settings_of(recipe, train_split), total_steps)
            if saved["step"] > last_step:
                raise InputError(f"max_steps={max_steps}: the run in {output} is at step {saved['step']:,} already")
            learner.load_state_dict(saved)
            progress.load_state_dict(saved)
            if processes.main:  # the others were compared with it, and a copy of a file may have another time of change
                require_same_shards(train_split, saved["shards"])
            say(f"resuming {output} at step {progress.step:,} of {last_step:,}")

        # -------------------------------------------------------------- loop
        profiler = Profile(profile, processes.device, recipe, processes.count) if profile and processes.main else None
        clock = Clock(profiler)
        with (
            Interruption() as interruption,
            tqdm(
                total=_images_until(last_step, plan, recipe), initial=_images_until(progress.step, plan, recipe),
                desc=f"training {printable(recipe.model)}", unit="images", unit_scale=True, disable=not processes.main,
            ) as bar,
        ):  # fmt: skip
            loop = Loop(
                recipe=recipe, output=output, train_split=train_split, eval_split=eval_split,
                processes=processes, learner=learner, progress=progress, clock=clock, interruption=interruption,
                bar=bar, tracked=bool(trackers), has_checkpoint=checkpoint is not None,
                facts_of=partial(
                    facts_of_run, recipe, source, split=eval_split, origin=origin, steps=total_steps,
                    world_size=processes.count, asked=asked, max_steps=max_steps, chance=chance, learnt_before=before,
                ),
            )  # fmt: skip
            loop.run()

        # -------------------------------------------------------------- end
        accuracy, step = loop.accuracy, progress.step
        if accuracy is None and not loop.stopped:
            say(f"{output} is finished: it is measured once more")
            if progress.position:
                learner.statistics.share()
            accuracy = loop.evaluate(learner.measured)
        processes.accelerator.end_training()
        if (
            chance is not None
            and accuracy is not None
            and step == total_steps
            and (doubt := chance.doubt(accuracy.top1))
        ):
            say(f"warning: there is no evidence that the model learnt anything: {doubt}")
        if loop.stopped:
            by = interruption.name or "a signal to another process"
            say(f"stopped by {by} at step {step:,}: go on with --resume")
        if profiler is not None and profiler.summary is None:
            say(f"warning: no profile: {profiler.missing}")
        return {
            "output": str(output),
            "recipe": recipe.name,
            "model": recipe.model,
            "steps": step,
            "epochs": round(step / plan.steps, 4),
            "seen": progress.seen,
            "top1": round(accuracy.top1, 4) if accuracy else None,
            "top5": round(accuracy.top5, 4) if accuracy else None,
            **clock.result(processes.device),
            "stopped": (interruption.name or "signal") if loop.stopped else None,
            **({"profile": profiler and profiler.summary} if profile else {}),
        }


def _require_arguments(recipe: Recipe, data: str | None, max_steps: int | None, trackers: Sequence[str]) -> str:
    """Return the data set to train on; `InputError` on arguments that are wrong whatever is in it."""
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
    return source


def _num_classes(recipe: Recipe, split: Split) -> int:
    """Return the number of classes to train; `InputError` where data and recipe disagree, or neither says it."""
    named = len(split.class_names) if split.class_names else None
    if recipe.num_classes and named and recipe.num_classes != named:
        raise InputError(f"num_classes={recipe.num_classes}, but {split.source} has {named} classes")
    number = recipe.num_classes or named
    if not number:
        raise InputError(f"{split.source} does not say how many classes it has: add --set num_classes=N")
    if number == 1:
        raise InputError(f"{split.source} has one class only: a classifier needs two or more")
    return number


def _plan_of_an_epoch(recipe: Recipe, split: Split, world_size: int) -> Plan:
    """Return the plan of the first epoch, whose batches are as large as any other's; `InputError` where it has none."""
    if recipe.batch_size < world_size:
        raise InputError(f"batch_size={recipe.batch_size} cannot be shared by {world_size} processes")
    plan = epoch_plan(split, recipe, seed=recipe.seed, epoch=0)
    if plan.steps == 0:
        way_out = f", less than a batch of {recipe.batch_size}: set drop_last=false" if split.rows else ""
        raise InputError(f"split {split.name!r} of {split.source} has {split.rows} images{way_out}")
    return plan


def _fetched_again(recipe: Recipe, split: Split, plan: Plan, world_size: int) -> str | None:
    """Say so where loader workers that share lanes fetch the same units, and nothing is kept on the disk."""
    if not split.streamed or (split.parquet is not None and split.parquet.cache.keeps_all):
        return None
    readings = plan.readings(world_size, max(recipe.workers, 1))
    if readings < 1.25:
        return None
    return (
        f"each part of {split.source} is fetched {readings:.1f} times an epoch, as {world_size} x {recipe.workers} "
        f"workers share {plan.lanes} lanes and batches of {plan.batch_size} images; set workers so that processes x "
        "workers divides both numbers, or copy the data set to this machine"
    )


def _images_until(step: int, plan: Plan, recipe: Recipe) -> int:
    """Return how many images the batches before a step have, those that are seen several times counted so."""
    epochs, batches = divmod(step, plan.steps)
    return (epochs * plan.rows_until(plan.steps) + plan.rows_until(batches)) * recipe.repeated_augmentation


def _start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the trackers that were asked for; `InputError` where one of them cannot, as without a login."""
    try:
        accelerator.init_trackers("seresnet_hub", config={k: str(v) for k, v in dataclasses.asdict(recipe).items()})
    except Exception as error:  # each tracker has its own
        raise InputError(f"the trackers {accelerator.log_with} do not start: {error}") from error
