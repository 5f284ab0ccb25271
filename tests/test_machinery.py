"""The machinery: settings and their checks, the folder of results, the table of experiments.

Most tests call the functions of the script in this process. A process of its own is started only
where the process is what is tested: closed streams, missing packages, two runs at once.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest

import image_recognition_cnn as script
from conftest import restart

SCRIPT = pathlib.Path(script.__file__).resolve()


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """Each test runs in an empty folder, and leaves no trace in the script."""
    monkeypatch.chdir(tmp_path)
    yield
    restart()


def read(*flags):
    """Settings as a program with these flags reads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), *map(str, flags)])
        patch.setattr(script, "runs_as_program", lambda: True)
        patch.setattr(script, "prepare_program", lambda: None)
        return script.read_settings()


@contextlib.contextmanager
def one_sentence(capsys, *words):
    """What happens inside ends with status 2 and one line on stderr that has these words in it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        yield
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert len(printed.err.splitlines()) == 1 and printed.out == "", printed
    assert printed.err.startswith("image_recognition_cnn.py: ")
    for word in words:
        assert word in printed.err


@pytest.fixture
def quick(tmp_path_factory):
    """An environment in which TensorFlow and Keras are empty, as loading them takes seconds."""
    folder = tmp_path_factory.mktemp("stand_ins")
    (folder / "keras").mkdir()
    (folder / "keras" / "__init__.py").write_text("""
