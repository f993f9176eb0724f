"""The tasks of real size: what people bring, as large as two cores can train.

Each has the form, the initial weights and the settings that its library or paper has. It has 0.2 to
11 million parameters and 1,500 to 5,000 steps. Its data are not memorised within the run.
"""

from __future__ import annotations

from functools import partial

from lightning_dqnlr.bench.tasks.real.characters import printed_characters
from lightning_dqnlr.bench.tasks.real.flights import flights_mlp
from lightning_dqnlr.bench.tasks.real.graphs import communities
from lightning_dqnlr.bench.tasks.real.images import resnet20, unet
from lightning_dqnlr.bench.tasks.real.speech import words_to_sounds
from lightning_dqnlr.bench.tasks.real.text import gpt, word_lstm
from lightning_dqnlr.bench.tasks.real.tuning import fine_tuned_gpt, lora_gpt
from lightning_dqnlr.bench.tasks.task import BenchTask

_real = partial(BenchTask, split="real size")

# The best peak of the cosine was the highest around the usual rate on two tasks. Their grids are
# centred a decade higher, or the rivals would not be tuned.
REAL_TASKS: tuple[BenchTask, ...] = (
    _real("GPT", build=gpt, lr=1e-3, seconds=300.0),
    _real("GPT 16x128", build=partial(gpt, "GPT 16x128", 16, 128), lr=1e-3, seconds=900.0),
    # As nanoGPT trains it, for a GPU (suite=gpu).
    _real("GPT 32x256", build=partial(gpt, "GPT 32x256", 32, 256, 4000), lr=1e-3, seconds=9000.0),
    _real("word LSTM", build=word_lstm, lr=20.0, seconds=190.0),
    _real("words to sounds", build=words_to_sounds, lr=5e-4, seconds=230.0),
    _real("flights MLP", build=flights_mlp, lr=1e-3, centre=1e-2, seconds=80.0),
    _real("ResNet-20", build=resnet20, lr=0.1, seconds=180.0),
    _real("U-Net", build=unet, lr=1e-3, centre=1e-2, seconds=140.0),
    _real("printed characters", build=printed_characters, lr=1e-3, seconds=150.0),
    _real("communities", build=communities, lr=1e-3, seconds=130.0),
    # Rates that are usual for networks a hundred times as large are low for a small one.
    _real("fine-tuned GPT", build=fine_tuned_gpt, lr=5e-5, centre=1e-3, seconds=180.0),
    _real("LoRA GPT", build=lora_gpt, lr=2e-4, centre=3e-3, seconds=200.0),
)
