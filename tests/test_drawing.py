"""The pictures: what stands in them, and that the heat lies where the answer comes from."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import image_recognition_cnn as script


def assert_readable(figure):
    """No text lies over another one or is cut off at the edge of the picture."""
    figure.canvas.draw()
    tick_labels = []  # Matplotlib keeps some beyond the ends of a scale, and draws them nowhere
    for axis in figure.axes:
        tick_labels += [*axis.get_xticklabels(), *axis.get_yticklabels()]
    texts = [text for text in figure.findobj(script.plt.Text)
             if text.get_visible() and text.get_text().strip() and text not in tick_labels]
    edge = figure.bbox.padded(1)
    boxes = []
    for text in texts:
        box = text.get_window_extent()
        assert edge.contains(box.x0, box.y0) and edge.contains(box.x1, box.y1), text.get_text()
        boxes.append(box.padded(-2))
    for i, box in enumerate(boxes):
        for j in range(i):
            assert not box.overlaps(boxes[j]), (texts[j].get_text(), texts[i].get_text())


LONG = "a name of 24 letters: so"  # a longer one is cut to that


def test_long_titles_are_cut_for_the_pictures():
    _, [short, long] = script.texts_for_pictures(["a", "b"], ["pets", LONG + " on"])
    assert short == "pets"
    assert len(long) == len(LONG) and long == LONG[:-1] + "…"


@pytest.fixture(scope="module")
def marks(tmp_path_factory):
    """Four marks, each in a random quadrant of a noisy picture, and a network that knows them."""
    random = np.random.default_rng(0)
    images = random.integers(0, 80, (1200, 24, 24)).astype("uint8")
    labels = np.arange(1200) % 4
    places = random.integers(0, 2, (1200, 2))
    for image, label, place in zip(images, labels, places):
        mark = np.zeros((9, 9), "uint8")
        if label == 0:
            mark[3:6] = 170
        elif label == 1:
            mark[:, 3:6] = 170
        elif label == 2:
            mark[::8] = 170
        else:
            mark[:, ::8] = 170
        row, column = random.integers(1, 3, 2) + 12 * place
        image[row:row + 9, column:column + 9] += mark
    images = images[..., np.newaxis]
    from conftest import restart

    restart()
    script.DATASET = "cifar10"  # its other settings suit these pictures; its images are not loaded
    script.MIRROR = False
    script.FILTERS = [16, 32]
    script.EPOCHS = 5
    script.BATCH_SIZE = 32
    script.SHIFT = 0
    script.read_settings()
    folder = tmp_path_factory.mktemp("marks")
    script.keras.utils.set_random_seed(0)
    model = script.build_cnn(images[:1000], 4)
    script.train(model, images[:1000], labels[:1000], images[1000:], labels[1000:], "marks", folder)
    restart()
    return model, images[1000:], labels[1000:], places[1000:]


def test_occlusion_points_at_the_mark_and_asks_about_the_class_it_is_given(marks):
    model, images, labels, places = marks
    probabilities = script.predict(model, images)
    assert (probabilities.argmax(axis=1) == labels).mean() > 0.9
    chosen = np.flatnonzero(probabilities.argmax(axis=1) == labels)[:60]
    middle = np.arange(24) - 11.5
    at_mark = []
    of_other = []
    for i in chosen:
        for shift, found in ((0, at_mark), (1, of_other)):
            heat = script.occlusion_map(model, images[i], (labels[i] + shift) % 4, 6, 3)
            assert heat.shape == (24, 24)
            heat = heat.clip(0)
            centre = np.array([heat.sum(axis=1) @ middle, heat.sum(axis=0) @ middle])
            found.append(((centre > 0) == places[i]).all())
    assert np.mean(at_mark) >= 0.9, np.mean(at_mark)
    assert np.mean(of_other) < np.mean(at_mark) - 0.2, np.mean(of_other)


def test_learned_features_and_where_it_looks_are_drawn(marks, tmp_path, settings):
    model, images, labels, _ = marks
    settings(DATASET="cifar10", FILTERS=[16, 32])
    probabilities = script.predict(model, images)
    names = ["a", "b", "$^$", "d"]  # no formula
    figure = script.draw_learned_features(
        model, images, labels, probabilities, names, LONG, tmp_path / "a.png")
    text = " ".join(str(part.get_text()) for part in figure.findobj(script.plt.Text))
    assert "block_1" in text and "block_2" in text and "whitening" in text
    assert_readable(figure)
    figure = script.draw_where_it_looks(
        model, images, labels, probabilities, names, LONG, tmp_path / "b.png")
    assert_readable(figure)
    probabilities[::2] = probabilities[::2, ::-1]  # many mistakes
    for draw in (script.draw_sample_predictions, script.draw_confident_mistakes):
        figure = draw(images, labels, probabilities, names, LONG, tmp_path / "c.png")
        assert_readable(figure)
    for name in ("a.png", "b.png", "c.png"):
        assert len(Image.open(tmp_path / name).convert("RGB").getcolors(10**7)) > 200


def test_learned_features_in_16_bits(tmp_path, settings):
    """Matplotlib can't draw bfloat16."""
    settings(DATASET="cifar10", FILTERS=[8, 8], PRECISION="mixed_bfloat16")
    images = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3)).astype("uint8")
    model = script.build_model(images, 2)
    probabilities = script.predict(model, images)
    labels = probabilities.argmax(axis=1)
    script.draw_learned_features(
        model, images, labels, probabilities, ["a", "b"], "t", tmp_path / "a.png")
    script.draw_where_it_looks(
        model, images, labels, probabilities, ["a", "b"], "t", tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize("augmentation", [True, False])
def test_training_images_are_drawn_with_their_classes_and_numbers(tmp_path, settings, augmentation):
    settings(AUGMENTATION=augmentation)
    random = np.random.default_rng(0)
    x = random.integers(0, 255, (60, 8, 8, 1)).astype("uint8")
    y = np.array([0] * 40 + [1] * 15 + [2] * 5)
    figure = script.draw_training_images(x, y, ["cat", "dog", "owl"], LONG, tmp_path / "a.png")
    assert_readable(figure)
    shown = [image for axis in figure.axes for image in axis.get_images()]
    assert len(shown) == 24 + 1 + 8
    text = [part.get_text() for part in figure.findobj(script.plt.Text)]
    assert {"40", "15", "5"} <= set(text) and text.count("owl") >= 5
    first, *views = [np.asarray(image.get_array()) for image in shown[24:]]
    changed = [not (view == first).all() for view in views]
    assert any(changed) == augmentation


@pytest.mark.parametrize("accuracies, text", [
    ([0.5, 0.9, 0.8], "epoch 2"), ([0.5, 0.9, 0.9, 0.9], "epoch 2, first of 3 equal"), ([0.4], "epoch 1")])
def test_curves_name_the_best_epoch(tmp_path, accuracies, text):
    history = pd.DataFrame({
        "epoch": range(len(accuracies)), "accuracy": accuracies, "loss": accuracies,
        "val_accuracy": accuracies, "val_loss": accuracies, "learning_rate": accuracies})
    assert script.best_epoch(history) == text
    figure = script.draw_curves(history, LONG, tmp_path / "a.png")
    assert_readable(figure)
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize("number", [2, 26, 100])
def test_confusion_matrix_of_any_size(tmp_path, number):
    counts = np.eye(number, dtype=int) * 7
    counts[0, 1] = 3
    counts[1, 0] = 3
    names = [f"class number {i}" for i in range(number)]
    figure = script.draw_confusion_matrix(counts, names, LONG, tmp_path / "a.png")
    if number < 100:  # with 100 rows it draws for seconds, and there is no text in the cells
        assert_readable(figure)
    title = figure.axes[0].get_title().replace("\n", " ")
    assert "class number 0 taken for class number 1, 3 of 10" in title
    shares = figure.axes[0].collections[0].get_array().reshape(number, number)
    assert shares[0, 1] == pytest.approx(0.3) and shares[1, 1] == pytest.approx(0.7)


def test_100_percent_only_without_a_mistake(tmp_path):
    counts = np.array([[2999, 1], [0, 3000]])
    figure = script.draw_confusion_matrix(counts, ["a", "b"], "pets", tmp_path / "a.png")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["2999\n99.9%", "1\n0.0%", "", "3000\n100%"]


def test_tiles_are_apart_also_on_white_paper():
    tiles = np.full((5, 24, 24, 3), 255, "uint8")
    picture = script.mosaic(tiles, columns=3)  # (50, 76, 3): 2 pixels between the tiles
    assert (picture[:24, 24:26] == 190).all() and (picture[24:26, :50] == 190).all()
    assert (picture[26:, 52:] == 255).all()  # no sixth tile


def test_no_mistakes_is_said(tmp_path):
    x = np.zeros((5, 8, 8, 3), "uint8")
    figure = script.draw_confident_mistakes(
        x, np.arange(5), np.eye(5), list("abcde"), "pets", tmp_path / "a.png")
    assert any("There are none" in text.get_text() for text in figure.texts)


@pytest.mark.parametrize("names", [
    ["Tomato___Tomato_mosaic_virus", "Tomato___Tomato_Yellow_Leaf_Curl", "Tomato___healthy"],
    ["a very long name that ends in one", "a very long name that ends in two"],
    ["short", "names"]])
def test_short_names_stay_different(names):
    short = script.short_names(names)
    assert len(set(short)) == len(names)
    if names[0] == "short":
        assert short == names
    else:
        assert max(len(name) for name in short) < max(len(name) for name in names)


def test_letters_that_no_font_has_become_numbers(capsys):
    names = ["\U000e0100\u4e01\ufdd0", "b"]  # a letter that exists in no font
    lacking = script.choose_font(names)
    shown, [title] = script.texts_for_pictures(names, ["cats \u4e01"])
    if lacking:
        assert shown == ["0", "1"] and "numbers" in capsys.readouterr().err
        assert title in ("cats ?", "cats \u4e01")  # where a font has it
    assert script.texts_for_pictures(["cat", "dog"], ["pets"]) == (["cat", "dog"], ["pets"])
    assert script.plt.rcParams["font.family"] == ["DejaVu Sans"]


@pytest.mark.parametrize("raw, shown", [(b"\xb9\xb7", "\u72d7"), (b"caf\xe9", "caf\xe9"), (b"pets", "pets")])
def test_title_of_a_folder_whose_name_is_not_utf_8(raw, shown):
    import os

    _, [title] = script.texts_for_pictures(["a"], [os.fsdecode(raw)])
    assert title == shown or title == "?" * len(shown)
    figure = script.plt.figure()
    figure.suptitle(title)
    figure.canvas.draw()


def test_other_fonts_of_the_machine_are_used(monkeypatch):
    """STIXGeneral comes with Matplotlib and has a letter that DejaVu Sans lacks."""
    monkeypatch.setattr(script, "FONTS", ["STIXGeneral"])
    assert script.choose_font(["\u1d81"]) == set()
    assert "STIXGeneral" in script.plt.rcParams["font.family"]
    monkeypatch.setattr(script, "FONTS", [])
    script.choose_font(["a"])
