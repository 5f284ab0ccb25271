"""Which program learns more in a minute? Runs ours and those that most people start from, in turn.

    python tests/benchmark.py            # default settings, seeds 0, 1 and 2: hours on two cores
    python tests/benchmark.py --quick    # a look: one seed, few epochs
    python tests/benchmark.py --datasets cifar10 -- --precision mixed_bfloat16    # flags for ours

The others are written anew from their descriptions: TensorFlow's tutorial "Convolutional Neural
Network (CNN)" on CIFAR-10, Keras' example "Simple MNIST convnet" on MNIST, and as the floor the
logistic regression of scikit-learn, a network without hidden layers. Each run is a process of its
own. Seconds are those of whole epochs: each program validates in its own way, and ours also draws
its curves. It needs the data sets, from a download or a copy. With PyTorch installed it measures
the same network there as well. Linux only, as it reads the memory that a process has used.

Writes benchmark.json (after each run, so that nothing is lost) and accuracy_over_time.png into
outputs/benchmark/, with --quick into outputs/benchmark/quick/, and prints a table in markdown.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "image_recognition_cnn.py"
RESULTS = ROOT / "outputs" / "benchmark"  # with --quick, its sub-folder quick

# The script sets this for itself. Here all programs get it, so that all have the same fast kernels.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

TUTORIALS = {"cifar10": "tutorial", "mnist": "mnist_convnet"}  # for each data set, the usual start
TUTORIAL_EPOCHS = {"tutorial": 10, "mnist_convnet": 15}  # as their authors have them
QUICK_EPOCHS = 3  # of the two with --quick
SHORT_FLAGS = {  # for a run of our script of about a minute; a second run has the default settings
    "cifar10": ["--epochs", "3", "--filters", "32", "64", "128"],
    "mnist": ["--epochs", "1"],
}
LABELS = {  # in the picture
    "ours": "this script",
    "tutorial": "TensorFlow's tutorial",
    "mnist_convnet": "Keras' example",
    "logistic_regression": "logistic regression (the floor)",
}
STEPS = 40  # in a measurement of images/s
ROUNDS = 3  # of each measurement; the best one counts, as other work on the machine only takes away


# %% The programs that ours is compared with. Each runs in a process of its own and returns a dict:
# "seconds" and "accuracy" of each epoch (on the test images, as their authors do it),
# "test_accuracy" of the last one, and "images_per_second".
def tutorial(epochs, seed):
    """TensorFlow's tutorial: convolutions of 32, 64 and 64 filters, Dense 64, batches of 32."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    (x_train, y_train), (x_test, y_test) = keras.datasets.cifar10.load_data()
    model = keras.Sequential([
        keras.Input((32, 32, 3)),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
        layers.Dense(10),
    ])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    test = (x_test / 255.0, y_test)
    return timed_fit(model, x_train / 255.0, y_train, test, epochs, batch_size=32)


def mnist_convnet(epochs, seed):
    """Keras' example: convolutions of 32 and 64 filters, dropout, batches of 128, nine tenths."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    x_train = x_train[..., None].astype("float32") / 255
    x_test = x_test[..., None].astype("float32") / 255
    model = keras.Sequential([
        keras.Input((28, 28, 1)),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dropout(0.5),
        layers.Dense(10, activation="softmax"),
    ])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    number = len(x_train) * 9 // 10
    test = (x_test, y_test)
    return timed_fit(model, x_train[:number], y_train[:number], test, epochs, batch_size=128)


def timed_fit(model, x_train, y_train, test, epochs, batch_size):
    """Train a model with a clock: from the start, and from one end of an epoch to the next."""
    from keras import callbacks

    ends = [time.perf_counter()]
    clock = callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
    history = model.fit(x_train, y_train, batch_size=batch_size, epochs=epochs, verbose=2,
                        validation_data=test, callbacks=[clock]).history
    seconds = [after - before for before, after in zip(ends, ends[1:])]
    return {
        "seconds": seconds,
        "accuracy": history["val_accuracy"],
        "test_accuracy": history["val_accuracy"][-1],
        "images_per_second": {"whole run": len(x_train) * epochs / sum(seconds)},
    }


def logistic_regression(dataset):
    """The floor: one weight for each pixel and class, images of 16x16 pixels; a fit is an epoch."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    script = script_with({"DATASET": dataset})
    (x_train, y_train), _, (x_test, y_test), _, _ = script.load_data()
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, tol=0.01, max_iter=200))
    pixels = script.small_and_flat(x_train)
    started = time.perf_counter()
    regression.fit(pixels, y_train)
    seconds = time.perf_counter() - started
    accuracy = regression.score(script.small_and_flat(x_test), y_test)
    return {
        "seconds": [seconds],
        "accuracy": [accuracy],
        "test_accuracy": accuracy,
        "images_per_second": {},
    }