callbacks = layers = None
class utils:
    def set_random_seed(seed):
        pass""")
    (folder / "tensorflow.py").write_text("")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(SCRIPT.parent)])}


def process(*arguments, **options):
    return subprocess.run([sys.executable, *map(str, arguments)], text=True, timeout=200,
                          **{"capture_output": True, **options})


def test_a_sentence_is_one_line(capsys):
    """Errors of other packages may have several."""
    with one_sentence(capsys, "one two"):
        script.stop("one\ntwo")
    script.warn("one\ntwo")
    assert capsys.readouterr().err == "Warning: one two\n"


# --- flags and the block


BAD = [
    ("--dataset", "cats"), ("--dataset", ""), ("--dataset", "notes.txt"), ("--image-size", "7"),
    ("--dataset", "missing.npz"), ("--dataset", "other/digits"), ("--dataset", "MNIST"),
    ("--image-size", "513"), ("--epochs", "0"), ("--epochs", "-3"), ("--epochs", "many"),
    ("--epochs", "1e3"), ("--epochs", ""), ("--batch-size", "0"), ("--batch-size", "1.5"),
    ("--learning-rate", "0"), ("--learning-rate", "-1"), ("--learning-rate", "nan"),
    ("--learning-rate", "inf"), ("--learning-rate", "10.5"), ("--optimizer", "adamw"),
    ("--filters", "0"), ("--filters", "8 -8"), ("--filters", "8 8"), ("--filters", "8,8"),
    ("--validation-split", "0"), ("--validation-split", "1"), ("--validation-split", "nan"),
    ("--dropout", "1"), ("--dropout", "nan"), ("--dropout", "0,5"), ("--label-smoothing", "-0.1"),
    ("--label-smoothing", "1"), ("--precision", "int8"), ("--seed", "-1"),
    ("--seed", "4294967296"), ("--dense-units", "-1"), ("--shift", "8"), ("--shift", "-1"),
    ("--weight-decay", "-1"), ("--weight-decay", "101"), ("--model", "alexnet"),
    ("--pretrained-size", "31"), ("--fine-tune", "-1"), ("--schedule", "linear"),
    ("--epoch", "3"), ("--epochz=3", ""), ("--resume", "yes"), ("--epochs", None),
    ("--whitening", "yes"), ("--predict", None),
]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flag_gets_one_sentence(tmp_path, capsys, flag, value):
    (tmp_path / "notes.txt").write_text("not a data set")
    (tmp_path / "other" / "digits").mkdir(parents=True)
    parts = [] if value is None else value.split() or [""]
    named = [] if value == "yes" else [flag]  # a switch that is given a value
    with one_sentence(capsys, *named, *parts):
        read(flag, *parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "other"]


@pytest.mark.parametrize("words, flags", [
    (["EPOCHS", "whole number, 1 or more"], ["--epochs", "0"]),
    (["a number, more than 0 and less than 1"], ["--validation-split", "1"]),
    (["a number, more than 0 and 10 or less"], ["--learning-rate", "11"]),
    (["one of adam, sgd"], ["--optimizer", "adamw"]),
    (["8 pixels allow 1 to 1 numbers"], ["--filters", "8", "8"]),
    (["8 pixels allow 1 to 2 numbers"], ["--filters", "8", "8", "8", "--no-whitening"]),
    (["28 pixels allow 1 to 3 numbers"], ["--filters", "8", "8", "8", "8", "--dataset", "mnist"]),
    (["33 pixels allow 1 to 4 numbers"],
     ["--dataset", "photos", "--image-size", "33", "--filters", *"11111"]),
    (["8 pixels"], ["--shift", "8"]),
    (["Did you mean fashion_mnist?"], ["--dataset", "fashion-mnist"]),
    (["Did you mean --epochs?"], ["--epoch", "3"]),
    (["another name"], ["--dataset", "photos/cifar10"]),
])
def test_the_sentence_says_what_is_allowed(tmp_path, capsys, words, flags):
    (tmp_path / "photos" / "cifar10").mkdir(parents=True)
    with one_sentence(capsys, *words):
        read(*flags)


@pytest.mark.parametrize("flags, expected", [
    ([], dict(DATASET="digits", EPOCHS=30, SHIFT=1, MIRROR=False, LEARNING_RATE=0.004)),
    (["--dataset", "mnist"], dict(EPOCHS=4, BATCH_SIZE=128, SHIFT=2, FILTERS=[32, 64, 128])),
    (["--dataset", "cifar10", "--optimizer", "sgd"],
     dict(VALIDATION_SPLIT=0.04, MIRROR=True, LEARNING_RATE=0.1, WEIGHT_DECAY=0.01)),
    (["--dataset", "cifar10"], dict(LEARNING_RATE=0.008, WEIGHT_DECAY=0.25)),
    (["--dataset", "cifar10", "--learning-rate", "0.1"], dict(LEARNING_RATE=0.1)),
    (["--dropout", "0", "--label-smoothing", "0"], dict(DROPOUT=0.0, LABEL_SMOOTHING=0.0)),
    (["--no-augmentation"], dict(AUGMENTATION=False, MIRROR=False)),
    (["--dataset", "mnist", "--filters", "8", "16"], dict(FILTERS=[8, 16])),
    (["--filters", "8", "8", "--no-whitening"], dict(FILTERS=[8, 8])),
    (["--dataset", "photos/", "--image-size", "32"], dict(EPOCHS=30, IMAGE_SIZE=32)),
    (["--dataset", "x.npz", "--filters", "1", "1", "1", "1", "1", "1"], dict(FILTERS=[1] * 6)),
    (["--model", "mobilenet_v2", "--fine-tune", "2", "--shift", "3"], dict(FINE_TUNE=2, SHIFT=3)),
    (["--dataset", "gone", "--predict", "a.png", "b.png"], dict(PREDICT=["a.png", "b.png"])),
    (["--seed", "4294967295", "--learning-rate", "1e-3"],
     dict(SEED=2**32 - 1, LEARNING_RATE=0.001)),
])
def test_flags_change_the_block(tmp_path, capsys, flags, expected):
    (tmp_path / "photos").mkdir()
    (tmp_path / "x.npz").write_bytes(b"")
    settings = read(*flags)
    for name, value in expected.items():
        assert settings[name] == getattr(script, name) == value
        assert type(settings[name]) is type(value)
    assert list(settings) == list(script.setting_rules)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flags, idle", [
    (["--no-augmentation", "--mirror"], "--mirror"),
    (["--no-augmentation", "--shift", "1", "--epochs", "2"], "--shift"),
    (["--learning-rate", "0.1", "--model", "mobilenet_v2"], "--learning-rate"),
    (["--model", "vgg16", "--no-whitening"], "--no-whitening"),
    (["--model", "vgg16", "--filters", "1", "1", "1"], "--filters"),
    (["--model", "resnet50", "--shift", "1"], "--shift"),
    (["--fine-tune", "2"], "--fine-tune"),
    (["--image-size", "32"], "--image-size"),
    (["--dataset", "x.npz", "--image-size", "32"], "--image-size"),
])
def test_a_flag_without_effect_is_named(tmp_path, capsys, flags, idle):
    (tmp_path / "x.npz").write_bytes(b"")
    read(*flags)
    printed = capsys.readouterr()
    assert printed.err.startswith(f"Warning: {idle} has no effect with ")
    assert len(printed.err.splitlines()) == 1


def test_pictures_smaller_than_the_network_wants_get_a_warning(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    read("--dataset", "photos", "--model", "mobilenet_v2")
    assert "--image-size 96 shows" in capsys.readouterr().err
    read("--dataset", "photos", "--model", "mobilenet_v2", "--image-size", "96")
    read("--dataset", "photos")
    read("--dataset", "cifar10", "--model", "mobilenet_v2")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("changes, flags, expected", [
    (dict(DROPOUT=0), [], dict(DROPOUT=0.0)),
    (dict(DROPOUT=0), ["--dropout", "0.5"], dict(DROPOUT=0.5)),
    (dict(FILTERS=32), [], dict(FILTERS=[32])),
    (dict(FILTERS=(32,)), [], dict(FILTERS=[32])),
    (dict(FILTERS=dict(digits=8, others=[32, 64])), [], dict(FILTERS=[8])),
    (dict(PREDICT="a.png"), [], dict(PREDICT=["a.png"])),
    (dict(EPOCHS=np.int64(5), DROPOUT=np.float32(0.5)), [], dict(EPOCHS=5, DROPOUT=0.5)),
    (dict(OUTPUT_DIR=pathlib.Path("here")), [], dict(OUTPUT_DIR="here")),
    (dict(EPOCHS=dict(others=30, mnist=4)), [], dict(EPOCHS=30)),
    (dict(EPOCHS=dict(others=30, mnist=4)), ["--dataset", "mnist"], dict(EPOCHS=4)),
    (dict(EPOCHS=dict(photos=7, others=30)), ["--dataset", "photos/"], dict(EPOCHS=7)),
    (dict(EPOCHS=dict(mnist=4)), ["--epochs", "5"], dict(EPOCHS=5)),
    (dict(LEARNING_RATE=dict(sgd=0.1, adam=0.004)), [], dict(LEARNING_RATE=0.004)),
    (dict(LEARNING_RATE=dict(mnist=0.1, others=0.2)), [], dict(LEARNING_RATE=0.2)),
    (dict(OPTIMIZER=dict(digits="sgd", others="adam")), [],
     dict(OPTIMIZER="sgd", LEARNING_RATE=0.1)),
    (dict(EPOCHS="ten"), ["--epochs", "5"], dict(EPOCHS=5)),
])
def test_a_value_in_the_block_that_is_meant_well_works(
        tmp_path, monkeypatch, capsys, changes, flags, expected):
    (tmp_path / "photos").mkdir()
    for name, value in changes.items():
        monkeypatch.setattr(script, name, value)
    settings = read(*flags)
    for name, value in expected.items():
        assert settings[name] == value and type(settings[name]) is type(value)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name, value, words", [
    ("EPOCHS", "10", ["'10'", "a whole number"]), ("EPOCHS", True, ["True", "a whole number"]),
    ("EPOCHS", 3.0, ["3.0"]), ("EPOCHS", None, ["None"]), ("EPOCHS", [3], ["[3]"]),
    ("EPOCHS", np.array([3, 4]), ["array"]), ("DROPOUT", "0.2", ["a number"]),
    ("DROPOUT", True, ["True"]), ("AUGMENTATION", 1, ["True or False"]),
    ("WHITENING", "no", ["True or False"]), ("FILTERS", [], ["[]"]), ("FILTERS", [8.0], ["[8.0]"]),
    ("FILTERS", ["32"], ["one or more"]), ("DATASET", 5, ['text in "quotes"']),
    ("DATASET", dict(others="digits"), ["dict"]), ("OPTIMIZER", None, ["one of adam, sgd"]),
    ("EPOCHS", dict(mnist=4), ["digits", "others=", "--epochs"]),
    ("LEARNING_RATE", dict(sgd=0.1), ["adam=", "--learning-rate"]), ("EPOCHS", {}, ["digits"]),
    ("EPOCHS", dict(others=dict(mnist=1)), ["no value for digits", "others="]),
    ("LEARNING_RATE", dict(adam=dict(cifar10=0.1), sgd=0.1), ["no value for digits", "others="]),
])
def test_a_bad_value_in_the_block_gets_one_sentence(monkeypatch, capsys, name, value, words):
    monkeypatch.setattr(script, name, value)
    with one_sentence(capsys, name, *words):
        script.read_settings()


def test_a_value_for_an_unknown_data_set_is_named(monkeypatch, capsys):
    monkeypatch.setattr(script, "EPOCHS", dict(fashion_mnst=3, others=4))
    assert script.read_settings()["EPOCHS"] == 4
    assert "Did you mean fashion_mnist?" in capsys.readouterr().err


def test_a_setting_that_was_deleted_or_misspelt_is_named(monkeypatch, capsys):
    monkeypatch.delattr(script, "EPOCHS")
    with one_sentence(capsys, "EPOCHS = ..."):
        script.read_settings()
    monkeypatch.setattr(script, "EPOCS", 30, raising=False)
    with one_sentence(capsys, "EPOCHS", "Did you mean EPOCS?"):
        script.read_settings()


def edited(tmp_path, *changes):
    """A copy of the script, as its reader has edited it."""
    text = SCRIPT.read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = tmp_path / "edited.py"
    path.write_text(text, encoding="utf-8")
    return path


def imported(path):
    """The module of an edited copy."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("edited", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_setting_of_ones_own_in_the_block_is_named(tmp_path, capsys):
    module = imported(edited(tmp_path, ("DROPOUT = dict", "DROPUOT = 0.5  # mine\nDROPOUT = dict")))
    with one_sentence(capsys, "DROPUOT", "Did you mean DROPOUT?"):
        module.read_settings()


