"""Chapter 10, whole runs and the text of the script: settings, the results folder, a notebook."""

import ast
import json
import pathlib
import re
import runpy
import signal
import subprocess
import sys

import pandas as pd
import pytest

import image_recognition_cnn as script
from helpers import SCRIPT, assert_complete, contents, one_sentence, process

TEXT = SCRIPT.read_text(encoding="utf-8")


@pytest.mark.parametrize("flags, written, expected", [
    ("", {}, dict(DATASET="digits", EPOCHS=30, SHIFT=1, MIRROR=False, LEARNING_RATE=0.004)),
    ("--dataset cifar10", {}, dict(LEARNING_RATE=0.008, WEIGHT_DECAY=0.25, MIRROR=True)),
    ("--dataset cifar10 --optimizer sgd", {}, dict(LEARNING_RATE=0.1, WEIGHT_DECAY=0.01)),
    ("--model vgg16", {}, dict(IMAGE_SIZE=96, LEARNING_RATE=0.002, WEIGHT_DECAY=5.0)),
    ("--model vgg16 --optimizer sgd", {}, dict(LEARNING_RATE=0.1, WEIGHT_DECAY=0.01)),
    ("--filters 8 16 --epochs 7 --no-whitening --predict a b", dict(EPOCHS=5, DROPOUT=0),
     dict(FILTERS=[8, 16], EPOCHS=7, WHITENING=False, PREDICT=["a", "b"], DROPOUT=0.0)),
    ("", dict(FILTERS=32, EPOCHS=dict(others=5, digits=4)), dict(FILTERS=[32], EPOCHS=4)),
    ("--dataset a/pets/", dict(EPOCHS=dict(pets=7, others=3)), dict(EPOCHS=7, DATASET="a/pets/")),
    ("--dataset a/mnist", {}, dict(EPOCHS=30)), ("--dataset a/sgd", {}, dict(LEARNING_RATE=0.004)),
    ("--optimizer sgd", dict(EPOCHS=dict(digits=3, sgd=4)), dict(EPOCHS=4))])
def test_flags_and_the_most_special_case_decide(settings, capsys, flags, written, expected):
    before = {name: getattr(script, name) for name in script.RULES}
    found = vars(settings(flags, **written))
    assert list(found) == list(script.RULES) and capsys.readouterr().err == ""
    for name, value in expected.items():
        assert found[name] == value and type(found[name]) is type(value)
    assert all(getattr(script, name) is value for name, value in before.items())


@pytest.mark.parametrize("wrong", [
    "--epochs 0", "--epochs many", "--epoch 3", "--filters 8,8", "--filters 8 0", "--dropout 1",
    "--learning-rate nan", "--validation-split 1", "--seed -1", "--optimizer adamw", "--predict",
    "--whitening yes", "nonsense", "--image-size 7", "--dataset cats",
    "--dataset missing.npz", dict(EPOCHS="10"), dict(EPOCHS=3.0), dict(EPOCHS=None),
    dict(EPOCHS={}), dict(DROPOUT=True), dict(WHITENING=1), dict(FILTERS=[8.0]), dict(DATASET=5),
    dict(EPOCHS=dict(mnist=4)), dict(LEARNING_RATE=dict(sgd=0.1)), dict(OPTIMIZER=None),
    dict(EPOCHS=[3, 4]), dict(EPOCHS=[]), dict(OPTIMIZER=dict(others="sgd")),
    dict(DATASET=dict(others="digits"))], ids=str)
def test_a_wrong_value_gets_one_sentence(settings, capsys, wrong):
    with pytest.raises(SystemExit) as ended:
        found = settings(wrong) if isinstance(wrong, str) else settings(**wrong)
        script.load_data(found)  # looks for the data set
    *usage, said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and said.startswith("image_recognition_cnn.py: ")
    assert usage == [] or len(usage) == 1 and usage[0].startswith("usage: ")
    words = wrong.split() if isinstance(wrong, str) else list(wrong)
    assert words[0] in said or words[-1] in said