# %% Ours
def run_ours(dataset, flags):
    """Run the script's command in a folder of its own; return what its files say.

    "accuracy" of each epoch is on the validation images, "test_accuracy" on the test images.
    """
    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, SCRIPT, "--dataset", dataset, "--output-dir", folder, *flags]
        peak_gb = run_process(command)
        results = pathlib.Path(folder, dataset)
        metrics = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
        history = pd.read_csv(results / "history.csv")
        six = {}
        if "test_accuracy_two_views" in metrics:  # images were mirrored
            model_file = str(results / "model.keras")
            six = run_apart("six_views", {"dataset": dataset, "model_file": model_file})
    settings = metrics["settings"]
    settings["OUTPUT_DIR"] = "outputs"  # no path of this machine in what is kept
    return {
        "seconds": history["seconds"].tolist(),
        "accuracy": history["val_accuracy"].tolist(),
        "test_accuracy": metrics["test_accuracy"],
        "test_accuracy_two_views": metrics.get("test_accuracy_two_views"),
        "test_accuracy_six_views": six.get("accuracy"),
        "images_per_second": {},
        "settings": settings,
        "versions": metrics["versions"],
        "peak_gb": peak_gb,
    }


def six_views(dataset, model_file):
    """Accuracy on the test images of the mean of six answers, as airbench94's figure has it.

    Each image as it is counts half; moved by a pixel to the upper left and to the lower right, a
    quarter each; and each of these three together with its mirror image (Jordan, 2024).
    """
    import numpy as np

    script = script_with({"DATASET": dataset})
    _, _, (x_test, y_test), _, _ = script.load_data()
    model = script.keras.models.load_model(model_file, compile=False)
    height, width = x_test.shape[1:3]
    wider = np.pad(x_test, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    answers = 0
    for images, weight in [
        (x_test, 0.5),
        (wider[:, 2:height + 2, 2:width + 2], 0.25),
        (wider[:, :height, :width], 0.25),
    ]:
        for view in (images, images[:, :, ::-1]):
            # airbench94 takes the mean of the inputs of softmax: the logarithms, but for a constant
            answers = answers + weight * np.log(script.predict(model, view) + 1e-30)
    return {"accuracy": float((answers.argmax(axis=1) == y_test).mean())}


def script_with(settings):
    """Return the script as a module with these settings, the others as its block has them."""
    sys.path.insert(0, str(ROOT))
    import image_recognition_cnn as script

    for name, value in settings.items():
        setattr(script, name, value)
    script.read_settings()
    return script


def speeds(settings, seconds):
    """Images/s of our network: whole run, bare loop, with augmentation, with fit and input as well.

    settings: by name. seconds: of each epoch of the whole run.
    """
    script = script_with(settings)
    (x_train, y_train), _, _, class_names, _ = script.load_data()
    keras = script.keras
    number = min(len(x_train), script.BATCH_SIZE * STEPS)
    x = x_train[:script.BATCH_SIZE]
    y = keras.utils.to_categorical(y_train[:script.BATCH_SIZE], len(class_names))
    served = script.batches(x_train[:number], y_train[:number], len(class_names), training=True)

    def compiled(layers):
        model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
        optimizer = script.make_optimizer(1e-6, script.WEIGHT_DECAY)
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=script.LABEL_SMOOTHING)
        model.compile(optimizer, loss, metrics=["accuracy"])
        return model

    model = script.build_model(x_train, len(class_names))
    whole = compiled(model.layers)
    bare = compiled([layer for layer in model.layers if layer.name not in ("shift", "mirror")])

    def bare_loop():
        for _ in range(number // len(x)):
            bare.train_on_batch(x, y)

    def loop_with_augmentation():
        for _ in range(number // len(x)):
            whole.train_on_batch(x, y)

    def fit():
        whole.fit(served, verbose=0, shuffle=False)

    found = {"whole run": len(x_train) * len(seconds) / sum(seconds)}
    found.update(in_turn({
        "bare loop": (bare_loop, number // len(x) * len(x)),
        "with augmentation": (loop_with_augmentation, number // len(x) * len(x)),
        "with fit and input": (fit, number // len(x) * len(x)),
    }))
    return found


def in_turn(contests):
    """Return images/s of the contests by name, each the best of its rounds.

    contests: {name: (function that trains on some images, number of images)}.
    """
    seconds = {name: [] for name in contests}
    for _ in range(ROUNDS + 1):  # the first is for warming up
        for name, (contest, _) in contests.items():
            started = time.perf_counter()
            contest()
            seconds[name].append(time.perf_counter() - started)
    return {name: number / min(seconds[name][1:]) for name, (_, number) in contests.items()}


# %% The same network in PyTorch, if installed
def pytorch_speeds(settings):
    """Images/s of our network (with all its tricks on) and of airbench94 (Jordan, 2024) in PyTorch.

    Bare loops over random pixels. A process of its own, as PyTorch and TensorFlow may each bring an
    LLVM that tolerates no other. Returns {} without PyTorch.
    """
    try:
        import torch
        from torch import nn
    except ImportError:
        return {}
    size, channels = {"cifar10": (32, 3), "mnist": (28, 1)}[settings["DATASET"]]
    is_bfloat16 = settings["PRECISION"] == "mixed_bfloat16"

    def network(filters, activation, head):
        modules = [nn.Conv2d(channels, 8 * channels, 2, bias=False), activation()]
        modules[0].requires_grad_(False)  # the whitening layer
        before = 8 * channels
        for number in filters:
            modules += [
                nn.Conv2d(before, number, 3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(number),
                activation(),
                nn.Conv2d(number, number, 3, padding=1, bias=False),
                nn.BatchNorm2d(number),
                activation(),
            ]
            before = number
        model = nn.Sequential(*modules, *head)
        model(torch.zeros(2, channels, size, size))  # the lazy layer now learns its shape
        return model.to(memory_format=torch.channels_last)

    def contest(model, optimizer, batch_size):
        pixels = torch.randn(batch_size, channels, size, size)
        pixels = pixels.to(memory_format=torch.channels_last)
        labels = torch.randint(10, (batch_size,))
        steps = max(1, settings["BATCH_SIZE"] * STEPS // batch_size)

        def loop():
            for _ in range(steps):
                with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
                    loss = nn.functional.cross_entropy(model(pixels), labels, label_smoothing=0.2)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return loop, steps * batch_size

    def learned(model):
        return [weights for weights in model.parameters() if weights.requires_grad]

    head = [nn.AdaptiveMaxPool2d(1)] if settings["GLOBAL_POOLING"] else []
    head.append(nn.Flatten())
    if settings["DENSE_UNITS"] > 0:
        head += [nn.LazyLinear(settings["DENSE_UNITS"]), nn.ReLU()]
    head += [nn.Dropout(settings["DROPOUT"]), nn.LazyLinear(10)]
    ours = network(settings["FILTERS"], nn.ReLU, head)
    optimizer = torch.optim.AdamW(learned(ours), 1e-6)
    contests = {"ours in PyTorch": contest(ours, optimizer, settings["BATCH_SIZE"])}
    if settings["DATASET"] == "cifar10":
        head = [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(256, 10)]
        airbench94 = network([64, 256, 256], nn.GELU, head)
        optimizer = torch.optim.SGD(learned(airbench94), 1e-6, momentum=0.85, nesterov=True)
        contests["airbench94"] = contest(airbench94, optimizer, 1024)
    return in_turn(contests)


# %% Processes
def run_process(command):
    """Run a command to its end; return the memory that it used at most, in GB (Linux)."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        words = " ".join(str(word) for word in command)
        raise SystemExit(f"benchmark.py: this command failed, see above: {words}")
    return usage.ru_maxrss / 1e6  # from kB


def run_apart(function, arguments):
    """Run one of the functions above in a process of its own.

    arguments: {name: value}. Returns what the function returns, with "peak_gb" added.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder, "answer.json")
        command = [sys.executable, __file__, "--run", function, json.dumps(arguments), answer]
        peak_gb = run_process(command)
        record = json.loads(answer.read_text())
    record["peak_gb"] = peak_gb
    return record


def run_all(datasets, seeds, quick, flags, folder):
    """Run everything; return a list of records, which are kept in the folder's benchmark.json."""
    records = []

    def keep(program, dataset, flags_of_run, record):
        named = {"program": program, "dataset": dataset, "flags": flags_of_run}
        records.append({**named, **record})
        text = json.dumps(records, indent=1)
        (folder / "benchmark.json").write_text(text + "\n", encoding="utf-8")

    for dataset in datasets:  # once, as there is no luck in it
        print(f"Running logistic regression on {dataset}", flush=True)
        record = run_apart("logistic_regression", {"dataset": dataset})
        keep("logistic_regression", dataset, [], record)
    for seed in seeds:
        for dataset in datasets:
            program = TUTORIALS[dataset]
            epochs = QUICK_EPOCHS if quick else TUTORIAL_EPOCHS[program]
            print(f"Running {program} on {dataset}, {epochs} epochs, seed {seed}", flush=True)
            record = run_apart(program, {"epochs": epochs, "seed": seed})
            keep(program, dataset, ["--seed", str(seed)], record)
            runs = [SHORT_FLAGS[dataset]]
            if not quick:
                runs.append([])  # the default settings
            for run in runs:
                flags_of_run = [*run, *flags, "--seed", str(seed)]
                print("Running ours on", dataset, *flags_of_run, flush=True)
                record = run_ours(dataset, flags_of_run)
                record["images_per_second"] = all_speeds(record)
                keep("ours", dataset, flags_of_run, record)
    return records


def all_speeds(record):
    """Return images/s of our network, in the whole run and in loops, also in PyTorch."""
    settings = record["settings"]
    found = run_apart("speeds", {"settings": settings, "seconds": record["seconds"]})
    found.update(run_apart("pytorch_speeds", {"settings": settings}))
    del found["peak_gb"]
    return found


# %% The report
def course(record):
    """Return a list of pairs (seconds of training so far, accuracy), one for each epoch."""
    pairs = []
    total = 0.0
    for seconds, accuracy in zip(record["seconds"], record["accuracy"]):
        total += seconds
        pairs.append((total, accuracy))
    return pairs


def beside_the_tutorial(record, tutorial_record):
    """Return in words what the tutorial had reached in our time, and when we passed its end."""
    limit = sum(record["seconds"])
    goal = tutorial_record["test_accuracy"]
    in_time = [accuracy for seconds, accuracy in course(tutorial_record) if seconds <= limit]
    passed = [seconds for seconds, accuracy in course(record) if accuracy >= goal]
    reached = "no epoch yet"
    if in_time:
        reached = f"{in_time[-1]:.1%}"
    when = "never"
    if passed:
        when = f"after {passed[0]:.0f} s"
    return f"the tutorial in that time: {reached}; at the tutorial's last {goal:.1%}: {when}"


def report(records):
    """Print a table in markdown, and the accuracy after each epoch and images/s of each run."""
    titles = ["data set: program", "epochs", "seconds", "test accuracy", "two views", "six views",
              "peak GB", "beside the tutorial"]
    print("\n|", " | ".join(titles), "|")
    print("|" + " --- |" * len(titles))
    for record in records:
        beside = ""
        if record["program"] == "ours":
            tutorial_record = next(other for other in records
                                   if other["program"] == TUTORIALS[record["dataset"]])
            beside = beside_the_tutorial(record, tutorial_record)
        views = []
        for name in ("test_accuracy_two_views", "test_accuracy_six_views"):
            accuracy = record.get(name)
            views.append(f"{accuracy:.2%}" if accuracy else "")
        cells = [
            f"{record['dataset']}: {' '.join([record['program'], *record['flags']])}",
            str(len(record["seconds"])),
            f"{sum(record['seconds']):.0f}",
            f"{record['test_accuracy']:.2%}",
            *views,
            f"{record['peak_gb']:.1f}",
            beside,
        ]
        print("|", " | ".join(cells), "|")
    for record in records:
        print(f"\n{record['dataset']}: {' '.join([record['program'], *record['flags']])}")
        print("  after each epoch:", ", ".join(f"{a:.1%}" for a in record["accuracy"]))
        speed_words = [f"{name} {speed:,.0f}"
                       for name, speed in record["images_per_second"].items()]
        if speed_words:
            print("  images/s:", ", ".join(speed_words))


def draw(records, path):
    """Draw accuracy over seconds of training, one field for each data set."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files: needs no screen
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib import ticker

    sns.set_theme(style="whitegrid", palette="colorblind")
    datasets = list(dict.fromkeys(record["dataset"] for record in records))
    figure, axes = plt.subplots(1, len(datasets), figsize=(6 * len(datasets), 4.5),
                                layout="constrained", squeeze=False)
    for axis, dataset in zip(axes[0], datasets):
        styles = ["C7D", "C3s--", "C0o-", "C2^-.", "C4v:"]  # a new one for each new label
        style_of_label = {}
        for record in records:
            if record["dataset"] != dataset:
                continue
            label = label_in_picture(record)
            seconds, accuracies = zip(*course(record))
            if label in style_of_label:  # another seed: the same style, and no second entry
                axis.plot(seconds, accuracies, style_of_label[label], markersize=4)
            else:
                style_of_label[label] = styles.pop(0)
                axis.plot(seconds, accuracies, style_of_label[label], markersize=4, label=label)
        axis.set(title=dataset, xlabel="seconds of training", xscale="log",
                 ylabel="accuracy (ours: validation, others: test images)")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_formatter(ticker.PercentFormatter(xmax=1, decimals=None))
        axis.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def label_in_picture(record):
    """Return the name of a program with its flags, but not the seed."""
    flags = record["flags"]
    if "--seed" in flags:
        flags = flags[:flags.index("--seed")]
    return " ".join([LABELS[record["program"]], *flags])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--datasets", nargs="+", default=list(TUTORIALS), choices=list(TUTORIALS))
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # for run_apart
    parser.add_argument("flags", nargs="*", help="for our script, after --")
    given = parser.parse_args()
    if given.run:
        function, arguments, answer = given.run
        result = globals()[function](**json.loads(arguments))
        pathlib.Path(answer).write_text(json.dumps(result))
        return
    folder = RESULTS
    seeds = given.seeds
    if given.quick:
        folder = RESULTS / "quick"
        seeds = given.seeds[:1]
    folder.mkdir(parents=True, exist_ok=True)
    records = run_all(given.datasets, seeds, given.quick, given.flags, folder)
    report(records)
    draw(records, folder / "accuracy_over_time.png")
    print("\nIn", os.path.relpath(folder), "benchmark.json, accuracy_over_time.png")


if __name__ == "__main__":
    main()
