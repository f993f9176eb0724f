"""Copies of a training state, to go back to when an interval has to be undone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_dqnlr.errors import UnsupportedTrainingError
from lightning_dqnlr.host.rehearsal import rehearsed
from lightning_dqnlr.host.shards import own_part


class _Copy(NamedTuple):
    step: int
    saved: dict[str, Any]


class Snapshot:
    """The weights an optimizer trains, its whole state, and what follows them: two copies, or one.

    `restore` goes back to the copy before the latest. The loss of a step is that of the weights
    before its update, so no loss has been seen yet of the latest copy's weights. The last update
    before that copy may have destroyed them.

    Copies are taken and restored in place, without a host sync. Weights that are frozen when a copy
    is taken are left out, because they cost memory; `adopt` adds them once they are trained.
    Of a sharded tensor each process copies its own part, and all restore at the same time.
    Buffers that are expanded views are left out too, because they cannot be written to.

    Frozen parameters may follow the trained ones (a target network, a momentum encoder). Those with
    the shape of a trained one are kept. If they outnumber the trained ones they are a frozen
    backbone, and are not kept. A copy that was never frozen may follow them too: it gets no
    gradient, while the weights of another optimizer do.

    Args:
        optimizer: whose parameters, state and group settings (all but the learning rate) to keep;
            those of optimizers inside it as well.
        module: whose buffers to keep (BatchNorm's running statistics, for example), and whose
            frozen parameters; None for none.
        averages: averages of the module (`torch.optim.swa_utils.AveragedModel`) to keep as well.
        device: where to keep the copies; None for where the tensors are.
        copies: how many to keep; with one, `restore` goes back to the latest.

    Raises:
        UnsupportedTrainingError: if something cannot be copied. Of the optimizer's state this is
            found out on a copy of it, else when it is met first.

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
        device: str | None = None,
        copies: int = 2,
    ) -> None:
        self._optimizer = optimizer
        self._most_copies = copies
        self._optimizers = _optimizers(optimizer)
        self._device = device
        self._module = nn.Module() if module is None else module
        self._averages = list(averages)
        self._groups = -1  # parameter groups when the copies were last known to be complete
        self._frozen: list[Tensor] = []  # which of the optimizer's parameters were frozen then
        self._copies: list[_Copy] = []  # the proven one first
        self._spare: dict[str, Any] = {}  # memory to use again
        for i, state in enumerate(rehearsed(optimizer)):
            _copied({f"state/{i}/{name}": value for name, value in _flat(state).items()}, {})
        self._trained_elsewhere: set[int] = set()
        own = {id(p) for p in self._parameters()}
        self._hooks = [
            p.register_post_accumulate_grad_hook(lambda p: self._trained_elsewhere.add(id(p)))
            for p in self._module.parameters()
            if p.requires_grad and id(p) not in own and not is_lazy(p)
        ]

    def close(self) -> None:
        """Takes the hooks off the module."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Copies the state, which is that after `step` optimizer steps."""
        live = self._tensors()
        for k, optimizer in enumerate(self._optimizers):
            live |= {f"group{k or ''}/{key}": value for key, value in _settings(optimizer).items()}
            for i, parameter in enumerate(_parameters(optimizer)):
                state = _flat(optimizer.state.get(parameter, {}))
                live |= {f"state{k or ''}/{i}/{name}": value for name, value in state.items()}
        if len(self._copies) == self._most_copies:
            self._spare = self._copies.pop(0).saved
        self._copies.append(_Copy(step, _copied(live, self._spare, self._device)))
        self._spare = {}
        self._know_frozen()

    @torch.no_grad()
    def sound(self) -> bool:
        """Whether all weights are finite, and nothing else of the state is NaN.

        Masks in buffers and some optimizers' states are infinite on purpose.
        """
        weights = _norms(self._trained().values())
        states = [_flat(s) for o in self._optimizers for s in o.state.values()]
        rest = _norms([*self._tensors().values(), *(v for state in states for v in state.values())])
        return bool(weights.isfinite().all() & ~rest.isnan().any())

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
                    copy.saved[key] = _copy(tensor, self._device)
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
        for key in [key for key, p in live.items() if id(p) in self._trained_elsewhere]:
            del live[key]
        kept = {key: value for key, value in proven.saved.items() if key in live}
        _copy_into({key: live[key] for key in kept}, kept)
        saved = _nested(proven.saved)
        for k, optimizer in enumerate(self._optimizers):
            _restore_settings(optimizer, saved[f"group{k or ''}"])
            _restore_state(optimizer, saved[f"state{k or ''}"])
        return proven.step

    def _parameters(self) -> list[Tensor]:
        return _parameters(self._optimizer)

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
        """Parameters beside the trained ones that may be a moving average of them."""
        shapes = {p.shape for p in trained}
        alike = [
            (name, p)
            for name, p in self._module.named_parameters()
            if not is_lazy(p) and p.shape in shapes
        ]
        size = sum(p.numel() for p in trained)
        frozen = [item for item in alike if not item[1].requires_grad]
        others = {id(p) for p in trained} | self._trained_elsewhere
        unfrozen = [(name, p) for name, p in alike if p.requires_grad and id(p) not in others]
        kinds = (frozen, unfrozen)
        return [item for kind in kinds if sum(p.numel() for _, p in kind) <= size for item in kind]

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
        live = self._everything()
        copies = {key: _copy(value) for key, value in saved.items()}
        for key, value in copies.items():
            kind, _, rest = key.partition("/")
            stored = kind.startswith("state")
            parameters = _parameters(self._optimizers[int(kind[5:] or 0)]) if stored else []
            home = parameters[int(rest.partition("/")[0])] if stored else live.get(key)
            # Step counters of optimizers are scalars and stay on the host, where they were saved.
            stays = stored and isinstance(value, Tensor) and value.dim() == 0
            if isinstance(value, Tensor) and home is not None and not stays:
                copies[key] = value.to(self._device or home.device)
        return copies


