"""Data-parallel runs of real processes: one rate for all, and one end for all."""

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.control.alarm import RUN
from lightning_dqnlr.host.ranks import largest_over_ranks
from lightning_dqnlr.memory import Memory

from .control_runs import Net, examples, random_policy, trainer

UNEVEN = 93  # examples: no number of processes below divides it
CPU = torch.device("cpu")


class Kept(Net):
    """Every process keeps what its own callback did, and what ranks say to each other."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_end(self):
        rank = self.global_rank
        # A count of one process is an integer where the others have floats.
        rung = largest_over_ranks(RUN if rank == 1 else 0.0, CPU)
        traces = [{k: r[k] for k in ("step", "loss", "next_lr", "action")} for r in self.trace()]
        kept = {"rates": self.rates, "losses": self.losses, "trace": traces, "rung": rung}
        torch.save(kept, self.folder / f"{rank}.pt")

    def trace(self):
        return self.trainer.callbacks[0].trace


class KeptManual(Kept):
    """Two optimizers, of which the second steps every other batch."""

    def __init__(self, folder):
        super().__init__(folder)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for index, optimizer in enumerate(self.optimizers()):
            if index == 0 or batch_idx % 2:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
                self.manual_backward(loss)
                optimizer.step()
                self.losses.append(loss.item())
                self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self):
        return [torch.optim.Adam(self.net[i].parameters(), lr=10.0) for i in (0, 3)]


class KeptStopped(Kept):
    """Each process has a metric of its own; that of process one improves to the end."""

    def on_train_epoch_end(self):
        scores = ([9, 8, 7, *[6] * 27], range(30, 0, -1))[self.global_rank]
        self.log("score", float(scores[self.current_epoch]))

    def on_train_end(self):
        weights = [p.detach().clone() for p in self.net.parameters()]
        kept = {"weights": weights, "steps": self.trainer.global_step, "rates": self.rates}
        torch.save(kept, self.folder / f"{self.global_rank}.pt")


class RaisesOnOne(Net):
    def training_step(self, batch, batch_idx):
        if self.global_rank == 1 and self.global_step == 5:
            raise RuntimeError("a file of process one is gone")
        return super().training_step(batch, batch_idx)


def fit(folder, module, processes, memory=None, **arguments):
    data = DataLoader(TensorDataset(*examples(UNEVEN)), batch_size=4)
    callback = DQNLRCallback(random_policy(), epsilon=0.2, memory=memory)
    strategy = {"strategy": "ddp_spawn", "devices": processes}
    trainer(callback, folder, **strategy, **arguments).fit(module, data)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize(("module", "processes"), [(Kept, 4), (KeptManual, 2)])
@pytest.mark.filterwarnings("ignore:.*find_unused_parameters.*")
def test_all_processes_have_equal_rates_at_every_step(tmp_path, module, processes):
    one, *others = fit(tmp_path, module(tmp_path), processes, max_epochs=2)
    assert len(one["rates"]) >= 12
    assert len(set(map(str, one["rates"]))) > 3
    for other in others:
        assert other["rates"] == one["rates"]
        assert other["trace"] == one["trace"]
        assert other["losses"] != one["losses"], "each has its own data"
    assert [kept["rung"] for kept in (one, *others)] == [RUN] * processes


def test_processes_with_metrics_of_their_own_come_down_from_the_same_weights(tmp_path):
    stop = EarlyStopping("score", patience=2)
    one, other = fit(tmp_path, KeptStopped(tmp_path), 2, max_epochs=30, more_callbacks=[stop])
    # Of process zero the best epoch is the fourth, so its patience ends with the sixth.
    assert one["steps"] == other["steps"] == 8 * 12
    assert one["rates"] == other["rates"]
    assert all(map(torch.equal, one["weights"], other["weights"]))


def test_one_process_remembers_for_all_and_all_hold_one_rate(tmp_path):
    memory = Memory(tmp_path / "memory")
    for _ in range(2):
        one, other = fit(tmp_path, Kept(tmp_path), 2, memory=memory, max_epochs=4)
    first, second = memory.runs().values()
    assert (first.held, first.model.batch_size) == (None, 8)
    assert one["rates"] == other["rates"]
    assert one["rates"][len(one["rates"]) // 2] == pytest.approx([second.held], rel=1e-5)


def test_an_error_of_one_process_ends_the_others_too(tmp_path):
    with pytest.raises(Exception, match="a file of process one is gone"):
        fit(tmp_path, RaisesOnOne(), 2, max_epochs=2)
