"""Runs the script as a user does and looks at what comes out. Needs no network and no real data.

`digits` ships with scikit-learn. For Fashion-MNIST the tests put files of made pictures where Keras
looks for a copy; for MNIST and CIFAR-10, whose copies Keras checks by their hash, tests/made_data/
replaces Keras' loader by one that makes pictures of the same shape.
"""

import csv
import gzip
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "image_recognition_cnn.py"
PICTURES = ["accuracy_loss_curves.png", "confusion_matrix.png", "sample_predictions.png"]
FILES = sorted(PICTURES + ["model.keras", "metrics.json", "history.csv", "classification_report.txt"])


def command(folder, *arguments, **variables):
    """The arguments of subprocess for a run that writes to folder and reaches no network."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    nowhere = "http://127.0.0.1:9"
    environment |= dict(KERAS_HOME=str(folder / "keras"), http_proxy=nowhere, https_proxy=nowhere, no_proxy="")
    environment |= dict(HTTP_PROXY=nowhere, HTTPS_PROXY=nowhere, NO_PROXY="", **variables)
    return dict(args=[sys.executable, str(SCRIPT), *map(str, arguments)], cwd=folder, env=environment, text=True)


def run(folder, *arguments, **variables):
    """A whole run of the script; (folder / "keras") is made so that Keras uses it as its home."""
    (folder / "keras").mkdir(exist_ok=True)
    finished = subprocess.run(**command(folder, *arguments, **variables), capture_output=True, timeout=250)
    # "failed call to cuInit" is TensorFlow's honest word on a machine with CUDA's libraries but no GPU.
    finished.stderr = "".join(line for line in finished.stderr.splitlines(True) if "cuInit" not in line)
    return finished


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="session")
def default_run(tmp_path_factory):
    """The run with no arguments at all, as the README's first command makes it."""
    folder = tmp_path_factory.mktemp("default")
    return folder, run(folder)


SHORT = ("--epochs", 2, "--filters", 8, 16)


def assert_complete(folder, finished, classes=10):
    """All the files are there, and they agree with one another."""
    assert finished.returncode == 0, finished.stderr
    assert sorted(file.name for file in folder.iterdir()) == FILES
    assert not list(folder.parent.glob("*.unfinished"))
    import matplotlib.pyplot as plt

    for name in PICTURES:
        picture = plt.imread(folder / name)[..., :3]
        assert min(picture.shape[:2]) > 400 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50, name
    found = metrics(folder)
    matrix = np.array(found["confusion_matrix"])
    assert matrix.shape == (classes, classes)
    assert np.trace(matrix) / matrix.sum() == pytest.approx(found["test_accuracy"])
    assert list(matrix.sum(axis=1)) == [found["classes"][name]["support"] for name in list(found["classes"])[:classes]]
    assert f"{found['test_accuracy']:.4f}" in (folder / "classification_report.txt").read_text(encoding="utf-8")
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found["settings"]["EPOCHS"]
    assert float(rows[-1]["val_accuracy"]) == pytest.approx(found["validation_accuracy"])


def test_default_run_is_complete_accurate_and_quiet(default_run):
    folder, finished = default_run
    assert_complete(folder / "outputs" / "digits", finished)
    assert metrics(folder / "outputs" / "digits")["test_accuracy"] >= 0.97
    assert finished.stderr == "", "TensorFlow's start-up notes, or a warning nobody looked at"
    assert "Total params" in finished.stdout and "macro avg" in finished.stdout
    assert str(folder / "outputs" / "digits") in finished.stdout.splitlines()[-1]


def test_saved_model_takes_raw_pixels_and_gives_the_same_accuracy(default_run):
    import keras
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    folder = default_run[0] / "outputs" / "digits"
    images, labels = load_digits(return_X_y=True)
    images = (images * 255 / 16).round().astype("uint8").reshape(-1, 8, 8, 1)
    _, x_test, _, y_test = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    model = keras.models.load_model(folder / "model.keras")
    assert (model.predict(x_test, verbose=0).argmax(1) == y_test).mean() == metrics(folder)["test_accuracy"]
    scaled = model.predict(x_test / 255, verbose=0).argmax(1)
    assert (scaled == y_test).mean() < 0.5, "pixels that were scaled already would not be noticed here"


