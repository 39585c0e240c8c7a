"""Write a traced network as torch's own file, which plain torch runs without this package, and read it back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from seresnet_hub.engines.export_facts import ExportFacts
from seresnet_hub.errors import InputError, message_of
from seresnet_hub.exporting.tracing import quiet

FACTS_FILE = "seresnet_hub.json"  # among the extra files of the archive


def write_torch_export(program: torch.export.ExportedProgram, path: Path, facts: ExportFacts) -> None:
    """Write a `.pt2` archive with the facts as an extra file. Errors: `InputError` where torch cannot write it."""
    try:
        with quiet():
            torch.export.save(program, path, extra_files={FACTS_FILE: json.dumps(facts.to_text())})
    except OSError:
        raise
    except Exception as error:  # of the archive's own writer
        raise InputError(f"torch cannot write {path}: {message_of(error)}") from error


def run_torch_export(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what runs a file that `write_torch_export` has just written: arrays in, arrays out.

    For this process's own files alone: torch reads such an archive without checks.
    """
    try:
        with quiet():
            network = torch.export.load(path).module()
    except Exception as error:
        raise InputError(f"torch cannot read {path}: {message_of(error)}") from error

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            outputs: np.ndarray = network(torch.from_numpy(images)).numpy()
        return outputs

    return run
