"""Shared by all tests: a zoo of random weights on disk, and one Ray cluster of two labelled nodes.

What Ray and torch read from the environment is set here, before anything imports them; each of pytest-xdist's workers
has folders of its own.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from shared_cluster import NODE, RECEIVER, ROOMS, SENDERS

if TYPE_CHECKING:
    from commandline import Call
    from ray.cluster_utils import Cluster

    from fedray import Federation
    from fedray.runtime.actors import RayGroup
    from fedray.runtime.cluster import Connection

gc.disable()  # until all is imported and collected
_FOLDER = tempfile.TemporaryDirectory(prefix="fr", dir="/tmp")  # short: Ray's sockets lie in it
os.environ |= {
    "OMP_NUM_THREADS": "1",  # LLMs this small lose time to a second thread, and minutes on a busy machine
    "HF_DATASETS_CACHE": f"{_FOLDER.name}/datasets",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TMPDIR": _FOLDER.name,
    "RAY_worker_niceness": "0",  # else members hardly get a turn beside pytest's other process
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": f"{_FOLDER.name}/token",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))),
}
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # dozens of processes start, and each would compile fedray anew
Path(_FOLDER.name, "token").write_text("0123456789abcdef" * 4)

settings.register_profile("brief", max_examples=40)
settings.load_profile("brief")

NOTICING = {"health_check_period_ms": 500}  # a lost node is noticed after five such checks

# Files whose tests need a cluster, this one's or one of their own.
ON_RAY = (
    "tests/benchmark/",
    "tests/runtime/",
    "tests/evaluation/test_hub_run.py",
    "tests/test_c2c_reference.py",
    "tests/test_conversations.py",
    "tests/test_federation.py",
    "tests/test_hot_swap.py",
    "tests/test_token_alignment.py",
    "tests/training/test_workers.py",
)
LONG = ("tests/evaluation/", "tests/training/")


def pytest_collection_finish() -> None:
    """Leave what torch, transformers and all tests are made of out of every collection: a tenth of the time."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that no process is left with it at the end."""
    items.sort(key=lambda item: (not item.nodeid.startswith(ON_RAY), not item.nodeid.startswith(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whatever is on Ray runs in one process, so that there is one cluster and no two are started at once; of the rest,
    a file stays together, as its tests share fixtures. Marks for --dist loadgroup would not do: pytest-xdist 3.8 writes
    them where pytest 9.2 does not look."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "on Ray" if nodeid.startswith(ON_RAY) else nodeid.partition("::")[0]

    return Files(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "nodes" in getattr(item, "fixturenames", ()) and not item.nodeid.startswith(ON_RAY):
        pytest.fail("it needs a Ray cluster: name its file in ON_RAY of tests/conftest.py", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Command lines share with each other what each would compose anew."""
    if find_spec("hydra") is None:  # an extra
        yield
        return
    from composing import compose_briefly

    with pytest.MonkeyPatch.context() as patch:
        compose_briefly(patch)
        yield


_opened: dict[tuple[Any, ...], Any] = {}
_shared: list[Path] = []  # folders of LLMs that no test changes


def _open_once(patch: pytest.MonkeyPatch) -> None:
    """Read the weights of each LLM that all tests share once; who loads one has a copy of its own."""
    from fedray.llm import loading
    from fedray.llm.catalogue import EMBEDDED

    open_model = loading.open_model

    def opened(member: str, folder: Path, *given: Any) -> Any:
        if not {EMBEDDED, *_shared} & {*folder.parents}:
            return open_model(member, folder, *given)
        key = (folder, *map(str, given))
        if key not in _opened:
            _opened[key] = open_model(member, folder, *given)
        return copy.deepcopy(_opened[key])

    patch.setattr(loading, "open_model", opened)


@pytest.fixture(autouse=True)
def opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    if "fedray.llm.loading" in sys.modules:  # torch is not imported for this
        _open_once(monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def unflushed() -> Iterator[None]:
    """No power fails: thousands of waits for the disk would be for nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow store for all tests, its tables made: that takes seconds, on a busy machine more than a job waits."""
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    mlflow.MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture(scope="session")
def nodes() -> Iterator[Cluster]:
    """Two nodes with two CPUs each, labelled room=a and room=b."""
    from ray.cluster_utils import Cluster

    head = {**NODE, "labels": {"room": "a"}, "include_dashboard": False, "_system_config": NOTICING}
    two = Cluster(initialize_head=True, head_node_args=head)
    two.add_node(**NODE, labels={"room": "b"})
    yield two
    two.shutdown()


@pytest.fixture(scope="session")
def cluster(nodes: Cluster) -> Iterator[Connection]:
    """This process in the cluster of `nodes`."""
    from fedray.runtime.cluster import connect

    connection = connect(nodes.address)
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def random_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the embedded zoo's: three LLMs, and concat fusers into the receiver, all of random weights."""
    from tiny import random_fuser, random_llm

    from fedray.llm.loading import describe, load
    from fedray.registry.store import Registry

    folder = tmp_path_factory.mktemp("zoo")
    for name in (RECEIVER, *SENDERS):
        llm = random_llm(name)
        llm.model.save_pretrained(folder / "llms" / name)
        llm.tokenizer.save_pretrained(folder / "llms" / name)
    saved = {name: describe(load(name, folder=folder)) for name in (RECEIVER, *SENDERS)}
    registry = Registry(folder / "registry", embedded=None)
    for sender in SENDERS:
        fuser = random_fuser(random_llm(sender), random_llm(RECEIVER), "concat")
        registry.add_fuser(fuser, saved[sender], saved[RECEIVER], {})
    _shared.append(folder)
    return folder


@pytest.fixture(scope="session")
def random_federation(random_zoo: Path) -> dict[str, Any]:
    """What Federation needs to run on the random zoo."""
    return {
        "receiver": RECEIVER,
        "senders": SENDERS,
        "gate": "open",
        "zoo": {"path": random_zoo},
        "generation": {"max_tokens": 6},
    }


@pytest.fixture(scope="session")
def mixing(random_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry over the random zoo's: mix fusers, and gates of both operators that read an upper layer and let some
    in on some turns."""
    import torch
    from tiny import random_fuser

    from fedray.fusion.gating import GateConfig, GateNetwork
    from fedray.llm.catalogue import slug
    from fedray.llm.loading import describe, load
    from fedray.registry.store import Registry

    registry = Registry(tmp_path_factory.mktemp("registry"), embedded=None)
    receiver, *senders = (load(name, folder=random_zoo) for name in (RECEIVER, *SENDERS))
    for sender in senders:
        registry.add_fuser(random_fuser(sender, receiver, "mix"), describe(sender), describe(receiver), {})
    hidden = receiver.model.config.hidden_size
    for operator in ("concat", "mix"):
        torch.manual_seed(5)
        config = GateConfig(slug(RECEIVER), tuple(map(slug, SENDERS)), hidden, operator, layer=2, sharpness=12.0)
        registry.add_gate(GateNetwork(config).eval(), describe(receiver), {})
    assert registry.path
    return registry.path


@pytest.fixture(scope="session")
def spread(random_federation: dict[str, Any], mixing: Path, cluster: Connection) -> Iterator[Federation]:
    """The random zoo's LLMs, each in an actor of its own, on two nodes. They stay till the end."""
    from fedray import Federation

    members = {name: {"label": f"room={room}", "num_cpus": 0.1} for name, room in ROOMS.items()}
    with Federation(**random_federation, registry={"path": mixing}, members=members) as fed:
        yield fed


@pytest.fixture(scope="module")
def embedded(spread: Federation) -> Iterator[RayGroup]:
    """Embedded LLMs, each in an actor: `spread`'s, which have their own again for the next file."""
    from probes import lent

    with lent(spread._group, "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-coder-0.5b") as group:
        yield group


@pytest.fixture
def short_folder() -> Iterator[str]:
    """Ray's sockets do not fit into pytest's."""
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp") as folder:
        yield folder


@pytest.fixture
def without_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow leaves the store of other tests in the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Calls a job with arguments, in a folder of its own."""
    from commandline import Call

    monkeypatch.chdir(tmp_path)
    return Call(monkeypatch, capsys)


@pytest.fixture
def full_size() -> None:
    """For tests that look at pictures, or need a file as large as users have it, where others have `unpainted`."""


@pytest.fixture
def unpainted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, and saved as an empty picture: to lay out and paint one takes longer than most tests that leave
    some, and those of `full_size` do."""
    if "full_size" in request.fixturenames:
        return
    from matplotlib.figure import Figure

    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: save(Figure(figsize=(1, 1)), path, dpi=dpi))


@pytest.fixture
def threads() -> Iterator[None]:
    """Jobs set torch's number of threads."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
