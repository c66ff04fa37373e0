"""The quickstart notebook runs from the top to the bottom, in small; nothing that it printed is in the repository."""

import os
from pathlib import Path

import pytest

import jqmix

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"
SIZE = "SMALL = False"


def test_it_runs_in_small(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (first,) = [cell for cell in notebook.cells if SIZE in cell.source]
    first.source = first.source.replace(SIZE, "SMALL = True")
    # The kernel is another process: it finds the package that is tested here.
    package = str(Path(jqmix.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MPLBACKEND", "agg")
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "of 64 pairs met" in printed


def test_it_is_stored_without_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