def test_help_lists_every_setting_with_its_meaning_also_with_a_percent_sign(
        tmp_path, monkeypatch, capsys):
    old = "# neurons of the hidden dense layer"
    path = edited(tmp_path, (old, "# 20 % of %(prog)s of %s neurons: " + old[2:]))
    module = imported(path)
    names_in_the_block = [name for name in vars(module) if name in module.setting_rules]
    assert sorted(names_in_the_block) == sorted(module.setting_rules)
    monkeypatch.setattr(module, "runs_as_program", lambda: True)
    monkeypatch.setattr(module, "prepare_program", lambda: None)
    monkeypatch.setattr(sys, "argv", ["", "--help"])
    monkeypatch.setenv("COLUMNS", "500")
    for text_is_there in (True, False):
        if not text_is_there:  # the program works without its source, but has no meanings then
            path.unlink()
        with pytest.raises(SystemExit) as ended:
            module.read_settings()
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        lines = re.findall(r"^([A-Z_]+) = .*? +# (.+)", module.settings_chapter(), re.MULTILINE)
        assert [name for name, _ in lines] == [
            name for name in names_in_the_block if text_is_there]
        for name in module.setting_rules:
            assert "--" + name.lower().replace("_", "-") in printed
        for name, meaning in lines:
            assert meaning in printed, name
        assert ("20 % of %(prog)s of %s neurons" in printed) == text_is_there
        assert ("neurons of the hidden dense layer, or 0: no such layer" in printed) == text_is_there
        assert "'mnist': 4" in printed


