"""A branch or tag is what was typed, or one line says why it cannot be; never another one silently."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hub_fixtures import REPO, commits
from hub_server import HubServer

from seresnet_hub.errors import InputError
from seresnet_hub.hub.revisions import branch_name, tag_name
from seresnet_hub.publishing.push import push

# The client's own business with its transport's newest version.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FORBIDDEN = [
    "", "a b", "a..b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a@{1}", "/a", "a/", "a//b", "a.", ".a",
    "a/.b", "a.lock", "a.lock/b", "a\nb", "a\x7fb", "-a", "a\0b", "refs/heads/",
]  # fmt: skip
OURS_ALONE = ["@", "HEAD", "a" * 40, "a" * 201, "ä" * 101, "refs/pr/1", "refs/heads/refs/heads/x", "a\u202eb"]
ALLOWED = ["main", "v1.0", "a/b/c", "ünïcode", "x" * 200, "a@b", "a-b", "a.b", "1", "a" * 41, "release/2.0-rc1"]


@pytest.mark.parametrize("name", FORBIDDEN + OURS_ALONE)
@pytest.mark.parametrize("of", [branch_name, tag_name])
def test_a_name_that_cannot_be_is_refused_in_one_line(of: object, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a (branch|tag)") as error:
        of(name)  # type: ignore[operator]
    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ALLOWED)
def test_other_names_stay_as_they_are(name: str) -> None:
    assert branch_name(name) == tag_name(name) == branch_name(f"refs/heads/{name}") == tag_name(f"refs/tags/{name}")
    assert branch_name(name) == name


def test_git_says_the_same() -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not here to compare with")
    for name in (*FORBIDDEN, *ALLOWED):
        if "\0" in name or name.startswith("refs/"):
            continue
        done = subprocess.run([git, "check-ref-format", "--branch", name], capture_output=True, check=False)
        assert (done.returncode == 0) == (name in ALLOWED), name


@pytest.mark.parametrize("option", ["branch", "tag"])
@pytest.mark.parametrize("name", ["", "a..b", "refs/heads/", "x" * 300])
def test_nothing_is_sent_under_a_name_that_cannot_be(hub: HubServer, folder: Path, option: str, name: str) -> None:
    with pytest.raises(InputError, match=f"cannot be the name of a {option}"):
        push(folder, REPO, **{option: name})
    assert hub.requests == []


def test_gits_full_names_mean_the_same(hub: HubServer, folder: Path) -> None:
    push(folder, REPO, branch="refs/heads/trial", tag="refs/tags/v1")
    assert set(hub.refs(REPO)) == {"refs/heads/main", "refs/heads/trial", "refs/tags/v1"}
    assert (commits(hub), commits(hub, revision="trial")) == (0, 1)
