"""Copies of a training state, to go back to when an interval has to be undone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class _Copy(NamedTuple):
    step: int
    saved: dict[str, Any]


class Snapshot:
    """The weights an optimizer trains, its whole state, and what follows them: two copies.

    `restore` goes back to the copy before the latest. The loss of a step is that of the weights
    before its update, so no loss has been seen yet of the latest copy's weights. The last update
    before that copy may have destroyed them.

    Copies are taken and restored in place, without a host sync. Weights that are frozen when a copy
    is taken are left out, because they cost memory; `adopt` adds them once they are trained.
    Buffers that are expanded views are left out too, because they cannot be written to.

    Frozen parameters may follow the trained ones (a target network, a momentum encoder). Those with
    the shape of a trained one are kept. If they outnumber the trained ones they are a frozen
    backbone, and are not kept.

    Args:
        optimizer: whose parameters, state and group settings (all but the learning rate) to keep.
        module: whose buffers to keep (BatchNorm's running statistics, for example), and whose
            frozen parameters; None for none.
        averages: averages of the module (`torch.optim.swa_utils.AveragedModel`) to keep as well.

    Example:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> snapshot = Snapshot(torch.optim.SGD([weight], lr=0.1))
        >>> snapshot.take(0)
        >>> weight.data.mul_(7)
        tensor([7.])
        >>> snapshot.restore(), weight.item()
        (0, 1.0)
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        module: nn.Module | None = None,
        averages: Sequence[nn.Module] = (),
    ) -> None:
        self._optimizer = optimizer
        self._module = nn.Module() if module is None else module
        self._averages = list(averages)
        self._groups = -1  # parameter groups when the copies were last known to be complete
        self._frozen: list[Tensor] = []  # which of the optimizer's parameters were frozen then
        self._copies: list[_Copy] = []  # at most two, the proven one first
        self._spare: dict[str, Any] = {}  # memory to use again

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Copies the state, which is that after `step` optimizer steps."""
        live = self._tensors() | self._settings()
        for index, parameter in enumerate(self._parameters()):
            for name, value in self._optimizer.state.get(parameter, {}).items():
                live[f"state/{index}/{name}"] = value
        if len(self._copies) == 2:
            self._spare = self._copies.pop(0).saved
        self._copies.append(_Copy(step, _copied(live, self._spare)))
        self._spare = {}
        self._know_frozen()

    def adopt(self) -> None:
        """Adds what became trainable after a copy was taken; the host calls it before each step.

        These weights have not moved since then, so their present value is the one to keep.
        """
        groups = len(self._optimizer.param_groups)
        if groups == self._groups and not any(p.requires_grad for p in self._frozen):
            return
        for key, tensor in self._tensors().items():
            for copy in self._copies:
                if key not in copy.saved:
                    copy.saved[key] = _copy(tensor)
        self._know_frozen()

    def _know_frozen(self) -> None:
        self._groups = len(self._optimizer.param_groups)
        self._frozen = [p for p in self._parameters() if not p.requires_grad]

    @torch.no_grad()
    def restore(self) -> int:
        """Puts the proven state back; returns the number of the step it was taken after."""
        if len(self._copies) == 2:
            self._spare = self._copies.pop().saved
        proven = self._copies[0]
        live = self._everything()
        kept = {key: value for key, value in proven.saved.items() if key in live}
        _copy_into({key: live[key] for key in kept}, kept)
        saved = _nested(proven.saved)
        self._restore_settings(saved["group"])
        self._restore_optimizer(saved["state"])
        return proven.step

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _trained(self) -> dict[str, Any]:
        return {f"weight/{i}": p for i, p in enumerate(self._parameters()) if p.requires_grad}

    def _tensors(self) -> dict[str, Any]:
        """The tensors of a copy, without the optimizer's own state."""
        trained = self._trained()
        followers = self._followers(list(trained.values()))
        live = trained | _named("module", chain(followers, self._module.named_buffers()))
        for i, average in enumerate(self._averages):
            live |= _named(f"average/{i}", self._averaged(average))
        return live

    def _followers(self, trained: Sequence[Tensor]) -> list[tuple[str, nn.Parameter]]:
        """Frozen parameters that may be a moving average of trained ones."""
        shapes = {p.shape for p in trained}
        frozen = [
            (name, p)
            for name, p in self._module.named_parameters()
            if not p.requires_grad and not is_lazy(p) and p.shape in shapes
        ]
        size = sum(p.numel() for _, p in frozen)
        return frozen if size <= sum(p.numel() for p in trained) else []

    def _averaged(self, average: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The part of an average that can change: all but its copy of a frozen backbone."""
        mine = self._module.named_parameters()
        frozen = {f"module.{name}" for name, p in mine if not p.requires_grad}
        yield from (item for item in average.named_parameters() if item[0] not in frozen)
        yield from average.named_buffers()

    def _everything(self) -> dict[str, Any]:
        """All that a copy may hold, whether it is trained, frozen or a buffer now."""
        live: dict[str, Any] = {f"weight/{i}": p for i, p in enumerate(self._parameters())}
        kinds = {f"average/{i}": average for i, average in enumerate(self._averages)}
        for kind, module in (kinds | {"module": self._module}).items():
            live |= _named(kind, chain(module.named_parameters(), module.named_buffers()))
        return live

    def _settings(self) -> dict[str, Any]:
        """Numbers in the parameter groups: some optimizers count their steps there."""
        return {
            f"group/{i}/{name}": value
            for i, group in enumerate(self._optimizer.param_groups)
            for name, value in group.items()
            if name not in ("params", "lr") and isinstance(value, int | float | Tensor)
        }

    def _restore_settings(self, saved: dict[str, Any]) -> None:
        for index, settings in _nested(saved).items():
            group = self._optimizer.param_groups[int(index)]
            group.update({name: _copy(value) for name, value in settings.items()})

    def _restore_optimizer(self, saved: dict[str, Any]) -> None:
        states = _nested(saved)
        for position, parameter in enumerate(self._parameters()):
            live = self._optimizer.state.get(parameter, {})
            wanted = states.get(str(position), {})
            # Torch's optimizers initialise an empty state again, as at the first step.
            for name in set(live) - set(wanted):
                del live[name]
            if wanted:
                self._optimizer.state[parameter].update(_copied(wanted, live))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins."""
        copies = [
            {"step": copy.step, "saved": {k: _copy(v) for k, v in copy.saved.items()}}
            for copy in self._copies
        ]
        return {"copies": copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, onto the devices of the live tensors."""
        self._copies = [_Copy(c["step"], self._at_home(c["saved"])) for c in state["copies"]]
        self._spare = {}
        self._groups = -1

    def _at_home(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        parameters = self._parameters()
        live = self._everything()
        copies = {key: _copy(value) for key, value in saved.items()}
        for key, value in copies.items():
            kind, _, rest = key.partition("/")
            home = parameters[int(rest.partition("/")[0])] if kind == "state" else live.get(key)
            # Step counters of optimizers are scalars and stay on the host, where they were saved.
            stays = kind == "state" and isinstance(value, Tensor) and value.dim() == 0
            if isinstance(value, Tensor) and home is not None and not stays:
                copies[key] = value.to(home.device)
        return copies


def _named(kind: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """Those that can be written to, by name, without the part that `torch.compile` adds."""
    return {
        f"{kind}/{name.replace('_orig_mod.', '')}": tensor
        for name, tensor in tensors
        if not is_lazy(tensor) and not _expanded(tensor)
    }


def _nested(saved: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Values by the first part of their keys, then by the rest."""
    nested: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in saved.items():
        first, _, rest = key.partition("/")
        nested[first][rest] = value
    return nested


def _expanded(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided:
        return False
    return any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)


def _fits(a: Any, b: Any) -> bool:
    both = isinstance(a, Tensor) and isinstance(b, Tensor)
    return both and a.shape == b.shape and a.dtype == b.dtype


def _copied(source: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `source` that uses the tensors of `target` again where they fit."""
    again = {k: v for k, v in source.items() if _fits(target.get(k), v)}
    _copy_into({k: target[k] for k in again}, again)
    return {k: target[k] if k in again else _copy(v) for k, v in source.items()}


def _copy_into(target: Mapping[str, Any], source: Mapping[str, Any]) -> None:
    """Copies tensors in place, in one launch per kind of tensor."""
    kinds: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for key, value in source.items():
        if not isinstance(value, Tensor):
            continue
        if target[key].shape == value.shape:
            kinds[value.device, target[key].device, value.dtype, target[key].dtype].append(key)
        else:  # a buffer that has changed its shape
            target[key].data = value.clone()
    for keys in kinds.values():
        torch._foreach_copy_([target[k] for k in keys], [source[k] for k in keys])
