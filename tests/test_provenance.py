"""What nobody said of the weights is not claimed: licence, preprocessing, training."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
from foreign_files import SHORT, bare_file, load, saved, small
from references import networks
from safetensors import safe_open
from safetensors.torch import save_file

from seresnet_hub.checkpoints.key_maps import SOURCES
from seresnet_hub.checkpoints.renaming import Source
from seresnet_hub.conversion import source_file
from seresnet_hub.conversion.convert import convert
from seresnet_hub.conversion.provenance import licence_of
from seresnet_hub.conversion.source_file import published_file
from seresnet_hub.errors import InputError
from seresnet_hub.models.published_weights import WEIGHTS
from seresnet_hub.publishing.push import push

pytestmark = pytest.mark.usefixtures("quick_weights")

OF_OTHER_WEIGHTS = {"license", "paper_ids", "origin_url", "test_input_size", "test_crop_pct", "hf_hub_id", "url"}


def test_a_file_that_says_nothing_gets_no_licence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, path in (("timm", bare_file(tmp_path)), ("mmpretrain", saved(small(), tmp_path / "a.pth"))):
        convert(path, tmp_path / name)
        assert "warning: no licence is known" in capsys.readouterr().err
        text = (tmp_path / name / "config.json").read_text()
        config = json.loads(text)
        assert not OF_OTHER_WEIGHTS & set(config["pretrained_cfg"])
        assert config["seresnet_hub"]["license"] == ""
        with safe_open(tmp_path / name / "model.safetensors", framework="pt") as file:
            assert "license" not in file.metadata()
        card = (tmp_path / name / "README.md").read_text()
        assert "No licence is known" in card
        assert "apache" not in card + text
        assert load(tmp_path / name).pretrained_cfg.get("license") is None
        with pytest.raises(InputError, match="names no licence.*--license ID"):
            push(tmp_path / name, "someone/model", dry_run=True)


def test_the_licence_that_is_given_is_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bare_file(tmp_path)
    convert(path, tmp_path / "out", license="cc-by-nc-4.0")
    assert "licence" not in capsys.readouterr().err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["seresnet_hub"]["license"] == config["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
    assert "\nlicense: cc-by-nc-4.0\n" in (tmp_path / "out" / "README.md").read_text()
    # A config beside the weights keeps what it names, unless another is given.
    convert(tmp_path / "out" / "model.safetensors", tmp_path / "again")
    convert(tmp_path / "out" / "model.safetensors", tmp_path / "other", license="mit")
    for name, license in (("again", "cc-by-nc-4.0"), ("other", "mit")):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["seresnet_hub"]["license"] == config["pretrained_cfg"]["license"] == license
    for wrong in ("", "Apache 2.0", "mit\nx"):
        with pytest.raises(InputError, match="--license .*apache-2.0, mit"):
            convert(path, tmp_path / "wrong", license=wrong)


def test_published_files_are_known_by_hash_or_address() -> None:
    known = published_file("8efdb4bb" + "0" * 56)
    assert known is not None
    assert (known.architecture, known.tag, known.license) == ("seresnet50", "ra2_in1k", "apache-2.0")
    assert published_file("0" * 64) is None
    kinds = {kind.name: kind for kind in SOURCES}

    def licence(kind: Source, address: str, **facts: object) -> str:
        usual = {"known": None, "published": None, "own_config": {}, "repo_id": ""}
        return licence_of(None, SimpleNamespace(source=kind, address=address, **(usual | facts)))  # type: ignore[arg-type]

    assert licence(kinds["timm"], "x.pth", published=known) == "apache-2.0"
    assert licence(kinds["mmpretrain"], "x.pth", known=WEIGHTS[0]) == "apache-2.0"
    at_home = "https://github.com/osmr/imgclsmob/releases/download/v0.0.1/seresnet50b-0560-2f7bc1ed.pth.zip"
    assert licence(kinds["pytorchcv"], at_home) == "mit"
    assert [licence(kind, "http://elsewhere/x.pth") for kind in SOURCES] == [""] * len(SOURCES)


def test_a_published_file_is_prepared_as_its_authors_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's record of the file also names networks that tensors do not show, such as anti-aliased ones."""
    original = networks.randomise(timm.create_model("seresnextaa101d_32x8d", layers=[1, 1, 1, 1], num_classes=5))
    path = saved(original.state_dict(), tmp_path / "a.pth")
    record = timm.get_pretrained_cfg("seresnextaa101d_32x8d.ah_in1k")
    monkeypatch.setattr(source_file, "published_file", lambda sha256: record)
    with pytest.raises(InputError, match="do not fit seresnextaa101d_32x8d"):  # its depth is the published one
        convert(path, tmp_path / "out")
    path = bare_file(tmp_path)
    record = dataclasses.replace(
        timm.get_pretrained_cfg("seresnet50.ra2_in1k"), architecture="seresnet18", crop_pct=0.9
    )
    result = convert(path, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (result["architecture"], result["assumed"]) == ("seresnet18", "")
    assert (config["pretrained_cfg"]["crop_pct"], config["pretrained_cfg"]["license"]) == (0.9, "apache-2.0")


@pytest.mark.parametrize("recorded", [{"model.safetensors": "0" * 64}, {"other.safetensors": "0" * 64}, None])
def test_a_config_lends_nothing_to_other_weights_beside_it(
    tmp_path: Path, recorded: dict[str, str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its licence and accuracies are of the file that it describes; where both came from is written in any case."""
    folder, weights = tmp_path / "in", "other.safetensors"
    convert(bare_file(tmp_path), folder, license="mit")
    config = json.loads((folder / "config.json").read_text())
    facts = {**config["seresnet_hub"], "title": "best net"}
    config["seresnet_hub"] = (
        {**facts, "sha256": recorded} if recorded else {k: v for k, v in facts.items() if k != "sha256"}
    )
    (folder / "config.json").write_text(json.dumps(config))
    other = networks.randomise(timm.create_model("seresnet18", num_classes=3), seed=9)
    save_file(other.state_dict(), folder / weights)
    result = convert(folder / weights, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert made["seresnet_hub"]["title"] != "best net"
    assert (made["seresnet_hub"]["license"], made["pretrained_cfg"].get("license")) == ("", None)
    assert made["seresnet_hub"]["provenance"]["source_sha256"] == result["sha256_source"]
    assert "no licence is known" in capsys.readouterr().err


def test_a_config_lends_what_it_states_to_the_weights_that_it_describes(tmp_path: Path) -> None:
    convert(bare_file(tmp_path), tmp_path / "in", license="mit")
    result = convert(tmp_path / "in" / "model.safetensors", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "config.json").read_text())["seresnet_hub"]
    assert facts["license"] == "mit"
    assert facts["provenance"]["source_sha256"] == result["sha256_source"]


def test_guessed_preprocessing_is_listed(tmp_path: Path) -> None:
    result = convert(bare_file(tmp_path), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    cfg = config["pretrained_cfg"]
    for text in (
        f"images of {cfg['input_size'][1]} x {cfg['input_size'][2]}", f"mean {tuple(cfg['mean'])}",
        f"std {tuple(cfg['std'])}", f"{cfg['interpolation']} interpolation", f"crop_pct {cfg['crop_pct']}",
    ):  # fmt: skip
        assert text in result["assumed"]
        assert text in config["seresnet_hub"]["provenance"]["assumed"]
        assert text in (tmp_path / "out" / "README.md").read_text()
    # What the config beside the weights names is not assumed.
    (tmp_path / "in").mkdir()
    save_file(load(tmp_path / "out").state_dict(), tmp_path / "in" / "model.safetensors")
    said = {"architecture": "seresnet18", "pretrained_cfg": {k: cfg[k] for k in ("input_size", "mean", "std")}}
    (tmp_path / "in" / "config.json").write_text(json.dumps(said))
    assumed = convert(tmp_path / "in" / "model.safetensors", tmp_path / "third")["assumed"]
    expected = f"{cfg['interpolation']} interpolation, crop_pct {cfg['crop_pct']}"
    assert assumed == f"nothing says how images were prepared: {expected} are assumed"


@pytest.mark.parametrize(
    ("num_classes", "message"),
    [(None, "8 SE units are new"), (3, "8 SE units and the classifier are new")],
)
def test_new_tensors_are_warned_of(
    tmp_path: Path, num_classes: int | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects from using drawn numbers as if they were trained."""
    path = saved(networks.randomise(timm.create_model("resnet18", num_classes=2)).state_dict(), tmp_path / "a.pth")
    convert(path, tmp_path / "out", num_classes=num_classes)
    assert f"warning: {message} and untrained: fine-tune before use\n" in capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"> **{message} and untrained: fine-tune before use.**" in card
    compared = "stage features and logits" if num_classes is None else "stage features"
    claim = "Without its new SE units the converted network was compared with the source's own in float64: "
    assert f"{claim}{compared} differ by at most " in card


def test_labels(tmp_path: Path) -> None:
    """Protects class names: as many as classes, in the config."""
    state = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False, classes=2)).checkpoint("backbone.")
    path = saved(state, tmp_path / "a.pth")
    (tmp_path / "three.txt").write_text("x\ny\nz\n")
    with pytest.raises(InputError, match="3 labels for 2 classes"):
        convert(path, tmp_path / "out", labels=tmp_path / "three.txt")
    (tmp_path / "two.txt").write_text("x\ny\n")
    convert(path, tmp_path / "out", labels=tmp_path / "two.txt")
    assert load(tmp_path / "out").pretrained_cfg["label_names"] == ["x", "y"]


def test_text_that_utf8_cannot_write(tmp_path: Path) -> None:
    """Protects from half surrogate pairs in class names and bytes in file names."""
    content = {"meta": {"CLASSES": ["\ud800"] * 10}, "state_dict": small()}
    convert(saved(content, tmp_path / os.fsdecode(b"\xff.pth")), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == ["?"] * 10
