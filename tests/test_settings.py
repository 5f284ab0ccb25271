"""Chapter 11: settings and flags; and the form of the script's text."""

import ast
import json
import pathlib
import re

import pytest

import image_recognition_cnn as script
from helpers import SCRIPT, one_sentence

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
    ("", dict(FILTERS=(8, 16)), dict(FILTERS=[8, 16])),
    ("--dataset a/pets/", dict(EPOCHS=dict(pets=7, others=3)), dict(EPOCHS=7, DATASET="a/pets/")),
    ("--dataset a/mnist", {}, dict(EPOCHS=30)), ("--dataset a/sgd", {}, dict(LEARNING_RATE=0.004)),
    ("--dataset a/pretrained", {}, dict(IMAGE_SIZE=64)),
    ("--dataset a/adam", dict(EPOCHS=dict(pets=7, others=3)), dict(EPOCHS=3)),
    ("--dataset a/vgg16", dict(EPOCHS=dict(vgg16=7, others=3)), dict(EPOCHS=3)),
    ("--optimizer sgd", dict(EPOCHS=dict(digits=3, sgd=4)), dict(EPOCHS=4)),
    ("", dict(EPOCHS=dict(digits=3, cnn=4, adam=5)), dict(EPOCHS=5)),
    ("", dict(EPOCHS=dict(digits=3, pretrained=4, cnn=5)), dict(EPOCHS=5)),
    ("--model vgg16", dict(EPOCHS=dict(pretrained=3, vgg16=4, cnn=5)), dict(EPOCHS=4)),
    ("--filters 8 --filters 16 --predict a --predict b c", {},
     dict(FILTERS=[16], PREDICT=["a", "b", "c"])),  # pictures add up; of others, the last counts
    ("--model vgg16", dict(EPOCHS=dict(digits=3, pretrained=4)), dict(EPOCHS=4))])
def test_flags_and_the_most_special_case_decide(settings, capsys, flags, written, expected):
    found = vars(settings(flags, **written))
    assert list(found) == list(script.RULES) and capsys.readouterr().err == ""
    for name, value in expected.items():
        assert found[name] == value and type(found[name]) is type(value)


@pytest.mark.parametrize("flags, useless", [
    ("--fine-tune 3", ["FINE_TUNE"]), ("--dataset a/pets --fine-tune 3", ["FINE_TUNE"]),
    ("--image-size 32 --epochs 3", ["IMAGE_SIZE"]), ("--dataset a/pets --image-size 32", []),
    ("--dataset a.NPZ --image-size 32", ["IMAGE_SIZE"]), ("--shift 3", []),
    ("--model vgg16 --shift 3", ["SHIFT"]), ("--image-size 32 --predict a.jpg", []),
    ("--model vgg16 --image-size 32 --fine-tune 3 --dropout 0.1 --shift 3", []),
    ("--model vgg16 --filters 8 --no-whitening --no-batch-normalization --no-identity-start "
     "--dense-units 9", script.OF_THE_CNN)])
def test_a_flag_that_has_no_effect_is_named(settings, capsys, flags, useless):
    settings(flags)
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said] == useless
    assert all(line.startswith("Warning: ") and "has no effect" in line for line in said)


def test_reading_the_settings_leaves_the_block_as_it_is(settings):
    before = {name: getattr(script, name) for name in script.RULES}
    found = settings("--epochs 3 --dataset mnist")
    found.FILTERS.append(7)
    found.PREDICT.append("a picture")
    assert all(getattr(script, name) is value for name, value in before.items())
    assert settings().FILTERS == [64] and settings().PREDICT == []


