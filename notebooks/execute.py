"""Executes every notebook of this folder and saves it with its figures.

python notebooks/execute.py            full settings, saved in place
python notebooks/execute.py --small    the settings of the tests, nothing saved
"""

import argparse
import os
import pathlib

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent


def execute(path: pathlib.Path, *, small: bool) -> nbformat.NotebookNode:
    """Returns the notebook with the outputs of a run in a folder of its own kernel."""
    os.environ["JAXSTAB_NOTEBOOK"] = "small" if small else "full"
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", record_timing=False)
    client.execute()
    return notebook


def main() -> None:
    """Runs all notebooks found beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="small settings, nothing saved")
    small = parser.parse_args().small
    for path in sorted(HERE.glob("*.ipynb")):
        print(f"{path.name} ...", flush=True)
        notebook = execute(path, small=small)
        if not small:
            nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