def test_main_again_takes_the_dicts_anew(monkeypatch):
    """As in a notebook: a setting is changed by hand, then main is called again."""
    assert script.read_settings()["EPOCHS"] == 30
    script.DATASET = "mnist"
    assert script.read_settings()["EPOCHS"] == 4 and script.FILTERS == [32, 64, 128]
    script.OPTIMIZER = "sgd"
    assert script.read_settings()["LEARNING_RATE"] == 0.1
    script.DATASET = "mnst"  # a mistake in between
    with pytest.raises(SystemExit):
        script.read_settings()
    script.DATASET = "cifar10"
    assert script.read_settings()["EPOCHS"] == 10
    script.EPOCHS = 3
    script.DATASET = "digits"
    assert script.read_settings()["EPOCHS"] == 3 and script.FILTERS == [64]
    script.EPOCHS = dict(others=9)
    assert script.read_settings()["EPOCHS"] == 9
    script.EPOCHS = 16
    assert script.read_settings()["EPOCHS"] == 16
    for epochs, expected in ((dict(digits=9, others=8), 9), (5, 5)):
        script.EPOCHS = epochs
        assert script.read_settings()["EPOCHS"] == expected
    script.DATASET, script.EPOCHS = "mnist", 9  # what the dict once gave, but written by hand now
    assert script.read_settings()["EPOCHS"] == 9


# --- where the command line counts


