"""Loading the plugin must leave every name, config and output of timm as it was, and print nothing.

So must every default, but for `seresnet101`: timm has no weights for it, and ours become its default. Two processes,
one with the plugin and one without, describe timm's registry; only our additions may differ.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import timm
from warm_python import run_python

import seresnet_hub
from seresnet_hub.models import registry
from seresnet_hub.models.published_weights import OWN_WEIGHTS, WEIGHTS

DESCRIBE = """
import json, timm, torch
names = {}
for name in timm.list_models(include_tags=False):
    cfg = timm.models.get_pretrained_cfg(name)
    arch = timm.models.get_arch_pretrained_cfgs(name)
    names[name] = {
        "tag": cfg and cfg.tag, "cfg": cfg and repr(sorted(cfg.to_dict().items(), key=str)),
        "tags": {tag: repr(sorted(c.to_dict().items(), key=str)) for tag, c in arch.items()},
        "entrypoint": timm.models.model_entrypoint(name).__module__,
        "pretrained": timm.models.is_model_pretrained(name),
    }
print(json.dumps({"names": names, "pretrained": timm.list_pretrained(), "modules": sorted(timm.list_modules()),
                  "deprecated": sorted(timm.models.get_deprecated_models())}))
"""

SE_RESNETS = sorted(
    name
    for name in timm.list_models(["*seres*", "legacy_se*", "senet*"])
    if name not in seresnet_hub.list_models()
)  # fmt: skip

OUTPUTS = """
import hashlib, json, sys, timm, torch
found = {}
for name in json.loads(sys.argv[1]):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    with torch.no_grad():
        found[name] = hashlib.sha256(model(torch.ones(1, 3, 64, 64)).numpy().tobytes()).hexdigest()
    del model
print(json.dumps(found))
"""

IMPORT = "import seresnet_hub\n"
FILTERS = ["-W", "error", "-W", "ignore:`torch.jit:DeprecationWarning", "-W", "ignore:`torch.jit:FutureWarning"]


def run(code: str, *arguments: str) -> Any:
    command = [sys.executable, *FILTERS, "-c", code, *arguments]
    done = run_python(command, timeout=900)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_only_our_names_and_weights_are_added() -> None:
    without, within = run(DESCRIBE), run(IMPORT + DESCRIBE)
    assert set(within["names"]) - set(without["names"]) == set(seresnet_hub.list_models())
    assert set(within["pretrained"]) - set(without["pretrained"]) == {
        weights.name for weights in (*WEIGHTS, *OWN_WEIGHTS)
    }
    assert set(without["pretrained"]) <= set(within["pretrained"])
    assert within["deprecated"] == without["deprecated"]
    assert set(without["modules"]) <= set(within["modules"])
    for name, before in without["names"].items():
        after = within["names"][name]
        added = {f"{w.architecture}.{w.tag}" for w in WEIGHTS if w.architecture == name}
        assert set(after["tags"]) - set(before["tags"]) == added
        assert {tag: after["tags"][tag] for tag in before["tags"]} == before["tags"]
        assert after["entrypoint"] == before["entrypoint"]
        if added and not before["pretrained"]:
            assert (name, after["tag"], after["pretrained"]) == ("seresnet101", "mm_in1k", True)
        else:
            assert {**after, "tags": None} == {**before, "tags": None}
    assert len(without["names"]) > 1000


def test_outputs_of_timms_small_se_resnets_stay() -> None:
    small = json.dumps([name for name in SE_RESNETS if name.endswith(("18", "34", "50", "26d_32x4d"))])
    assert run(OUTPUTS, small) == run(IMPORT + OUTPUTS, small)


@pytest.mark.slow
def test_outputs_of_all_of_timms_se_resnets_stay() -> None:
    names = json.dumps(SE_RESNETS)
    before = run(OUTPUTS, names)
    assert run(IMPORT + OUTPUTS, names) == before
    assert len(before) >= 30
    assert len(set(before.values())) == len(before)


@pytest.mark.parametrize("table", sorted(registry.TABLES))
def test_another_timm_registry_is_refused_by_name(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(registry._registry, table)
    with pytest.raises(ImportError, match=rf"timm {timm.__version__} keeps its models differently: {table}"):
        registry.add_tag("seresnet50", "anything", timm.models.PretrainedCfg())


def test_a_name_that_timm_takes_is_never_replaced() -> None:
    entrypoint = timm.models.model_entrypoint("resnet18")
    with pytest.raises(ImportError, match="'resnet18' of its own"):
        registry.add_entrypoint("seresnet_hub.models.create", "resnet18", "", lambda **_: None)
    assert timm.models.model_entrypoint("resnet18") is entrypoint