def test_same_seed_same_metrics_and_other_seed_other_metrics(tmp_path):
    outcomes = []
    for seed in (3, 3, 4):
        finished = run(tmp_path, *SHORT, "--seed", seed)
        assert_complete(tmp_path / "outputs" / "digits", finished)
        outcome = metrics(tmp_path / "outputs" / "digits")
        del outcome["training_seconds"], outcome["settings"]
        outcomes.append(outcome)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["test_loss"] != outcomes[2]["test_loss"]


def test_fashion_mnist_from_copies_put_where_keras_looks(tmp_path):
    folder = tmp_path / "keras" / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    made = np.random.default_rng(0)
    for part, number in (("train", 400), ("t10k", 100)):
        labels = (np.arange(number) % 10).astype("uint8")
        images = made.integers(0, 60, (number, 28, 28)).astype("uint8")
        for image, label in zip(images, labels):
            image[2 * label: 2 * label + 8] += 180
        for name, header, array in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            with gzip.open(folder / f"{part}-{name}-ubyte.gz", "wb") as file:
                file.write(bytes(header) + array.tobytes())
    finished = run(tmp_path, "--dataset", "fashion_mnist", *SHORT)
    assert_complete(tmp_path / "outputs" / "fashion_mnist", finished)
    assert "Ankle boot" in metrics(tmp_path / "outputs" / "fashion_mnist")["classes"]


@pytest.mark.parametrize("dataset, flags", [
    ("mnist", ["--optimizer", "sgd", "--no-augmentation", "--epochs", 1]),
    ("cifar10", ["--precision", "mixed_bfloat16", "--dropout", 0, "--label-smoothing", 0, "--epochs", 3]),
])
def test_other_data_sets_and_settings(tmp_path, dataset, flags):
    finished = run(tmp_path, "--dataset", dataset, "--filters", 8, "--output-dir", "a/b", *flags,
                   PYTHONPATH=str(ROOT / "tests" / "made_data"))
    folder = tmp_path / "a" / "b" / dataset
    assert_complete(folder, finished)
    settings = metrics(folder)["settings"]
    if "--no-augmentation" in flags:
        assert settings["AUGMENTATION"] is False and settings["OPTIMIZER"] == "sgd"
        assert settings["LEARNING_RATE"] == 0.1, "the value of LEARNING_RATE that the block gives for sgd"
        assert "RandomTranslation" not in finished.stdout
    else:
        assert settings["PRECISION"] == "mixed_bfloat16" and settings["DROPOUT"] == 0
        assert "RandomTranslation" in finished.stdout and "RandomFlip" in finished.stdout
        assert metrics(folder)["test_accuracy"] > 0.3, "ten classes of plain colours, and nothing learned"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_failed_download_says_where_a_copy_goes_and_changes_nothing(tmp_path, name):
    earlier = tmp_path / "outputs" / name
    earlier.mkdir(parents=True)
    (earlier / "metrics.json").write_text("an earlier run")
    finished = run(tmp_path, "--dataset", name)
    assert finished.returncode == 2 and "Traceback" not in finished.stderr
    place = {"mnist": "mnist.npz", "fashion_mnist": "fashion-mnist", "cifar10": "cifar-10-batches-py-target_archive"}
    assert str(tmp_path / "keras" / "datasets" / place[name]) in finished.stderr
    assert "https://" in finished.stderr and "--dataset digits" in finished.stderr
    assert contents(earlier) == {"metrics.json": b"an earlier run"}


