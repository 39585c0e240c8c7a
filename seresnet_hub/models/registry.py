"""The one place that touches timm's model registry: new entrypoints, and new tags on timm's own architectures.

timm offers no public call that adds a pretrained tag to an architecture it owns (registering the entrypoint again would
replace its tags and default). The four tables named here are what that needs; `_require_known_registry` says so, where
a later timm keeps them otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from timm.models import _registry, model_entrypoint, register_model
from timm.models._pretrained import DefaultCfg, PretrainedCfg
from torch import nn

TABLES: dict[str, type] = {
    "_model_default_cfgs": dict,
    "_model_pretrained_cfgs": dict,
    "_model_has_pretrained": set,
    "_model_with_tags": dict,
}


def _require_known_registry() -> None:
    wrong = [name for name, kind in TABLES.items() if not isinstance(getattr(_registry, name, None), kind)]
    if not isinstance(_registry._model_default_cfgs.get("seresnet50") if not wrong else None, DefaultCfg):
        wrong = wrong or ["_model_default_cfgs['seresnet50']"]
    if wrong:
        raise ImportError(
            f"timm {timm.__version__} keeps its models differently: {', '.join(wrong)} in timm.models._registry is not "
            f"what seresnet_hub knows; use an older timm or update seresnet_hub"
        )


def add_tag(architecture: str, tag: str, cfg: PretrainedCfg) -> None:
    """Add a pretrained tag to an architecture that timm owns; it becomes the default only where timm has no weights.

    Of the tags that this package adds, that is `seresnet101.mm_in1k` alone: `seresnet101` means these weights then.
    Does nothing where the tag is there already. Errors: `ImportError` where timm's registry is not as expected.
    """
    _require_known_registry()
    name = f"{architecture}.{tag}"
    if name in _registry._model_pretrained_cfgs:
        return
    known = _registry._model_default_cfgs[architecture]
    known.cfgs[tag] = cfg
    _registry._model_pretrained_cfgs[name] = cfg
    _registry._model_has_pretrained.add(name)
    _registry._model_with_tags[architecture].append(name)
    if known.is_pretrained:
        known.tags.append(tag)
        return
    known.tags.appendleft(tag)
    known.is_pretrained = True
    _registry._model_pretrained_cfgs[architecture] = cfg
    _registry._model_has_pretrained.add(architecture)


def add_entrypoint(module: str, name: str, doc: str, build: Callable[..., nn.Module]) -> None:
    """Register a new architecture, as an entrypoint of the module that holds its `default_cfgs`.

    Does nothing where that module registered it already. Errors: `ImportError` where timm has a model of that name.
    """
    if timm.is_model(name):
        if getattr(model_entrypoint(name), "__module__", "") != module:
            raise ImportError(f"timm {timm.__version__} has a model {name!r} of its own: update seresnet_hub")
        return

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(pretrained=pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = module
    entrypoint.__doc__ = doc
    register_model(entrypoint)
