"""What does each trick give? Adds one after the other to the plain network of a first lecture.

    python tests/ablation.py                  # the staircase: 30 runs of two to three minutes
    python tests/ablation.py --experiments    # the table "Experiments to try": one change each
    python tests/ablation.py --rates          # which learning rate suits the plain network
    python tests/ablation.py --quick          # a trial with small digits: the figures mean nothing

Each run is the script's own command on CIFAR-10 with small filters and few epochs, as a process of
its own. All accuracies are those of the validation images: the test images are for the last word.
What is done is kept in outputs/benchmark/ablation.json, so a call that was cut off goes on where it
ended when it is given again. Prints a table in markdown with mean and range over the seeds; the
staircase is drawn as well, into outputs/benchmark/staircase.png. With --quick, both are in
outputs/benchmark/quick/.
"""
import argparse
import ast
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pandas as pd

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "image_recognition_cnn.py"
RESULTS = ROOT / "outputs" / "benchmark"

# The rate is given, so that these tables stay true when the default changes.
SHORT_COMMAND = ["--dataset", "cifar10", "--epochs", "3", "--filters", "16", "32", "64",
                 "--learning-rate", "0.004"]
QUICK_COMMAND = ["--dataset", "digits", "--epochs", "1", "--filters", "8"]

# The staircase: each step adds one trick, that is, takes away the flag that switches it off. Below
# the first step all of these flags are given, above the last one none: the whole recipe. The
# order is that of the network's history, and a trick that another one needs comes later than that.
PLAIN = "plain network: convolution, ReLU, pooling, dense; Adam with a constant rate of 0.001"
TRICKS = [
    ("batch normalization", ["--no-batch-normalization"]),
    ("larger steps: LEARNING_RATE 0.004", ["--learning-rate", "0.001"]),
    ("a rate that rises and falls (cosine)", ["--schedule", "constant"]),
    ("first layer computed (whitening)", ["--no-whitening"]),
    ("convolutions start as identity", ["--no-identity-start"]),
    ("augmentation: shifted and mirrored", ["--no-augmentation"]),
    ("weight decay", ["--weight-decay", "0"]),
    ("label smoothing", ["--label-smoothing", "0"]),
    ("global pooling; no hidden dense layer: all tricks",
     ["--no-global-pooling", "--dense-units", "128"]),
]

# One change each, added to the short command.
EXPERIMENTS = [
    [],
    ["--no-augmentation"],
    ["--no-batch-normalization"],
    ["--schedule", "constant"],
    ["--no-identity-start"],
    ["--no-whitening"],
    ["--no-global-pooling"],
    ["--no-global-pooling", "--dense-units", "128"],
    ["--dropout", "0.5"],
    ["--optimizer", "sgd", "--learning-rate", "0.1"],
    ["--learning-rate", "0.04"],
    ["--learning-rate", "0.0004"],
    ["--filters", "8", "16", "32"],
    ["--filters", "32", "64", "128"],
    ["--label-smoothing", "0"],
    ["--validation-split", "0.904"],
    ["--validation-split", "0.904", "--epochs", "50"],
]

# For the plain network, in place of its 0.001.
RATES = ["0.0005", "0.001", "0.002", "0.004"]


# %% The runs of each table: a list of pairs (text of the row, flags behind the short command)
def staircase_rows():
    """Return the plain network, and one row for each trick that is added."""
    rows = [(PLAIN, flags_without(TRICKS))]
    for number, (name, _) in enumerate(TRICKS, start=1):
        rows.append((f"+ {name}", flags_without(TRICKS[number:])))
    return rows


def flags_without(tricks):
    """Return the flags that switch these tricks off, one after the other."""
    flags = []
    for _, flags_off in tricks:
        flags += flags_off
    return flags


def experiment_rows(quick):
    """Return one row for each change; digits are too small for three blocks of filters."""
    rows = []
    for flags in EXPERIMENTS:
        if quick and "--filters" in flags:
            continue
        text = f"`{' '.join(flags)}`"
        if not flags:
            text = "none"
        rows.append((text, flags))
    return rows


def rate_rows():
    """Return the plain network with several learning rates; of two equal flags the last counts."""
    plain = flags_without(TRICKS)
    return [(f"`--learning-rate {rate}`", [*plain, "--learning-rate", rate]) for rate in RATES]


