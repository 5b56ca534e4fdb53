"""The pipeline and the study: one script a stage, and one module a concept."""

import sys


def _on_uncaught(kind, error, traceback):  # type: ignore[no-untyped-def]
    """Ctrl-C is no mistake of the code, wherever it comes: also during the imports below."""
    if issubclass(kind, KeyboardInterrupt):
        print(
            f"error: {str(error) or 'interrupted'}; `dvc repro` goes on from here", file=sys.stderr
        )
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _on_uncaught

import importlib.util  # noqa: E402
import os  # noqa: E402
from pathlib import Path  # noqa: E402

from stages import numerics  # noqa: E402

# `python stages/train.py lenet5` looks for modules in `stages` first, and may take this package
# from another checkout: begin again as `python -m stages.train`
_script = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
if _script.parent.name == "stages" and sys.modules["__main__"].__spec__ is None:
    _options = sys.orig_argv[1 : -len(sys.argv)]
    _module = ["-m", f"stages.{_script.stem}"]
    os.execv(sys.executable, [sys.executable, *_options, *_module, *sys.argv[1:]])

if importlib.util.find_spec("torch") is None:
    sys.exit(
        f"error: {sys.executable} has no torch: activate the project's environment first "
        "(`. .venv/bin/activate`; `make install` creates it)"
    )

numerics.set_spins()  # here, because no module that imports torch can be imported before
