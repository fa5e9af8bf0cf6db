"""The file that MLflow runs to load a model, next to the folder `code` with these wrappers.

MLflow puts `code` on Python's path, where the name of a package may also be that of another model or of the user. So
the wrappers are imported by their place, under a name that only this code in this place has.
"""

import sys
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType

from mlflow.models import set_model

WRAPPERS = Path(__file__).resolve().parent / "code" / "phi3_wrappers"


def importable_wrappers() -> str:
    """Return the name that the package of the wrappers can be imported by."""
    content = sha256(str(WRAPPERS).encode())
    for file in sorted(WRAPPERS.rglob("*.py")):
        content.update(file.relative_to(WRAPPERS).as_posix().encode() + file.read_bytes())
    package = ModuleType(f"{WRAPPERS.name}_{content.hexdigest()[:16]}")
    package.__path__ = [str(WRAPPERS)]
    sys.modules.setdefault(package.__name__, package)
    return package.__name__


# Nothing is imported from there, and nothing of it is to be in anyone's way.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != WRAPPERS.parent]
set_model(import_module(f"{importable_wrappers()}.model").Phi3Model())
