"""Chapter 3 and the one step by hand: how a filter works and is learned, number by number."""

import re

import keras
import numpy as np
import pytest
from matplotlib.colors import to_rgba

import image_recognition_cnn as script
from helpers import noise


def test_a_filter_is_learned_by_small_steps_against_the_gradient():
    random = np.random.default_rng(0)
    patches, wanted, weights = random.random((36, 9)), random.random(36), random.random(9)
    history = script.learn_one_filter(patches, wanted, weights, rate=0.01, steps=3)
    assert len(history) == 4 and (history[0][0] == weights).all()

    def loss_of(some_weights):
        return np.mean((patches @ some_weights - wanted) ** 2)

    for (before, loss), (after, _) in zip(history, history[1:]):
        assert loss == pytest.approx(loss_of(before))
        for i in range(9):
            moved = before + 1e-6 * (np.arange(9) == i)
            slope = (loss_of(moved) - loss_of(before)) / 1e-6
            assert after[i] == pytest.approx(before[i] - 0.01 * slope, abs=1e-5)


@pytest.fixture
def figure(monkeypatch, settings, tmp_path):
    """The figure of one_filter.png."""
    saved = {}
    monkeypatch.setattr("matplotlib.figure.Figure.savefig",
                        lambda figure, path, **_: saved.update({path: figure}))
    script.draw_one_filter(tmp_path)
    [(path, figure)] = saved.items()
    assert path == tmp_path / "one_filter.png"
    return figure


def tables_of(figure):
    """Return the axes that show tables, and the numbers that are written in them."""
    axes = [axis for axis in figure.axes if axis.collections]
    tables = []
    for axis in axes:
        shape = axis.collections[0].get_array().shape
        tables.append(np.array([float(text.get_text()) for text in axis.texts]).reshape(shape))
        assert np.abs(tables[-1] - axis.collections[0].get_array()).max() <= 0.051, "the colours"
        assert axis.yaxis_inverted(), "row 0 is at the top"
        colours = axis.collections[0].to_rgba(axis.collections[0].get_array().ravel())
        for text, (row, column), colour in zip(axis.texts, np.ndindex(shape), colours):
            assert text.get_position() == (column + 0.5, row + 0.5), "in the middle of its cell"
            contrast = brightness(to_rgba(text.get_color())) - brightness(colour)
            assert abs(contrast) > 0.39, "it can be read"
    return axes, tables


def brightness(colour):
    return np.dot(colour[:3], [0.2, 0.7, 0.1])  # red, green, blue: green looks brightest


def test_the_map_holds_the_sum_of_each_patch_times_the_filter(figure):
    _, (image, chosen, sums, positive, *_) = tables_of(figure)
    assert image.shape == (8, 8) and (image.min(), image.max()) == (0, 9)
    for row in range(6):
        for column in range(6):
            patch = image[row:row + 3, column:column + 3]
            assert sums[row, column] == np.sum(patch * chosen)
    assert (positive == np.maximum(sums, 0)).all() and sums.min() < 0


def test_the_frames_lie_on_the_patch_with_the_largest_sum(figure):
    (image_axis, _, *map_axes), (_, _, sums, *_) = tables_of(figure)
    row, column = np.unravel_index(sums.argmax(), sums.shape)
    for axis, side in [(image_axis, 3), *[(axis, 1) for axis in map_axes[:2]]]:
        [frame] = [patch for patch in axis.patches if patch.get_visible()]
        assert frame.get_xy() == (column, row)
        assert (frame.get_width(), frame.get_height()) == (side, side)


def test_the_picture_says_what_it_shows(figure):
    upper, lower = figure.subfigs
    assert "How a filter works" in upper.get_suptitle()
    assert "How a filter is learned" in lower.get_suptitle()
    assert "nobody supplies this map" in lower.get_supxlabel()
    [curve] = [axis for axis in figure.axes if axis.lines]
    assert curve.get_xlabel() == "steps" and "log" in curve.get_ylabel() and curve.get_title()
    assert curve.yaxis.get_major_formatter()(100, 0) == "100", "not a power of ten"


