"""The only file that knows Hydra: validates what it composes as settings, and translates its errors.

The job runs after Hydra has composed all runs, so a sweep is validated as a whole before its first run starts.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_origin

from fedray.arguments import for_shell, literal, overrides, quoted, uncut
from fedray.benchmark.settings import BENCHMARK, check_benchmark
from fedray.data.catalogue import TASKS
from fedray.errors import unknown
from fedray.evaluation.check import check_evaluation
from fedray.evaluation.settings import EvaluateSettings, build_evaluation
from fedray.files import new_folder, write_whole
from fedray.methods.method import FuserChoice
from fedray.methods.parts import CODECS, FUSERS
from fedray.protocols import KINDS, PROTOCOLS
from fedray.reporting.outlet import unfailing
from fedray.schema import Schema
from fedray.settings.check import check, check_build
from fedray.settings.settings import BUILD_SCHEMA, BY_MEMBER, SCHEMA, build
from fedray.text import mask
from fedray.training import settings as training
from fedray.training.registry_settings import REGISTRY_JOB, check_registry_job
from fedray.types import FedrayError

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
BAD_INPUT, INTERRUPTED = 2, 130
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by `ray job submit`, whose working folder Ray removes later
_HOME = "FEDRAY_HOME"  # folder of outputs/ and mlflow.db: the current one, or ~/fedray for a submitted job


@dataclass(frozen=True, slots=True)
class Form:
    """The settings of a job: their names, how values become typed ones, and their validation before it runs.

    Typed settings have a field `output`, the folder the job writes to. words: settings that bare words on the command
    line stand for, in their order.
    """

    schema: Schema[Any]
    build: Callable[[Mapping[str, Any]], Any]
    check: Callable[[Any], None]
    words: tuple[str, ...] = ()


FEDERATION = Form(SCHEMA, build, check)
EVALUATION = Form(Schema(EvaluateSettings, BY_MEMBER, KINDS), build_evaluation, check_evaluation)
BENCHMARKS = Form(BENCHMARK, BENCHMARK.read, check_benchmark)
ZOO_BUILD = Form(BUILD_SCHEMA, BUILD_SCHEMA.read, check_build)
FUSER_TRAINING = Form(training.FUSER_JOB, training.build_fuser_job, training.check_fuser_job)
GATE_TRAINING = Form(training.GATE_JOB, training.build_gate_job, training.check_gate_job)
REGISTRY = Form(REGISTRY_JOB, REGISTRY_JOB.read, check_registry_job, ("action", "name"))
IMPORT = Form(training.IMPORT_JOB, training.build_import_job, training.check_import_job, ("source",))


def load(cfg: DictConfig, form: Form = FEDERATION) -> Any:
    """Build settings from what Hydra composed. Raises FedrayError on unknown keys and values, and on wrong types."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(cfg, resolve=True)  # a text ??? is no missing value
    except OmegaConfBaseException as error:
        raise _translated(error, form) from error
    assert isinstance(values, dict)
    if form is FEDERATION and "blocks" in values:
        raise FedrayError("experiments ask in many ways: run them with python jobs/evaluate.py +experiment=NAME")
    return form.build({str(key): value for key, value in values.items() if key != "hydra"})


def launch(
    job: Callable[[Any], int | None], config_name: str = "config", job_name: str | None = None, form: Form = FEDERATION
) -> NoReturn:
    """Compose the command line, validate it, run the job on each result and exit with its code.

    A FedrayError or an error of Hydra's ends with one sentence on stderr and exit code 2, Ctrl-C with 130.
    """
    with unfailing():
        code = _run(job, config_name, job_name or job.__name__, form)
    sys.exit(code)


def _run(job: Callable[[Any], int | None], config_name: str, job_name: str, form: Form) -> int:
    try:
        runs = _composed(config_name, job_name, form)
        for _, settings in runs:
            form.check(settings)
        code = 0
        for number, (label, settings) in enumerate(runs, 1):
            if len(runs) > 1:
                print(f"run {number} of {len(runs)}: {label}", flush=True)
            code = max(code, job(settings) or 0)
            if code == INTERRUPTED:  # one Ctrl-C ends a sweep
                break
    except FedrayError as error:
        print(_one_line(error), file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt:
        code = INTERRUPTED
    return code


def _add_words() -> None:
    """Let the entries of other packages be words on the command line, as those with a file in conf/ are."""
    from hydra.core.config_store import ConfigStore

    groups = {
        "protocol": {name: asdict(protocol.settings()) for name, protocol in PROTOCOLS.items()},
        "fuser": {name: asdict(FuserChoice(name)) for name in FUSERS},
        "wire": {name: {"codec": name} for name in CODECS},
        "task": {name: {"name": name} for name in TASKS},
    }
    for group, nodes in groups.items():
        for name, node in nodes.items():
            if not (CONF / group / f"{name}.yaml").exists():
                ConfigStore.instance().store(name, node, group)


def _composed(config_name: str, job_name: str, form: Form) -> list[tuple[str, Any]]:
    """Compose the runs as (overrides, settings): several with --multirun, none with --help."""
    try:
        import hydra
        import yaml
        from hydra.core.hydra_config import HydraConfig
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ModuleNotFoundError as error:
        raise FedrayError(f"the jobs need {error.name}: install it with pip install 'fedray[jobs]'") from error

    runs: list[tuple[str, Any]] = []

    def collect(cfg: DictConfig) -> None:
        config = HydraConfig.get()
        output = Path(config.runtime.output_dir)
        for folder in (output / ".hydra", Path(config.sweep.dir)):  # a sweep's own file lies above its runs
            _make_private(folder)
        settings = replace(load(cfg, form), output=output)
        runs.append((" ".join(config.overrides.task), settings))

    OmegaConf.register_new_resolver(
        "new_folder", lambda path: str(new_folder(Path(path))), replace=True, use_cache=True
    )
    _add_words()
    collect.__module__ = job_name  # Hydra names a job after the module of its function
    stderr = io.StringIO()
    try:
        with _command_line(form), redirect_stderr(stderr):
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(collect)()
    except FedrayError:
        raise
    except SystemExit as stop:
        wrong = stderr.getvalue().rpartition("error: ")[2].strip()
        if stop.code and wrong:  # what argparse does with an unknown flag
            raise FedrayError(f"{wrong}: see --help") from stop
        raise  # --help and its like, or a signal: Ray makes an exit of SIGTERM
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, LookupError) as error:
        raise _translated(error, form) from error
    return runs


