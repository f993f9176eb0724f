"""Tables, photographs and text: what is real must be whole, and kept apart where it can be."""

import sys
from pathlib import Path

import pytest
import torch

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.data import photographs, scikit_learn
from lightning_dqnlr.tasks.data.examples import imbalance
from lightning_dqnlr.tasks.data.photographs import (
    coordinates,
    noisy_patches,
    patches,
    treated_patches,
)
from lightning_dqnlr.tasks.data.scikit_learn import TABLE_NAMES, table
from lightning_dqnlr.tasks.data.text import (
    VOCABULARY,
    draw_files,
    encode,
    file_of_window,
    next_characters,
    source_files,
)
from lightning_dqnlr.tasks.sampling import Draws

SPLITS = ("train", "validation", "test")


def rows_of(examples):
    features, targets = (torch.cat(pair) for pair in zip(*examples, strict=True))
    return sorted(map(tuple, torch.cat([features, targets.view(len(targets), -1)], 1).tolist()))


@pytest.mark.parametrize("name", TABLE_NAMES)
def test_a_table_is_standardised_and_loses_no_row(name):
    examples = table(name, Draws(0))
    (inputs, targets), (held_out, _) = examples
    every = torch.cat([inputs, held_out])
    torch.testing.assert_close(every.mean(0), torch.zeros(every.shape[1]), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(every.std(0), torch.ones(every.shape[1]))
    assert len(inputs) % 8 == 0
    assert len(held_out) >= len(every) / 5
    assert targets.dtype == (torch.float32 if name == "diabetes" else torch.int64)
    # Another seed holds out other rows of the same table, with their own targets.
    other = table(name, Draws(1))
    assert not torch.equal(other.validation[0], held_out)
    assert rows_of(other) == rows_of(examples)


def test_table_targets_belong_to_their_rows():
    from sklearn.datasets import load_iris

    (inputs, labels), _ = table("iris", Draws(3))
    features, truth = load_iris(return_X_y=True)
    features = torch.tensor(features, dtype=torch.float32)
    standard = (features - features.mean(0)) / features.std(0)
    for row, label in zip(inputs, labels, strict=True):
        same = (standard == row).all(1).nonzero()[:, 0].tolist()
        assert int(label) in {int(truth[index]) for index in same}


def test_class_sizes_fall_geometrically_from_the_most_frequent_to_the_rarest():
    labels = torch.arange(3).repeat_interleave(20_000)
    kept = imbalance(labels, 100.0, 3, Draws(0))
    counts = sorted(torch.bincount(labels[kept]).tolist())
    assert counts[2] > 19_900
    assert counts[1] == pytest.approx(2000, rel=0.1)
    assert counts[0] == pytest.approx(200, rel=0.2)
    assert len(kept) % 8 == 0
    assert len(set(kept.tolist())) == len(kept)
    # Which class is rare is drawn, too.
    rarest = {
        int(torch.bincount(labels[imbalance(labels, 100.0, 3, Draws(s))]).argmin())
        for s in range(9)
    }
    assert rarest == {0, 1, 2}


@pytest.mark.parametrize("module", ["sklearn.datasets", "PIL"])
def test_missing_photographs_name_the_extra_to_install(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    photographs._photographs.cache_clear()
    with pytest.raises(ConfigurationError, match=r'Pillow.*pip install "lightning-dqnlr\[train\]"'):
        patches("train", 8, 8, Draws(0))


def test_missing_tables_name_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    scikit_learn._whole_table.cache_clear()
    with pytest.raises(ConfigurationError, match=r'pip install "lightning-dqnlr\[train\]"'):
        table("wine", Draws(0))


def places_of(image):
    """The (photograph, row, column) at which a patch is found."""
    size, found = image.shape[1], []
    for index, photograph in enumerate(photographs._photographs()):
        for row, column in (photograph == image[:, :1, :1]).all(0).nonzero().tolist():
            if torch.equal(photograph[:, row : row + size, column : column + size], image):
                found.append((index, row, column))
    return found


def test_splits_cut_their_patches_from_columns_of_their_own():
    bounds = {}
    for split in SPLITS:
        train, validation = patches(split, 8, 24, Draws(0))
        assert train.shape == (24, 3, 8, 8)
        assert validation.shape == (6, 3, 8, 8)
        places, held_out = ([places_of(p) for p in part] for part in (train, validation))
        assert all(places)
        assert all(held_out)
        assert max(row for found in places for _, row, _ in found) + 8 <= 320
        assert min(row for found in held_out for _, row, _ in found) >= 320
        columns = [column for found in places + held_out for _, _, column in found]
        bounds[split] = min(columns), max(columns) + 8
    assert 0 <= bounds["train"][0] < bounds["train"][1] <= 384
    assert 384 <= bounds["validation"][0] < bounds["validation"][1] <= 512
    assert 512 <= bounds["test"][0] < bounds["test"][1] <= 640


def test_noise_is_added_to_the_inputs_and_not_to_the_targets():
    (noisy, clean), (held_out, held_out_clean) = noisy_patches("train", 8, 64, 0.5, Draws(0))
    assert (noisy - clean).std() == pytest.approx(0.5, rel=0.05)
    assert (held_out - held_out_clean).std() == pytest.approx(0.5, rel=0.05)
    assert all(places_of(patch) for patch in clean[:4])


def test_labels_of_treated_patches_name_the_treatment_and_the_photograph():
    (images, labels), _ = treated_patches("train", 8, 400, Draws(0))
    assert set(labels.tolist()) == set(range(8))
    across = (images[..., 1:] - images[..., :-1]).square().mean((1, 2, 3))
    down = (images[..., 1:, :] - images[..., :-1, :]).square().mean((1, 2, 3))
    anisotropy = (across / down).log()
    # A blur along x takes away differences along x.
    blurred = [anisotropy[labels % 4 == treatment].median().item() for treatment in range(4)]
    assert blurred[1] < blurred[0] - 0.5
    assert blurred[2] > blurred[0] + 0.5
    for image, label in zip(images[:80], labels[:80], strict=True):
        places = places_of(image)
        assert bool(places) == (label % 4 == 0)
        assert {index for index, _, _ in places} <= {int(label) // 4}


def test_coordinates_give_every_pixel_of_a_square_its_place():
    (positions, colours), (held_out, held_out_colours) = coordinates("test", 20, Draws(1))
    assert len(positions) == 320
    assert len(held_out) == 80
    every = torch.cat([positions, held_out])
    assert every.min() == -1.0
    assert every.max() == 1.0
    grid = ((every + 1.0) * 19 / 2).round().long()
    square = torch.zeros(20, 20, 3)
    square[grid[:, 0], grid[:, 1]] = torch.cat([colours, held_out_colours])
    assert len(set(map(tuple, grid.tolist()))) == 400
    assert all(column >= 512 for _, _, column in places_of(square.permute(2, 0, 1)))
    assert places_of(square.permute(2, 0, 1))


def test_splits_read_files_of_their_own():
    files = {split: source_files(split) for split in SPLITS}
    assert all(len(paths) >= 6 for paths in files.values())
    assert len(set().union(*files.values())) == sum(map(len, files.values()))


def test_choice_of_files_does_not_depend_on_the_order_of_the_listing(tmp_path):
    names = [f"module_{index}.py" for index in range(30)]
    forth, back = tmp_path / "forth", tmp_path / "back"
    for folder, order in ((forth, names), (back, reversed(names))):
        folder.mkdir()
        for name in order:
            (folder / name).write_text("x" * 30_000)
        (folder / "small.py").write_text("x")
        (folder / "_sysconfigdata__linux.py").write_text("x" * 30_000)
    for split in SPLITS:
        first = [path.name for path in source_files(split, forth)]
        assert first == [path.name for path in source_files(split, back)] == sorted(first)
        assert set(first) <= set(names)
    # An added file moves none of the others.
    before = source_files("train", forth)
    (forth / "another.py").write_text("x" * 30_000)
    assert set(before) <= set(source_files("train", forth))


def test_a_python_without_sources_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="standard library's sources") as caught:
        source_files("train", tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_text_is_encoded_character_by_character(tmp_path):
    path = tmp_path / "text.py"
    path.write_bytes("a b\n~\u00e9\u20ac\t".encode())
    # Newline 1, space 2, ..., "a" 67, ..., "~" 96; an unencodable character becomes "?".
    assert encode(path).tolist() == [67, 2, 68, 1, 96, 0, 33, 0]
    assert VOCABULARY == 97


def test_target_is_the_character_after_the_input_and_windows_come_from_the_splits_files():
    (inputs, targets), (held_out, _) = next_characters("test", 16, 40, Draws(4))
    assert inputs.shape == targets.shape == (40, 16)
    assert held_out.shape == (10, 16)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    texts = [bytes(encode(path).tolist()) for path in source_files("test")]
    whole = [
        bytes([*row.tolist(), int(last[-1])]) for row, last in zip(inputs, targets, strict=True)
    ]
    # Windows may straddle two of the task's files.
    assert sum(any(window in text for text in texts) for window in whole) >= 38


def test_validation_windows_come_from_the_last_fifth_of_each_file():
    _, (held_out, _) = next_characters("validation", 32, 400, Draws(2))
    draws = Draws(2)
    paths = draw_files("validation", draws.integer(1, 3), draws)
    ends = [bytes(text[len(text) * 4 // 5 :].tolist()) for text in map(encode, paths)]
    windows = [bytes(row.tolist()) for row in held_out]
    assert sum(any(window in end for end in ends) for window in windows) >= 95


def test_label_names_the_file_of_the_window():
    (pairs, labels), _ = file_of_window("train", 3, 24, 1_000_000, 60, Draws(5))
    texts = [encode(path) for path in draw_files("train", 3, Draws(5))]
    assert set(labels.tolist()) == {0, 1, 2}
    for row, label in zip(pairs, labels, strict=True):
        codes = [*(row // VOCABULARY).tolist(), int(row[-1]) % VOCABULARY]
        assert bytes(codes) in bytes(texts[label].tolist())
    assert isinstance(source_files("train")[0], Path)
