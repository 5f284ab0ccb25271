"""What several files of tests use: a run as a process, and what has to be in its folder."""

import contextlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import image_recognition_cnn as script

SCRIPT = pathlib.Path(script.__file__).resolve()
FILES = {"training_images.png", "one_filter.png", "accuracy_loss_curves.png",
         "confusion_matrix.png", "sample_predictions.png", "confident_mistakes.png",
         "where_it_looks.png", "learned_features.png", "try_it.html", "model.keras",
         "model.tflite", "model.json", "labels.txt", "metrics.json",
         "classification_report.txt", "history.csv"}


def noise(*shape):
    """Pixels at random, the same ones for the same shape."""
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


def process(folder, *flags, **more):
    """A run in a process of its own, as a user starts it."""
    return subprocess.run([sys.executable, SCRIPT, *map(str, flags)], cwd=folder, text=True,
                          capture_output=True, timeout=250, **more)


@contextlib.contextmanager
def one_sentence(capsys, *words):
    """What happens inside ends with status 2 and one line on stderr that has these words in it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        yield
    said = capsys.readouterr().err
    assert ended.value.code == 2 and len(said.splitlines()) == 1, said
    assert said.startswith("image_recognition_cnn.py: ")
    assert [word for word in words if word not in said] == [], said


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_drawn(path):
    """A whole picture file, with something in its lower half, too: it is more than its title.

    Whether it shows what it shall is a question to the figure: see test_pictures.py.
    """
    with Image.open(path) as picture:
        lower_half = picture.convert("L").crop((0, picture.height // 2, *picture.size))
    darkest, brightest = lower_half.getextrema()
    assert picture.width > 600 and brightest - darkest > 100, path


def assert_complete(folder, epochs, files=FILES):
    """All the files of a run are there, and they agree with one another; return its metrics."""
    assert {path.name for path in folder.iterdir()} == files
    assert not list(folder.parent.glob("*.unfinished*"))
    for path in folder.glob("*.png"):
        assert_drawn(path)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    matrix = np.array(metrics["confusion_matrix"])
    assert matrix.sum() == metrics["test_images"]
    assert np.trace(matrix) / matrix.sum() == pytest.approx(metrics["test_accuracy"])
    report = (folder / "classification_report.txt").read_text(encoding="utf-8")
    assert f"{metrics['test_accuracy']:.4f}" in report
    history = pd.read_csv(folder / "history.csv")
    assert list(history["epoch"]) == list(range(epochs)) and metrics["epochs_trained"] == epochs
    assert history["val_accuracy"].iloc[-1] == pytest.approx(metrics["validation_accuracy"])
    return metrics
