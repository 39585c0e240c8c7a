"""What cards say of every model, and of every model of one data set."""

from __future__ import annotations

IMAGENET = "ILSVRC/imagenet-1k"

# What is known of a data set and carries over to every model trained on it.
LIMITATIONS: dict[str, tuple[str, ...]] = {
    IMAGENET: (
        "It knows ImageNet-1k's 1,000 classes and nothing else: it names one of them for any picture, and its scores "
        "are not calibrated probabilities.",
        "ImageNet's photographs come from the web, mostly from North America and Europe (arXiv 1711.08536): objects, "
        "people and places from elsewhere are recognised less well.",
        "Some of ImageNet's validation labels are wrong or name one of several objects in the picture (arXiv "
        "2006.07159), so differences of a few tenths of a percent mean little.",
        "ImageNet's pictures are licensed for non-commercial research; the licence above is that of the weights.",
        "Do not use it to judge people: several classes are correlated with people's looks and clothes.",
    )
}  # fmt: skip
NO_LICENCE = "No licence is known for these weights: ask whoever made them before you use them or pass them on."
LIMITED_CLASSES = "It knows the classes it was trained on and nothing else: it names one of them for any picture."

CITATIONS = """```bibtex
@inproceedings{hu2018senet,
  title = {Squeeze-and-Excitation Networks},
  author = {Hu, Jie and Shen, Li and Sun, Gang},
  booktitle = {CVPR},
  year = {2018},
  eprint = {1709.01507}
}
@misc{wightman2019timm,
  title = {PyTorch Image Models},
  author = {Wightman, Ross},
  year = {2019},
  doi = {10.5281/zenodo.4414861}
}
```"""
