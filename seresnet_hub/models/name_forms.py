"""Say which forms the name of a model may have, for help texts and errors alike; free of timm, which loads slowly."""

NAME_FORMS = (
    "a timm name, a model folder (DIR or local-dir:DIR), or a Hub repository (NS/NAME[@rev] or hf-hub:NS/NAME[@rev])"
)
# What predicts and is measured may also be an exported file.
RUN_FORMS = f"{NAME_FORMS}, or an exported file (onnx:DIR, openvino:DIR)"
