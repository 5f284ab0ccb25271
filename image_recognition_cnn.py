"""Image recognition with a convolutional neural network (CNN), from pixels to pictures.

    python image_recognition_cnn.py                              # small digits, no download
    python image_recognition_cnn.py --dataset cifar10 --epochs 4     # every setting is a flag
    python image_recognition_cnn.py --dataset my/pictures            # a sub-folder for each class
    python image_recognition_cnn.py --dataset mnist --predict photo.jpg   # asks a trained network

Read from top to bottom: the settings, main() with the whole story on one page, then its chapters.
Chapters 1 to 7 are the lesson: 1 Data, 2 A look at the data, 3 Model, 4 Training, 5 Evaluation,
6 Pictures, 7 Saving. The others are tools, which you need not read to understand the network: 8 Use
a trained network, 9 Your own pictures, 10 Out of the script (browser, phone), 11 Machinery.
"""
import json
import math
import os
import pathlib
import sys
import time

# You may skip from here to the settings. Chapter 8 has some more imports, mostly for the tools.
for name in ("stdout", "stderr"):
    if getattr(sys, name) is None:  # it was closed by whoever started the script
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # without AVX-512: 46 % more images/s
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings, but no notes
stderr_copy = os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow writes notes to stderr while it loads
try:
    import keras
    import matplotlib.pyplot as plt
    import numpy as np
    import pandas as pd
    import seaborn as sns
    import tensorflow as tf
    from keras import callbacks, layers
    from PIL import Image, ImageOps, UnidentifiedImageError
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import classification_report, confusion_matrix
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
except ModuleNotFoundError as error:
    raise SystemExit(
        f"image_recognition_cnn.py: the package {error.name} is missing. Type: python3.13 -m venv "
        f".venv && .venv/bin/python -m pip install tensorflow matplotlib seaborn scikit-learn; use "
        f".venv/bin/python (Python 3.11 to 3.13 will do; this is {sys.version.split()[0]}).")
finally:
    os.dup2(stderr_copy, 2)

# %% Settings: change a number, run again, and see what it did
# dict(...) holds one value per data set ("others": all that are not named), per optimizer, or per
# pair of them. read_settings() picks the one for this run: for digits, EPOCHS is then simply 30.
# Each line is a flag, too (BATCH_SIZE: --batch-size). The functions below read these as globals.
# data
DATASET = "digits"  # digits (no download), mnist, fashion_mnist, cifar10, a folder or an .npz file
IMAGE_SIZE = 64  # width and height that pictures from a folder are brought to, 8 to 512 pixels
VALIDATION_SPLIT = dict(cifar10=0.04, others=0.1)  # share held back of the training images, 0 to 1
AUGMENTATION = True  # show each training image a little changed in every epoch: SHIFT and MIRROR
SHIFT = dict(digits=1, others=2)  # farthest move of a training image at random, 0 or more pixels
MIRROR = dict(fashion_mnist=True, cifar10=True, others=False)  # swap left and right at random
# model
MODEL = "cnn"  # cnn, or a network that has learned from ImageNet: mobilenet_v2, vgg16, resnet50
FILTERS = dict(digits=[64], cifar10=[32, 96, 192], others=[32, 64, 128])  # one number per block
WHITENING = True  # begin with a layer whose filters are computed from the images, not learned
BATCH_NORMALIZATION = True  # bring the numbers between the layers to a steady mean and spread
IDENTITY_START = True  # begin with convolutions that pass their input on, not with random ones
GLOBAL_POOLING = dict(cifar10=True, others=False)  # at the end: each filter's largest answer only
DENSE_UNITS = dict(cifar10=0, others=128)  # neurons of the hidden dense layer, or 0: no such layer
DROPOUT = dict(cifar10=0, others=0.2)  # share of the last layer's inputs left out, 0 to below 1
# training
EPOCHS = dict(mnist=4, fashion_mnist=12, cifar10=10, others=30)  # passes over the images
BATCH_SIZE = dict(mnist=128, fashion_mnist=128, cifar10=128, others=32)  # images per step, from 1
OPTIMIZER = "adam"  # adam or sgd
LEARNING_RATE = dict(adam=dict(cifar10=0.008, others=0.004), sgd=0.1)  # step size, above 0 to 10
SCHEDULE = "cosine"  # cosine (the learning rate rises, then falls to 0), or constant
WEIGHT_DECAY = dict(adam=0.25, sgd=0.01)  # a step lowers a weight by this * rate * weight; 0 to 100
LABEL_SMOOTHING = 0.2  # share of each label that is spread over all classes, from 0 to below 1
PRECISION = "float32"  # number format of the arithmetic: float32, mixed_bfloat16 or mixed_float16
SEED = 0  # start of the random numbers of the training, 0 to 4294967295
# only with a MODEL that has learned from ImageNet
PRETRAINED_SIZE = 96  # width and height that it gets its pictures in, 32 to 512 pixels
HEAD_LEARNING_RATE = dict(adam=0.002, sgd=0.05)  # step size for its new last layer, up to 10
HEAD_WEIGHT_DECAY = dict(adam=5.0, sgd=0.1)  # as WEIGHT_DECAY, for its new last layer, 0 to 100
FINE_TUNE = 0  # epochs in which the last part of it is trained as well, 0 or more
FINE_TUNE_RATE = 1e-5  # step size for that, up to 10; small, so that little is forgotten
# results
OUTPUT_DIR = "outputs"  # a folder; in it, each data set has its own, for its last run
RESUME = False  # go on with a run that was cut off, from its last finished epoch
PREDICT = []  # pictures to classify with the model of an earlier run, in place of training


# %% The story on one page
def main():
    """Train a network, test it and draw what came out. The chapters follow nearly in order."""
    settings = read_settings()  # the block above, changed by flags (chapter 11)
    print("Settings:", ", ".join(f"{name} {value}" for name, value in settings.items()))
    keras.utils.set_random_seed(SEED)  # the random numbers of Python, NumPy and TensorFlow
    if PREDICT:
        return predict_pictures(PREDICT)
    # about: how new pictures are to be prepared. fingerprint: a code that changes with the data.
    (x_train, y_train), (x_val, y_val), (x_test, y_test), class_names, about = load_data()
    fingerprint = data_fingerprint(x_train, y_train, x_val, y_val, x_test, y_test, class_names)
    folder = open_results_folder(settings, fingerprint)
    names, [title] = texts_for_pictures(class_names, [title_of_dataset()])  # short, if need be
    describe_data(x_train, y_train, x_val, y_val, x_test, class_names)
    draw_training_images(x_train, y_train, names, title, folder / "training_images.png")

    model = build_model(x_train, len(class_names))
    model.summary()
    history = train(model, x_train, y_train, x_val, y_val, title, folder)
    temperature = calibrate(model, x_val, y_val)  # "80 % sure" is then right in 80 of 100 cases
    save_model(model, class_names, about, folder)  # now, before anything else can go wrong

    probabilities, results = evaluate(model, temperature, x_val, y_val, x_test, y_test)
    counts = report(results, probabilities, y_test, class_names, folder)

    draw_curves(history, title, folder / "accuracy_loss_curves.png")
    draw_confusion_matrix(counts, names, title, folder / "confusion_matrix.png")
    draw_sample_predictions(
        x_test, y_test, probabilities, names, title, folder / "sample_predictions.png")
    draw_confident_mistakes(
        x_test, y_test, probabilities, names, title, folder / "confident_mistakes.png")
    draw_where_it_looks(
        model, x_test, y_test, probabilities, names, title, folder / "where_it_looks.png")
    draw_learned_features(
        model, x_test, y_test, probabilities, names, title, folder / "learned_features.png")

    write_metrics(results, history, settings, folder)
    write_page(model, class_names, about, title, folder / "try_it.html")
    write_phone_model(model, class_names, x_test, folder / "model.tflite")
    publish_results(folder)  # this and the next one: chapter 11
    record_experiment(settings, results, fingerprint)
    return model, history, results


# %% 1. Data: images to learn from, images to watch the learning, images for the test
# An image is a block of numbers (height, width, channels): whole numbers from 0 (dark) to 255
# (bright); one channel is grey, three are red, green and blue. The label of an image is the number
# of its class.
KERAS_CLASS_NAMES = {
    "mnist": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    "fashion_mnist": ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                      "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer",
                "dog", "frog", "horse", "ship", "truck"],
}


def load_data():
    """Return three parts, the class names, and a dict on how new pictures are to be prepared.

    A part is a pair: images (number, height, width, channels) uint8, and labels (number,) int. The
    network learns from the training images. The validation images are held back from them: choose
    settings by these. The test images are looked at once, at the end. Who chooses by the test
    images finds settings that fit these images by luck, and new images show it.
    """
    validation = None
    test = None
    pixel_range = None  # (black, white) of own pictures with more than 8 bits, see chapter 9
    if DATASET == "digits":
        train = load_digits_as_images()
        class_names = KERAS_CLASS_NAMES["mnist"]
    elif DATASET in KERAS_CLASS_NAMES:
        train, test = load_keras_dataset()
        class_names = KERAS_CLASS_NAMES[DATASET]
    else:
        train, validation, test, class_names, pixel_range = load_own_data()
    if test is None:
        train, test = split(train, share=0.2)  # no setting, so that runs can be compared
    if validation is None:
        train, validation = split(train, share=VALIDATION_SPLIT)
    if DATASET not in built_in_sizes:  # own pictures: some may be there twice
        warn_of_copies(train[0], validation[0], "validation")
        warn_of_copies(train[0], test[0], "test")
    about = about_the_images(train[0], pixel_range)
    return train, validation, test, class_names, about


def load_digits_as_images():
    """Return scikit-learn's handwritten digits: (1797, 8, 8, 1) uint8, labels (1797,) int."""
    digits = load_digits()
    images = np.round(digits.images * 255 / 16)  # (1797, 8, 8); the library has them from 0 to 16
    return images.astype("uint8")[..., np.newaxis], digits.target


def load_keras_dataset():
    """Return the training and the test part of a data set that Keras downloads once."""
    socket.setdefaulttimeout(60)  # seconds; a dead connection would hold up the run for ever
    try:
        train, test = getattr(keras.datasets, DATASET).load_data()
    except Exception as error:  # no internet, a broken file, no room on the disk, ...
        stop(where_to_put_a_copy(error))  # prints this sentence and ends the program (chapter 11)
    return with_channels(train), with_channels(test)


def with_channels(part):
    """Return images as (number, height, width, channels), and labels as (number,) int."""
    images, labels = part
    if images.ndim == 3:
        images = images[..., np.newaxis]  # (60000, 28, 28) becomes (60000, 28, 28, 1)
    return images, labels.ravel().astype(int)


def split(part, share):
    """Cut off a share, the same of every class ("stratified"); return the rest and the cut.

    The cut is the same in every run, whatever SEED is, so that two runs can be compared.
    """
    images, labels = part
    number = max(round(share * len(images)), len(np.unique(labels)))  # one of each class or more
    try:
        x_rest, x_cut, y_rest, y_cut = train_test_split(
            images, labels, test_size=number, stratify=labels, random_state=0)
    except ValueError as error:
        stop(f"--dataset {DATASET} can't be split: a share of {share} of {len(images)} images "
             f"(test: 0.2; validation: --validation-split {VALIDATION_SPLIT}); {error}.")
    return (x_rest, y_rest), (x_cut, y_cut)


# %% 2. A look at the data: before any training, know what you have
# Is every class there, and about as often as the others? Are the labels right? Would you recognize
# the images yourself? And what do answers without a network reach? The network has to beat these.
def describe_data(x_train, y_train, x_val, y_val, x_test, class_names):
    """Print the sizes of the parts, the form of the images, and what simple answers reach."""
    print(f"{len(class_names)} classes, {len(x_train)} training images, {len(x_val)} validation, "
          f"{len(x_test)} test")
    print(f"x_train: shape {x_train.shape}, dtype {x_train.dtype}, "
          f"values {x_train.min()} to {x_train.max()}")
    # 5000 are enough. They are chosen at random, as the images of a folder are sorted by class.
    some = np.random.default_rng(0).permutation(len(x_val))[:5000]
    for name, accuracy in simple_answers(x_train, y_train, x_val[some], y_val[some]).items():
        print(f"Without a network: {name}, {accuracy:.1%} of {len(some)} validation images right")


def simple_answers(x_train, y_train, x_val, y_val):
    """Return what answers without a network reach on the validation images, as shares from 0 to 1.

    The network has to beat them. Images: (number, height, width, channels) uint8; labels: (number,)
    int. Returns {name of the answer: float}.
    """
    commonest = np.bincount(y_train).argmax()
    answers = {"always the commonest class": float(np.mean(y_val == commonest))}

    # Logistic regression is like a network with one layer only: one weight per pixel and class.
    some = np.random.default_rng(0).permutation(len(x_train))[:3000]  # takes seconds, not minutes
    if len(np.unique(y_train[some])) == 1:  # of very unequal classes, the rare one may be missing
        return answers
    # C=0.01: strong decay of the weights. tol and max_iter: when to stop.
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, tol=0.01, max_iter=200))
    regression.fit(small_and_flat(x_train[some]), y_train[some])
    share = regression.score(small_and_flat(x_val), y_val)
    answers[f"logistic regression (on {len(some)} small images)"] = float(share)
    return answers


def small_and_flat(images, largest=16):
    """Bring images (number, height, width, channels) to at most 16x16 pixels: (number, values)."""
    height, width = images.shape[1:3]
    size = (min(height, largest), min(width, largest))
    small = tf.image.resize(images, size, method="area")  # area: the mean of the pixels
    return np.reshape(small, (len(images), -1))


def spread_over_classes(labels, number):
    """Return up to `number` indices: the first image of each class, then the second of each, ...

    labels: (number of images,) int. Returns (at most number,) int.
    """
    occurrence = pd.Series(labels).groupby(labels).cumcount()  # 0 for the first image of its class
    # lexsort sorts by its last key first: by occurrence, and where that is equal by label.
    return np.lexsort((labels, occurrence))[:number]


def draw_training_images(x_train, y_train, class_names, title, path):
    """Draw 24 training images, how many each class has, and one image augmented eight times.

    x_train: (number, height, width, channels) uint8. y_train: (number,) int. title: the data set.
    """
    figure = plt.figure(figsize=(13, 9), layout="constrained")
    figure.suptitle(f"{title}: the images that the network learns from, before the training starts")
    upper, lower = figure.subfigures(2, 1, height_ratios=[3, 1])
    left, right = upper.subfigures(1, 2, width_ratios=[2, 1])

    chosen = spread_over_classes(y_train, 24)
    left.suptitle(f"{len(chosen)} of {len(x_train):,} training images and their classes")
    axes = left.subplots(4, 6).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, i in zip(axes, chosen):
        show_image(axis, x_train[i])
        axis.set_title(class_names[y_train[i]], fontsize=9)

    right.suptitle("Training images of each class")
    draw_class_sizes(right.subplots(), y_train, class_names)

    axes = lower.subplots(1, 9)
    image = x_train[chosen[0]]
    views = np.repeat(image[np.newaxis], 8, axis=0)  # (8, height, width, channels)
    augmentation = augmentation_layers(image.shape)
    if not augmentation:
        lower.suptitle("AUGMENTATION is off: the network gets the same image in every epoch")
    else:
        when = "in each epoch"
        if MODEL != "cnn":  # before that, it learns from the image and (MIRROR) its mirror image
            when = f"in each epoch of fine-tuning (FINE_TUNE: {FINE_TUNE})"
        lower.suptitle("One training image, and examples of what the network gets instead of it "
                       f"{when}\n({names_of_augmentation(augmentation)})")
        augment = keras.Sequential(augmentation)
        views = np.asarray(augment(views.astype("float32"), training=True))
        views = views.round().clip(0, 255).astype("uint8")
    show_image(axes[0], image)
    axes[0].set_title("the image", fontsize=9)
    axes[0].spines[:].set(color="black", linewidth=2)
    for epoch, view in enumerate(views, 1):
        show_image(axes[epoch], view)
        axes[epoch].set_title(f"epoch {epoch}", fontsize=9)
    figure.savefig(path, dpi=120)
    return figure


def show_image(axis, image):
    """Show an image (height, width, channels) uint8 in its own colours, without scales."""
    axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    axis.set_axis_on()
    axis.set(xticks=[], yticks=[])


def draw_class_sizes(axis, labels, class_names):
    """Draw a bar for the number of images of each class; labels: (number of images,) int."""
    numbers = np.bincount(labels, minlength=len(class_names))  # (number of classes,)
    places = np.arange(len(class_names))
    if len(class_names) <= 40:
        bars = axis.barh(places, numbers)
        axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=9)
        axis.set_yticks(places, class_names, fontsize=9)
        axis.margins(x=0.2)  # room for the numbers
    else:  # no room for names: a curve from the commonest to the rarest class
        order = numbers.argsort(kind="stable")[::-1]
        axis.barh(places, numbers[order], height=1, linewidth=0)
        axis.set_yticks([places[0], places[-1]], [class_names[order[0]], class_names[order[-1]]])
        axis.set_ylabel(f"{len(class_names)} classes, the commonest at the top")
    axis.invert_yaxis()  # the first class at the top
    axis.grid(axis="y", visible=False)
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=4)
    axis.set_xlabel("number of images")


def names_of_augmentation(augmentation):
    """Return in words what the augmentation layers do, with the settings that rule it."""
    words = {
        "RandomTranslation": "shifted at random: SHIFT",
        "RandomFlip": "mirrored at random: MIRROR",
    }
    kinds = [type(layer).__name__ for layer in augmentation]
    return ", ".join(words.get(kind, kind) for kind in kinds)


# %% 3. Model: read it as a table; behind each layer stands the shape of what comes out of it
# The words you will meet. Convolution: a filter slides over the image. It has a small square of
# weights for each channel; at each place they are multiplied with the pixels under it and added up.
# The sums are its map: high where the image looks like the filter. The maps of one layer are the
# channels of the next. ReLU: what is below 0 becomes 0. Pooling: of each 2x2 numbers the largest
# stays. Dense: each neuron has a weight for every input. Softmax: ten numbers z become ten
# probabilities; each is e^z, divided by the sum of all ten.
# "+3.0 points" behind a trick: so much it added to the validation accuracy on CIFAR-10 in a short
# training (tests/ablation.py: 3 epochs, filters 16 32 64, mean of 3 seeds). The tricks were added
# one after the other, in the order of outputs/benchmark/staircase.png. "+1.0 points?": the runs
# with and without it overlap, so it may be luck.
def build_model(x_train, num_classes):
    """Return the network that MODEL names, not trained yet."""
    keras.config.set_dtype_policy(PRECISION)
    if MODEL == "cnn":
        return build_cnn(x_train, num_classes)
    return build_pretrained(x_train.shape[1:], num_classes)


def build_cnn(x_train, num_classes):
    """Return a convolutional neural network that takes raw pixels and answers with probabilities.

    In: (number, height, width, channels), 0 to 255. Out: (number, num_classes) float32, each row
    adds to 1. The shapes are those of CIFAR-10, for one image: the first axis, the number of
    images, is left out.
    """
    model = keras.Sequential(name="cnn")
    model.add(keras.Input(x_train.shape[1:]))  # (32, 32, 3)
    for layer in augmentation_layers(x_train.shape[1:]):
        model.add(layer)  # (32, 32, 3), only in training
    normalization = normalization_layer(x_train)
    model.add(normalization)  # (32, 32, 3)
    if WHITENING:
        some_images = normalization(every_kth(x_train, 3_000_000))
        model.add(whitening_layer(some_images))  # (31, 31, 24): 2 pixels fit at 31 places in 32
    for number, filters in enumerate(FILTERS, start=1):
        add_block(model, filters, f"block_{number}")  # (15, 15, 32), (7, 7, 96), (3, 3, 192)
    # Global pooling: only the largest number of each map stays. Was the pattern found, no matter
    # where? On CIFAR-10 that leaves 192 numbers in place of 3 x 3 x 192 = 1728. The other data sets
    # keep all numbers: of a digit, the place of a stroke says a lot. There a hidden dense layer
    # mixes them: each of its neurons looks at all maps and all places.
    # Dropout sets a share of the numbers to 0 at random in each step, so that the answer relies on
    # no single one. (0: it does nothing.)
    # For CIFAR-10 the three were chosen together, by validation images: global pooling, no hidden
    # layer, no dropout. Then 89.4 in place of 88.9 % of the test images were right (8 epochs, rate
    # 0.004, mean of 3 seeds). In the short training: -0.8 points? For own photos, try it.
    if GLOBAL_POOLING:
        model.add(layers.MaxPooling2D(model.output_shape[1:3]))  # (1, 1, 192): of the whole map
    model.add(layers.Flatten())  # (192,), or (1728,) without global pooling
    if DENSE_UNITS > 0:
        model.add(layers.Dense(DENSE_UNITS, activation="relu"))  # (128,), but not on CIFAR-10
    model.add(layers.Dropout(DROPOUT))  # the same shape, only in training
    model.add(layers.Dense(num_classes, activation="softmax", dtype="float32"))  # (10,)
    if IDENTITY_START:
        start_as_identity(model)
    return model


def augmentation_layers(image_shape):
    """Return the layers that move and mirror the training images at random.

    So the network sees many views of each image, and learns it by heart less easily: +0.8 points?
    In evaluation and prediction Keras skips these layers. A mirrored 2 is not a 2, so MIRROR is off
    for digits.
    """
    if not AUGMENTATION:
        return []
    height, width, _ = image_shape
    # Keras wants the farthest shift as a share of the height and the width.
    # What becomes free at the border is filled with the mirrored edge.
    shift = layers.RandomTranslation(
        SHIFT / height, SHIFT / width, interpolation="nearest", name="shift")
    if not MIRROR:
        return [shift]
    return [shift, layers.RandomFlip("horizontal", name="mirror")]


def normalization_layer(x_train):
    """Return a layer that computes (pixel - mean) / standard deviation, for each channel.

    It is part of the model. So the saved model takes raw pixels, and nobody has to scale
    them by hand.
    """
    layer = layers.Normalization()
    layer.adapt(every_kth(x_train, 10_000_000))
    return layer


def every_kth(images, most_numbers):
    """Return every k-th image, so that the sample has about most_numbers pixel values at most."""
    k = math.ceil(images.size / most_numbers)
    return images[::k]


def whitening_layer(images):
    """Return a convolution whose filters are computed from the normalized images, not learned.

    Neighbouring pixels are nearly equal, so most of what a first layer sees is said twice.
    Whitening turns each patch of 2x2 pixels into numbers that are uncorrelated and have a spread of
    1. So no direction of the input outweighs the others, and one step size suits all weights. Each
    filter is there twice, once negated, because ReLU removes what is below 0. +2.5 points.
    Source: whitening as the first layer of a network: Page (2019) and Jordan (2024).
    """
    channels = images.shape[-1]
    patches = keras.ops.image.extract_patches(images, size=2, strides=1)  # (..., 4 * channels)
    patches = np.reshape(patches, (-1, 4 * channels))  # (number of patches, 4 * channels)
    # The covariance says how each two numbers of a patch vary together. Its eigenvectors, the
    # columns of `directions`, are the mixtures of these numbers that don't vary together (principal
    # components). Its eigenvalues, `variances`, say how much each mixture varies.
    covariance = np.cov(patches, rowvar=False)  # (4 * channels, 4 * channels)
    variances, directions = np.linalg.eigh(covariance)
    # Divided by its standard deviation, each mixture has a spread of 1. (The small number 5e-4 is
    # there so that nothing is divided by 0.)
    kernels = directions / np.sqrt(variances + 5e-4)  # (4 * channels, 4 * channels)
    # The numbers of a patch stand in the order row, column, channel, as a filter's weights do.
    kernels = kernels.reshape(2, 2, channels, 4 * channels)
    kernels = np.concatenate([kernels, -kernels], axis=-1)  # (2, 2, channels, 8 * channels)
    layer = layers.Conv2D(8 * channels, 2, use_bias=False, activation="relu", name="whitening")
    layer.build(images.shape)
    layer.set_weights([kernels])
    layer.trainable = False
    return layer


def add_block(model, filters, name):
    """Add layers from maps (height, width, any) to maps (height // 2, width // 2, filters).

    A convolution looks for one small pattern per filter, everywhere in the image; the pattern's map
    says where it was found. Pooling keeps the largest of each 2x2 numbers. It comes right after the
    first convolution, so that all layers behind it work on a quarter of the places (Jordan, 2024):
    that saves half of all multiplications.
    """
    with_bias = not BATCH_NORMALIZATION  # a bias is an offset; batch normalization has its own
    # padding="same": a border of zeros around the input, so that the maps stay as large as it is.
    model.add(layers.Conv2D(filters, 3, padding="same", use_bias=with_bias))  # (h, w, filters)
    model.add(layers.MaxPooling2D())  # (h // 2, w // 2, filters), from here on
    if BATCH_NORMALIZATION:
        model.add(batch_normalization_layer())
    model.add(layers.ReLU())
    model.add(layers.Conv2D(filters, 3, padding="same", use_bias=with_bias))
    if BATCH_NORMALIZATION:
        model.add(batch_normalization_layer())
    model.add(layers.ReLU(name=name))


