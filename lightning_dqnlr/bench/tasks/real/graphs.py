"""A graph network that finds the communities of random graphs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from lightning_dqnlr.bench.tasks.task import fixed_draws, own_task
from lightning_dqnlr.tasks.data.examples import Examples
from lightning_dqnlr.tasks.sampling import Draws
from lightning_dqnlr.tasks.task import Task

COMMUNITIES = 6
SMALLEST = 4  # nodes of a community
LARGEST = 12
NODES = COMMUNITIES * LARGEST
WITHIN = 0.55  # probability of an edge inside of a community
BETWEEN = 0.2
GRAPHS = 12_000
HELD_OUT_GRAPHS = 512
ABSENT = -1  # stands where there is no node


class SampleAndAggregate(nn.Module):
    """A node and the mean over its neighbours through one linear map, beside a skip.

    GraphSAGE with all neighbours (Hamilton et al. 2017, arXiv:1706.02216), with BatchNorm over
    nodes as in Dwivedi et al. (arXiv:2003.00982, appendix C.1).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.update = nn.Sequential(
            nn.Linear(2 * width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()
        )

    def forward(self, nodes: Tensor, edges: Tensor, present: Tensor) -> Tensor:
        """States (N, V, D), adjacency (N, V, V) and whether a node exists (N, V): new states."""
        mean = edges @ nodes / edges.sum(2, keepdim=True).clamp_min(1.0)
        both = torch.cat([nodes, mean], 2)[present]
        return nodes + torch.zeros_like(nodes).masked_scatter(
            present.unsqueeze(2), torch.as_tensor(self.update(both))
        )


class GraphNetwork(nn.Module):
    """Layers of GraphSAGE, and a linear map of each node's states after all of them."""

    def __init__(self, width: int = 128, layers: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(COMMUNITIES + 1, width)
        self.layers = nn.ModuleList(SampleAndAggregate(width) for _ in range(layers))
        self.head = nn.Linear((layers + 1) * width, COMMUNITIES)

    def forward(self, labels: Tensor, edges: Tensor) -> Tensor:
        """Known labels (N, V), 0 for none, and adjacency (N, V, V) to logits (N, V, C)."""
        present = labels != ABSENT
        edges = edges.float()
        states = [self.embed(labels.clamp_min(0)) * present.unsqueeze(2)]
        for layer in self.layers:
            states.append(layer(states[-1], edges, present))
        return torch.as_tensor(self.head(torch.cat(states, 2)))


def node_cross_entropy(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of the nodes that exist, of (known labels, adjacency, communities)."""
    known, edges, communities = batch
    logits = net(known, edges)
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), communities.flatten(), ignore_index=ABSENT
    )


def block_graphs(count: int, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Graphs of a stochastic block model, one node of each community labelled.

    The task CLUSTER of Dwivedi et al. (arXiv:2003.00982, section 3.2) with smaller communities.

    Returns:
        Known labels int64 (N, V), 0 for none; symmetric adjacency bool (N, V, V); communities
        int64 (N, V). Labels and communities are `ABSENT` where there is no node.
    """
    generator = draws.generator
    sizes = torch.randint(SMALLEST, LARGEST + 1, (count, COMMUNITIES), generator=generator)
    place = torch.arange(LARGEST).repeat(COMMUNITIES)
    community = torch.arange(COMMUNITIES).repeat_interleave(LARGEST)
    present = place < sizes[:, community]
    # The first node of each community is the one whose label is known.
    known = torch.where(place == 0, community + 1, 0).expand(count, -1)
    chance = torch.where(community == community.unsqueeze(1), WITHIN, BETWEEN)
    upper = (torch.rand(count, NODES, NODES, generator=generator) < chance).triu(1)
    edges = (upper | upper.mT) & present.unsqueeze(1) & present.unsqueeze(2)
    return (
        known.masked_fill(~present, ABSENT),
        edges,
        community.expand(count, -1).masked_fill(~present, ABSENT),
    )


def communities() -> Task:
    """To which of six communities each node belongs; Adam, batches of 32 graphs."""
    draws = fixed_draws("communities")
    return own_task(
        "communities",
        GraphNetwork,
        node_cross_entropy,
        partial(torch.optim.Adam, lr=1e-3),
        Examples(block_graphs(GRAPHS, draws), block_graphs(HELD_OUT_GRAPHS, draws)),
        horizon=1500,
        batch_size=32,
    )