# %% Running, and keeping what is done
def measure(rows, command, seeds, kept):
    """Run what is missing; return a table (pandas DataFrame), one row for each run that succeeded.

    rows: pairs (text, flags). kept: path of the JSON file. Columns: row (its number), seed,
    validation_accuracy, training_accuracy (of the last epoch), seconds, parameters, script.
    """
    found = []
    for number, (text, flags) in enumerate(rows):
        for seed in seeds:
            all_flags = [*command, *flags, "--seed", str(seed)]
            key = " ".join(all_flags)
            record = read_kept(kept).get(key)
            if record is None:
                print(f"{number + 1} of {len(rows)}, {key}", flush=True)
                record = run_script(all_flags)
                if record is not None:
                    keep(kept, key, record)
            if record is not None:
                found.append({"row": number, "seed": seed, **record})
    return pd.DataFrame(found)


def run_script(flags):
    """Run the script's command; return what its files say, or None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, SCRIPT, *flags, "--output-dir", folder]
        process = subprocess.run(command, text=True, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE)
        if process.returncode != 0:
            lines = process.stderr.strip().splitlines()
            reason = lines[-1] if lines else f"exit status {process.returncode}"
            print(f"Warning: this run failed and is missing in the table: {reason}",
                  file=sys.stderr, flush=True)
            return None
        results = pathlib.Path(folder, flags[1])  # flags begin with --dataset NAME
        metrics = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
        history = pd.read_csv(results / "history.csv")
    return {
        "validation_accuracy": metrics["validation_accuracy"],
        "training_accuracy": float(history["accuracy"].iloc[-1]),
        "seconds": float(history["seconds"].sum()),
        "parameters": metrics["parameters"],
        "script": script_hash(),
    }


def script_hash():
    """Return 8 characters that change when the code before the chapter of pictures changes.

    Comments and docstrings are left out: better words give no other accuracy.
    """
    text = SCRIPT.read_text(encoding="utf-8")
    before_pictures = text.partition("# %% 6.")[0]
    tree = ast.parse(before_pictures)  # without the comments
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef)) and ast.get_docstring(node):
            node.body.pop(0)
    return hashlib.sha256(ast.dump(tree).encode("utf-8")).hexdigest()[:8]


def read_kept(path):
    """Return the results so far: {flags of the run: record}."""
    if not path.exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def keep(path, key, record):
    """Add a result to the file, so that it is whole at any time, also if the power fails."""
    results = read_kept(path)
    results[key] = record
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


# %% The tables
def summarize(rows, found):
    """Return one row for each row of the table that has results, with mean, low and high.

    A pandas DataFrame with the columns text, flags, runs (a number), mean, low, high (validation
    accuracy, 0 to 1), training (accuracy, 0 to 1), seconds, parameters.
    """
    summary = []
    for number, runs in found.groupby("row"):
        text, flags = rows[number]
        summary.append({
            "text": text,
            "flags": flags,
            "runs": len(runs),
            "mean": runs["validation_accuracy"].mean(),
            "low": runs["validation_accuracy"].min(),
            "high": runs["validation_accuracy"].max(),
            "training": runs["training_accuracy"].mean(),
            "seconds": runs["seconds"].min(),  # other work on the machine only adds to it
            "parameters": runs["parameters"].iloc[0],
        })
    return pd.DataFrame(summary)


def with_range(row):
    """Return an accuracy in words: 82.9 % (82.6 to 83.1)."""
    return f"{row.mean * 100:.1f} % ({row.low * 100:.1f} to {row.high * 100:.1f})"


def print_table(titles, lines):
    """Print a table in markdown; lines: lists of cells."""
    print("\n|", " | ".join(titles), "|")
    print("|" + " --- |" * len(titles))
    for cells in lines:
        print("|", " | ".join(cells), "|")
    print()


def print_staircase(summary, gains):
    """Print each step with its gain and the flag that takes the trick away."""
    lines = []
    for row, gain in zip(summary.itertuples(), gains):
        flags_off = dict(TRICKS).get(row.text.removeprefix("+ "), row.flags)
        lines.append([row.text, with_range(row), gain, f"{row.training * 100:.1f} %",
                      f"`{' '.join(flags_off)}`"])
    titles = ["network", "validation accuracy", "gain in points", "training accuracy", "without it"]
    print_table(titles, lines)


def print_changes(summary):
    """Print each change with its accuracies, and its time and size beside those of the first."""
    first = summary.iloc[0]
    lines = []
    for row in summary.itertuples():
        lines.append([row.text, with_range(row), f"{row.training * 100:.1f} %",
                      f"{row.seconds / first['seconds']:.2f}", f"{row.parameters:,}"])
    titles = ["change", "validation accuracy", "training accuracy", "time (first row is 1)",
              "weights"]
    print_table(titles, lines)


def gains_in_words(summary):
    """Return what each step gives over the one before, in points; "?" where the ranges overlap.

    Overlapping ranges mean that luck alone may have made the difference.
    """
    words = [""]
    for i in range(1, len(summary)):
        before = summary.iloc[i - 1]
        step = summary.iloc[i]
        gain = f"{(step['mean'] - before['mean']) * 100:+.1f}"
        if step["low"] <= before["high"] and before["low"] <= step["high"]:
            gain += " ?"
        words.append(gain)
    return words


# %% The picture
def draw_staircase(summary, gains, found, headline, path):
    """Draw the steps from top to bottom: mean, range, and each run as a dot."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files: needs no screen
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", palette="colorblind")
    figure, axis = plt.subplots(figsize=(11, 0.55 * len(summary) + 1.6), layout="constrained")
    places = range(len(summary))
    means = summary["mean"] * 100
    axis.step(means, places, where="pre", color="C7", linewidth=1, zorder=1)
    axis.hlines(places, summary["low"] * 100, summary["high"] * 100, color="C0", linewidth=6,
                alpha=0.35, zorder=2, label="range over the seeds")
    axis.scatter(found["validation_accuracy"] * 100, found["row"], color="C0", s=12, zorder=3,
                 label="one run")
    axis.scatter(means, places, color="black", marker="|", s=220, zorder=4, label="mean")
    for place, gain in zip(places, gains):
        text = f"{means[place]:.1f} %"
        if gain:
            text += f"  ({gain})"
        right = summary["high"].iloc[place] * 100
        axis.annotate(text, (right, place), xytext=(8, 0), textcoords="offset points", va="center")
    axis.set_yticks(places, summary["text"].str.replace("; ", ";\n").tolist())
    axis.invert_yaxis()  # the plain network at the top
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + 0.25 * (high - low))  # room for the text at the last step
    axis.set_xlabel("validation accuracy in %\nin brackets: the points that the step gives\n"
                    "?: the ranges overlap, perhaps luck")
    figure.suptitle(headline)
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower left")
    figure.savefig(path, dpi=120)
    print("In", os.path.relpath(path))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    table = parser.add_mutually_exclusive_group()
    table.add_argument("--experiments", action="store_true", help='the table "Experiments to try"')
    table.add_argument("--rates", action="store_true", help="learning rates of the plain network")
    parser.add_argument("--quick", action="store_true", help="a trial: digits, one epoch, one seed")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 1 2 if not given")
    given = parser.parse_args()

    command = SHORT_COMMAND
    seeds = [0, 1, 2]
    folder = RESULTS
    if given.quick:
        command = QUICK_COMMAND
        seeds = [0]
        folder = RESULTS / "quick"
    if given.seeds:
        seeds = given.seeds
    rows = staircase_rows()
    if given.experiments:
        rows = experiment_rows(given.quick)
    elif given.rates:
        rows = rate_rows()

    folder.mkdir(parents=True, exist_ok=True)
    print(f"Each row changes: python image_recognition_cnn.py {' '.join(command)}")
    found = measure(rows, command, seeds, folder / "ablation.json")
    if found.empty:
        raise SystemExit("ablation.py: no run succeeded, see the warnings above.")
    if set(found["script"]) != {script_hash()}:
        print("Warning: some of these results come from an earlier version of the script. Remove "
              f"{os.path.relpath(folder / 'ablation.json')} to measure all anew.", file=sys.stderr)
    summary = summarize(rows, found)
    for row in summary.itertuples():
        if row.runs < len(seeds):
            print(f"Warning: only {row.runs} of {len(seeds)} runs of: {row.text}", file=sys.stderr)
    if given.experiments or given.rates:
        print_changes(summary)
    elif len(summary) < len(rows):
        raise SystemExit("ablation.py: a step of the staircase is missing; see the warnings above.")
    else:
        gains = gains_in_words(summary)
        print_staircase(summary, gains)
        seed_text = ", ".join(str(seed) for seed in seeds)
        headline = f"One trick after the other ({' '.join(command)}; seeds {seed_text})"
        draw_staircase(summary, gains, found, headline, folder / "staircase.png")


if __name__ == "__main__":
    main()
