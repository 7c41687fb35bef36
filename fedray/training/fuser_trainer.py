"""Training loop of one fuser: LLMs frozen, loss on answer tokens, or on what a text would be as the receiver's note."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedray.fusion.build import build_fuser
from fedray.fusion.fuser import Fuser, FuserConfig
from fedray.fusion.norms import Norms
from fedray.llm.model import LLM
from fedray.training.checkpoint import Checkpoint, Snapshot, optimizer_tensors, restore_optimizer
from fedray.training.pair import draws
from fedray.training.recipe import FuserRecipe, precision, schedule
from fedray.training.worker_group import Progress, WorkerGroup
from fedray.types import FedrayError


class Examples(Protocol):
    """What a fuser is trained on (pair.py, text_pair.py); `rows` gives what `loss` takes."""

    sender: LLM
    receiver: LLM
    at_once: int

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> list[int]: ...

    @property
    def groups(self) -> list[str]: ...

    def config(self, recipe: FuserRecipe) -> FuserConfig: ...

    def rows(self, rows: Sequence[int]) -> list[Any]: ...

    def fit(self, fuser: Fuser, rng: random.Random) -> None: ...

    def loss(self, fuser: Fuser | None, batch: Sequence[Any]) -> tuple[Tensor, Tensor]: ...

    def openness(self, fuser: Fuser, batch: Sequence[Any]) -> Tensor: ...

    def norms(self) -> Norms: ...


class FuserLoss(nn.Module):
    """A fuser between two frozen LLMs: maps examples to their losses (B,). What DDP wraps."""

    def __init__(self, fuser: Fuser, pair: Examples) -> None:
        super().__init__()
        self.fuser = fuser
        self.pair = pair

    def forward(self, batch: list[Any]) -> tuple[Tensor, Tensor]:
        return self.pair.loss(self.fuser, batch)


class FuserTraining:
    """Resumable training of one fuser from a seeded initialization.

    check: to validate with. checkpoint: where the state is saved, every `save_every` steps, and resumed from. Raises
    FedrayError where it is of another training.
    """

    def __init__(
        self,
        pair: Examples,
        recipe: FuserRecipe,
        check: Examples | None = None,
        group: WorkerGroup | None = None,
        checkpoint: Checkpoint | None = None,
        save_every: int = 50,
    ) -> None:
        self.pair, self.recipe, self.check = pair, recipe, check
        self.group = group or WorkerGroup()
        self.step = 0
        self.means: dict[str, float] = {"loss": 0.0, "accuracy": 0.0}  # running, of the latest steps
        self.validations: list[tuple[int, float]] = []  # after which step, and the loss
        self.finished = False
        self._checkpoint, self._save_every = checkpoint, save_every
        snapshot = checkpoint.load() if checkpoint else None
        self._rng = random.Random(recipe.seed)
        self.fuser = self._begin()
        self._best: dict[str, Tensor] = {}
        parameters = self.fuser.parameters()
        self._optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
        if snapshot:
            self._restore(snapshot)
        self._schedule = schedule(self._optimizer, recipe, self.step)
        self.resumed_at = self.step

    def run(self, on_step: Progress = lambda step, of, figures: None) -> Fuser:
        """Train to the end."""
        recipe, parts = self.recipe, self.recipe.accumulation
        module = self.group.wrap(FuserLoss(self.fuser, self.pair))
        where: dict[str, Any] = {"first": self.step, "parts": parts, "group": self.group, "sampling": recipe.sampling}
        drawn = map(self.pair.rows, draws(self.pair.lengths, recipe.batch_size, recipe.steps, self._rng, **where))
        while self.step < recipe.steps and not self.finished:
            self._take_step(module, [next(drawn) for _ in range(parts)])
            due = self.check is not None and recipe.validate_every and self._is_due(recipe.validate_every)
            figures = {**self.means, **(self._validate(self.check) if self.check and due else {})}
            on_step(self.step, recipe.steps, {**figures, "learning_rate": float(self._schedule.get_last_lr()[0])})
            if self._is_due(self._save_every) and not self.finished:
                self._save()
        if self._best:
            self.fuser.load_state_dict(self._best)
        self._best, self.finished = {}, True
        self._save()
        return self.fuser.eval()

    def figures(self) -> dict[str, float]:
        """Return the running figures, and the best validation's loss."""
        best = {"validation/loss": min(loss for _, loss in self.validations)} if self.validations else {}
        return {**self.means, **best}

    def _begin(self) -> Fuser:
        """Build the fuser as it is before its first step; a resumed training draws the same numbers."""
        recipe, pair = self.recipe, self.pair
        torch.manual_seed(recipe.seed)
        fuser = build_fuser(pair.config(recipe)).to(pair.receiver.device).train()
        pair.fit(fuser, self._rng)
        return fuser

    def _take_step(self, module: nn.Module, parts: list[list[Any]]) -> None:
        recipe, group = self.recipe, self.group
        # Every step draws from a seed of its own, so that one that is resumed draws what it would have drawn.
        torch.manual_seed(recipe.seed * 1_000_003 + self.step * group.size + group.rank)
        self._optimizer.zero_grad(set_to_none=True)
        figures = torch.zeros(2)
        for number, batch in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else group.no_sync(module):
                with precision(recipe, self.pair.receiver.device):
                    loss_B, right_B = module(batch)
                (loss_B.mean() / len(parts)).backward()
            figures += torch.stack([loss_B.detach().mean(), right_B.float().mean()]).cpu() / len(parts)
        nn.utils.clip_grad_norm_(self.fuser.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()
        self.step += 1
        self.fuser.on_step(self.step / recipe.steps)
        share = 0.05 if self.step > 1 else 1.0
        for name, value in zip(self.means, (group.all_reduce(figures) / group.size).tolist(), strict=True):
            self.means[name] += share * (value - self.means[name])
        if not math.isfinite(self.means["loss"]):
            raise FedrayError(
                f"the loss is no number any more after step {self.step}: the last checkpoint lies before it; lower "
                f"learning_rate={recipe.learning_rate:g} and start anew with restart=true"
            )

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.steps

    @torch.no_grad()
    def _validate(self, check: Examples) -> dict[str, float]:
        """Measure loss and accuracy on `check`, every worker a share of it, and the fuser's mean weight per layer."""
        self.fuser.eval()
        with precision(self.recipe, self.pair.receiver.device):
            loss_Q, right_Q = losses(check, self.fuser, self.group)
            open_RLN = check.openness(self.fuser, check.rows(range(min(len(check), check.at_once)))).float().cpu()
        self.fuser.train()
        loss = float(loss_Q.mean())
        self.validations.append((self.step, loss))
        best = min(range(len(self.validations)), key=lambda i: self.validations[i][1])
        if self.recipe.patience:
            if best == len(self.validations) - 1:
                self._best = {name: tensor.detach().clone() for name, tensor in self.fuser.state_dict().items()}
            self.finished = len(self.validations) - 1 - best >= self.recipe.patience
        layers = {f"weight/layer-{t}": float(w) for t, w in enumerate(open_RLN.mean((0, 2)))}
        accuracy = float(right_Q.mean())
        return {"validation/loss": loss, "validation/accuracy": accuracy, "weight": float(open_RLN.mean()), **layers}

    # -- what a checkpoint holds --------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self._checkpoint is None or self.group.rank:
            return
        tensors = {f"fuser.{name}": tensor for name, tensor in self.fuser.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        tensors |= optimizer_tensors(self._optimizer)
        values = {"step": self.step, "finished": self.finished, "means": self.means, "validations": self.validations}
        groups = self._optimizer.state_dict()["param_groups"]
        self._checkpoint.save(Snapshot(tensors, {**values, "groups": groups}))

    def _restore(self, snapshot: Snapshot) -> None:
        values: Mapping[str, Any] = snapshot.values
        self.fuser.load_state_dict(snapshot.under("fuser"))
        self._best = {k: v.to(self.pair.receiver.device) for k, v in snapshot.under("best").items()}
        self.step, self.finished, self.means = values["step"], values["finished"], values["means"]
        self.validations = [(step, loss) for step, loss in values["validations"]]
        restore_optimizer(self._optimizer, snapshot, values["groups"])


@torch.no_grad()
def losses(pair: Examples, fuser: Fuser | None, group: WorkerGroup | None = None) -> tuple[Tensor, Tensor]:
    """Measure per question the loss of its answer and whether greedy decoding would give it (both (Q,)).

    Without a fuser: the receiver alone. Every worker reads a share of the batches.
    """
    group = group or WorkerGroup()
    found_2Q = torch.zeros(2, len(pair))
    starts = range(0, len(pair), pair.at_once)
    for start in starts[group.rank :: group.size]:
        batch = pair.rows(range(start, min(start + pair.at_once, len(pair))))
        loss_B, right_B = pair.loss(fuser, batch)
        found_2Q[:, start : start + len(batch)] = torch.stack([loss_B.cpu(), right_B.cpu().float()])
    loss_Q, right_Q = group.all_reduce(found_2Q)
    return loss_Q, right_Q


def accuracy_by_group(pair: Examples, fuser: Fuser | None) -> dict[str, float]:
    """Measure the share of answers greedy decoding would give, per group; without a fuser the receiver's own."""
    _, right_Q = losses(pair, fuser)
    right: dict[str, list[float]] = {}
    for group, value in zip(pair.groups, right_Q.tolist(), strict=True):
        right.setdefault(group or "all", []).append(value)
    return {group: math.fsum(values) / len(values) for group, values in sorted(right.items())}
