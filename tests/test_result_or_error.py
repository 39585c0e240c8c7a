"""A script's caller must find one JSON line on standard output, and one clear line and the right code on failure."""

from __future__ import annotations

import json

import pytest

from seresnet_hub.commands.result_or_error import run
from seresnet_hub.errors import InputError


def test_only_the_result_reaches_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> dict[str, object]:
        print("a library's chatter")
        return {"top1": 1.5, "name": "é"}

    assert run(main, []) == 0
    captured = capfd.readouterr()
    assert captured.out.count("\n") == 1
    assert json.loads(captured.out) == {"top1": 1.5, "name": "é"}
    assert "chatter" in captured.err


def test_bad_input_is_one_line_and_code_2(capfd: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> None:
        raise InputError("first\n  second")

    assert run(main, []) == 2
    assert capfd.readouterr() == ("", "error: first second\n")


def test_a_file_that_cannot_be_had_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> None:
        open("a" * 300 + "\x1b[31m")  # noqa: SIM115

    assert run(main, []) == 2
    assert capfd.readouterr().err.endswith("\\x1b[31m: File name too long\n")


def test_ctrl_c_is_one_line_and_code_130(capfd: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> None:
        raise KeyboardInterrupt

    assert run(main, []) == 130
    assert capfd.readouterr() == ("", "interrupted\n")


def test_a_fault_of_our_own_is_not_dressed_up_as_bad_input() -> None:
    def main(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main, [])


def test_only_the_first_process_prints(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(lambda _: {"top1": 1}, []) == 0
    assert run(lambda _: {"top1": 1}, [], exit_code=lambda _: 75) == 75
    assert capfd.readouterr().out == ""


def test_a_script_may_end_with_a_code_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(lambda _: {"stopped": 75}, [], exit_code=lambda result: result["stopped"]) == 75
    assert json.loads(capfd.readouterr().out) == {"stopped": 75}
