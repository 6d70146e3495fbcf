"""What `hf-coop predict` needs, without PyTorch: `OnnxClassifier("model.onnx").predict(images)`, files and outputs.

Importing `hf_coop` imports PEFT, which it registers its methods with, and with it PyTorch. So this lies beside the
package, as the command does, and imports the few modules that it needs without their packages' `__init__`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_coop.escaping import one_line as one_line
    from hf_coop.serving.classify_files import classify_files as classify_files
    from hf_coop.serving.classify_files import find_images as find_images
    from hf_coop.serving.onnx_classifier import OnnxClassifier as OnnxClassifier
    from hf_coop.serving.outputs import csv_header as csv_header
    from hf_coop.serving.outputs import csv_line as csv_line
    from hf_coop.serving.outputs import json_line as json_line
    from hf_coop.serving.sorting import NO_CLASS as NO_CLASS
    from hf_coop.serving.sorting import PhotoSorter as PhotoSorter
    from hf_coop.serving.sorting import check_sortable as check_sortable
else:
    _PACKAGE = "_hf_coop_without_torch"
    for _room in ("", ".data", ".serving"):
        _package = ModuleType(_PACKAGE + _room)
        _package.__path__ = [str(Path(__file__).parent.joinpath("hf_coop", _room.removeprefix(".")))]
        sys.modules[_package.__name__] = _package
    for _module, _names in {
        "escaping": ["one_line"],
        "serving.classify_files": ["classify_files", "find_images"],
        "serving.onnx_classifier": ["OnnxClassifier"],
        "serving.outputs": ["csv_header", "csv_line", "json_line"],
        "serving.sorting": ["NO_CLASS", "PhotoSorter", "check_sortable"],
    }.items():
        _imported = import_module(f"{_PACKAGE}.{_module}")
        globals().update({_name: getattr(_imported, _name) for _name in _names})
