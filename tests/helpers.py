"""What several files of tests use: a run as a process, and what has to be in its folder."""

import csv
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "image_recognition_cnn.py"
PICTURES = [
    "accuracy_loss_curves.png", "confident_mistakes.png", "confusion_matrix.png",
    "learned_features.png", "sample_predictions.png", "training_images.png", "where_it_looks.png"]
NUMBERS = sorted(["model.keras", "metrics.json", "history.csv", "classification_report.txt"])
FILES = sorted([*PICTURES, *NUMBERS, "try_it.html", "model.tflite", "labels.txt"])


def process(folder, *flags, **more):
    """A run in a process of its own, as a user starts it."""
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, flags)], cwd=folder, capture_output=True, text=True,
        timeout=250, **more)
    # "failed call to cuInit": TensorFlow's honest word on CUDA's libraries without a GPU.
    lines = [line for line in finished.stderr.splitlines(True) if "cuInit" not in line]
    finished.stderr = "".join(lines)
    return finished


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def script_of_a_short_run():
    """The text of the script with one epoch and few filters in its settings block."""
    text = SCRIPT.read_text(encoding="utf-8")
    text = re.sub(r"^EPOCHS = .*", "EPOCHS = 1", text, flags=re.MULTILINE)
    return re.sub(r"^FILTERS = .*", "FILTERS = 8", text, flags=re.MULTILINE)


def assert_complete(folder, classes=10, epochs=None, files=FILES):
    """All the files are there, and they agree with one another."""
    assert sorted(path.name for path in folder.iterdir()) == files
    assert not list(folder.parent.glob("*.unfinished"))
    for name in set(PICTURES) & set(files):
        picture = Image.open(folder / name).convert("RGB").reduce(4)
        assert min(picture.size) > 75, name
        assert len(picture.getcolors(picture.width * picture.height)) > 50, name
    found = metrics(folder)
    matrix = np.array(found["confusion_matrix"])
    assert matrix.shape == (classes, classes)
    assert np.trace(matrix) / matrix.sum() == pytest.approx(found["test_accuracy"])
    supports = [scores["support"] for scores in list(found["classes"].values())[:classes]]
    assert list(matrix.sum(axis=1)) == supports
    low, high = found["test_accuracy_interval"]
    assert low <= found["test_accuracy"] <= high and found["test_images"] == matrix.sum()
    report = (folder / "classification_report.txt").read_text(encoding="utf-8")
    assert f"{found['test_accuracy']:.4f}" in report
    rows = history(folder)
    assert [int(row["epoch"]) for row in rows] == list(range(len(rows)))
    assert found["epochs_trained"] == len(rows) == (epochs or found["settings"]["EPOCHS"])
    assert float(rows[-1]["val_accuracy"]) == pytest.approx(found["validation_accuracy"])
    assert all(float(row["learning_rate"]) >= 0 and float(row["seconds"]) > 0 for row in rows)


def digits_test_part():
    """The 359 test images of the digits and their labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images * 255 / 16).round().astype("uint8").reshape(-1, 8, 8, 1)
    _, x_test, _, y_test = train_test_split(
        images, labels, test_size=359, stratify=labels, random_state=0)
    return x_test, y_test
