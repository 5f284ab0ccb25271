"""Chapter 10: the results folder, going on with a run that was cut off, and experiments.csv."""

import json
import os
import pathlib
import re
import threading
import time

import keras
import numpy as np
import pandas as pd
import pytest

import image_recognition_cnn as script
from helpers import contents, one_sentence

OUTPUTS = pathlib.Path("outputs")
RESULTS = OUTPUTS / "digits"


def small_network(*_, width=8):
    return keras.Sequential([
        keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
        keras.layers.Dense(width, activation="relu"),
        keras.layers.Dense(10, activation="softmax")], name="cnn")


@pytest.fixture
def quick(no_pictures, run, monkeypatch):
    """Return run(), for a small network in place of the CNN."""
    monkeypatch.setattr(script, "build_cnn", small_network)
    return run


@pytest.fixture
def cut_off(quick, monkeypatch):
    """Return a function that trains as quick() does, but fails behind the training."""

    def run_and_fail(**changes):
        with monkeypatch.context() as patch:
            patch.setattr(script, "evaluate", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                quick(**changes)
        return sorted(OUTPUTS.glob("digits.unfinished_*"))[-1]

    return run_and_fail


# A run that fails, and --resume


def test_a_run_that_fails_leaves_earlier_results_as_they_were(cut_off):
    RESULTS.mkdir(parents=True)
    for name in ("my notes.txt", "history.csv", "predictions.png"):
        (RESULTS / name).write_text("old")
    cut_off(EPOCHS=1)
    assert list(contents(RESULTS).values()) == [b"old"] * 3


def test_resume_takes_a_trained_network_as_it_is(cut_off, quick):
    unfinished = cut_off(EPOCHS=1)
    trained = (unfinished / "resume" / "history.csv").read_bytes()
    quick(EPOCHS=1, RESUME=True)
    assert (RESULTS / "history.csv").read_bytes() == trained and not unfinished.exists()


def test_a_run_like_an_unfinished_one_says_what_resume_would_do(cut_off, quick, capsys):
    unfinished = cut_off(EPOCHS=1)
    before = contents(unfinished)
    capsys.readouterr()
    quick(EPOCHS=1, SEED=1)
    assert "--resume" not in capsys.readouterr().out, "another seed is another run"
    quick(EPOCHS=1)
    [offer] = [line for line in capsys.readouterr().out.splitlines() if "--resume" in line]
    assert str(unfinished) in offer and "begins anew" in offer
    assert contents(unfinished) == before, "perhaps it is still going"


def test_resume_takes_the_newest_of_several_runs(cut_off, settings):
    older = cut_off(EPOCHS=1)
    older.rename(older.with_name(older.name.replace("_20", "_19")))
    newer = cut_off(EPOCHS=1)
    assert newer.name.split("_")[1] == older.name.split("_")[1], "the same settings and data"
    (newer / "mark").write_text("of the newer one")
    folder = script.open_results_folder(settings(EPOCHS=1, RESUME=True), data_hash_of_digits())
    assert (folder / "mark").exists() and not newer.exists() and folder.parent == OUTPUTS


def test_a_run_is_continued_by_one_program_only(cut_off, settings, monkeypatch, capsys):
    unfinished = cut_off(EPOCHS=1)
    rename = pathlib.Path.rename

    def too_late(path, target):
        rename(path, path.with_name("taken"))  # by another program, a moment before
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", too_late)
    with one_sentence(capsys, "another program", str(unfinished)):
        script.open_results_folder(settings(EPOCHS=1, RESUME=True), data_hash_of_digits())


def test_resume_with_an_empty_table_is_one_sentence(cut_off, quick, capsys):
    (cut_off(EPOCHS=1) / "resume" / "history.csv").write_text("")
    with one_sentence(capsys, "--resume can't read"):
        quick(EPOCHS=1, RESUME=True)


def data_hash_of_digits():
    parts = script.load_data(script.read_settings())
    arrays = [array for part in parts[:3] for array in part]
    return script.joblib.hash([*arrays, parts[3]])


@pytest.mark.parametrize("changes", [
    dict(EPOCHS=2), dict(LEARNING_RATE=0.01), dict(SEED=3), dict(OPTIMIZER="sgd")], ids=str)
def test_resume_with_another_setting_is_one_sentence(cut_off, quick, capsys, changes):
    cut_off(EPOCHS=1)
    with one_sentence(capsys, "--resume", "no unfinished run in outputs", "the same flags"):
        quick(**{"EPOCHS": 1, "RESUME": True, **changes})


def test_resume_with_other_data_is_one_sentence(cut_off, quick, capsys, monkeypatch):
    cut_off(EPOCHS=1)
    digits = script.load_digits()
    digits.images[0, 0, 0] += 1
    monkeypatch.setattr(script, "load_digits", lambda: digits)
    with one_sentence(capsys, "--resume", "no unfinished run in outputs", "this data"):
        quick(EPOCHS=1, RESUME=True)


def test_resume_with_a_changed_layer_is_one_sentence(cut_off, quick, capsys, monkeypatch):
    cut_off(EPOCHS=1)
    monkeypatch.setattr(script, "build_cnn", lambda *_: small_network(width=9))
    with one_sentence(capsys, "digits.unfinished_", "layers of the network have been changed"):
        quick(EPOCHS=1, RESUME=True)


def test_resume_with_broken_weights_is_one_sentence(cut_off, quick, capsys):
    unfinished = cut_off(EPOCHS=1)
    [weights] = unfinished.glob("resume/*.npz")
    weights.write_bytes(weights.read_bytes()[:100])
    with one_sentence(capsys, "can't read", weights.name, "leave --resume out"):
        quick(EPOCHS=1, RESUME=True)


def test_a_run_goes_on_with_its_weights_its_optimizer_and_its_epoch(settings, tmp_path):
    found = settings(RESUME=True)
    networks = [small_network(), small_network()]
    for network in networks:
        network.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    trained, fresh = networks
    assert script.restore_weights(fresh, tmp_path, found, 5, 4) == 5, "nothing is kept yet"
    images, labels = np.ones((12, 8, 8, 1)), np.arange(12) % 10
    trained.fit(images, labels, batch_size=1, verbose=0)  # 12 steps: 3 epochs of 4
    keep, _ = script.after_each_epoch(trained, tmp_path, found, 5)
    (tmp_path / "resume" / "history.csv").write_text("epoch\n0\n1\n2\n3\n4\n")
    keep.on_epoch_end(5, {"loss": 1.0})
    assert script.restore_weights(fresh, tmp_path, found, 5, 4) == 8
    for old, new in zip(trained.get_weights(), fresh.get_weights()):
        assert (old == new).all()
    for old, new in zip(trained.optimizer.variables, fresh.optimizer.variables):
        assert (old.numpy() == new.numpy()).all(), "the sums of gradients, too"
    assert script.restore_weights(fresh, tmp_path, found, 0, 4) == 0, "of another training"
    found.RESUME = False
    assert script.restore_weights(fresh, tmp_path, found, 5, 4) == 5


def test_layers_that_were_made_before_do_not_change_the_name_of_the_weights(tmp_path):
    first = script.weights_file(small_network(), tmp_path, 0)
    assert script.weights_file(small_network(), tmp_path, 0) == first, "dense_1, dense_3 ..."
    assert script.weights_file(small_network(width=9), tmp_path, 0) != first
    assert script.weights_file(small_network(), tmp_path, 1) != first


# Ctrl-C, and a loss that is no number


def interrupt_at(monkeypatch, step):
    """Let Ctrl-C be pressed in this step of the training."""
    steps = []

    def on_batch_end(*_, **__):
        steps.append(1)
        if len(steps) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(script.callbacks.TerminateOnNaN, "on_batch_end", on_batch_end)


def test_ctrl_c_in_the_second_epoch_gives_results(quick, monkeypatch, capsys):
    interrupt_at(monkeypatch, 60)  # of 40 in each epoch
    _, history, metrics = quick(EPOCHS=3)
    assert len(history) == metrics["epochs_trained"] == 1
    assert (RESULTS / "metrics.json").exists() and (RESULTS / "model.keras").exists()
    assert "Ctrl-C ends the training" in capsys.readouterr().out


def test_ctrl_c_in_the_first_epoch_leaves_nothing(quick, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(script.atexit, "register", lambda *call: opened.append(call))
    interrupt_at(monkeypatch, 5)
    with one_sentence(capsys, "Ctrl-C in the first epoch"):
        quick(EPOCHS=3)
    [(remove, folder)] = opened  # what Python does at the end of the program
    assert folder.exists()
    remove(folder)
    assert not folder.exists()


def test_an_unfinished_run_with_a_trained_epoch_stays_at_the_end_of_the_program(tmp_path):
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "history.csv").write_text("epoch\n0\n")
    script.remove_if_untrained(tmp_path)
    assert (tmp_path / "resume" / "history.csv").exists()


def test_a_loss_that_is_no_number_ends_the_training_with_one_sentence(quick, capsys):
    changes = dict(EPOCHS=50, LEARNING_RATE=10.0, WEIGHT_DECAY=100.0)
    with one_sentence(capsys, "NaN", "--learning-rate ten times smaller"):
        quick(**changes)
    with one_sentence(capsys, "no unfinished run"):
        quick(RESUME=True, **changes)


@pytest.mark.parametrize("losses", [(0.5, float("nan")), (float("inf"), 0.5)], ids=str)
def test_a_loss_that_is_no_number_in_the_last_epoch_is_no_result(tmp_path, capsys, losses):
    (tmp_path / "resume").mkdir()
    table = pd.DataFrame({"epoch": [0, 1], "loss": [1, losses[0]], "val_loss": [1, losses[1]]})
    table.to_csv(tmp_path / "resume" / "history.csv", index=False)
    with one_sentence(capsys, "NaN"):
        script.read_history(tmp_path)


def test_a_folder_that_can_not_be_removed_stops_nothing(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise PermissionError("open in another program")

    monkeypatch.setattr("os.rmdir", fail)
    script.remove_if_untrained(tmp_path)
    old = tmp_path / "digits.unfinished_1234abcd_20200101_000000_x"
    old.mkdir()
    os.utime(old, (0, 0))
    script.remove_forgotten_runs(tmp_path)
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "history.csv").write_text("epoch,loss,val_loss\n0,nan,nan\n")
    with one_sentence(capsys, "NaN"):
        script.read_history(tmp_path)


def test_a_loss_that_is_no_number_ends_the_training_at_once(settings, tmp_path):
    _, terminate = script.after_each_epoch(small_network(), tmp_path, settings(), 0)
    terminate.set_model(small_network())
    terminate.on_batch_end(0, {"loss": float("nan")})
    assert terminate.model.stop_training


def test_another_seed_gives_another_result(quick):
    losses = [quick(EPOCHS=1, SEED=seed)[1]["loss"][0] for seed in (0, 1)]
    assert losses[0] != losses[1]


# After each epoch


@pytest.fixture
def epochs(settings, tmp_path, monkeypatch):
    """Return a function that lets epochs end, each after some seconds; it returns the table."""
    clock = [100.0]
    monkeypatch.setattr(script.time, "perf_counter", lambda: clock[0])
    model = small_network()
    model.compile(keras.optimizers.SGD(0.25))
    keep, _ = script.after_each_epoch(model, tmp_path, settings(), 0)

    def end(*numbers, seconds=1.0):
        for number in numbers:
            clock[0] += seconds
            logs = {"accuracy": 0.1 * number, "loss": 1.0, "val_accuracy": 0.5, "val_loss": 2.0}
            keep.on_epoch_end(number, logs)
        return pd.read_csv(tmp_path / "resume" / "history.csv")

    return end


def test_each_epoch_adds_a_row_and_keeps_the_weights(epochs, tmp_path):
    table = epochs(0, 1, 2, seconds=2.346)
    assert list(table) == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss",
                           "learning_rate", "seconds"]
    assert list(table["epoch"]) == [0, 1, 2] and list(table["accuracy"]) == [0, 0.1, 0.2]
    assert list(table["learning_rate"]) == [0.25] * 3 and list(table["seconds"]) == [2.35] * 3
    [weights, _] = sorted(path.name for path in (tmp_path / "resume").iterdir())
    assert weights.startswith("from_epoch_0_")


