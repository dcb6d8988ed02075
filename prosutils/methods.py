"""All methods of the package in one registry, and methods of your own beside them."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from . import ablations, adapters, baselines, followers, training_free  # noqa: F401  (importing them registers their methods)
from .files import UserError
from .tuned import METHODS as METHODS
from .tuned import find_method as find_method
from .tuned import register as register
from .tuned import registered_key as registered_key


def import_methods(files: Iterable[str | Path]) -> None:
    """Run Python files, so that the classes under their `@register` are known: what `--import` does.

    A file may import from files beside it. Raises UserError for a file that is missing or fails, with the line.
    """
    for file in files:
        path = Path(file).resolve()
        if not path.is_file():
            raise UserError(f"There is no file {file} to import.")
        name = f"imported_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        if name in sys.modules:
            continue
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UserError(f"{file} is not a Python file: its name has to end in .py.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except UserError:
            del sys.modules[name]
            raise
        except Exception as error:
            del sys.modules[name]
            raise UserError(f"{file} cannot be imported: {described(error, path)}") from error


def described(error: Exception, path: Path) -> str:
    """An error in one line, with the line of `path` where it happened: "NameError: name 'torch' ... (line 3)"."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line and "line" not in str(error) else "")
