"""Read the name of a model as a person types it: the one place that says which names mean what."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import timm

from seresnet_hub.data.read_image import ENDINGS
from seresnet_hub.engines.exported_names import exported_name
from seresnet_hub.errors import InputError
from seresnet_hub.files.model_folder import CONFIG_NAME, WEIGHTS_NAME
from seresnet_hub.hub.revisions import check_repo_id, require_revision
from seresnet_hub.models.name_forms import NAME_FORMS
from seresnet_hub.models.published_weights import WEIGHTS

HUB, FOLDER = "hf-hub", "local-dir"


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """What a name means: a folder, a Hub repository at a revision, or, with neither, timm's `name`.

    `name` is the name as timm takes it, `architecture.tag`, `hf-hub:NS/NAME[@rev]` or `local-dir:DIR`.
    """

    name: str
    folder: Path | None = None
    repo_id: str = ""
    revision: str | None = None


def parse_name(given: str | Path) -> ModelName:
    """Return what a model's name means; a `Path` is always a folder.

    Prefixes count in any case, as in timm. Without one, mmpretrain's and timm's names come first (`./NAME` is a folder
    of such a name), then a folder that exists, then the Hub: `hf-hub:` before NS/NAME asks the Hub although there is a
    folder NS/NAME. A leading `~` is the home folder. Errors: `InputError` where the name can mean nothing, timm has no
    such tag, or the name is an exported file's, which has no network in it.
    """
    if isinstance(given, Path):
        return _folder(str(given))
    if exported_name(given) is not None:
        raise InputError(
            f"{given} is an exported file, which load, predict and validate take; this needs the network itself: name "
            "the model that it was made from"
        )
    if not given.strip():
        raise InputError(f"model {given!r} is empty: a model is {NAME_FORMS}")
    kind, rest = _kind(given)
    if kind and not rest.strip():
        raise InputError(f"model {given!r}: a name is missing after {given}")
    if kind == FOLDER:
        return _folder(rest)
    if kind == HUB:
        return _repository(rest)
    if (timms := _timms_name(given)) is not None:
        return ModelName(name=timms)
    if os.path.isdir(given):
        return _folder(given)
    if "://" in given:
        raise InputError(f"model {given!r} is an address: a model is {NAME_FORMS}; convert a checkpoint first")
    repo_id = given.partition("@")[0]  # a revision may have slashes, as refs/pr/1 has
    if given.startswith((".", "~", os.sep)) or repo_id.count("/") > 1 or repo_id.endswith("/"):
        return _folder(given)
    if "/" in repo_id:
        if os.path.isdir(repo_id.partition("/")[0]):  # rather a folder misspelt than a repository
            raise InputError(f"{given}: there is no such folder; for the Hub's repository write {HUB}:{given}")
        return _repository(given)
    if timm.is_model(given.partition(".")[0]):  # and a slash after an "@"
        raise InputError(f"timm has no weights {given!r}")
    if not re.fullmatch(r"[\w.-]+", given):  # older versions of timm find one of its prefixes in " local-dir:x", too
        raise InputError(f"model {given!r} is no name of a model: a model is {NAME_FORMS}")
    return ModelName(name=given)  # unknown: timm says so


def architecture_of(given: str) -> str:
    """Return the architecture of timm's that a name of timm's or mmpretrain's means, without the tag of any weights.

    Errors: `InputError` where it means anything else, a folder or a repository too.
    """
    name = _timms_name(given)
    if name is None:
        raise InputError(f"timm has no architecture {given!r}; see timm.list_models('*se*')")
    return name.partition(".")[0]


def _kind(given: str) -> tuple[str, str]:
    """Return a name's prefix as timm spells it and what follows, or "" and the name where it has none."""
    prefix, colon, rest = given.partition(":")
    kind = prefix.lower().replace("hf_hub", HUB) if colon else ""
    return (kind, rest) if kind in (HUB, FOLDER) else ("", given)


def is_model_folder(path: str | Path) -> bool:
    """Return whether the folder is meant for a model: it has the weights or the config of one."""
    return any(os.path.isfile(os.path.join(path, name)) for name in (CONFIG_NAME, WEIGHTS_NAME))


def is_model_name(given: str) -> bool:
    """Return whether an argument names a model where it may as well be a picture or a folder of pictures.

    An existing folder counts if it holds a model or is called like a timm model; an existing file never does; any other
    text counts unless it is an address or a pattern, or ends like a picture or the file of a data set.
    """
    if given == "-":  # standard input
        return False
    if _kind(given)[0] or exported_name(given) is not None:
        return True
    if os.path.isdir(given):
        return is_model_folder(given) or _timms_name(given) is not None
    if os.path.exists(given) or "://" in given or "*" in given:
        return False
    return Path(given).suffix.lower() not in ENDINGS | {".parquet", ".tar"}


def require_model_folder(directory: Path) -> None:
    """Raise `InputError` where the folder is missing, or lacks one of the two files that make a model."""
    if not os.path.isdir(directory):  # which is false of a name that is too long
        raise InputError(f"{directory}: there is no such folder")
    if not os.path.isfile(directory / WEIGHTS_NAME):
        raise InputError(f"{directory} has no {WEIGHTS_NAME}, and pickles are not loaded: convert them first")
    if not os.path.isfile(directory / CONFIG_NAME):
        raise InputError(f"{directory} has no {CONFIG_NAME}, which says what network its {WEIGHTS_NAME} belongs to")


def timms_name_of(directory: Path) -> str:
    """Return timm's name of a folder. Errors: `InputError` where its version takes another folder than is named."""
    name = f"{FOLDER}:{directory}"
    if timm.models.parse_model_name(name) != (FOLDER, str(directory)):  # older ones read it as an address
        raise InputError(f"timm {timm.__version__} cannot read a folder named {str(directory)!r}: rename it")
    return name


def _folder(path: str) -> ModelName:
    if "\0" in path:
        raise InputError(f"model folder {path!r}: no path has a zero byte in it")
    path = os.path.expanduser(path)
    return ModelName(name=f"{FOLDER}:{path}", folder=Path(path))


def _repository(given: str) -> ModelName:
    repo_id, _, revision = given.partition("@")
    check_repo_id(repo_id)
    if revision:
        require_revision(revision)  # the cache has a file of this name
    name = f"{HUB}:{repo_id}@{revision}" if revision else f"{HUB}:{repo_id}"
    return ModelName(name=name, repo_id=repo_id, revision=revision or None)


def _timms_name(given: str) -> str | None:
    """Return timm's name where `given` is one, or mmpretrain's.

    Errors: `InputError` where only the architecture is known, and there is no folder of that name.
    """
    name = next((weights.name for weights in WEIGHTS if weights.source_name == given), given)
    architecture, _, tag = name.partition(".")
    if "/" in name or not timm.is_model(architecture):
        return None
    known = list(timm.models.get_arch_pretrained_cfgs(architecture))
    if tag and known and name not in known:
        if os.path.isdir(name):
            return None
        raise InputError(f"timm has no weights {name!r}; of {architecture} it has {', '.join(known)}")
    return name
