"""Runs experiments and keeps what the site shows of them: claims, tables and figures.

python docs/gallery.py [NAME ...]                 all experiments, or these, preset quick
python docs/gallery.py --from DIR [NAME ...]      keeps runs that lie in DIR/NAME, runs nothing
"""

import argparse
import io
import pathlib

from generate import ROOT, SAVED

LARGEST = 150_000  # bytes of a picture
KEPT = ("experiment", "source", "summary", "preset", "settings", "seconds", "figures")


def keep(folder: pathlib.Path, name: str, into: pathlib.Path = SAVED) -> None:
    """Copies the parts of an output folder that the site shows."""
    from jaxstab import files

    run = files.read_json(folder / "run.json")
    if run.get("status") != "finished" or run["experiment"] != name:
        raise ValueError(f"{folder} holds no finished run of {name}")
    target = into / name
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.png"):
        old.unlink()
    environment = {key: run["environment"][key] for key in ("backend", "versions")}
    files.write_json(
        target / "run.json", {key: run[key] for key in KEPT} | {"environment": environment}
    )
    for file in ("claims.json", "tables.json"):
        files.write_json(target / file, files.read_json(folder / file))
    for figure in run["figures"]:
        files.write_atomically(target / figure, small((folder / figure).read_bytes()))


def small(picture: bytes) -> bytes:
    """A PNG of at most `LARGEST` bytes: fewer colours, then fewer pixels."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    while True:
        file = io.BytesIO()
        image.quantize(128).save(file, "PNG", optimize=True)
        if file.tell() <= LARGEST:
            return file.getvalue()
        image = image.resize((int(0.85 * image.width), int(0.85 * image.height)))


def main() -> None:
    """Runs, or takes, and keeps."""
    from jaxstab import cli
    from jaxstab.experiments import REGISTRY

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--from", dest="source", type=pathlib.Path)
    given = parser.parse_args()
    for name in given.names or REGISTRY:
        folder = (given.source or ROOT / "runs" / "gallery") / name
        if given.source is None and cli.main(["run", name, "--out", str(folder)]):
            raise SystemExit(f"{name} failed")
        if folder.exists():
            keep(folder, name)
            print(f"kept {name}")


if __name__ == "__main__":
    main()
