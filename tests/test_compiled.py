"""compile=: fusers by torch.compile say what they say as they are, whatever the prompt's length."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import QUESTIONS, random_fuser, random_llm

from fedray.federation.federation import Federation
from fedray.fusion.compiled import compiled
from fedray.methods.method import Compile
from fedray.settings.check import check, cpp_compiler
from fedray.settings.settings import MemberSettings, RaySettings, Settings
from fedray.types import FedrayError

SENDER, RECEIVER = "qwen2.5-1.5b", "qwen3-0.6b"
pytestmark = pytest.mark.timeout(900)  # a compiler's, where others use the cores too
has_compiler = pytest.mark.skipif(cpp_compiler() is None, reason="torch.compile needs a C++ compiler")


def sides(llm, batch: int, tokens: int):
    keys, values = (
        tuple(torch.randn(batch, llm.spec.kv_heads, tokens, llm.spec.head_dim) for _ in range(llm.spec.layers))
        for _ in range(2)
    )
    return keys, values


def fuser_of(kind: str, operator: str):
    """One whose numbers are not small, all gates of it open but two."""
    fuser = random_fuser(random_llm(SENDER), random_llm(RECEIVER), operator, kind)
    for name, parameter in fuser.named_parameters():
        parameter.data += torch.rand_like(parameter) * 0.1
        if name.endswith("gate_logit"):
            parameter.data.fill_(-1.0 if name.split(".")[1] == "2" else 1.0)
    return fuser


@torch.no_grad()
def said(fuser, own, sent) -> list[torch.Tensor | None]:
    if fuser.config.operator == "concat":
        projection = fuser.project(*sent)
        return [*projection.keys, *projection.values, *projection.log_weights]
    keys, values = fuser.mix(own, sent)
    return [*keys, *values]


def same(plain, fast, batch: int, tokens: int) -> None:
    torch.manual_seed(tokens)
    own, sent = (sides(random_llm(name), batch, tokens) for name in (RECEIVER, SENDER))
    wanted, got = said(plain, own, sent), said(fast, own, sent)
    assert tokens == 0 or any(x is not None and float(x.abs().max()) > 0.1 for x in wanted)
    for one, other in zip(wanted, got, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other, one, atol=1e-5, rtol=0)


@has_compiler
@pytest.mark.parametrize(
    ("kind", "operator", "mode"),
    [
        ("mlp", "mix", "default"),
        pytest.param("mlp", "concat", "default", marks=pytest.mark.slow),
        pytest.param("c2c", "mix", "default", marks=pytest.mark.slow),
        pytest.param("c2c", "mix", "max-autotune", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_fuser_says_what_it_says_as_it_is(kind: str, operator: str, mode: Compile) -> None:
    plain, fast = fuser_of(kind, operator), fuser_of(kind, operator).for_inference(mode)
    with torch.compiler.set_stance("fail_on_recompile"):  # what was compiled in advance serves every length
        for batch, tokens in ((1, 5), (2, 9)):
            same(plain, fast, batch, tokens)
    assert fast.state_dict().keys() == plain.state_dict().keys()


@has_compiler
@pytest.mark.slow
def test_so_it_does_of_one_token_and_of_none() -> None:
    plain, fast = fuser_of("mlp", "concat"), fuser_of("mlp", "concat").for_inference("default")
    for tokens in (1, 0, 6):
        same(plain, fast, 1, tokens)


@pytest.mark.parametrize(("kind", "operator"), [("mlp", "concat"), ("mlp", "mix"), ("c2c", "mix")])
def test_every_kind_is_compiled_when_it_first_computes(kind: str, operator: str) -> None:
    fuser = fuser_of(kind, operator).for_inference("reduce-overhead")
    own, sent = (sides(random_llm(name), 1, 3) for name in (RECEIVER, SENDER))
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="fail_on_recompile"):
        said(fuser, own, sent)
    with torch.compiler.set_stance("force_eager"):  # in groups, on a CPU too
        for one, other in zip(said(fuser, own, sent), said(fuser_of(kind, operator), own, sent), strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other, atol=1e-5, rtol=0)


@has_compiler
@pytest.mark.slow
def test_a_compiled_request_gives_the_same_tokens() -> None:
    with Federation(senders=("qwen2.5-0.5b", "llama-1b"), ray=False, tracking={"enabled": False}) as fed:
        plain, fast = (fed.run(fed.request(*QUESTIONS), fed.plan_for(compile=mode)) for mode in (None, "default"))
    assert [row.tokens for row in fast.rows] == [row.tokens for row in plain.rows]
    assert fast.took_part == plain.took_part and not fast.missing


@pytest.mark.gpu
def test_what_a_cuda_graph_gave_stays_as_it_is() -> None:
    """Its next run overwrites the memory that its outputs lie in."""

    def double(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x * 2,)

    step = compiled(double, "reduce-overhead")
    inputs = [torch.full((4, 5), float(i), device="cuda") for i in range(6)]
    outputs = [step(x)[0] for x in inputs]  # the first runs warm up and record
    for i, output in enumerate(outputs):
        assert bool((output == 2.0 * i).all())


def test_cuda_graphs_need_a_receiver_on_a_gpu(tmp_path: Path) -> None:
    settings = Settings(compile="reduce-overhead", output=tmp_path)
    with pytest.raises(FedrayError, match=r"qwen3-0.6b would run on CPUs: add members.qwen3-0.6b.device=cuda"):
        check(settings)
    check(replace(settings, ray=RaySettings(gpus_per_member=0.2)))
    on_gpu = replace(settings, members={"qwen3-0_6b": MemberSettings(device="cuda:0")})
    check(on_gpu)
    with pytest.raises(FedrayError, match="would run on CPUs"):  # a sender's GPU is none of the receiver's
        check(replace(settings, members={"llama-1b": MemberSettings(device="cuda")}))
    if cpp_compiler():
        check(replace(on_gpu, answer_all=True))


def test_a_cpu_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = Settings(compile="default", output=tmp_path)
    monkeypatch.setenv("CXX", sys.executable)  # any program: whether it compiles shows later
    check(settings)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(FedrayError, match=r"compile=default needs a C\+\+ compiler on CPUs and there is none"):
        check(settings)
    check(replace(settings, compile=None))
    check(replace(settings, ray=RaySettings(address="10.0.0.1:6379")))  # another machine's compiler
    check(replace(settings, members={"qwen3-0_6b": MemberSettings(device="cuda")}))
