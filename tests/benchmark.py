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
import pathlib
import resource
import runpy
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "outputs" / "benchmark"
OTHERS = dict(cifar10="tutorial", mnist="mnist_convnet")
SHORT = dict(cifar10=["--epochs", "5", "--filters", "32", "64", "128"], mnist=["--epochs", "1"])


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
        sys.argv = ["image_recognition_cnn.py", "--dataset", dataset, "--output-dir", str(RESULTS), *flags]
        names = runpy.run_path(str(ROOT / "image_recognition_cnn.py"))
        images = len(names["x_train"])
        found |= dict(test_accuracy=names["accuracy"], single_view=names["single_view"])
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


def speeds(names, steps=40, rounds=3):
    """Images/s of our network: in a bare loop, with augmentation, with fit and input, and in PyTorch.

    In turn, `rounds` times; the best of each, as whatever else the machine does only ever takes away.
    """
    import keras

    size = names["BATCH_SIZE"]
    x, y = names["x_train"][:size], keras.utils.to_categorical(names["y_train"][:size], names["num_classes"])
    served = names["batches"](names["x_train"][:size * steps], names["y_train"][:size * steps], shuffle=True)

    def compiled(layers):
        model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
        optimizer = keras.optimizers.Adam(1e-6, weight_decay=0.25)
        model.compile(optimizer, names["loss_function"], metrics=["accuracy"])
        return model

    every = names["model"].layers
    bare, whole = compiled([layer for layer in every if layer not in names["augmentation"]]), compiled(every)
    contests = {
        "bare loop": lambda: [bare.train_on_batch(x, y) for _ in range(steps)],
        "with augmentation": lambda: [whole.train_on_batch(x, y) for _ in range(steps)],
        "with fit and input": lambda: whole.fit(served, verbose=0, shuffle=False),
    } | pytorch(names, x, y, steps)
    seconds = {name: [] for name in contests}
    for _ in range(rounds + 1):  # the first is for warming up
        for name, contest in contests.items():
            started = time.perf_counter()
            contest()
            seconds[name].append(time.perf_counter() - started)
    return {name: min(len(names["x_train"]), size * steps) / min(times[1:]) for name, times in seconds.items()}


def pytorch(names, x, y, steps):
    """Our network and that of cifar10-airbench's airbench94 (Jordan, 2024) in PyTorch, if it is installed."""
    try:
        import torch
        from torch import nn
    except ImportError:
        return {}

    def network(widths, activation, head):
        layers, channels = [nn.Conv2d(x.shape[3], 8 * x.shape[3], 2, bias=False), activation()], 8 * x.shape[3]
        layers[0].requires_grad_(False)
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.MaxPool2d(2),
                       nn.BatchNorm2d(width), activation(),
                       nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), activation()]
            channels = width
        return nn.Sequential(*layers, *head).to(memory_format=torch.channels_last)

    def contest(model, optimizer, size):
        optimizer = optimizer([weights for weights in model.parameters() if weights.requires_grad])
        pixels = torch.tensor(x).permute(0, 3, 1, 2).float().repeat(-(-size // len(x)), 1, 1, 1)[:size]
        pixels = (pixels / 64 - 2).to(memory_format=torch.channels_last)
        labels = torch.tensor(y).argmax(1).repeat(-(-size // len(y)))[:size]

        def loop():
            for _ in range(max(1, steps * len(x) // size)):
                with torch.autocast("cpu", torch.bfloat16, enabled=names["PRECISION"] == "mixed_bfloat16"):
                    loss = nn.functional.cross_entropy(model(pixels), labels, label_smoothing=0.2)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return loop

    units, dropout, classes = names["DENSE_UNITS"], names["DROPOUT"], names["num_classes"]
    ours = network(names["FILTERS"], nn.ReLU, [
        nn.Flatten(), nn.LazyLinear(units), nn.ReLU(), nn.Dropout(dropout), nn.Linear(units, classes)])
    ours(torch.zeros(1, *x.shape[:0:-1]))  # makes the lazy layer
    contests = {"ours in PyTorch": contest(ours, lambda w: torch.optim.AdamW(w, 1e-6), len(x))}
    if names["DATASET"] == "cifar10":
        airbench94 = network([64, 256, 256], nn.GELU, [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(256, 10)])
        sgd = lambda w: torch.optim.SGD(w, 1e-6, momentum=0.85, nesterov=True)
        contests["airbench94"] = contest(airbench94, sgd, 1024)
    return contests


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

    sns.set_theme(style="whitegrid", palette="colorblind")
    datasets = list(dict.fromkeys(run["dataset"] for run in runs))
    size = (6 * len(datasets), 4.5)
    figure, axes = plt.subplots(1, len(datasets), figsize=size, layout="constrained", squeeze=False)
    names = dict(ours="this script", tutorial="TensorFlow's tutorial", mnist_convnet="Keras' example")
    for axis, dataset in zip(axes[0], datasets):
        for program, style in (("ours", "C0o-"), (OTHERS[dataset], "C3s--")):
            chosen = [run for run in runs if (run["dataset"], run["program"]) == (dataset, program)]
            for i, run in enumerate(chosen):
                axis.plot(*zip(*course(run)), style, markersize=4, label="" if i else names[program])
        axis.set(title=dataset, xlabel="seconds of training", ylabel="validation accuracy")
        axis.legend()
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
            quick = {"mnist_convnet": ["3"], "ours": SHORT[dataset]} if given.quick else {}
            for program in (OTHERS[dataset], "ours"):
                flags = quick.get(program, [])
                flags = [*flags, "--seed", str(seed), *given.flags] if program == "ours" else flags
                print("Running", program, "on", dataset, *flags, flush=True)
                command = [sys.executable, __file__, "--run", program, dataset, "--", *flags]
                output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                runs.append(json.loads(output.splitlines()[-1]))
                (RESULTS / "benchmark.json").write_text(json.dumps(runs, indent=1))  # what is done is not lost
    report(runs)
    draw(runs)
    print("In", RESULTS)


if __name__ == "__main__":
    main()
