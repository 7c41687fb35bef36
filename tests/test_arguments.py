r"""Names, folders and prompts are free text: what is typed arrives, and what is refused says the form that works.

Reports of the same trouble elsewhere: hydra 1577 (`=` in a folder's name) and 938 (`\${x}`).
"""

from __future__ import annotations

import re
import shlex
import string
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commandline import Call
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.arguments import overrides
from fedray.command_line import (
    BENCHMARKS,
    FEDERATION,
    FUSER_TRAINING,
    GATE_TRAINING,
    IMPORT,
    REGISTRY,
    ZOO_BUILD,
    Form,
    launch,
)
from fedray.llm.catalogue import NAMES, safe_name
from fedray.settings.settings import SCHEMA, build
from fedray.types import FedrayError

pytest.importorskip("hydra")
pytestmark = pytest.mark.usefixtures("without_a_store")

TEXTS = [
    '"a" or "b"',
    "'a' or 'b'",
    '"half',
    "${x}",
    r"\${x}",
    r"\\${seed} and \ alone",
    "a: b",
    "two\nlines\r\n",
    r"C:\new folder" + "\\",
    "  spaces before and behind  ",
    "\ttabs\t",
    "#1, #2",
    "=,=",
    "[a, b]",
    "{a: b}",
    "🙂 très bien, 木星 ½",
    "???",
    "Null",
    "true",
    "007",
    "1e5",
    "choice(a,b)",
    "~/x",
    "-m",
    "\\",
    '"',
    "'",
    r"\"",
    "$HOME `id` !! %s",
    "\x1b[31m",
]
FOLDERS = [
    "./ckpt/epoch=3-step=100",
    "./modèle",
    "./it's",
    "./a,b",
    "./c, d",
    "./my llm",
    "./a{b}",
    "./d[e]",
    "./${x}",
    "./a+b@c:d",
    './say "hi"',
    "./木星",
    "./50%",
    "./#1",
    "./back\\slash",
    "./llm ",
    "./a;b&c|d",
    "./(copy)",
    "./null",
    "./-m",
    "./~tilde",
]