def batch_normalization_layer():
    """Return a layer that brings each map to a mean of 0 and a spread of 1.

    It subtracts the map's mean over the batch (the images of one training step), and divides by its
    spread, the standard deviation. Then it multiplies each map by a learned scale (gamma) and adds
    a learned offset (beta). With numbers of a steady size, larger steps are safe and the network
    learns faster (Ioffe and Szegedy, 2015): +3.0 points, and +2.9 by the larger steps (a
    LEARNING_RATE of 0.004, not 0.001). In a test an answer must not depend on the other images: the
    layer then uses the averages of the last training batches. Momentum 0.6 (not that of SGD,
    chapter 4) keeps 60 % of the old average at each step, so only the last few batches count.
    """
    return layers.BatchNormalization(momentum=0.6)


def start_as_identity(model):
    """Let the first filters of each convolution copy one input map each, instead of random numbers.

    The network then begins by passing its input through, and learns what to change (Jordan, 2024):
    +1.0 points? Filters beyond the number of input maps stay random: on CIFAR-10, 8 of the 32 of
    the first convolution (it gets 24 maps), none of the second.
    """
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D) and layer.name != "whitening":
            kernel = layer.kernel.numpy()  # (3, 3, maps in, filters)
            maps_in, filters = kernel.shape[2:]
            for i in range(min(maps_in, filters)):
                kernel[:, :, :, i] = 0
                kernel[1, 1, i, i] = 1  # the middle of the 3x3 filter, from map i to map i
            layer.kernel.assign(kernel)


# %% 4. Training: the network looks at the training images, again and again, and corrects itself
def train(model, x_train, y_train, x_val, y_val, title, folder):
    """Train the network that MODEL names; return its history, as `fit` does."""
    if MODEL == "cnn":
        return fit(
            model, x_train, y_train, x_val, y_val, title, folder, LEARNING_RATE, WEIGHT_DECAY)
    return train_pretrained(model, x_train, y_train, x_val, y_val, title, folder)


# One training step, with the numbers of CIFAR-10:
# 1. Forward: the next 128 images pass through all layers; out come 128 x 10 probabilities.
# 2. Loss: one number says how far these are from the right answers. Categorical crossentropy: the
#    mean of -log(probability of the right class); 0 if it is 1, and large if it is near 0.
# 3. Gradient: for each weight, how the loss changes if the weight grows (backpropagation).
# 4. Update: the optimizer moves each weight a small step in the direction that lowers the loss.
# 5. The next 128 images. After 375 steps all 48,000 training images (50,000 less 4 %) have been
#    seen once: that is one epoch.
def fit(model, x_train, y_train, x_val, y_val, title, folder, highest_rate, weight_decay,
        first_epoch=0, epochs=None):
    """Train the model; return its history, a table (pandas DataFrame) with one row per epoch.

    Columns: epoch (from 0), accuracy, loss, val_accuracy, val_loss, learning_rate, seconds. After
    each epoch the table and the curves in the folder are up to date, and RESUME can go on from
    there. first_epoch and epochs are given for fine-tuning only, which goes on after the first
    training.
    """
    num_classes = model.output_shape[1]
    steps_per_epoch = len(x_train) // batch_size_for(len(x_train))
    # Label smoothing asks for a little less than certainty, so that the network need not push its
    # outputs to extremes (Szegedy et al., 2016). At 0.2 and ten classes it asks for 0.82
    # (0.8 + 0.2 / 10) in place of 1, and for 0.02 in place of 0. So this loss can't reach 0: with
    # exactly these answers it is 0.87. (The test loss of chapter 5 is without smoothing.) It is
    # meant for long trainings; in three epochs it gave nothing: -0.4 points?
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=LABEL_SMOOTHING)
    epochs = epochs or EPOCHS
    last_epoch = first_epoch + epochs
    schedule = learning_rate_schedule(epochs * steps_per_epoch, highest_rate)
    optimizer = make_optimizer(schedule, weight_decay)
    model.compile(optimizer, loss, metrics=["accuracy"])
    table = callbacks.CSVLogger(folder / "history.csv", append=RESUME or first_epoch > 0)
    checkpoint = folder / "resume" / f"from_epoch_{first_epoch}"  # for --resume
    try:
        model.fit(
            batches(x_train, y_train, num_classes, training=True),
            validation_data=batches(x_val, y_val, num_classes),
            initial_epoch=first_epoch,
            epochs=last_epoch,
            verbose=1 if sys.stdout.isatty() else 2,  # a moving bar, in a file a line per epoch
            shuffle=False,  # batches() shuffles
            callbacks=[  # what Keras calls after each epoch
                add_columns_callback(model),
                table,
                progress_callback(title, folder, first_epoch, last_epoch),
                callbacks.BackupAndRestore(checkpoint, double_checkpoint=True,
                                           delete_checkpoint=False),
                callbacks.TerminateOnNaN(),
            ])
    except KeyboardInterrupt:
        table.on_train_end()  # closes the file
        path = folder / "history.csv"
        if not path.exists() or path.stat().st_size == 0:
            stop("ended by Ctrl-C in the first epoch; results of earlier runs stay as they were.")
        print("\nCtrl-C ends the training. What was learned so far is tested, drawn and saved.")
    history = read_history(folder)
    if not np.isfinite(history["loss"].iloc[-1]):
        setting = "FINE_TUNE_RATE"
        if first_epoch == 0:
            setting = "LEARNING_RATE" if MODEL == "cnn" else "HEAD_LEARNING_RATE"
        stop(f"The loss became NaN (not a number), as the steps were too large: "
             f"try {flag(setting)} {highest_rate / 10:g}.")
    return history


def learning_rate_schedule(steps, highest):
    """Return the learning rate, the size of the steps, as a function of the number of steps done.

    `highest` is the largest rate, found by trying: on CIFAR-10 (8 epochs, mean of 2 seeds) 89.1,
    89.4 and 89.2 % of 5,000 validation images were right with 0.004, 0.008 and 0.016
    (tests/BENCHMARK.md, "Tried for a higher accuracy").

    "cosine": it rises over the first fifth of the steps, because the first gradients, of an
    untrained network, point in poor directions (warm-up; Goyal et al., 2017). Then it falls to 0
    along half a cosine wave, so that the weights come to rest (Loshchilov and Hutter, 2017): +2.2
    points.
    "constant": it is the highest rate in all steps.
    """
    if SCHEDULE == "constant":
        return highest
    warmup_steps = max(1, steps // 5)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=highest / warmup_steps,
        warmup_target=highest,
        warmup_steps=warmup_steps,
        decay_steps=max(1, steps - warmup_steps))


def make_optimizer(learning_rate, weight_decay):
    """Return the rule that turns gradients into steps: Adam (Kingma and Ba, 2015), or SGD.

    SGD, stochastic gradient descent: step = rate x gradient of a batch. Momentum: in place of that
    gradient, a sum of the last gradients, in which older ones count less and less, so that random
    differences between batches average out. Nesterov: the gradient is taken a little ahead, where
    that sum leads to. Adam also divides by the usual size of each weight's gradients. So its steps
    have the size of the rate, whatever the gradients are, and its rate is another number than that
    of SGD.
    Weight decay makes all weights a little smaller in each step, so that only those that are needed
    stay large: +1.2 points? The older way adds the sum of the squared weights to the loss. Then the
    decay is a part of the gradient, and Adam divides it, too: weights with large gradients would
    hardly decay. Here it is taken off the weight directly ("decoupled" weight decay; Loshchilov and
    Hutter, 2019).
    """
    if OPTIMIZER == "adam":
        optimizer = keras.optimizers.Adam(learning_rate, weight_decay=weight_decay)
    else:
        optimizer = keras.optimizers.SGD(
            learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    # Offsets (bias, beta) and scales (gamma) are few and do not learn images by heart: no decay.
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    return optimizer


def batches(images, labels, num_classes, training=False):
    """Return a tf.data.Dataset of batches: images, and one-hot labels.

    One-hot: with four classes, 0 to 3, the label 2 becomes 0, 0, 1, 0: a probability for each.
    In training the order is new in each epoch, and a last batch that is not full is left out: the
    mean of a few images would spoil batch normalization. As the order changes, each image gets its
    turn.
    """
    one_hot = keras.utils.to_categorical(labels, num_classes)  # (number, num_classes) float32
    dataset = tf.data.Dataset.from_tensor_slices((images, one_hot))
    if training:
        dataset = dataset.shuffle(len(images), seed=SEED)
    dataset = dataset.batch(batch_size_for(len(images)), drop_remainder=training)
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread can hold up the end of an epoch (TensorFlow 2.21)
    return dataset.with_options(options)


def add_columns_callback(model):
    """Return a callback that adds the learning rate and the seconds of each epoch to its row."""
    epoch_ends = [time.perf_counter()]

    def add_columns(epoch, logs):
        epoch_ends.append(time.perf_counter())
        logs["learning_rate"] = float(model.optimizer.learning_rate)
        logs["seconds"] = round(epoch_ends[-1] - epoch_ends[-2], 2)

    return callbacks.LambdaCallback(on_epoch_end=add_columns)


def progress_callback(title, folder, first_epoch, last_epoch):
    """Return a callback that draws the curves after an epoch and says how long the rest takes."""

    path = folder / "accuracy_loss_curves.png"
    drawing_times = []

    def show_progress(epoch, logs):
        history = read_history(folder)
        now = time.perf_counter()
        if not drawing_times:
            print(f"Look at it while it runs: {path}")
        if not drawing_times or now - drawing_times[-1] > 30:  # seconds; drawing takes about one
            plt.close(draw_curves(history, title, path))
            drawing_times.append(now)
        seconds_per_epoch = history["seconds"][first_epoch:].mean()  # fine-tuning: its own epochs
        seconds_left = seconds_per_epoch * (last_epoch - len(history))
        print(f"epoch {epoch + 1} of {last_epoch}, validation {logs['val_accuracy']:.1%}, "
              f"{in_words(seconds_left)} left", flush=True)

    return callbacks.LambdaCallback(on_epoch_end=show_progress)


def in_words(seconds):
    """Return a length of time as a person would say it."""
    if seconds < 90:
        return f"about {seconds:.0f} seconds"
    return f"about {seconds / 60:.0f} minutes"


def read_history(folder):
    """Return the table of epochs that the training wrote.

    An epoch that was cut off and done again by RESUME has two rows; the last one holds.
    """
    history = pd.read_csv(folder / "history.csv")
    return history.drop_duplicates("epoch", keep="last", ignore_index=True)


def calibrate(model, x_val, y_val):
    """Make the confidences honest: "80 %" is right in 80 of 100 cases. Return the temperature.

    Label smoothing makes a network less sure than it could be, long training makes it surer than it
    should be. One number mends most of that (Guo et al., 2017): the inputs of softmax are divided
    by a temperature, the one with the lowest loss on the validation images. No answer changes, only
    its confidence. The division is done in the last layer's weights, so it is part of the saved
    model.
    """
    probabilities = predict(model, x_val)
    one_hot = keras.utils.to_categorical(y_val, probabilities.shape[1])
    # If all validation images are right, the lowest loss is at the smallest temperature: every
    # answer 100 % sure. So we ask for a little less than 100 %, by label smoothing: each of the n
    # images gives up 1 / (n + 2) of its right answer (Platt, 1999). Together they give up about one
    # answer, as if one of the n was wrong.
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=1 / (len(x_val) + 2))
    temperatures = np.geomspace(0.05, 20, 300)  # each the same factor above the one before
    losses = [float(loss(one_hot, change_temperature(probabilities, t))) for t in temperatures]
    temperature = float(temperatures[np.argmin(losses)])
    last_layer = model.layers[-1]
    kernel, bias = last_layer.get_weights()
    last_layer.set_weights([kernel / temperature, bias / temperature])
    return temperature


def change_temperature(probabilities, temperature):
    """Return what softmax would answer if its inputs were divided by the temperature."""
    # T is the temperature. Softmax gave e^z / sum; to the power of 1/T that is
    # e^(z/T) / sum^(1/T). Here sum^(1/T) is the same for all classes of an image, so it makes no
    # difference: each row is divided by its own sum in the end.
    powers = np.maximum(probabilities, 1e-30).astype("float64") ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def batch_size_for(number):
    """Return BATCH_SIZE, or the number of images if there are fewer."""
    return min(BATCH_SIZE, number)


def predict(model, images):
    """Return the model's probabilities for images (number, height, width, channels), raw pixels."""
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(256 if MODEL == "cnn" else 32)
    return model.predict(dataset, verbose=0)  # (number, num_classes) float32


# %% Transfer learning (4, continued): a network that knows a million pictures; not for MODEL "cnn"
# ImageNet is 1.2 million photos of 1000 kinds of things. The edges, textures and parts that a
# network has learned there are of use for other pictures too. So all its layers but the last are
# kept as they are (frozen). Only a new last layer, the head, is trained: that takes few pictures.
def build_pretrained(image_shape, num_classes, weights="imagenet"):
    """Return a network that knows ImageNet, with a new head. It takes raw pixels, as the CNN does.

    The shapes are those of CIFAR-10 and MobileNetV2. weights: "imagenet", a file, or None (random).
    """
    model = keras.Sequential(name=MODEL)
    model.add(keras.Input(image_shape))  # (32, 32, 3)
    for layer in augmentation_layers(image_shape):
        model.add(layer)  # (32, 32, 3), only in fine-tuning
    model.add(layers.Resizing(PRETRAINED_SIZE, PRETRAINED_SIZE))  # (96, 96, 3)
    for layer in preprocessing_layers(image_shape[2]):
        model.add(layer)  # (96, 96, 3)
    base = pretrained_base(weights)
    base.trainable = False  # frozen
    model.add(base)  # (3, 3, 1280): 1280 maps of 3x3 places
    model.add(layers.GlobalAveragePooling2D())  # (1280,): the mean of each map
    # Mean 0 and spread 1 for each picture: then one learning rate suits all three networks.
    model.add(layers.LayerNormalization(center=False, scale=False))  # (1280,): the features
    model.add(layers.Dropout(DROPOUT))  # (1280,), only in training
    model.add(layers.Dense(num_classes, activation="softmax", dtype="float32"))  # (10,)
    return model


def train_pretrained(model, x_train, y_train, x_val, y_val, title, folder):
    """Train the head, then, with FINE_TUNE, the last part of the base too; return the history."""
    # The frozen part gives a picture the same features in every epoch: it looks at each only once.
    frozen_part = keras.Sequential([keras.Input(x_train.shape[1:]), *model.layers[:-2]])
    head = keras.Sequential([keras.Input(frozen_part.output_shape[1:]), *model.layers[-2:]])
    features = compute_features(frozen_part, x_train)  # (number, 1280)
    val_features = compute_features(frozen_part, x_val)
    labels = y_train
    if AUGMENTATION and MIRROR:
        mirrored = compute_features(frozen_part, x_train[:, :, ::-1])
        features = np.concatenate([features, mirrored])
        labels = np.concatenate([y_train, y_train])
    history = fit(head, features, labels, val_features, y_val, title, folder, HEAD_LEARNING_RATE,
                  HEAD_WEIGHT_DECAY)
    if FINE_TUNE > 0 and len(history) >= EPOCHS:  # fewer: ended by Ctrl-C
        unfreeze_last_part(model.layers[-5])  # the base
        history = fit(model, x_train, y_train, x_val, y_val, title, folder, FINE_TUNE_RATE, 0.0,
                      first_epoch=EPOCHS, epochs=FINE_TUNE)
    return history


def unfreeze_last_part(base):
    """Let the last third of the layers learn, but not batch normalization (Chollet, 2020).

    It would replace its averages over a million pictures by averages over a few. `trainable =
    False` prevents that.
    """
    base.trainable = True  # all its layers
    first_to_learn = len(base.layers) * 2 // 3
    for number, layer in enumerate(base.layers):
        is_batch_normalization = isinstance(layer, layers.BatchNormalization)
        layer.trainable = number >= first_to_learn and not is_batch_normalization


# %% 5. Evaluation: the one look at the test images
def evaluate(model, temperature, x_val, y_val, x_test, y_test):
    """Test the model; return probabilities (number of test images, num_classes), and results.

    The results are a dict of numbers by name. The 95 % interval says what luck with the choice of
    test images can do: of 100 such intervals, about 95 hold the accuracy that one would find with
    endless images of the same kind (Wilson, 1927).
    """
    val_right = predict(model, x_val).argmax(axis=1) == y_val  # (number of validation images,) bool
    probabilities = predict(model, x_test)
    predicted = probabilities.argmax(axis=1)
    right = predicted == y_test
    uncalibrated = change_temperature(probabilities, 1 / temperature)  # undoes calibrate()
    results = {
        "validation_accuracy": float(val_right.mean()),
        "validation_images": len(y_val),
        "test_accuracy": float(right.mean()),
        "test_accuracy_interval": wilson_interval(right.sum(), len(right)),  # chapter 11
        "test_images": len(y_test),
        "test_loss": mean_loss(y_test, probabilities),
        "temperature": temperature,
        "calibration_error": calibration_error(y_test, probabilities),
        "calibration_error_before": calibration_error(y_test, uncalibrated),
        "parameters": model.count_params(),
    }
    if AUGMENTATION and MIRROR:  # a second view of each image often helps
        mirrored = predict(model, x_test[:, :, ::-1])  # left and right swapped
        two_views = (probabilities + mirrored) / 2
        results["test_accuracy_two_views"] = float((two_views.argmax(axis=1) == y_test).mean())
    return probabilities, results


def mean_loss(labels, probabilities):
    """Return the mean categorical crossentropy without label smoothing, as others report it."""
    # "Sparse" means that it takes class numbers in place of one-hot labels.
    losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)  # (number,)
    return float(np.mean(losses))


def calibration_error(y_true, probabilities, bins=15):
    """Return how far confidence and accuracy are apart (expected calibration error), from 0 to 1.

    The images are sorted into 15 bins by their confidence. In each bin the mean confidence is
    compared with the share of right answers; the result is the mean difference over all images.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == y_true
    bin_of_image = np.minimum((confidence * bins).astype(int), bins - 1)
    error = 0.0
    for i in range(bins):
        in_bin = bin_of_image == i
        if in_bin.any():
            error += in_bin.mean() * abs(right[in_bin].mean() - confidence[in_bin].mean())
    return float(error)


def report(results, probabilities, y_test, class_names, folder):
    """Print accuracy and scores, write classification_report.txt; return the confusion matrix.

    The matrix is (number of classes, number of classes) int: row i, column j counts the images of
    class i that were taken for class j. Matrix and scores are added to the results.

    Precision: of the images called a cat, the share that are cats. Recall: of the cats, the share
    that are called a cat. F1 score: one number for both, their harmonic mean, 2 x precision x
    recall / (precision + recall). Support: the number of test images of the class. Macro: each
    class counts the same; weighted: by its support.
    """
    low, high = results["test_accuracy_interval"]
    print(f"\nTest accuracy {results['test_accuracy']:.2%} of {len(y_test)} images "
          f"(95 % interval {low:.2%} to {high:.2%}), loss {results['test_loss']:.4f}")
    if "test_accuracy_two_views" in results:
        print(f"Mean of two answers, to each image and to its mirror image: "
              f"{results['test_accuracy_two_views']:.2%}")
    predicted = probabilities.argmax(axis=1)
    classes = range(len(class_names))
    scores = classification_report(
        y_test, predicted, labels=classes, target_names=class_names, digits=4, zero_division=0)
    print(f"\n{scores}")
    numbers_of_classes = ""  # a legend, where pictures show numbers in place of names
    for number, name in enumerate(class_names):
        numbers_of_classes += f"\nclass {number}: {name}"
    (folder / "classification_report.txt").write_text(
        scores + numbers_of_classes + "\n", encoding="utf-8")
    results["classes"] = classification_report(
        y_test, predicted, labels=classes, target_names=class_names, output_dict=True,
        zero_division=0)
    counts = confusion_matrix(y_test, predicted, labels=classes)
    results["confusion_matrix"] = counts.tolist()
    return counts


# %% 6. Pictures: what came out, to look at
sns.set_theme(
    style="whitegrid",
    palette="colorblind",  # colours that colour-blind readers tell apart
    font="DejaVu Sans",  # it has the marks for right and wrong
    rc={"text.parse_math": False},  # a $ in a name is no formula
)


# %% Pictures: how the training went
def draw_curves(history, title, path):
    """Draw accuracy, loss and learning rate over the epochs.

    history: DataFrame with a row for each epoch so far: epoch (from 0), accuracy, loss,
    val_accuracy, val_loss (at the end of the epoch) and learning_rate.
    """
    figure, axes = plt.subplots(1, 3, figsize=(14, 5), layout="constrained")
    epochs = history["epoch"] + 1
    best = history["val_accuracy"].argmax()  # the first, where several are equal
    for axis, name in zip(axes, ["accuracy", "loss"]):
        axis.plot(epochs, history[name], "o-", markersize=4, label="training images")
        axis.plot(epochs, history["val_" + name], "s--", markersize=4, label="validation images")
        axis.plot(epochs[best], history["val_" + name][best], "k*", markersize=14,
                  label="best validation accuracy: " + best_epoch(history))
    axes[2].plot(epochs, history["learning_rate"], "D-", color="C2", markersize=4)
    axes[0].set_title("Accuracy: share of right answers (high is good)", fontsize=11)
    axes[1].set_title("Loss: what the training makes small", fontsize=11)
    axes[2].set_title("Learning rate: size of a step, at the end of the epoch", fontsize=11)
    axes[2].set_ylim(-0.05 * history["learning_rate"].max(), None)
    for axis in axes:
        axis.set_xlabel("epoch (one pass over the training images)")
        axis.xaxis.get_major_locator().set_params(integer=True)
    handles, texts = axes[0].get_legend_handles_labels()
    # One legend for accuracy and loss.
    figure.legend(handles, texts, loc="outside upper center", ncols=3,
                  title=f"{title}: how the training went", title_fontsize=14, frameon=False)
    figure.supxlabel(
        "Training: the mean over the epoch, while the network changes and its images are made "
        "harder (AUGMENTATION, DROPOUT). Validation: after the epoch, on images that it does not\n"
        "learn from. Where training improves and validation does not, it learns by heart. "
        "LABEL_SMOOTHING keeps both losses above 0. The network of the last epoch is kept.",
        fontsize=10)
    figure.savefig(path, dpi=120)
    return figure


def best_epoch(history):
    """Return which epoch had the best validation accuracy, and whether others were as good."""
    accuracies = history["val_accuracy"]
    best = history["epoch"][accuracies.argmax()] + 1
    equal = int((accuracies == accuracies.max()).sum())
    if equal == 1:
        return f"epoch {best}"
    return f"epoch {best}, first of {equal} equal"


# %% Pictures: which class is taken for which
def draw_confusion_matrix(counts, class_names, title, path):
    """Draw which class is taken for which; counts: (true class, predicted class) int."""
    number = len(class_names)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)  # of each row; clip: no 0 / 0
    texts = np.full(counts.shape, "", dtype=object)
    for true, predicted in np.argwhere(counts + np.eye(number)):  # on the diagonal also a 0
        share = shares[true, predicted]
        # The cells are narrow: "100%", not "100.0%"; and no rounding up to that, if one is missing.
        percent = "100%" if share == 1 else f"{min(share, 0.999):.1%}"
        texts[true, predicted] = f"{counts[true, predicted]}\n{percent}"
    side = np.clip(3 + 0.6 * number, 6.5, 22)  # inches
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    names_shown = True if number <= 100 else "auto"  # auto: as many names as there is room for
    table = pd.DataFrame(shares, class_names, class_names)
    sns.heatmap(table, ax=axis, vmin=0, vmax=1, cmap="Blues",
                annot=texts if number <= 30 else None, fmt="", linecolor="lightgrey",
                linewidths=0.5 if number <= 30 else 0,
                xticklabels=names_shown, yticklabels=names_shown,
                cbar_kws={"label": "share of the true class (of its row)", "format": "{x:.0%}"})
    for text, share in zip(axis.texts, shares.ravel()):
        text.set_color("white" if share > 0.6 else "black")  # seaborn's own: white on light blue
    axis.tick_params("both", rotation=0, labelsize=np.clip(1000 / number, 6, 11))
    right = counts.trace() / max(counts.sum(), 1)
    axis.set(xlabel="predicted class (what the network says)", ylabel="true class (what it is)")
    axis.set_title(f"{title}: which class is taken for which?\nOn the diagonal: the right answers, "
                   f"{right:.2%} of {counts.sum():,} test images\n"
                   f"{commonest_mistake(counts, class_names)}")
    turn_long_labels(figure, axis, number)
    figure.savefig(path, dpi=120)
    return figure


def commonest_mistake(counts, class_names):
    """Return in words which class is most often taken for which; counts: (true, predicted) int."""
    mistakes = counts - np.diag(counts.diagonal())
    if not mistakes.any():
        return "No mistake"
    true, predicted = np.unravel_index(mistakes.argmax(), mistakes.shape)
    words = (f"Commonest mistake: {class_names[true]} taken for {class_names[predicted]},\n"
             f"{mistakes[true, predicted]} of {counts[true].sum():,} times")
    equal = int((mistakes == mistakes.max()).sum())
    if equal > 1:
        words += f"\n(first of {equal} equally common)"
    return words


def turn_long_labels(figure, axis, number):
    """Turn the texts below a table of `number` columns if they don't fit side by side."""
    figure.draw_without_rendering()  # only now the texts have places and sizes
    boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
    widest = max(box.width for box in boxes)
    height = max(box.height for box in boxes)
    room = axis.get_window_extent().width / number  # of a column
    if widest < 0.95 * room:
        return
    if 2.5 * height < room:
        plt.setp(axis.get_xticklabels(), rotation=30, horizontalalignment="right",
                 rotation_mode="anchor")
    else:
        axis.tick_params("x", rotation=90)