def test_the_tables_are_squares_of_cells_with_a_number_in_each(figure):
    axes, _ = tables_of(figure)
    assert [axis.collections[0].get_cmap().name for axis in axes] == ["gray"] + 8 * ["PuOr_r"]
    for axis in axes:
        assert axis.get_title() and axis.get_aspect() == 1
        assert len(axis.get_xticks()) == len(axis.get_yticks()) == 0
        assert {(text.get_ha(), text.get_va()) for text in axis.texts} == {("center", "center")}
        assert not any(patch.get_fill() for patch in axis.patches), "a frame hides nothing"
    for axis in axes[1:]:
        assert axis.collections[0].norm(0) == 0.5, "0 is white"


def test_nine_random_weights_become_the_filter(figure):
    axes, (_, chosen, _, _, *learned) = tables_of(figure)
    assert len(learned) == 5 and np.abs(learned[0] - chosen).max() > 0.5
    assert np.abs(learned[-1] - chosen).max() < 0.15
    written = [re.findall(r"[\d.]+", axis.get_title())[:2] for axis in axes[4:]]
    assert [int(step) for step, _ in written] == [0, 1, 3, 10, 100]
    losses = [float(loss) for _, loss in written]
    assert losses == pytest.approx([299, 132, 43, 8, 0.05], rel=0.1), "the text speaks of them"
    [curve] = [axis.lines[0].get_ydata() for axis in figure.axes if axis.lines]
    assert len(curve) == 101 and (np.diff(curve) < 0).all()
    assert [curve[step] for step in (0, 1, 3, 10, 100)] == pytest.approx(losses, rel=0.05)


def test_the_numbers_are_the_same_whatever_the_seed(figure, tmp_path):
    keras.utils.set_random_seed(7)
    script.draw_one_filter(tmp_path)
    for once, again in zip(tables_of(figure)[1], tables_of(script.plt.gcf())[1]):
        assert (once == again).all()


@pytest.fixture
def network():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((8, 8, 1)), keras.layers.RandomTranslation(0.3, 0.3),
        keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
        keras.layers.BatchNormalization(), keras.layers.Dropout(0.5),
        keras.layers.Dense(3, activation="softmax")])
    return model


def test_the_step_by_hand_is_taken_back(network):
    before = network.get_weights()
    script.show_one_step(network, noise(60, 8, 8, 1), np.arange(60) % 3)
    for old, new in zip(before, network.get_weights()):
        assert (old == new).all()


def test_the_step_by_hand_prints_numbers_that_agree(network, capsys):
    x, y = noise(60, 8, 8, 1), np.arange(60) % 3
    script.show_one_step(network, x, y, 0.01)
    printed = capsys.readouterr().out
    loss = -np.log(network.predict(x, verbose=0)[np.arange(60), y]).mean()
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", printed)]
    assert f"{loss:.3f}" in printed, "as in a test: nothing is moved or dropped"
    [place] = [i for i, number in enumerate(numbers[:-1]) if number == float(f"{loss:.3f}")][:1]
    after = numbers[place + 1]
    assert after < loss, "one step lowers the loss"
    before, gradient, new = [number for number in numbers[:place] if number != 0.01][:3]
    assert new == pytest.approx(before - 0.01 * gradient, abs=2e-4)
    kernel = network.layers[-1].kernel.numpy()
    assert np.abs(kernel - before).min() < 1e-4, "a weight of the network"


def test_the_loss_after_the_step_by_hand_is_that_of_the_same_images(network, capsys, monkeypatch):
    x, y = noise(60, 8, 8, 1), np.arange(60) % 3
    monkeypatch.setattr(keras.Model, "set_weights", lambda *_: None)  # the step is not undone
    script.show_one_step(network, x, y, 0.01)
    loss = -np.log(network.predict(x, verbose=0)[np.arange(60), y]).mean()
    assert f"is now {loss:.3f}" in capsys.readouterr().out