@pytest.mark.parametrize("wrong", [
    "--epochs 0", "--epochs many", "--epoch 3", "--filters 8,8", "--filters 8 0", "--dropout 1",
    "--learning-rate nan", "--validation-split 1", "--seed -1", "--optimizer adamw", "--predict",
    "--whitening yes", "nonsense", "--image-size 7", "--dataset cats",
    "--dataset missing.npz", dict(EPOCHS="10"), dict(EPOCHS=3.0), dict(EPOCHS=None),
    dict(EPOCHS={}), dict(DROPOUT=True), dict(WHITENING=1), dict(FILTERS=[8.0]), dict(DATASET=5),
    dict(EPOCHS=dict(mnist=4)), dict(LEARNING_RATE=dict(sgd=0.1)), dict(OPTIMIZER=None),
    dict(EPOCHS=[3, 4]), dict(EPOCHS=[]), dict(FILTERS=[]), dict(OPTIMIZER=dict(others="sgd")),
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


WITH_LIMITS = [name for name, (kind, *limits) in script.RULES.items() if limits and kind is not str]


@pytest.mark.parametrize("name", WITH_LIMITS)
def test_the_limits_are_allowed_and_what_lies_beyond_is_not(settings, capsys, name):
    kind, lowest, highest = script.RULES[name]
    for value in (lowest, highest):
        found = getattr(settings(**{name: value}), name)
        assert found in (value, [value])
    beyond = 1 if kind is int else 1e-9
    written = "0.000001" if name == "LEARNING_RATE" else lowest  # not 1e-06
    for value in (lowest - beyond, highest + beyond):
        with one_sentence(capsys, name, str(value), f"from {written} to {highest}"):
            settings(**{name: value})


@pytest.mark.parametrize("written, words", [
    (dict(EPOCHS="x"), ["EPOCHS can't be 'x'", "a whole number from 1 to 100000"]),
    (dict(DROPOUT="x"), ["DROPOUT", "a number from 0 to 0.99"]),
    (dict(MIRROR="x"), ["MIRROR", "True or False"]),
    (dict(OUTPUT_DIR=3), ["OUTPUT_DIR", "a string"]),
    (dict(SCHEDULE="x"), ["SCHEDULE", "cosine or constant"]),
    (dict(EPOCHS=dict(mnist=4)), ["EPOCHS has no value for digits", "others="])], ids=str)
def test_the_sentence_says_what_a_setting_takes(settings, capsys, written, words):
    with one_sentence(capsys, *words):
        settings(**written)


def test_a_setting_without_a_comment_works(settings, monkeypatch, capsys, tmp_path):
    changed = tmp_path / SCRIPT.name
    changed.write_text(re.sub(r"^EPOCHS = .*", "EPOCHS = 1", TEXT, flags=re.MULTILINE), "utf-8")
    monkeypatch.setattr(script, "__file__", str(changed))
    with pytest.raises(SystemExit):
        settings("--help")
    assert "(now: 1)" in capsys.readouterr().out


def test_the_block_the_rules_and_the_help_name_the_same_settings(settings, capsys, monkeypatch):
    chapter = TEXT[TEXT.index("# %% Settings"):TEXT.index("# %% The story")]
    lines = re.findall(r"^([A-Z_]+) = (.+)  # (.+)$", chapter, re.MULTILINE)
    assert [name for name, _, _ in lines] == list(script.RULES)
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        settings("--help")
    printed = capsys.readouterr().out
    for name, value, meaning in lines:
        assert "--" + name.lower().replace("_", "-") in printed
        assert f"{meaning} (now: {value})" in printed


def test_titles_and_names_of_data_sets(settings, tmp_path):
    titles = {"digits": "digits", "my/pets/": "pets", "my/last.npz": "last", "A.NPZ": "A",
              "my/v1.2": "v1.2", ".": tmp_path.name}
    assert {dataset: script.data_title(dataset) for dataset in titles} == titles
    assert script.full_name("digits") == "digits"
    assert script.full_name("my/pets/") == str(tmp_path / "my/pets")


def test_the_first_few_names_are_five():
    assert script.first_few([]) == "none"
    assert script.first_few(list("abcde")) == "5 (a, b, c, d, e)"
    assert script.first_few(list("abcdef")) == "6 (a, b, c, d, e ...)"
    assert script.first_few(["caf\udce9", pathlib.Path("猫")]) == "2 (caf\\udce9, 猫)"


def test_a_warning_is_one_line_and_the_program_goes_on(capsys):
    script.warn("two\n  lines")
    assert capsys.readouterr().err == "Warning: two lines\n"


def test_results_of_another_data_set_of_the_same_name_stay(settings, tmp_path, capsys):
    owner = tmp_path / "outputs" / "pets" / "model.json"
    owner.parent.mkdir(parents=True)
    owner.write_text(json.dumps({"dataset": str(tmp_path / "a" / "pets")}))
    with one_sentence(capsys, str(tmp_path / "a" / "pets"), "--output-dir"):
        script.results_folder(settings(DATASET="b/pets"))
    assert script.results_folder(settings(DATASET="./a/pets/")) == pathlib.Path("outputs/pets")
    owner.write_text("broken")
    assert script.results_folder(settings(DATASET="b/pets")) == pathlib.Path("outputs/pets")


# The form of the text: what a linter does not know


def functions():
    return [node for node in ast.parse(TEXT).body if isinstance(node, ast.FunctionDef)]


def test_functions_are_short_and_say_what_they_do():
    for node in functions():
        assert ast.get_docstring(node), node.name
        assert node.end_lineno - node.lineno < 45 or node.name == "main", node.name


def test_no_line_is_a_riddle():
    """No classes, no := and no comprehension within a comprehension."""
    for node in ast.walk(ast.parse(TEXT)):
        assert not isinstance(node, (ast.NamedExpr, ast.ClassDef)), node.lineno
        if hasattr(node, "generators"):
            loops = [part for part in ast.walk(node) if isinstance(part, ast.comprehension)]
            assert len(loops) == 1, node.lineno


def test_chapters_are_numbered_and_use_what_stands_before():
    chapter = {}  # of each function
    number = 0
    for head, name in re.findall(r"^# %% (\d+)\. |^def (\w+)", TEXT, re.MULTILINE):
        assert not head or int(head) == number + 1
        number = int(head or number)
        chapter[name] = number
    # What a chapter of the lesson may use of a later one.
    early = {"stop", "warn", "data_title", "load_own_data", "warn_of_copies", "from_keras",
             "augmentation_layers", "restore_weights", "after_each_epoch", "read_history"}
    tools = chapter["load_own_data"]
    for node in functions():
        if 1 <= chapter[node.name] < tools:
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            later = {name for name in names if chapter.get(name, 0) > chapter[node.name]}
            assert later <= early, node.name
