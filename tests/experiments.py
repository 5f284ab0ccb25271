"""Every figure of the README, from runs of the script.

    python tests/experiments.py staircase              # what each trick gives: 27 runs
    python tests/experiments.py staircase --seeds 0    # one seed only: 9 runs
    python tests/experiments.py --list                 # all experiments, and the question of each
    python tests/experiments.py staircase --short      # a trial on small digits; says nothing

Each run is the script's own command, as a process of its own. The runs are kept in
outputs/benchmark/experiments.json: a run that is there is not run again, so a program that was cut
off goes on when it is started again. Prints a table in markdown: mean and range over the seeds, and
a "?" where the range overlaps that of the row before. `staircase` and `pictures` are drawn as well.
Settings are chosen by the validation images; test images are for the last word.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import matplotlib.pyplot as plt
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEPT = ROOT / "outputs" / "benchmark" / "experiments.json"

SHORT_CIFAR10 = "--dataset cifar10 --epochs 3 --filters 16 32 64"
# What switches the tricks off, in the order in which they are added.
TRICKS = [
    ("batch normalization", "--no-batch-normalization"),
    ("larger steps: LEARNING_RATE 0.004", "--learning-rate 0.001"),
    ("a rate that rises and falls (cosine)", "--schedule constant"),
    ("first layer computed (whitening)", "--no-whitening"),
    ("convolutions start as identity", "--no-identity-start"),
    ("augmentation: shifted and mirrored", "--shift 0 --no-mirror"),
    ("weight decay", "--weight-decay 0"),
    ("global pooling, no hidden dense layer", "--dense-units 128"),
]


def staircase_rows():
    """The plain network, then one trick more in each row."""
    rows = []
    names = ["plain network (Adam, constant rate of 0.001)"] + [f"+ {name}" for name, _ in TRICKS]
    for number, name in enumerate(names):
        off = [flags for _, flags in TRICKS[number:]]
        rows.append((name, " ".join([SHORT_CIFAR10, "--learning-rate 0.004", *off])))
    return rows


def try_rows(command, *changes):
    """The command alone, then with one change each."""
    return [("nothing", command)] + [(f"`{change}`", f"{command} {change}") for change in changes]


# Each: the question, the accuracy that counts, and the rows (name, flags). {n} is made by npz_of.
EXPERIMENTS = {
    "datasets": ("How good is it with its defaults?", "test_accuracy", [
        ("`digits`", "--dataset digits"), ("`mnist`", "--dataset mnist"),
        ("`fashion_mnist`", "--dataset fashion_mnist"),
        ("`cifar10 --epochs 3 --filters 32 64 128`",
         "--dataset cifar10 --epochs 3 --filters 32 64 128"),
        ("`cifar10`", "--dataset cifar10")]),
    "staircase": ("What does each trick give?", "validation_accuracy", staircase_rows()),
    "rates": ("Which rate suits the plain network?", "validation_accuracy", [
        (f"`--learning-rate {rate}`", f"{staircase_rows()[0][1]} --learning-rate {rate}")
        for rate in ("0.0005", "0.001", "0.002", "0.004")]),
    "try": ("What does one change do?", "validation_accuracy", try_rows(
        f"{SHORT_CIFAR10} --learning-rate 0.004", "--shift 0 --no-mirror",
        "--no-batch-normalization", "--schedule constant", "--no-identity-start", "--no-whitening",
        "--dense-units 128", "--dropout 0.5", "--optimizer sgd --learning-rate 0.1",
        "--learning-rate 0.04", "--learning-rate 0.0004", "--filters 8 16 32",
        "--filters 32 64 128")),
    "identity": ("Does it need the identity start?", "test_accuracy", try_rows(
        "--dataset cifar10 --epochs 3 --filters 32 64 128", "--no-identity-start")),
    "pictures": ("How many pictures does it take?", "test_accuracy", [
        (f"{number} of each class, `{model}`", f"--dataset {{{number}}} --mirror --model {model}")
        for number in (5, 20, 100, 200) for model in ("cnn", "mobilenet_v2")]),
}


def npz_of(number, folder):
    """Write the first images of each class of CIFAR-10 as photos.npz; return its path."""
    import keras

    parts = keras.datasets.cifar10.load_data()
    arrays = {}
    for name, (x, y), count in zip(("train", "test"), parts, (number, 200)):
        chosen = np.concatenate([np.flatnonzero(y.ravel() == label)[:count] for label in range(10)])
        arrays[f"x_{name}"] = x[chosen]
        arrays[f"y_{name}"] = y.ravel()[chosen]
    path = pathlib.Path(folder, "photos.npz")  # a name that no setting knows, as own pictures have
    np.savez_compressed(path, **arrays)
    return path


def run(flags):
    """Run the script once; return the numbers of its metrics.json."""
    with tempfile.TemporaryDirectory() as folder:
        flags = flags.split()
        for place, word in enumerate(flags):
            if word.startswith("{"):
                flags[place] = str(npz_of(int(word[1:-1]), folder))
        command = [sys.executable, str(ROOT / "image_recognition_cnn.py"), *flags]
        command += ["--output-dir", f"{folder}/outputs"]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{finished.stderr}")
        [path] = pathlib.Path(folder, "outputs").glob("*/metrics.json")
        metrics = json.loads(path.read_text(encoding="utf-8"))
    names = ["validation_accuracy", "test_accuracy", "test_loss", "mean_confidence", "parameters",
             "training_seconds"]
    return {name: metrics[name] for name in names}


def measure(rows, seeds):
    """Run what is missing, seed by seed; return for each row the list of its runs."""
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    runs = {}
    for seed in seeds:
        for name, flags in rows:
            kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
            key = f"{flags} --seed {seed}"
            if key not in kept:
                print(f"running {key}", file=sys.stderr, flush=True)
                kept[key] = run(key)
                new = KEPT.with_suffix(".new")  # moved into its place: a kill leaves no half file
                new.write_text(json.dumps(kept, indent=1), encoding="utf-8")
                new.replace(KEPT)
            runs.setdefault(name, []).append(kept[key])
    return runs


def table_of(runs, measured):
    """Return the lines of a table in markdown: mean and range of what is measured, in per cent."""
    lines = [f"| | {measured.replace('_', ' ')} | range | change | seconds |",
             "| --- | --- | --- | --- | --- |"]
    before = None
    for name, of_row in runs.items():
        values = [100 * one[measured] for one in of_row]
        seconds = np.mean([one["training_seconds"] for one in of_row])
        change = ""
        if before is not None:
            overlap = min(values) <= max(before) and min(before) <= max(values)
            change = f"{np.mean(values) - np.mean(before):+.1f}{'?' if overlap else ''}"
        lines.append(f"| {name} | {np.mean(values):.2f} % | {min(values):.2f} to {max(values):.2f} "
                     f"| {change} | {seconds:.0f} |")
        before = values
    return lines


def draw_staircase(runs, measured, path):
    """Draw a bar from the row before to each row, and a point for each run."""
    figure, axis = plt.subplots(figsize=(11, 5), layout="constrained")
    for place, of_row in enumerate(runs.values()):
        values = [100 * one[measured] for one in of_row]
        axis.barh(place, np.mean(values), color="C0", alpha=0.5)
        axis.plot(values, [place] * len(values), "k.", markersize=5)
        axis.text(min(values) - 0.3, place, f"{np.mean(values):.1f} %", ha="right", va="center")
    axis.set_yticks(range(len(runs)), runs)
    axis.invert_yaxis()
    lowest = min(one[measured] for of_row in runs.values() for one in of_row)
    axis.set_xlim(100 * lowest - 8, None)
    axis.set_xlabel(f"{measured.replace('_', ' ')} in %; each point is a run")
    axis.set_title(f"CIFAR-10, `{SHORT_CIFAR10}`: one trick after the other")
    figure.savefig(path, dpi=110)


def draw_pictures(runs, measured, path):
    """Draw the accuracy of both models over the number of pictures."""
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for model, mark in (("cnn", "o-"), ("mobilenet_v2", "s--")):
        of_model = {name: of_row for name, of_row in runs.items() if f"`{model}`" in name}
        numbers = [int(name.split()[0]) for name in of_model]
        means = [100 * np.mean([one[measured] for one in of_row]) for of_row in of_model.values()]
        axis.plot(numbers, means, mark, label=model)
    axis.set_xscale("log")
    axis.set_xticks(numbers, numbers)
    axis.set(xlabel="training pictures of each class (CIFAR-10)", ylabel="test accuracy in %")
    axis.legend()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", nargs="?", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--short", action="store_true", help="digits, 1 epoch: only a trial")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list or arguments.experiment is None:
        for name, (question, _, rows) in EXPERIMENTS.items():
            print(f"{name}: {question} ({len(rows)} rows)")
        return
    _, measured, rows = EXPERIMENTS[arguments.experiment]
    if arguments.short:  # of two equal flags, the last counts
        rows = [(name, re.sub(r"\{\d+\}", "digits", flags)
                 + " --dataset digits --epochs 1 --filters 8 --model cnn") for name, flags in rows]
    runs = measure(rows, arguments.seeds)
    print("\n".join(table_of(runs, measured)))
    draw = {"staircase": draw_staircase, "pictures": draw_pictures}.get(arguments.experiment)
    if draw and not arguments.short:
        draw(runs, measured, KEPT.parent / f"{arguments.experiment}.png")


if __name__ == "__main__":
    main()
