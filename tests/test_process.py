"""Runs of the script in a process of its own: where the process is what is tested.

One run with the default settings is made for all tests that look at its results.
"""

import json
import pathlib
import re
import signal
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import image_recognition_cnn as script
from helpers import (
    NUMBERS, PICTURES, SCRIPT, assert_complete, contents, digits_test_part, history, metrics, process,
    script_of_a_short_run)


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """The run with no flags but the epochs, in a process, as the README's first command makes it."""
    folder = tmp_path_factory.mktemp("default")
    return folder, process(folder, "--epochs", 12)


def test_default_run_is_complete_accurate_and_quiet(default_run):
    folder, finished = default_run
    assert finished.returncode == 0 and finished.stderr == ""
    assert_complete(folder / "outputs" / "digits", epochs=12)
    found = metrics(folder / "outputs" / "digits")
    assert found["test_accuracy"] >= 0.97
    assert found["calibration_error"] < 0.05 < found["calibration_error_before"]
    assert str(folder / "outputs" / "digits") in finished.stdout
    for words in ("Total params", "macro avg", "logistic regression", "x_train: shape (1294, 8, 8, 1)",
                  "epoch 12 of 12", "95 % interval"):
        assert words in finished.stdout, words


def test_saved_model_takes_raw_pixels_and_gives_the_same_accuracy(default_run):
    folder = default_run[0] / "outputs" / "digits"
    x_test, y_test = digits_test_part()
    model = keras.models.load_model(folder / "model.keras")
    probabilities = model.predict(x_test, verbose=0)
    found = metrics(folder)
    assert (probabilities.argmax(axis=1) == y_test).mean() == found["test_accuracy"]
    error = script.calibration_error(y_test, probabilities)
    assert error == pytest.approx(found["calibration_error"], abs=1e-4)
    loss = -np.log(probabilities[np.arange(len(y_test)), y_test]).mean()
    assert loss == pytest.approx(found["test_loss"], abs=1e-4)
    scaled = model.predict(x_test / 255, verbose=0).argmax(axis=1)
    assert (scaled == y_test).mean() < 0.5, "pixels scaled already would not be noticed here"


def test_predict_on_paper_on_black_and_in_16_bits(default_run, capsys, run):
    folder = default_run[0] / "outputs"
    before = contents(folder / "digits")
    images, labels = load_digits(return_X_y=True)
    names = []
    for i in range(8):
        for kind, pixels in (("black", images[i] * 15), ("paper", 225 - images[i] * 12)):
            picture = Image.fromarray(pixels.reshape(8, 8).astype("uint8")).resize((160, 160))
            wide = Image.new("L", (340, 340), picture.getpixel((0, 0)))
            wide.paste(picture, (90, 90))
            if i % 2:
                wide = Image.fromarray(np.asarray(wide).astype("uint16") * 257)
            wide.save(f"{kind}{i}.png")
            names.append(f"{kind}{i}.png")
    pathlib.Path("notes.png").write_text("no picture at all")
    with pytest.raises(SystemExit) as ended:
        run(PREDICT=[*names, "notes.png", "missing.jpg"], OUTPUT_DIR=str(folder))
    printed = capsys.readouterr()
    assert ended.value.code == 1 and "notes.png" in printed.err and "missing.jpg" in printed.err
    right = 0
    for name in names:
        number = int(re.search(r"\d", name)[0])
        answer = re.search(rf"{name}: (\d) [\d.]+%, \d [\d.]+%, \d [\d.]+%$", printed.out, re.M)
        right += int(answer[1]) == labels[number]
        taken = "dark on white" if name.startswith("paper") else "white on black"
        assert f"{name}: taken for {taken}" in printed.out
    assert right >= 13, printed.out
    after = contents(folder / "digits")
    assert after.pop("predictions.png")[:4] == b"\x89PNG" and after == before
    (folder / "digits" / "predictions.png").unlink()
    (folder / "digits" / "predictions.png").mkdir()  # so that nothing can be drawn there
    run(PREDICT=names[:1], OUTPUT_DIR=str(folder))
    printed = capsys.readouterr()
    assert f"{names[0]}: " in printed.out and "Drawn" not in printed.out
    assert printed.err.startswith("Warning: ") and "predictions.png can't be written" in printed.err
    (folder / "digits" / "predictions.png").rmdir()