# %% Pictures: single test images
def choose_samples(labels, probabilities):
    """Return the indices of 30 test images to show, up to 10 mistakes at the end.

    labels: (number,) int. probabilities: (number, classes) float.
    """
    is_wrong = probabilities.argmax(axis=1) != labels
    right = np.flatnonzero(~is_wrong)
    wrong = np.flatnonzero(is_wrong)
    some_wrong = wrong[spread_over_classes(labels[wrong], 10)]
    some_right = right[spread_over_classes(labels[right], 30 - len(some_wrong))]
    return np.concatenate([some_right, some_wrong])


def draw_grid(images, labels, probabilities, class_names, headline):
    """Draw test images six in a row: blue frame and ✓ if right, thick orange and ✗ if wrong.

    images: (number, height, width, channels) uint8. labels: (number,) int. probabilities: (number,
    classes) float. Above each: predicted class, confidence, true class. Returns figure and axes.
    """
    rows = max(1, int(np.ceil(len(images) / 6)))
    figure, axes = plt.subplots(
        rows, 6, figsize=(12, 2.3 * rows + 1), layout="constrained", squeeze=False)
    figure.suptitle(headline)
    axes = axes.ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, label, answer in zip(axes, images, labels, probabilities):
        show_image(axis, image)
        predicted = answer.argmax()
        said = f"{class_names[predicted]}, {in_percent(answer[predicted])}"
        if predicted == label:
            axis.set_title(f"✓ {said}\ntrue: {class_names[label]}", fontsize=10)
            axis.spines[:].set(color="C0", linewidth=2)
        else:
            axis.set_title(f"✗ {said}\ntrue: {class_names[label]}", fontsize=10)
            axis.spines[:].set(color="C3", linewidth=5)
    return figure, axes[:len(images)]


def in_percent(share):
    """Return a share as a text like 93%; what is only nearly certain is not called 100%."""
    if 0.995 <= share < 1:
        return ">99%"
    return f"{share:.0%}"


def draw_sample_predictions(x, y, probabilities, class_names, title, path):
    """Draw 30 test images, up to 10 of them mistakes, with what the network says of them.

    x: (number, height, width, channels) uint8. y: (number,) int. probabilities: (number, classes)
    float.
    """
    chosen = choose_samples(y, probabilities)
    headline = (f"{title}: test images\n"
                "Above each: what the network says, how sure it is, and what is true\n"
                + count_of_mistakes(y, probabilities, chosen))
    figure, _ = draw_grid(x[chosen], y[chosen], probabilities[chosen], class_names, headline)
    figure.savefig(path, dpi=120)
    return figure


def count_of_mistakes(labels, probabilities, chosen):
    """Return in words how many of all mistakes are among the chosen images."""
    is_wrong = probabilities.argmax(axis=1) != labels
    return (f"✓ blue frame: right      ✗ thick orange frame: wrong "
            f"(mistakes in {len(labels):,} test images: {is_wrong.sum():,}; "
            f"here: {is_wrong[chosen].sum()})")


def draw_confident_mistakes(x, y, probabilities, class_names, title, path):
    """Draw the up to 30 wrong answers of which the network was surest.

    Some of their labels may be wrong. Shapes as in draw_sample_predictions.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != y)
    confidence = probabilities.max(axis=1)
    surest_first = np.argsort(-confidence[wrong])  # argsort: the places, the smallest number first
    surest = wrong[surest_first[:30]]
    headline = (f"{title}: the wrong answers of which the network was surest\n"
                f"(mistakes in {len(y):,} test images: {len(wrong):,}; here: {len(surest)})\n"
                "Above each: what the network says, how sure it is, and what is true. "
                "Is it always the network that is wrong?")
    if len(wrong) == 0:
        headline = f"{title}: mistakes with the highest confidence"
    figure, _ = draw_grid(x[surest], y[surest], probabilities[surest], class_names, headline)
    if len(wrong) == 0:
        figure.text(0.5, 0.45, f"There are none: all {len(y):,} test images are recognized.",
                    horizontalalignment="center", fontsize=14)
    figure.savefig(path, dpi=120)
    return figure


# %% Pictures: where it looks
def occlusion_map(model, image, class_index, square, stride):
    """Return how far the probability of a class falls when a square covers each part of an image.

    What can be covered without a fall does not matter to the answer; where the fall is deep, there
    the network looks (Zeiler and Fergus, 2014). image: (height, width, channels) uint8. square: its
    side in pixels; stride: pixels from one place of the square to the next. Returns (height, width)
    float, in shares: 0.3 where the probability falls from 0.9 to 0.6, below 0 where it rises.
    """
    height, width, _ = image.shape
    places = []  # of the square; at the borders it sticks out, so these are covered as well
    for top in range(stride - square, height, stride):  # square 8, stride 4: -4, 0, 4, 8 ...
        for left in range(stride - square, width, stride):
            places.append((slice(max(top, 0), top + square), slice(max(left, 0), left + square)))

    images = np.repeat(image[np.newaxis], 1 + len(places), axis=0)  # image 0 stays whole
    for i, place in enumerate(places, 1):
        images[i][place] = image.mean(axis=(0, 1))  # the mean colour
    probabilities = []
    for start in range(0, len(images), 32):  # few at once: large images take much memory
        answers = model.predict_on_batch(images[start:start + 32])  # (up to 32, number of classes)
        probabilities.extend(answers[:, class_index])

    total = np.zeros((height, width))
    times = np.zeros((height, width))
    for i, place in enumerate(places, 1):
        total[place] += probabilities[0] - probabilities[i]
        times[place] += 1
    return total / times  # for each pixel the mean of all squares that have covered it


def draw_where_it_looks(model, x, y, probabilities, class_names, title, path):
    """Draw the images of sample_predictions.png, and how far the answer falls if a part is covered.

    x: (number, height, width, channels) uint8. y: (number,) int. probabilities: (number, classes)
    float.
    """
    chosen = choose_samples(y, probabilities)
    # A quarter of the side. tests/deletion.py measures how well it finds the parts that matter.
    square = max(2, min(x.shape[1:3]) // 4)
    stride = max(1, square // 2)
    heats = [occlusion_map(model, x[i], probabilities[i].argmax(), square, stride) for i in chosen]
    deepest = max(0.1, np.max(heats))  # one scale for all images

    headline = (f"{title}: where it looks\n"
                f"A square of {square} x {square} pixels in the image's mean colour covers "
                "one part after the other.\n"
                "Yellow, on the image in grey: with this part covered, the network is much less "
                "sure.\n"
                "No yellow anywhere: no part alone decides, or it was not sure anyway.\n"
                + count_of_mistakes(y, probabilities, chosen))
    grey = x[chosen].mean(axis=3, keepdims=True).astype("uint8")
    figure, axes = draw_grid(grey, y[chosen], probabilities[chosen], class_names, headline)
    colours = np.ones((256, 4))  # red, green, blue, opacity; yellow, which everybody sees on grey
    colours[:, :3] = [1, 0.82, 0]
    colours[:, 3] = np.linspace(0, 0.9, 256)  # no fall: no colour, one sees the image
    for axis, heat in zip(axes, heats):
        shown = axis.imshow(100 * heat, cmap=ListedColormap(colours), vmin=0, vmax=100 * deepest)
    scale = figure.colorbar(shown, ax=axes, location="bottom", aspect=60, shrink=0.8, pad=0.01,
                            label="how far the probability of the answer falls, in points "
                                  "(30: from 90% to 60%; 0: not at all, or it rises)")
    scale.ax.set_facecolor("grey")
    figure.savefig(path, dpi=120)
    return figure


# %% Pictures: what the layers have learned
def draw_learned_features(model, x_test, y_test, probabilities, class_names, title, path):
    """Draw the first filters, the blocks' maps of one image, and what excites them most.

    Filters behind the first layer can't be looked at: they work on maps, not on colours. But one
    can look for what they answer to (Zeiler and Fergus, 2014). x_test: (number, height, width,
    channels) uint8. y_test: (number,) int. probabilities: (number, classes) float. Returns None for
    a model without blocks.
    """
    blocks = [layer for layer in model.layers if re.fullmatch(r"block_\d+", layer.name)]
    if MODEL != "cnn":
        print(f"learned_features.png is not drawn: the filters of {MODEL} were learned from "
              f"ImageNet's pictures, not from these.")
        return None
    if not blocks:
        print("learned_features.png is not drawn: this model has no layers block_1, block_2 ...")
        return None
    predicted = probabilities.argmax(axis=1)
    is_right = predicted == y_test
    confidence = probabilities.max(axis=1)
    surest = np.argmax(confidence)
    if is_right.any():
        surest = np.argmax(confidence * is_right)  # of the right answers
    image = x_test[surest]

    number = min(2000, 8_000_000 // (image.shape[0] * image.shape[1]))  # large images: fewer
    some = x_test[spread_over_classes(y_test, number)]
    outputs = {layer.name: layer.output for layer in blocks}
    maps_of_image = keras.Model(model.inputs, outputs).predict(image[np.newaxis], verbose=0)
    strongest = {}  # of each block, the six filters with the strongest answer in this image
    six_outputs = {}
    for name, maps in maps_of_image.items():  # maps: (1, rows, columns, filters)
        largest = maps.max(axis=(0, 1, 2))  # (filters,)
        strongest[name] = np.argsort(-largest)[:6]
        six_outputs[name] = keras.ops.take(outputs[name], strongest[name], axis=-1)
    six_filters = keras.Model(model.inputs, six_outputs)
    maps_of_some = six_filters.predict(some, batch_size=100, verbose=0)  # (number, ..., 6)

    figure = plt.figure(figsize=(12, 3 + 4.5 * len(blocks)), layout="constrained")
    figure.suptitle(f"{title}: what the layers look for, from the first filters to the last block")
    top, *parts = figure.subfigures(1 + len(blocks), 1, height_ratios=[2.5] + [4.5] * len(blocks))
    verdict_on_it = "right" if is_right[surest] else "wrong"
    said = (f"{class_names[predicted[surest]]}, {in_percent(confidence[surest])} sure, "
            f"and {verdict_on_it}")
    draw_first_filters(top, model, image, said)
    for part, layer in zip(parts, blocks):
        field = receptive_field(model, layer.name)
        patches = strongest_patches(maps_of_some[layer.name], some, field)
        sees = f"{field[2]} x {field[2]} pixels"
        if field[2] >= max(image.shape[:2]):
            sees = "the whole image"
        filters = strongest[layer.name]
        maps = maps_of_image[layer.name][0][..., filters]  # (rows, columns, 6)
        maps = maps.astype("float32")  # Matplotlib knows no bfloat16
        draw_block(part, layer, filters, maps, patches, sees)
    figure.savefig(path, dpi=120)
    return figure


def receptive_field(model, layer_name):
    """Return which pixels one place of a layer's map depends on, as (first, step, size) in pixels.

    Place i depends on `size` pixels across, the first of them is first + i * step; the same
    downwards. Layer by layer for CIFAR-10: whitening (0, 1, 2), convolution (-1, 1, 4), pooling
    (-1, 2, 5), convolution (-3, 2, 9), and so on. Below 0: outside of the image, at its border.
    """
    first = 0
    step = 1
    size = 1
    for layer in model.layers:
        window = 1
        stride = 1
        if isinstance(layer, layers.Conv2D):
            window = layer.kernel_size[0]
            stride = layer.strides[0]
        if isinstance(layer, layers.MaxPooling2D):
            window = layer.pool_size[0]
            stride = layer.strides[0]
        # Neighbours in this layer's input are `step` pixels apart. "same": one step further out.
        if window > 1 and layer.padding == "same":
            first -= step * ((window - 1) // 2)
        size += step * (window - 1)
        step *= stride
        if layer.name == layer_name:
            break
    return first, step, size


def strongest_patches(maps, images, field):
    """Return for each filter the parts of nine images at which its answer is strongest.

    maps: (number, rows, columns, filters). images: (number, height, width, channels) uint8. field:
    of receptive_field. Returns a list: for each filter (up to 9, size, size, channels) uint8.
    """
    first, step, size = field
    _, rows, columns, filters = maps.shape
    height, width = images.shape[1:3]
    patch_height = min(size, height)
    patch_width = min(size, width)
    patches = []
    for k in range(filters):
        answers = maps[..., k].reshape(len(maps), -1)  # (number, rows * columns)
        strongest = answers.max(axis=1)  # (number,): the strongest answer in each image
        best_images = np.argsort(-strongest)[:9]
        of_filter = []
        for i in best_images:
            row, column = np.unravel_index(answers[i].argmax(), (rows, columns))
            top = np.clip(first + row * step, 0, height - patch_height)  # moved inside the image
            left = np.clip(first + column * step, 0, width - patch_width)
            of_filter.append(images[i, top:top + patch_height, left:left + patch_width])
        patches.append(np.array(of_filter))
    return patches


def mosaic(tiles, columns):
    """Put tiles (number, height, width, channels) uint8 in rows of `columns`, grey between."""
    missing = -len(tiles) % columns  # 9 tiles in 6 columns: 3 white ones at the end
    gap = max(1, tiles.shape[1] // 12)
    tiles = np.pad(tiles, ((0, missing), (0, gap), (0, gap), (0, 0)), constant_values=190)
    tiles[len(tiles) - missing:] = 255
    rows = [np.hstack(tiles[i:i + columns]) for i in range(0, len(tiles), columns)]
    return np.vstack(rows)[:-gap, :-gap]


def draw_first_filters(figure, model, image, said):
    """Draw the test image and up to 24 filters of the first convolution."""
    left, right = figure.subfigures(1, 2, width_ratios=[1, 3.2])
    left.suptitle(f"A test image:\n{said}", fontsize=11)
    show_image(left.subplots(), image)

    first = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D))
    kernels = np.moveaxis(first.get_weights()[0], 3, 0)  # (filters, height, width, channels)
    rows, columns = first.kernel_size
    if first.name == "whitening":
        kernels = kernels[:len(kernels) // 2]  # the second half is the first one, negated
        text = (f"The first layer ({first.name}): {len(kernels)} filters of {rows} x {columns} "
                "pixels, computed, not learned (each is there a second time, negated)")
    else:
        text = (f"The first convolution: {len(kernels[:24])} of its {len(kernels)} filters of "
                f"{rows} x {columns} pixels, learned")
    right.suptitle(text + "\nEach is drawn as the pattern to which it answers most (black: to dark "
                   "pixels, middle grey: weight 0)", fontsize=11)
    axes = right.subplots(int(np.ceil(len(kernels[:24]) / 12)), 12, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, kernel in zip(axes, kernels):
        largest = max(np.abs(kernel).max(), 1e-9)
        show_image(axis, (127.5 + 127.5 * kernel / largest).astype("uint8"))
        axis.spines[:].set_color("black")


def draw_block(figure, layer, filters, maps, patches, sees):
    """Draw a block's strongest maps, and below each the patches that excite its filter most.

    filters: (up to 6,) int. maps: (rows, columns, filters) float. patches: for each filter (up to
    9, height, width, channels) uint8. sees: in words, what one answer depends on.
    """
    figure.suptitle(
        f"{layer.name}: those {len(filters)} of its {layer.output.shape[-1]} filters that answer "
        f"most strongly to the test image at the top. One answer sees {sees}.", fontsize=11)
    axes = figure.subplots(2, 6)
    for axis in axes.ravel():
        axis.set_axis_off()
    for k, number in enumerate(filters):
        upper, lower = axes[:, k]
        upper.set_title(f"filter {number}", fontsize=10)
        upper.imshow(maps[..., k], cmap="inferno", vmin=0, vmax=max(maps.max(), 1e-9))
        upper.set_axis_on()
        upper.set(xticks=[], yticks=[])
        show_image(lower, mosaic(patches[k], columns=3))
        lower.spines[:].set_visible(False)
    upper_text = "its map of that image\n(yellow: strong answer,\nblack: none)"
    lower_text = "the 9 parts of test\nimages to which it\nanswers most strongly"
    axes[0, 0].set_ylabel(upper_text, fontsize=10)
    axes[1, 0].set_ylabel(lower_text, fontsize=10)


# %% 7. Saving the network and the numbers
def save_model(model, class_names, about, folder):
    """Write model.keras: the network, its weights and the names of its classes, in one file.

    The file is a zip. Keras ignores the two members that are added to it: class_names.json, and
    about.json with what other pictures need to be prepared as the training images were (see
    about_the_images in chapter 9).
    """
    model.save(folder / "model.keras")
    with zipfile.ZipFile(folder / "model.keras", "a") as file:
        file.writestr("class_names.json", json.dumps(class_names))
        file.writestr("about.json", json.dumps(about))


def write_metrics(results, history, settings, folder):
    """Write metrics.json: all results, with the settings and versions that made them."""
    results["epochs_trained"] = len(history)
    results["training_seconds"] = round(float(history["seconds"].sum()), 1)
    metrics = dict(results)
    metrics["settings"] = settings
    metrics["versions"] = {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")


# %% 8. Use a trained network on other pictures
# What follows need not be read to understand the network. It needs some more of Python's library:
import argparse
import base64
import contextlib
import difflib
import glob
import hashlib
import numbers
import re
import shutil
import socket
import tempfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

from matplotlib import font_manager
from matplotlib.colors import ListedColormap
from scipy import stats  # comes with scikit-learn


def predict_pictures(words):
    """Classify picture files with the model of an earlier run; print the likeliest classes of each.

    words: files, folders and wildcards. Draws predictions.png, the pictures as the network was
    given them. Ends with exit status 1 if a file could not be read.
    """
    folder = pathlib.Path(OUTPUT_DIR, title_of_dataset())
    model, class_names, about = load_trained_model(folder)
    paths, missing = expand_pictures(words)
    ends_of_paths = [readable(path)[-20:] for path in paths]
    names, file_names = texts_for_pictures(class_names, ends_of_paths)
    images = []
    titles = []
    for path, file_name in zip(paths, file_names):
        image, remark = prepare_picture(path, model.input_shape[1:], about)
        if image is None:
            continue
        if remark:
            print(f"{readable(path)}: {remark}")
        if np.ptp(image) < 4:
            warn(f"{readable(path)} is of one shade when it is brought to the range of the "
                 "training pictures: the answer says nothing.")
        batch_of_one = image[np.newaxis]  # (1, height, width, channels)
        batch_of_answers = predict(model, batch_of_one)  # (1, number of classes)
        probabilities = batch_of_answers[0]  # (number of classes,)
        likeliest = np.argsort(-probabilities)[:3]  # argsort: the places, the smallest number first
        answers = [f"{class_names[i]} {probabilities[i]:.1%}" for i in likeliest]
        print(f"{readable(path)}: {', '.join(answers)}")
        images.append(image)
        answer = f"{names[likeliest[0]]}, {in_percent(probabilities.max())}"
        titles.append(f"{file_name}\n{answer}")
    if images:
        drawing = folder / "predictions.png"
        try:
            draw_predictions(images[:60], titles[:60], drawing)
            print(f"Drawn in {drawing}")
        except OSError as error:  # the folder is somebody else's, the disk is full, ...
            warn(f"{drawing} can't be written ({error.strerror}).")
    if missing or len(images) < len(paths):
        raise SystemExit(1)


def load_trained_model(folder):
    """Return the model of an earlier run, the names of its classes, and its about.json.

    Keras loads it in safe mode: no code from the file is run. Stops if there is none, or if it was
    trained on another data set.
    """
    path = folder / "model.keras"
    try:
        model = keras.models.load_model(path)
        with zipfile.ZipFile(path) as file:
            class_names = json.loads(file.read("class_names.json"))
            about = json.loads(file.read("about.json"))
    except Exception as error:
        stop(f"--predict has no model ({str(error).splitlines()[0]}): "
             f"first run --dataset {DATASET} alone.")
    if about["dataset"] != resolved_dataset(DATASET):
        stop(f"--predict: the model in {folder} was trained on another data set, "
             f"{about['dataset']}: name it with --dataset, or name the folder of your own model "
             "with --output-dir.")
    return model, class_names, about


def draw_predictions(images, titles, path):
    """Draw pictures (height, width, channels) uint8 as the network was given them, six in a row."""
    rows = math.ceil(len(images) / 6)
    figure, axes = plt.subplots(rows, 6, figsize=(12, 2.3 * rows + 1), layout="constrained")
    figure.suptitle("Your pictures as the network was given them, and what it takes them for")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, text in zip(axes.flat, images, titles):
        show_image(axis, image)
        axis.set_title(text, fontsize=10)
    figure.savefig(path, dpi=120)
    return figure


# %% 9. Your own pictures
# A picture from a phone, a scanner or a microscope is not yet an image as the network wants it.
# It has its own size, its own number of bits, it may lie on its side or have no background.
# This chapter brings every picture to one form: upright, on white, uint8 from 0 to 255, a square.
# The folder that the network learns from and the picture it is asked about go through the same
# functions: a network that is asked in another form than it has learned gives wrong answers.

# The words that people use for the three parts of a data set, in folders and in .npz files.
PART_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}
# Files and folders that an operating system leaves behind; hidden ones start with a dot.
SYSTEM_NAMES = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")
# The usual largest pixel values: a share, then 8, 10, 12, 14 and 16 bits.
WHITE_LEVELS = (1, 255, 1023, 4095, 16383, 65535)

# Pillow warns about photos over 89 megapixels; a new phone takes such photos. Twice as many are
# an error, and that stays: such a file can be an attack that fills the memory.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def load_own_data():
    """Return the three parts of a folder or an .npz file, class names, and pixel range.

    A part is a pair (images uint8, labels int), or None if it has to be cut from the training part.
    """
    if DATASET.lower().endswith(".npz") and os.path.isfile(DATASET):
        *parts, pixel_range = read_npz(DATASET)
    else:
        *parts, pixel_range = read_folder(DATASET)
    x_train, labels_train = parts[0]
    class_names = sort_class_names(labels_train)
    for part in parts:
        if part is not None:
            check_images(part[0], DATASET)
    check_image_size(min(x_train.shape[1:3]))
    check_class_sizes(labels_train)
    numbered = []
    for part in parts:
        if part is None:
            numbered.append(None)
        else:
            numbered.append((part[0], number_labels(part[1], class_names)))
    return *numbered, class_names, pixel_range


def check_class_sizes(labels):
    """Stop if a class has too few training images; labels: (number,) str."""
    names, sizes = np.unique(labels, return_counts=True)
    small = [str(name) for name in names[sizes < 3]]
    if small:
        stop(f"--dataset {DATASET} has too few images of {', '.join(small[:5])}: "
             f"each class takes 3 or more to train on.")


def about_the_images(x_train, pixel_range):
    """Return how another picture is prepared as the training images were (about.json).

    "white_on_black": are they drawings in white ink on black? "ink_share": how much of the width
    the ink fills. "pixel_range": (black, white) of pictures with more than 8 bits, or None.
    """
    white_on_black = looks_white_on_black(x_train)
    return {
        "dataset": resolved_dataset(DATASET),
        "white_on_black": white_on_black,
        "ink_share": ink_share(x_train) if white_on_black else 1.0,
        "pixel_range": pixel_range,
    }


def readable_name(raw_name):
    """Return the bytes of a name as text that can be printed and stored.

    A zip file that was made on a Chinese Windows unpacks to names that are not UTF-8.
    The bytes don't say what they are, so this guesses: Chinese, then western Europe.
    What is neither becomes \\x81 and so on. Never an error.
    """
    for encoding in ("utf-8", "gb2312", "cp1252"):
        try:
            return raw_name.decode(encoding)
        except UnicodeDecodeError:
            continue
    return raw_name.decode("utf-8", errors="backslashreplace")


def readable(path):
    """Return a path as text that can be printed, each of its names by `readable_name`."""
    names = [readable_name(os.fsencode(name)) for name in pathlib.Path(path).parts]
    return str(pathlib.Path(*names))


def list_folder(folder):
    """Return the folders and the files in a folder, two sorted lists of paths, no hidden ones."""
    folders = []
    files = []
    try:
        paths = sorted(pathlib.Path(folder).iterdir())
    except OSError as error:
        stop(f"The folder {readable(folder)} can't be read ({error.strerror}).")
    for path in paths:
        if path.name.startswith(".") or path.name in SYSTEM_NAMES:
            continue
        if path.is_dir():
            folders.append(path)
        else:
            files.append(path)
    return folders, files


# %% Your own pictures: one picture
def is_deep(picture):
    """Return whether an opened Pillow picture has more than 8 bits per value; reads no pixels."""
    if picture.mode == "F" or picture.mode.startswith("I"):  # float, or 16 or 32 bits of grey
        return True
    # Pillow has no mode for colours of 16 bits. It calls them RGB and reads the upper 8 bits.
    # How the file stores them stands in `tile`, a list of (decoder, place, offset, arguments).
    return picture.mode == "RGB" and "RGB;16" in str(picture.tile)


def lower_bits(picture):
    """Make a picture with 16-bit colours, just opened, read its lower 8 bits, not the upper.

    Two bytes make a value, and Pillow keeps only the upper one. So the file is read twice. Told
    the opposite byte order, Pillow takes the other byte.
    """
    big = "RGB;16B"
    little = "RGB;16L"
    swapped_tiles = []
    for decoder, place, offset, arguments in picture.tile:
        is_tuple = isinstance(arguments, tuple)  # (order, ...) in a TIFF, the order alone in a PNG
        order = arguments[0] if is_tuple else arguments
        other_order = little if order == big else big  # "RGB;16N" is the computer's own: little
        arguments = (other_order, *arguments[1:]) if is_tuple else other_order
        swapped_tiles.append((decoder, place, offset, arguments))
    picture.tile = swapped_tiles


def deep_values(path):
    """Return the values of a picture with more than 8 bits, upright, not scaled.

    (height, width) or (height, width, 3), float64. Why the file is opened here: see `open_picture`.
    """
    with open(path, "rb") as file, Image.open(file) as picture:
        is_unsigned = "I;32N" in str(picture.tile)
        values = np.asarray(ImageOps.exif_transpose(picture))
    if is_unsigned:
        values = values.view("uint32")  # Pillow takes 32 bits for signed numbers, always
    values = values.astype("float64")
    if values.ndim == 3:  # colours
        with open(path, "rb") as file, Image.open(file) as picture:
            lower_bits(picture)
            values = 256 * values + np.asarray(ImageOps.exif_transpose(picture))
    return values


def deep_limits(path):
    """Return the (smallest, largest) value of a picture with more than 8 bits; of others, None.

    NaN and infinite values don't count. Pictures that can't be read give None too.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as picture:
            if not is_deep(picture):  # the header of the file says so
                return None
        values = deep_values(path)
    except Exception:  # read_picture names the file and the reason
        return None
    values = values[np.isfinite(values)]
    if values.size == 0:
        return None
    return float(values.min()), float(values.max())