@pytest.mark.parametrize("own", [{}, {
    "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "KERAS_BACKEND": "jax"}])
def test_import_is_quiet_reads_no_flag_and_a_users_own_environment_wins(tmp_path, quick, own):
    """An import prints and writes nothing. (That TensorFlow is quiet, test_process.py has seen.)"""
    names = ["TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS", "KERAS_BACKEND"]
    program = f"""
import image_recognition_cnn as script
print(script.read_settings()["EPOCHS"], *[script.os.environ[name] for name in {names}])"""
    environment = {name: value for name, value in quick.items() if name not in names}
    environment.update(own)
    finished = process("-c", program, "--epochs", "many", cwd=tmp_path, env=environment)
    assert finished.stderr == "" and finished.returncode == 0
    assert finished.stdout == ("30 3 0 tensorflow\n" if own else "30 1 1 tensorflow\n")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def shell(monkeypatch):
    interactiveshell = pytest.importorskip("IPython.core.interactiveshell")
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    shell = interactiveshell.InteractiveShell.instance()
    yield shell
    shell.reset(new_session=False)
    interactiveshell.InteractiveShell.clear_instance()


def test_flags_count_under_run_in_ipython(shell, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", type(sys)("ipykernel"))  # as in Jupyter
    no_split = "--validation-split 0.999"  # ends the run with a sentence, right after the settings
    shell.run_line_magic("run", f"{SCRIPT} --epochs 7 --output-dir elsewhere {no_split}")
    printed = capsys.readouterr()
    assert "EPOCHS 7," in printed.out and "OUTPUT_DIR elsewhere," in printed.out
    assert "--validation-split" in printed.err
    shell.run_line_magic("run", f"{SCRIPT} --epochs many")
    assert "EPOCHS (--epochs) can't be 'many'" in capsys.readouterr().err


def test_flags_do_not_count_in_cells(shell, capsys):
    text = SCRIPT.read_text(encoding="utf-8")
    cells = text.split("\n# %%")
    for cell in cells[:-1]:  # the last one starts a run
        assert shell.run_cell("#" + cell if cell[0] not in '#"' else cell).success
    assert shell.run_cell("read_settings()['EPOCHS']").result == 30
    assert shell.run_cell("DATASET = 'mnist'\nread_settings()['EPOCHS']").result == 4
    machinery = next(cell for cell in cells if "setting_rules = {" in cell)
    shell.run_cell("#" + machinery)  # run again, it must not forget
    assert shell.run_cell("DATASET = 'cifar10'\nread_settings()['EPOCHS']").result == 10
    shell.run_cell("EPOCHS = 'many'\nmain()")
    printed = capsys.readouterr()
    assert "can't be 'many'" in printed.err and "Traceback" not in printed.err + printed.out
    assert shell.run_cell("script_hash()").result == "unknown"


# --- the process: streams, packages


@pytest.mark.parametrize("ends, flags, status", [
    (">&-", "--epochs 0", 2), ("2>&-", "--help", 0), (">&- 2>&-", "--epochs 0", 2)])
def test_closed_streams(tmp_path, quick, ends, flags, status):
    line = f'"{sys.executable}" "{SCRIPT}" {flags} {ends}'
    finished = subprocess.run(
        line, shell=True, capture_output=True, text=True, cwd=tmp_path, env=quick)
    assert finished.returncode == status
    assert "Traceback" not in finished.stderr
    assert ("can't be 0" in finished.stderr) == (ends == ">&-")
    assert ("--epochs" in finished.stdout) == (status == 0)


def test_output_that_nobody_reads_ends_without_a_traceback(tmp_path, quick):
    reading, writing = os.pipe()
    os.close(reading)
    finished = process(SCRIPT, capture_output=False, stdout=writing, stderr=subprocess.PIPE,
                       cwd=tmp_path, env={**quick, "PYTHONUNBUFFERED": "1"})
    os.close(writing)
    assert finished.returncode == 2 and finished.stderr == ""


def test_optimized_python_has_no_docstrings(monkeypatch, capsys):
    monkeypatch.setattr(script, "__doc__", None)  # python -OO
    with pytest.raises(SystemExit) as ended:
        read("--help")
    assert ended.value.code == 0 and "--epochs" in capsys.readouterr().out


def test_a_console_of_few_letters(tmp_path, quick):
    name = "猫 ✓"
    (tmp_path / name).mkdir()
    finished = process(SCRIPT, "--dataset", name, cwd=tmp_path,
                       env={**quick, "PYTHONIOENCODING": "ascii"})
    assert finished.returncode == 2 and len(finished.stderr.splitlines()) == 1
    assert "DATASET ? ?" in finished.stdout and "no class folders" in finished.stderr


@pytest.mark.parametrize("version, words", [
    ((3, 12, 1), ["this is 3.12.1"]),
    ((3, 14, 0), ["this is 3.14.0"]),
])
def test_missing_package_or_unfit_python_gets_one_sentence(version, words):
    text = ".".join(map(str, version))
    program = f"""
import runpy, sys
sys.version_info, sys.version = {version}, {text + " (main)"!r}
sys.modules["keras"] = None  # Python then says that there is none
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")"""
    finished = process("-c", program)
    assert finished.returncode == 1 and finished.stdout == ""
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    for word in ["image_recognition_cnn.py: the package keras is missing", "3.11 to 3.13",
                 "python3.13 -m venv .venv", "-m pip install tensorflow", *words]:
        assert word in finished.stderr


# --- the folder of results


def parts(**changes):
    """A data set as data_fingerprint takes it."""
    random = np.random.default_rng(0)
    data = {"class_names": ["cat", "dog"]}
    for part in ("train", "val", "test"):
        data[f"x_{part}"] = random.integers(0, 256, (6, 4, 4, 1)).astype("uint8")
        data[f"y_{part}"] = np.arange(6) % 2
    data.update(changes)
    return data


def test_fingerprint_changes_with_everything_and_with_nothing_else():
    original = parts()
    images = original["x_train"]
    one_pixel = images.copy()
    one_pixel[3, 2, 1, 0] ^= 1
    others = [
        parts(x_train=one_pixel), parts(x_train=images[::-1]), parts(x_train=images[:5]),
        parts(x_train=images.reshape(6, 2, 8, 1)), parts(y_val=original["y_val"][::-1]),
        parts(x_test=original["x_val"]), parts(class_names=["cat", "cow"]),
        parts(x_val=original["x_test"], x_test=original["x_val"]),
        parts(x_test=np.zeros((0, 4, 4, 1), "uint8"), y_test=np.zeros(0, int)),
    ]
    prints = [script.data_fingerprint(**data) for data in [original, *others]]
    assert len(set(prints)) == len(prints)
    turned = np.asfortranarray(images)  # the same numbers, in another order in memory
    assert script.data_fingerprint(**parts(x_train=turned)) == prints[0]


def open_folder(*flags, fingerprint="f"):
    restart()
    return script.open_results_folder(read(*flags), fingerprint)


def save_model(folder, about):
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "model.keras", "w") as file:
        file.writestr("class_names.json", "[]")
        if about is not None:
            file.writestr("about.json", json.dumps(about))


def test_results_take_their_place_and_a_users_files_stay(tmp_path):
    results = tmp_path / "outputs" / "digits"
    results.mkdir(parents=True)
    for name in ("my notes.txt", "predictions.png", "metrics.json"):
        (results / name).write_text("old")
    folder = open_folder()
    assert folder.resolve() == tmp_path / "outputs" / "digits.unfinished"
    (folder / "metrics.json").write_text("new")
    (folder / "labels").write_text("new")
    assert (results / "metrics.json").read_text() == "old"
    assert script.publish_results(folder).resolve() == results
    assert {path.name: path.read_text() for path in results.iterdir()} == {
        "my notes.txt": "old", "metrics.json": "new", "labels": "new"}
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["digits"]


def test_a_name_with_dots_keeps_them(tmp_path):
    (tmp_path / "my.data.v2").mkdir()
    folder = open_folder("--dataset", "my.data.v2")
    assert script.publish_results(folder) == pathlib.Path("outputs", "my.data.v2")


def test_a_result_that_cannot_take_its_place_is_not_lost(tmp_path, capsys):
    (tmp_path / "outputs" / "digits" / "metrics.json").mkdir(parents=True)
    folder = open_folder()
    (folder / "metrics.json").write_text("new")
    (folder / "history.csv").write_text("of all epochs")
    with one_sentence(capsys, "metrics.json", "--resume"):
        script.publish_results(folder)
    assert (folder / "history.csv").exists(), "--resume needs it"
    (tmp_path / "outputs" / "digits" / "metrics.json").rmdir()
    script.publish_results(open_folder("--resume"))
    assert (tmp_path / "outputs" / "digits" / "metrics.json").read_text() == "new"


def test_a_new_run_starts_in_an_empty_folder(tmp_path):
    folder = open_folder()
    (folder / "history.csv").write_text("of a run that was cut off")
    (folder / "resume" / "last").mkdir()
    folder = open_folder("--resume")
    assert (folder / "history.csv").exists() and (folder / "resume" / "last").exists()
    folder = open_folder()
    assert sorted(path.name for path in folder.rglob("*")) == ["lock", "resume", "settings.json"]


@pytest.mark.parametrize("place", ["a_file", "a_file/below", "full"])
def test_an_output_dir_that_cannot_be_written(tmp_path, capsys, place):
    (tmp_path / "a_file").write_text("not a folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "digits").write_text("not a folder")
    with one_sentence(capsys, f"--output-dir) {place}"):
        open_folder("--output-dir", place)


@pytest.mark.parametrize("first, second", [
    ("a/images", "b/images"), ("x.npz", "x"), ("x", "x.npz")])
def test_results_of_another_data_set_are_not_replaced(tmp_path, capsys, first, second):
    for path in ("a/images", "b/images", "x"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "x.npz").write_bytes(b"")
    title = pathlib.Path(first).stem
    results = tmp_path / "outputs" / title
    save_model(results, {"dataset": str(tmp_path / first)})
    with one_sentence(capsys, "--output-dir", str(tmp_path / first)):
        open_folder("--dataset", second)
    assert not (tmp_path / "outputs" / f"{title}.unfinished").exists()
    open_folder("--dataset", second, "--output-dir", "elsewhere")
    open_folder("--dataset", f"./{first}")
    for about in (None, {}):  # a model of an older script doesn't say what it was trained on
        save_model(results, about)
        open_folder("--dataset", second)
    (results / "model.keras").write_text("no zip file")
    open_folder("--dataset", second)


def test_resume_takes_the_same_settings_only(tmp_path, capsys):
    with one_sentence(capsys, "--resume", "outputs"):
        open_folder("--resume")
    assert not (tmp_path / "outputs").exists()
    open_folder("--epochs", 5)
    with one_sentence(capsys, "EPOCHS was 5", "OPTIMIZER was adam", "LEARNING_RATE was 0.004"):
        open_folder("--resume", "--epochs", 6, "--optimizer", "sgd")
    open_folder("--resume", "--epochs", 5, "--filters", 64, "--dropout", "0.20")
    open_folder("--resume", "--epochs", 5, "--output-dir", str(tmp_path / "outputs"))
    assert capsys.readouterr().err == ""
    (tmp_path / "outputs/digits.unfinished/resume/settings.json").write_text('{"settings": ')
    with one_sentence(capsys, "nothing to --resume"):
        open_folder("--resume", "--epochs", 5)


def test_resume_takes_the_same_data_only(tmp_path, capsys):
    (tmp_path / "a" / "images").mkdir(parents=True)
    (tmp_path / "b" / "images").mkdir(parents=True)
    open_folder("--dataset", "a/images", fingerprint="one")
    with one_sentence(capsys, "--resume", "data", "changed"):
        open_folder("--dataset", "a/images", "--resume", fingerprint="other")
    with one_sentence(capsys, f"DATASET was {tmp_path / 'a' / 'images'}"):
        open_folder("--dataset", "b/images", "--resume", fingerprint="one")
    open_folder("--dataset", "./a/images/", "--resume", fingerprint="one")
    assert capsys.readouterr().err == ""


def test_resume_with_an_edited_script_goes_on_and_says_so(monkeypatch, capsys):
    open_folder()
    monkeypatch.setattr(script, "script_hash", lambda: "01234567")
    open_folder("--resume")
    assert "the script was changed" in capsys.readouterr().err


RUN = """
import sys, image_recognition_cnn as script
script.open_results_folder(script.read_settings(), "f")
print("started", flush=True)
sys.stdin.readline()
"""


def test_a_second_run_stops_and_a_killed_one_does_not_block(tmp_path, quick, capsys):
    first = subprocess.Popen([sys.executable, "-c", RUN], cwd=tmp_path, env=quick, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == "started\n"
        kept = tmp_path / "outputs" / "digits.unfinished" / "history.csv"
        kept.write_text("of the first run")
        for flags in ([], ["--resume"]):
            with one_sentence(capsys, "another run is going on", "--output-dir"):
                open_folder(*flags)
        assert kept.exists()
        open_folder("--dataset", "mnist")
        open_folder("--output-dir", "elsewhere")
    finally:
        first.kill()
        first.communicate()
    open_folder("--resume")
    assert kept.exists()
    open_folder()
    assert not kept.exists()
    script.open_results_folder(script.read_settings(), "f")  # a notebook, after a run that stopped


# --- the table of experiments


def found(accuracy=0.95, images=1000, **more):
    return {"validation_accuracy": accuracy, "validation_images": images, "test_loss": 0.25, **more}


def record(*flags, **results):
    restart()
    data = results.pop("data", "unknown")
    script.record_experiment(read(*flags), found(**results), data)


def table(name="experiments.csv"):
    path = pathlib.Path("outputs", name)
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else None


@pytest.fixture
def outputs(tmp_path):
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


def test_wilson_interval_and_two_proportions():
    """Figures from elsewhere: Newcombe (1998, table I), and Fisher's lady tasting tea (1935)."""
    assert script.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert script.wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert script.wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert script.wilson_interval(144, 144)[1] == 1
    assert script.is_within_chance(3, 4, 1, 4)  # p = 0.486
    assert not script.is_within_chance(4, 4, 0, 4)  # p = 0.029
    assert script.is_within_chance(144, 144, 144, 144)
    assert script.is_within_chance(950, 1000, 940, 1000)
    assert not script.is_within_chance(950, 1000, 920, 1000)


def test_comparisons_name_the_difference_and_say_if_it_is_chance(outputs, capsys):
    record(accuracy=0.95)
    assert capsys.readouterr().out.splitlines() == [
        "Validation accuracy 95.0% of 1000 images (95% interval: 93.5% to 96.2%)"]
    record(accuracy=0.95)
    first, last = capsys.readouterr().out.splitlines()
    assert last == "The last run, the best before this one, had 95.0%: the same. Changed: nothing"
    record("--dropout", 0.5, accuracy=0.92)
    last = capsys.readouterr().out.splitlines()[1]
    assert "had 95.0%: a difference that is more than chance. Changed: DROPOUT 0.2 -> 0.5" in last
    record("--dropout", 0.5, "--epochs", 3, accuracy=0.925, images=144)
    _, last, best = capsys.readouterr().out.splitlines()
    assert last == "The last run had 92.0%: a difference within chance. Changed: EPOCHS 30 -> 3"
    assert best == ("The best run had 95.0%: a difference within chance. "
                    "Changed: DROPOUT 0.2 -> 0.5, EPOCHS 30 -> 3")
    record("--dataset", "mnist")
    assert len(capsys.readouterr().out.splitlines()) == 1, "another data set"
    rows = table()
    assert list(rows["validation_accuracy"]) == ["0.95", "0.95", "0.92", "0.925", "0.95"]
    assert list(rows.columns[:3]) == ["time", "script", "DATASET"]
    assert list(rows["FILTERS"]) == ["[64]"] * 4 + ["[32, 64, 128]"]
    assert not {"OUTPUT_DIR", "RESUME", "PREDICT"} & set(rows.columns)
    assert [path.name for path in outputs.iterdir()] == ["experiments.csv"]


def test_the_same_data_set_by_another_path_is_compared(tmp_path, outputs, capsys):
    for path in ("a/images", "b/images"):
        (tmp_path / path).mkdir(parents=True)
    for path, lines in (("a/images", 1), ("./a/images/", 2), ("b/images", 1)):
        record("--dataset", path)
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == lines and ("Changed: nothing" in printed[-1]) == (lines == 2)


def test_changed_nothing_is_true(outputs, monkeypatch, capsys):
    """An edit of the script and other images are named, as no setting tells them."""
    def change_after(**results):
        capsys.readouterr()
        record(**results)
        return capsys.readouterr().out.splitlines()[1].partition("Changed: ")[2]

    record(data="one")
    assert change_after(data="one") == "nothing"
    assert change_after(data="two") == "the images"
    assert change_after(data="two", epochs_trained=30) == "nothing"
    assert change_after(data="two", epochs_trained=7) == "epochs trained 30 -> 7"
    monkeypatch.setattr(script, "script_hash", lambda: "01234567")
    assert change_after(data="two") == "the script itself"
    monkeypatch.setattr(script, "script_hash", lambda: "unknown")
    assert change_after(data="two").startswith("perhaps the script itself")
    assert change_after(data="two").startswith("perhaps the script itself")


def test_script_hash_is_of_the_code_and_not_of_the_settings(tmp_path):
    original = script.script_hash()
    assert len(original) == 8 and original != "unknown"
    path = edited(tmp_path, ("SHIFT = dict(digits=1, others=2)", "SHIFT = 3"))
    assert imported(path).script_hash() == original
    path = edited(tmp_path, ("return float(interval.low)", "return float(interval.low) + 0"))
    module = imported(path)
    assert module.script_hash() not in (original, "unknown")
    path.unlink()
    assert module.script_hash() == "unknown"


OLD = """time,DATASET,DROPOUT,EPOCHS,MOMENTUM,FILTERS,AUGMENTATION,validation_accuracy,test_accuracy
2024-01-01 10:00:00,digits,0.20,30,0.9,[64],TRUE,0.9,0.8
2024-01-02 10:00:00,digits,0.5,30,,[64],TRUE,none,0.8
"""


def test_a_table_of_an_older_script_is_kept_and_filled(outputs, capsys):
    (outputs / "experiments.csv").write_text("\ufeff" + OLD, encoding="utf-8")  # as Excel saves it
    record("--dropout", 0.2)
    rows = table()
    assert list(rows["MOMENTUM"]) == ["0.9", "", "unknown"]
    assert list(rows["SEED"]) == ["unknown", "unknown", "0"]
    assert list(rows["test_accuracy"]) == ["0.8", "0.8", "unknown"]
    printed = capsys.readouterr().out.splitlines()[1]
    assert "had 90.0%: on an unknown number of images" in printed
    assert "SEED unknown -> 0" in printed and "perhaps the script itself" in printed
    for same in ("DROPOUT", "EPOCHS", "AUGMENTATION", "FILTERS"):
        assert same not in printed


def replace_unless_open(source, target):
    """Windows does so with a file that Excel has open."""
    if target.name == "experiments.csv":
        raise PermissionError(13, "Permission denied", str(target))
    os.replace(source, target)


def test_a_table_that_is_open_elsewhere_loses_nothing(outputs, monkeypatch, capsys):
    record(accuracy=0.91)
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", replace_unless_open)
        for accuracy, before in ((0.92, "91.0%"), (0.93, "92.0%")):
            capsys.readouterr()
            record(accuracy=accuracy, note="ü")
            printed = capsys.readouterr()
            assert len(printed.err.splitlines()) == 1 and "experiments_waiting.csv" in printed.err
            assert f"had {before}" in printed.out
            assert not list(outputs.glob("*.new"))
    assert list(table()["validation_accuracy"]) == ["0.91"]
    assert list(table("experiments_waiting.csv")["validation_accuracy"]) == ["0.92", "0.93"]
    record(accuracy=0.94)
    assert list(table()["validation_accuracy"]) == ["0.91", "0.92", "0.93", "0.94"]
    assert list(table()["note"]) == ["unknown", "ü", "ü", "unknown"]
    assert [path.name for path in outputs.iterdir()] == ["experiments.csv"]


@pytest.mark.parametrize("content", [
    b"", b"a;b;c\n1;2;3\n", b"DATASET,validation_accuracy\n\xff\xfe,1\n", "folder",
    b'DATASET,validation_accuracy\na,"b', b"DATASET,validation_accuracy\n1,2\n1,2,3,4,5\n"])
def test_a_table_that_cannot_be_read_stays_and_the_row_waits(outputs, capsys, content):
    if content == "folder":
        (outputs / "experiments.csv").mkdir()
    else:
        (outputs / "experiments.csv").write_bytes(content)
    record(accuracy=0.9)
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and "experiments_waiting.csv" in printed
    assert list(table("experiments_waiting.csv")["validation_accuracy"]) == ["0.9"]
    if content != "folder":
        assert (outputs / "experiments.csv").read_bytes() == content


def test_a_waiting_row_is_added_once(outputs, capsys, monkeypatch):
    (outputs / "experiments.csv").mkdir()
    record(accuracy=0.9)
    (outputs / "experiments.csv").rmdir()
    write_table = script.write_table

    def write_no_waiting_table(path, rows):  # it is open in Excel
        if path.name == "experiments_waiting.csv":
            raise PermissionError("in use")
        write_table(path, rows)

    monkeypatch.setattr(script, "write_table", write_no_waiting_table)
    record(accuracy=0.8)
    assert table() is None and "metrics.json" in capsys.readouterr().err
    monkeypatch.setattr(script, "write_table", write_table)
    record(accuracy=0.7)
    assert list(table()["validation_accuracy"]) == ["0.9", "0.7"]
    assert table("experiments_waiting.csv") is None


def test_rows_that_can_be_written_nowhere_are_named(outputs, capsys):
    for name in ("experiments.csv", "experiments_waiting.csv"):
        (outputs / name).mkdir()
    record()
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and "metrics.json" in printed
