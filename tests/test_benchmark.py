"""tests/benchmark.py: the six views, and its words about two programs."""

import benchmark
import numpy as np
import pytest

import image_recognition_cnn as script

VIEWS = [  # rows and columns moved by this, share of the answer: as airbench94 has it
    (0, 0.5),
    (1, 0.25),
    (-1, 0.25),
]


def moved(image, step):
    """The image, read from `step` pixels farther down and right; beyond its edge it is mirrored."""
    size = len(image)
    places = []
    for place in range(step, size + step):
        if place < 0:
            place = -place
        if place >= size:
            place = 2 * (size - 1) - place
        places.append(place)
    return image[places][:, places]


def test_six_views_is_the_accuracy_of_the_mean_answer(tmp_path):
    from conftest import restart

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 32, 32, 3)).astype("uint8")
    script.keras.utils.set_random_seed(0)
    model = script.keras.Sequential([
        script.keras.Input((32, 32, 3)),
        script.layers.Rescaling(1 / 128, offset=-1),
        script.layers.Flatten(),
        script.layers.Dense(3, activation="softmax"),
    ])
    model.save(tmp_path / "model.keras")
    labels = []
    for image in images:
        logarithms = np.zeros(3)
        for step, share in VIEWS:
            view = moved(image, step)
            for picture in (view, view[:, ::-1]):
                answer = model(picture[None].astype("float32")).numpy()[0]
                logarithms += share * np.log(answer)
        labels.append(logarithms.argmax())
    labels = np.array(labels)
    assert len(set(labels)) == 3
    single = model.predict(images, verbose=0).argmax(axis=1)
    assert (single == labels).mean() < 0.9  # so the views matter
    wrong = labels.copy()
    wrong[:15] = (wrong[:15] + 1) % 3  # a quarter of 60
    np.savez(tmp_path / "made.npz", x_train=images, y_train=labels, x_test=images[::-1],
             y_test=wrong[::-1])
    found = benchmark.six_views(str(tmp_path / "made.npz"), str(tmp_path / "model.keras"))
    restart()
    assert found == {"accuracy": 0.75}


def test_beside_the_tutorial_compares_at_the_same_second():
    tutorial = {"seconds": [10, 10, 10], "accuracy": [0.5, 0.6, 0.7], "test_accuracy": 0.7}
    ours = {"seconds": [12, 12], "accuracy": [0.6, 0.8], "test_accuracy": 0.8}
    assert benchmark.course(ours) == [(12, 0.6), (24, 0.8)]
    words = benchmark.beside_the_tutorial(ours, tutorial)
    assert "60.0" in words  # what the tutorial had reached after 20 of our 24 seconds
    assert "24" in words  # when ours passed 70 %


def test_in_turn_counts_the_best_round(monkeypatch):
    clock = iter([0, 9, 9, 10, 20, 24, 30, 32, 40, 45, 50, 60, 70, 75, 80, 84])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    runs = []
    found = benchmark.in_turn({
        "one": (lambda: runs.append("one"), 20),
        "other": (lambda: runs.append("other"), 20),
    })
    assert runs == ["one", "other"] * (benchmark.ROUNDS + 1)
    # after the round for warming up, one took 4, 5 and 5 seconds, the other 2, 10 and 4
    assert found == {"one": pytest.approx(5), "other": pytest.approx(10)}