def usual_white(largest):
    """Return the smallest usual level for white that covers the largest value, or that value."""
    for level in WHITE_LEVELS:
        if largest <= level:
            return float(level)
    return largest


def usual_range(values, path):
    """Return (low, high) for one picture with more than 8 bits, when nothing is known about it.

    The largest value of one picture need not be white: the picture may be dark. (In a whole folder,
    some picture will hold white, see `find_pixel_range`.) So white is the smallest usual level
    that covers it.
    """
    finite_values = values[np.isfinite(values)]
    low = float(min(0, finite_values.min(initial=0)))
    high = usual_white(float(finite_values.max(initial=0)))
    print(f"{readable(path)} has more than 8 bits; the model learned from pictures with 8 bits. "
          f"Its values from {low:g} (black) to {high:g} (white) become 0 to 255.")
    return low, high


def to_8_bits(values, pixel_range):
    """Return values of any range as uint8: low becomes 0, high 255; what lies outside is clipped.

    NaN (no value) becomes black.
    """
    low, high = pixel_range
    width = (high - low) or 1  # all values are the same: no division by 0
    finite_values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    shares = np.clip((finite_values - low) / width, 0, 1)
    return np.round(shares * 255).astype("uint8")


def open_picture(path, pixel_range, smallest_size=None):
    """Return a picture file as a Pillow image in mode L or RGB: upright, 8 bits, on white.

    pixel_range: (low, high) of pictures with more than 8 bits, or None (see `usual_range`).
    smallest_size: (width, height) in pixels that is enough; a JPEG is then decoded at 1/2, 1/4
    or 1/8 of its size, which takes a tenth of the time. Raises what Pillow raises.
    """
    # Given the path, Pillow 13.0 scrambles the pixels of some turned TIFFs (those without
    # compression, which it maps into memory). Given the open file, it reads them right.
    with open(path, "rb") as file, Image.open(file) as picture:
        if is_deep(picture):
            values = deep_values(path)
            if pixel_range is None:
                pixel_range = usual_range(values, path)
            return Image.fromarray(to_8_bits(values, pixel_range))
        if smallest_size is not None:
            picture.draft("RGB", smallest_size)  # only JPEG can do this; others ignore it
        # A camera that was held on its side stores that in the file (EXIF), not in the pixels.
        picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    if picture.mode in ("1", "L"):
        return picture.convert("L")
    return picture.convert("RGB")


def cut_square(picture, image_shape):
    """Return the middle of a Pillow image as uint8 (height, width, channels) = image_shape.

    The middle square, if the height and the width are the same.
    """
    height, width, channels = image_shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    picture = ImageOps.fit(picture, (width, height))
    return np.asarray(picture).reshape(image_shape)


