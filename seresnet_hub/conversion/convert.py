"""Convert a checkpoint of another code base into a folder that timm loads, and show that it computes the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from seresnet_hub.conversion.planning import plan_network
from seresnet_hub.conversion.proof import prove
from seresnet_hub.conversion.provenance import assumptions, config_of, facts_of, licence_of, provenance_of, untrained
from seresnet_hub.conversion.sidecar_files import read_labels
from seresnet_hub.conversion.source_file import read_source_file
from seresnet_hub.conversion.writing import require_writable, write_converted
from seresnet_hub.files.model_folder import FACTS_KEY
from seresnet_hub.hub.client import require_licence_id
from seresnet_hub.hub.messages import say


def convert(
    src: str | Path,
    output: str | Path,
    *,
    model: str | None = None,
    source: str | None = None,
    num_classes: int | None = None,
    labels: str | Path | None = None,
    license: str | None = None,
    force: bool = False,
    verify: bool = True,
) -> dict[str, Any]:
    """Convert the checkpoint `src` into the model folder `output`, and return what was made of it.

    `src` is a file, an `http(s)` address or a Hub file `NS/NAME:path`. `model` and `source` override what the file's
    tensors say, and are checked. `num_classes` other than the file's gives the model a new classifier (0: none).
    `labels` is a text file with one class name a line. `license` is the weights' licence, as the Hub's identifier;
    without it, they have the one that is known of this very file, or none. With `verify`, the model's stage features
    and logits are compared with the source's own network in float64. Errors: `InputError` says what cannot be converted
    exactly, and why.
    """
    target = Path(output)
    require_writable(target, force=force)
    require_licence_id(license)
    class_names = read_labels(Path(labels)) if labels is not None else ()

    # What the file is, and what its tensors are.
    file = read_source_file(str(src), source)
    plan = plan_network(file, model=model, num_classes=num_classes)

    # What is said of the weights, in the config, in their header and on the card.
    licence = licence_of(license, file)
    config = config_of(file, plan, class_names, licence)
    assumed = assumptions(file, plan, config)
    provenance = provenance_of(file, plan, licence, assumed)
    config[FACTS_KEY] = facts_of(file, plan, provenance)

    with ThreadPoolExecutor(1) as prover:  # the proof computes while the weights are written
        proof = prover.submit(lambda: prove(file.source, file.tensors, plan) if verify else None)
        sha256, difference = write_converted(target, plan, config, provenance, proof.result)
    if plan.fresh:
        say(f"warning: {untrained(plan.fresh)}")
    if not licence:
        say("warning: no licence is known for these weights, so seresnet-hub push will refuse them: add --license ID")
    return {
        "output": str(target),
        "source": file.source.name,
        "architecture": plan.architecture,
        "model_args": plan.model_args,
        "tensors": len(plan.tensors),
        "parameters": plan.sizes.parameters,
        "sha256_source": file.checkpoint.sha256,
        "sha256_weights": sha256,
        "max_abs_diff": difference,
        "dropped": list(plan.dropped),
        "fresh": list(plan.fresh),
        "assumed": assumed,
    }
