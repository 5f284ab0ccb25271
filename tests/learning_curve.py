"""How many pictures does it take? From scratch, and with a network that knows ImageNet.

    python tests/learning_curve.py                             # 26 runs, some hours on two cores
    python tests/learning_curve.py --per-class 20 100          # these numbers of pictures only
    python tests/learning_curve.py --per-class 20 --seeds 0    # a look: two runs
    python tests/learning_curve.py --photos                    # a folder of 120 photos: six runs
    python tests/learning_curve.py --fine-tune 3 --per-class 200    # does fine-tuning pay?

Each run is the script's own command, as a process of its own. It is given the first 5, 20, 100 or
200 training images of each class of CIFAR-10 in an .npz file, with 200 test images of each class,
always the same. As always, the script holds a tenth of the training images back for validation (of
5, one in five). "all" is `--dataset cifar10` with its own settings, its 50,000 training and 10,000
test images; it is run with seed 0 only, if --seeds says nothing else. The photos are 40 birds, 40
cats and 40 horses of CIFAR-10, saved as JPEGs of 256x256 pixels in folders, as one's own would be.

What is done is kept in outputs/benchmark/learning_curve.json, so a call that was cut off goes on
where it ended when it is given again. Prints a table in markdown with mean and range over the
seeds, and draws outputs/benchmark/learning_curve.png. Linux and macOS only, as it reads the memory
that a process has used.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import pandas as pd
from PIL import Image

from ablation import keep, print_table, read_kept, script_hash

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "image_recognition_cnn.py"
RESULTS = ROOT / "outputs" / "benchmark"

MODELS = {  # in the picture
    "cnn": "from scratch (cnn)",
    "mobilenet_v2": "knows ImageNet (mobilenet_v2)",
}
CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer",
               "dog", "frog", "horse", "ship", "truck"]
PER_CLASS = ["5", "20", "100", "200", "all"]
ALL_PER_CLASS = 5000  # training images of each class in CIFAR-10
TEST_PER_CLASS = 200
PHOTOS_PER_CLASS = 40


# %% The pictures
def write_first_images(per_class, path):
    """Write an .npz file with the first training images of each class of CIFAR-10."""
    from keras.datasets import cifar10

    (x_train, y_train), (x_test, y_test) = cifar10.load_data()
    train = first_of_each_class(y_train.ravel(), per_class)
    test = first_of_each_class(y_test.ravel(), TEST_PER_CLASS)
    names = np.array(CLASS_NAMES)
    np.savez_compressed(
        path, x_train=x_train[train], y_train=names[y_train.ravel()[train]],
        x_test=x_test[test], y_test=names[y_test.ravel()[test]])


def write_photos(folder):
    """Write a folder of photos: the first birds, cats and horses of CIFAR-10 as large JPEGs."""
    from keras.datasets import cifar10

    (x_train, y_train), _ = cifar10.load_data()
    for name in ("bird", "cat", "horse"):
        (folder / name).mkdir(parents=True)
        places = np.flatnonzero(y_train.ravel() == CLASS_NAMES.index(name))
        for i in range(PHOTOS_PER_CLASS):
            photo = Image.fromarray(x_train[places[i]]).resize((256, 256))
            photo.save(folder / name / f"{i}.jpg", quality=92)


def first_of_each_class(labels, number):
    """Return the places of the first images of each class, in the order of the data set.

    labels: (number of images,) int.
    """
    occurrence = pd.Series(labels).groupby(labels).cumcount()  # 0 for the first image of its class
    return np.flatnonzero(occurrence < number)


# %% Running, and keeping what is done
def measure(per_class_words, seeds, fine_tune, kept):
    """Run what is missing; return a table (pandas DataFrame), one row for each run that succeeded.

    per_class_words: "5", "20", ... or "all" or "photos". seeds: list of int, or None for the usual
    ones. fine_tune: epochs of it, for mobilenet_v2. kept: path of the JSON file. Columns: model,
    per_class, seed, and what run_script returns.
    """
    numbers = {"all": ALL_PER_CLASS, "photos": PHOTOS_PER_CLASS}
    found = []
    for word in per_class_words:
        for seed in seeds or usual_seeds(word):
            for model in MODELS:
                flags = ["--model", model, "--seed", str(seed)]
                if fine_tune and model != "cnn":
                    flags += ["--fine-tune", str(fine_tune)]
                key = f"{word} of each class, {' '.join(flags)}"
                record = read_kept(kept).get(key)
                if record is None:
                    print(key, flush=True)
                    record = run_with(word, flags)
                    if record is not None:
                        keep(kept, key, record)
                if record is not None:
                    per_class = numbers.get(word) or int(word)
                    found.append({"model": model, "per_class": per_class, "seed": seed, **record})
    return pd.DataFrame(found)


def usual_seeds(per_class_word):
    """Return the seeds of a number of pictures; a run with all of them takes long."""
    if per_class_word == "all":
        return [0]
    return [0, 1, 2]


def run_with(per_class_word, flags):
    """Run the script with so many pictures of each class; return its record, or None."""
    with tempfile.TemporaryDirectory() as folder:
        if per_class_word == "all":
            return run_script(["--dataset", "cifar10", *flags], pathlib.Path(folder, "outputs"))
        if per_class_word == "photos":
            path = pathlib.Path(folder, "photos")
            write_photos(path)
        else:
            path = pathlib.Path(folder, "first_images.npz")
            write_first_images(int(per_class_word), path)
        all_flags = ["--dataset", str(path), "--mirror", *flags]  # for cifar10, --mirror is on
        return run_script(all_flags, pathlib.Path(folder, "outputs"))


def run_script(flags, output_dir):
    """Run the script's command; return a record of it, or None if it failed.

    seconds: from the start of the process until its network is trained and saved, so with the time
    to load Python's packages, and without the test, the pictures and the exports. whole_seconds:
    until the end of the process. processor_seconds: the same, added up over the cores, which other
    work on the machine disturbs less. memory_gb: the most memory it had at any time.
    """
    command = [sys.executable, str(SCRIPT), *flags, "--output-dir", str(output_dir)]
    started = time.time()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # as process.wait would do
        whole_seconds = time.time() - started
        said.seek(0)
        lines = said.read().strip().splitlines()
    if process.returncode != 0:
        reason = lines[-1] if lines else f"exit status {process.returncode}"
        print(f"Warning: this run failed and is missing in the table: {reason}",
              file=sys.stderr, flush=True)
        return None
    results = output_dir / pathlib.Path(flags[1]).stem  # flags begin with --dataset NAME
    metrics = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
    saved = (results / "model.keras").stat().st_mtime
    bytes_in_a_unit = 1 if sys.platform == "darwin" else 1024
    return {
        "validation_accuracy": metrics["validation_accuracy"],
        "test_accuracy": metrics["test_accuracy"],
        "test_images": metrics["test_images"],
        "training_seconds": metrics["training_seconds"],
        "seconds": round(saved - started, 1),
        "whole_seconds": round(whole_seconds, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "memory_gb": round(usage.ru_maxrss * bytes_in_a_unit / 1e9, 2),
        "script": script_hash(),
    }


# %% The table
def summarize(found):
    """Return one row for each model and number of pictures (pandas DataFrame).

    Columns: model, per_class, runs (a number), mean, low, high (test accuracy, 0 to 1), seconds,
    whole_seconds, processor_seconds, memory_gb.
    """
    summary = []
    for (model, per_class), runs in found.groupby(["model", "per_class"]):
        summary.append({
            "model": model,
            "per_class": per_class,
            "runs": len(runs),
            "mean": runs["test_accuracy"].mean(),
            "low": runs["test_accuracy"].min(),
            "high": runs["test_accuracy"].max(),
            "seconds": runs["seconds"].min(),  # other work on the machine only adds to it
            "whole_seconds": runs["whole_seconds"].min(),
            "processor_seconds": runs["processor_seconds"].min(),
            "memory_gb": runs["memory_gb"].max(),
        })
    return pd.DataFrame(summary)


def with_range(row):
    """Return an accuracy in words: 82.9 % (82.6 to 83.1), or 82.9 % (1 run)."""
    if row.runs == 1:
        return f"{row.mean * 100:.1f} % (1 run)"
    return f"{row.mean * 100:.1f} % ({row.low * 100:.1f} to {row.high * 100:.1f})"


def name_of_number(per_class):
    """Return a number of pictures per class as text."""
    if per_class == ALL_PER_CLASS:
        return f"all ({per_class:,})"
    return str(per_class)


def print_summary(summary):
    """Print accuracy, seconds and memory of the models side by side, a line for each number."""
    lines = []
    for per_class, rows in summary.groupby("per_class"):
        cells = [name_of_number(per_class)]
        for model in MODELS:
            of_model = rows[rows["model"] == model]
            if of_model.empty:
                cells += ["", "", ""]
                continue
            row = next(of_model.itertuples())
            cells += [with_range(row), f"{row.seconds:.0f} ({row.whole_seconds:.0f})",
                      f"{row.memory_gb:.1f}"]
        lines.append(cells)
    titles = ["pictures per class"]
    for model in MODELS:
        titles += [f"`{model}`", "seconds (whole run)", "memory in GB"]
    print_table(titles, lines)


# %% The picture
def draw_learning_curve(summary, path):
    """Draw accuracy above and seconds below, by number of pictures: mean and range."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files: needs no screen
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", palette="colorblind")
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 8), sharex=True, height_ratios=[3, 1.3], layout="constrained")
    for number, (model, label) in enumerate(MODELS.items()):
        rows = summary[summary["model"] == model]
        colour = f"C{number}"
        top.fill_between(rows["per_class"], rows["low"] * 100, rows["high"] * 100, color=colour,
                         alpha=0.3, linewidth=0)
        top.plot(rows["per_class"], rows["mean"] * 100, color=colour, marker="o", label=label)
        bottom.plot(rows["per_class"], rows["seconds"], color=colour, marker="o")
        for row in rows.itertuples():
            best = summary["mean"][summary["per_class"] == row.per_class].max()
            lift = 9 if row.mean == best else -18  # points; so that two texts never meet
            top.annotate(f"{row.mean * 100:.1f} %", (row.per_class, row.mean * 100),
                         xytext=(0, lift), textcoords="offset points", ha="center")
    top.set_ylabel("test accuracy in %\n(line: mean; band: range over the seeds)")
    top.set_ylim(0, 100)
    top.legend(loc="lower right")
    bottom.set_ylabel("seconds until the\nnetwork is trained")
    bottom.set_ylim(0)
    bottom.set_xscale("log")
    numbers = sorted(summary["per_class"].unique())
    bottom.set_xticks(numbers, [name_of_number(number) for number in numbers])
    bottom.tick_params(axis="x", which="minor", bottom=False)
    bottom.set_xlabel("training pictures of each of 10 classes\n(equal widths are equal factors)")
    figure.suptitle("CIFAR-10: how many pictures does it take?")
    figure.savefig(path, dpi=120)
    print("In", os.path.relpath(path))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", nargs="+", default=PER_CLASS, metavar="NUMBER",
                        help="training pictures of each class: 3 to 5000, or all (the default: "
                             f"{' '.join(PER_CLASS)})")
    parser.add_argument("--seeds", type=int, nargs="+",
                        help="0 1 2 if not given, and for all pictures 0")
    parser.add_argument("--photos", action="store_true", help="photos in folders, and no picture")
    parser.add_argument("--fine-tune", type=int, default=0, metavar="EPOCHS",
                        help="of mobilenet_v2 (0 if not given); draws no picture")
    given = parser.parse_args()
    if given.photos:
        given.per_class = ["photos"]
    for word in given.per_class:
        is_number = word.isdecimal() and 3 <= int(word) <= ALL_PER_CLASS
        if word not in ("all", "photos") and not is_number:
            parser.error(f"--per-class can't be {word}: it takes numbers from 3 to 5000, or all")

    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = RESULTS / "learning_curve.json"
    found = measure(given.per_class, given.seeds, given.fine_tune, kept)
    if found.empty:
        raise SystemExit("learning_curve.py: no run succeeded, see the warnings above.")
    if set(found["script"]) != {script_hash()}:
        print("Warning: some of these results come from an earlier version of the script. Remove "
              f"{os.path.relpath(kept)} to measure all anew.", file=sys.stderr)
    summary = summarize(found)
    print_summary(summary)
    if not given.photos and not given.fine_tune:
        draw_learning_curve(summary, RESULTS / "learning_curve.png")


if __name__ == "__main__":
    main()