def name_unreadable(path, error):
    """Warn that a file is left out, with the reason in one line."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, UnidentifiedImageError):  # its text holds the path once more
        reason = "it has no format that Pillow knows"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    warn(f"Skipped {readable(path)}, which can't be read as a picture: {reason}. "
         "If it is one, save it as JPEG or PNG.")


def read_photo(path, image_shape, pixel_range):
    """Return the middle of a picture file as uint8 (height, width, channels) = image_shape.

    Decoded at no less than twice the wanted size, so that making it smaller averages pixels.
    If the file can't be read, a warning names it and None comes back.
    """
    side = 2 * max(image_shape[:2])
    try:
        picture = open_picture(path, pixel_range, smallest_size=(side, side))
        return cut_square(picture, image_shape)
    except Exception as error:  # Pillow raises many kinds for broken files
        name_unreadable(path, error)
        return None


def read_picture(path, size, pixel_range):
    """Return the middle square of a picture file as uint8 (size, size, 3), or None (see above)."""
    return read_photo(path, (size, size, 3), pixel_range)


# %% Your own pictures: a drawing, prepared as the training images are
# MNIST and its relatives show white ink on black, cut out closely. A photo of pen on paper
# shows the opposite: dark on white, with much paper around it. A network that has seen only
# the first is lost with the second. What the training images are, they say themselves.

INK = 100  # pixels above this value are ink, not background


def looks_white_on_black(x_train):
    """Return whether training images are drawings: one channel, and nearly all white on black.

    x_train: uint8 (number, height, width, channels). More than 0.8 of them must have a dark border,
    a bright spot, and ink of about the same size. A border is dark if the median of the outermost
    pixels is below 25, a tenth of white. It is in 100 % of MNIST, Fashion-MNIST and digits, and in
    2 % of CIFAR-10 made grey.
    """
    if x_train.shape[3] != 1:
        return False
    some = sample_of_drawings(x_train)
    border = np.concatenate([some[:, 0], some[:, -1], some[:, :, 0], some[:, :, -1]], axis=1)
    has_dark_border = np.median(border, axis=1) < 25
    # What is cut out, enlarged and made as bright as white loses its size and its brightness. So
    # only images that all have the same ones, as those of MNIST, are taken for drawings: not cells
    # under a microscope, for example, of which some are small, and some are dim.
    is_white = some.max(axis=(1, 2)) >= 200
    sizes = ink_sizes(x_train)
    is_usual_size = np.abs(sizes / max(np.median(sizes), 0.01) - 1) < 0.2
    return bool(np.mean(has_dark_border & is_white & is_usual_size) > 0.8)


def ink_share(x_train):
    """Return how much of the image the ink fills, from above 0 to 1: MNIST 0.71 (20 of 28 pixels).

    x_train: uint8 (number, height, width, 1), white on black. The median over the images.
    """
    sizes = ink_sizes(x_train)
    sizes = sizes[sizes > 0]
    if len(sizes) == 0:
        return 1.0
    return float(np.median(sizes))


def ink_sizes(x_train):
    """Return the longer side of the ink's bounding box as a share of the image's side, (number,).

    x_train: uint8 (number of images, height, width, 1); number: of sample_of_drawings.
    """
    has_ink = sample_of_drawings(x_train) > INK
    heights = extent(has_ink.any(axis=2))
    widths = extent(has_ink.any(axis=1))
    return np.maximum(heights / x_train.shape[1], widths / x_train.shape[2])


def sample_of_drawings(x_train):
    """Return every k-th of many images, (number, height, width): of 28x28 pixels, 5,000 to 10,000.

    Not the first ones: those of one's own folder are sorted by class.
    """
    return every_kth(x_train[..., 0], 8_000_000)


def extent(is_set):
    """Return the distance from the first to the last True in each row, (number,) int; 0 if none."""
    length = is_set.shape[1]
    first = is_set.argmax(axis=1)
    last = length - 1 - is_set[:, ::-1].argmax(axis=1)
    return np.where(is_set.any(axis=1), last - first + 1, 0)


def prepare_drawing(picture, image_shape, share):
    """Return a drawing as white ink on black, cut out closely, and a remark what it was.

    picture: Pillow image. share: of the width that the ink fills, above 0 to 1, as in training.
    Returns uint8 (height, width, channels) = image_shape, and str.
    """
    height, width, _ = image_shape
    picture = ImageOps.autocontrast(picture.convert("L"))
    first_and_last_row = np.asarray(picture)[[0, -1]]  # there is background, hardly ever ink
    is_dark_on_white = np.median(first_and_last_row) > 127
    remark = "taken for white on black"
    if is_dark_on_white:
        picture = ImageOps.invert(picture)
        remark = "taken for dark on white"
    ink_box = picture.point(lambda pixel: 255 * (pixel > INK)).getbbox()
    if ink_box is None:
        remark += ", no ink found"
    picture = picture.crop(ink_box)
    # The smallest frame of the model's proportions that holds the ink: a square for a square.
    scale = max(picture.width / width, picture.height / height)
    frame = (round(width * scale), round(height * scale))
    picture = ImageOps.pad(picture, frame)
    # The ink shall fill `share` of the whole, so the whole is frame / share. Half of what that adds
    # goes to each side.
    border_share = (1 / share - 1) / 2
    border = (round(frame[0] * border_share), round(frame[1] * border_share))
    picture = ImageOps.expand(picture, border)
    return cut_square(picture, image_shape), remark


def prepare_picture(path, model_shape, about):
    """Return a picture file as the model wants it, and a remark what was done, or None.

    model_shape: (height, width, channels). about: what is stored with the model, a dict with
    "white_on_black" (bool), "ink_share" (float) and "pixel_range" ((low, high) or None).
    Returns uint8 (height, width, channels) and str or None. If the file can't be read, a
    warning names it and both are None.
    """
    if not about["white_on_black"]:
        return read_photo(path, model_shape, about["pixel_range"]), None
    try:
        picture = open_picture(path, about["pixel_range"])
        return prepare_drawing(picture, model_shape, about["ink_share"])
    except Exception as error:  # Pillow raises many kinds for broken files
        name_unreadable(path, error)
        return None, None


def expand_pictures(paths):
    """Return the picture files that the words behind --predict mean, and the words that mean none.

    A word is a file, a folder (its files, sorted) or a wildcard such as *.jpg, which Windows
    hands on as it is. Missing ones are named by a warning. Two lists of str.
    """
    pictures = []
    missing = []
    for word in paths:
        if os.path.exists(word):  # first, as a file's name may hold [ or *
            matches = [word]
        else:
            matches = sorted(glob.glob(word, recursive=True))
        found = []
        for match in matches:
            if os.path.isdir(match):
                _, files = list_folder(match)
                found += [str(file) for file in files]
            else:
                found.append(match)
        if not found:
            missing.append(word)
            warn_missing(word, matches)
        pictures += found
    return pictures, missing


def warn_missing(word, matches):
    """Warn that a word behind --predict means no picture; matches: the folders that it means."""
    if not matches:
        warn(f"--predict {readable(word)}: there is no such file or folder.")
        return
    folders, _ = list_folder(matches[0])
    if folders:
        below = readable(pathlib.Path(matches[0]) / "*")
        warn(f"--predict {readable(word)} holds only folders: did you mean --predict \"{below}\"?")
    else:
        warn(f"--predict {readable(word)} holds no pictures.")


# %% Your own pictures: a folder
def on_all_cores(function, items, task):
    """Return [function(item), ...] for many items; task: what is printed if there are many.

    Threads are enough, as Pillow works outside of Python's lock.
    """
    progress = None
    if len(items) > 500:
        print(task, flush=True)
        is_screen = sys.stdout.isatty() or "ipykernel" in sys.modules
        # 1: a moving bar on a screen. 2: one line at the end, in a file.
        progress = keras.utils.Progbar(
            len(items), verbose=1 if is_screen else 2, unit_name="picture")
    results = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for result in pool.map(function, items):
            results.append(result)
            if progress is not None:
                progress.update(len(results))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C doesn't wait for those that are left
    return results


def read_pictures(paths, pixel_range):
    """Return pictures as uint8 (number, IMAGE_SIZE, IMAGE_SIZE, 3), and which could be read.

    The second is (len(paths),) bool. The pictures take their place in one array as they come.
    A list of pictures that is made into an array would take the memory twice.
    """
    shape = (len(paths), IMAGE_SIZE, IMAGE_SIZE, 3)
    try:
        images = np.empty(shape, "uint8")
    except MemoryError:
        stop(f"{len(paths)} pictures of {IMAGE_SIZE} pixels take {np.prod(shape) / 1e9:.0f} GB of "
             "memory, more than there is: try a smaller --image-size.")

    def read_into_place(place):
        """Read one picture into the array; return whether that went well."""
        picture = read_picture(paths[place], IMAGE_SIZE, pixel_range)
        if picture is None:
            return False
        images[place] = picture
        return True

    task = f"Reading {len(paths)} pictures:"
    is_read = np.array(on_all_cores(read_into_place, range(len(paths)), task), bool)
    readable_places = np.flatnonzero(is_read)
    for new_place, place in enumerate(readable_places):  # closes the gaps without a copy
        images[new_place] = images[place]
    return images[:len(readable_places)], is_read


def find_parts(folder):
    """Return {"train": path, "val": path, "test": path}, those that are there; {} if none is meant.

    A folder named train can be a class as well (train, car, plane). It is the training part
    if another part stands beside it, or if it holds class folders itself.
    """
    folders, _ = list_folder(folder)
    parts = {}
    for path in folders:
        part = PART_NAMES.get(path.name.lower())
        if part in parts:  # None is never in it
            stop(f"--dataset {readable(folder)} has two folders for the same part, "
                 f"{readable(parts[part].name)} and {readable(path.name)}: keep one.")
        if part is not None:
            parts[part] = path
    if "train" in parts and (len(parts) > 1 or folders_with_files(parts["train"])):
        for path in folders:
            if path not in parts.values():
                warn(f"Skipped {readable(path)}, which is neither train nor val nor test.")
        return parts
    for path in parts.values():  # val or test, as there is no train
        if folders_with_files(path):
            stop(f"--dataset {readable(folder)} has a folder {readable(path.name)}, but no folder "
                 "train: name the folder of the training pictures train.")
    return {}


def folders_with_files(folder):
    """Return {class folder: its files} for the folders in a folder that hold files."""
    folders, _ = list_folder(folder)
    files_of = {}
    for path in folders:
        _, files = list_folder(path)
        if files:
            files_of[path] = files
    return files_of


def find_deeper(folder, levels=3):
    """Return the folder below in which class folders with files stand, or None; nearest first."""
    folders, _ = list_folder(folder)
    for path in folders:
        if len(folders_with_files(path)) >= 2:
            is_part = path.name.lower() in PART_NAMES  # x/train/cat: the data set is x
            return path.parent if is_part else path
    if levels > 1:
        for path in folders:
            deeper = find_deeper(path, levels - 1)
            if deeper is not None:
                return deeper
    return None


def class_folders(folder, least=1):
    """Return {class folder: its files}; stops with the fitting sentence if there are too few.

    least: how many class folders there must be.
    """
    files_of = folders_with_files(folder)
    folders, loose_files = list_folder(folder)
    shown = readable(folder)
    if len(files_of) < least:
        deeper = find_deeper(folder)
        if deeper is not None and deeper != pathlib.Path(folder):
            stop(f"--dataset {shown}: found pictures in {readable(deeper)}/*: "
                 f"did you mean --dataset {readable(deeper)}?")
        if files_of:
            [only] = files_of  # two are wanted, and there are some: so there is one
            stop(f"--dataset {shown} has too few classes: {readable(only.name)} is the only folder "
                 f"with pictures in it. Put the pictures of each class into a folder of their own.")
        if folders:
            names = ", ".join(readable(path.name) for path in folders[:5])
            stop(f"--dataset {shown} has too few classes: no pictures in its folders ({names}).")
        stop(f"--dataset {shown} has no class folders, it holds {len(loose_files)} files. "
             "Put the pictures of each class into a folder of their own.")
    for path in folders:
        if path not in files_of:
            warn(f"Skipped {readable(path)}, which holds no pictures.")
            continue
        inner_folders, _ = list_folder(path)
        for inner in inner_folders:
            warn(f"Skipped {readable(inner)}: only files directly in a class folder are read.")
    endings_of_pictures = Image.registered_extensions()  # .jpg, .png, ...
    pictures = [path for path in loose_files if path.suffix.lower() in endings_of_pictures]
    if pictures:
        warn(f"Skipped what is in no class folder of {shown}: {len(pictures)} picture(s).")
    return files_of


def class_folders_of_part(folder, train_folder):
    """Return {class folder: its files} of a val or test folder; stop if there is no class."""
    folders, _ = list_folder(folder)
    if not folders:
        stop(f"--dataset {readable(folder.parent)}: {readable(folder.name)} has no class folders, "
             f"so its pictures have no labels. Train with --dataset {readable(train_folder)}, "
             "of which a fifth is kept for the test.")
    return class_folders(folder)


def unique_class_names(folder_names):
    """Return {folder name: class name}: readable, and different where the folders differ."""
    different = sorted(set(folder_names))
    readable_ones = [name for name in different if readable(name) == name]
    others = [name for name in different if readable(name) != name]
    class_name_of = {}
    for folder_name in readable_ones + others:  # the readable ones first: they keep their names
        class_name = readable(folder_name)
        while class_name in class_name_of.values():
            class_name += " (2)"
        class_name_of[folder_name] = class_name
        if class_name != folder_name:
            print(f"The folder name {os.fsencode(folder_name)} is not UTF-8; "
                  f"it is taken for {class_name}.")
    return class_name_of


def find_pixel_range(files_of_parts):
    """Return the (low, high) of all pictures with more than 8 bits, or None if there are none.

    One scale for the whole data set. A scale for each picture would make all pictures equally
    bright, and brightness can be what tells the classes apart. It comes from the training
    pictures; from the others only if no training picture has more than 8 bits.
    """
    for part in ("train", "val", "test"):
        files = files_of_parts.get(part, [])
        limits = on_all_cores(deep_limits, files, f"Looking at {len(files)} pictures' headers:")
        limits = [pair for pair in limits if pair is not None]
        if limits:
            low = float(min(0, np.min(limits)))
            high = float(np.max(limits))
            largest_values = [largest for _, largest in limits if largest > 0]
            if high > 255 and min(largest_values) <= 1:
                warn(f"some of these pictures hold values up to 1, others up to {high:g}: the "
                     "first become nearly black. Bring all to one range.")
            print(f"{len(limits)} pictures have more than 8 bits: their values from {low:g} to "
                  f"{high:g} become 0 to 255.")
            return low, high
    return None


def read_folder(folder):
    """Read pictures of folder/class/*, or of folder/train/class/*, folder/test/class/* and so on.

    Returns (x_train, labels_train), (x_val, labels_val) or None, (x_test, labels_test) or None,
    and the pixel_range (see `find_pixel_range`). Images: uint8 (number, IMAGE_SIZE, IMAGE_SIZE, 3).
    Labels: (number,) str, the names of the class folders. Stops with a sentence if the folder is
    laid out in another way.
    """
    folder = pathlib.Path(folder)
    parts = find_parts(folder)
    if parts:
        classes_of = {"train": class_folders(parts["train"], least=2)}
        for part in ("val", "test"):
            if part in parts:
                classes_of[part] = class_folders_of_part(parts[part], parts["train"])
    else:
        classes_of = {"train": class_folders(folder, least=2)}
    folder_names = []
    files_of_parts = {}
    for part, files_of in classes_of.items():
        files_of_parts[part] = []
        for path, files in files_of.items():
            folder_names.append(path.name)
            files_of_parts[part] += files
    class_name_of = unique_class_names(folder_names)
    pixel_range = find_pixel_range(files_of_parts)
    data = {}
    for part, files in files_of_parts.items():
        images, is_read = read_pictures(files, pixel_range)
        labels = np.array([class_name_of[file.parent.name] for file in files])
        data[part] = (images, labels[is_read])
    names = {part: readable(parts.get(part, folder)) for part in data}
    train, val, test = three_parts(data, names, readable(folder))
    return train, val, test, pixel_range


def three_parts(data, names, dataset):
    """Return training, validation and test part; stop if their classes don't fit together.

    data: {"train": (images, labels), ...}, perhaps with "val" and "test". names: what the user
    calls them. Without a test part, the validation part is the test.
    """
    check_classes(data, names, dataset)
    if "val" in data and "test" not in data:
        print(f"{names['val']} is taken for the test part, as there is no other. "
              "The validation images are cut from the training images.")
        return data["train"], None, data["val"]
    if "val" in data:
        print(f"{names['val']} is taken for the validation part.")
    return data["train"], data.get("val"), data.get("test")


def check_classes(data, names, dataset):
    """Stop if there are too few or too many classes, or if a class can't be learned.

    A class that is learned but not tested gets a warning.
    """
    labels_train = data["train"][1]
    trained = set(np.unique(labels_train))
    if len(trained) < 2:
        stop(f"--dataset {dataset} has too few classes with readable images: "
             f"{', '.join(sorted(trained)) or 'none'}. It takes 2 or more.")
    if len(trained) > 20 and len(trained) > len(labels_train) / 2:
        stop(f"--dataset {dataset} has {len(trained)} different labels for {len(labels_train)} "
             "training images. A label is the name of a class, and a class takes 3 or more images.")
    for part in data:
        labels = data[part][1]
        if len(labels) == 0:
            stop(f"--dataset {dataset}: {names[part]} holds no readable images; leave it out.")
        there = set(np.unique(labels))
        unknown = ", ".join(sorted(there - trained)[:5])
        if unknown:
            stop(f"--dataset {dataset}: {unknown} is a class in {names[part]}, but not in "
                 f"{names['train']}, so it can't be learned. Are the names spelled alike?")
        absent = ", ".join(sorted(trained - there)[:5])
        if absent:
            warn(f"{names[part]} has no images of {absent}, which is a class in {names['train']}.")


def sort_class_names(labels):
    """Return the different labels as a list of str; numbers by their value, so 10 after 9."""
    class_names = [str(name) for name in np.unique(labels)]
    if all(re.fullmatch("-?[0-9]+", name) for name in class_names):
        return sorted(class_names, key=int)
    return class_names


def number_labels(labels, class_names):
    """Return labels (number,) str as (number,) int: their places in class_names."""
    different, places = np.unique(labels, return_inverse=True)
    numbers = np.array([class_names.index(name) for name in different])
    return numbers[places]


def check_images(x, name):
    """Stop if nearly all images of an array are of one shade; nothing can be learned from them.

    x: uint8 (number, height, width, channels). name: of the data set, for the sentence.
    An image counts as one shade if its darkest and its brightest value differ by less than 4 of
    255. Nobody sees a difference of 3, while values divided by 256 or by 255 by mistake (0 and 1)
    and the noise of a JPEG stay below it. Real images are far above: measured on MNIST,
    Fashion-MNIST, digits and CIFAR-10, the image with the least contrast has 43.
    A few empty images are normal in some data sets; nine of ten are a mistake.
    """
    darkest = x.min(axis=(1, 2, 3)).astype(int)
    brightest = x.max(axis=(1, 2, 3)).astype(int)
    is_one_shade = brightest - darkest < 4
    if np.mean(is_one_shade) >= 0.9:
        stop(f"--dataset {name}: {np.sum(is_one_shade)} of {len(x)} images are of one shade, with "
             f"values from {darkest.min()} to {brightest.max()} of 0 to 255. Look at some of them; "
             "if they hold values from 0 to 1, multiply these by 255.")
    if np.mean(is_one_shade) >= 0.1:
        warn(f"--dataset {name}: {np.sum(is_one_shade)} of {len(x)} images are of one shade. Do "
             "all have the same range of values? Look at some of them.")


def warn_of_copies(x_train, x_part, part):
    """Warn if images of another part are training images, too: the network may know them by heart.

    Both: (number, height, width, channels) uint8. part: "validation" or "test". Only images that
    agree in every pixel are found.
    """
    known = {hash(image.tobytes()) for image in x_train}
    is_copy = [hash(image.tobytes()) in known for image in x_part]
    number = sum(is_copy)
    if number > 0:
        warn(f"{number} of the {len(x_part)} {part} images are training images, too. So the "
             f"{part} accuracy is too high: remove the copies.")


# %% Your own pictures: an .npz file, which holds NumPy arrays under names
# Its arrays are expected as in Keras' own mnist.npz. For a file that is nearly so, the program
# stops and prints the line of NumPy that repairs it. It never guesses: one day it would be wrong.

KIND_NAMES = {
    "x": "x", "image": "x", "images": "x", "img": "x", "imgs": "x", "data": "x",
    "y": "y", "label": "y", "labels": "y", "target": "y", "targets": "y",
}


def role_of_array(array_name):
    """Return x_train, y_train, x_val, ... for an array's name such as X_train or train_images."""
    letters = re.sub("[^a-z0-9]", "", array_name.lower())
    for word, kind in KIND_NAMES.items():
        if letters == word:
            return f"{kind}_train"
        for part_word, part in PART_NAMES.items():
            if letters in (word + part_word, part_word + word):
                return f"{kind}_{part}"
    return None


def name_arrays(array_names, path):
    """Return {"x_train": array's name, "y_train": ..., ...}, without the parts that are not there.

    Stops if arrays are missing, or if two could be meant.
    """
    name_of = {}
    for array_name in array_names:
        role = role_of_array(array_name)
        has_exact_name = role in array_names  # x_train itself is there, so X_train isn't meant
        if role is None or (has_exact_name and role != array_name):
            continue
        if role in name_of:
            stop(f"--dataset {path} holds {name_of[role]} and {array_name}: name the one that is "
                 f"meant {role}.")
        name_of[role] = array_name
    held = ", ".join(array_names[:10]) or "nothing"
    for part in ("train", "val", "test"):
        missing = {f"x_{part}", f"y_{part}"} - set(name_of)
        if missing and (part == "train" or len(missing) == 1):
            stop(f"--dataset {path} holds {held}, but no {' and no '.join(sorted(missing))}. It "
                 "takes x_train, y_train and, if there is a test part, x_test, y_test: "
                 "np.savez_compressed(\"file.npz\", x_train=images, y_train=labels).")
    renamed = [f"{name} as {role}" for role, name in name_of.items() if name != role]
    if renamed:
        print(f"{path}: {', '.join(renamed)}.")
    return name_of


def load_arrays(path):
    """Return {"x_train": array, ...} of an .npz file, as they are in it, and their names there.

    Python objects (pickles) are refused: they could run any program of their author.
    """
    if not zipfile.is_zipfile(path):
        stop(f"--dataset {readable(path)} is no .npz file; np.savez_compressed writes one.")
    arrays = {}
    array_name = ""
    try:
        with np.load(path, allow_pickle=False) as file:
            name_of = name_arrays(file.files, readable(path))
            for role, array_name in name_of.items():
                arrays[role] = np.asarray(file[array_name])
    except Exception as error:  # broken files raise many kinds
        if "allow_pickle" in str(error):
            mending = f"np.stack({array_name})"
            if role.startswith("y"):
                mending = f"{array_name}.astype(str)"
            stop(f"--dataset {readable(path)}: {array_name} holds Python objects (pickles), which "
                 f"could run any program. Store numbers or text: {array_name} = {mending}")
        stop(f"--dataset {readable(path)} can't be read: {array_name} {error}.")
    return arrays, name_of


def is_image_shape(shape):
    """Return whether an array's shape is (number, height, width), with 1 or 3 channels or none."""
    has_axes = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    return has_axes and 8 <= min(shape[1:3]) and max(shape[1:3]) <= 512


def shape_mending(name, shape, number_of_labels):
    """Return the NumPy expression that mends the shape of an image array; "" if none is sure."""
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] > 4:
        return f"{name}.transpose(0, 2, 3, 1)"  # colours first, as PyTorch has them
    if len(shape) == 4 and shape[3] == 4:
        return f"{name}[..., :3]"  # without transparency
    if len(shape) > 2 and shape[-1] == number_of_labels:
        return f"np.moveaxis({name}, -1, 0)"  # the images along the last axis, as MATLAB has them
    if len(shape) == 2:
        side = round(shape[1] ** 0.5)
        if side * side == shape[1]:
            return f"{name}.reshape(-1, {side}, {side})"  # each image is one long row
    return ""


def pixel_mending(name, images):
    """Return the NumPy expression that brings pixels to uint8 from 0 to 255; "" if they are so.

    uint8 alone is not enough. If the largest value is below 64, three quarters of the range are
    empty: the images hold 0 to 1, or 0 to 16, while a picture behind --predict holds 0 to 255.
    """
    low = float(images.min())
    high = float(images.max())
    if low < 0:
        return f'np.interp({name}, [{low:g}, {high:g}], [0, 255]).round().astype("uint8")'
    if high == 0 or 64 <= high <= 255:  # nothing but 0 is the matter of check_images
        return "" if images.dtype == "uint8" else f'{name}.round().astype("uint8")'
    if high <= 1:
        return f'({name} * 255.0).round().astype("uint8")'
    white = high
    if high > 255:
        white = usual_white(high)
    return f'({name} / {white:.10g} * 255).round().astype("uint8")'


def npz_images(path, name, images, number_of_labels):
    """Return an .npz file's images as uint8 (number, height, width, 1 or 3).

    Stops if they are something else, with the line of NumPy that mends the array `name`.
    """
    start = f"--dataset {path}: {name} "
    if images.dtype.kind not in "buif":  # bool, whole numbers, float
        stop(f"{start}holds {images.dtype}, not pixels. It takes uint8 from 0 to 255.")
    if images.shape[:1] != (number_of_labels,) or not is_image_shape(images.shape):
        mending = shape_mending(name, images.shape, number_of_labels)
        line = f" This mends it: {name} = {mending}" if mending else ""
        stop(f"{start}has the shape {images.shape}, and there are {number_of_labels} labels. "
             "It takes uint8 (number, height, width) or (number, height, width, 3), "
             f"height and width from 8 to 512, and a label for each image.{line}")
    if len(images) == 0:
        stop(f"{start}holds no images; leave it out.")
    if not np.isfinite(images).all():
        stop(f"{start}holds NaN (no number) or infinite values. Look where they come from; this "
             f"makes them black: {name} = np.nan_to_num({name}, posinf=0, neginf=0)")
    mending = pixel_mending(name, images)
    if mending:
        advice = ""
        if images.dtype == "uint8" and images.max() <= 1:
            advice = "If they were divided by 255, store them without that, as whole numbers "
            advice += "can't hold 0.5. If they are black and white, multiply by 255. "
        stop(f"{start}holds {images.dtype} from {images.min():g} to {images.max():g}. It takes "
             f"uint8 from 0 to 255. {advice}This mends it: {name} = {mending}")
    if images.ndim == 3:
        return images[..., np.newaxis]
    return images


def npz_labels(path, name, labels, x_name, number_of_images):
    """Return an .npz file's labels as text, (number,) str: decoded, without spaces at the ends.

    Stops if there is not one label for each image, with the line of NumPy that mends the array.
    name, x_name: of the two arrays in the file.
    """
    start = f"--dataset {path}: {name} "
    if labels.ndim == 2 and labels.shape[1] == 1:  # (number, 1), as Keras' CIFAR-10 has them
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "buif":
        is_one_hot = np.all(labels.max(axis=1) == labels.sum(axis=1))
        if is_one_hot:
            stop(f"{start}has the shape {labels.shape}: a row of 0 and one 1 for each image "
                 f"(one-hot). It takes the number of the class: {name} = {name}.argmax(axis=1)")
    if labels.ndim != 1:
        stop(f"{start}has the shape {labels.shape}. It takes one label for each image, "
             f"({number_of_images},).")
    different, places = np.unique(labels, return_inverse=True)
    if labels.dtype.kind == "f":
        if not np.isfinite(different).all():
            number = np.sum(~np.isfinite(labels))
            stop(f"{start}holds NaN (no number) or infinite values in {number} of {len(labels)} "
                 "labels. Leave these images out: "
                 f"keep = np.isfinite({name}); {x_name}, {name} = {x_name}[keep], {name}[keep]")
        if not np.all(different == np.round(different)):
            fraction = different[different != np.round(different)][0]
            stop(f"{start}holds fractions such as {fraction:g}. A label is the number of a class "
                 f"or its name. If they are measured values, part them into classes: "
                 f"{name} = np.digitize({name}, [{np.median(labels):g}])")
        different = different.astype("int64")
    if labels.dtype.kind == "S":
        texts = [readable_name(label) for label in different]
    elif labels.dtype.kind in "buifU":
        texts = [str(label) for label in different]
    else:
        stop(f"{start}holds {labels.dtype}. It takes numbers or text.")
    texts = np.array([text.strip() for text in texts])
    if "" in texts:
        stop(f"{start}holds empty labels. Leave these images out, or name their class.")
    for word in ("nan", "None"):
        if word in texts:
            warn(f"{path}: {name} holds the word {word} as a label. It is taken for a class; "
                 "it may be a missing label that was turned into text.")
    return texts[places]


def read_npz(path):
    """Read the arrays x_train, y_train and, if they are there, x_val, y_val, x_test, y_test.

    Returns (x_train, labels_train), (x_val, labels_val) or None, (x_test, labels_test) or None,
    and None, as in read_folder: an .npz file has no pixel_range, its images have 8 bits.
    Images: uint8 (number, height, width, 1 or 3). Labels: (number,) str.
    """
    arrays, name_of = load_arrays(path)
    shown = readable(path)
    data = {}
    names = {}
    for part in ("train", "val", "test"):
        if f"x_{part}" not in arrays:
            continue
        images = arrays[f"x_{part}"]
        labels = arrays[f"y_{part}"]
        names[part] = name_of[f"x_{part}"]
        labels = npz_labels(shown, name_of[f"y_{part}"], labels, names[part], len(images))
        images = npz_images(shown, names[part], images, len(labels))
        if part != "train" and images.shape[1:] != data["train"][0].shape[1:]:
            stop(f"--dataset {shown}: an image of {names[part]} is {images.shape[1:]}, one of "
                 f"{names['train']} is {data['train'][0].shape[1:]}. They must be alike.")
        data[part] = (images, labels)
    train, val, test = three_parts(data, names, shown)
    return train, val, test, None


# %% 10. Out of the script: the page try_it.html, which recognizes in a browser
# It holds the trained network and computes it in JavaScript, without a server and without Python.


def to_base64(numbers, bits):
    """Return numbers as text: 16 or 32 bits each (IEEE float, low byte first), base64.

    Raises ValueError for a number that this many bits can't hold: above 65504, or not a number.
    """
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is found below
        rounded = np.asarray(numbers, f"<f{bits // 8}")
    if not np.isfinite(rounded).all():
        raise ValueError(f"a weight does not fit into {bits} bits")
    return base64.b64encode(rounded.tobytes()).decode("ascii")


def page_step(kind, shape=(), weights=(), **more):
    """Return one step of the page's network: its kind, its shape, and its weights as text.

    16 bits make the page half as large. Layers with few weights keep 32 bits: the whitening filters
    take the difference of nearly equal pixels times a large number, so their rounding counts most.
    With 16 bits for all, a probability of a CIFAR-10 network was off by up to 0.013, so by 0.001.
    """
    flat = np.concatenate([np.ravel(array) for array in weights]) if weights else np.zeros(0)
    bits = 32 if flat.size < 4096 else 16
    step = {"kind": kind, "shape": [int(size) for size in shape], "bits": bits}
    step["weights"] = to_base64(flat, bits)
    step.update(more)
    return step


def scale_and_offset(layer, channels):
    """Return a normalizing layer as two arrays (channels,): it computes input * scale + offset.

    Outside of training, Normalization and BatchNormalization both subtract a mean and divide by a
    spread that no longer change, and BatchNormalization multiplies by gamma and adds beta.
    """
    if isinstance(layer, layers.Normalization):
        mean = np.ravel(np.asarray(layer.mean, "float32"))  # kept in the precision of the run
        variance = np.ravel(np.asarray(layer.variance, "float32"))
        scale = 1 / np.maximum(np.sqrt(variance), 1e-7)  # 1e-7: Keras' own guard against 1 / 0
        offset = -mean * scale
    else:
        scale = 1 / np.sqrt(np.ravel(layer.moving_variance) + layer.epsilon)
        if layer.scale:
            scale = scale * np.ravel(layer.gamma)
        offset = -np.ravel(layer.moving_mean) * scale
        if layer.center:
            offset = offset + np.ravel(layer.beta)
    ones = np.ones(channels)  # one mean for all channels becomes one for each
    return scale * ones, offset * ones


def activation_steps(layer):
    """Return the steps for the activation inside a layer: none, a ReLU or a softmax."""
    name = layer.activation.__name__
    if name == "linear":
        return []
    if name in ("relu", "softmax"):
        return [page_step(name)]
    raise ValueError(f"it does not compute the activation {name}")


def weighted_steps(kind, layer, **more):
    """Return the steps for a convolution or a dense layer: kernel, bias (0 if none), activation."""
    kernel = np.asarray(layer.kernel)
    bias = np.zeros(kernel.shape[-1])
    if layer.use_bias:
        bias = np.asarray(layer.bias)
    return [page_step(kind, kernel.shape, [kernel, bias], **more), *activation_steps(layer)]


def is_plain_convolution(layer):
    """True for a convolution that moves on by one pixel and looks at all channels."""
    if not isinstance(layer, layers.Conv2D):
        return False
    by_one_pixel = layer.strides == (1, 1) and layer.dilation_rate == (1, 1)
    return by_one_pixel and layer.groups == 1


def layer_steps(layer):
    """Return the steps that the page computes for one Keras layer; ValueError if it can't."""
    only_in_training = (
        layers.RandomTranslation, layers.RandomFlip, layers.RandomRotation, layers.RandomZoom,
        layers.RandomContrast, layers.RandomBrightness, layers.GaussianNoise,
        layers.Dropout, layers.SpatialDropout2D,
    )
    # Flatten changes no number: the page keeps all values in one long row anyway.
    if isinstance(layer, (*only_in_training, layers.Flatten)):
        return []
    if isinstance(layer, (layers.Normalization, layers.BatchNormalization)):
        if layer.axis in (-1, (-1,), 3, (3,)):
            channels = layer.input.shape[-1]
            return [page_step("scale", [channels], scale_and_offset(layer, channels))]
    if is_plain_convolution(layer):
        return weighted_steps("convolution", layer, same=layer.padding == "same")
    if isinstance(layer, layers.Dense):
        return weighted_steps("dense", layer)
    if isinstance(layer, layers.MaxPooling2D):
        if layer.padding == "valid" and layer.strides == layer.pool_size:
            return [page_step("pooling", layer.pool_size)]
    if isinstance(layer, layers.ReLU):
        if layer.max_value is None and layer.negative_slope == 0 and layer.threshold == 0:
            return [page_step("relu")]
    if isinstance(layer, layers.Activation):
        return activation_steps(layer)
    raise ValueError(f"it does not compute the layer {layer.name} ({type(layer).__name__})")


def network_steps(model):
    """Return a Sequential model as a list of steps for the page; ValueError if it can't be one.

    The page shows probabilities, so the last step has to be a softmax.
    """
    steps = []
    for layer in model.layers:
        steps.extend(layer_steps(layer))
    if steps[-1]["kind"] != "softmax":
        raise ValueError("the network does not end in a softmax")
    return steps


def write_page(model, class_names, about, title, path):
    """Write the page that recognizes pictures with this model; return True if there is one.

    model: a Keras Sequential that takes raw pixels, 0 to 255. about: the content of about.json.
    title: the name of the data set. path: of the page. A model with a layer that the page does
    not know gets no page but a sentence.
    """
    try:
        steps = network_steps(model)
    except ValueError as error:
        warn(f"no {pathlib.Path(path).name} for this model, as {error}.")
        return False
    content = {
        "title": title,
        "class_names": list(class_names),
        "input_shape": model.input_shape[1:],
        "white_on_black": bool(about["white_on_black"]),
        "ink_share": float(about["ink_share"]),
        "parameters": model.count_params(),  # as model.summary() counts them
        "steps": steps,
    }
    # A browser ends the data at the first </script>, wherever it stands; with no < there is none.
    text = json.dumps(content).replace("<", "\\u003c")
    page = PAGE.replace("@@THE TRAINED NETWORK@@", text)
    pathlib.Path(path).write_text(page, encoding="utf-8")
    return True


# %% A file for phones and small computers

PHONE_IMAGES = 100  # test images on which the file must answer as the Keras model does
PHONE_TOLERANCE = 0.05  # largest difference of a probability; rounding alone makes 0.001 to 0.02
PHONE_SAME_CLASS = 0.95  # least share of answers of the same class; rounding leaves 0.99 or more


def write_phone_model(model, class_names, x_test, path):
    """Write the model in the format of LiteRT (once TensorFlow Lite), and labels.txt beside it.

    x_test: (number, height, width, channels) uint8. path: pathlib.Path that ends in .tflite. The
    file takes raw pixels 0 to 255, (1, height, width, channels) float32, and gives (1, classes).
    Returns True if the file was kept. It never ends the run: a failure is one sentence on stderr.
    """
    # From all parts of the array: the test images of one's own folder are sorted by class.
    places = np.linspace(0, len(x_test) - 1, min(PHONE_IMAGES, len(x_test))).astype(int)
    images = x_test[places]
    labels = labels_text(class_names)
    try:
        with quiet_stderr():
            export_in_16_bits(model, path)
            add_metadata(path)
            add_labels(path, labels)
            on_phone = phone_answers(path, images)
        fault = compare_answers(model.predict(images, verbose=0), on_phone)
        path.with_name("labels.txt").write_bytes(labels)
    except Exception as error:  # the converter has many, and some of them fill a screen
        message = " ".join(str(error).split())[:150].rstrip(".")
        fault = f"{type(error).__name__}, {message}"
    if fault:
        path.unlink(missing_ok=True)
        path.with_name("labels.txt").unlink(missing_ok=True)
        warn(f"There is no {path.name}, as it could not be made or gave wrong answers: {fault}.")
    return not fault


@contextlib.contextmanager
def quiet_stderr():
    """Send to nowhere what is written to stderr in a `with` block; the converter writes many notes.

    Most come from C++, which writes straight to stream 2 and knows nothing of Python's sys.stderr.
    """
    sys.stderr.flush()
    stream_2 = os.dup(2)  # a second way to the same place, to find back
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stream_2, 2)
            os.close(stream_2)


def export_in_16_bits(model, path):
    """Convert the model: weights in 16 bits (half the file), arithmetic in 32 bits."""
    if PRECISION != "float32":
        model = copy_in_float32(model)
    model.export(
        path,
        format="litert",
        verbose=False,
        # One image, not any number: phones ask for one, and MediaPipe takes nothing else.
        input_signature=[keras.InputSpec(shape=(1, *model.input_shape[1:]), dtype="float32")],
        optimizations=[tf.lite.Optimize.DEFAULT],
        target_spec={
            "supported_types": [tf.float16],
            # Only what every phone can compute. Keras would also allow TensorFlow's own operations.
            "supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS],
        },
    )


def copy_in_float32(model):
    """Return a copy of a model of mixed precision that computes in 32 bits, as LiteRT does."""
    copy = keras.models.clone_model(model, clone_function=layer_in_float32, recursive=True)
    copy.set_weights(model.get_weights())
    for layer in copy.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()  # takes over the mean and variance that were just set
    return copy


def layer_in_float32(layer):
    """Return a copy of a layer, without its weights, that computes in 32 bits."""
    settings = layer.get_config()
    settings["dtype"] = "float32"
    return type(layer).from_config(settings)


def phone_answers(path, images):
    """Return the probabilities (number, classes) float32 that the file gives for images uint8."""
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    image_place = interpreter.get_input_details()[0]["index"]
    answer_place = interpreter.get_output_details()[0]["index"]
    answers = []
    for image in images:
        interpreter.set_tensor(image_place, image[np.newaxis].astype("float32"))
        interpreter.invoke()
        answers.append(interpreter.get_tensor(answer_place)[0])
    return np.array(answers)


def compare_answers(expected, on_phone):
    """Print how well two tables (number, classes) agree; return what is wrong, or "".

    Rounding the weights changes a probability a little, most in deep networks. So it is no fault
    that the class differs now and then, where two classes are as good as equal.
    """
    difference = float(np.abs(on_phone - expected).max())
    same = int(np.sum(on_phone.argmax(axis=1) == expected.argmax(axis=1)))
    summary = f"same class as Keras for {same} of {len(expected)} test images, " \
              f"largest difference of a probability {difference:.4f}"
    agree = difference <= PHONE_TOLERANCE and same >= PHONE_SAME_CLASS * len(expected)
    if not agree:  # NaN, not a number, is here too: no comparison with it is true
        return summary
    print(f"File for phones: {summary}")
    return ""


# A .tflite file is a flatbuffer: tables whose fields are found by their place. Android's and
# MediaPipe's tools look into it for a second flatbuffer, the metadata: how to scale the pixels, and
# which file holds the class names. The places come from MediaPipe's metadata_schema.fbs, version
# 1.5.0.
def add_metadata(path):
    """Write into the model's file what it takes and gives."""
    from tensorflow.lite.python import schema_py_generated as tflite_schema
    from tensorflow.lite.tools import flatbuffer_utils

    file = flatbuffer_utils.convert_bytearray_to_object(bytearray(path.read_bytes()))
    buffer = tflite_schema.BufferT()
    buffer.data = metadata_bytes()
    file.buffers.append(buffer)
    entry = tflite_schema.MetadataT()
    entry.name = "TFLITE_METADATA"
    entry.buffer = len(file.buffers) - 1
    file.metadata.append(entry)
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(file))


def metadata_bytes():
    """Return the metadata: pixels stay as they are, (x - 0) / 1; labels.txt names the classes."""
    import flatbuffers

    builder = flatbuffers.Builder()
    mean = builder.CreateNumpyVector(np.array([0], "float32"))
    deviation = builder.CreateNumpyVector(np.array([1], "float32"))
    scaling = add_table(builder, {0: mean, 1: deviation})  # table NormalizationOptions
    step = add_table(builder, {1: scaling}, kind={0: 1})  # ProcessUnit; 1: normalization
    image = add_table(builder, {4: add_list(builder, step)})  # TensorMetadata of the input
    file_name = builder.CreateString("labels.txt")
    labels = add_table(builder, {0: file_name}, kind={2: 2})  # AssociatedFile; 2: names of an axis
    answer = add_table(builder, {6: add_list(builder, labels)})  # TensorMetadata of the output
    inputs = add_list(builder, image)
    outputs = add_list(builder, answer)
    network = add_table(builder, {2: inputs, 3: outputs})  # SubGraphMetadata
    whole = add_table(builder, {3: add_list(builder, network)})  # ModelMetadata
    builder.Finish(whole, file_identifier=b"M001")
    return bytes(builder.Output())


def add_table(builder, fields, kind=None):
    """Write a table of {place: what was written before}, and {place: number} for its kind."""
    builder.StartObject(8)  # places; the tables have up to 10, but none after 6 is filled here
    for place, value in fields.items():
        builder.PrependUOffsetTRelativeSlot(place, value, 0)
    for place, number in (kind or {}).items():
        builder.PrependInt8Slot(place, number, 0)
    return builder.EndObject()


def add_list(builder, table):
    """Write a list that holds one table; return it."""
    builder.StartVector(4, 1, 4)  # bytes of an element, elements, alignment in bytes
    builder.PrependUOffsetTRelative(table)
    return builder.EndVector()


def labels_text(class_names):
    """Return the class names as UTF-8 bytes, one a line; a line break in a name becomes a space."""
    lines = [" ".join(name.splitlines()) + "\n" for name in class_names]
    return "".join(lines).encode("utf-8", errors="replace")


def add_labels(path, labels):
    """Append labels.txt to the model's file as a zip archive, where Android looks for it."""
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("labels.txt", labels)


# %% 11. Machinery
# Nobody needs this chapter to understand the network. It reads the settings, says in one sentence
# what is wrong with them, keeps the results of a run together, and writes the table of all runs.

# What each setting may be: its type, and its range or its choices. [int]: a list of whole numbers.
# pd.Interval(0, 1, "left") is the range from 0 to 1; only its left end, 0, belongs to it.
setting_rules = {
    "DATASET": (str, None),
    "IMAGE_SIZE": (int, pd.Interval(8, 512, "both")),
    "VALIDATION_SPLIT": (float, pd.Interval(0, 1, "neither")),
    "AUGMENTATION": (bool, None),
    "SHIFT": (int, pd.Interval(0, 512, "left")),
    "MIRROR": (bool, None),
    "FILTERS": ([int], pd.Interval(1, np.inf, "left")),
    "BATCH_NORMALIZATION": (bool, None),
    "WHITENING": (bool, None),
    "IDENTITY_START": (bool, None),
    "GLOBAL_POOLING": (bool, None),
    "DENSE_UNITS": (int, pd.Interval(0, np.inf, "left")),
    "DROPOUT": (float, pd.Interval(0, 1, "left")),
    "MODEL": (str, ["cnn", "mobilenet_v2", "vgg16", "resnet50"]),
    "PRETRAINED_SIZE": (int, pd.Interval(32, 512, "both")),
    "FINE_TUNE": (int, pd.Interval(0, np.inf, "left")),
    "FINE_TUNE_RATE": (float, pd.Interval(0, 10, "right")),
    "HEAD_LEARNING_RATE": (float, pd.Interval(0, 10, "right")),
    "HEAD_WEIGHT_DECAY": (float, pd.Interval(0, 100, "both")),
    "EPOCHS": (int, pd.Interval(1, np.inf, "left")),
    "BATCH_SIZE": (int, pd.Interval(1, np.inf, "left")),
    "OPTIMIZER": (str, ["adam", "sgd"]),
    "LEARNING_RATE": (float, pd.Interval(0, 10, "right")),
    "SCHEDULE": (str, ["constant", "cosine"]),
    "WEIGHT_DECAY": (float, pd.Interval(0, 100, "both")),
    "LABEL_SMOOTHING": (float, pd.Interval(0, 1, "left")),
    "PRECISION": (str, ["float32", "mixed_bfloat16", "mixed_float16"]),
    "SEED": (int, pd.Interval(0, 2**32, "left")),
    "OUTPUT_DIR": (str, None),
    "RESUME": (bool, None),
    "PREDICT": ([str], None),
}
# All but these have an effect on what the network learns.
names_with_effect = [
    name for name in setting_rules if name not in ("OUTPUT_DIR", "RESUME", "PREDICT")]
built_in_sizes = {"digits": 8, "mnist": 28, "fashion_mnist": 28, "cifar10": 32}  # width in pixels
files_of_an_older_model = ["predictions.png"]  # in the results folder; untrue after a new training

# A notebook may run this cell again, and must not forget these two then.
if "resolved_settings" not in globals():
    resolved_settings = {}  # name: (the dict(...) of the block, the value that was taken from it)
    run_lock = None  # the open file that marks the folder of this run as taken


# %% Machinery: sentences


def stop(sentence):
    """End the program with one sentence on stderr and exit status 2, the mark of wrong use.

    In a notebook the cell ends and the kernel lives on. Raises SystemExit.
    """
    print("image_recognition_cnn.py:", sentence.replace("\n", " "), file=sys.stderr, flush=True)
    raise SystemExit(2)


def warn(sentence):
    """Say in one line on stderr what was skipped or may surprise; the program goes on."""
    print("Warning:", sentence.replace("\n", " "), file=sys.stderr, flush=True)


def did_you_mean(word, words):
    """Return " Did you mean ...?" with the most similar of the words, or "" if none is similar."""
    similar = difflib.get_close_matches(word, words, n=1)
    if similar:
        return f" Did you mean {similar[0]}?"
    return ""


def end_without_output():
    """End the program when nobody reads what it prints any more, as in `... | head -5`.

    Both streams are led to nowhere, so that Python doesn't complain about them at its end.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    raise SystemExit(2)


# %% Machinery: settings


def read_settings():
    """Return all settings by name, check them, and make them the globals that all functions read.

    They are those of the block, changed by the flags of the command line. Of a dict(...), the value
    for the data set or optimizer in hand is taken. Can be called again after a change by hand.
    """
    settings = settings_of_the_block()
    given = {}
    if runs_as_program():
        prepare_program()
        given = read_flags(settings)
        settings.update(given)
    written = dict(settings)
    # DATASET and OPTIMIZER first: the choice of the others' values depends on them.
    for name in ["DATASET", "OPTIMIZER", *setting_rules]:
        settings[name] = checked_value(name, value_in_hand(name, settings))
    resolved_settings.clear()
    for name in setting_rules:
        if isinstance(written[name], dict):
            resolved_settings[name] = (written[name], settings[name])
    globals().update(settings)
    check_dataset()
    check_pretrained_size()
    if DATASET in built_in_sizes:
        check_image_size(built_in_sizes[DATASET])
    elif os.path.isdir(DATASET):
        check_image_size(IMAGE_SIZE)
    warn_of_flags_without_effect(given)
    return settings


def warn_of_flags_without_effect(given):
    """Warn of flags that change nothing in this run; else their user sees luck and learns from it.

    given: the settings that were given as flags, by name.
    """
    if PREDICT:
        return
    reasons = {}  # setting: why it has no effect
    if not AUGMENTATION:
        reasons["SHIFT"] = "--no-augmentation"
        reasons["MIRROR"] = "--no-augmentation"
    if MODEL == "cnn":
        for name in ("PRETRAINED_SIZE", "HEAD_LEARNING_RATE", "HEAD_WEIGHT_DECAY", "FINE_TUNE",
                     "FINE_TUNE_RATE"):
            reasons[name] = "--model cnn"
    else:
        for name in ("FILTERS", "WHITENING", "BATCH_NORMALIZATION", "IDENTITY_START",
                     "GLOBAL_POOLING", "DENSE_UNITS"):
            reasons[name] = f"--model {MODEL}"
        reasons["LEARNING_RATE"] = f"--model {MODEL} (it has --head-learning-rate)"
        reasons["WEIGHT_DECAY"] = f"--model {MODEL} (it has --head-weight-decay)"
        if FINE_TUNE == 0:
            reasons["SHIFT"] = f"--model {MODEL} without --fine-tune"
            reasons["FINE_TUNE_RATE"] = "--fine-tune 0"
    if not os.path.isdir(DATASET):
        reasons["IMAGE_SIZE"] = f"--dataset {DATASET}, whose images have a size of their own"
    for name, value in given.items():
        typed = flag(name)
        if value is False:
            typed = typed.replace("--", "--no-")
        if name in reasons:
            warn(f"{typed} has no effect with {reasons[name]}.")


def settings_of_the_block():
    """Return the values of the settings block by name, as they are written there."""
    written_names = re.findall(r"^([A-Z][A-Z_0-9]*) *=", settings_chapter(), re.MULTILINE)
    settings = {}
    for name in setting_rules:
        if name not in globals():
            others = [other for other in globals() if other not in setting_rules]
            stop(f"the setting {name} is missing: write {name} = ... into the settings block."
                 + did_you_mean(name, others))
        settings[name] = globals()[name]
        # An earlier call has put one value in place of the dict(...). The dict counts again, unless
        # somebody has changed the value by hand since.
        if name in resolved_settings:
            written, resolved = resolved_settings[name]
            if settings[name] is resolved:
                settings[name] = written
    for name in written_names:
        if name not in setting_rules:
            stop(f"{name} in the settings block is no setting.{did_you_mean(name, setting_rules)}")
    return settings


def runs_as_program():
    """Return True if the command line belongs to this script, so that its flags count.

    It does after `python image_recognition_cnn.py` and after IPython's `%run` of this file
    (Jupyter, Spyder, Colab). In a notebook's cells and after an import it belongs to someone else.
    """
    if __name__ != "__main__" or "__file__" not in globals():
        return False
    return pathlib.Path(sys.argv[0]).resolve() == pathlib.Path(__file__).resolve()


def prepare_program():
    """Make printing and drawing safe on any machine."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # "?" for what the console can't print
    if "ipykernel" not in sys.modules:
        plt.switch_backend("Agg")  # draws into files: needs no screen, and no window opens


def read_flags(block):
    """Return the settings that the command line gives, by name. Ends the program after --help.

    block: the settings of the block by name, which --help shows.
    """
    meanings = dict(re.findall(r"^([A-Z_0-9]+) *= .+? +# (.+)", settings_chapter(), re.MULTILINE))
    parser = argparse.ArgumentParser(
        prog="image_recognition_cnn.py", description=(__doc__ or "").partition("\n")[0],
        allow_abbrev=False, argument_default=argparse.SUPPRESS)  # only flags that are given count
    parser.error = stop
    for name, (kind, _) in setting_rules.items():
        help_text = f"{meanings.get(name, '')} (now: {block[name]})".replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag(name), help=help_text, action=argparse.BooleanOptionalAction)
        elif isinstance(kind, list):
            parser.add_argument(flag(name), help=help_text, nargs="+")
        else:
            parser.add_argument(flag(name), help=help_text)
    arguments, unknown = parser.parse_known_args()
    if unknown:
        flags = [flag(name) for name in setting_rules]
        hint = did_you_mean(unknown[0].partition("=")[0], flags)
        stop(f"{' '.join(unknown)} can't be understood: --help lists all flags. A flag that "
             f"switches something takes no value (--mirror or --no-mirror).{hint}")
    given = {}
    for argument, text in vars(arguments).items():
        name = argument.upper()
        kind = setting_rules[name][0]
        if isinstance(kind, list):
            given[name] = [number_or_text(kind[0], part) for part in text]
        else:
            given[name] = number_or_text(kind, text)
    return given


def flag(name):
    """Return the flag of a setting: --batch-size for BATCH_SIZE."""
    return "--" + name.lower().replace("_", "-")


def number_or_text(kind, text):
    """Return what was typed as an int or a float, or unchanged if it isn't one (checked later)."""
    if kind is int or kind is float:
        try:
            return kind(text)
        except ValueError:
            return text
    return text


def value_in_hand(name, settings):
    """Return the value of a setting for the data set, or the optimizer, in hand.

    A dict(...) is looked up by name, and under "others" if the name isn't there.
    """
    written = settings[name]
    if not isinstance(written, dict):
        return written
    if name == "DATASET":
        stop("DATASET must be one name, not a dict.")
    if "adam" in written or "sgd" in written:
        key = settings["OPTIMIZER"]
        known = ["adam", "sgd"]
    else:
        key = settings["DATASET"].rstrip("/\\")
        known = [*built_in_sizes, key]
    for other in written:
        if other not in known and other != "others" and not os.path.exists(str(other)):
            warn(f"{name} has a value for {other!r}, which is not the name of a data set or an "
                 f"optimizer.{did_you_mean(str(other), known)}")
    if key not in written and "others" not in written:
        stop(f"{name} has no value for {key}: write {key}=... or others=... into its dict(...), "
             f"or use {flag(name)}.")
    chosen = written[key] if key in written else written["others"]
    # It may be a dict(...) again: LEARNING_RATE has one for adam, with values for the data sets.
    return value_in_hand(name, {**settings, name: chosen})


def checked_value(name, value):
    """Return the value as the type that the setting has, or stop if it isn't allowed.

    One value is enough where a list is expected: 32 means [32].
    """
    kind, allowed = setting_rules[name]
    if isinstance(kind, list):
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        kind = kind[0]
        words = f"one or more values, each {describe(kind, allowed)}"
        checked = [as_type(kind, part) for part in values]
        result = checked
    else:
        words = describe(kind, allowed)
        checked = [as_type(kind, value)]
        result = checked[0]
    for part in checked:
        if part is None or (allowed is not None and part not in allowed):
            stop(f"{name} ({flag(name)}) can't be {value!r}: it must be {words}.")
    return result


def as_type(kind, value):
    """Return value as a bool, int, float or str, or None if it is of another type.

    A whole number does for a float, NumPy's numbers for Python's, and a pathlib.Path for a str.
    """
    if isinstance(value, bool):  # Python counts True as the number 1; here it is none
        return value if kind is bool else None
    if kind is int and isinstance(value, numbers.Integral):
        return int(value)
    if kind is float and isinstance(value, numbers.Real):
        return float(value)
    if kind is str and isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    return None


def describe(kind, allowed):
    """Return in words what a setting may be."""
    if kind is bool:
        return "True or False"
    if isinstance(allowed, list):
        return "one of " + ", ".join(allowed)
    if kind is str:
        return 'text in "quotes"'
    words = "a whole number" if kind is int else "a number"
    if allowed.closed_left:
        words += f", {allowed.left} or more"
    else:
        words += f", more than {allowed.left}"
    if allowed.right == np.inf:
        return words
    if allowed.closed_right:
        return f"{words} and {allowed.right} or less"
    return f"{words} and less than {allowed.right}"


def check_dataset():
    """Stop if DATASET is neither a built-in data set nor a folder nor an .npz file."""
    if DATASET in built_in_sizes:
        return
    is_npz = DATASET.lower().endswith(".npz") and os.path.isfile(DATASET)
    if not PREDICT and not is_npz and not os.path.isdir(DATASET):
        stop(f"DATASET (--dataset) can't be {DATASET!r}: it must be one of "
             f"{', '.join(built_in_sizes)}, or a folder or an .npz file, and there is none of that "
             f"name here.{did_you_mean(DATASET, built_in_sizes)}")
    title = title_of_dataset()
    if title in built_in_sizes or not title:
        stop(f"DATASET (--dataset) can't be {DATASET!r}: its last part is the name of a built-in "
             f"data set, or empty. Give your folder or file another name.")


def check_image_size(size):
    """Stop if images of this width (the smaller of width and height, pixels) are too small.

    The whitening layer takes one pixel and each block halves the image. At least 2x2 must remain,
    as a convolution of a single pixel sees nothing but the zeros around it. For an .npz file, whose
    size is not known before, load_own_data calls this.
    """
    if SHIFT >= size:
        stop(f"SHIFT (--shift) can't be {SHIFT}: it must be less than the images' {size} pixels.")
    if MODEL != "cnn":
        return
    remaining = size - 1 if WHITENING else size
    allowed_blocks = 0
    while remaining // 2 >= 2:
        remaining = remaining // 2
        allowed_blocks += 1
    if allowed_blocks == 0:
        stop(f"DATASET (--dataset) {DATASET} has images of {size} pixels, which is too small: "
             f"it takes 5 pixels or more.")
    if not 1 <= len(FILTERS) <= allowed_blocks:
        stop(f"FILTERS (--filters) can't be {FILTERS}: images of {size} pixels allow 1 to "
             f"{allowed_blocks} numbers, as each block halves the image and 2x2 must remain.")


# %% Machinery: the networks that know ImageNet, and copies of what Keras downloads


def preprocessing_layers(channels):
    """Return layers that give MODEL such numbers as it was trained with, as its preprocess_input.

    Three plain layers stand for Keras' function, as a saved model can't hold functions.
    """
    to_rgb = []
    if channels == 1:  # three copies of the grey picture: a filter of one pixel, with weight 1
        to_rgb = [layers.Conv2D(3, 1, use_bias=False, kernel_initializer="ones", trainable=False)]
    if MODEL == "mobilenet_v2":
        return to_rgb + [layers.Rescaling(1 / 127.5, offset=-1)]  # from -1 to 1
    # The other two take blue, green, red, each less its mean over ImageNet.
    less_the_mean = layers.Normalization(mean=[123.68, 116.779, 103.939], variance=[1, 1, 1])
    opposite_order = keras.initializers.Constant(np.fliplr(np.eye(3)).reshape(1, 1, 3, 3))
    to_bgr = layers.Conv2D(
        3, 1, use_bias=False, kernel_initializer=opposite_order, trainable=False)
    return to_rgb + [less_the_mean, to_bgr]


def compute_features(frozen_part, images):
    """Return the features of images, (number, 1280) float16, which takes half the memory."""
    print(f"{MODEL} looks at {len(images)} pictures:")
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(32)
    features = frozen_part.predict(dataset, verbose=1 if sys.stdout.isatty() else 2)
    return features.astype("float16")


def pretrained_base(weights):
    """Return the network MODEL without its last layer; stop if its weights can't be had."""
    networks = {
        "mobilenet_v2": keras.applications.MobileNetV2,  # Sandler et al., 2018
        "vgg16": keras.applications.VGG16,  # Simonyan and Zisserman, 2014
        "resnet50": keras.applications.ResNet50,  # He et al., 2015
    }
    check_weight_file()
    try:
        return networks[MODEL](
            input_shape=(PRETRAINED_SIZE, PRETRAINED_SIZE, 3), include_top=False, weights=weights)
    except Exception as error:  # no internet, a broken file, no room on the disk, ...
        stop(where_to_put_weights(error))


# Where Keras finds the weights without the last layer: address, megabytes, MD5 sum (it tells
# whether the content is right). Keras knows no sum for MobileNetV2, which has a file per size of
# picture.
weight_files = {
    "mobilenet_v2": (
        "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{size}_no_top.h5",
        9, None),
    "vgg16": (
        "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        59, "6d6bbae143d832006294945121d1f1fc"),
    "resnet50": (
        "resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        95, "4d473c1dd8becc155b73f8504c6f6626"),
}


def weight_file():
    """Return the address of MODEL's weights, where Keras keeps them, megabytes, and MD5 sum."""
    name, megabytes, md5 = weight_files[MODEL]
    name = name.format(size=PRETRAINED_SIZE)
    address = f"https://storage.googleapis.com/tensorflow/keras-applications/{name}"
    home = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    if not os.access(home, os.W_OK):  # then Keras takes this folder
        home = pathlib.Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir(), ".keras")
    return address, home / "models" / pathlib.PurePosixPath(name).name, megabytes, md5


def check_weight_file():
    """Stop if there is a file of weights that is not the one that Keras expects.

    Keras would download it again, write over it and, if that fails, delete it: the user's own file.
    """
    socket.setdefaulttimeout(60)  # seconds; a dead connection would hold up the run for ever
    address, path, megabytes, md5 = weight_file()
    if md5 is None or not path.is_file():
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        stop(f"{path} is not the file of weights that Keras expects (MD5 sum {found}, not {md5}): "
             f"remove it or put a good copy of {address} ({megabytes} MB) in its place, or use "
             f"--model cnn, which needs none.")


def where_to_put_weights(error):
    """Return the sentence for weights that can't be downloaded, or can't be read."""
    address, path, megabytes, _ = weight_file()
    reason = " ".join(str(error).split())[:200].rstrip(".")
    if path.is_file():
        return (f"the weights of {MODEL} could not be read from {path} ({reason}): remove it or "
                f"put a good copy of {address} ({megabytes} MB) in its place, or use --model cnn, "
                f"which needs none.")
    return (f"the weights of {MODEL} could not be downloaded ({reason}): put a copy of {address} "
            f"({megabytes} MB) at {path}, or use --model cnn, which needs none.")


def check_pretrained_size():
    """Stop if there are no weights for pictures of this size; warn if pictures lose detail."""
    if MODEL == "mobilenet_v2" and PRETRAINED_SIZE not in (96, 128, 160, 192, 224):
        stop(f"PRETRAINED_SIZE (--pretrained-size) can't be {PRETRAINED_SIZE}: the weights of "
             f"mobilenet_v2 are for 96, 128, 160, 192 or 224 pixels.")
    is_folder = DATASET not in built_in_sizes and os.path.isdir(DATASET)
    if MODEL != "cnn" and is_folder and not PREDICT and IMAGE_SIZE < PRETRAINED_SIZE:
        warn(f"the pictures are made as small as {IMAGE_SIZE} pixels, then enlarged to "
             f"{PRETRAINED_SIZE}: --image-size {PRETRAINED_SIZE} shows the network more of them.")


def where_to_put_a_copy(error):
    """Return the sentence for a failed download: where a copy comes from, and where it goes."""
    home = pathlib.Path(os.environ.get("KERAS_HOME", pathlib.Path.home() / ".keras"))
    store = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
    addresses = {
        "mnist": store + "mnist.npz",
        "fashion_mnist": store,
        "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    }
    file_names = {  # under which Keras looks for a copy before it downloads one
        "mnist": "mnist.npz",
        "fashion_mnist": "fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz",
        "cifar10": "cifar-10-batches-py-target_archive",
    }
    place = home / "datasets" / file_names[DATASET]
    return (f"{DATASET} could not be loaded from {addresses[DATASET]} ({error}): put a copy of the "
            f"file at {place}, or run --dataset digits, which needs no download.")


# %% Machinery: the name of the data set


def title_of_dataset():
    """Return the name of the results folder and in the pictures: last/part of my/last/part.npz."""
    path = pathlib.Path(DATASET).resolve()
    if path.suffix.lower() == ".npz" and not path.is_dir():
        return path.stem
    return path.name


def resolved_dataset(dataset):
    """Return the full path of a data set, which no other has, or the name of a built-in one."""
    if dataset in built_in_sizes:
        return dataset
    return str(pathlib.Path(dataset).resolve())


# %% Machinery: the script's own text


def script_text():
    """Return the text of this file, or "" where there is none, as in the cells of a notebook."""
    try:
        return pathlib.Path(__file__).read_text(encoding="utf-8")
    except (NameError, OSError, UnicodeDecodeError):
        return ""


def settings_chapter():
    """Return the settings block of this file as text, or ""."""
    chapter = re.search(r"^# %% Settings.*?^# %%", script_text(), re.MULTILINE | re.DOTALL)
    if chapter:
        return chapter[0]
    return ""


def script_hash():
    """Return 8 characters that change whenever the script is edited, or "unknown" in a notebook.

    The settings block is left out, as the table of experiments names settings one by one.
    """
    block = settings_chapter()
    if not block:
        return "unknown"
    program = script_text().replace(block, "")
    return hashlib.sha256(program.encode("utf-8")).hexdigest()[:8]


# %% Machinery: the folder of results
# Files are collected in OUTPUT_DIR/title.unfinished and take their place at the very end, so that a
# run that fails leaves the results of the run before it as they were.


def data_fingerprint(x_train, y_train, x_val, y_val, x_test, y_test, class_names):
    """Return 16 characters that change when any pixel, label, class name or the split changes.

    Images: uint8 (number, height, width, channels). Labels: int (number,). 0.3 s for 180 MB.
    """
    fingerprint = hashlib.blake2b(json.dumps(class_names).encode("utf-8"), digest_size=8)
    for array in (x_train, y_train, x_val, y_val, x_test, y_test):
        fingerprint.update(f"{array.dtype} {array.shape}".encode("utf-8"))
        fingerprint.update(np.ascontiguousarray(array).reshape(-1).view("uint8"))
    return fingerprint.hexdigest()


def open_results_folder(settings, fingerprint):
    """Return the path of the folder in which this run collects its files, made or taken over.

    settings: all settings by name. fingerprint: of the data, from data_fingerprint.
    Stops if the folder can't be written, is in use, or belongs to another data set, and if there is
    nothing that --resume could go on with.
    """
    results = pathlib.Path(OUTPUT_DIR, title_of_dataset())
    unfinished = results.with_name(results.name + ".unfinished")
    state_file = unfinished / "resume" / "settings.json"
    state = {
        "settings": {name: settings[name] for name in names_with_effect},
        "fingerprint": fingerprint,
        "script": script_hash(),
    }
    state["settings"]["DATASET"] = resolved_dataset(DATASET)
    check_owner(results)
    if RESUME:
        check_resume(state_file, state)
    try:
        if results.exists() and not (results.is_dir() and os.access(results, os.W_OK)):
            stop(f"OUTPUT_DIR (--output-dir) {OUTPUT_DIR} can't be used, as {results} is no folder "
                 f"that can be written: name another one.")
        unfinished.mkdir(parents=True, exist_ok=True)
        take_lock(unfinished / "lock")
        if not RESUME:
            remove_contents(unfinished)
            state_file.parent.mkdir()
            state_file.write_text(json.dumps(state), encoding="utf-8")
    except OSError as error:
        stop(f"OUTPUT_DIR (--output-dir) {OUTPUT_DIR} can't be written ({error.strerror}): "
             f"name a folder of your own.")
    return unfinished


def check_owner(results):
    """Stop if the results folder holds the model of another data set, whose path ends alike."""
    try:
        with zipfile.ZipFile(results / "model.keras") as file:
            owner = json.loads(file.read("about.json"))["dataset"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return  # no model, or one that doesn't say
    if owner != resolved_dataset(DATASET):
        stop(f"{results} holds the results of another data set, {owner}, which this run would "
             f"replace: give this run a folder of its own with --output-dir.")


def check_resume(state_file, state):
    """Stop if there is no unfinished run, or if its settings or data were others."""
    try:
        saved = json.loads(state_file.read_text(encoding="utf-8"))
        saved_settings = saved["settings"]
    except (OSError, KeyError, ValueError):
        stop(f"there is nothing to --resume: {state_file.parent.parent} holds no run that was cut "
             f"off. Run without --resume.")
    differing = []
    for name in names_with_effect:
        before = saved_settings.get(name, "unknown")
        if before != state["settings"][name]:
            differing.append(f"{name} was {before}")
    if differing:
        stop(f"--resume goes on with the settings of the run that was cut off: "
             f"{', '.join(differing)}. Give them again, or run without --resume.")
    if saved["fingerprint"] != state["fingerprint"]:
        stop("--resume needs the data of the run that was cut off, and they have changed since "
             "(images, labels or class names): run without --resume.")
    if saved["script"] != state["script"]:
        warn("the script was changed since the run was cut off that --resume goes on with.")


def take_lock(path):
    """Mark a folder as in use by this process, or stop if another process uses it.

    The system takes the mark away when the process ends, however it ends. The file stays open until
    release_lock.
    """
    global run_lock
    release_lock()
    run_lock = open(path, "w")
    try:
        if os.name == "nt":
            import msvcrt
            msvcrt.locking(run_lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.lockf(run_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        release_lock()
        stop(f"another run is going on in {path.parent} (or a notebook is open in which one "
             f"stopped halfway): wait for its end, or give this run an --output-dir of its own.")
    except OSError:
        warn("this disk can't mark a folder as in use: don't start a second run in it meanwhile.")


def release_lock():
    """Take the mark of take_lock away, if there is one."""
    global run_lock
    if run_lock is not None:
        run_lock.close()
        run_lock = None


def remove_contents(folder):
    """Remove all files and folders in a folder, but not the lock."""
    for path in folder.iterdir():
        if path.name == "lock":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def publish_results(unfinished):
    """Move the files of a finished run to their place, and return the path of that folder.

    Files that a user has put there stay. predictions.png goes: it shows what the model before said.
    """
    results = unfinished.with_suffix("")
    try:
        results.mkdir(exist_ok=True)
        for name in files_of_an_older_model:
            (results / name).unlink(missing_ok=True)
        paths = sorted(unfinished.iterdir())
        paths.sort(key=lambda path: path.name == "history.csv")  # last: --resume needs it
        for path in paths:
            if path.is_file() and path.name != "lock":
                path.replace(results / path.name)
        release_lock()
        shutil.rmtree(unfinished, ignore_errors=True)
        files = ", ".join(sorted(path.name for path in results.iterdir()))
        print(f"In {results.resolve()}: {files}")
    except OSError as error:
        stop(f"a result can't take its place ({error}): close the programs that show files in "
             f"{results}, then run the same command with --resume.")
    return results


# %% Machinery: the table of experiments


def wilson_interval(right, number):
    """Return the 95 % interval (low, high) of an accuracy with `right` of `number` images right.

    If such a test were repeated with new images, 95 of 100 intervals would hold the true accuracy
    (Wilson, 1927).
    """
    interval = stats.binomtest(right, number).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def is_within_chance(right_1, number_1, right_2, number_2):
    """Return True if two accuracies differ no more than chance alone explains, at the 5 % level.

    Two proportions are compared by Fisher's exact test (Fisher, 1935).
    """
    counts = [[right_1, number_1 - right_1], [right_2, number_2 - right_2]]
    return stats.fisher_exact(counts).pvalue >= 0.05


def record_experiment(settings, results, fingerprint):
    """Add a row for this run to OUTPUT_DIR/experiments.csv, and compare it with earlier rows.

    results: by name, among them validation_accuracy (0 to 1) and validation_images (a number).
    fingerprint: of the data. If the table can't be read or written, as while Excel has it open, the
    row waits in a file of its own for the next run.
    """
    table = pathlib.Path(OUTPUT_DIR, "experiments.csv")
    waiting = pathlib.Path(OUTPUT_DIR, "experiments_waiting.csv")
    row = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "script": script_hash()}
    for name in names_with_effect:
        row[name] = str(settings[name])
    for name, value in results.items():
        if not isinstance(value, (dict, list)):
            row[name] = str(value)
    row["data"] = fingerprint
    try:
        earlier = read_tables([table, waiting], columns=list(row))
    except (OSError, ValueError) as error:
        keep_for_later(row, table, waiting, error)
        return
    compare_with_earlier(row, earlier)
    try:
        if waiting.exists():  # can it be removed? If not, its rows would be added at each run
            write_table(waiting, read_tables([waiting], columns=list(row)))
        write_table(table, pd.concat([earlier, pd.DataFrame([row])]))
        waiting.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        keep_for_later(row, table, waiting, error)


def read_tables(paths, columns):
    """Return the rows of those tables that exist, all values as str; missing values are "unknown".

    columns: names of columns that stand first, also if no table exists. Raises OSError, ValueError.
    """
    tables = [pd.DataFrame(columns=columns, dtype=str)]
    for path in paths:
        if path.exists():
            rows = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            if "DATASET" not in rows or "validation_accuracy" not in rows:
                raise ValueError("it has no columns DATASET and validation_accuracy")
            tables.append(rows)
    return pd.concat(tables, ignore_index=True).fillna("unknown")


def write_table(path, rows):
    """Write a table in one move, so that it is never half written. Raises OSError, ValueError."""
    new = path.with_suffix(".new")
    try:
        rows.fillna("unknown").to_csv(
            new, index=False, encoding="utf-8", errors="backslashreplace")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def keep_for_later(row, table, waiting, error):
    """Write the row to the waiting file, and say so."""
    try:
        rows = read_tables([waiting], columns=list(row))
        write_table(waiting, pd.concat([rows, pd.DataFrame([row])]))
    except (OSError, ValueError):
        warn(f"{table} and {waiting} can't be written, so this run has no row ({error}). "
             f"Its results are in metrics.json.")
        return
    warn(f"{table} can't be read and written ({error}): close the program that shows it, or move "
         f"the file away. The row of this run waits in {waiting} and is added by the next run.")


def compare_with_earlier(row, earlier):
    """Print this run's validation accuracy, and beside it the last and the best on the same data.

    row: this run, str by name. earlier: all runs before it, a table of str.
    """
    number = int(row["validation_images"])
    accuracy = float(row["validation_accuracy"])
    low, high = wilson_interval(round(accuracy * number), number)
    print(f"Validation accuracy {accuracy:.1%} of {number} images "
          f"(95% interval: {low:.1%} to {high:.1%})")
    same_data = earlier["DATASET"].map(resolved_dataset) == resolved_dataset(DATASET)
    earlier = earlier[same_data]
    accuracies = pd.to_numeric(earlier["validation_accuracy"], errors="coerce").dropna()
    if accuracies.empty:
        return
    last = accuracies.index[-1]
    best = accuracies.idxmax()
    if last == best:
        print(f"The last run, the best before this one, had {comparison(row, earlier.loc[last])}")
    else:
        print(f"The last run had {comparison(row, earlier.loc[last])}")
        print(f"The best run had {comparison(row, earlier.loc[best])}")


def comparison(row, other):
    """Return the other run's accuracy, if chance explains the difference, and what was changed.

    row, other: this run and an earlier one, str by name.
    """
    accuracy = float(other["validation_accuracy"])
    changed = ", ".join(what_changed(row, other)) or "nothing"
    return f"{accuracy:.1%}: {verdict(row, other)}. Changed: {changed}"


def verdict(row, other):
    """Return in words if the validation accuracies of two runs differ by more than chance."""
    accuracy_1 = float(row["validation_accuracy"])
    accuracy_2 = float(other["validation_accuracy"])
    number_1 = int(row["validation_images"])
    number_2 = pd.to_numeric(other.get("validation_images", "unknown"), errors="coerce")
    if np.isnan(number_2):
        return "on an unknown number of images, so chance can't be ruled out"
    number_2 = int(number_2)
    if accuracy_1 == accuracy_2:
        return "the same"
    if is_within_chance(
            round(accuracy_1 * number_1), number_1, round(accuracy_2 * number_2), number_2):
        return "a difference within chance"
    return "a difference that is more than chance"


def what_changed(row, other):
    """Return a list of what this run did differently: settings, the images, the script itself."""
    changed = []
    for name in names_with_effect:
        before = other.get(name, "unknown")
        if name != "DATASET" and not is_same(before, row[name]):
            changed.append(f"{name} {before} -> {row[name]}")
    epochs_before = other.get("epochs_trained", "unknown")
    epochs_now = row.get("epochs_trained", "unknown")
    was_as_long = "unknown" in (epochs_before, epochs_now) or is_same(epochs_before, epochs_now)
    if not was_as_long and is_same(other.get("EPOCHS", "unknown"), row["EPOCHS"]):
        changed.append(f"epochs trained {epochs_before} -> {epochs_now}")  # Ctrl-C ended one
    data_before = other.get("data", "unknown")
    if "unknown" not in (data_before, row.get("data", "unknown")) and data_before != row["data"]:
        changed.append("the images")
    script_before = other.get("script", "unknown")
    if "unknown" in (script_before, row["script"]):
        changed.append("perhaps the script itself (a row doesn't say)")
    elif script_before != row["script"]:
        changed.append("the script itself")
    return changed


def is_same(text, other):
    """Return True if two texts are the same number or word. Excel writes TRUE for True."""
    try:
        return float(text) == float(other)
    except ValueError:
        return text.lower() == other.lower()


# %% Machinery: names in the pictures
FONTS = [  # for scripts that DejaVu Sans lacks; the first that the machine has is taken
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR",
    "Source Han Sans SC",
    "Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "MS Gothic", "Malgun Gothic",  # Windows
    "Nirmala UI",
    "Leelawadee UI", "Segoe UI", "PingFang SC", "Hiragino Sans GB", "Hiragino Sans",  # macOS
    "Heiti TC",
    "Apple SD Gothic Neo", "Kohinoor Devanagari", "Geeza Pro", "Thonburi", "Arial Unicode MS",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "NanumGothic",
    "Lohit Devanagari",
]


def choose_font(texts):
    """Let the pictures use fonts of this machine with these letters; return those that none has.

    texts: list of str. Returns a set of str.
    """
    lacking = {letter for letter in "".join(texts) if letter.isprintable() and not letter.isspace()}
    chosen = []
    installed = set(font_manager.get_font_names())
    noto = sorted(name for name in installed if name.startswith("Noto Sans"))  # one per script
    for family in ["DejaVu Sans", *FONTS, *noto]:
        if not lacking:
            break
        if family not in installed:
            continue
        font = font_manager.get_font(font_manager.findfont(family))
        there = {letter for letter in lacking if font.get_char_index(ord(letter))}
        if there:
            chosen.append(family)
        lacking -= there
    plt.rcParams["font.family"] = chosen or ["DejaVu Sans"]
    return lacking


def texts_for_pictures(class_names, other_texts):
    """Return class names and other texts as pictures show them; choose the fonts for both.

    class_names, other_texts: lists of str. Class names: shorter, where they are long; numbers, if
    no font has their letters. The other texts: at most 24 letters; each letter that no font has
    becomes "?".
    """
    other_texts = [shortened(readable_name(os.fsencode(text)), 24) for text in other_texts]
    lacking = choose_font([*class_names, *other_texts])
    question_marks = {ord(letter): "?" for letter in lacking}
    shown_texts = [text.translate(question_marks) for text in other_texts]
    if lacking.isdisjoint("".join(class_names)):
        return short_names(class_names), shown_texts
    warn("No font of this machine has the letters of the class names: the pictures show numbers "
         "instead. To see names, install the fonts Noto Sans (CJK).")
    for number, name in enumerate(class_names):
        print(f"In the pictures, {number} is {name}")
    return [str(number) for number in range(len(class_names))], shown_texts


def shortened(text, longest):
    """Return a text with at most `longest` letters, "…" in place of those behind."""
    if len(text) <= longest:
        return text
    return text[:longest - 1] + "…"


def short_names(class_names, longest=16):
    """Shorten long names to `longest` letters, but only as far as they stay different.

    What all names begin with is left out first; then, of names that only differ far behind, the
    middle.
    """
    if max(len(name) for name in class_names) <= longest:
        return list(class_names)
    beginning = common_beginning(class_names)
    ends = [name[len(beginning):] for name in class_names]
    mark = "…" if beginning and "" not in ends else ""
    if not mark:
        ends = class_names

    short = []
    for end in ends:
        alike = [other for other in ends if other[:longest - 2] == end[:longest - 2]]
        same = len(common_beginning(alike))
        if len(mark + end) <= longest:
            short.append(mark + end)
        elif len(alike) == 1:
            short.append(mark + end[:longest - 2] + "…")
        else:
            short.append(mark + end[:longest - 10] + "…" + end[same:][:8])
    for i, name in enumerate(class_names):
        if short.count(short[i]) > 1:
            short[i] = name
    return short


def common_beginning(names):
    """Return the whole words with which all names begin: "big " for "big cat" and "big cow"."""
    return re.sub(r"[^\W_]+$", "", os.path.commonprefix(names))


# %% References: the papers that are named as (author, year)
# Ioffe and Szegedy 2015, Batch Normalization, arXiv:1502.03167
# Jordan 2024, 94 % on CIFAR-10 in 3.29 Seconds, arXiv:2404.00498
# Page 2019, How to Train Your ResNet, part 8
# Kingma and Ba 2015, Adam, arXiv:1412.6980
# Loshchilov and Hutter 2017, SGDR, arXiv:1608.03983
# Loshchilov and Hutter 2019, Decoupled Weight Decay, arXiv:1711.05101
# Goyal et al. 2017, Large Minibatch SGD, arXiv:1706.02677
# Szegedy et al. 2016, Rethinking Inception, arXiv:1512.00567
# Guo et al. 2017, Calibration, arXiv:1706.04599
# Platt 1999, Probabilistic Outputs for SVMs
# Zeiler and Fergus 2014, Visualizing CNNs, arXiv:1311.2901
# Wilson 1927, Probable Inference
# Sandler et al. 2018, MobileNetV2, arXiv:1801.04381
# Simonyan and Zisserman 2014, VGG, arXiv:1409.1556
# He et al. 2015, ResNet, arXiv:1512.03385
# Fisher 1935, The Logic of Inductive Inference. Chollet 2020, Transfer Learning (keras.io guide)


# %% The page of chapter 10
# The page itself. Whoever is curious finds the network under "The network, number by number".
PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<!-- This page may load nothing from anywhere: all that it needs stands in this file. -->
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none';
  form-action 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';
  img-src data: blob:; media-src blob: mediastream:">
<link rel="icon" href="data:,">
<title>Try it</title>
<style>
  :root {
    color-scheme: light dark;
    --paper: #f6f4ef; --card: #ffffff; --ink: #1d1c24; --quiet: #5d5a68; --line: #dedad0;
    --accent: #4a3fd1; --on-accent: #ffffff; --track: #ebe8f6; --rest: #aba5e6;
  }
  @media (prefers-color-scheme: dark) {
    :root {
      --paper: #121219; --card: #1c1c26; --ink: #eeecf4; --quiet: #aaa7ba; --line: #33323f;
      --accent: #b0a8ff; --on-accent: #17142e; --track: #2a2938; --rest: #6a63b8;
    }
  }
  * { box-sizing: border-box; }
  [hidden] { display: none !important; }
  body {
    margin: 0; padding: .75rem; background: var(--paper); color: var(--ink);
    font: 1rem/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  }
  main { max-width: 56rem; margin: 0 auto; }
  header { margin-bottom: .75rem; }
  h1 { margin: 0; font-size: 1.5rem; line-height: 1.2; overflow-wrap: anywhere; }
  h2 { margin: 0; font-size: .875rem; font-weight: 600; color: var(--quiet); }
  h3 { margin: 0; font-size: 1rem; }
  p { margin: 0; }
  .quiet { color: var(--quiet); font-size: .875rem; }
  .name { unicode-bidi: isolate; }

  button, .button {
    display: inline-flex; align-items: center; justify-content: center; min-height: 2.75rem;
    padding: 0 1.1rem; border: 1px solid var(--line); border-radius: 999px;
    background: var(--card); color: var(--ink); font: inherit; font-weight: 600; cursor: pointer;
  }
  button:hover, .button:hover { border-color: var(--accent); }
  :focus-visible, .button:focus-within { outline: 3px solid var(--accent); outline-offset: 2px; }
  .button input { position: absolute; width: 1px; height: 1px; opacity: 0; }

  .modes {
    display: flex; gap: .25rem; padding: .25rem; margin-bottom: .75rem;
    border-radius: 999px; background: var(--track);
  }
  .modes button { flex: 1; min-height: 2.5rem; padding: 0; border: 0; background: none; }
  .modes button[aria-pressed="true"] { background: var(--accent); color: var(--on-accent); }

  .two { display: grid; gap: .75rem; grid-template-columns: minmax(0, 1fr); }
  .card {
    padding: .75rem; border: 1px solid var(--line); border-radius: 1.25rem;
    background: var(--card);
  }

  /* The square that shows the drawing, the photo or the camera. */
  .view {
    position: relative; aspect-ratio: 1; overflow: hidden; border-radius: 1rem;
    max-width: max(14rem, 100vh - 9rem); margin: 0 auto;  /* fits on a phone held sideways */
    background: #0d0d12; color: #d8d5e6;
  }
  .view > canvas, .view > video { display: block; width: 100%; height: 100%; }
  #pad { touch-action: none; cursor: crosshair; }
  #photo { object-fit: contain; }
  #video { object-fit: cover; }
  #hint {
    position: absolute; inset: 0; display: flex; flex-direction: column; justify-content: center;
    padding: 1.5rem; text-align: center; pointer-events: none; overflow: hidden;
  }
  #hint strong { font-size: 1.25rem; color: #fff; }
  .tools {
    display: flex; gap: .75rem; align-items: center; margin-top: .75rem; min-height: 2.75rem;
  }
  .tools .quiet { overflow-wrap: anywhere; }
  #message:not(:empty) {
    margin-top: .75rem; padding: .6rem .9rem; border-left: 4px solid var(--accent);
    border-radius: .5rem; background: var(--track); overflow-wrap: anywhere;
  }

  .answer { display: flex; flex-direction: column; }
  #timing { margin-top: auto; padding-top: .5rem; }
  .verdict { display: flex; gap: 1rem; justify-content: space-between; min-height: 7.5rem; }
  #answer {
    font-size: 4.5rem; font-weight: 700; line-height: 1; overflow: hidden; overflow-wrap: anywhere;
    display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
    padding-bottom: .1em; margin-top: .15rem;
  }
  #answer.long { font-size: 1.75rem; line-height: 1.15; margin-top: .5rem; }
  figure { margin: 0; }
  .seen { flex: none; text-align: right; }
  #seen {
    display: block; width: 6.25rem; border-radius: .6rem; background: #0d0d12;
    image-rendering: pixelated; margin: .35rem 0 0 auto;
  }
  #bars { list-style: none; margin: .75rem 0 0; padding: 0; }
  #bars li {
    display: grid; grid-template-columns: minmax(1.5rem, var(--names)) 1fr 4.25rem;
    gap: .6rem; align-items: center; min-height: 1.75rem; font-variant-numeric: tabular-nums;
  }
  #bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
  #bars .track { height: .75rem; border-radius: 999px; background: var(--track); overflow: hidden; }
  #bars .bar { height: 100%; width: 0; border-radius: 999px; background: var(--rest); }
  #bars .percent { text-align: right; }
  #bars .first { font-weight: 700; }
  #bars .first .bar { background: var(--accent); }
  @media (prefers-reduced-motion: no-preference) { #bars .bar { transition: width .12s; } }

  #inside { margin-top: .75rem; }
  .stage { margin-top: 1.25rem; }
  .stage canvas {
    display: block; margin-top: .4rem; border-radius: .4rem; image-rendering: pixelated;
    max-width: 100%; background: var(--line);
  }
  details { margin-top: .25rem; }
  summary { cursor: pointer; }
  details p { overflow-wrap: anywhere; max-height: 12rem; overflow-y: auto; }
  footer { margin-top: 1.25rem; }
  @media (min-width: 40rem) {  /* a tablet, a computer: picture and answer side by side */
    body { padding: 2rem; }
    header, #inside { margin: 1.25rem 0; }
    h1 { font-size: 2rem; }
    .card { padding: 1.25rem; }
    .two { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 1.25rem; }
    #bars li { min-height: 2rem; }
  }
  .unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
</style>
</head>
<body>
<main>
  <header>
    <h1 id="title" class="name"></h1>
    <p id="about" class="quiet"></p>
    <details id="classes" class="quiet"><summary>All names</summary><p tabindex="0"></p></details>
  </header>

  <div class="two">
    <section class="card" aria-label="Picture">
      <div class="modes" role="group" aria-label="Where the picture comes from">
        <button type="button" data-mode="draw">Draw</button>
        <button type="button" data-mode="picture">Picture</button>
        <button type="button" data-mode="camera">Camera</button>
      </div>
      <div class="view">
        <canvas id="pad" width="560" height="560" role="img"
          aria-label="Drawing pad: draw with a mouse, a finger or a pen"></canvas>
        <canvas id="photo" width="1" height="1" role="img" aria-label="The picture"></canvas>
        <video id="video" playsinline muted aria-label="What the camera sees"></video>
        <div id="hint"><strong></strong><span></span></div>
      </div>
      <div class="tools">
        <button type="button" id="clear">Clear</button>
        <label class="button" id="choose">Choose or take a picture
          <input type="file" id="file" accept="image/*"></label>
        <p class="quiet" id="advice"></p>
      </div>
      <p id="message" role="status"></p>
    </section>

    <section class="card answer" aria-label="Answer">
      <div class="verdict">
        <div>
          <h2>The answer</h2>
          <p id="answer" class="name"></p>
          <p id="sure" class="quiet"></p>
        </div>
        <figure class="seen">
          <figcaption><h2>The network sees</h2></figcaption>
          <canvas id="seen" role="img"></canvas>
        </figure>
      </div>
      <ul id="bars" aria-label="The likeliest classes"></ul>
      <p id="timing" class="quiet"></p>
      <p id="spoken" class="unseen" role="status"></p>
    </section>
  </div>

  <section id="inside" class="card" aria-label="Inside the network">
    <button type="button" id="open" aria-expanded="false" aria-controls="stages">
      Look inside the network</button>
    <div id="stages" hidden></div>
  </section>

  <footer class="quiet"><p id="foot"></p></footer>
</main>

<script type="application/json" id="data">@@THE TRAINED NETWORK@@</script>
<script>
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const [HEIGHT, WIDTH, CHANNELS] = data.input_shape;  // of the pictures that the network takes
const names = data.class_names;

// ---------- The weights ----------

// A 16-bit number has 1 bit for the sign, 5 for the exponent and 10 for the digits after "1."
function floatFrom16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const digits = bits & 1023;
  if (exponent === 0) return sign * digits * 2 ** -24;  // the smallest numbers start with "0."
  return sign * (1 + digits / 1024) * 2 ** (exponent - 15);
}

