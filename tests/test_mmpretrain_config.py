"""A configuration beside the weights must be read without being run, and refused where timm computes otherwise."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from foreign_files import SHORT, load, saved, small
from references import networks

from seresnet_hub.conversion.convert import convert
from seresnet_hub.errors import InputError


@pytest.mark.parametrize("options", [{"caffe": True}, {"dilated": True}, {"eps": 1e-3}], ids=str)
def test_networks_that_only_look_the_same_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """Protects from the silent traps: all three load strictly and compute something else."""
    original = networks.randomise(networks.mmpretrain(SHORT, **options))
    backbone = {
        "caffe": "style='caffe'",
        "dilated": "dilations=(1, 1, 1, 2)",
        "eps": "norm_cfg=dict(type='BN', eps=0.001)",
    }[next(iter(options))]
    for key in ("config", "cfg"):
        config = f"model = dict(type='ImageClassifier', backbone=dict(type='SEResNet', {backbone}))\n"
        state = original.checkpoint("backbone.")
        path = saved({"meta": {key: config}, "state_dict": state}, tmp_path / f"{key}.pth")
        with pytest.raises(InputError, match="style=|dilations=|eps="):
            convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_configuration_preprocessing_and_classes_are_kept(tmp_path: Path) -> None:
    """Protects what the file says beside its weights: size, crop, statistics, class names."""
    original = networks.randomise(networks.mmpretrain(SHORT, bottleneck=False, classes=3))
    config = (
        "img_norm_cfg = dict(mean=[127.5, 127.5, 127.5], std=[51.0, 51.0, 51.0], to_rgb=True)\n"
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', size=(200, -1)),\n"
        "    dict(type='CenterCrop', crop_size=160), dict(type='Normalize', **img_norm_cfg)]\n"
        "model = dict(backbone=dict(type='SEResNet', depth=18, style='pytorch'),\n"
        "    neck=dict(type='GlobalAveragePooling'))"
    )
    meta = {"config": config, "CLASSES": ("ant", "bee", "cat")}
    path = saved({"meta": meta, "state_dict": original.checkpoint("backbone.")}, tmp_path / "a.pth")
    convert(path, tmp_path / "out")
    cfg = load(tmp_path / "out").pretrained_cfg
    assert (cfg["mean"], cfg["std"], cfg["crop_pct"]) == ([0.5] * 3, [0.2] * 3, 0.8)
    assert tuple(cfg["input_size"]) == (3, 160, 160)
    assert cfg["label_names"] == ["ant", "bee", "cat"]


BACKBONE = "backbone=dict(type='SEResNet', style='pytorch')"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "norm = dict(type='BN', eps=1e-3)\nmodel = dict(backbone=dict(type='SEResNet', norm_cfg=norm))",
            "not complete",
        ),
        ("more = dict(style='caffe')\nmodel = dict(backbone=dict(type='SEResNet', **more))", "not complete"),
        (f"model = dict({BACKBONE})\nmodel['backbone']['style'] = 'caffe'", "not complete"),
        (f"_base_ = ['caffe.py']\nmodel = dict({BACKBONE})", "not complete"),
        (Namespace(model={"backbone": {"style": "caffe"}}), "pickled object"),
        (f"model = dict({BACKBONE})\ndata_preprocessor = dict(mean=[1, 2, 3], std=[1, 2, 3])", "BGR"),
        (f"model = dict({BACKBONE})\nimg_norm_cfg = dict(mean=[1, 2, 3], std=[1, 2, 3], to_rgb=False)", "BGR"),
        ({"model": {"backbone": {"dilations": ([1],)}}}, "dilations"),
        ({"model": {"backbone": {"depth": 50}, "neck": {"type": ["x"]}}}, "neck"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_relied_on_is_refused(tmp_path: Path, config: Any, message: str) -> None:
    """Protects from options that are there and not seen: they would count as the usual ones."""
    path = saved({"meta": {"cfg": config}, "state_dict": small()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=message):
        convert(path, tmp_path / "out")


def test_preprocessing_is_kept_where_only_a_part_can_be_read(tmp_path: Path) -> None:
    """Protects the pixel statistics of a configuration without a centre crop; what is assumed is said."""
    config = f"data_preprocessor = dict(mean=[127.5] , std=[51.0])\nmodel = dict({BACKBONE})"
    config = config.replace("[127.5] ", "[127.5, 127.5, 127.5]").replace("[51.0]", "[51.0, 51.0, 51.0], to_rgb=True")
    result = convert(saved({"meta": {"cfg": config}, "state_dict": small()}, tmp_path / "a.pth"), tmp_path / "out")
    assert result["source"] == "mmpretrain"
    assert load(tmp_path / "out").pretrained_cfg["mean"] == [0.5] * 3
    assert "centre crop of 224" in (tmp_path / "out" / "README.md").read_text()
