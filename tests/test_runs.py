"""Whole runs: main(), the script as a user starts it, a run that is killed, a notebook."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import image_recognition_cnn as script
from helpers import SCRIPT, assert_complete, one_sentence, process


def test_a_complete_run_as_a_user_starts_it(tmp_path):
    # Python then warns of a file that is opened in the letters of the computer, not in UTF-8.
    environment = {**os.environ, "PYTHONWARNDEFAULTENCODING": "1"}
    finished = process(tmp_path, "--epochs", 3, "--seed", 5, env=environment)
    assert finished.returncode == 0
    said = [line for line in finished.stderr.splitlines() if "site-packages" not in line]
    assert not re.search("Traceback|Warning", "\n".join(said)), finished.stderr
    assert finished.stdout.startswith("Settings: DATASET digits")
    found = assert_complete(tmp_path / "outputs" / "digits", epochs=3)
    assert found["settings"]["SEED"] == 5 and found["test_accuracy"] > 0.97
    for words in ("Total params", "logistic regression", "macro avg", "95 % interval"):
        assert words in finished.stdout, words
    assert len(pd.read_csv(tmp_path / "outputs" / "experiments.csv")) == 1


def test_main_shows_the_test_images_with_their_answers_in_each_picture(
        run, no_pictures, monkeypatch, tmp_path):
    given = {}
    for name in dir(script):
        if name.startswith("draw_"):
            monkeypatch.setattr(script, name, lambda *what, name=name: given.update({name: what}))
    parts = script.load_data(script.read_settings())[:3]
    names = [f"the long name of class {i}" for i in range(10)]
    monkeypatch.setattr(script, "load_data", lambda _: (*parts, names))
    model, history, metrics = run(EPOCHS=1, FILTERS=[4])
    x, y = parts[2]
    probabilities = script.predict(model, x)
    wrapped = [f"the long name of\nclass {i}" for i in range(10)]
    assert given["draw_training_images"][1] is parts[0][1]
    assert given["draw_curves"][0] is history
    assert given["draw_confusion_matrix"][0] == metrics["confusion_matrix"]
    for name in ("draw_predictions", "draw_where_it_looks", "draw_learned_features"):
        *_, x_shown, y_shown, answers, shown_names, title, folder = given[name]
        assert x_shown is x and y_shown is y and np.allclose(answers, probabilities, atol=1e-6)
        assert shown_names == wrapped and title == "digits"
        assert folder.name.startswith("digits.unfinished_")


def test_main_classifies_pictures_in_place_of_training(run, monkeypatch):
    asked = []
    monkeypatch.setattr(script, "predict_pictures", asked.append)
    assert run(PREDICT=["a.png"]) is None
    assert asked[0].PREDICT == ["a.png"]


@pytest.fixture
def killed(tmp_path):
    """The table of a run of 4 epochs that is killed when its third epoch has begun."""
    running = subprocess.Popen([sys.executable, SCRIPT, "--epochs", "4", "--filters", "8"],
                               cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    for line in running.stdout:
        if line.startswith("Epoch 3/"):
            running.kill()
    assert running.wait() == -signal.SIGKILL
    [table] = tmp_path.glob("outputs/digits.unfinished_*/resume/history.csv")
    return pd.read_csv(table)


def test_a_killed_run_goes_on_where_it_was(killed, run, no_pictures, capsys):
    _, resumed, _ = run(RESUME=True, EPOCHS=4, FILTERS=[8])
    assert not re.search("Epoch [12]/", capsys.readouterr().out)
    assert list(resumed["epoch"]) == [0, 1, 2, 3] and resumed["loss"].is_monotonic_decreasing
    _, uncut, _ = run(EPOCHS=4, FILTERS=[8])
    assert uncut["loss"][:2].equals(killed["loss"][:2]), "one seed, one result"
    assert resumed["loss"][:2].equals(killed["loss"][:2])
    assert resumed["learning_rate"].equals(uncut["learning_rate"])
    assert resumed["val_loss"][3] == pytest.approx(uncut["val_loss"][3], rel=0.2)


def test_an_output_dir_that_cannot_be_written_is_one_sentence(settings, monkeypatch, capsys):
    open("a_file", "w").close()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output-dir", "a_file"])
    with one_sentence(capsys, "a_file", "do you have write permission"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


NOTEBOOK = """
import re, sys, matplotlib.figure, IPython.core.interactiveshell as ipython
matplotlib.figure.Figure.savefig = lambda *_, **__: None  # takes half of a run
path = sys.argv.pop()
sys.argv = ["ipykernel_launcher.py", "-f", "kernel.json"]
shell = ipython.InteractiveShell.instance()
cells = re.split("^# %%.*", open(path, encoding="utf-8").read(), flags=re.MULTILINE)
cells.insert(2, "DATASET = 'mnist'; FILTERS = 8")  # after the settings
cells.insert(-1, "assert read_settings().EPOCHS == 4; DATASET = 'digits'")
cells.insert(-1, "assert read_settings().EPOCHS == 30; EPOCHS = 1")  # then main()
for cell in cells:
    shell.run_cell(cell).raise_error()
shell.run_line_magic("run", path + " --epochs 2 --filters 8 --output-dir by_run")
shell.user_ns["tf"].get_logger().warning("TensorFlow still says what it has to say")
"""


def test_cells_and_run_in_ipython(tmp_path):
    finished = subprocess.run([sys.executable, "-c", NOTEBOOK, SCRIPT], cwd=tmp_path, text=True,
                              capture_output=True, timeout=250)
    assert finished.returncode == 0 and "Traceback" not in finished.stderr, finished.stderr
    for folder, epochs in (("outputs", 1), ("by_run", 2)):
        metrics = json.loads((tmp_path / folder / "digits" / "metrics.json").read_text())
        assert metrics["epochs_trained"] == epochs and metrics["settings"]["FILTERS"] == [8]