def _optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and those that it holds, in attributes or in collections of them."""
    found = [optimizer]
    for outer in found:  # grows meanwhile
        for value in vars(outer).values():
            held = value.values() if isinstance(value, dict) else value
            for inner in held if isinstance(value, dict | list | tuple) else (value,):
                own = isinstance(inner, Optimizer) and all(
                    inner.state is not o.state for o in found
                )
                found += [inner] if own else []
    return found


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _settings(optimizer: Optimizer) -> dict[str, Any]:
    """Numbers in the parameter groups: some optimizers count their steps there."""
    return {
        f"{i}/{name}": value
        for i, group in enumerate(optimizer.param_groups)
        for name, value in group.items()
        if name not in ("params", "lr") and isinstance(value, int | float | Tensor)
    }


def _restore_settings(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    for index, settings in _nested(saved).items():
        group = optimizer.param_groups[int(index)]
        group.update(_copied(settings, group))


def _restore_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    states = _nested(saved)
    for position, parameter in enumerate(_parameters(optimizer)):
        live = optimizer.state.get(parameter, {})
        wanted = states.get(str(position), {})
        # Torch's optimizers initialise an empty state again, as at the first step.
        for name in set(live) - {name.partition("|")[0] for name in wanted}:
            del live[name]
        if wanted:
            restored = _copied(wanted, _flat(live), parameter.device)
            whole = {name: value for name, value in restored.items() if "|" not in name}
            optimizer.state[parameter].update(whole)


def _flat(state: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state, with the plain tensors that make up a quantised one, as "name|part"."""
    flat: dict[str, Any] = {}
    for name, value in state.items():
        parts = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else ()
        flat |= {f"{name}|{part}": getattr(value, part) for part in parts} or {name: value}
    return flat


def _named(kind: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """Those that can be written to, by name, without the part that `torch.compile` adds."""
    return {
        f"{kind}/{name.replace('_orig_mod.', '')}": tensor
        for name, tensor in tensors
        if not is_lazy(tensor) and not tensor.is_meta and not _expanded(tensor)
    }


def _nested(saved: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Values by the first part of their keys, then by the rest."""
    nested: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in saved.items():
        first, _, rest = key.partition("/")
        nested[first][rest] = value
    return nested


def _norms(values: Iterable[Any]) -> Tensor:
    """The largest absolute value of each tensor of numbers with a fraction; NaN if one is NaN."""
    # Other kinds of tensors may know no norm; those of a quantised state come in plain parts.
    own = (own_part(v) for v in values if isinstance(v, Tensor))
    plain = (v.detach() for v in own if type(v) in (Tensor, nn.Parameter))
    numbers = [v for v in plain if v.numel() and not v.is_meta]
    numbers = [v for v in numbers if v.is_floating_point() or v.is_complex()]
    if not numbers:
        return torch.zeros(1)
    dense = [v.coalesce().values() if v.is_sparse else v for v in numbers]
    norms = torch._foreach_norm(dense, ord=math.inf)
    return torch.stack([n.float().to(norms[0].device) for n in norms])


def _expanded(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided:
        return False
    return any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))


def _copy(value: Any, device: torch.device | str | None = None) -> Any:
    """A copy, of a tensor on another device unless it is a scalar: counters of steps stay."""
    if not isinstance(value, Tensor):
        return deepcopy(value)
    copy = own_part(value).detach().clone()
    return copy if device is None or value.dim() == 0 else copy.to(device)


def _fits(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return False
    return own_part(a).shape == own_part(b).shape and a.dtype == b.dtype


def _copied(
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """A copy of `source` that uses the tensors of `target` again where they fit."""
    again = {k: v for k, v in source.items() if _fits(target.get(k), v)}
    _copy_into({k: target[k] for k in again}, again)
    copies: dict[str, Any] = {}
    for key, value in source.items():
        try:
            copies[key] = target[key] if key in again else _copy(value, device)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise UnsupportedTrainingError(
                f"{key!r} of the training state cannot be copied ({error}), so the circuit breaker "
                "cannot undo anything. Pass circuit_breaker=False, or use another optimizer."
            ) from error
    return copies


def _copy_into(target: Mapping[str, Any], source: Mapping[str, Any]) -> None:
    """Copies tensors in place, in one launch per kind of tensor."""
    kinds: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for key, value in source.items():
        if not isinstance(value, Tensor):
            continue
        there = own_part(target[key])
        value = own_part(value)
        if there.shape == value.shape:
            kind = (value.device, there.device, value.dtype, there.dtype, there.is_inference())
            kinds[kind].append(key)
        else:  # a buffer that has changed its shape
            target[key].data = value.clone()
    for kind, keys in kinds.items():
        with (
            torch.inference_mode() if kind[-1] else torch.no_grad()
        ):  # where they can be written to
            torch._foreach_copy_(
                [own_part(target[k]) for k in keys], [own_part(source[k]) for k in keys]
            )