def test_an_epoch_that_is_done_again_takes_the_place_of_its_row(epochs):
    epochs(0, 1, 2)
    assert list(epochs(1, seconds=3)["seconds"]) == [1, 3]


def test_the_curves_are_drawn_after_a_long_epoch(epochs, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(script, "draw_curves", lambda *what: drawn.append(what))
    epochs(0, 1, seconds=10)
    assert drawn == [] and "The curves so far" not in capsys.readouterr().out
    epochs(2, seconds=10.1)
    [(history, title, folder)] = drawn
    assert list(history["epoch"]) == [0, 1, 2] and (title, folder) == ("digits", tmp_path)
    assert str(tmp_path / "accuracy_loss_curves.png") in capsys.readouterr().out


def test_figures_of_long_epochs_do_not_pile_up(epochs, tmp_path):
    epochs(0, 1, seconds=99)
    assert (tmp_path / "accuracy_loss_curves.png").exists()
    assert script.plt.get_fignums() == []


# The folder of a run


def test_what_decides_on_the_folder_is_the_result_not_the_way_there(settings):
    names = set()
    for changes in ({}, dict(OUTPUT_DIR="others"), dict(PREDICT=["x"])):
        folder = script.open_results_folder(settings(**changes), "x")
        assert folder.is_dir() and folder.name.startswith("digits.unfinished_")
        names.add(folder.name.split("_")[1])
    assert len(names) == 1
    for found, data_hash in ((settings(SEED=1), "x"), (settings(), "y")):
        assert script.open_results_folder(found, data_hash).name.split("_")[1] not in names


def test_a_data_set_is_the_same_however_its_path_is_written(settings, tmp_path):
    hashes = {script.open_results_folder(settings(DATASET=dataset), "x").name.split("_")[1]
              for dataset in ("pets", "./pets/", str(tmp_path / "pets"))}
    assert len(hashes) == 1


def test_each_part_of_the_data_counts_as_data(run, monkeypatch):
    """Changing one pixel, one label or one name of any part changes the hash of the data."""
    random = np.random.default_rng(0)
    parts = [[random.integers(0, 255, (4, 2, 2, 1)), np.arange(4) % 2] for _ in range(3)]
    names = ["a", "b"]
    hashes = []

    def note(_, data_hash):
        hashes.append(data_hash)
        raise SystemExit

    monkeypatch.setattr(script, "open_results_folder", note)
    monkeypatch.setattr(script, "load_data", lambda _: (*map(tuple, parts), names))
    for array in [None, *sum(parts, [])]:
        if array is not None:
            array.flat[-1] += 1
        with pytest.raises(SystemExit):
            run()
    names[1] = "c"
    for _ in range(2):
        with pytest.raises(SystemExit):
            run()
    assert len(hashes) == 9 and len(set(hashes)) == 8, "the last one is the same data again"


def test_forgotten_runs_are_removed_after_thirty_days(settings, capsys):
    old = "digits.unfinished_12345678_20250101_000000_"
    older = "pets.unfinished_12345678_20240101_000000_b"
    days = {f"{old}a": 30.001, older: 99, f"{old}c": 29.999, f"{old}resumed": 99, "digits": 99,
            "thesis.unfinished_draft": 99}
    for name, age in days.items():
        (OUTPUTS / name / "resume").mkdir(parents=True)
        for folder in (OUTPUTS / name / "resume", OUTPUTS / name):
            then = time.time() - age * 24 * 3600
            os.utime(folder, (then, then))
    os.utime(OUTPUTS / f"{old}resumed" / "resume")  # an epoch has just ended there
    begun = script.open_results_folder(settings(), "x")
    left = {path.name for path in OUTPUTS.iterdir()}
    assert left == {f"{old}c", f"{old}resumed", "digits", "thesis.unfinished_draft", begun.name}
    said = capsys.readouterr().out
    assert f"30 days: {OUTPUTS / old}a" in said and str(OUTPUTS / older) in said


# Results take their place


HISTORY = pd.DataFrame({"seconds": [1.04, 2.0]})


def finished_run(name, content, files=("model.json", "model.keras", "labels.txt")):
    """Make the folder of a run that is finished, each of its files with this content."""
    folder = OUTPUTS / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text(content)
    (folder / "resume").mkdir()
    for file in ("from_epoch_0_ab.npz", "history.csv"):
        (folder / "resume" / file).write_text(content)
    return folder


def publish(settings, folder):
    return script.publish_results(folder, settings(SEED=2), {"test_accuracy": 0.5}, HISTORY)


def test_results_take_the_place_of_the_last_ones(settings, capsys):
    RESULTS.mkdir(parents=True)
    old = ["my notes.txt", "labels.txt", "model.json", *script.NOT_OF_EVERY_RUN]
    for name in old:
        (RESULTS / name).write_text("old")
    folder = finished_run("new", "new")
    metrics = publish(settings, folder)
    found = contents(RESULTS)
    assert found.pop("my notes.txt") == b"old", "a user's own file"
    assert json.loads(found.pop("metrics.json")) == metrics
    assert set(found) == {"history.csv", "model.json", "model.keras", "labels.txt"}
    assert set(found.values()) == {b"new"}
    assert [path.name for path in folder.iterdir()] == ["resume"], "until the row is written"
    assert not list(OUTPUTS.glob("*.lock"))
    printed = capsys.readouterr().out
    assert str(RESULTS.resolve()) in printed and "labels.txt, metrics.json" in printed


def test_metrics_name_the_settings_the_versions_and_the_time(settings):
    metrics = publish(settings, finished_run("new", "new"))
    assert metrics == {
        "test_accuracy": 0.5, "epochs_trained": 2, "training_seconds": 3.0,
        "settings": vars(settings(SEED=2)), "versions": script.VERSIONS}


def test_the_names_of_the_classes_go_first_and_come_last(settings, monkeypatch):
    publish(settings, finished_run("old", "old"))
    states = []  # of the old and the new folder before each move
    replace = pathlib.Path.replace

    def noted(path, target):
        states.append(contents(RESULTS))
        return replace(path, target)

    monkeypatch.setattr(pathlib.Path, "replace", noted)
    publish(settings, finished_run("new", "new"))
    assert len(states) == 5, "history.csv, labels.txt, metrics.json, model.json, model.keras"
    assert all("model.json" not in state for state in states)
    assert states[-1]["model.keras"] == states[-1]["history.csv"] == b"new"


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_move_that_fails_cuts_no_file_short_and_can_be_done_again(
        settings, monkeypatch, number):
    publish(settings, finished_run("old", "old"))
    folder = finished_run("digits.unfinished_ab_1", "new")
    moves = []
    replace = pathlib.Path.replace

    def full_disk(path, target):
        moves.append(path)
        if len(moves) == number:
            raise OSError("No space left on device")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", full_disk)
        with pytest.raises(OSError):
            publish(settings, folder)
    for name, content in contents(RESULTS).items():
        assert content in (b"old", b"new") or name == "metrics.json"
    assert not (RESULTS / "model.json").exists()
    assert contents(folder / "resume") == {"from_epoch_0_ab.npz": b"new", "history.csv": b"new"}


def test_a_run_that_could_not_be_published_resumes(quick, monkeypatch):
    replace = pathlib.Path.replace

    def full_disk(path, target):
        if path.name == "model.keras":
            raise OSError("No space left on device")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", full_disk)
        with pytest.raises(OSError):
            quick(EPOCHS=1)
    _, _, metrics = quick(EPOCHS=1, RESUME=True)
    loaded, _ = script.load_trained_model(RESULTS, "digits")
    (x_val, y_val) = script.load_data(script.read_settings())[1]
    accuracy = np.mean(script.predict(loaded, x_val).argmax(axis=1) == y_val)
    assert accuracy == metrics["validation_accuracy"] and not list(OUTPUTS.glob("*.unfinished*"))


def together(*tasks):
    """Do several things at once."""
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_of_two_runs_that_end_at_once_one_has_its_results_whole(settings, monkeypatch):
    folders = [finished_run(name, name) for name in ("one", "two")]
    replace = pathlib.Path.replace

    def slow(path, target):
        time.sleep(0.05)
        return replace(path, target)

    def end(folder):
        script.publish_results(folder, found, {"test_accuracy": 0.5}, HISTORY)

    found = settings()
    monkeypatch.setattr(pathlib.Path, "replace", slow)
    together(*[lambda folder=folder: end(folder) for folder in folders])
    files = contents(RESULTS)
    del files["metrics.json"]
    assert set(files.values()) in ({b"one"}, {b"two"}) and len(files) == 4


def test_a_lock_that_a_killed_run_has_left_holds_up_ten_seconds(tmp_path, monkeypatch):
    lock = tmp_path / "lock"
    lock.mkdir()
    made = lock.stat().st_mtime
    clock = [made]
    monkeypatch.setattr(script.time, "time", lambda: clock[0])
    monkeypatch.setattr(script.time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    with script.one_at_a_time(lock):
        assert 10 < clock[0] - made < 10.5 and lock.exists()
    assert not lock.exists()


def test_a_lock_that_can_not_be_removed_is_an_error_after_a_minute(tmp_path, monkeypatch):
    lock = tmp_path / "lock"
    lock.mkdir()
    (lock / "mine").write_text("so it is not empty")
    clock = [1e10]
    monkeypatch.setattr(script.time, "time", lambda: clock[0])
    monkeypatch.setattr(script.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(script.time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    with pytest.raises(OSError, match="does not go away"), script.one_at_a_time(lock):
        pass
    assert 60 < clock[0] - 1e10 < 61


def test_a_lock_is_free_again_whatever_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(script.time, "sleep", lambda _: pytest.fail("it waits for itself"))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), script.one_at_a_time(tmp_path / "lock"):
            assert (tmp_path / "lock").exists()
            raise ZeroDivisionError


# experiments.csv


TABLE = OUTPUTS / "experiments.csv"


@pytest.fixture
def record(settings, capsys):
    """Return a function that records a run that is made up and returns what is printed.

    That is the head of the table, and the words of its rows, both without the time.
    """
    OUTPUTS.mkdir(exist_ok=True)

    def record_run(accuracy, data_hash="x", **changes):
        capsys.readouterr()
        metrics = {"validation_accuracy": accuracy, "validation_images": 1000, "classes": {},
                   "confusion_matrix": [], "settings": {}, "versions": {}}
        script.record_experiment(settings(**changes), metrics, data_hash)
        _, head, *rows = capsys.readouterr().out.splitlines()
        return head.split("validation")[0].split()[1:], [line.split()[2:] for line in rows]

    return record_run


def test_a_first_run_is_the_best_one(record):
    assert record(0.95) == ([], [["95.0%", "93.5%", "to", "96.2%", "best"]])


def test_a_run_is_compared_with_the_last_one_and_with_what_was_changed(record):
    record(0.95)
    head, rows = record(0.94, SEED=1, EPOCHS=7)
    assert head == ["EPOCHS", "SEED"]
    assert rows == [["30", "0", "95.0%", "93.5%", "to", "96.2%", "best"],
                    ["7", "1", "94.0%", "92.4%", "to", "95.3%"]]


def test_the_best_run_is_shown_beside_the_last_three(record):
    for accuracy in (0.91, 0.95, 0.9, 0.92, 0.93):
        _, rows = record(accuracy)
    assert [row[0] for row in rows] == ["95.0%", "90.0%", "92.0%", "93.0%"]
    assert [row[-1] == "best" for row in rows] == [True, False, False, False]
    assert [row[0] for row in record(0.99)[1]] == ["92.0%", "93.0%", "99.0%"]


def test_runs_on_other_images_are_not_compared(record):
    record(0.95)
    assert record(0.9, "y")[1] == [["90.0%", "88.0%", "to", "91.7%", "best"]]
    assert len(record(0.9)[1]) == 2


def test_how_many_runs_there_were_is_printed(record, settings, capsys):
    for data_hash in "xyx":
        record(0.9, data_hash)
    metrics = {"validation_accuracy": 0.9, "validation_images": 1000}
    script.record_experiment(settings(), metrics, "x")
    assert "on these images: 3." in capsys.readouterr().out


def test_a_row_holds_what_has_an_effect_and_what_came_out(record, settings):
    record(0.95, SEED=7)
    table = pd.read_csv(TABLE)
    without = {"OUTPUT_DIR", "RESUME", "PREDICT"}
    assert set(table) == {"TIME", "DATA", "validation_accuracy", "validation_images",
                          *vars(settings())} - without
    [row] = table.to_dict("records")
    assert row["SEED"] == 7 and row["FILTERS"] == "[64]" and row["DATA"] == "x"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row["TIME"])


def test_each_run_is_a_row(record):
    accuracies = [0.95, 0.94, 0.92, 0.9]
    for accuracy in accuracies:
        record(accuracy)
    assert list(pd.read_csv(TABLE)["validation_accuracy"]) == accuracies
    assert [path.name for path in OUTPUTS.iterdir()] == ["experiments.csv"]


@pytest.mark.parametrize("end", ["", "\n"])  # an editor may save a table without the last one
def test_a_row_begins_on_a_line_of_its_own(record, end):
    record(0.9)
    TABLE.write_text(TABLE.read_text().rstrip("\n") + end)
    record(0.8)
    assert len(TABLE.read_text().splitlines()) == 3, "the names of the columns, and two rows"
    assert list(pd.read_csv(TABLE)["validation_accuracy"]) == [0.9, 0.8]


def test_runs_that_end_at_once_keep_all_rows(settings, monkeypatch):
    OUTPUTS.mkdir()
    read = script.read_experiments

    def slowly(path):
        rows = read(path)
        time.sleep(0.1)  # so that another one could read before this one has written
        return rows

    def record_seed(seed):
        metrics = {"validation_accuracy": 0.5, "validation_images": 10}
        script.record_experiment(found[seed], metrics, "x")

    monkeypatch.setattr(script, "read_experiments", slowly)
    found = [settings(SEED=seed) for seed in range(4)]
    together(*[lambda seed=seed: record_seed(seed) for seed in range(4)])
    assert sorted(pd.read_csv(TABLE)["SEED"]) == [0, 1, 2, 3]


def test_a_table_that_can_not_be_written_is_a_warning(quick, monkeypatch, capsys):
    quick(EPOCHS=1)
    before = TABLE.read_bytes()

    def refuse(path, mode="r", **options):
        if "experiments" in str(path) and mode != "r":
            raise PermissionError("[Errno 13] Permission denied")
        return open(path, mode, **options)

    monkeypatch.setattr(script, "open", refuse, raising=False)
    _, _, metrics = quick(EPOCHS=1, SEED=1)
    said = capsys.readouterr()
    assert "Warning: can't add this run to outputs/experiments.csv (" in said.err
    assert "Permission denied" in said.err and "metrics.json" in said.err
    assert json.loads((RESULTS / "metrics.json").read_text())["settings"]["SEED"] == 1
    assert TABLE.read_bytes() == before and not list(OUTPUTS.glob("*.lock"))
    assert f"{metrics['validation_accuracy']:.1%}" in said.out, "it is compared all the same"


@pytest.mark.parametrize("content", [
    b"", b"a;b\n1;2\n", b"a\n\xff,1\n", b'a\n1,"', b"a\n1\n2,3\n",
    b'"TIME,DATA,validation_accuracy"\n'])
def test_what_another_program_made_of_the_table_is_set_aside(record, content):
    TABLE.write_bytes(content)
    record(0.9)
    [aside] = OUTPUTS.glob("experiments_set_aside_*.csv")
    assert aside.read_bytes() == content
    assert list(pd.read_csv(TABLE)["validation_accuracy"]) == [0.9]


def test_that_the_table_was_set_aside_is_said(settings, tmp_path, capsys):
    table = tmp_path / "experiments.csv"
    assert script.read_experiments(table) is None and capsys.readouterr().err == ""
    table.write_text("a;b\n1;2\n")
    assert script.read_experiments(table) is None
    [said] = capsys.readouterr().err.splitlines()
    assert str(table) in said and "experiments_set_aside_20" in said


def test_a_table_with_other_columns_keeps_all_rows(record):
    record(0.9)
    table = pd.read_csv(TABLE, dtype=str).drop(columns="SEED").assign(NEW="mine")
    TABLE.write_text(table.to_csv(index=False).rstrip("\n"))  # no line break at the end
    record(0.8, SEED=3)
    rows = pd.read_csv(TABLE)
    assert list(rows["NEW"].fillna("")) == ["mine", ""] and rows["SEED"].iloc[-1] == 3
    assert list(rows["validation_accuracy"]) == [0.9, 0.8]


def test_what_looks_like_a_missing_number_stays_a_text(tmp_path):
    table = tmp_path / "experiments.csv"
    table.write_text("TIME,DATA,validation_accuracy,DATASET\n1,x,,NA\n")
    assert script.read_experiments(table).to_dict("records") == [
        {"TIME": "1", "DATA": "x", "validation_accuracy": "", "DATASET": "NA"}]


def test_a_row_without_an_accuracy_stays_and_is_not_compared(record):
    record(0.9)
    table = pd.read_csv(TABLE, dtype=str)
    table.loc[1] = {"TIME": "x", "DATA": "x", "validation_accuracy": ""}
    table.to_csv(TABLE, index=False)
    assert [row[0] for row in record(0.8)[1]] == ["90.0%", "80.0%"]
    assert list(pd.read_csv(TABLE)["validation_accuracy"].fillna(0)) == [0.9, 0, 0.8]


@pytest.mark.parametrize("accuracy", ["9791666666666666", "1.5", "n/a"])
def test_what_is_no_share_in_the_table_is_no_accuracy(record, accuracy):
    record(0.9)
    TABLE.write_text(TABLE.read_text().replace("0.9", accuracy))
    _, [only] = record(0.8, SEED=1)
    assert only[0] == "80.0%" and only[-1] == "best"


def test_a_name_that_is_no_utf8_is_recorded(record):
    for seed in (1, 2):  # the first row makes the table, the second is added
        record(0.9, DATASET=os.fsdecode(b"caf\xe9"), SEED=seed)
    assert list(pd.read_csv(TABLE)["DATASET"]) == ["caf\\udce9"] * 2