function weightsFrom(text, bits) {
  const bytes = atob(text);  // a string with one character for each byte
  if (bits === 32) {
    const view = new DataView(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)).buffer);
    return Float32Array.from({length: bytes.length / 4}, (_, i) => view.getFloat32(4 * i, true));
  }
  const numbers = new Float32Array(bytes.length / 2);
  for (let i = 0; i < numbers.length; i++) {
    numbers[i] = floatFrom16(bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1));
  }
  return numbers;
}

for (const step of data.steps) step.weights = weightsFrom(step.weights, step.bits);

// ---------- The network, number by number ----------
//
// Features are one long row of numbers: line by line from the top, in each line pixel by pixel,
// and for each pixel all its channels. So the number for (row, column, channel) stands at
//     (row * width + column) * channels + channel

function features(height, width, channels) {
  return {height, width, channels, values: new Float32Array(height * width * channels)};
}

// A filter lies on a patch of the picture, multiplies each number of the patch by a weight of its
// own, and adds all up: one number, large where the patch looks like the filter. Then it moves on
// by one pixel. Each filter gives one map, a channel of the result.
function convolution(x, {shape: [rows, columns, channels, filters], weights, same}) {
  const above = same ? (rows - 1) >> 1 : 0;  // "same": half of the filter may stick out
  const left = same ? (columns - 1) >> 1 : 0;
  const y = same ? features(x.height, x.width, filters)
    : features(x.height - rows + 1, x.width - columns + 1, filters);
  const bias = weights.subarray(weights.length - filters);  // they stand behind the kernel
  for (let row = 0; row < y.height; row++) {
    for (let column = 0; column < y.width; column++) {
      const out = (row * y.width + column) * filters;
      const sums = y.values.subarray(out, out + filters);  // all channels of one pixel
      sums.set(bias);
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < columns; j++) {
          const r = row + i - above, c = column + j - left;
          if (r < 0 || r >= x.height || c < 0 || c >= x.width) continue;  // outside: zeros
          for (let k = 0; k < channels; k++) {
            const value = x.values[(r * x.width + c) * channels + k];
            if (value === 0) continue;  // after a ReLU about half are: nothing to add
            const start = ((i * columns + j) * channels + k) * filters;
            for (let f = 0; f < filters; f++) sums[f] += value * weights[start + f];
          }
        }
      }
    }
  }
  return y;
}

