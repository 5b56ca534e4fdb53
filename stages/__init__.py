"""The pipeline: one script per stage, and the folders that the stages share.

This file runs before every other module. It cannot change a result.
"""

import os
import signal
import sys

for _descriptor in range(3):  # one that is closed (`>&-`) would be that of the next file: a result
    try:
        os.fstat(_descriptor)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _on_uncaught(kind, error, traceback):  # type: ignore[no-untyped-def]
    """Ctrl-C is not a mistake in the code. It can come at any time, also during imports."""
    if issubclass(kind, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once more while Python ends
        print(f"error: {str(error) or 'interrupted'}; `dvc repro` resumes here", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _on_uncaught

# The study depends on the folders below this one. For DVC, a `__pycache__` in them would be code:
# .dvcignore counts inside a DVC project only, and these folders are outside of the study's.
sys.dont_write_bytecode = True

import importlib.util  # noqa: E402
from pathlib import Path  # noqa: E402

# `python stages/train.py lenet5` looks for modules in `stages` first, and may take this package
# from another checkout. So start again as `python -m stages.train`.
_script = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
if _script.parent.name in ("stages", "study") and sys.modules["__main__"].__spec__ is None:
    _options = sys.orig_argv[1 : -len(sys.argv)]
    _module = ["-m", f"{_script.parent.name}.{_script.stem}"]
    os.execv(sys.executable, [sys.executable, *_options, *_module, *sys.argv[1:]])

if importlib.util.find_spec("torch") is None:
    sys.exit(
        f"error: {sys.executable} has no torch: activate the project's environment first "
        "(`. .venv/bin/activate`; `make install` creates it)"
    )

from stages.base import numerics  # noqa: E402

numerics.set_spins()  # no module that imports torch can be imported before this line
