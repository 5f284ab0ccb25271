"""Which script learns more in a minute? Runs ours and the two that most people start from, in turn.

    python tests/benchmark.py            # default settings, seeds 0, 1 and 2: some hours on two cores
    python tests/benchmark.py --quick    # a look: one seed, few epochs
    python tests/benchmark.py --datasets cifar10 -- --precision mixed_bfloat16    # flags for our script

The others are written anew from their descriptions: the tutorial "Convolutional Neural Network (CNN)" of
TensorFlow on CIFAR-10 and Keras' example "Simple MNIST convnet" on MNIST. Each run is a process of its own.
Seconds are those of the training steps alone, without imports, loading and validation. It needs the data sets,
from a download or a copy, and with PyTorch installed it measures the same network there as well.
Writes outputs/benchmark/benchmark.json and accuracy_over_time.png.
"""

import argparse
import json
import os
import pathlib
import resource
import runpy
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "outputs" / "benchmark"
OTHERS = dict(cifar10="tutorial", mnist="mnist_convnet")
STEPS = 40  # in a measurement of images/s
SHORT = dict(cifar10=["--epochs", "3", "--filters", "32", "64", "128"], mnist=["--epochs", "1"])


def tutorial(epochs=10):
    """TensorFlow's tutorial: convolutions of 32, 64 and 64 filters, Dense 64, Adam, batches of 32."""
    from keras import Input, Sequential, datasets, layers, losses

    (x_train, y_train), (x_test, y_test) = datasets.cifar10.load_data()
    model = Sequential([
        Input((32, 32, 3)),
        layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.Flatten(),
        layers.Dense(64, activation="relu"), layers.Dense(10)])
    model.compile("adam", losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(x_train / 255.0, y_train, epochs=epochs, validation_data=(x_test / 255.0, y_test), verbose=2)


def mnist_convnet(epochs=15):
    """Keras' example: convolutions of 32 and 64 filters, dropout, Adam, batches of 128, a tenth held back."""
    from keras import Input, Sequential, datasets, layers, utils

    (x_train, y_train), (x_test, y_test) = datasets.mnist.load_data()
    x_train, x_test = (x.astype("float32")[..., None] / 255 for x in (x_train, x_test))
    model = Sequential([
        Input((28, 28, 1)),
        layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Flatten(), layers.Dropout(0.5), layers.Dense(10, activation="softmax")])
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    model.fit(x_train[:54000], utils.to_categorical(y_train[:54000]), batch_size=128, epochs=epochs, verbose=2,
              validation_data=(x_test, utils.to_categorical(y_test)))


def run_one(program, dataset, flags):
    """Run one program in this process with a clock in its fit; print as JSON what was found."""
    if program == "pytorch":
        return print("\n" + json.dumps(pytorch(dataset, json.loads(flags[0]))))
    import keras

    found = dict(program=program, dataset=dataset, flags=flags, seconds=[], accuracy=[], images_per_second={})

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.started, self.stopped = time.perf_counter(), None

        def on_test_begin(self, logs=None):
            self.stopped = self.stopped or time.perf_counter()

        def on_epoch_end(self, epoch, logs):
            found["seconds"].append(self.stopped - self.started)
            found["accuracy"].append(float(logs["val_accuracy"]))

    fit = keras.Model.fit
    keras.Model.fit = lambda self, *args, callbacks=(), **more: fit(
        self, *args, callbacks=[*callbacks, Clock()], **more)
    if program == "ours":
        folder = os.path.relpath(RESULTS)
        sys.argv = ["image_recognition_cnn.py", "--dataset", dataset, "--output-dir", folder, *flags]
        names = runpy.run_path(str(ROOT / "image_recognition_cnn.py"))
        images = len(names["x_train"])
        found |= dict(test_accuracy=names["accuracy"], single_view=names["single_view"], settings=names["settings"])
    else:
        keras.utils.set_random_seed(0)
        globals()[program](*map(int, flags))
        images = dict(tutorial=50000, mnist_convnet=54000)[program]
        found |= dict(test_accuracy=found["accuracy"][-1])
    found |= dict(peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)  # kB on Linux
    found["images_per_second"]["whole run"] = images * len(found["seconds"]) / sum(found["seconds"])
    if program == "ours":
        keras.Model.fit = fit
        found["images_per_second"] |= speeds(names)
    print("\n" + json.dumps(found))


def process(program, dataset, *flags):
    """Return what run_one finds in a process of its own."""
    command = [sys.executable, __file__, "--run", program, dataset, "--", *flags]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def speeds(names):
    """Images/s of our network: in a bare loop, with augmentation, and with fit and input as well."""
    import keras

    size = names["BATCH_SIZE"]
    x, y = names["x_train"][:size], keras.utils.to_categorical(names["y_train"][:size], names["num_classes"])
    served = names["batches"](names["x_train"][:size * STEPS], names["y_train"][:size * STEPS], training=True)

    def compiled(layers):
        model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
        optimizer = keras.optimizers.Adam(1e-6, weight_decay=0.25)
        model.compile(optimizer, names["loss_function"], metrics=["accuracy"])
        return model

    every = names["model"].layers
    bare, whole = compiled([layer for layer in every if layer is not names["shift"]]), compiled(every)
    return in_turn(min(len(names["x_train"]), size * STEPS), {
        "bare loop": lambda: [bare.train_on_batch(x, y) for _ in range(STEPS)],
        "with augmentation": lambda: [whole.train_on_batch(x, y) for _ in range(STEPS)],
        "with fit and input": lambda: whole.fit(served, verbose=0, shuffle=False)})


def in_turn(images, contests, rounds=3):
    """Images/s of the contests, each the best of its rounds, as whatever else the machine does only takes away."""
    seconds = {name: [] for name in contests}
    for _ in range(rounds + 1):  # the first is for warming up
        for name, contest in contests.items():
            started = time.perf_counter()
            contest()
            seconds[name].append(time.perf_counter() - started)
    return {name: images / min(times[1:]) for name, times in seconds.items()}


def pytorch(dataset, settings):
    """Images/s of our network and of cifar10-airbench's airbench94 (Jordan, 2024) in PyTorch, if installed.

    In a process of its own: PyTorch and TensorFlow may each bring an LLVM that tolerates no other.
    """
    try:
        import torch
        from torch import nn
    except ImportError:
        return {}
    side, channels = dict(cifar10=(32, 3), mnist=(28, 1))[dataset]

    def network(widths, activation, head):
        layers = [nn.Conv2d(channels, 8 * channels, 2, bias=False).requires_grad_(False), activation()]
        for before, width in zip([8 * channels, *widths], widths):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.MaxPool2d(2),
                       nn.BatchNorm2d(width), activation(),
                       nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), activation()]
        model = nn.Sequential(*layers, *head)
        model(torch.zeros(2, channels, side, side))  # makes the lazy layer
        return model.to(memory_format=torch.channels_last)

    def contest(model, optimizer, size):
        optimizer = optimizer([weights for weights in model.parameters() if weights.requires_grad])
        pixels = torch.randn(size, channels, side, side).to(memory_format=torch.channels_last)
        labels = torch.randint(10, (size,))

        def loop():
            for _ in range(images // size):
                with torch.autocast("cpu", torch.bfloat16, enabled=settings["PRECISION"] == "mixed_bfloat16"):
                    loss = nn.functional.cross_entropy(model(pixels), labels, label_smoothing=0.2)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return loop

    images = max(1024, settings["BATCH_SIZE"] * STEPS // 1024 * 1024)
    ours = network(settings["FILTERS"], nn.ReLU, [
        nn.Flatten(), nn.LazyLinear(settings["DENSE_UNITS"]), nn.ReLU(), nn.Dropout(settings["DROPOUT"]),
        nn.Linear(settings["DENSE_UNITS"], 10)])
    contests = {"ours in PyTorch": contest(ours, lambda w: torch.optim.AdamW(w, 1e-6), settings["BATCH_SIZE"])}
    if dataset == "cifar10":
        airbench94 = network([64, 256, 256], nn.GELU, [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(256, 10)])
        sgd = lambda w: torch.optim.SGD(w, 1e-6, momentum=0.85, nesterov=True)
        contests["airbench94"] = contest(airbench94, sgd, 1024)
    return in_turn(images, contests)


def course(run):
    """Pairs (seconds of training so far, validation accuracy), one for each epoch."""
    return [(sum(run["seconds"][:i + 1]), accuracy) for i, accuracy in enumerate(run["accuracy"])]


def report(runs):
    """Print one table: each run beside the other program's first run on the same data."""
    print("\nprogram       data set epochs seconds   test peak GB  beside the other")
    for run in runs:
        other = next(r for r in runs if r["dataset"] == run["dataset"] and r["program"] != run["program"])
        limit, goal = sum(other["seconds"]), other["test_accuracy"]
        in_time = [f"{accuracy:.1%}" for seconds, accuracy in course(run) if seconds <= limit]
        reached = [f"after {seconds:.0f} s" for seconds, accuracy in course(run) if accuracy >= goal]
        print(f"{run['program']:14}{run['dataset']:9}{len(run['seconds']):6}{sum(run['seconds']):8.0f}"
              f"{run['test_accuracy']:7.2%}{run['peak_gb']:8.2f}  {['no epoch', *in_time][-1]} in its "
              f"{limit:.0f} s; its {goal:.1%} {[*reached, 'never'][0]}", *run["flags"])
        print("    after each epoch:", *(f"{accuracy:.1%}" for accuracy in run["accuracy"]))
        speeds = run["images_per_second"].items()
        print("    images/s:", ", ".join(f"{name} {speed:.0f}" for name, speed in speeds))


def draw(runs):
    """Draw accuracy over seconds of training, one field for each data set, into accuracy_over_time.png."""
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib import ticker

    sns.set_theme(style="whitegrid", palette="colorblind")
    datasets = list(dict.fromkeys(run["dataset"] for run in runs))
    size = (6 * len(datasets), 4.5)
    figure, axes = plt.subplots(1, len(datasets), figsize=size, layout="constrained", squeeze=False)
    names = dict(ours="this script", tutorial="TensorFlow's tutorial", mnist_convnet="Keras' example")
    for axis, dataset in zip(axes[0], datasets):
        spare, styles = ["C3s--", "C0o-", "C2^-."], {}
        for run in (run for run in runs if run["dataset"] == dataset):
            flags = " ".join(run["flags"][:run["flags"].index("--seed")]) if run["program"] == "ours" else ""
            label = f"{names[run['program']]} {flags}"
            axis.plot(*zip(*course(run)), styles.get(label) or spare[0], markersize=4,
                      label="" if label in styles else label)
            if label not in styles:
                styles[label] = spare.pop(0)
        axis.set(title=dataset, xlabel="seconds of training", ylabel="validation accuracy", xscale="log")
        axis.xaxis.set(major_locator=ticker.LogLocator(subs=(1, 2, 5)), major_formatter="{x:.0f}",
                       minor_locator=ticker.NullLocator())
        axis.legend(loc="lower right")
    figure.savefig(RESULTS / "accuracy_over_time.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--datasets", nargs="+", default=list(OTHERS), choices=list(OTHERS))
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)  # one program and data set, for the processes
    parser.add_argument("flags", nargs="*", help="for our script, after --")
    given = parser.parse_args()
    if given.run:
        return run_one(*given.run, given.flags)
    RESULTS.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in given.seeds[:1] if given.quick else given.seeds:
        for dataset in given.datasets:
            ours = [SHORT[dataset]] if given.quick else [SHORT[dataset], []]
            for program, flags in [
                (OTHERS[dataset], ["3"] if given.quick and dataset == "mnist" else []),
                *[("ours", [*flags, "--seed", str(seed), *given.flags]) for flags in ours],
            ]:
                print("Running", program, "on", dataset, *flags, flush=True)
                runs.append(process(program, dataset, *flags))
                if program == "ours":
                    speeds = runs[-1]["images_per_second"]
                    speeds |= process("pytorch", dataset, json.dumps(runs[-1]["settings"]))
                (RESULTS / "benchmark.json").write_text(json.dumps(runs, indent=1))  # what is done is not lost
    report(runs)
    draw(runs)
    print("In", RESULTS)


if __name__ == "__main__":
    main()
