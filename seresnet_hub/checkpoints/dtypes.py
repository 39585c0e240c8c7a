"""The types that weights have, as the file formats name them."""

from __future__ import annotations

import torch

# In torch, of its pickled storages, in NumPy and in safetensors; "" where there is no name.
_NAMES = (
    (torch.float64, "DoubleStorage", "f8", "F64"),
    (torch.float32, "FloatStorage", "f4", "F32"),
    (torch.float16, "HalfStorage", "f2", "F16"),
    (torch.bfloat16, "BFloat16Storage", "", "BF16"),
    (torch.int64, "LongStorage", "i8", "I64"),
    (torch.int32, "IntStorage", "i4", "I32"),
    (torch.int16, "ShortStorage", "i2", "I16"),
    (torch.int8, "CharStorage", "i1", "I8"),
    (torch.uint8, "ByteStorage", "u1", "U8"),
    (torch.bool, "BoolStorage", "b1", "BOOL"),
)
STORAGE_TYPES = {**{storage: dtype for dtype, storage, _, _ in _NAMES}, "UntypedStorage": torch.uint8}
NUMPY_TYPES = {numpy: dtype for dtype, _, numpy, _ in _NAMES if numpy}
SAFETENSORS_TYPES = {safetensors: dtype for dtype, _, _, safetensors in _NAMES}
