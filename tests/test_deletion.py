"""tests/deletion.py: the covering, the four ways, and its table, with a small network."""

import json
import sys

import deletion
import numpy as np
import pytest

import image_recognition_cnn as script

HALF = 8  # of the made images' side


@pytest.fixture(scope="module")
def bars():
    """A bar in a random quadrant of a noisy image, upright or lying, and a network that knows it.

    Returns the network, 40 images, and heats that glow at the bar's quadrant.
    """
    from conftest import change_settings, restart

    change_settings(FILTERS=[8], MIRROR=False, SHIFT=0)
    random = np.random.default_rng(0)
    images = random.integers(0, 60, (500, 2 * HALF, 2 * HALF, 1)).astype("uint8")
    labels = np.arange(500) % 2
    heats = np.zeros((500, 2 * HALF, 2 * HALF))
    for image, label, heat in zip(images, labels, heats):
        row, column = HALF * random.integers(0, 2, 2)
        quadrant = image[row:row + HALF, column:column + HALF]
        if label == 0:
            quadrant[1:7, 3:5] += 180
        else:
            quadrant[3:5, 1:7] += 180
        heat[row + 1:row + 7, column + 1:column + 7] = 1
    script.keras.utils.set_random_seed(0)
    model = script.build_cnn(images[:460], 2)
    model.compile(script.keras.optimizers.Adam(0.004), "sparse_categorical_crossentropy")
    model.fit(images[:460], labels[:460], batch_size=32, epochs=6, verbose=0)
    restart()
    right = script.predict(model, images[460:]).argmax(axis=1) == labels[460:]
    assert right.mean() > 0.9
    return model, images[460:], heats[460:]


def test_a_fifth_of_the_pixels_gets_the_mean_colour():
    random = np.random.default_rng(0)
    image = random.integers(0, 255, (10, 10, 3)).astype("uint8")
    before = image.copy()
    heat = np.zeros((10, 10))
    heat[2:4, 2:9] = 1  # 14 pixels; luck chooses 6 of the others
    covered = deletion.cover_hottest(image, heat, random)
    assert (image == before).all()
    is_covered = (covered == image.mean(axis=(0, 1)).astype("uint8")).all(axis=2)
    assert is_covered.sum() == 20 and is_covered[2:4, 2:9].all()
    assert (covered == image)[~is_covered].all()
    again = deletion.cover_hottest(image, heat, random)
    assert (again != covered).any()


def test_covering_the_mark_lowers_the_answer_and_the_opposite_corner_does_not(bars):
    model, images, heats = bars
    random = np.random.default_rng(0)

    def mark(image, answer):
        return heats[(images == image).all(axis=(1, 2, 3)).argmax()]

    def opposite(image, answer):
        return mark(image, answer)[::-1, ::-1]

    ways = {"mark": mark, "opposite": opposite}
    falls, seconds = deletion.measure(model, images, ways, random)
    assert len(falls) == len(images) == len(seconds)
    assert falls["mark"].mean() > 0.2
    assert abs(falls["opposite"].mean()) < 0.1


def test_the_four_ways_and_their_summary(bars):
    model, images, _ = bars
    random = np.random.default_rng(0)
    ways = deletion.ways_to_look(
        model, 4, 2, earlier_maps=False, controls=True, random=random)
    assert list(ways) == [*deletion.WAYS, *deletion.CONTROLS]
    for way, function in ways.items():
        heat = function(images[0], 0)
        assert heat.shape == (2 * HALF, 2 * HALF) and np.isfinite(heat).all(), way
    falls, seconds = deletion.measure(model, images, ways, random)
    assert falls.abs().to_numpy().max() <= 1 and seconds.to_numpy().min() > 0
    record = deletion.summarize(falls, seconds)
    fall = record["fall"]
    assert fall["occlusion"] > fall["random square"] + 0.2
    best = record["next_best"]
    assert best != "occlusion" and fall[best] == max(set(fall.values()) - {fall["occlusion"]})
    assert record["lead"] == pytest.approx(fall["occlusion"] - fall[best], abs=2e-4)
    assert all(0 < half < 0.3 for half in record["plus_minus"].values())