def batched(values: list[str], size: int) -> list[list[str]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


@pytest.fixture
def llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a folder that looks like an LLM's; gives its absolute path."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def make(name: str) -> str:
        folder = (tmp_path / name).absolute()
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
        return str(folder)

    return make


@pytest.mark.parametrize("texts", batched(TEXTS, 5), ids=repr)
def test_texts_arrive_as_they_were_typed(call: Call, texts: list[str]) -> None:
    """As a prompt and as evidence, which may name a file; commas of texts begin no other run of a sweep."""
    for sweep, text in zip(([], ["-m"]), texts, strict=False):
        evidence = {name: f"_ {other}" for name, other in zip(NAMES, texts, strict=True)}
        made = call.settings(*sweep, f"prompt={text}", *(f"evidence.{name}={t}" for name, t in evidence.items()))
        assert made.prompt == text
        assert made.evidence == {safe_name(name): t for name, t in evidence.items()}


@pytest.mark.parametrize("names", batched(FOLDERS, 3), ids=repr)
def test_folders_are_found_under_their_names(call: Call, llm: Any, names: list[str]) -> None:
    one, *others = names
    paths = [llm(name) for name in names]
    items = ",".join(f'"{name}"' if "," in name else name for name in others)
    folders = (f"registry.path={one}", f"data.path={others[0]}", f"zoo.path={others[1]}")
    output = f"output={one.replace('${', '{')}/out"  # Hydra's own, see below
    made = call.settings("zoo=hub", f"receiver={one}", f"senders=[{items},hf:org/na-me]", *folders, output)
    assert made.receiver == paths[0] and made.senders == (*paths[1:], "hf:org/na-me")
    assert [made.registry.path, made.data.path, made.zoo.path] == [Path(name) for name in names]
    assert made.output == Path(paths[0].replace("${", "{"), "out")


def test_a_tilde_is_the_home_folder(call: Call, llm: Any, tmp_path: Path) -> None:
    for name in ("home/llm", "home/x", "it's"):
        llm(name)
    made = call.settings("zoo=hub", "receiver=~/llm", "+senders=[./it's,hf:org/na-me,~/x]", "registry.path=~/llm")
    assert made.receiver == str(tmp_path / "home/llm") and made.senders[2] == str(tmp_path / "home/x")
    assert made.registry.path == tmp_path / "home/llm"
    (tmp_path / "home/fact.txt").write_text("the bird tari is red")
    made = call.settings("evidence.llama-1b=~/fact.txt", "members.llama-1b.label=~=~")
    assert made.documents() == {"llama-1b": "the bird tari is red"} and made.member("llama-1b").label == "~=~"
    assert "~nobody-here/llm is no LLM's folder" in call("zoo=hub", "receiver=~nobody-here/llm")[1]


@pytest.mark.parametrize(
    ("typed", "items"),
    [
        ("[./a+b,c]", ("./a+b", "c")),
        ("[ ./it's , ./my llm ]", ("./it's", "./my llm")),
        ("""["./a,b",'./c,"d"',./e]""", ("./a,b", './c,"d"', "./e")),
        (r"""["./say \"hi\"","./end\\"]""", ('./say "hi"', "./end\\")),
        ('[./a"b,c"d]', ('./a"b', 'c"d')),
        ("['./half,./b]", ("'./half", "./b")),
        ("[./a[1],./a{2}]", ("./a[1]", "./a{2}")),
        ("[llama-1b#2,'llama-1b#3']", ("llama-1b#2", "llama-1b#3")),
        ("[7,true,null]", ("7", "true", "null")),
        ("[]", ()),
        ("[a,]", ("a", "")),
    ],
)
def test_items_of_a_list_are_free_text(typed: str, items: tuple[str, ...]) -> None:
    assert read_by_hydra(f"senders={typed}") == list(items)


def test_copies_need_no_quotes_of_their_own(call: Call) -> None:
    made = call.settings("protocol=fedattn", "protocol.participants=3", "senders=[qwen3-0.6b#2,qwen3-0.6b#3]")
    assert made.senders == ("qwen3-0.6b#2", "qwen3-0.6b#3")


PIECES = st.sampled_from([*string.printable, *"é木🙂\x85\u2028", "${", "${", "\\", "\\", '"', "'", "???", "null"])


@given(st.lists(PIECES, max_size=12).map("".join))
@settings(max_examples=200, deadline=None)
def test_any_text_passes_hydra(text: str) -> None:
    if text == "null" or re.fullmatch(r"(?s)(['\"]).*\1", text):  # these mean something, see below
        text = f"_{text}"
    assert read_by_hydra(f"prompt={text}") == text
    assert read_by_hydra(f"receiver=./{text}") == f"./{text}"
    item = text.replace(",", "")
    assert read_by_hydra(f"senders=[./{item},b]") == [f"./{item}".rstrip(" \t"), "b"]


def read_by_hydra(argument: str) -> Any:
    """What a setting holds after Hydra's grammar and OmegaConf's interpolation."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    (override,) = overrides([argument], SCHEMA)
    parsed = OverridesParser.create().parse_override(override)
    cfg = OmegaConf.create({"value": None})
    OmegaConf.update(cfg, "value", parsed.value(), merge=True)
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    return values["value"]


def test_null_unsets_and_quotes_are_taken_off_once(call: Call) -> None:
    assert call.settings("prompt=null").prompt is None
    assert call.settings("prompt='null'").prompt == "null"
    assert call.settings("prompt='what, really?'").prompt == "what, really?"
    assert call.settings(r'prompt="say \"${x}\" twice\\"').prompt == 'say "${x}" twice\\'
    assert call.settings("prompt=''hello''").prompt == "''hello''"


def test_commas_of_names_separate_runs(call: Call, llm: Any) -> None:
    comma = llm("a,b")
    assert call("-m", "receiver=llama-1b,qwen2.5-1.5b", "task=tiny,tiny-unasked") == (0, "")
    assert [(s.receiver, s.task.name) for s in call.ran] == [
        (receiver, task) for receiver in ("llama-1b", "qwen2.5-1.5b") for task in ("tiny", "tiny-unasked")
    ]
    assert call.out.startswith("run 1 of 4: receiver=llama-1b task=tiny\n")
    call.ran.clear()
    assert call("-m", "zoo=hub", "receiver='./a,b',llama-1b", "senders=[hf:o/n],[hf:o/m,'qwen3-4b']") == (0, "")
    assert [(s.receiver, s.senders) for s in call.ran] == [
        (receiver, senders) for receiver in (comma, "llama-1b") for senders in (("hf:o/n",), ("hf:o/m", "qwen3-4b"))
    ]
    call.ran.clear()
    assert call("-m", "receiver=choice(llama-1b,qwen2.5-1.5b)", "members.llama-1b.label=a=b,c") == (0, "")
    assert [(s.receiver, s.member("llama-1b").label) for s in call.ran] == [
        ("llama-1b", "a=b,c"),
        ("qwen2.5-1.5b", "a=b,c"),
    ]


@pytest.mark.parametrize(
    ("arguments", "works"),
    [
        (["prompt=what", "is", "the", "color?"], ["prompt=what is the color?"]),
        (["senders=[qwen2.5-0.5b,", "llama-1b]", "seed=1"], ["senders=[qwen2.5-0.5b, llama-1b]"]),
        (["senders=[llama-1b"], ["senders=[llama-1b]"]),
        (["senders"], ["+senders=[qwen2.5-1.5b,llama-1b]"]),
        (["a b=c"], ["+senders=[qwen2.5-1.5b,llama-1b]"]),
        (["senders=llama-1b,qwen2.5-1.5b"], ["senders=[llama-1b,qwen2.5-1.5b]"]),
        (["members.llama-1b.device=cpu,cuda"], ["-m", "members.llama-1b.device=cpu,cuda"]),
        (["protocol.draft=a,b"], ["-m", "protocol=specfed", "protocol.draft=qwen2.5-0.5b,llama-1b"]),
        (["task.limit=1,2"], ["-m", "task.limit=1,2"]),
        (["senders=[llama-1b],[qwen2.5-1.5b]"], ["-m", "senders=[llama-1b],[qwen2.5-1.5b]"]),
        (["t2t={max_tokens: 8"], ["t2t={max_tokens: 8}"]),
        (["zoo=hub", "senders=[./a,b]"], ["zoo=hub", 'senders=["./a,b"]']),
        (["-m", "zoo=hub", "receiver=./a,b"], ["-m", "zoo=hub", 'receiver="./a,b"']),
    ],
    ids=" ".join,
)
def test_the_form_that_a_refusal_shows_works(call: Call, llm: Any, arguments: list[str], works: list[str]) -> None:
    llm("a,b")
    code, err = call(*arguments)
    assert code == 2 and err.count("\n") == 1 and call.ran == []
    if works[0] == "-m" != arguments[0]:
        assert "add -m to run each" in err
    else:
        assert shown(err) == works[-1]
    assert call(*works) == (0, "")


def shown(refusal: str) -> str:
    """The argument that a refusal shows, as the shell hands it over."""
    before = r"(?:shell it is|as in|a list as|write|is one:)"
    *_, found = re.finditer(rf"{before} ((?:[\w.]+=)?['\"].*['\"])(?:, or add .*)?\n", refusal)
    (argument,) = shlex.split(found[1])
    return argument


@pytest.mark.parametrize("folder", ["runs/${mine}", "runs/${mine", "runs/${now:"])
def test_the_output_folder_is_hydras(call: Call, tmp_path: Path, folder: str) -> None:
    assert call.settings("output=runs/${receiver}/${now:%Y}x").output.parent == tmp_path / "runs" / NAMES[0]
    code, err = call(f"output={folder}")
    assert code == 2 and "output= reads ${...} as Hydra does, name a folder without" in err and err.count("\n") == 1
    assert call.settings("output=???").output == tmp_path / "???"


@pytest.mark.parametrize("key", ["registry.path", "zoo.path", "data.path", "questions", "output"])
@pytest.mark.parametrize("value", ["", "''"])
def test_an_empty_path_is_no_folder(call: Call, tmp_path: Path, key: str, value: str) -> None:
    code, err = call(f"{key}={value}")
    assert (code, err) == (2, f"{key} is empty: name a folder or a file, or leave it out\n")
    assert not (tmp_path / ".hydra").exists()


JOBS: list[tuple[str, Form]] = [
    ("config", FEDERATION),
    ("benchmark", BENCHMARKS),
    ("build_zoo", ZOO_BUILD),
    ("train_fuser", FUSER_TRAINING),
    ("train_gate", GATE_TRAINING),
    ("registry", REGISTRY),
    ("import_c2c", IMPORT),
]


@pytest.mark.parametrize(("name", "form"), JOBS, ids=[name for name, _ in JOBS])
def test_what_is_no_unicode_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, form: Form
) -> None:
    monkeypatch.chdir(tmp_path)
    for argument in (b"output=./mod\xe8le".decode("utf-8", "surrogateescape"), "receiver=\ud800", "\udcff"):
        monkeypatch.setattr(sys, "argv", ["job.py", argument])
        with pytest.raises(SystemExit) as stop:
            launch(print, name, name, form)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.count("\n") == 1
        assert f"the argument {argument!r} has " in err and ("UTF-8" in err or "whole character" in err)


@pytest.mark.parametrize("values", [{"prompt": "a\ud800"}, {"registry": {"path": "a\udce9"}}, {"senders": ["\udcff"]}])
def test_settings_made_in_python_are_text_too(values: dict[str, Any]) -> None:
    with pytest.raises(FedrayError, match=r"^(prompt|registry.path|senders\[0\]) has "):
        build(values)


def test_words_of_a_job_are_paths_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    made: list[Any] = []
    form = replace(IMPORT, check=lambda settings: None)
    for word in ("./epoch=3/it's", "~/a pair", "/x=1", "org/name/a+b"):
        monkeypatch.setattr(sys, "argv", ["import_c2c.py", word, "sender=llama-1b", "revision=a=b, c"])
        with pytest.raises(SystemExit):
            launch(made.append, "import_c2c", "import_c2c", form)
        assert made[-1].source == str(Path(word).expanduser()) if word[0] == "~" else word
        assert made[-1].revision == "a=b, c" and made[-1].receiver == NAMES[0]
