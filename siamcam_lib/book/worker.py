"""Executes one notebook and answers in JSON: the process that `siamcam_lib.book.execution` starts.

It reads its job from standard input and prints one line at the end: the parameters that were set,
or what went wrong and in which cell. It is a process of its own so that it can be ended.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

KERNEL = "siamcam-book"
SAVE_EVERY = 30


class _Sparing(NotebookExecutionManager):
    """Says which cell begins, and saves the notebook each half minute and at the end.

    Papermill does so twice a cell, which takes many seconds where figures are large.
    """

    wait = 0.0

    def save(self, **options: Any) -> None:
        if (self.now() - self.last_save_time).total_seconds() >= self.wait:
            super().save(**options)
            self.wait = SAVE_EVERY

    def cell_start(self, cell: Any, cell_index: int | None = None, **options: Any) -> None:
        if cell_index is not None:
            print(f"cell {cell_index}/{len(self.nb.cells)}", file=sys.stderr, flush=True)
        super().cell_start(cell, cell_index, **options)

    def notebook_complete(self, **options: Any) -> None:
        self.wait = 0.0
        super().notebook_complete(**options)


class _Engine(NBClientEngine):
    """Papermill's own, with a `_Sparing` manager."""

    @classmethod
    def execute_notebook(
        cls, nb, kernel_name, output_path=None, progress_bar=True, log_output=False, **options
    ):
        manager = _Sparing(nb, output_path, log_output, progress_bar)
        manager.notebook_start()
        try:
            cls.execute_managed_notebook(manager, kernel_name, log_output=log_output, **options)
        finally:
            manager.cleanup_pbar()
            manager.notebook_complete()
        return manager.nb


papermill_engines.register(KERNEL, _Engine)


def execute(job: dict[str, Any], provisioner: str | None = None) -> dict[str, Any]:
    """Run the notebook of `job` and write the result, clean of this machine, to its target.

    Args:
        job: `source` and `target` files, a `scratch` folder, `parameters` that may be set,
            `cell_timeout` in seconds.
        provisioner: Jupyter's name of what starts the kernel; by default a new process.

    Returns:
        ``{"parameters": ...}`` with those the notebook declares, or ``{"error": ...}``.
    """
    scratch, target = Path(job["scratch"]), Path(job["target"])
    _write_kernel(scratch, provisioner)
    # A kernel of our own making comes first: the reader's home may hold another "python3".
    os.environ["JUPYTER_PATH"] = str(scratch)
    # Nor may start-up files in the reader's home change what a page shows.
    os.environ["IPYTHONDIR"] = str(scratch / "ipython")
    here = scratch / "here"
    here.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(job["source"], as_version=4)
    # papermill needs to know the language even where the notebook does not say it
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    nbformat.write(notebook, scratch / "source.ipynb")
    declared = papermill.inspect_notebook(scratch / "source.ipynb")
    parameters = {k: v for k, v in job["parameters"].items() if k in declared}
    try:
        papermill.execute_notebook(
            scratch / "source.ipynb",
            target,
            parameters=parameters,
            kernel_name=KERNEL,
            engine_name=KERNEL,
            cwd=here,
            execution_timeout=job["cell_timeout"],
            store_widget_state=True,
            log_output=False,
            progress_bar=False,
        )
    except papermill.PapermillExecutionError as error:
        return {"error": f"cell {_label(target)} failed: {_last_line(error)}."}
    except CellTimeoutError:
        return {"error": f"cell {_label(target)} took longer than {job['cell_timeout']:g} s."}
    except DeadKernelError:
        return {"error": f"the kernel died in cell {_label(target)} (out of memory?)."}
    finally:
        if target.is_file():
            _clean(target)
    return {"parameters": parameters}


def _write_kernel(scratch: Path, provisioner: str | None) -> None:
    """Describe the kernel: the very Python that runs this."""
    folder = scratch / "kernels" / KERNEL
    folder.mkdir(parents=True, exist_ok=True)
    spec: dict[str, Any] = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
    }
    if provisioner:
        spec["metadata"] = {"kernel_provisioner": {"provisioner_name": provisioner}}
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")


def _clean(file: Path) -> None:
    """Hide the injected parameters and take out papermill's notes, which hold absolute paths."""
    notebook = nbformat.read(file, as_version=4)
    notebook.metadata.pop("papermill", None)
    notebook.metadata["kernelspec"]["name"] = "python3"
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = ["injected-parameters", "remove-cell"]
            cell["id"] = "injected-parameters"  # papermill's is another one in every run
    nbformat.write(notebook, file)


def _label(file: Path) -> str:
    """Name the cell where it ended: its number among the cells of code, its id, its first line."""
    code = [c for c in nbformat.read(file, as_version=4).cells if c.cell_type == "code"]
    state = [cell.metadata.get("papermill", {}).get("status") for cell in code]
    # papermill marks as failed only what raised; what was cut off is the last that was begun
    begun = [cell for cell, s in zip(code, state, strict=True) if s not in (None, "pending")]
    failed = [cell for cell, s in zip(code, state, strict=True) if s == "failed"] or begun[-1:]
    sources = [c for c in code if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in failed:
        number = sources.index(cell) + 1 if cell in sources else 0
        first = next((line for line in cell.source.splitlines() if line.strip()), "")
        return f"{number} (id {cell.get('id', '?')}, `{first.strip()}`)"
    return "unknown"


def _last_line(error: papermill.PapermillExecutionError) -> str:
    lines = [line for line in str(error.evalue).strip().splitlines() if line.strip()]
    return f"{error.ename}: {lines[-1] if lines else ''}".rstrip(": ")


if __name__ == "__main__":
    print(json.dumps(execute(json.load(sys.stdin))))