def test_the_two_parts_are_the_network_without_its_softmax(bars):
    model, images, _ = bars
    parts = deletion.split_network(model)
    sums = parts["back"](parts["front"](images, training=False), training=False)
    answers = script.keras.ops.softmax(sums).numpy()
    assert answers == pytest.approx(script.predict(model, images), abs=1e-5)
    maps, gradients = deletion.maps_with_gradients(parts, images[0], 1)
    assert maps.shape == gradients.shape == (7, 7, 8) and parts["step"] == 2
    # A sum grows by the gradient times the change; what the first map's middle does is measured.
    changed = maps.copy()
    changed[3, 3, 0] += 0.01
    before, after = parts["back"](np.stack([maps, changed]), training=False).numpy()[:, 1]
    assert (after - before) / 0.01 == pytest.approx(gradients[3, 3, 0], abs=0.02)


def test_gradient_times_map_adds_up_to_the_sum_behind_plain_layers():
    """What the papers promise: with one dense layer behind the maps, HiResCAM explains its sum."""
    layers = script.layers
    script.keras.utils.set_random_seed(0)
    model = script.keras.Sequential([
        script.keras.Input((8, 8, 1)),
        layers.Conv2D(4, 3, padding="same"),
        layers.ReLU(name="block_1"),
        layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    ])
    parts = deletion.split_network(model)
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 1)).astype("uint8")
    heat = deletion.hires_cam(parts, image, 2)
    sums = parts["back"](parts["front"](image[np.newaxis], training=False), training=False)
    assert heat.sum() == pytest.approx(float(sums[0, 2]), rel=1e-4)  # the bias is 0


def test_a_map_lies_over_the_pixels_it_comes_from():
    heat = np.zeros((3, 3), "float32")
    heat[2, 2] = 1
    large = deletion.enlarge(heat, 8, np.zeros((28, 28, 1)))
    assert large.shape == (28, 28)
    assert np.unravel_index(large.argmax(), large.shape) == (20, 20)
    assert large[27, 27] == 1 and large[:12].max() == 0


def test_it_takes_the_square_that_the_picture_takes(bars, tmp_path, monkeypatch):
    model, images, _ = bars
    images = images[:6]
    probabilities = script.predict(model, images)
    taken = []

    def occlusion_map(model, image, class_index, square, stride):
        taken.append((square, stride))
        return np.zeros(image.shape[:2])

    monkeypatch.setattr(script, "occlusion_map", occlusion_map)
    script.draw_where_it_looks(
        model, images, probabilities.argmax(axis=1), probabilities, ["a", "b"], "bars",
        tmp_path / "a.png")
    script.plt.close("all")
    assert set(taken) == {deletion.squares_of_the_script(images.shape[1:])}


def test_the_command_prints_a_table_and_keeps_the_record(tmp_path, monkeypatch, capsys, settings):
    settings(FILTERS=[8])
    images = np.random.default_rng(0).integers(0, 255, (50, 8, 8, 1)).astype("uint8")
    script.build_cnn(images, 10).save(tmp_path / "model.keras")
    monkeypatch.setattr(deletion, "RESULTS", tmp_path / "benchmark")
    command = ["deletion.py", "--datasets", "digits", "--images", "5"]
    monkeypatch.setattr(sys, "argv", [*command, "--models", str(tmp_path / "model.keras")])
    deletion.main()
    printed = capsys.readouterr().out
    assert "| digits (" in printed and "5 images) |" in printed and "HiResCAM" in printed
    kept = json.loads((tmp_path / "benchmark" / "deletion.json").read_text(encoding="utf-8"))
    record = list(kept.values())[0]
    assert list(record["fall"]) == deletion.WAYS
    assert (record["images"], record["square"], record["stride"]) == (5, 2, 1)

    monkeypatch.setattr(sys, "argv", [*command, "--models", str(tmp_path / "none.keras")])
    with pytest.raises(SystemExit):
        deletion.main()
    assert "python image_recognition_cnn.py --dataset digits" in capsys.readouterr().err
