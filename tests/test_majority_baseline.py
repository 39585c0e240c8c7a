"""An accuracy that guessing reaches as easily must be called that, and a good one must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import WriteSplit
from scipy.stats import binomtest

from seresnet_hub.data.held_out import open_splits
from seresnet_hub.data.open_split import open_split
from seresnet_hub.evaluation.majority_baseline import Chance, binomial_tail, chance_of
from seresnet_hub.recipes.recipe import get_recipe
from seresnet_hub.training import train as training


def test_the_tail_is_the_binomial_one() -> None:
    for correct, images, share in ((3, 6, 1 / 3), (0, 5, 0.5), (5, 5, 0.5), (700, 2000, 1 / 3), (19_000, 20_000, 0.9)):
        reference = binomtest(correct, images, share, alternative="greater").pvalue
        assert binomial_tail(correct, images, share) == pytest.approx(reference, rel=1e-6, abs=1e-200)


def test_the_largest_class_is_counted(write_split: WriteSplit) -> None:
    data = str(write_split([[30], [10]], labels=[0] * 6 + [2] * 24 + [1] * 10, classes=3))
    assert chance_of(open_split(data, "train")) == Chance(share=0.6, images=40, largest="class 2")
    held = open_splits(data, "train", None, holdout=0.5)[1]
    assert chance_of(held) == Chance(share=0.6, images=20, largest="class 2", held_out=True)


def test_doubt_is_said_where_it_is_due() -> None:
    third = Chance(share=1 / 3, images=18, largest="cat")
    assert third.doubt(100 * 17 / 18) == ""
    assert "33.33 % of 18 images is not better than chance" in third.doubt(100 * 6 / 18)
    assert "not better" in third.doubt(100 * 9 / 18)  # one in nine guessers is as good
    unequal = Chance(share=0.6, images=15, largest="cat")
    assert "always naming 'cat', the largest class, has 60.00 %" in unequal.doubt(60)
    assert unequal.doubt(100) == ""
    few = Chance(share=0.5, images=2, largest="cat")
    assert few.too_few_images
    assert not third.too_few_images
    assert "2 images are too few" in few.doubt(100)
    assert "holdout" not in few.too_few()  # a test split of its own grows by images alone
    assert "--set holdout=0.3" in replace(few, held_out=True).too_few()


def test_the_run_and_the_card_say_it(
    tmp_path: Path, write_split: WriteSplit, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(write_split([[40]], classes=4))  # pictures of numbers, which say nothing of their class
    recipe = replace(get_recipe("finetune"), weights="seresnet20_cifar.c10", epochs=1, workers=0, shuffle_window=20,
                     learning_rate=1e-9, holdout=0.5)  # fmt: skip
    result = training.train(recipe, data=data, output=tmp_path / "run")
    assert result["top1"] < 50
    assert "warning: there is no evidence that the model learnt anything" in capsys.readouterr().err
    assert "There is no evidence that it learnt anything" in (tmp_path / "run" / "README.md").read_text()