def _make_private(folder: Path) -> None:
    """Mask passwords in what Hydra wrote of the command line, and make it private: it may hold prompts."""
    for file in folder.glob("*.yaml"):
        write_whole(file, mask(file.read_text(encoding="utf-8")), private=True)


@contextmanager
def _command_line(form: Form) -> Iterator[None]:
    """Set the process up for Hydra: arguments in its grammar, and errors raised instead of printed."""
    for name in (_HOME, "MLFLOW_TRACKING_URI"):
        if os.environ.get(name) == "":  # as if it were not there, like Ray, MLflow and the shell have it
            del os.environ[name]
    if _SUBMITTED in os.environ:
        os.environ.setdefault(_HOME, str(Path.home() / "fedray"))
    if _HOME in os.environ:
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path(os.environ[_HOME]).absolute()}/mlflow.db")
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    groups = [folder.name for folder in CONF.iterdir() if folder.is_dir()]
    sys.argv = [argv[0], *map(_readable, overrides(argv[1:], form.schema, form.words, groups))]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _readable(override: str) -> str:
    """Quote what Hydra's grammar cannot parse, so that the setting's own validation reports it."""
    key, equals, value = override.partition("=")
    if not equals or override.startswith("-") or value.startswith(("[", "{")) or _parses(override):
        return override
    as_text = f"{key}={quoted(literal(value))}"
    return as_text if _parses(as_text) else override


def _parses(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    with suppress(HydraException):
        OverridesParser.create().parse_override(override)
        return True
    return False


def _how_to_write(override: str, form: Form) -> str:
    """Suggest a valid form of an argument that Hydra's grammar refuses."""
    key, equals, value = override.partition("=")
    whole = uncut(override, sys.argv[1:])
    if not equals and form.schema.hint(whole.partition("=")[0]) in (str, Path):
        return f"quoted for the shell it is {for_shell(whole)}"
    closers = (value + "]" * square + "}" * curly for square in range(3) for curly in range(3))
    if closed := next((f"{key}={whole}" for whole in closers if equals and _parses(f"{key}={whole}")), None):
        return f"a bracket is not closed, write {for_shell(closed)}"
    return "write key=value, quoted for the shell as in '+senders=[qwen2.5-1.5b,llama-1b]'"


def _which_one(key: str, value: str, form: Form) -> str:
    """Suggest a remedy for several values where one is wanted."""
    kind = form.schema.hint(key)
    if get_origin(kind) is tuple and not value.startswith("["):
        return f"write a list as {for_shell(f'{key}=[{value}]')}, or add -m to run each"
    quotes = f", or quote it if it is one: {for_shell(f'{key}={quoted(value)}')}" if kind is str else ""
    return f"add -m to run each{quotes}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _translated(error: Exception, form: Form) -> FedrayError:
    """Translate an error of Hydra, OmegaConf, YAML or the folder Hydra writes to into one sentence."""
    from hydra.errors import MissingConfigException, OverrideParseException

    text = _one_line(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        there = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        return unknown(group or "config", name, error.options or there)
    if isinstance(error, OSError) and error.filename:
        what = f"cannot write to output folder {error.filename!r}: {error.strerror}"
        return FedrayError(f"{what}; choose another with output=DIR")
    if isinstance(error, OverrideParseException):
        return FedrayError(f"cannot read the argument {error.override!r}: {_how_to_write(error.override, form)}")
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)' (?:1\.|requires)", text):
        key, _, value = match[1].partition("=")
        return FedrayError(f"{match[1]!r} names several values: {_which_one(key, value, form)}")
    match = re.search(r"Could not (?:override|delete)(?: from config\.)? '(.*?)'", text)
    if match and match[1] not in form.schema.names and not match[1].startswith("hydra."):
        return form.schema.unknown(match[1])
    if match:
        return FedrayError(f"~{match[1]} deletes nothing: leave the setting out, or unset it with {match[1]}=null")
    cause = f" ({_one_line(error.__cause__)})" if isinstance(error.__cause__, Exception) else ""
    remedy = "see --help for what there is"
    if any(argument.startswith("output=") and "${" in argument for argument in sys.argv):
        remedy = "output= reads ${...} as Hydra does, name a folder without"
    return FedrayError(f"cannot compose the settings: {text.rstrip('.')}{cause}; {remedy}")
