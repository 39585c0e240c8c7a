"""What a bad network may have broken is tried again; what cannot get better by itself is said at once."""

from __future__ import annotations

from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError, URLError

import pyarrow
import pytest
from huggingface_hub.errors import HfHubHTTPError

from seresnet_hub.data import read_retries as retry
from seresnet_hub.data.read_image import UnavailableError
from seresnet_hub.data.read_retries import ATTEMPTS, reading, retrying
from seresnet_hub.errors import InputError


def answered(status: int) -> Exception:
    error = RuntimeError(f"status {status}")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class Failing:
    """Raises an error at each call, or at the first few."""

    def __init__(self, error: Exception, times: int = 1000) -> None:
        self.error, self.times, self.calls = error, times, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "done"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", found.append)
    return found


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(), TimeoutError(), OSError(5, "an input/output error"), pyarrow.ArrowInvalid("cut off"),
        IncompleteRead(b""), URLError("no route"), answered(503), answered(429), InputError("it gave 3 rows"),
        HTTPError("http://a", 500, "failed", None, None), caused(ValueError("x"), ConnectionResetError()),  # type: ignore[arg-type]
    ],
    ids=repr,
)  # fmt: skip
def test_faults_of_the_network_are_tried_again(error: Exception, pauses: list[float]) -> None:
    act = Failing(error, times=3)
    assert retrying("read it", act) == "done"
    assert [round(pause) for pause in pauses] == pytest.approx([1, 2, 4], abs=1)
    act = Failing(error)
    with pytest.raises(type(error)):
        retrying("read it", act)
    assert act.calls == ATTEMPTS
    assert max(pauses) <= 1.2 * retry.LONGEST_DELAY


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(), PermissionError(), MemoryError(), KeyError("a"), answered(404), answered(401),
        HTTPError("http://a", 404, "Not Found", None, None), caused(OSError(), FileNotFoundError()),  # type: ignore[arg-type]
        caused(InputError("too many requests for 10 minutes"), answered(429)),  # all of it was waited for already
    ],
    ids=repr,
)  # fmt: skip
def test_what_stays_wrong_is_said_at_once(error: Exception, pauses: list[float]) -> None:
    act = Failing(error)
    with pytest.raises(type(error)):
        retrying("read it", act)
    assert (act.calls, pauses) == (1, [])


def test_reading_says_what_could_not_be_done(pauses: list[float], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^cannot read unit 3: ConnectionResetError$"):
        reading("read unit 3", Failing(ConnectionResetError()), remote=False)
    assert not pauses  # a local file does not get better
    with pytest.raises(UnavailableError, match="^cannot read it: .*No such file"):
        reading("read it", (tmp_path / "none").read_bytes, kind=UnavailableError)
    with pytest.raises(InputError, match="no shared memory left: make /dev/shm larger"):
        reading("read it", Failing(OSError("no shared memory left")), remote=False)


def test_too_many_requests_are_waited_for_as_long_as_asked_though_a_file_was_missing_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`datasets` asks for files that a data set may have or not, so a 404 stands in the history of what comes next."""
    waits: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waits.append)

    def answer(status: int) -> HfHubHTTPError:
        response = SimpleNamespace(status_code=status, headers={"Retry-After": "77"}, request=None)
        return HfHubHTTPError("no", response=response)  # type: ignore[arg-type]

    def act() -> str:
        if waits:
            return "opened"
        try:
            raise answer(404)
        except HfHubHTTPError:
            raise answer(429)  # noqa: B904 (as `datasets` does)

    assert retrying("open it", act) == "opened"
    assert waits == [77.0]