def test_a_setting_without_a_comment_works(tmp_path):
    changed = tmp_path / SCRIPT.name
    changed.write_text(re.sub(r"^EPOCHS = .*", "EPOCHS = 1", TEXT, flags=re.MULTILINE), "utf-8")
    run = subprocess.run([sys.executable, changed, "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and "(now: 1)" in run.stdout


def test_the_block_the_rules_and_the_help_name_the_same_settings(settings, capsys, monkeypatch):
    chapter = TEXT[TEXT.index("# %% Settings"):TEXT.index("# %% The story")]
    lines = re.findall(r"^([A-Z_]+) = .+  # (.+)$", chapter, re.MULTILINE)
    assert [name for name, _ in lines] == list(script.RULES)
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        settings("--help")
    printed = capsys.readouterr().out
    for name, meaning in lines:
        assert "--" + name.lower().replace("_", "-") in printed and meaning in printed


def test_a_complete_run_as_a_user_starts_it(tmp_path):
    finished = process(tmp_path, "--epochs", 2, "--filters", 8, "--seed", 5)
    assert finished.returncode == 0
    assert not re.search("Traceback|Warning", finished.stderr), finished.stderr
    found = assert_complete(tmp_path / "outputs" / "digits", epochs=2)
    assert found["settings"]["SEED"] == 5 and found["test_accuracy"] > 0.7
    for words in ("Total params", "logistic regression", "macro avg", "95 % interval"):
        assert words in finished.stdout, words
    assert (tmp_path / "outputs" / "experiments.csv").exists()


def test_a_run_that_fails_changes_nothing_and_resumes_without_training(
        run, no_pictures, monkeypatch, tmp_path):
    results = tmp_path / "outputs" / "digits"
    results.mkdir(parents=True)
    for name in ("my notes.txt", "history.csv", "predictions.png"):
        (results / name).write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(script, "report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(EPOCHS=1, FILTERS=[8])
    assert list(contents(results).values()) == [b"old"] * 3
    [unfinished] = results.parent.glob("digits.unfinished_*")
    trained = (unfinished / "history.csv").read_bytes()
    run(EPOCHS=1, FILTERS=[8], RESUME=True)
    assert (results / "history.csv").read_bytes() == trained and not unfinished.exists()
    assert (results / "my notes.txt").read_text() == "old", "a user's own file"
    assert not (results / "predictions.png").exists(), "by a network that is gone"


def test_results_of_another_data_set_of_the_same_name_stay(settings, tmp_path, capsys):
    owner = tmp_path / "outputs" / "pets" / "model.json"
    owner.parent.mkdir(parents=True)
    owner.write_text(json.dumps({"dataset": str(tmp_path / "a" / "pets")}))
    with one_sentence(capsys, str(tmp_path / "a" / "pets"), "--output-dir"):
        script.open_results_folder(settings(DATASET="b/pets"), "x")
    script.open_results_folder(settings(DATASET="./a/pets/"), "x")


@pytest.mark.parametrize("batch", [5, 60])
def test_ctrl_c_gives_results_but_in_the_first_epoch_of_40_batches(
        run, no_pictures, monkeypatch, tmp_path, capsys, batch):
    left = iter(range(batch, -1, -1))
    monkeypatch.setattr(script.callbacks.TerminateOnNaN, "on_batch_end", lambda *_, **__:
                        next(left) or signal.default_int_handler(signal.SIGINT, None))
    if batch == 60:
        _, history, _ = run(EPOCHS=3, FILTERS=[8])
        assert len(history) == 1 and (tmp_path / "outputs" / "digits" / "metrics.json").exists()
    else:
        with one_sentence(capsys, "Ctrl-C in the first epoch"):
            run(EPOCHS=3, FILTERS=[8])
        assert contents(tmp_path / "outputs") == {}


def test_a_killed_run_resumes(run, no_pictures, tmp_path, capsys):
    running = subprocess.Popen([sys.executable, SCRIPT, "--epochs", "4", "--filters", "8"],
                               cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    for line in running.stdout:
        if line.startswith("Epoch 3/"):
            running.kill()
    assert running.wait() == -signal.SIGKILL
    [table] = tmp_path.glob("outputs/digits.unfinished_*/history.csv")
    rows = table.read_text()
    table.write_text(rows + rows.splitlines()[-1].replace("1,", "2,", 1) + "\n")  # no checkpoint
    with one_sentence(capsys, "--resume", "no unfinished run in outputs with these settings"):
        run(RESUME=True, EPOCHS=5, FILTERS=[8])
    _, resumed, _ = run(RESUME=True, EPOCHS=4, FILTERS=[8])
    assert not re.search("Epoch [12]/", capsys.readouterr().out) and len(resumed) == 4
    assert resumed["loss"].is_monotonic_decreasing, "it goes on where it was"
    _, uncut, _ = run(EPOCHS=4, FILTERS=[8])
    assert set(uncut) == set(
        "epoch accuracy loss val_accuracy val_loss learning_rate seconds".split())
    assert resumed["learning_rate"].equals(uncut["learning_rate"])
    assert resumed["loss"][:2].equals(uncut["loss"][:2]), "the same seed, other numbers"
    _, other, _ = run(EPOCHS=1, FILTERS=[8], SEED=1)
    assert other["loss"][0] != uncut["loss"][0], "another seed, the same numbers"


def test_an_output_dir_that_cannot_be_written_is_one_sentence(settings, monkeypatch, capsys):
    open("a_file", "w").close()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output-dir", "a_file"])
    with one_sentence(capsys, "a_file", "may you write there"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def record(capsys, found, accuracy, data_hash="x"):
    """Record a run that is made up; return the head of the printed table, and words of its rows."""
    capsys.readouterr()
    metrics = {"validation_accuracy": accuracy, "validation_images": 1000}
    script.record_experiment(found, metrics, data_hash)
    _, head, *rows = capsys.readouterr().out.splitlines()
    return head.split("validation")[0].split(), *(line.split()[2:] for line in rows)  # no time


def test_each_run_is_a_row_and_is_compared_with_the_last_and_the_best(settings, capsys):
    found = settings()
    table = pathlib.Path("outputs", "experiments.csv")
    table.parent.mkdir()
    head, only = record(capsys, found, 0.95)
    assert head == ["TIME"] and only == ["95.0%", "93.5%", "to", "96.2%", "best"]
    head, first, second = record(capsys, settings(SEED=1), 0.94)
    assert head == ["TIME", "SEED"] and first[:2] == ["0", "95.0%"]
    assert second == ["1", "94.0%", "92.4%", "to", "95.3%"]
    for _ in range(3):
        head, best, *_, last = record(capsys, settings(DROPOUT=0.5, SEED=1), 0.92)
    assert head == ["TIME", "DROPOUT", "SEED"] and last[:3] == ["0.5", "1", "92.0%"]
    assert best[:3] == ["0.2", "0", "95.0%"] and best[-1] == "best", "not among the last three"
    assert len(record(capsys, found, 0.9, "y")) == 2, "on other images"
    assert list(pd.read_csv(table)["validation_accuracy"]) == [0.95, 0.94, 0.92, 0.92, 0.92, 0.9]


@pytest.mark.parametrize("content", [
    b"", b"a;b\n1;2\n", b"a\n\xff,1\n", b'a\n1,"', b"a\n1\n2,3\n", b'"TIME,DATA,validation_accuracy"\n'])
def test_what_another_program_made_of_the_table_is_set_aside(settings, capsys, content):
    table = pathlib.Path("outputs", "experiments.csv")
    table.parent.mkdir()
    table.write_bytes(content)
    record(capsys, settings(), 0.9)
    [aside] = table.parent.glob("experiments_set_aside_*.csv")
    assert aside.read_bytes() == content
    assert list(pd.read_csv(table)["validation_accuracy"]) == [0.9]


def test_a_table_with_other_columns_or_an_edited_row_keeps_all_rows(settings, capsys):
    table = pathlib.Path("outputs", "experiments.csv")
    table.parent.mkdir()
    record(capsys, settings(), 0.9)
    edited = pd.read_csv(table, dtype=str).drop(columns="SEED").assign(NEW="mine")
    edited.loc[1] = {"TIME": "x", "DATA": "x", "validation_accuracy": ""}
    table.write_text(edited.to_csv(index=False).rstrip("\n"))  # no line break at the end
    record(capsys, settings(SEED=3), 0.8)
    rows = pd.read_csv(table)
    assert list(rows["NEW"].fillna("")) == ["mine", "", ""] and rows["SEED"].iloc[-1] == 3
    assert list(rows["validation_accuracy"].fillna(0)) == [0.9, 0, 0.8]


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


def test_short_lines_and_functions_without_riddles():
    tree = ast.parse(TEXT)
    assert [line for line in TEXT.splitlines() if len(line) > 100] == []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            assert ast.get_docstring(node), node.name
            assert node.end_lineno - node.lineno < 45 or node.name == "main", node.name
    for node in ast.walk(tree):
        inside = [type(part).__name__ for part in ast.walk(node)]
        loops = inside.count("comprehension") if hasattr(node, "generators") else 1
        calls = inside.count("Call") if isinstance(node, ast.Lambda) else 1
        assert not isinstance(node, (ast.NamedExpr, ast.ClassDef)), node.lineno
        assert loops == 1 and calls <= 1, node.lineno


def test_chapters_are_numbered_and_use_what_stands_before():
    chapter = {}  # of each function
    number = 0
    for head, name in re.findall(r"^# %% (\d+)\. |^def (\w+)", TEXT, re.MULTILINE):
        assert not head or int(head) == number + 1
        number = int(head or number)
        chapter[name] = number
    early = {"stop", "data_title", "load_own_data", "warn_of_copies", "from_keras",
             "augmentation_layers", "restore_weights", "after_each_epoch", "read_history"}  # what a chapter may use of later ones
    for node in ast.parse(TEXT).body:
        if isinstance(node, ast.FunctionDef) and 1 <= chapter[node.name] <= 7:
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            later = {name for name in names if chapter.get(name, 0) > chapter[node.name]}
            assert later <= early, node.name