// Of each 2 x 2 pixels only the largest number stays: half the width, half the height.
function pooling(x, {shape: [rows, columns]}) {
  const y = features(Math.floor(x.height / rows), Math.floor(x.width / columns), x.channels);
  y.values.fill(-Infinity);
  for (let row = 0; row < y.height * rows; row++) {
    for (let column = 0; column < y.width * columns; column++) {
      const from = (row * x.width + column) * x.channels;
      const to = (Math.floor(row / rows) * y.width + Math.floor(column / columns)) * y.channels;
      for (let k = 0; k < x.channels; k++) {
        if (x.values[from + k] > y.values[to + k]) y.values[to + k] = x.values[from + k];
      }
    }
  }
  return y;
}

// Normalization: each channel is multiplied by a number of its own, then another one is added.
function scale(x, {shape: [channels], weights}) {
  for (let i = 0, k = 0; i < x.values.length; i++, k = (k + 1) % channels) {
    x.values[i] = x.values[i] * weights[k] + weights[channels + k];
  }
  return x;
}

// ReLU: what is below 0 becomes 0. Without it, all layers together could do no more than one.
function relu(x) {
  for (let i = 0; i < x.values.length; i++) if (x.values[i] < 0) x.values[i] = 0;
  return x;
}

// A dense layer: each of its neurons has a weight for every number that comes in.
function dense(x, {shape: [inputs, neurons], weights}) {
  const y = features(1, 1, neurons);
  for (let n = 0; n < neurons; n++) y.values[n] = weights[inputs * neurons + n];  // the biases
  for (let i = 0; i < inputs; i++) {
    const value = x.values[i];
    if (value === 0) continue;
    for (let n = 0; n < neurons; n++) y.values[n] += value * weights[i * neurons + n];
  }
  return y;
}