BAD = [
    ("--dataset", "cats"), ("--epochs", "0"), ("--epochs", "-3"), ("--epochs", "many"), ("--batch-size", "0"),
    ("--batch-size", "1.5"), ("--learning-rate", "0"), ("--learning-rate", "-1"), ("--learning-rate", "nan"),
    ("--optimizer", "adamw"), ("--filters", "0"), ("--filters", "8 -8"), ("--filters", "8 8 8 8"),
    ("--validation-split", "0"), ("--validation-split", "1"), ("--validation-split", "0.001"), ("--dropout", "1"),
    ("--label-smoothing", "-0.1"), ("--precision", "int8"), ("--seed", "-1"), ("--dense-units", "0"),
    ("--shift", "8"), ("--weight-decay", "-1"), ("--output-dir", "a_file"), ("--output-dir", "a_file/below"),
]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_input_gets_one_sentence_and_status_2(tmp_path, flag, value):
    (tmp_path / "a_file").write_text("not a folder")
    started = time.monotonic()
    finished = run(tmp_path, flag, *value.split())
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1 and "Traceback" not in finished.stderr, finished.stderr
    assert flag in finished.stderr and value.split()[-1] in finished.stderr
    if value != "0.001":  # only the data can tell that this share is too small
        assert time.monotonic() - started < 3, "a mistake is found before TensorFlow is loaded"


def test_unknown_flag_is_named(tmp_path):
    finished = run(tmp_path, "--epoch", "3")
    assert finished.returncode == 2 and "--epoch" in finished.stderr and len(finished.stderr.splitlines()) == 1


def test_run_killed_in_training_leaves_earlier_results(default_run, tmp_path):
    shutil.copytree(default_run[0] / "outputs", tmp_path / "outputs")
    before = contents(tmp_path / "outputs" / "digits")
    (tmp_path / "keras").mkdir()
    process = subprocess.Popen(**command(tmp_path, "--epochs", 1000), stdout=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("Epoch 2/"):
            process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert contents(tmp_path / "outputs" / "digits") == before
    assert_complete(tmp_path / "outputs" / "digits", run(tmp_path, *SHORT))


def test_help_lists_every_setting_with_its_meaning(tmp_path):
    source = SCRIPT.read_text(encoding="utf-8")
    block = source[source.index("settings\n# data"):source.index("end of the settings")]
    names = re.findall(r"^([A-Z_]+) = ", block, re.MULTILINE)
    started = time.monotonic()
    finished = run(tmp_path, "--help", COLUMNS="500")
    assert time.monotonic() - started < 3
    assert finished.returncode == 0 and len(names) >= 17
    for name in names:
        meaning = re.search(rf"^{name} = .*? +# (.+)", block, re.MULTILINE)[1]
        assert "--" + name.lower().replace("_", "-") in finished.stdout and meaning in finished.stdout
        assert name.lower().replace("_", "-") in (ROOT / "README.md").read_text(encoding="utf-8")


def test_cells_run_in_a_notebook(tmp_path):
    """A notebook has no __file__ and no command line of ours, and displays figures itself."""
    cells = re.sub(r"^(EPOCHS|FILTERS) = .*", lambda m: f"{m[1]} = {dict(EPOCHS=1, FILTERS=(8,))[m[1]]}",
                   SCRIPT.read_text(encoding="utf-8"), flags=re.MULTILINE).split("\n# %%")
    assert len(cells) > 8
    notebook = "import sys, types; sys.modules['ipykernel'] = types.ModuleType('ipykernel'); names = {}\n"
    notebook += "".join(f"exec({'#' + cell!r}, names)\n" for cell in cells)
    finished = subprocess.run([sys.executable, "-c", notebook, "--not-a-flag-of-ours"], cwd=tmp_path, text=True,
                              capture_output=True, env={**os.environ, "MPLBACKEND": "Agg"})
    assert_complete(tmp_path / "outputs" / "digits", finished)


def test_requirements_stand_the_same_in_both_places():
    source = SCRIPT.read_text(encoding="utf-8")
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", source, re.MULTILINE)[1]
    metadata = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))
    assert metadata["dependencies"] == (ROOT / "requirements.txt").read_text().split()
    assert len(metadata["dependencies"]) == 5