def test_predict_with_the_model_of_another_data_set_stops(default_run, capsys, run, tmp_path):
    for name in ("a/images", "b/images"):
        for label in ("cat", "dog"):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(6):
                picture = Image.fromarray(np.full((9, 9), 20 * i, "uint8"))
                picture.paste(255, (0, 0, 4, 4))
                picture.save(tmp_path / name / label / f"{i}.png")
    folder = tmp_path / "outputs" / "images"
    folder.mkdir(parents=True)
    model = default_run[0] / "outputs" / "digits" / "model.keras"
    with zipfile.ZipFile(model) as old, zipfile.ZipFile(folder / "model.keras", "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename == "about.json":
                about = json.loads(content)
                about["dataset"] = str(tmp_path / "b" / "images")
                content = json.dumps(about)
            new.writestr(item, content)
    with pytest.raises(SystemExit) as ended:
        run(DATASET="a/images", PREDICT=["x.png"])
    assert ended.value.code == 2
    assert "another data set" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(DATASET="a/images")  # would replace the results of b/images
    assert "--output-dir" in capsys.readouterr().err


# A script of a shell lets what it starts by `&` ignore Ctrl-C, and all that is started from there.
WITH_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""


def start_and_send(sign, line_start, folder, *flags):
    """Start a run, send it a signal at a line of its output, and return its exit status."""
    running = subprocess.Popen(
        [sys.executable, "-c", WITH_CTRL_C, str(SCRIPT), *map(str, flags)], cwd=folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in running.stdout:
        if line.startswith(line_start):
            running.send_signal(sign)
    running.stdout.close()
    errors = running.stderr.read()
    return running.wait(), errors


def test_killed_run_resumes_and_leaves_earlier_results_until_then(
        tmp_path, run, no_pictures, capsys):
    earlier = tmp_path / "outputs" / "digits"
    earlier.mkdir(parents=True)
    (earlier / "metrics.json").write_text("an earlier run")
    status, _ = start_and_send(signal.SIGKILL, "Epoch 3/", tmp_path, "--epochs", 8, "--filters", 8)
    assert status == -signal.SIGKILL
    assert contents(earlier) == {"metrics.json": b"an earlier run"}
    run(RESUME=True, EPOCHS=8, FILTERS=[8])
    printed = capsys.readouterr().out
    assert "Epoch 2/" not in printed and "Epoch 8/" in printed, "two epochs had been finished"
    drawn_before = ["accuracy_loss_curves.png", "training_images.png"]
    assert_complete(earlier, epochs=8, files=sorted([*drawn_before, *NUMBERS]))
    assert float(history(earlier)[-1]["learning_rate"]) == pytest.approx(0, abs=1e-7)


def test_ctrl_c_in_the_first_epoch_leaves_earlier_results(tmp_path):
    """Later it ends the training only: test_script.py."""
    earlier = tmp_path / "outputs" / "digits"
    earlier.mkdir(parents=True)
    (earlier / "metrics.json").write_text("an earlier run")
    status, errors = start_and_send(signal.SIGINT, "Epoch 1/", tmp_path, "--epochs", 500)
    assert status == 2 and "Ctrl-C" in errors and "Traceback" not in errors
    assert contents(earlier) == {"metrics.json": b"an earlier run"}


def test_cells_run_in_a_notebook(tmp_path, monkeypatch):
    """Converted by Jupytext and run by a real kernel; all pictures appear below the last cell."""
    pytest.importorskip("ipykernel", reason="pip install jupytext nbclient ipykernel")
    jupytext = pytest.importorskip("jupytext", reason="pip install jupytext nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="pip install jupytext nbclient ipykernel")
    monkeypatch.delenv("MPLBACKEND")
    notebook = jupytext.reads(script_of_a_short_run(), fmt="py:percent")
    client = nbclient.NotebookClient(
        notebook, timeout=250, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == len(PICTURES)
    said = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert "".join(line for line in said.splitlines(True) if "cuInit" not in line) == ""
    assert_complete(tmp_path / "outputs" / "digits", epochs=1)
