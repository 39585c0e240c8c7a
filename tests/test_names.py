"""One name must mean one model everywhere, whatever its prefix's case, and a folder that exists is never the Hub's."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm

import seresnet_hub
from seresnet_hub.errors import InputError
from seresnet_hub.models.names import ModelName, architecture_of, is_model_name, parse_name, timms_name_of


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a model folder, one of pictures, one called like a model of timm's, and a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for folder in ("runs/digits", "photos/cats", "resnet18", "deep/er/down", "seresnet50.mine/best", "resnet18.a/b/c"):
        Path(folder).mkdir(parents=True)
    for file in ("runs/digits/config.json", "runs/digits/model.safetensors", "photos/cats/1.png", "resnet34.png"):
        Path(file).write_bytes(b"")


@pytest.mark.parametrize(
    ("given", "name", "folder", "repo_id", "revision"),
    [
        ("seresnet50", "seresnet50", None, "", None),
        ("seresnet50.ra2_in1k", "seresnet50.ra2_in1k", None, "", None),
        ("seresnet50.mm_in1k", "seresnet50.mm_in1k", None, "", None),
        ("seresnet20_cifar.untrained", "seresnet20_cifar.untrained", None, "", None),
        ("seresnet50_8xb32_in1k", "seresnet50.mm_in1k", None, "", None),
        ("runs/digits", "local-dir:runs/digits", "runs/digits", "", None),
        ("runs/digits/", "local-dir:runs/digits/", "runs/digits", "", None),
        ("./runs/digits", "local-dir:./runs/digits", "runs/digits", "", None),
        ("deep/er/down", "local-dir:deep/er/down", "deep/er/down", "", None),
        (Path("runs/digits"), "local-dir:runs/digits", "runs/digits", "", None),
        (Path("nowhere"), "local-dir:nowhere", "nowhere", "", None),
        ("local-dir:runs/digits", "local-dir:runs/digits", "runs/digits", "", None),
        ("LOCAL-DIR:runs/digits", "local-dir:runs/digits", "runs/digits", "", None),
        ("Local-Dir:no:where@x", "local-dir:no:where@x", "no:where@x", "", None),
        ("./nowhere", "local-dir:./nowhere", "nowhere", "", None),
        ("/no/where", "local-dir:/no/where", "/no/where", "", None),
        ("resnet18", "resnet18", None, "", None),  # timm's name before a folder's
        ("./resnet18", "local-dir:./resnet18", "resnet18", "", None),
        ("hf-hub:runs/digits", "hf-hub:runs/digits", None, "runs/digits", None),
        ("HF-HUB:someone/model@v1", "hf-hub:someone/model@v1", None, "someone/model", "v1"),
        ("Hf_Hub:someone/model", "hf-hub:someone/model", None, "someone/model", None),
        ("hf_hub:someone/model", "hf-hub:someone/model", None, "someone/model", None),
        ("someone/model", "hf-hub:someone/model", None, "someone/model", None),
        ("seresnet50.mine/best", "local-dir:seresnet50.mine/best", "seresnet50.mine/best", "", None),
        ("resnet18.a/b/c", "local-dir:resnet18.a/b/c", "resnet18.a/b/c", "", None),
        ("resnet18.z/b/c", "local-dir:resnet18.z/b/c", "resnet18.z/b/c", "", None),
        ("seresnet50.mine/", "local-dir:seresnet50.mine/", "seresnet50.mine", "", None),
        ("seresnet50.mine", "local-dir:seresnet50.mine", "seresnet50.mine", "", None),
        ("~/model", "local-dir:/home/me/model", "/home/me/model", "", None),
        ("local-dir:~/model", "local-dir:/home/me/model", "/home/me/model", "", None),
        ("resnet18.other/model", "hf-hub:resnet18.other/model", None, "resnet18.other/model", None),
        ("a/b@" + "0f" * 20, "hf-hub:a/b@" + "0f" * 20, None, "a/b", "0f" * 20),
        ("someone/model@refs/pr/1", "hf-hub:someone/model@refs/pr/1", None, "someone/model", "refs/pr/1"),
        ("hf-hub:someone/model@", "hf-hub:someone/model", None, "someone/model", None),
        ("hf-hub:someone/model@refs/pr/1", "hf-hub:someone/model@refs/pr/1", None, "someone/model", "refs/pr/1"),
    ],
)
def test_a_name_means_one_thing(
    given: str | Path, name: str, folder: str | None, repo_id: str, revision: str | None
) -> None:
    found = parse_name(given)
    expected_folder = None if folder is None else Path(folder)
    assert found == ModelName(name=name, folder=expected_folder, repo_id=repo_id, revision=revision)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "seresnet50.mm_in1k_",
            r"timm has no weights 'seresnet50.mm_in1k_'; of seresnet50 it has .*seresnet50.mm_in1k",
        ),
        ("seresnet20_cifar.c10@x", r"timm has no weights 'seresnet20_cifar.c10@x'; .* has .*seresnet20_cifar.c10"),
        ("runs/digitz", "runs/digitz: there is no such folder; for the Hub's repository write hf-hub:runs/digitz"),
        (
            "runs/digitz@refs/pr/1",
            "there is no such folder; for the Hub's repository write hf-hub:runs/digitz@refs/pr/1",
        ),
        ("hf-hub:", "a name is missing after hf-hub:"),
        ("LOCAL-DIR:", "a name is missing after LOCAL-DIR:"),
        ("seresnet20_cifar.c10@../../x", "timm has no weights 'seresnet20_cifar.c10@../../x'"),
        ("~\0/a", "no path has a zero byte in it"),
        ("", "model '' is empty"),
        (" ", "model ' ' is empty"),
        ("local-dir: ", "a name is missing"),
        ("local-dir:a\0b", "no path has a zero byte in it"),
        ("someone/model@../../x", "'../../x' is no name of a commit, a branch or a tag"),
        ("someone/model@a b", "'a b' is no name of a commit"),
        ("someone/model@-d", "'-d' is no name of a commit"),
        ("hf-hub:someone/model@refs//x", "is no name of a commit"),
        ("hf-hub:someone/model@a\u202eb", "is no name of a commit"),
        ("someone/model@" + "a" * 201, "is no name of a commit.*: it has more than 200 bytes"),
        ("local-dir:" + "a" * 300, "there is no such folder"),
        ("hf-hub:someone", "'someone' is no name of a repository"),
        ("a b/c", "'a b/c' is no name of a repository"),
        ("https://example.org/a.pth", "is an address"),
        ("nothing9000", "cannot create model 'nothing9000': Unknown model"),
        ("local-dir:nowhere", "nowhere: there is no such folder"),
        ("photos/cats", "photos/cats has no model.safetensors"),
        ("a" * 300, "cannot create model 'a+': Unknown model"),
        ("a\0b", r"model 'a\\x00b' is no name of a model"),
        # Older versions of timm find the prefix in them, and load pickles from the folder.
        (" local-dir:nowhere", "' local-dir:nowhere' is no name of a model"),
        ("local-\tdir:nowhere", r"'local-\\tdir:nowhere' is no name of a model"),
        ("local_dir:nowhere", "'local_dir:nowhere' is no name of a model"),
    ],
)
def test_what_can_mean_nothing_is_one_line(given: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        seresnet_hub.load(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "is_model"),
    [
        ("runs/digits", True),
        ("./runs/digits", True),
        ("photos/cats", False),
        ("photos/cats/1.png", False),
        ("resnet34.png", False),  # not the weights "png" of a ResNet-34
        ("missing.JPG", False),
        ("-", False),
        ("resnet18", True),
        ("./resnet18", False),
        ("seresnet50.mine", False),  # a folder without a model, and no name of timm's
        ("seresnet50.mine/best", False),
        ("hf_hub:someone/model", True),
        ("seresnet50_8xb32_in1k", True),
        ("seresnet9000", True),  # an error that says so
        ("someone/model", True),
        ("HF-HUB:someone/model", True),
        ("local-dir:nowhere", True),
    ],
)
def test_models_are_told_from_pictures(given: str, is_model: bool) -> None:
    assert is_model_name(given) is is_model


@pytest.mark.parametrize(
    ("given", "architecture"),
    [("seresnet50", "seresnet50"), ("seresnet50.ra2_in1k", "seresnet50"), ("seresnet50_8xb32_in1k", "seresnet50")],
)
def test_an_architecture_is_named_like_weights(given: str, architecture: str) -> None:
    assert architecture_of(given) == architecture


@pytest.mark.parametrize(
    "given",
    ["", "resnet18.other/model", "runs/digits", "./resnet18", "LOCAL-DIR:runs/digits", "hf-hub:a/b", "resnet18.x"],
)
def test_what_is_no_architecture_is_refused(given: str) -> None:
    with pytest.raises(InputError, match="timm has no (architecture|weights)"):
        architecture_of(given)


@pytest.mark.parametrize(
    "name", ["runs/digits", "runs/a b", "runs/ü", "runs/run#3", "runs/what?", "//runs/x", "runs/a\tb"]
)
def test_timm_reads_the_folder_that_is_named_or_none(name: str) -> None:
    """timm 1.0.26 takes a folder's name for an address, and reads `runs/run` where `runs/run#3` is named."""
    odd = bool(set(name) & set("#?\t")) or name.startswith("//")
    if odd and timm.models.parse_model_name(f"local-dir:{name}")[1] != name:
        with pytest.raises(InputError, match="rename it"):
            timms_name_of(Path(name))
        return
    assert timm.models.parse_model_name(timms_name_of(Path(name))) == ("local-dir", name)