// Softmax: any numbers become probabilities, all above 0 and together 1; larger stays larger.
function softmax(x) {
  const largest = Math.max(...x.values);  // taken away first, or exp could become infinite
  let sum = 0;
  for (const value of x.values) sum += Math.exp(value - largest);
  for (let i = 0; i < x.values.length; i++) x.values[i] = Math.exp(x.values[i] - largest) / sum;
  return x;
}

const compute = {convolution, pooling, scale, relu, dense, softmax};

// The whole network: what comes out of one step goes into the next. `pixels` (0 to 255) has
// HEIGHT * WIDTH * CHANNELS numbers. Returns the probabilities and, for the pictures of the inside,
// what came out of each ReLU. A large network lets the browser breathe between its steps.
async function recognize(pixels) {
  let x = features(HEIGHT, WIDTH, CHANNELS);
  x.values.set(pixels);
  const stages = [];
  let milliseconds = 0;
  for (const step of data.steps) {
    const start = performance.now();
    x = compute[step.kind](x, step);
    const took = performance.now() - start;
    milliseconds += took;
    if (step.kind === "relu") stages.push(x);
    if (took > 50) await pause(0);
  }
  return {probabilities: x.values, stages, milliseconds};
}

// ---------- Preparation: from any picture to the pixels that the network knows ----------
//
// The same steps with the same rounding as Pillow takes for --predict, so that both agree.
// A picture is {width, height, channels, values}, with values from 0 to 255.

function picture(width, height, channels) {
  return {width, height, channels, values: new Uint8ClampedArray(width * height * channels)};
}

// The canvas gives red, green, blue and opacity; the opacity is always full here.
function rgbFrom(pixels) {
  const rgb = picture(pixels.width, pixels.height, 3);
  for (let i = 0, j = 0; i < pixels.data.length; i += 4) {
    rgb.values[j++] = pixels.data[i];
    rgb.values[j++] = pixels.data[i + 1];
    rgb.values[j++] = pixels.data[i + 2];
  }
  return rgb;
}

function greyFrom(pixels) {
  const grey = picture(pixels.width, pixels.height, 1);
  for (let i = 0, j = 0; i < pixels.data.length; i += 4) {
    const [red, green, blue] = [pixels.data[i], pixels.data[i + 1], pixels.data[i + 2]];
    grey.values[j++] = (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16;
  }
  return grey;
}

// The darkest pixel becomes 0 and the brightest 255 (Pillow's autocontrast).
function stretchContrast(grey) {
  let darkest = 255, brightest = 0;
  for (const value of grey.values) {
    if (value < darkest) darkest = value;
    if (value > brightest) brightest = value;
  }
  if (brightest <= darkest) return;
  const factor = 255 / (brightest - darkest);
  for (let i = 0; i < grey.values.length; i++) {
    grey.values[i] = Math.floor(grey.values[i] * factor - darkest * factor);
  }
}

// Dark ink on white paper becomes white on black. The first and last row show the paper.
function whiteOnBlack(grey) {
  const {width, height, values} = grey;
  const border = [...values.slice(0, width), ...values.slice(width * (height - 1))];
  border.sort((a, b) => a - b);
  const middle = (border[width - 1] + border[width]) / 2;
  if (middle > 127) for (let i = 0; i < values.length; i++) values[i] = 255 - values[i];
}

// Python rounds a half to the even neighbour, JavaScript upwards.
function roundHalfToEven(number) {
  const low = Math.floor(number);
  return number - low === 0.5 ? low + low % 2 : Math.round(number);
}

// Cuts out the ink and puts it in the middle of a black frame of the network's proportions, with as
// much room around it as the training images have. Returns null if there is no ink.
function cutOutInk(grey) {
  let left = grey.width, right = -1, top = grey.height, bottom = -1;
  for (let row = 0; row < grey.height; row++) {
    for (let column = 0; column < grey.width; column++) {
      if (grey.values[row * grey.width + column] > 100) {
        if (column < left) left = column;
        if (column > right) right = column;
        if (row < top) top = row;
        bottom = row;
      }
    }
  }
  if (right < 0) return null;
  const width = right - left + 1, height = bottom - top + 1;
  const scale = Math.max(width / WIDTH, height / HEIGHT);
  const across = roundHalfToEven(WIDTH * scale), down = roundHalfToEven(HEIGHT * scale);
  const borderShare = (1 / data.ink_share - 1) / 2;
  const besides = roundHalfToEven(across * borderShare);
  const above = roundHalfToEven(down * borderShare);
  const frame = picture(across + 2 * besides, down + 2 * above, 1);
  const toLeft = besides + roundHalfToEven((across - width) / 2);
  const toTop = above + roundHalfToEven((down - height) / 2);
  for (let row = 0; row < height; row++) {
    const from = (top + row) * grey.width + left;
    const line = grey.values.subarray(from, from + width);
    frame.values.set(line, (toTop + row) * frame.width + toLeft);
  }
  return frame;
}

// How much each old pixel counts for each new one along a side: "bicubic". To make a picture
// smaller, the curve is drawn wider, so that it averages over all pixels that fall into one.
function shares(start, length, oldSize, newSize) {
  const step = length / newSize, wide = Math.max(step, 1);
  const curve = (t) => {
    if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
    return t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
  };
  const all = [];
  for (let i = 0; i < newSize; i++) {
    const center = start + (i + 0.5) * step;
    const first = Math.max(0, Math.floor(center - 2 * wide + 0.5));
    const end = Math.min(oldSize, Math.floor(center + 2 * wide + 0.5));
    const weights = new Float64Array(end - first);
    let sum = 0;
    for (let j = 0; j < weights.length; j++) {
      weights[j] = curve(Math.abs((j + first - center + 0.5) / wide));
      sum += weights[j];
    }
    all.push({first, weights: weights.map((weight) => weight / sum)});
  }
  return all;
}

// Cuts out the middle in the shape that the network takes, and resizes it: first each line,
// then each column (Pillow's ImageOps.fit). Uint8ClampedArray rounds, and keeps within 0 to 255.
function fit(old) {
  const {channels} = old;
  const width = Math.min(old.width, old.height * WIDTH / HEIGHT);
  const height = Math.min(old.height, old.width * HEIGHT / WIDTH);
  const across = shares((old.width - width) / 2, width, old.width, WIDTH);
  const down = shares((old.height - height) / 2, height, old.height, HEIGHT);
  const narrow = picture(WIDTH, old.height, channels);
  for (let row = 0; row < old.height; row++) {
    for (let column = 0; column < WIDTH; column++) {
      const {first, weights} = across[column];
      for (let k = 0; k < channels; k++) {
        let sum = 0, from = (row * old.width + first) * channels + k;
        for (let j = 0; j < weights.length; j++, from += channels) {
          sum += weights[j] * old.values[from];
        }
        narrow.values[(row * WIDTH + column) * channels + k] = sum;
      }
    }
  }
  const small = picture(WIDTH, HEIGHT, channels);
  const line = WIDTH * channels;
  for (let row = 0; row < HEIGHT; row++) {
    const {first, weights} = down[row];
    for (let i = 0; i < line; i++) {
      let sum = 0;
      for (let j = 0; j < weights.length; j++) {
        sum += weights[j] * narrow.values[(first + j) * line + i];
      }
      small.values[row * line + i] = sum;
    }
  }
  return small;
}

// All of it together. Returns null for a drawing without ink.
function prepare(pixels) {
  if (!data.white_on_black) return fit(CHANNELS === 1 ? greyFrom(pixels) : rgbFrom(pixels));
  const grey = greyFrom(pixels);
  stretchContrast(grey);
  whiteOnBlack(grey);
  const square = cutOutInk(grey);
  return square && fit(square);
}

// ---------- The page: drawing, picture, camera ----------

const element = (id) => document.getElementById(id);
const pad = element("pad"), photo = element("photo"), video = element("video");
const padPen = pad.getContext("2d", {willReadFrequently: true});
const photoPen = photo.getContext("2d", {willReadFrequently: true});
const frame = document.createElement("canvas");  // holds one picture of the camera
const framePen = frame.getContext("2d", {willReadFrequently: true});
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const nextFrame = () => new Promise((done) => requestAnimationFrame(done));

let mode = "";  // draw, picture or camera
let drawn = false, chosen = false;  // whether there is a drawing, a picture
let stream = null;  // of the running camera

function currentPixels() {
  if (mode === "draw" && drawn) return padPen.getImageData(0, 0, pad.width, pad.height);
  if (mode === "picture" && chosen) return photoPen.getImageData(0, 0, photo.width, photo.height);
  if (mode === "camera" && stream && video.videoWidth) {
    const side = Math.min(video.videoWidth, video.videoHeight, 960);
    const cut = Math.min(video.videoWidth, video.videoHeight);  // the middle, as the page shows it
    frame.width = frame.height = side;
    framePen.drawImage(video, (video.videoWidth - cut) / 2, (video.videoHeight - cut) / 2,
      cut, cut, 0, 0, side, side);  // never mirrored: a mirrored 5 looks like a 2
    return framePen.getImageData(0, 0, side, side);
  }
  return null;
}

// Answers once, or on and on while the camera runs. A call during an answer asks for another one.
let looking = false, again = false;

async function look() {
  again = true;
  if (looking) return;
  looking = true;
  while (again || stream) {
    again = false;
    await nextFrame();
    const slow = setTimeout(() => { element("sure").textContent = "computing …"; }, 300);
    let rest = 40;  // milliseconds for the browser's own work
    try {
      const pixels = currentPixels();
      const small = pixels && prepare(pixels);
      showSeen(small);
      const result = small && await recognize(small.values);
      show(result);
      if (result) rest = Math.max(rest, result.milliseconds);
    } catch (error) {
      show(null);
      say(`This can't be computed here: ${error.message}`);
    }
    clearTimeout(slow);
    if (stream) await pause(rest);
  }
  looking = false;
}

function say(sentence) {
  element("message").textContent = sentence;
}

// Drawing: each finger has a line of its own.
const lastPoints = new Map();

function pointOnPad(event) {
  const box = pad.getBoundingClientRect();
  return [(event.clientX - box.left) * pad.width / box.width,
    (event.clientY - box.top) * pad.height / box.height];
}

function drawTo(event) {
  const from = lastPoints.get(event.pointerId);
  if (!from) return;
  const to = pointOnPad(event);
  padPen.beginPath();
  padPen.moveTo(...from);
  padPen.lineTo(...to);  // to where it already is: a dot
  padPen.stroke();
  lastPoints.set(event.pointerId, to);
}

pad.addEventListener("pointerdown", (event) => {
  if (event.button > 0) return;
  event.preventDefault();
  pad.setPointerCapture(event.pointerId);  // a line may leave the pad and come back
  lastPoints.set(event.pointerId, pointOnPad(event));
  drawTo(event);
  drawn = true;
  updateView();
  look();
});
pad.addEventListener("pointermove", (event) => {
  if (!lastPoints.has(event.pointerId)) return;
  const all = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const part of all.length ? all : [event]) drawTo(part);
  look();
});
for (const end of ["pointerup", "pointercancel"]) {
  pad.addEventListener(end, (event) => lastPoints.delete(event.pointerId));
}

function clearPad() {
  padPen.fillStyle = "black";
  padPen.fillRect(0, 0, pad.width, pad.height);
  padPen.strokeStyle = "white";
  padPen.lineWidth = pad.width / 10;
  padPen.lineCap = padPen.lineJoin = "round";
  lastPoints.clear();
  drawn = false;
  updateView();
  look();
}

// A picture from a file, dropped or pasted. Transparent parts become white, as for --predict.
async function openPicture(file) {
  setMode("picture");
  try {
    const bitmap = await createImageBitmap(file, {colorSpaceConversion: "none"});
    const smaller = Math.min(1, 4096 / Math.max(bitmap.width, bitmap.height));  // a phone's limit
    photo.width = Math.max(1, Math.round(bitmap.width * smaller));
    photo.height = Math.max(1, Math.round(bitmap.height * smaller));
    photoPen.fillStyle = "white";
    photoPen.fillRect(0, 0, photo.width, photo.height);
    photoPen.imageSmoothingQuality = "high";
    photoPen.drawImage(bitmap, 0, 0, photo.width, photo.height);
    bitmap.close();
    photo.setAttribute("aria-label", `The picture ${file.name}`);
    chosen = true;
    say("");
  } catch {
    chosen = false;
    say(`This browser can't read ${file.name} as a picture; try a JPEG or PNG file.`);
  }
  updateView();
  look();
}

element("file").addEventListener("change", (event) => {
  if (event.target.files.length) openPicture(event.target.files[0]);
  event.target.value = "";  // so that the same file can be chosen again
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) openPicture(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) openPicture(event.clipboardData.files[0]);
});

// The camera. A page opened from a file may have none, and a person may refuse.
async function startCamera() {
  if (!navigator.mediaDevices || !navigator.mediaDevices.getUserMedia) {
    say("This browser lends no camera to a page that is opened like this one. "
      + "On a phone, Picture takes a photo; on a web address with https the camera works too.");
    updateView();
    return;
  }
  try {
    const camera = await navigator.mediaDevices.getUserMedia(
      {video: {facingMode: "environment", width: {ideal: 640}, height: {ideal: 480}}});
    if (mode !== "camera") {  // somebody pressed another button meanwhile
      for (const track of camera.getTracks()) track.stop();
      return;
    }
    stream = camera;
    camera.getTracks()[0].addEventListener("ended", () => {
      say("The camera was taken away. Press Camera to try again.");
      stopCamera();
    });
    video.srcObject = camera;
    await video.play();
    say("");
  } catch (error) {
    const none = "No camera was found. Use Picture to choose a file.";
    const reasons = {
      NotFoundError: none,
      OverconstrainedError: none,  // what WebKit says then
      NotAllowedError: "The camera was refused. Allow it for this page in the browser's settings "
        + "and press Camera again, or use Picture.",
      NotReadableError: "The camera is in use by another program. Close that, and try again.",
    };
    if (mode === "camera") say(reasons[error.name] || `The camera can't be used: ${error.message}`);
    stopCamera();
  }
  updateView();
  look();
}

function stopCamera() {
  if (stream) for (const track of stream.getTracks()) track.stop();
  stream = null;
  video.srcObject = null;
  updateView();
}

function setMode(name) {
  mode = name;
  say("");
  stopCamera();
  if (mode === "camera") startCamera();
  look();
}

// Shows what belongs to the mode, and hides the rest.
function updateView() {
  for (const button of document.querySelectorAll("[data-mode]")) {
    button.setAttribute("aria-pressed", button.dataset.mode === mode);
  }
  pad.hidden = mode !== "draw";
  element("clear").hidden = mode !== "draw";
  photo.hidden = mode !== "picture" || !chosen;
  element("choose").hidden = mode !== "picture";
  video.hidden = mode !== "camera" || !stream;
  const empty = {draw: !drawn, picture: !chosen, camera: !stream}[mode];
  const hints = {
    draw: ["Draw here", fewNames()],
    picture: ["Choose a picture", "or drop one here"],
    camera: element("message").textContent ? ["No camera", ""]
      : ["Camera", "Allow it when the browser asks"],
  };
  element("hint").hidden = !empty;
  [element("hint").firstChild.textContent, element("hint").lastChild.textContent] = hints[mode];
  element("advice").textContent = {
    draw: "Any size, anywhere: the ink is cut out.",
    picture: "",
    camera: data.white_on_black ? "Thick dark lines on bare white paper work best."
      : "It looks at the whole square.",
  }[mode];
}

function fewNames() {
  const most = names.length > 12 ? 5 : names.length;
  const text = names.slice(0, most).join(", ");
  return names.length > most ? `${text}\u00a0…` : text;
}

// ---------- The page: the answer ----------

const sortBars = names.length > 10;  // up to 10 keep their places; of more, the likeliest are shown
const bars = [];

function makeBars() {
  const longest = Math.max(...names.map((name) => name.length));
  element("bars").style.setProperty("--names", `${Math.min(9, 1 + longest * 0.6)}rem`);
  for (let i = 0; i < Math.min(names.length, 10); i++) {
    const row = document.createElement("li");
    const [name, track, bar, percent] = ["name", "track", "bar", "percent"].map((kind) => {
      const part = document.createElement(kind === "name" || kind === "percent" ? "span" : "div");
      part.className = kind;
      return part;
    });
    track.append(bar);
    row.append(name, track, percent);
    element("bars").append(row);
    bars.push({row, name, bar, percent});
  }
}

// A class name is put in as text, never as HTML: a folder may be called <img src=x>.
function showBars(probabilities) {
  const order = names.map((_, i) => i);
  if (sortBars && probabilities) order.sort((a, b) => probabilities[b] - probabilities[a]);
  const best = probabilities ? Math.max(...probabilities) : -1;
  element("bars").style.visibility = sortBars && !probabilities ? "hidden" : "visible";
  for (const [place, {row, name, bar, percent}] of bars.entries()) {
    const probability = probabilities ? probabilities[order[place]] : 0;
    name.textContent = name.title = probabilities || !sortBars ? names[order[place]] : "";
    bar.style.width = `${100 * probability}%`;
    percent.textContent = probabilities ? `${(100 * probability).toFixed(1)}%` : "";
    row.classList.toggle("first", probability === best);
  }
}

// A screen reader hears the answer when it has rested for a second, not at every frame.
let waiting = 0, heard = "";

function speak(sentence) {
  if (sentence === heard) return;
  heard = sentence;
  clearTimeout(waiting);
  waiting = setTimeout(() => { element("spoken").textContent = sentence; }, 1000);
}

function timeIn(milliseconds) {
  if (milliseconds < 10) return `${milliseconds.toFixed(1)} ms`;
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  return `${(milliseconds / 1000).toFixed(1)} s`;
}

// `result`: what recognize returned, or null if there is nothing to see.
function show(result) {
  showBars(result && result.probabilities);
  if (result) {
    const best = result.probabilities.indexOf(Math.max(...result.probabilities));
    const share = result.probabilities[best];
    element("answer").textContent = names[best];
    element("answer").classList.toggle("long", names[best].length > 4);
    element("sure").textContent =
      `${(100 * share).toFixed(1)}% sure${share < 0.5 ? ", so it may well be wrong" : ""}`;
    const all = sortBars ? `The 10 likeliest of ${names.length} classes. ` : "";
    element("timing").textContent = `${all}Computed in ${timeIn(result.milliseconds)}.`;
    speak(`${names[best]}, ${Math.round(100 * share)} percent`);
  } else {
    element("answer").textContent = "–";
    element("answer").classList.remove("long");
    element("sure").textContent = "nothing to see yet";
    element("timing").textContent = "";
    speak("");
  }
  showStages(result ? result.stages : []);
}

// `small`: the prepared picture, or null.
function showSeen(small) {
  const canvas = element("seen");
  canvas.width = WIDTH;
  canvas.height = HEIGHT;
  canvas.setAttribute("aria-label", small
    ? `The ${WIDTH} by ${HEIGHT} pixels that the network was given` : "Nothing yet");
  if (!small) return;
  const pixels = new ImageData(WIDTH, HEIGHT);
  for (let i = 0; i < WIDTH * HEIGHT; i++) {
    for (let k = 0; k < 3; k++) {
      pixels.data[4 * i + k] = small.values[i * CHANNELS + k % CHANNELS];
    }
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

// ---------- The page: inside the network ----------

const MOST_NEURONS = 512;  // shown of a dense layer
const stageCanvases = [];

// One figure for each stage: the steps up to and with a ReLU.
function makeStages() {
  const intro = document.createElement("p");
  intro.className = "quiet stage";
  intro.textContent = "Each tile is the map of one filter: bright where the filter found what it "
    + "looks for. From stage to stage the maps get coarser, and each says more.";
  element("stages").append(intro);
  let steps = [];
  for (const step of data.steps) {
    const size = step.shape.slice(0, 2).join(" × ");
    const extra = {convolution: ` ${size}`, pooling: ` ${size}`}[step.kind] || "";
    steps.push((step.kind === "relu" ? "ReLU" : step.kind) + extra);
    if (step.kind !== "relu") continue;
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const headline = document.createElement("h3");
    const line = document.createElement("p");
    const canvas = document.createElement("canvas");
    figure.className = "stage";
    line.className = "quiet";
    line.textContent = steps.join(" → ");
    canvas.setAttribute("role", "img");
    caption.append(headline, line);
    figure.append(caption, canvas);
    element("stages").append(figure);
    const isDense = steps.some((name) => name.startsWith("dense"));
    stageCanvases.push({figure, headline, canvas, isDense});
    steps = [];
  }
}

function showStages(stages) {
  if (element("stages").hidden) return;
  const perRow = element("stages").clientWidth < 500 ? 8 : 16;  // fewer on a phone
  for (const [i, {figure, headline, canvas, isDense}] of stageCanvases.entries()) {
    figure.hidden = !stages[i];
    if (!stages[i]) continue;
    const {height, width, channels} = stages[i];
    const most = Math.min(channels, isDense ? MOST_NEURONS : 4 * perRow);
    const what = isDense ? `${channels} neurons` : `${channels} maps of ${width} × ${height}`;
    headline.textContent = `Stage ${i + 1}: ${what}`
      + (most < channels ? `, the first ${most} of them` : "");
    canvas.setAttribute("aria-label", `Stage ${i + 1}: ${what}`);
    drawMaps(canvas, stages[i], most, isDense ? 2 * perRow : perRow);
  }
}

// Draws maps as tiles. 0 is dark; the largest number of all is bright.
function drawMaps(canvas, {height, width, channels, values}, most, perRow) {
  const lines = Math.ceil(most / perRow), tilesAcross = Math.ceil(most / lines);  // even rows
  const gap = 3, space = Math.floor(896 / perRow) - gap;  // pixels for one tile
  // A small map is drawn larger, each number as a square; of a large one, numbers are left out.
  const tile = width > space ? space : width * Math.floor(space / width);
  const tall = Math.max(1, Math.round(tile * height / width));
  canvas.width = tilesAcross * (tile + gap) - gap;
  canvas.height = lines * (tall + gap) - gap;
  const pixels = new ImageData(canvas.width, canvas.height);
  let largest = 1e-9;
  for (let i = 0; i < values.length; i++) if (values[i] > largest) largest = values[i];
  for (let map = 0; map < most; map++) {
    const left = (map % tilesAcross) * (tile + gap);
    const top = Math.floor(map / tilesAcross) * (tall + gap);
    for (let y = 0; y < tall; y++) {
      const row = Math.floor(y * height / tall);
      for (let x = 0; x < tile; x++) {
        const column = Math.floor(x * width / tile);
        const share = values[(row * width + column) * channels + map] / largest;
        const to = 4 * ((top + y) * canvas.width + left + x);
        for (let k = 0; k < 3; k++) pixels.data[to + k] = colourOf(share, k);
        pixels.data[to + 3] = 255;
      }
    }
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

// From dark violet over orchid to pale yellow. It gets steadily brighter, so nobody needs to tell
// red from green. The root lifts small numbers, which would all look black.
const COLOURS = [[16, 11, 38], [140, 70, 200], [255, 244, 190]];

function colourOf(share, k) {
  const place = 2 * Math.sqrt(Math.max(0, share));
  const below = Math.min(1, Math.floor(place));
  return COLOURS[below][k] + (place - below) * (COLOURS[below + 1][k] - COLOURS[below][k]);
}

element("open").addEventListener("click", () => {
  const stages = element("stages");
  stages.hidden = !stages.hidden;
  element("open").setAttribute("aria-expanded", !stages.hidden);
  element("open").textContent = stages.hidden ? "Look inside the network" : "Close the network";
  look();
});

// ---------- Start ----------

document.title = `Try it: ${data.title}`;
element("title").textContent = `Try it: ${data.title}`;
element("about").textContent = `It knows ${names.length} classes: ${fewNames()}`;
element("classes").hidden = names.length <= 12;
element("classes").lastChild.textContent = names.join(", ");
element("foot").textContent = `A network with ${data.parameters.toLocaleString("en")} weights, `
  + "trained with image_recognition_cnn.py. All is computed on this device, also without a "
  + "connection; no picture leaves it. In the source text of this page, the network stands as "
  + "plain loops.";
document.querySelector("[data-mode=draw]").hidden = !data.white_on_black;
for (const button of document.querySelectorAll("[data-mode]")) {
  button.addEventListener("click", () => setMode(button.dataset.mode));
}
element("clear").addEventListener("click", clearPad);
makeBars();
makeStages();
mode = data.white_on_black ? "draw" : "picture";
clearPad();
</script>
</body>
</html>
"""


# %% The program starts here
# The packages, for tools such as `uv run` that read them from the script itself (PEP 723):
# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["tensorflow>=2.18,<3", "numpy>=1.26,<3", "matplotlib>=3.9,<4",
#                 "seaborn>=0.13.2,<0.14", "scikit-learn>=1.5,<2"]
# ///

if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        stop("ended by Ctrl-C; results of earlier runs stay as they were.")
    except BrokenPipeError:
        end_without_output()
