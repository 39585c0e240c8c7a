"""What can name nothing must end at the command line of every script, in one place, before anything is loaded."""

from __future__ import annotations

import pytest
from test_scripts import command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", ""], "argument --data: it is empty"),
        (["train", "--output="], "argument --output: it is empty"),
        (["train", "--output", " "], "argument --output: it is empty"),
        (["train", "--recipe", "a" * 256], "is longer than the name of a file can be"),
        (["train", "--output", "\udcff"], r"'\udcff' is no UTF-8"),
        (["push", "m", "--repo-id", "a/b", "--branch", ""], "argument --branch: it is empty"),
        (["push", "m", "--repo-id", "a/b", "--tag="], "argument --tag: it is empty"),
        (["push", "", "--repo-id", "a/b"], "argument '': it is empty"),
        (["validate", "m", "--data", "digits", "--report", ""], "argument --report: it is empty"),
        (["predict", "m", "a" * 300 + ".png"], "is longer than the name of a file can be"),
        (["verify", "a/" * 2100], "is longer than the name of a file can be"),
        (["convert", "a\0b", "--output", "o"], "has a zero byte in it"),
        (["cards", "--directory", ""], "argument --directory: it is empty"),
        (["benchmark", "loader", "--source", ""], "argument --source: it is empty"),
        (["verify", "m", "--\x1b[31m"], r"unrecognized arguments: --\x1b[31m"),
    ],
)
def test_what_can_name_nothing_ends_at_the_command_line(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command(arguments[0]).parser().parse_args(arguments[1:])
    out, err = capfd.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert message in err
    assert err.replace("\n", "").isprintable()


def test_texts_that_may_be_anything_pass_the_command_line() -> None:
    parse = command("push").parser().parse_args
    assert parse(["m", "--repo-id", "a/b", "--message", "a" * 1000]).message == "a" * 1000
    assert command("train").parser().parse_args(["--show-recipe"]).show_recipe == ""
    assert command("predict").parser().parse_args(["\udcff.png"]).images == ["\udcff.png"]
    url = "https://example.org/" + "a" * 300
    assert command("convert").parser().parse_args([url, "--output", "o"]).src == url
