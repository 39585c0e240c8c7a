"""Show how to use a model, in code that runs as it is written: in its folder, under its name, or from the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where code finds a model: `timm` is the name that timm takes, `transformers` the expression for transformers'.

    `note` says what the names need. `registered` is whether timm knows its name only after this package was imported.
    """

    timm: str
    transformers: str
    note: str
    registered: bool = False


FOLDER = Place(
    timm="local-dir:.",
    transformers='"."',
    note="Run this code in the folder of this file, with a picture beside it. From elsewhere, write the folder's path "
    "in the place of the dot.",
)


def on_the_hub(text: str, repo_id: str) -> str:
    """Return a card's text with the Hub repository `repo_id` in the place of the folder that the card was written for.

    A text without that folder is returned as it is.
    """
    hub = Place(
        timm=f"hf-hub:{repo_id}",
        transformers=f'"{repo_id}"',
        note=f"To have the files themselves: `hf download {repo_id} --local-dir model`; then `local-dir:model` is a "
        "name for timm, and `model` one for transformers.",
    )
    for found, wanted in (
        (FOLDER.note, hub.note),
        (_timms(FOLDER), _timms(hub)),
        (_transformers(FOLDER), _transformers(hub)),
    ):
        text = text.replace(found, wanted)
    return text


def _timms(place: Place) -> str:
    return f'"{place.timm}"'


def _transformers(place: Place) -> str:
    return f"source = {place.transformers}\n"


def usage(
    place: Place, *, num_classes: int, named: bool, of_imagenet: bool, needs_plugin: bool, image: Sequence[int]
) -> str:
    """Return the section of a card that shows how to use the model, one code block for each purpose.

    `named` is whether its config holds the classes' names, `needs_plugin` whether its architecture is this package's,
    `image` the channels, height and width of what it takes.
    """
    plugin = "import seresnet_hub  # first: it registers the {} with timm\n"
    takes_pictures = image[0] == 3
    imports = "import timm, torch\n" + "from PIL import Image, ImageOps\n" * takes_pictures
    if needs_plugin or place.registered:
        imports = plugin.format("architecture" if needs_plugin else "name") + imports
    blocks = [
        ("Classify a picture:" if num_classes else "Prepare a picture:",
         f"{imports}\n{_classify(place, num_classes, named=named, of_imagenet=of_imagenet, image=image)}"),
        ("Feature maps of every stage:", FEATURES),
        ("Embeddings:", EMBEDDINGS),
        ("Fine-tune for other classes:", FINE_TUNE.format(classes=10 if num_classes != 10 else 12)),
    ]  # fmt: skip
    if num_classes and takes_pictures:
        blocks.insert(
            1,
            (
                "The same with transformers:",
                (plugin.format("architecture") if needs_plugin else "") + _with_transformers(place),
            ),
        )
    return "\n\n".join([place.note, *(f"{title}\n\n```python\n{code}\n```" for title, code in blocks)])


def _classify(place: Place, num_classes: int, *, named: bool, of_imagenet: bool, image: Sequence[int]) -> str:
    if named:
        names, name = 'names = model.pretrained_cfg["label_names"]\n', "{names[number]}"
    elif of_imagenet:
        names, name = "names = timm.data.ImageNetInfo().label_descriptions()\n", "{names[number]}"
    else:
        names, name = "", "class {number}"
    prepare = """config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config)
picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")
image = transform(picture)[None]"""
    if image[0] != 3:
        prepare = f"image = torch.rand{(1, *image)}  # in the place of yours: {image[0]} channels, prepared as below"
    code = f"""name = {_timms(place)}
model = timm.create_model(name, pretrained=True).eval()
{prepare}"""
    if not num_classes:
        return code
    return f"""{code}
with torch.inference_mode():
    scores = model(image)[0].softmax(-1)
{names}for score, number in zip(*scores.topk({min(num_classes, 3)})):
    print(f"{name}: {{score:.1%}}")"""


def _with_transformers(place: Place) -> str:
    return f"""from transformers import pipeline

{_transformers(place)}classify = pipeline("image-classification", model=source)
print(classify("picture.jpg"))"""


FEATURES = """features = timm.create_model(name, pretrained=True, features_only=True).eval()
print([tuple(maps.shape) for maps in features(image)])"""
EMBEDDINGS = """embedder = timm.create_model(name, pretrained=True, num_classes=0).eval()
embedding = embedder(image)  # (1, channels)"""
FINE_TUNE = """from timm.optim import create_optimizer_v2

model = timm.create_model(name, pretrained=True, num_classes={classes}).train()
optimizer = create_optimizer_v2(model, "sgd", lr=0.01, weight_decay=1e-4)
# Write your own batches here: transformed images, class numbers.
loader = [(torch.cat([image, image]), torch.tensor([0, 7]))]
for images, labels in loader:
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step(), optimizer.zero_grad()"""
