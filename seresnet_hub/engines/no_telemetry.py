"""Keep OpenVINO and NNCF from reporting to their makers what they are used for."""

from __future__ import annotations

import sys

PACKAGE = "openvino_telemetry"


def leave_out_telemetry() -> None:
    """Have OpenVINO and NNCF, which are imported later, find no package to report with.

    They report each import and each call to Google Analytics unless a file in the home directory forbids it, and write
    the number of an installation there. Both take part in nothing where the package cannot be imported. One that was
    imported before stays as it is.
    """
    modules: dict[str, object] = sys.modules  # type: ignore[assignment]  # None there is an ImportError
    modules.setdefault(PACKAGE, None)
