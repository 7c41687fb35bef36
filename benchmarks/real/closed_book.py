"""Write questions that only an LLM's own knowledge answers: facts of Wikidata to complete, and questions of MMLU.

    pip download --no-deps --no-binary bigbench --require-hashes -r benchmarks/real/closed_book.txt -d PACKAGES
    python benchmarks/real/closed_book.py PACKAGES FOLDER [--seed N]

PACKAGES holds bigbench 1.0.0 (qa_wikidata, Apache-2.0) and evals 3.0.1.post1 (1,000 questions of MMLU, MIT), 400 MB
that are read as they are. FOLDER gets wikidata.jsonl and mmlu.jsonl (questions), and wikidata-train.jsonl
(conversations about other subjects, to train a gate on).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

WIKIDATA = "bigbench-1.0.0/bigbench/benchmark_tasks/qa_wikidata/task.json"
MMLU = "evals/registry/data/sandbagging/samples-all-large.jsonl"
ASKED, TRAINED, CHOSEN = 2000, 3000, 400  # facts to test and to train with, questions of MMLU
FACT = re.compile(r"(The (?:country of citizenship|.+?) of) (.+) is")
CHOICES = re.compile(r"(.*?)\n+A\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)\nAnswer:", re.DOTALL)


def facts(tasks: Path) -> dict[str, list[tuple[str, str, list[str]]]]:
    """Read subject -> relation, what to complete, right answers; of "The RELATION of SUBJECT is" alone."""
    with tarfile.open(tasks) as archive:
        file = archive.extractfile(WIKIDATA)
        assert file is not None
        examples = json.load(file)["examples"]
    found: dict[str, list[tuple[str, str, list[str]]]] = {}
    for example in examples:
        if fact := FACT.fullmatch(example["input"]):
            targets = example["target"]
            answers = targets if isinstance(targets, list) else [targets]
            found.setdefault(fact[2], []).append((fact[1], example["input"], answers))
    return found


def choices(package: Path) -> Iterator[dict[str, object]]:
    with zipfile.ZipFile(package) as archive:
        for line in archive.read(MMLU).decode().splitlines():
            row = json.loads(line)
            if asked := CHOICES.fullmatch(row["question"]):
                yield {"question": asked[1], "choices": list(asked.groups()[1:]), "answer": row["answer"]}


def _write(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{path}: {len(rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    known = facts(next(given.packages.glob("bigbench-*.tar.gz")))
    subjects = rng.sample(sorted(known), len(known))
    rows = [(subject, *fact) for subject in subjects for fact in known[subject]]
    given.folder.mkdir(parents=True, exist_ok=True)
    tested = [
        {"question": text, "answers": answers, "entity": subject, "attribute": relation}
        for subject, relation, text, answers in rows[:ASKED]
    ]
    others = [row for row in rows[ASKED:] if row[0] != rows[ASKED - 1][0]]
    trained = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answers[0]}]}
        for _, _, text, answers in others[:TRAINED]
    ]
    _write(given.folder / "wikidata.jsonl", tested)
    _write(given.folder / "wikidata-train.jsonl", trained)
    _write(given.folder / "mmlu.jsonl", rng.sample(list(choices(next(given.packages.glob("evals-*.whl")))), CHOSEN))


if __name__ == "__main__":
    main()
