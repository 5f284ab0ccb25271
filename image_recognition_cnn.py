"""Image recognition with a convolutional neural network (CNN), from pixels to pictures.

    python image_recognition_cnn.py                                # small digits, no download
    python image_recognition_cnn.py --dataset cifar10 --epochs 4   # every setting is a flag
    python image_recognition_cnn.py --dataset my/pictures          # a sub-folder for each class
    python image_recognition_cnn.py --dataset mnist --predict photo.jpg   # asks a trained network

Read from top to bottom: the settings, main() with the whole story on one page, then its chapters.
Chapters 1 to 7 are the lesson: 1 Data, 2 A look at the data, 3 Model, 4 Training, 5 Test,
6 Pictures, 7 Transfer learning. The others are tools: 8 Your own pictures, 9 Out of the script
(browser, phone), 10 Settings and results.
"""
import argparse
import atexit
import base64
import contextlib
import glob
import json
import logging
import math
import os
import pathlib
import re
import shutil
import socket
import sys
import tempfile
import textwrap
import time
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor

# Keras, TensorFlow and Matplotlib look at these while they are loaded.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # a faster library for processors
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors, but no notes
os.environ.setdefault("MPLBACKEND", "Agg")  # draws into files: no window opens

import joblib
import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import tensorflow as tf
from keras import callbacks, layers
from matplotlib import font_manager
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage, stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report, confusion_matrix
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors

tf.get_logger().setLevel("ERROR")  # it warns of many short predictions, which are meant
logging.getLogger("PIL").setLevel("CRITICAL")  # chapter 8 says which pictures can't be read
warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter")  # its package will change

# %% Settings: change a number, run again, and see what it did
# dict(...) holds several values. The first name, from left to right, that fits this run counts:
# sgd (the OPTIMIZER), pretrained (a MODEL that knows ImageNet), the name of the data set, or of
# your own folder; others fits always. read_settings() puts this one value in the place of the
# dict(...): for digits, EPOCHS is then 30; for cifar10 with sgd, LEARNING_RATE is 0.1. Each line is
# a flag, too (--batch-size 64, --no-whitening). All functions below read these names. The words
# are explained in chapters 3 and 4. Each number of FILTERS makes a block of layers, which halves
# the image: digits (8x8 pixels) have room for one, MNIST (28x28) for three.
# data
DATASET = "digits"  # digits (no download), mnist, fashion_mnist, cifar10, a folder or an .npz file
IMAGE_SIZE = dict(pretrained=96, others=64)  # side of own pictures (pretrained: of all), 8 to 512
VALIDATION_SPLIT = dict(cifar10=0.04, others=0.1)  # share of the training images held back
SHIFT = dict(digits=1, fashion_mnist=1, others=2)  # farthest random move of an image, in pixels
MIRROR = dict(fashion_mnist=True, cifar10=True, others=False)  # swap left and right at random
# model
MODEL = "cnn"  # cnn, or a network that has learned from ImageNet: mobilenet_v2, vgg16, resnet50
FILTERS = dict(digits=[64], cifar10=[32, 96, 192], others=[32, 64, 128])  # one number per block
WHITENING = True  # begin with a layer whose filters are computed from the images, not learned
BATCH_NORMALIZATION = True  # keep mean and spread of the numbers between the layers steady
IDENTITY_START = True  # begin with convolutions that pass their input on, not with random ones
DENSE_UNITS = dict(cifar10=0, others=128)  # neurons of the hidden layer; 0: global pooling instead
DROPOUT = dict(cifar10=0, others=0.2)  # share of the last layer's inputs left out, 0 to 0.99
# training
EPOCHS = dict(mnist=4, fashion_mnist=12, cifar10=10, others=30)  # passes over the images, from 1
BATCH_SIZE = dict(mnist=128, fashion_mnist=128, cifar10=128, others=32)  # images per step, from 1
OPTIMIZER = "adam"  # adam or sgd
LEARNING_RATE = dict(sgd=0.1, pretrained=0.002, cifar10=0.008, others=0.004)  # step size, up to 10
SCHEDULE = "cosine"  # cosine (the learning rate rises, then falls to 0), or constant
WEIGHT_DECAY = dict(sgd=0.01, pretrained=5.0, others=0.25)  # a step shrinks weights by this * rate
FINE_TUNE = 0  # epochs in which the last part of a pretrained MODEL is trained as well, from 0
SEED = 0  # start of the random numbers of the training, 0 to 4294967295
# results
OUTPUT_DIR = "outputs"  # a folder; in it, each data set has its own, for its last run
RESUME = False  # go on with a run that was cut off, from its last finished epoch
PREDICT = []  # pictures to classify with the network of an earlier run, in place of training


# %% The story on one page
def main(words=()):
    """Train a network, test it, and draw what came out. The chapters follow nearly in order."""
    settings = read_settings(words)  # the block above, changed by flags (chapter 10)
    keras.utils.set_random_seed(settings.SEED)  # the random numbers of Python, NumPy, TensorFlow
    if settings.PREDICT:
        return predict_pictures(settings)  # with the network of an earlier run (chapter 8)
    print("Settings:", ", ".join(f"{name} {value}" for name, value in vars(settings).items()))
    (x_train, y_train), (x_val, y_val), (x_test, y_test), class_names = load_data(settings)
    names = [textwrap.fill(name, 16) for name in class_names]  # long ones in several lines
    title = data_title(settings.DATASET)
    # A text that changes with any pixel or label: only runs on the same data can be compared.
    data_hash = joblib.hash([x_train, y_train, x_val, y_val, x_test, y_test, class_names])
    folder = open_results_folder(settings, data_hash)  # chapter 10

    describe_data(x_train, y_train, x_val, y_val, x_test, names)
    draw_training_images(x_train, y_train, names, title, folder, settings)

    if settings.MODEL == "cnn":
        model = build_cnn(x_train, len(names), settings)
        model.summary()
        history = train(model, x_train, y_train, x_val, y_val, folder, settings)
    else:  # a network that knows a million photos (chapter 7)
        model = build_pretrained(x_train.shape[1:], len(names), settings)
        history = train_pretrained(model, x_train, y_train, x_val, y_val, folder, settings)
    # Saved now, before anything can go wrong.
    about = save_model(model, x_train, class_names, settings.DATASET, folder)

    probabilities, results = evaluate(model, x_val, y_val, x_test, y_test, class_names)
    report(results, probabilities, y_test, class_names, folder)

    draw_curves(history, title, folder)
    draw_confusion_matrix(results["confusion_matrix"], names, title, folder)
    draw_predictions(x_test, y_test, probabilities, names, title, folder)
    draw_where_it_looks(model, x_test, y_test, probabilities, names, title, folder)
    if settings.MODEL == "cnn":
        draw_learned_features(model, x_test, y_test, probabilities, names, title, folder)

    write_page(model, class_names, about, title, folder)  # chapter 9
    write_phone_model(model, folder)
    metrics = publish_results(folder, settings, results, history)  # chapter 10
    record_experiment(settings, metrics, data_hash)
    return model, history, metrics


# %% 1. Data: images to learn from, images to watch the learning, images for the test
# An image is a block of numbers (height, width, channels): whole numbers from 0 (dark) to 255
# (bright); one channel is grey, three are red, green and blue. The label of an image is the number
# of its class. stop(sentence) ends the program, warn(sentence) lets it go on (chapter 10).
CLASS_NAMES = {
    "digits": list("0123456789"), "mnist": list("0123456789"),
    "fashion_mnist": ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                      "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer",
                "dog", "frog", "horse", "ship", "truck"],
}


def load_data(settings):
    """Return three parts and the names of the classes.

    A part is a pair: images (number, height, width, channels) uint8, and labels (number,) int. The
    network learns from the training images. The validation images are held back from them: choose
    settings by these. The test images are looked at once, at the end: if you chose settings by
    them, you would find settings that fit just these images, by luck.
    """
    class_names = CLASS_NAMES.get(settings.DATASET)
    validation = None
    test = None
    if class_names and any(pathlib.Path(settings.DATASET).glob("*/*")):
        warn(f"--dataset {settings.DATASET} is the built-in data set; your folder of this name is "
             f"--dataset ./{settings.DATASET}.")
    if settings.DATASET == "digits":  # handwritten, from scikit-learn, which has them from 0 to 16
        digits = load_digits()
        images = np.round(digits.images * 255 / 16).astype("uint8")  # (1797, 8, 8)
        training = (images[..., np.newaxis], digits.target)  # (1797, 8, 8, 1) and (1797,)
    elif settings.DATASET in CLASS_NAMES:
        training, test = load_keras_dataset(settings.DATASET)
    else:
        training, validation, test, class_names = load_own_data(settings)  # chapter 8
    if test is None:
        training, test = split(training, share=0.2)  # no setting, so that runs can be compared
    if validation is None:
        training, validation = split(training, share=settings.VALIDATION_SPLIT)
    if len(training) == 3:  # load_own_data gives names as well, to say which are there twice
        warn_of_copies(training, validation, test)
    return training[:2], validation[:2], test[:2], class_names


def load_keras_dataset(name):
    """Return the training and the test part of a data set that Keras downloads once."""
    place = {  # in Keras' folder: who has no internet can put a copy there
        "mnist": "datasets/mnist.npz",
        "fashion_mnist": "datasets/fashion-mnist/*.gz",
        "cifar10": "datasets/cifar-10-batches-py-target_archive",
    }[name]
    parts = []
    load = getattr(keras.datasets, name).load_data
    for images, labels in from_keras(load, place):  # chapter 10
        if images.ndim == 3:
            images = images[..., np.newaxis]  # (60000, 28, 28) becomes (60000, 28, 28, 1)
        parts.append((images, labels.ravel().astype(int)))
    return parts


def split(part, share):
    """Cut off a share, the same of every class ("stratified"); return the rest and the cut.

    The cut is the same in every run, whatever SEED is, so that two runs can be compared.
    """
    labels = part[1]
    number = max(round(share * len(labels)), len(np.unique(labels)))  # one of each class
    try:
        pieces = train_test_split(*part, test_size=number, stratify=labels, random_state=0)
    except ValueError as error:
        stop(f"a share of {share} of {len(labels)} images can't be cut off (for the test images it "
             f"is 0.2, for the validation images VALIDATION_SPLIT): {error}.")
    return pieces[0::2], pieces[1::2]  # of each array come the rest and the cut, in turn


# %% 2. A look at the data: before any training, know what you have
# Is every class there, and about as often as the others? Are the labels right? Would you recognize
# the images yourself? And what do answers without a network reach? The network has to beat these.
# Colours for the colour-blind, too; and a $ in a name begins no formula.
sns.set_theme(style="whitegrid", palette="colorblind", rc={"text.parse_math": False})


def describe_data(x_train, y_train, x_val, y_val, x_test, names):
    """Print the sizes of the parts, the form of the images, and what simple answers reach."""
    print(f"{len(names)} classes, {len(x_train)} training images, {len(x_val)} validation, "
          f"{len(x_test)} test")
    print(f"x_train: shape {x_train.shape}, dtype {x_train.dtype}, "
          f"values {x_train.min()} to {x_train.max()}")
    commonest = np.bincount(y_train).argmax()
    print(f"Without a network: always the commonest class, {np.mean(y_val == commonest):.1%} of "
          f"{len(y_val)} validation images right")
    # Logistic regression: for each class, every pixel is multiplied by a number (a weight) and all
    # are added up; the largest sum wins. Some images are enough, spread over the classes.
    some = spread_over_classes(y_train, 3000)
    regression = LogisticRegression(C=0.1, tol=0.01)  # C, tol: small weights, stops early
    regression.fit(small_and_flat(x_train[some]), y_train[some])
    share = regression.score(small_and_flat(x_val), y_val)
    print(f"Without a network: logistic regression on {len(some)} small images, {share:.1%}")


def small_and_flat(images):
    """Bring images (number, height, width, channels) to 8x8 pixels, 0 to 1: (number, values)."""
    small = tf.image.resize(images, (8, 8), method="area") / 255  # area: the mean of the pixels
    return np.reshape(small, (len(images), -1))


def spread_over_classes(labels, number):
    """Return up to `number` indices: the first image of each class, then the second of each ..."""
    occurrence = pd.Series(labels).groupby(labels).cumcount()  # 0 for the first image of its class
    # lexsort sorts by its last key first: by occurrence, and where that is equal by label.
    return np.lexsort((labels, occurrence))[:number]


def draw_training_images(x_train, y_train, names, title, folder, settings):
    """Draw 24 training images, how many each class has, and one image augmented eight times."""
    figure = plt.figure(figsize=(13, 9), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[3, 1])
    left, right = upper.subfigures(1, 2, width_ratios=[2, 1])

    chosen = spread_over_classes(y_train, 24)
    left.suptitle(f"{title}: {len(chosen)} of {len(x_train):,} training images")
    draw_grid(left, x_train[chosen], [names[label] for label in y_train[chosen]], columns=6)

    axis = right.subplots()
    commonest = pd.Series(y_train).value_counts().index[:40]  # there is no room for more
    sns.countplot(y=[names[label] for label in y_train], ax=axis,
                  order=[names[label] for label in sorted(commonest)])
    axis.bar_label(axis.containers[0], fontsize=9)
    axis.set(title=f"Training images of {len(commonest)} classes", xlabel="number of images")

    views = x_train[chosen[:1].repeat(9)].astype("float32")  # (9, height, width, channels)
    for layer in augmentation_layers(views.shape[1:], settings):  # moves and mirrors (chapter 3)
        views[1:] = layer(views[1:], training=True)
    lower.suptitle("One training image, and what the network gets instead of it in each epoch\n"
                   f"(SHIFT {settings.SHIFT}, MIRROR {settings.MIRROR}; "
                   "a pretrained MODEL shifts only in FINE_TUNE)")
    texts = ["the image", *(f"epoch {epoch}" for epoch in range(1, 9))]
    draw_grid(lower, views.round().clip(0, 255).astype("uint8"), texts, columns=9)
    figure.savefig(folder / "training_images.png", dpi=120)


def draw_grid(figure, images, texts, columns):
    """Draw images (height, width, channels) uint8 in rows, a text above each; return their axes."""
    rows = math.ceil(len(images) / columns)
    axes = []
    for place, (image, text) in enumerate(zip(images, texts), start=1):
        axis = figure.add_subplot(rows, columns, place, xticks=[], yticks=[])
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        axis.set_title(text, fontsize=9)
        axes.append(axis)
    return axes


# %% 3. Model: layer by layer; behind each one stands the shape of what comes out of it
# The words you will meet. A network is a chain of layers. Each layer makes new numbers out of those
# that it gets, mostly with weights: numbers that the training changes. Convolution: a filter slides
# over the image. It has a small square of weights for each channel; at each place they are
# multiplied with the pixels under it and added up, with one number more, the bias. The sums are its
# map: high where the image looks like the filter. The maps of one layer are the channels of the
# next. ReLU: what is below 0 becomes 0; without it, many layers could do little more than one.
# Pooling: of each 2x2 numbers the largest stays. Dense: each of its numbers (neurons) is a sum of
# all inputs, each times a weight, and a bias. Softmax: ten numbers z become ten probabilities; each
# is e^z, divided by the sum of all ten.
# Some lines are tricks. "+2.6 points" behind one: with it, 2.6 more of 100 validation images of
# CIFAR-10 were right, in trainings of 3 epochs with 16, 32, 64 filters. There a plain network has
# 63.9; with one trick on top of the other it comes to 78. A question mark behind the points: it may
# be luck, as three runs with the trick and three without it overlap. (Table: tests/BENCHMARK.md.)
def build_cnn(x_train, num_classes, settings):
    """Return a convolutional neural network that takes raw pixels and answers with probabilities.

    In: (number, height, width, channels), 0 to 255. Out: (number, num_classes) float32, each row
    adds to 1. The shapes are those of CIFAR-10, for one image: the first axis, the number of
    images, is left out. (Those of your run: model.summary() prints them.)
    """
    model = keras.Sequential(name="cnn")
    model.add(keras.Input(x_train.shape[1:]))  # (32, 32, 3)
    for layer in augmentation_layers(x_train.shape[1:], settings):
        model.add(layer)  # (32, 32, 3), only in training
    # (pixel - mean) / standard deviation, for each channel: so the model takes raw pixels.
    normalization = layers.Normalization()
    normalization.adapt(every_kth(x_train, 10_000_000))  # measures mean and standard deviation
    model.add(normalization)  # (32, 32, 3)
    if settings.WHITENING:
        some_images = normalization(every_kth(x_train, 3_000_000))  # a layer works like a function
        model.add(whitening_layer(some_images))  # (31, 31, 24): 2 pixels fit at 31 places in 32
    for number, filters in enumerate(settings.FILTERS, start=1):
        # (15, 15, 32), (7, 7, 96), (3, 3, 192)
        add_block(model, filters, f"block_{number}", settings)
    # Now the maps become one row of numbers. A hidden dense layer gets all of them: each neuron
    # looks at all maps and all places, and of a digit, the place of a stroke says a lot. Without
    # it, only the largest number of each map stays (global pooling): was the pattern found, no
    # matter where? Dropout sets a share of the numbers to 0 at random in each step, so that the
    # answer relies on no single one. On CIFAR-10, global pooling without dropout did better in
    # trainings of 10 epochs (by the validation images); in those of 3, none: -0.3 points?
    if settings.DENSE_UNITS == 0:
        model.add(layers.GlobalMaxPooling2D())  # (192,)
    else:
        model.add(layers.Flatten())  # (1728,)
        model.add(layers.Dense(settings.DENSE_UNITS, activation="relu"))  # (128,)
    model.add(layers.Dropout(settings.DROPOUT))  # the same shape, only in training
    model.add(layers.Dense(num_classes, activation="softmax"))  # (10,)
    if settings.IDENTITY_START:
        start_as_identity(model)
    return model


def augmentation_layers(image_shape, settings):
    """Return the layers that move and mirror the training images at random.

    So the network sees many views of each image, and learns it by heart less easily: +0.7 points?
    In evaluation and prediction Keras skips these layers. A mirrored 2 is not a 2, so MIRROR is off
    for digits.
    """
    height, width, _ = image_shape
    if settings.SHIFT >= min(height, width):
        stop(f"--shift {settings.SHIFT} is too much: the images have {height}x{width} pixels.")
    result = []
    if settings.SHIFT > 0:
        # As a share of height and width; what becomes free is filled with the mirrored edge.
        result.append(layers.RandomTranslation(
            settings.SHIFT / height, settings.SHIFT / width, interpolation="nearest", name="shift"))
    if settings.MIRROR:
        result.append(layers.RandomFlip("horizontal", name="mirror"))
    return result


def every_kth(images, most_numbers):
    """Return every k-th image, so that the sample has about most_numbers pixel values at most."""
    k = math.ceil(images.size / most_numbers)
    return images[::k]


def whitening_layer(images):
    """Return a convolution whose filters are computed from the normalized images, not learned.

    At a first reading, read why, and skip how. Neighbouring pixels are nearly equal, so most of
    what a first layer sees is said twice. Whitening turns each patch of 2x2 pixels into numbers
    that are uncorrelated, with a standard deviation of 1. (Training moves weights in steps, chapter
    4: inputs near 100 and near 0.01 would need very different ones.) +2.6 points (Page, 2019;
    Jordan, 2024).
    Each filter is there twice, once negated, because ReLU removes what is below 0.
    """
    channels = images.shape[-1]
    patches = keras.ops.image.extract_patches(images, size=2, strides=1)  # (..., 4 * channels)
    patches = np.reshape(patches, (-1, 4 * channels))  # (number of patches, 4 * channels)
    # The covariance says how each two numbers of a patch vary together. Its eigenvectors, the
    # columns of `directions`, are the mixtures of these numbers that don't vary together (principal
    # components). Its eigenvalues, `variances`, say how much each mixture varies.
    covariance = np.cov(patches, rowvar=False)  # (4 * channels, 4 * channels)
    variances, directions = np.linalg.eigh(covariance)
    # Each mixture is divided by its standard deviation (5e-4: so that nothing is divided by 0).
    kernels = directions / np.sqrt(variances + 5e-4)  # (4 * channels, 4 * channels)
    # The numbers of a patch stand in the order row, column, channel, as a filter's weights do.
    kernels = kernels.reshape(2, 2, channels, 4 * channels)
    kernels = np.concatenate([kernels, -kernels], axis=-1)  # (2, 2, channels, 8 * channels)
    layer = layers.Conv2D(8 * channels, 2, use_bias=False, activation="relu", name="whitening")
    layer.build(images.shape)
    layer.set_weights([kernels])
    layer.trainable = False
    return layer


def add_block(model, filters, name, settings):
    """Add layers from maps (height, width, any) to maps (height // 2, width // 2, filters).

    Pooling comes right after the first convolution, so that the second one works on a quarter of
    the places (Jordan, 2024): the whole network does half of the multiplications.
    The pixels were normalized; but what a convolution makes of them has any size, and another one
    whenever its weights change. So batch normalization subtracts from each map its mean over the
    batch (all places of all images of one training step), and divides by its spread, the standard
    deviation. Then a learned scale (gamma) and offset (beta) give it the size that the next layer
    needs. Now larger training steps are safe (Ioffe and Szegedy, 2015): +5.3 points, and +1.8 by
    the larger steps (a LEARNING_RATE of 0.004, not 0.001, in those short trainings). In a test an
    answer must not depend on the other images: the layer then uses the averages of the last
    training batches. (momentum=0.6: at each step, 60 % of the average is the old one.)
    """
    height, width = model.output_shape[1:3]
    if min(height, width) < 4:  # 3x3 becomes 1x1: a 3x3 filter on it sees eight zeros
        stop(f"{name} (--filters {settings.FILTERS}) gets maps of {height}x{width} pixels, but it "
             "takes 4x4 or more, as each block halves them: give fewer filters, or larger images.")
    with_bias = not settings.BATCH_NORMALIZATION  # which has an offset of its own
    # padding="same": a border of zeros around the input, so that the maps stay as large as it is.
    model.add(layers.Conv2D(filters, 3, padding="same", use_bias=with_bias))  # (h, w, filters)
    model.add(layers.MaxPooling2D())  # (h // 2, w // 2, filters), from here on
    if settings.BATCH_NORMALIZATION:
        model.add(layers.BatchNormalization(momentum=0.6))
    model.add(layers.ReLU())
    model.add(layers.Conv2D(filters, 3, padding="same", use_bias=with_bias))
    if settings.BATCH_NORMALIZATION:
        model.add(layers.BatchNormalization(momentum=0.6))
    model.add(layers.ReLU(name=name))  # chapter 6 finds the block's maps by this name


def start_as_identity(model):
    """Let the first filters of each convolution copy one input map each, instead of random numbers.

    The network then begins by passing its input on from block to block, nearly as it is, and
    learns what to change (Jordan, 2024): +0.5 points? Filters beyond the number of input maps stay
    random (of a block's first convolution on CIFAR-10: 8 of 32, 64 of 96, 96 of 192).
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
# One training step, with the numbers of CIFAR-10:
# 1. Forward: the next 128 images pass through all layers; out come 128 x 10 probabilities.
# 2. Loss: one number says how far these are from the right answers. Categorical crossentropy: the
#    mean of -log(probability of the right class), the natural logarithm; 0 if it is 1, and large if
#    it is near 0. An untrained network gives each of ten classes about 1/10: -log(1/10) = 2.3.
# 3. Gradient: for each weight, how the loss changes if the weight grows (backpropagation: the chain
#    rule, from the last layer back to the first).
# 4. Update: the optimizer moves each weight a small step in the direction that lowers the loss.
# 5. The next 128 images. After 375 steps all 48,000 training images (50,000 less 4 %) have been
#    seen once: that is one epoch.
def train(model, x_train, y_train, x_val, y_val, folder, settings, first_epoch=0):
    """Train the model; return its history, a table (pandas DataFrame) with a row for each epoch.

    x_train, x_val: images, or in chapter 7 a row of features for each image.
    """
    num_classes = model.output_shape[1]
    training = batches(x_train, y_train, num_classes, settings, shuffled=True)
    validation = batches(x_val, y_val, num_classes, settings)
    rate = learning_rate_schedule((settings.EPOCHS - first_epoch) * len(training), settings)
    # compile: with which optimizer and which loss the model is trained, and what is measured
    model.compile(make_optimizer(rate, settings), "categorical_crossentropy", metrics=["accuracy"])
    # first_epoch, or with --resume the number of epochs that were finished (chapter 10)
    start = restore_weights(model, folder, settings, first_epoch, len(training))
    try:  # the batches are shuffled already; verbose: 1 a moving bar, 2 a line for each epoch
        model.fit(training, validation_data=validation, initial_epoch=start,
                  epochs=settings.EPOCHS, shuffle=False, verbose=1 if sys.stdout.isatty() else 2,
                  callbacks=after_each_epoch(model, folder, settings, first_epoch))
    except KeyboardInterrupt:
        print("\nCtrl-C ends the training. What was learned so far is tested, drawn and saved.")
    return read_history(folder, settings)


def batches(images, labels, num_classes, settings, shuffled=False):
    """Return a tf.data.Dataset of batches: images, and one-hot labels.

    One-hot: with four classes, 0 to 3, the label 2 becomes 0, 0, 1, 0: a probability for each.
    Shuffled: the order is new in each epoch, and a last batch that is not full is left out, as the
    mean of a few images would spoil batch normalization.
    """
    one_hot = keras.utils.to_categorical(labels, num_classes)  # (number, num_classes) float32
    dataset = tf.data.Dataset.from_tensor_slices((images, one_hot))
    if shuffled:
        dataset = dataset.shuffle(len(images), seed=settings.SEED)
    dataset = dataset.batch(min(settings.BATCH_SIZE, len(images)), drop_remainder=shuffled)
    options = tf.data.Options()
    options.autotune.enabled = False  # tuning its own speed, it can hold up an epoch's end
    return dataset.with_options(options)


def learning_rate_schedule(steps, settings):
    """Return the learning rate, the size of the steps: a number, or a function of the steps done.

    LEARNING_RATE is the largest one, found by trying (half or twice as much is hardly worse).
    "cosine": it rises over the first fifth of the steps, because the first gradients, of an
    untrained network, point in poor directions (warm-up; Goyal et al., 2017). Then it falls to 0
    along half a cosine wave, so that the weights come to rest (Loshchilov and Hutter, 2017): +2.4
    points. The curve is stretched over all epochs, so 5 are not the first 5 of 30.
    """
    highest = settings.LEARNING_RATE
    if settings.SCHEDULE == "constant":
        return highest
    warmup_steps = max(1, steps // 5)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=highest / warmup_steps, warmup_target=highest,
        warmup_steps=warmup_steps, decay_steps=max(1, steps - warmup_steps))


def make_optimizer(learning_rate, settings):
    """Return the rule that turns gradients into steps: Adam (Kingma and Ba, 2015), or SGD.

    SGD, stochastic gradient descent: weight = weight - rate x gradient. Momentum: in place of that
    gradient, a sum of the last gradients, in which older ones count less and less, so that random
    differences between batches average out (nesterov: a variant of it). Adam takes such a sum, too,
    and divides it, for each weight, by the usual size of its last gradients: all weights move about
    as far, whatever their gradients are, and its rate is another number than that of SGD.
    Weight decay makes the weights a little smaller in each step, so that only those that are needed
    stay large: +1.1 points? (Directly, not as a part of the loss: Loshchilov and Hutter, 2019.)
    """
    if settings.OPTIMIZER == "adam":
        optimizer = keras.optimizers.Adam(learning_rate, weight_decay=settings.WEIGHT_DECAY)
    else:
        optimizer = keras.optimizers.SGD(
            learning_rate, momentum=0.9, nesterov=True, weight_decay=settings.WEIGHT_DECAY)
    # Offsets (bias, beta) and scales (gamma) are few and do not learn images by heart: no decay.
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    return optimizer


# %% 5. Test: the one look at the test images
def predict(model, images, verbose=0):
    """Return what the model says of images (number, height, width, channels), raw pixels."""
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(256 if model.name == "cnn" else 32)
    return model.predict(dataset, verbose=verbose)  # (number, num_classes) float32, probabilities


def evaluate(model, x_val, y_val, x_test, y_test, class_names):
    """Test the model; return probabilities (test images, classes), and a dict of results."""
    val_right = predict(model, x_val).argmax(axis=1) == y_val  # (number of validation images,) bool
    probabilities = predict(model, x_test)
    predicted = probabilities.argmax(axis=1)
    right = predicted == y_test
    # "Sparse" means that it takes class numbers in place of one-hot labels.
    losses = keras.losses.sparse_categorical_crossentropy(y_test, probabilities)  # (number,)
    classes = range(len(class_names))
    return probabilities, {
        "validation_accuracy": float(val_right.mean()),
        "validation_images": len(y_val),
        "test_accuracy": float(right.mean()),
        "test_accuracy_interval": interval_of(right.sum(), len(right)),
        "test_images": len(y_test),
        "test_loss": float(np.mean(losses)),
        "mean_confidence": float(probabilities.max(axis=1).mean()),
        "parameters": model.count_params(),
        "classes": classification_report(y_test, predicted, labels=classes, zero_division=0,
                                         target_names=class_names, output_dict=True),
        "confusion_matrix": confusion_matrix(y_test, predicted, labels=classes).tolist(),
    }


def interval_of(right, number):
    """Return the 95 % interval (low, high) of an accuracy of right / number (Wilson, 1927).

    It says what luck with the choice of the images can do: of 100 such intervals, about 95 hold the
    accuracy that one would find with endless images of the same kind.
    """
    interval = stats.binomtest(int(right), int(number)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def report(results, probabilities, y_test, class_names, folder):
    """Print accuracy, loss and the scores of each class; write classification_report.txt.

    Precision: of the images called a cat, the share that are cats. Recall: of the cats, the share
    that are called a cat. F1 score: one number for both, 2 x precision x recall / (precision +
    recall). Support: the number of test images of the class. Macro: each class counts the same;
    weighted: by its support. Confusion matrix: a row for each true class, a column for each answer.
    """
    low, high = results["test_accuracy_interval"]
    print(f"\nTest accuracy {results['test_accuracy']:.2%} of {len(y_test)} images "
          f"(95 % interval {low:.2%} to {high:.2%}), loss {results['test_loss']:.4f}")
    is_far = abs(results["mean_confidence"] - results["test_accuracy"]) > 0.05
    print(f"On average it was {results['mean_confidence']:.1%} sure; "
          f"{results['test_accuracy']:.1%} were right."
          f"{' That is far apart: do not trust its percentages.' if is_far else ''}")
    scores = classification_report(y_test, probabilities.argmax(axis=1), digits=4, zero_division=0,
                                   labels=range(len(class_names)), target_names=class_names)
    print(f"\n{scores}")
    (folder / "classification_report.txt").write_text(scores, encoding="utf-8")


# %% 6. Pictures of what came out: look at them before you read on, they say what they show
def draw_curves(history, title, folder):
    """Draw accuracy, loss and learning rate over the epochs; history: as `fit` returns it."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 5), layout="constrained")
    figure.suptitle(
        f"{title}: how the training went\nTraining: the mean over the epoch, while the "
        "network changes and its task is made harder (SHIFT, MIRROR, DROPOUT). Validation: at "
        "its end.\nWhere training improves and validation does not, it learns by heart. The "
        "network of the last epoch is kept, not that of the best.", fontsize=11)
    epochs = history["epoch"] + 1
    best = history["val_accuracy"].idxmax()  # the first, where several are equal
    for axis, name in zip(axes, ["accuracy", "loss"]):
        axis.plot(epochs, history[name], "o-", label="training images")
        axis.plot(epochs, history["val_" + name], "s--", label="validation images")
        axis.plot(epochs[best], history["val_" + name][best], "k*", markersize=14,
                  label=f"best validation accuracy: epoch {epochs[best]}")
        axis.legend()
    axes[2].plot(epochs, history["learning_rate"], "D-", color="C2")
    titles = ["Accuracy: share of right answers", "Loss: what the training makes small",
              "Learning rate: size of a step, at the end of the epoch"]
    for axis, text in zip(axes, titles):
        axis.set_title(text, fontsize=11)
        axis.set(xlabel="epoch (one pass over the training images)", xlim=(0.5, len(epochs) + 0.5))
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.savefig(folder / "accuracy_loss_curves.png", dpi=120)


def draw_confusion_matrix(counts, names, title, folder):
    """Draw which class is taken for which; counts: (true class, predicted class) int."""
    counts = np.array(counts)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)  # of each row; clip: no 0 / 0
    mistakes = counts - np.diag(counts.diagonal())
    true, predicted = np.unravel_index(mistakes.argmax(), mistakes.shape)
    worst = (f"Commonest mistake: {names[true]} taken for {names[predicted]}, {mistakes.max()} of "
             f"{counts[true].sum():,} times").replace("\n", " ")
    side = np.clip(3 + 0.6 * len(names), 6.5, 22)  # inches
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    sns.heatmap(shares, mask=counts == 0, fmt="d", vmin=0, vmax=1, cmap="Blues", linewidths=0.5,
                linecolor="lightgrey", xticklabels=names, yticklabels=names,
                annot=counts if len(names) <= 30 else None,  # of more, numbers have no room
                cbar_kws={"label": "share of the true class (of its row)", "format": "{x:.0%}"})
    axis.grid(visible=False)
    axis.tick_params(labelsize=np.clip(1000 / len(names), 4, 11))
    axis.tick_params("y", rotation=0)
    if max(len(name) for name in names) > 3:
        plt.setp(axis.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    axis.set(xlabel="predicted class (what the network says)", ylabel="true class (what it is)")
    axis.set_title(f"{title}: which class is taken for which?\nOn the diagonal: the right "
                   f"answers, {np.trace(counts) / counts.sum():.2%} of {counts.sum():,} test images"
                   f"\n{worst if mistakes.any() else 'No mistake'}")
    figure.savefig(folder / "confusion_matrix.png", dpi=120)


def draw_predictions(x, y, probabilities, names, title, folder):
    """Draw 30 test images with the answers, and the wrong answers of which the network was surest.

    x: (number, height, width, channels) uint8. y: (number,) int. probabilities: (number, classes).
    """
    chosen = choose_samples(y, probabilities)
    draw_answers(x[chosen], y[chosen], probabilities[chosen], names,
                 f"{title}: test images, the last of them mistakes",
                 folder / "sample_predictions.png")

    wrong = np.flatnonzero(probabilities.argmax(axis=1) != y)
    surest = wrong[np.argsort(-probabilities[wrong].max(axis=1))[:30]]  # argsort: smallest first
    draw_answers(x[surest], y[surest], probabilities[surest], names,
                 f"{title}: {len(wrong):,} answers to {len(y):,} test images are wrong, the surest "
                 "first. Is it always the network that is wrong?",
                 folder / "confident_mistakes.png")


def choose_samples(labels, probabilities):
    """Return the indices of 30 test images to show, up to 10 mistakes at the end."""
    order = spread_over_classes(labels, len(labels))  # class by class, in turn
    is_right = probabilities.argmax(axis=1)[order] == labels[order]
    wrong = order[~is_right][:10]
    return np.concatenate([order[is_right][:30 - len(wrong)], wrong])


def draw_answers(images, labels, probabilities, names, headline, path, heats=()):
    """Draw test images six in a row, with what the network says; heats: of occlusion_map."""
    figure = plt.figure(figsize=(12, 2.4 * math.ceil(len(images) / 6) + 1.4), layout="constrained")
    figure.suptitle(
        f"{headline}\nAbove each: what the network says, how sure it is, and what "
        "is true. ✓ blue frame: right. ✗ thick orange frame: wrong.", fontsize=11)
    predicted = probabilities.argmax(axis=1)
    texts = []
    for label, answer, row in zip(labels, predicted, probabilities):
        mark = "✓" if answer == label else "✗"
        percent = math.floor(100 * row.max())  # floor: only what is certain is called 100%
        texts.append(f"{mark} {names[answer]}, {percent}%\ntrue: {names[label]}")
    axes = draw_grid(figure, images, texts, columns=6)
    for axis, is_right in zip(axes, predicted == labels):
        axis.spines[:].set(color="C0" if is_right else "C3", linewidth=2 if is_right else 5)
    for axis, heat in zip(axes, heats):
        opacity = np.clip(heat / max(0.1, np.max(heats)), 0, 0.9)  # without a fall: clear
        axis.imshow(np.full((*heat.shape, 3), (255, 215, 0)), alpha=opacity)  # yellow
    figure.savefig(path, dpi=120)


def draw_where_it_looks(model, x, y, probabilities, names, title, folder):
    """Draw test images, and how far the probability of the answer falls if a part is covered."""
    chosen = choose_samples(y, probabilities)
    heats = [occlusion_map(model, x[i], probabilities[i].argmax()) for i in chosen]
    headline = (
        f"{title}: where it looks\nA square covers one part of the image after the other. Yellow, "
        "on the image in grey: with this part covered, the network is much less sure\n(strongest "
        f"yellow: by {100 * max(0.1, np.max(heats)):.0f} points). No yellow: no part alone decides.")
    grey = x[chosen].mean(axis=3, keepdims=True).astype("uint8")
    draw_answers(grey, y[chosen], probabilities[chosen], names, headline,
                 folder / "where_it_looks.png", heats)


def occlusion_map(model, image, class_index):
    """Return how far the probability of a class falls when a square covers each part of an image.

    Where it falls deep, there the network looks (occlusion, covering: Zeiler and Fergus, 2014).
    image: (height, width, channels) uint8. Returns (height, width) float, below 0 where it rises.
    """
    height, width, _ = image.shape
    square = max(2, min(height, width) // 4)
    stride = square // 2
    masks = [np.zeros((height, width), bool)]  # True: covered; in the first mask, nothing is
    # The square may stick out, so that the borders are covered as well.
    for top in range(stride - square, height, stride):  # square 8, stride 4: -4, 0, 4, 8 ...
        for left in range(stride - square, width, stride):
            mask = np.zeros((height, width), bool)
            mask[max(top, 0):top + square, max(left, 0):left + square] = True
            masks.append(mask)
    mean_colour = image.mean(axis=(0, 1)).astype("uint8")
    images = np.where(np.expand_dims(masks, 3), mean_colour, image)  # (masks, height, ...)
    probabilities = predict(model, images)  # (masks, classes)
    falls = probabilities[0, class_index] - probabilities[:, class_index]  # (masks,)
    # For each pixel the mean of all squares that have covered it (tensordot adds up fall x mask).
    return np.tensordot(falls, masks, axes=1) / np.sum(masks, axis=0)


def draw_learned_features(model, x_test, y_test, probabilities, names, title, folder):
    """Draw the first filters, the blocks' maps of one image, and what excites them most.

    Filters behind the first layer can't be looked at: they work on maps, not on colours. But one
    can look for what they answer to (Zeiler and Fergus, 2014). Shapes as in draw_predictions.
    """
    blocks = [layer for layer in model.layers if layer.name.startswith("block_")]
    is_right = probabilities.argmax(axis=1) == y_test
    surest = np.argmax(probabilities.max(axis=1) * is_right)  # of the right answers
    images = x_test[[surest, *spread_over_classes(y_test, 500)]]
    figure = plt.figure(figsize=(12, 2 + 4.7 * len(blocks)), layout="constrained")
    figure.suptitle(f"{title}: what the layers look for, from first to last")
    top, *parts = figure.subfigures(1 + len(blocks), 1, height_ratios=[1.5] + [4.7] * len(blocks))

    first = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D))
    kernels = np.moveaxis(first.get_weights()[0], 3, 0)[:12]  # (filters, height, width, channels)
    largest = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True).clip(1e-9)
    patterns = (127.5 + 127.5 * kernels / largest).astype("uint8")
    top.suptitle(f"A test image of {names[y_test[surest]]}, and filters of the layer {first.name}, "
                 "as the patterns to which they answer most (middle grey: weight 0)", fontsize=11)
    texts = ["image"] + [f"filter {number}" for number in range(len(patterns))]
    draw_grid(top, [images[0], *patterns], texts, columns=13)

    for part, block in zip(parts, blocks):
        up_to_block = keras.Model(model.inputs[0], block.output)  # a network of the layers up to it
        maps = up_to_block.predict(images, verbose=0)  # (number, rows, columns, filters)
        filters = np.argsort(-maps[0].max(axis=(0, 1)))[:6]  # of image 0, the six strongest answers
        # A part as large as what one place of the map sees: it is about five times as wide as the
        # place itself (9, 23, 51 pixels in block 1, 2, 3), but at most the whole image.
        side = min(5 * images.shape[1] // maps.shape[1], *images.shape[1:3])
        tiles = [255 * maps[0, ..., number] / maps[0].max().clip(1e-9) for number in filters]
        tiles += [strongest_parts(maps[1:, ..., number], images[1:], side) for number in filters]
        texts = [f"filter {number}" for number in filters] + ["it answers most to"] * len(filters)
        part.suptitle(f"{block.name}: filters that answer most to the image at the top. Above: "
                      "their maps of it (bright: strong answer).\nBelow: the nine parts of test "
                      f"images, about {side} x {side} pixels, to which each answers most.",
                      fontsize=11)
        draw_grid(part, tiles, texts, columns=len(filters))
    figure.savefig(folder / "learned_features.png", dpi=120)


def strongest_parts(maps, images, side):
    """Return the parts (side x side pixels) of nine images to which a filter answers most, as one.

    maps: (number, rows, columns) of the filter. images: (number, height, width, channels) uint8.
    """
    size = np.array(images.shape[1:3])
    strongest = np.argsort(-maps.max(axis=(1, 2)))
    parts = []
    for i in np.resize(strongest, 9):  # the first nine; if there are fewer, some come again
        place = np.unravel_index(maps[i].argmax(), maps[i].shape)  # row and column in the map
        middle = (np.array(place) + 0.5) * size / maps[i].shape  # in pixels
        top, left = np.clip(middle - side / 2, 0, size - side).astype(int)  # inside the image
        parts.append(images[i, top:top + side, left:left + side])
    gap = max(1, side // 12)
    parts = np.pad(parts, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=128)
    rows_of_three = [np.hstack(parts[start:start + 3]) for start in (0, 3, 6)]
    return np.vstack(rows_of_three)


# %% 7. Transfer learning: a network that knows a million pictures; not for MODEL "cnn"
# ImageNet is 1.2 million photos of 1000 kinds of things. The edges, textures and parts that a
# network has learned there are of use for other pictures too. So all its layers but the last are
# kept as they are (frozen). A new last layer, the head, is trained: for that, few pictures do.
PRETRAINED = {  # Sandler et al., 2018; Simonyan and Zisserman, 2014; He et al., 2015
    "mobilenet_v2": (keras.applications.mobilenet_v2, "MobileNetV2"),
    "vgg16": (keras.applications.vgg16, "VGG16"),
    "resnet50": (keras.applications.resnet50, "ResNet50"),
}


def build_pretrained(image_shape, num_classes, settings, weights="imagenet"):
    """Return a network that knows ImageNet, with a new head. It takes raw pixels, as the CNN does.

    The shapes are those of CIFAR-10 and MobileNetV2. weights: "imagenet", or None (random).
    """
    module, name = PRETRAINED[settings.MODEL]
    size = settings.IMAGE_SIZE
    if size < 32:
        stop(f"--image-size {size} is too small for {settings.MODEL}: it takes 32 or more.")
    base = from_keras(getattr(module, name), f"models/{settings.MODEL.partition('_')[0]}*.h5",
                      weights=weights, include_top=False, input_shape=(size, size, 3))
    base.trainable = False  # frozen. (Its top, the last layer, was left out.)
    # Another way to build: a layer that is called on x gives what comes out of it, and
    # keras.Model(start, end) makes a network of all that lies between.
    pixels = keras.Input(image_shape)  # (32, 32, 3)
    x = pixels
    for layer in augmentation_layers(image_shape, settings):
        x = layer(x)  # (32, 32, 3), only in fine-tuning
    x = layers.Resizing(size, size)(x)  # (96, 96, 3)
    if image_shape[2] == 1:
        x = layers.Concatenate()([x, x, x])  # grey becomes three equal colours
    x = module.preprocess_input(x)  # (96, 96, 3), in the numbers that it was trained with
    # training=False: batch normalization uses its averages over a million pictures, as in a test.
    x = base(x, training=False)  # (3, 3, 1280): 1280 maps of 3x3 places
    x = layers.GlobalAveragePooling2D()(x)  # (1280,): the mean of each map
    # Mean 0 and spread 1 for each picture: then one rate suits each of PRETRAINED.
    x = layers.LayerNormalization(center=False, scale=False)(x)  # (1280,): the features
    features = keras.Model(pixels, x, name="features")
    head = keras.Sequential([
        keras.Input(features.output_shape[1:]),
        layers.Dropout(settings.DROPOUT),  # (1280,), only in training
        layers.Dense(num_classes, activation="softmax"),  # (10,)
    ], name="head")
    return keras.Sequential([keras.Input(image_shape), features, head], name=settings.MODEL)


def train_pretrained(model, x_train, y_train, x_val, y_val, folder, settings):
    """Train the head, then, with FINE_TUNE, the last part of the base too; return the history."""
    features, head = model.layers  # parts of the model: what the head learns, the model knows
    # The frozen part gives a picture the same numbers in every epoch, so each picture (and each
    # mirrored one) goes through it only once. Then the head is trained alone, on these numbers.
    views = [x_train]
    if settings.MIRROR:
        views.append(x_train[:, :, ::-1])  # left and right swapped
    print(f"{settings.MODEL} looks at all pictures:")
    progress = 1 if sys.stdout.isatty() else 2  # a moving bar, or a line
    # float16: half of the memory
    f_train = [predict(features, view, progress).astype("float16") for view in views]
    f_val = predict(features, x_val, progress).astype("float16")  # (number, 1280)
    labels = np.tile(y_train, len(views))  # the labels, once for each view
    history = train(head, np.concatenate(f_train), labels, f_val, y_val, folder, settings)
    if settings.FINE_TUNE > 0 and len(history) >= settings.EPOCHS:  # fewer: ended by Ctrl-C
        # The last third of the base's layers learns, but not batch normalization: its scales and
        # offsets belong to its averages over a million pictures (Chollet, 2020).
        base = next(layer for layer in features.layers if isinstance(layer, keras.Model))
        base.trainable = True  # all its layers
        for number, layer in enumerate(base.layers):
            is_early = number < len(base.layers) * 2 // 3
            if is_early or isinstance(layer, layers.BatchNormalization):
                layer.trainable = False
        # Small steps, so that little is forgotten, and no decay of what was learned before.
        fine = argparse.Namespace(**vars(settings))  # a copy
        fine.LEARNING_RATE = 1e-5
        fine.WEIGHT_DECAY = 0.0
        fine.EPOCHS = settings.EPOCHS + settings.FINE_TUNE
        history = train(model, x_train, y_train, x_val, y_val, folder, fine, settings.EPOCHS)
    return history


# %% 8. Your own pictures
# The folder that the network learns from and the picture it is asked about are read by the same
# function: a network that is asked in another form than it has learned gives wrong answers.
PARTS = {"train": "train|training", "val": "val|valid|validation", "test": "test|testing"}
SYSTEM_FILES = {"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"}  # left out without a word
MOST_GIGABYTES = 4  # of pixels in a data set; copies take several times as much
INK = 100  # of a drawing in white on black, a pixel above this value is ink


def load_own_data(settings):
    """Return the three parts of a folder or an .npz file, and the class names.

    A part is (images uint8, labels int, names of the images), or None: to be cut from the first.
    """
    dataset = settings.DATASET
    path = pathlib.Path(dataset)
    if path.is_dir():
        parts = read_folder(path, settings.IMAGE_SIZE, settings.OUTPUT_DIR)
    elif path.is_file() and path.suffix.lower() == ".npz":
        parts = read_npz(path)
    else:
        stop(f"--dataset {dataset} {'is none of these' if path.exists() else 'is not there'}: it "
             f"takes {', '.join(CLASS_NAMES)}, a folder that holds a folder of pictures for each "
             "class, or an .npz file with x_train and y_train.")
    parts = without_colour(parts, dataset)
    sizes = {part: pd.Series(labels).value_counts() for part, (_, labels, _) in parts.items()}
    sizes = pd.DataFrame(sizes).fillna(0).sort_index()  # a row for each class, a column per part
    few = list(sizes.index[sizes["train"] < 3])
    if few or len(sizes) < 2:
        stop(f"--dataset {dataset} has {len(sizes)} classes, of which have fewer than 3 training "
             f"images: {first_few(few)}. It takes 2 classes or more, of 3 images or more each.")
    class_names = list(sizes.index)
    if all(name.isdecimal() for name in class_names):
        class_names.sort(key=int)  # 10 after 9
    for part, (images, labels, names) in parts.items():
        absent = list(sizes.index[sizes[part] == 0])
        if absent:
            warn(f"the {part} part of {dataset} has no images of {first_few(absent)}.")
        # Black pictures, or values from 0 to 1: real images differ by far more than 4 of 255.
        share = np.mean(np.ptp(images, axis=(1, 2, 3)) < 4)
        if share >= 0.1:
            say = stop if share >= 0.9 else warn
            say(f"{share:.0%} of the {part} images of {dataset} are of one shade (values from "
                f"{images.min()} to {images.max()} of 0 to 255).")
        parts[part] = (images, pd.Index(class_names).get_indexer(labels), names)
    if "test" not in parts:  # a second part is the test part, called val or test
        parts["test"] = parts.pop("val", None)
    return parts["train"], parts.get("val"), parts["test"], class_names


def read_npz(path):
    """Return {"train": (images uint8, labels str, names)}, perhaps val and test, of an .npz file.

    Its form is that of Keras' mnist.npz.
    """
    parts = {}
    try:
        held = np.load(path)  # takes no pickles, which could run any program of their author
        for part in [part for part in PARTS if f"x_{part}" in held or part == "train"]:
            x = held[f"x_{part}"]
            images = x.reshape(*x.shape[:3], -1).astype("uint8")
            labels = held[f"y_{part}"].ravel().astype(str)
            labels = np.array([in_one_form(label) for label in labels])
            names = np.array([f"x_{part}[{i}]" for i in range(len(x))])
            parts[part] = (images, labels, names)
            # uint8 holds whole numbers from 0 to 255: others have changed. All below 64: scaled.
            fits = (images.shape[3:] in [(1,), (3,)] and len(labels) == len(x)
                    and images.shape[1:] == parts["train"][0].shape[1:]
                    and images.max() >= 64 and np.array_equal(images.reshape(x.shape), x))
            if not fits:
                raise ValueError(f"x_{part} is {x.dtype} {x.shape}, {x.min()} to {x.max()}")
    except Exception as error:  # broken files raise many kinds
        stop(f"--dataset {path} holds something else ({error}). It takes x_train and y_train, "
             "perhaps x_val, y_val, x_test, y_test. x: whole numbers from 0 to 255, (number, height"
             ", width) or (number, height, width, 3). y: a whole number or a name for each image.")
    return parts


def read_folder(folder, image_size, output_dir):
    """Read pictures of folder/class/*, or of folder/train/class/* (and val, test); as read_npz."""
    if pathlib.Path(output_dir).resolve().is_relative_to(folder.resolve()):
        stop(f"--output-dir {output_dir} lies in the data set {folder}: name a folder outside.")
    files, folders = look_into(folder)
    groups = {}  # the files by the folder around their class folder
    for path in files:
        groups.setdefault(path.parent.parent, []).append(path)
    arounds = find_parts(folder, groups, folders)
    number = sum(len(groups.get(around, [])) for around in arounds.values())
    gigabytes = number * image_size**2 * 3 / 1e9
    if gigabytes > MOST_GIGABYTES:
        fitting = int(image_size * math.sqrt(MOST_GIGABYTES / gigabytes))
        stop(f"{number} pictures of {image_size}x{image_size} pixels need {gigabytes:.1f} GB, more "
             f"than {MOST_GIGABYTES} GB (MOST_GIGABYTES): take --image-size {fitting} or less.")
    parts = {}
    for part, around in arounds.items():
        images, paths = read_pictures(groups.pop(around, []), (image_size, image_size, 3))
        if not paths:
            places = sorted({path.parent for path in files})
            stop(f"there are no pictures that can be read in {around}/CLASS/. It takes a folder for"
                 f" each class, with pictures in it. Files lie in: {first_few(places)}.")
        print(f"{len(paths)} pictures for {part} in {around}")
        labels = np.array([in_one_form(path.parent.name) for path in paths])
        names = np.array([readable(path.relative_to(folder)) for path in paths])
        parts[part] = (images, labels, names)
        with_pictures = {path.parent for path in paths}
        without = [path for path in folders if path.parent == around and path not in with_pictures]
        if without and part == "train":
            warn("no class is made of a folder without pictures that can be read: "
                 f"{first_few(without)}.")
    left_out = sum(groups.values(), [])
    if left_out:
        warn(f"only files in class folders of {', '.join(map(readable, arounds.values()))} are read"
             f"; left out: {first_few(left_out)}.")
    return parts


def look_into(folder):
    """Return the files in a folder and its sub-folders, sorted, and these folders; none hidden."""
    files = []
    folders = [folder]
    # Each folder is entered once, and none around the first one: a link may lead back to these.
    entered = set(folder.resolve().parents)
    for place in folders:  # they grow in the loop: those in the folder, then those in these, ...
        if place.resolve() in entered:
            continue
        entered.add(place.resolve())
        names = sorted(set(glob.glob("*", root_dir=place)) - SYSTEM_FILES)
        paths = [place / name for name in names]
        files += [path for path in paths if path.is_file()]
        inside = [path for path in paths if path.is_dir()]
        folders += sorted(inside, key=pathlib.Path.is_symlink)  # links come last
    return sorted(files, key=str), folders


def find_parts(folder, groups, folders):
    """Return {"train": the folder around its class folders}, perhaps val and test.

    groups: lists of files by the folder around their class folder. folders: all there are.
    """
    found = []  # pairs: part, folder
    for around in groups:
        if folder in around.parents and part_of(around):
            found.append((part_of(around), around))
    arounds = dict(found or [("train", folder)])
    if "train" not in arounds or len(arounds) < len(found):
        stop(f"which folder of {folder} is the training part? One name shall hold the word train, "
             f"perhaps one val and one test, of these: {first_few([pair[1] for pair in found])}.")
    classes = [path for path in folders if path.parent == arounds["train"]]
    named_as_parts = [path for path in classes if part_of(path)]
    several = len({part_of(path) for path in named_as_parts}) > 1
    if several or classes and named_as_parts == classes:
        stop(f"these are parts, not classes: {first_few(named_as_parts)}. Each part takes a folder "
             "for each class, with pictures in it.")
    return arounds


def part_of(folder):
    """Return "train", "val" or "test" if its name holds this word (seg_train, Test1), or None."""
    for part, words in PARTS.items():
        # No letter stands before or behind the word: trains, rain and valley are others.
        if re.search(rf"(?<![a-z])({words})(set|data|images)?(?![a-z])", folder.name.lower()):
            return part
    return None


def in_one_form(name):
    """Return the name of a class in composed letters (Macs take them apart), on one line."""
    return " ".join(unicodedata.normalize("NFC", readable(name)).split())


def without_colour(parts, dataset):
    """Return the parts, with one grey channel if no training image has colours.

    From three equal channels a network can't learn what a tint means: under a yellowish lamp, it
    could give one answer to all.
    """
    images, _, names = parts["train"]
    if images.shape[3] == 1:
        return parts
    # Stray tints: JPEGs of grey pictures differ by up to 3 levels, yellowish scans by 13.
    coloured = [np.mean(np.ptp(image, axis=2) > 16) > 0.01 for image in images]
    if any(coloured):
        if np.mean(coloured) < 0.1:  # too few to learn what colours mean
            warn(f"few training images of {dataset} have colours: {first_few(names[coloured])}. A "
                 "photo may get a wrong answer. Without them, or with grey ones, all become grey.")
        return parts
    print(f"The training images of {dataset} are grey: all parts become grey, with one channel.")
    for part, (images, *others) in parts.items():
        grey = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
        parts[part] = (np.stack(grey)[..., np.newaxis], *others)
    return parts


def warn_of_copies(training, validation, test):
    """Warn if images of the other parts are training images, too: the network knows them by heart.

    Small versions are compared, so that a picture that was saved anew is a copy as well. Their
    distance is 1 less their correlation. The limit was found by trying: copies are below it, other
    images of MNIST and CIFAR-10 hardly ever.
    """
    names = np.concatenate([training[2], validation[2], test[2]])
    small = np.concatenate([small_and_flat(part[0]) for part in (training, validation, test)])
    # Rounded, an image of one shade becomes all 0, which is like no other image.
    shades = np.round(small - small.mean(axis=1, keepdims=True), 3)
    number = len(training[1])  # the first ones
    known = NearestNeighbors(n_neighbors=1, metric="cosine").fit(shades[:number])
    distances, twins = known.kneighbors(shades[number:])  # both (number of other images, 1)
    copies = np.flatnonzero(distances < 0.00125)
    pairs = [f"{names[number + i]} = {names[twins[i, 0]]}" for i in copies]
    if pairs:
        warn(f"{len(pairs)} of {len(twins)} validation and test images are training images as "
             f"well, so the accuracy is too high: {first_few(pairs)}. Keep one of each. If their "
             "classes differ: which is right?")


def read_pictures(paths, image_shape, about=None):
    """Return pictures, uint8 (number that could be read, *image_shape), and their paths.

    about: of the network that is asked (see save_model), or None. What is left out is named.
    """
    images = np.zeros((len(paths), *image_shape), "uint8")
    paths_read = []
    remarks = {}  # what is to be said, once: the pictures of which it is true
    bar = keras.utils.Progbar(len(paths), verbose=1 if len(paths) > 500 else 0, unit_name="picture")
    with ThreadPoolExecutor() as pool:  # threads do, as Pillow works outside of Python's lock
        results = pool.map(read_picture, paths, [image_shape] * len(paths), [about] * len(paths))
        for path, (image, remark) in zip(paths, results):
            if image is not None:
                images[len(paths_read)] = image
                paths_read.append(path)
            if remark:
                remarks.setdefault(remark, []).append(path)
            bar.add(1)
    for remark, names in remarks.items():
        warn(f"pictures {remark}: {first_few(names)}.")
    return images[:len(paths_read)], paths_read


def read_picture(path, image_shape, about):
    """Return a picture file as uint8 image_shape, or None, and what is to be said of it, or ""."""
    height, width, channels = image_shape
    remark = ""
    try:
        # Given the path, Pillow 13 reads some turned TIFFs wrong; given the open file, it doesn't.
        with open(path, "rb") as file, Image.open(file) as picture:
            if picture.mode[0] in "IF" or re.search(";16[BLN]", str(picture.tile)):
                return None, "skipped, with more than 8 bits per value: save them with 8 bits"
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # MPO: from phones
                remark = "with several pages or frames, of which only the first is read"
            # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if that is enough: much faster.
            picture.draft("RGB", (max(500, 2 * width), max(500, 2 * height)))
            picture = ImageOps.exif_transpose(picture)  # upright, however the camera was held
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            if picture.getextrema()[3][0] < 255:  # of the alpha channel, the smallest value
                remark = "that have transparent parts, which become white"
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        picture = picture.convert("L" if channels == 1 else "RGB")
        if about is not None and is_pen_on_paper(picture, image_shape, about):
            image, doubt = prepare_drawing(picture, image_shape, about)
            return image, doubt or remark
        picture = ImageOps.fit(picture, (width, height))  # the middle square
        return np.asarray(picture).reshape(image_shape), remark
    except UnidentifiedImageError:
        return None, f"skipped, as they are {kind_of_file(pathlib.Path(path))}"
    except Exception as error:  # Pillow raises many kinds for broken files
        reason = getattr(error, "strerror", None) or re.sub(r"\d+", "...", str(error))
        return None, f"skipped, as they can't be read ({reason or type(error).__name__})"


def kind_of_file(path):
    """Return what a file is that Pillow takes for no picture."""
    head = path.read_bytes()[:100]
    if head.isascii() and b"\0" not in head:
        return "empty or texts"
    is_heic = head[4:12] in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1")  # from phones
    kind = "HEIC" if is_heic else path.suffix
    return f"{kind} files that Pillow can't read: save them as JPEG or PNG"


def is_pen_on_paper(picture, image_shape, about):
    """Return whether prepare_drawing is for this grey Pillow picture; else it is taken as it is.

    A picture like those that the network has learned from is taken as it is.
    """
    if not about["white_on_black"]:
        return False
    values = np.asarray(picture)
    border = np.median(np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]]))
    if about["built_in"]:  # people show it photos, also of boards
        return values.shape != image_shape[:2] or border >= 25
    return border > 127  # own drawings, of any size


def describe_drawings(x_train):
    """Return whether the training images are drawings in white on black, and how their ink is.

    Nearly all of them are grey, with a dark border, a bright spot and ink of about the same size:
    so are digits, MNIST and Fashion-MNIST, but not photos, or cells under a microscope.
    """
    some = every_kth(x_train, 8_000_000)
    height, width, channels = some.shape[1:]
    ink = some[..., 0] > INK  # (number, height, width) bool
    down = ink.any(axis=2).sum(axis=1)  # the rows that hold ink
    across = ink.any(axis=1).sum(axis=1)  # the columns
    sizes = np.maximum(down / height, across / width)  # as shares of the image's sides
    usual = float(np.median(sizes))
    border = np.concatenate([some[:, 0], some[:, -1], some[:, :, 0], some[:, :, -1]], axis=1)
    is_drawing = ((np.median(border, axis=(1, 2)) < 25) & (some.max(axis=(1, 2, 3)) >= 200)
                  & (np.abs(sizes - usual) < 0.2 * usual))
    return {"white_on_black": channels == 1 and bool(is_drawing.mean() > 0.8), "ink_share": usual,
            "widest": float(np.percentile(across / down.clip(1), 99))}


def prepare_drawing(picture, image_shape, about):
    """Return a grey Pillow picture as white ink on black, cut out as in training, and a remark.

    Returns uint8 (height, width, 1). about: what describe_drawings says of the training images.
    """
    height, width, _ = image_shape
    picture.thumbnail((500, 500))
    grey = np.asarray(picture, float)
    # What differs from the paper is ink. The paper is as bright as most of the picture; or, where
    # the light falls off, as most of the neighbourhood: of 16x16 parts, the median of 9x9 around.
    parts = np.asarray(picture.resize((16, 16), Image.Resampling.BOX))
    corners = parts[[0, 0, -1, -1], [0, -1, 0, -1]]
    around = 9 if np.ptp(corners) > 30 else 31  # 31 reaches all parts from each
    parts = Image.fromarray(ndimage.median_filter(parts, around, mode="nearest"))
    paper = np.asarray(parts.resize(picture.size, Image.Resampling.BILINEAR), float)
    ink = (grey - paper) / paper.clip(1)  # in the shade, ink and paper are darker alike
    if -ink.min() > ink.max():
        ink = -ink  # dark on light
    # The noise of a camera is no ink. In a small copy, where it is weaker, ink differs from the
    # paper by a tenth or more, and by more than noise makes neighbouring pixels differ.
    small = Image.fromarray(ink.astype("float32"))
    small.thumbnail((100, 100), Image.Resampling.BOX)
    noise = np.median(np.abs(np.diff(small, axis=1)))
    if np.max(np.abs(small)) < np.clip(8 * noise, 0.1, 0.5):
        return np.zeros(image_shape, "uint8"), "without ink"
    ink = (ink / max(np.quantile(ink, 0.999), 0.05)).clip(0, 1)  # 0.05: where there is little ink
    box = Image.fromarray(ink > INK / 255).getbbox()
    drawing = Image.fromarray((255 * ink).astype("uint8")).crop(box)
    remark = ""
    if drawing.width / drawing.height > about["widest"]:
        remark = "wider than the training images (is it one drawing?): see predictions.png"
    # Into the middle of a black frame, which is as much larger than the ink as in training.
    scale = max(drawing.width / width, drawing.height / height) / about["ink_share"]
    frame = Image.new("L", (round(scale * width), round(scale * height)))
    frame.paste(drawing, ((frame.width - drawing.width) // 2, (frame.height - drawing.height) // 2))
    # Made small, a thin line is pale: make it as bright as in training.
    image = ImageOps.autocontrast(frame.resize((width, height)), cutoff=(0, 3))
    return np.asarray(image).reshape(image_shape), remark


def files_to_ask(words):
    """Return the paths of the files that are meant by names of files, of folders and wildcards."""
    paths = []
    for word in words:
        # Windows hands on a wildcard such as *.jpg as it is. photo[1].jpg may be a file's name.
        names = [word] if os.path.exists(word) else sorted(glob.glob(word, recursive=True))
        for name in names or [word]:
            path = pathlib.Path(name)
            found = look_into(path)[0] if path.is_dir() else [path]
            if not found:
                warn(f"there are no files in {readable(path)}.")
            paths += found
    return paths


def predict_pictures(settings):
    """Classify picture files with the network of an earlier run; print the likeliest classes.

    PREDICT: files, folders and wildcards. Draws predictions.png, the pictures as the network was
    given them. Ends with exit status 1 if a file could not be read.
    """
    folder = results_folder(settings)
    model, about = load_trained_model(folder, settings.DATASET)
    paths = files_to_ask(settings.PREDICT)
    print(f"Asking {folder / 'model.keras'} ({model.name}), pictures of {model.input_shape[1:]}")
    images, paths_read = read_pictures(paths, model.input_shape[1:], about)
    if not paths_read:
        raise SystemExit(1)
    titles = []
    for path, answer in zip(paths_read, predict(model, images)):
        likeliest = np.argsort(-answer)[:3]  # argsort: the places, the smallest number first
        texts = [f"{about['class_names'][i]} {answer[i]:.1%}" for i in likeliest]
        print(f"{readable(path)}: {', '.join(texts)}")
        titles.append(textwrap.fill(f"{readable(path.name)[-40:]}: {texts[0]}", 22))
    shown = titles[:60]
    figure = plt.figure(figsize=(12, 2.6 * math.ceil(len(shown) / 6) + 1), layout="constrained")
    figure.suptitle("Your pictures as the network was given them, and what it takes them for")
    draw_grid(figure, images[:60], shown, columns=6)
    figure.savefig(folder / "predictions.png", dpi=120)
    print(f"{len(shown)} of {len(titles)} are drawn in {folder / 'predictions.png'}")
    if len(paths_read) < len(paths):
        raise SystemExit(1)


# %% 9. Out of the script: the trained network, a page for the browser, and a file for phones
def save_model(model, x_train, class_names, dataset, folder):
    """Write model.keras, labels.txt, and model.json: what is needed to show it other pictures."""
    model.save(folder / "model.keras")
    about = {"dataset": full_name(dataset), "class_names": class_names, "versions": VERSIONS,
             "built_in": dataset in CLASS_NAMES, **describe_drawings(x_train)}
    (folder / "model.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    (folder / "labels.txt").write_text("\n".join(class_names) + "\n", encoding="utf-8")
    return about


def load_trained_model(folder, dataset):
    """Return the model of an earlier run, and what save_model wrote beside it."""
    about = {"versions": "unknown versions"}
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        about.setdefault("built_in", about["dataset"] in CLASS_NAMES)  # older files lack it
        model = keras.models.load_model(folder / "model.keras")  # runs no code of the file
    except Exception as error:  # no file, a broken file, another Keras, ...
        stop(f"--predict finds no network in {folder} that it can read ({str(error)[:300]}; saved "
             f"with {about['versions']}, here {VERSIONS}): first run --dataset {dataset} alone.")
    return model, about


def network_steps(model):
    """Return a Sequential model as a list of steps for the page; ValueError if it can't be one.

    A step: its kind, its shape, and its weights as text, 32 bits each (base64).
    """
    steps = []
    maps = model.input_shape[1:]  # (height, width, channels) before the layer in hand

    def add(kind, shape=(), weights=(), **more):
        if kind not in ("convolution", "scale", "pooling", "relu", "softmax"):
            raise ValueError(f"it does not compute {kind} ({type(layer).__name__})")
        text = base64.b64encode(np.asarray(weights, "<f4").tobytes()).decode("ascii")
        steps.append({"kind": kind, "shape": list(shape), "weights": text, **more})

    for layer in model.layers:
        kind = type(layer).__name__
        channels = layer.output.shape[-1]
        if kind in ("Normalization", "BatchNormalization"):
            # Both compute input * scale + offset: two answers tell the two numbers.
            offset = layer(np.zeros((1, 1, 1, channels)))
            scale = (layer(np.full((1, 1, 1, channels), 1000.0)) - offset) / 1000
            add("scale", [channels], [scale, offset])
        elif kind == "MaxPooling2D" and layer.strides == layer.pool_size:
            add("pooling", layer.pool_size)
        elif kind == "GlobalMaxPooling2D":
            add("pooling", maps[:2])
        elif kind in ("Conv2D", "Dense") and getattr(layer, "strides", (1, 1)) == (1, 1):
            # A dense layer is a convolution with filters as large as the maps before it.
            shape = layer.kernel.shape if kind == "Conv2D" else (*maps, channels)
            bias = layer.bias if layer.use_bias else np.zeros(channels)
            add("convolution", shape, np.concatenate([np.ravel(layer.kernel), bias]),
                same=getattr(layer, "padding", "valid") == "same")
            if layer.activation.__name__ != "linear":
                add(layer.activation.__name__)
        elif kind not in ("RandomTranslation", "RandomFlip", "Dropout", "Flatten"):
            add(kind.lower())  # relu, or one that the page does not know
        if kind != "Flatten":
            maps = (1, 1, *layer.output.shape[1:])[-3:]  # behind a dense layer: (1, 1, channels)
    return steps


def write_page(model, class_names, about, title, folder):
    """Write try_it.html, the page that recognizes pictures with this model in a browser."""
    try:
        steps = network_steps(model)
    except ValueError as error:
        return warn(f"no try_it.html, which is for networks as those of MODEL cnn: {error}.")
    content = {"title": title, "class_names": class_names, "steps": steps,
               "input_shape": model.input_shape[1:], "parameters": model.count_params(),
               "white_on_black": about["white_on_black"], "ink_share": about["ink_share"]}
    # A browser ends the data at the first </script>, wherever it stands; with no < there is none.
    text = json.dumps(content).replace("<", "\\u003c")
    page = PAGE.replace("@@THE TRAINED NETWORK@@", text)
    (folder / "try_it.html").write_text(page, encoding="utf-8")


def write_phone_model(model, folder):
    """Write model.tflite, the network in the format of LiteRT (once TensorFlow Lite).

    It takes raw pixels 0 to 255, (1, height, width, channels) float32, and gives (1, classes).
    A failure is one sentence: it never ends the run.
    """
    path = folder / "model.tflite"
    # One image, not any number: phones ask for one.
    one_image = keras.InputSpec(shape=(1, *model.input_shape[1:]), dtype="float32")
    try:
        model.export(
            path, format="litert", verbose=False, input_signature=[one_image],
            optimizations=[tf.lite.Optimize.DEFAULT],
            target_spec={
                "supported_types": [tf.float16],  # weights of 16 bits: half the file
                "supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS],  # what every phone knows
            })
    except Exception as error:  # the converter has many, and some of them fill a screen
        path.unlink(missing_ok=True)
        warn(f"There is no model.tflite: {' '.join(str(error).split())[:150]}.")


# %% 10. Settings and results
# Of each setting: its type; then, of a number, the smallest and the largest value, and of a word,
# the choices, if they are few.
RULES = {
    "DATASET": (str,), "IMAGE_SIZE": (int, 8, 512), "VALIDATION_SPLIT": (float, 0.001, 0.9),
    "SHIFT": (int, 0, 512), "MIRROR": (bool,),
    "MODEL": (str, "cnn", *PRETRAINED), "FILTERS": (int, 1, 4096), "WHITENING": (bool,),
    "BATCH_NORMALIZATION": (bool,), "IDENTITY_START": (bool,), "DENSE_UNITS": (int, 0, 100_000),
    "DROPOUT": (float, 0, 0.99),
    "EPOCHS": (int, 1, 100_000), "BATCH_SIZE": (int, 1, 100_000),
    "OPTIMIZER": (str, "adam", "sgd"), "LEARNING_RATE": (float, 1e-9, 10),
    "SCHEDULE": (str, "cosine", "constant"), "WEIGHT_DECAY": (float, 0, 100),
    "FINE_TUNE": (int, 0, 100_000), "SEED": (int, 0, 2**32 - 1),
    "OUTPUT_DIR": (str,), "RESUME": (bool,), "PREDICT": (str,),
}
DECIDING = ["DATASET", "MODEL", "OPTIMIZER"]  # on the values of the other settings
LISTS = ["FILTERS", "PREDICT"]  # these hold several values
WITHOUT_EFFECT = ["OUTPUT_DIR", "RESUME", "PREDICT"]  # on what is learned
NOT_OF_EVERY_RUN = ["predictions.png", "learned_features.png", "try_it.html", "model.tflite"]
VERSIONS = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}
# Fonts for letters that DejaVu Sans lacks; those that are installed are used.
FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Devanagari", "SimHei",
         "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC", "Arial Unicode MS"]
installed = font_manager.get_font_names()
plt.rcParams["font.family"] = [font for font in FONTS if font in installed]


def stop(sentence):
    """End the program with one sentence and exit status 2, the mark of wrong use."""
    print("image_recognition_cnn.py:", " ".join(sentence.split()), file=sys.stderr, flush=True)
    raise SystemExit(2)


def warn(sentence):
    """Say in one line what was skipped or may surprise; the program goes on."""
    print("Warning:", " ".join(sentence.split()), file=sys.stderr, flush=True)


def first_few(names):
    """Return how many there are, and the first five of them: "7 (a, b, c, d, e ...)"."""
    shown = ", ".join(map(readable, names[:5])) + (" ..." if len(names) > 5 else "")
    return f"{len(names)} ({shown})" if names else "none"


def readable(name):
    """Return a name as text that can be printed: a byte that is no UTF-8 as \\udce9, say."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def read_settings(words=()):
    """Return the settings of a run as one object: the block at the top, changed by flags.

    words: the flags, as in ["--epochs", "3"]. The block itself stays as it is, so that a notebook
    can change it and read it again.
    """
    written = {name: globals()[name] for name in RULES}
    written.update(vars(flag_parser().parse_args(words)))
    dataset, model, optimizer = [checked(name, written[name]) for name in DECIDING]
    # The cases of a dict(...), the most special one first. The name of an own folder is a case,
    # too, but a folder that happens to be called mnist or sgd is not treated as these.
    cases = [optimizer, "cnn" if model == "cnn" else "pretrained"]
    title = data_title(dataset)
    if dataset in CLASS_NAMES or title not in [*CLASS_NAMES, "sgd", "pretrained", "others"]:
        cases.append(title)
    cases.append("others")
    values = {}
    for name in RULES:
        value = written[name]
        if isinstance(value, dict) and name not in DECIDING:
            fitting = [case for case in cases if case in value]
            if not fitting:
                stop(f"{name} has no value for {dataset}: write others=... into its dict(...).")
            value = value[fitting[0]]
        values[name] = checked(name, value)
    return argparse.Namespace(**values)


def flag_parser():
    """Return the parser of the flags, one for each setting; its help is what stands behind #."""
    path = globals().get("__file__")  # in the cells of a notebook there is no file
    text = pathlib.Path(path).read_text(encoding="utf-8") if path else ""
    parser = argparse.ArgumentParser(
        "image_recognition_cnn.py", allow_abbrev=False, argument_default=argparse.SUPPRESS,
        usage="python image_recognition_cnn.py [--setting value ...] (--help lists all)")
    for name, (kind, *_) in RULES.items():
        found = re.search(rf"^{name} = (.+?)(?:  # (.+))?$", text, re.MULTILINE)
        value, meaning = found.groups() if found else (None, None)
        options = {"dest": name, "help": f"{meaning} (now: {value})".replace("%", "%%")}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = kind
            options["nargs"] = "+" if name in LISTS else None
        parser.add_argument(f"--{name.lower().replace('_', '-')}", **options)
    return parser


def checked(name, value):
    """Return the value in the type that the setting has, or stop if it isn't allowed."""
    kind, *limits = RULES[name]
    values = list(value) if name in LISTS and isinstance(value, (list, tuple)) else [value]
    for one in values:
        fits = type(one) is kind or (kind is float and type(one) is int)
        if fits and limits:
            fits = one in limits if kind is str else limits[0] <= one <= limits[1]
        if not fits:
            takes = {str: "a text", bool: "True or False", int: "a whole number",
                     float: "a number"}[kind]
            if kind is str and limits:
                takes = " or ".join(limits)
            elif limits:
                takes += f" from {limits[0]} to {limits[1]}"
            stop(f"{name} can't be {one!r}: it takes {takes}.")
    values = [kind(one) for one in values]
    return values if name in LISTS else values[0]


def data_title(dataset):
    """Return the short name of a data set, for titles and its folder: last of my/last.npz."""
    path = pathlib.Path(dataset)
    return readable(path.stem if path.suffix.lower() == ".npz" else path.resolve().name)


def full_name(dataset):
    """Return the full path of a data set, which no other has, or the name of a built-in one."""
    return dataset if dataset in CLASS_NAMES else readable(pathlib.Path(dataset).resolve())


def from_keras(load, place, **options):
    """Return load(**options), for which Keras downloads a file once; stop if that fails.

    place: of the file in Keras' folder, where a copy does as well.
    """
    socket.setdefaulttimeout(60)  # seconds; a dead connection would hold up the run for ever
    home = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    try:
        return load(**options)
    except Exception as error:  # no internet, a broken file, no room on the disk, ...
        reason = " ".join(str(error).split())[:200].rstrip(".")
        stop(f"Keras could not load its file ({reason}): put a copy of it at {home / place} (or "
             f"set KERAS_HOME to the folder that holds {place}). --dataset digits and "
             "--model cnn need no download.")


def results_folder(settings):
    """Return the folder of the data set's results; stop if it holds those of another data set."""
    folder = pathlib.Path(settings.OUTPUT_DIR, data_title(settings.DATASET))
    with contextlib.suppress(OSError, ValueError):  # no earlier run
        owner = json.loads((folder / "model.json").read_text(encoding="utf-8"))["dataset"]
        if owner != full_name(settings.DATASET):
            stop(f"{folder} belongs to another data set, {owner}: name that one, or another folder "
                 "with --output-dir.")
    return folder


def open_results_folder(settings, data_hash):
    """Return the folder in which this run collects its files: a new one, or with RESUME an old one.

    The files take their place at the very end, so that a run that fails leaves the results of the
    run before it as they were. The hash in the folder's name changes with the settings and with any
    pixel: a run that was cut off goes on only with the settings and the data that it had.
    """
    state = {name: value for name, value in vars(settings).items() if name not in WITHOUT_EFFECT}
    state["DATASET"] = full_name(settings.DATASET)
    results = results_folder(settings)
    mark = f".unfinished_{joblib.hash([state, data_hash])[:8]}_"
    found = sorted(path.parent for path in results.parent.glob(f"*{mark}*/history.csv"))
    if settings.RESUME:
        if not found:
            stop(f"--resume finds no unfinished run in {settings.OUTPUT_DIR} with these settings "
                 "and this data: give the same flags as then, or leave --resume out.")
        return found[-1]  # the newest
    if found:
        print(f"{found[-1]} is an unfinished run with these settings and this data. This run "
              "begins anew; --resume would go on with that one.")
    remove_forgotten_runs(results.parent)
    results.parent.mkdir(parents=True, exist_ok=True)
    name = results.name + mark + time.strftime("%Y%m%d_%H%M%S_")
    folder = pathlib.Path(tempfile.mkdtemp(prefix=name, dir=results.parent))  # no other run's
    atexit.register(remove_if_untrained, folder)
    return folder


def remove_forgotten_runs(output_dir):
    """Remove unfinished runs in which nothing has happened for 30 days."""
    for folder in output_dir.glob("*.unfinished_*"):
        with contextlib.suppress(FileNotFoundError):  # another run has just finished
            if time.time() - folder.stat().st_mtime > 30 * 24 * 3600:  # seconds
                print(f"Removed, as unfinished for 30 days: {folder}")
                shutil.rmtree(folder, ignore_errors=True)


def remove_if_untrained(folder):
    """Remove the folder of a run that ended before its first epoch was over."""
    if not (folder / "history.csv").exists():
        shutil.rmtree(folder, ignore_errors=True)


def weights_file(model, folder, first_epoch):
    """Return the file that keeps the weights of a training for RESUME.

    The hash in its name changes with any layer. (Names such as conv2d_3 count the layers that were
    made before, so they are left out.)
    """
    layers_of_model = re.sub(r"_\d+", "", str(model.get_config()))
    return folder / f"from_epoch_{first_epoch}_{joblib.hash(layers_of_model)[:8]}.weights.h5"


def restore_weights(model, folder, settings, first_epoch, steps_per_epoch):
    """Return the epoch to begin with: first_epoch or, with RESUME, the one after the last kept."""
    kept = weights_file(model, folder, first_epoch)
    of_this_training = list(folder.glob(f"from_epoch_{first_epoch}_*"))
    if not settings.RESUME or not of_this_training:
        return first_epoch
    if kept not in of_this_training:
        stop(f"--resume can't go on with {folder}: the layers of the network were changed since. "
             "Change them back, or leave --resume out.")
    model.optimizer.build(model.trainable_variables)  # it remembers gradients, which are kept, too
    try:
        model.load_weights(kept)
    except Exception as error:  # a broken file raises many kinds
        stop(f"--resume can't read {kept} ({str(error)[:200]}): leave --resume out.")
    return first_epoch + int(model.optimizer.iterations) // steps_per_epoch


def after_each_epoch(model, folder, settings, first_epoch):
    """Return what Keras shall do after each epoch: keep the table and the weights, draw curves."""
    table = folder / "history.csv"
    ends = [time.perf_counter()]

    def keep(epoch, logs):  # logs: a dict of accuracy, loss, val_accuracy, val_loss
        ends.append(time.perf_counter())
        row = {"epoch": epoch, **logs, "learning_rate": float(model.optimizer.learning_rate),
               "seconds": round(ends[-1] - ends[-2], 2)}
        # With RESUME an epoch may be done again: its old row, number `epoch`, is left out.
        earlier = pd.read_csv(table)[:epoch] if table.exists() else None
        history = pd.concat([earlier, pd.DataFrame([row])], ignore_index=True)
        # Written under another name, then moved: so a file is whole, whenever a run is cut off.
        history.to_csv(folder / "new.csv", index=False)
        (folder / "new.csv").replace(table)
        model.save_weights(folder / "new.weights.h5")
        (folder / "new.weights.h5").replace(weights_file(model, folder, first_epoch))
        if row["seconds"] > 10:  # drawing takes about one
            draw_curves(history, data_title(settings.DATASET), folder)
            plt.close()
            print(f"Look at it while it runs: {folder / 'accuracy_loss_curves.png'}", flush=True)

    # The second one ends the training when the loss is NaN (not a number).
    return [callbacks.LambdaCallback(on_epoch_end=keep), callbacks.TerminateOnNaN()]


def read_history(folder, settings):
    """Return the table of the epochs; stop if there is none, or if the training has failed."""
    table = folder / "history.csv"
    if not table.exists():
        stop("ended by Ctrl-C in the first epoch; results of earlier runs stay as they were.")
    history = pd.read_csv(table)
    if not np.isfinite(history["loss"].iloc[-1]):
        table.unlink()  # RESUME shall not go on with this
        stop(f"The loss became NaN (not a number), as the steps were too large: try "
             f"--learning-rate {settings.LEARNING_RATE / 10:g}.")
    return history


@contextlib.contextmanager
def one_at_a_time(lock):
    """Wait until no other run holds the lock, a folder: only one of two programs can make it."""
    for _ in range(100):  # 10 seconds at most, as a run that was killed may have left it
        with contextlib.suppress(FileExistsError):
            lock.mkdir()
            break
        time.sleep(0.1)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            lock.rmdir()


def publish_results(folder, settings, results, history):
    """Write metrics.json, and move all files to their place; return what metrics.json holds.

    Files of the user's stay there. One file after the other is moved, which needs no room on the
    disk, so none is cut short. The unfinished run can be resumed until the last one is there:
    model.json, so that no network stands beside the class names of another one.
    """
    metrics = {**results, "epochs_trained": len(history),
               "training_seconds": round(float(history["seconds"].sum()), 1),
               "settings": vars(settings), "versions": VERSIONS}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    place = results_folder(settings)
    place.mkdir(parents=True, exist_ok=True)
    last = ["history.csv", "model.json"]
    names = [path.name for path in folder.iterdir() if not path.name.endswith(".weights.h5")]
    with one_at_a_time(place.with_name(f"{place.name}.lock")):
        for old in ["model.json", *NOT_OF_EVERY_RUN]:
            (place / old).unlink(missing_ok=True)
        for name in [*sorted(set(names) - set(last)), *last]:
            (folder / name).replace(place / name)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"In {place.resolve()}: {', '.join(sorted(path.name for path in place.iterdir()))}")
    return metrics


def record_experiment(settings, metrics, data_hash):
    """Add a row to experiments.csv; print the last runs on the same images, and the best one."""
    path = pathlib.Path(settings.OUTPUT_DIR, "experiments.csv")
    row = {"TIME": time.strftime("%Y-%m-%d %H:%M:%S"), **vars(settings), "DATA": data_hash,
           **metrics}
    for name in [*WITHOUT_EFFECT, "classes", "confusion_matrix", "settings", "versions"]:
        row.pop(name, None)
    rows = pd.DataFrame([row]).astype(str)
    try:
        with one_at_a_time(path.with_suffix(".lock")):
            rows = pd.concat([read_experiments(path), rows], ignore_index=True)
            rows.to_csv(path.with_suffix(".new"), index=False)
            path.with_suffix(".new").replace(path)  # one move: the table is never half written
    except OSError as error:
        warn(f"{path} lacks this run ({error}): does another program show it? The figures are in "
             "metrics.json.")
    print_experiments(rows)


def read_experiments(path):
    """Return the rows of experiments.csv, all as texts; set a file aside that is no such table."""
    if not path.exists():
        return None
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        if {"TIME", "DATA", "validation_accuracy"} <= set(rows.columns):
            return rows
    except ValueError:  # another program has saved it in another form
        pass
    aside = path.with_name(time.strftime("experiments_set_aside_%Y%m%d_%H%M%S.csv"))
    path.replace(aside)
    warn(f"{path} is no longer the table that this program wrote, so it is {aside} now, and a new "
         "one begins.")
    return None


def print_experiments(rows):
    """Print the last three runs on the images of the last one, and the best of all."""
    accuracies = pd.to_numeric(rows["validation_accuracy"], errors="coerce")
    same_data = rows[(rows["DATA"] == rows["DATA"].iloc[-1]) & accuracies.notna()]
    best = accuracies[same_data.index].idxmax()
    shown = same_data.loc[sorted({best, *same_data.index[-3:]})]
    changed = [name for name in [*RULES, "epochs_trained"]
               if name in shown and shown[name].nunique() > 1]
    table = shown[["TIME", *changed]].copy()
    number = int(rows["validation_images"].iloc[-1])
    for i in shown.index:
        low, high = interval_of(round(accuracies[i] * number), number)
        table.loc[i, "validation"] = f"{accuracies[i]:.1%}"
        table.loc[i, "95 % interval"] = f"{low:.1%} to {high:.1%}"
        table.loc[i, ""] = "best" if i == best else ""
    print(f"Runs on these images: {len(same_data)}. The last ones and the best one, by the "
          "validation images. Another --seed alone changes the figures, too:\n"
          f"{table.to_string(index=False)}")


# %% References: the papers that are named as (author, year)
# Ioffe and Szegedy 2015, Batch Normalization, arXiv:1502.03167. Page 2019, How to Train Your ResNet
# Jordan 2024, 94 % on CIFAR-10 in 3.29 Seconds, arXiv:2404.00498. Kingma and Ba 2015, Adam,
# arXiv:1412.6980. Loshchilov and Hutter 2017, SGDR, arXiv:1608.03983; 2019, Decoupled Weight Decay,
# arXiv:1711.05101. Goyal et al. 2017, Large Minibatch SGD, arXiv:1706.02677. Szegedy et al. 2016,
# Rethinking Inception, arXiv:1512.00567. Zeiler and Fergus 2014, Visualizing CNNs, arXiv:1311.2901
# Sandler et al. 2018, MobileNetV2, arXiv:1801.04381. He et al. 2015, ResNet, arXiv:1512.03385
# Simonyan and Zisserman 2014, VGG, arXiv:1409.1556. Chollet 2020, Transfer Learning (keras.io)
# Wilson 1927, Probable Inference. Fisher 1935, The Logic of Inductive Inference


# %% The page of chapter 9: first the network as plain loops, then pictures, then the answer
PAGE = r"""<!doctype html><html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<style>
  * { box-sizing: border-box; margin: 0; }
  html { --accent: light-dark(#4a3fd1, #b0a8ff); color-scheme: light dark; padding: .75rem;
    background: light-dark(#f6f4ef, #121219); font: 1rem/1.4 system-ui; overflow-wrap: anywhere; }
  main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
    gap: .75rem; max-width: 56rem; margin: auto; }
  header, details { grid-column: 1 / -1; }
  p, figcaption { color: light-dark(#5d5a68, #aaa7ba); font-size: .875rem; }
  .card, button, label { padding: .5rem 1rem; border: 1px solid light-dark(#dedad0, #3b3a49);
    border-radius: 1.25rem; background: light-dark(#fff, #1c1c26); }
  button, label { display: inline-block; margin: .75rem .25rem .5rem 0; font: inherit; }
  :focus-visible, label:focus-within { outline: 3px solid var(--accent); outline-offset: 2px; }
  #pad { display: block; width: min(100%, max(12rem, 44vh)); aspect-ratio: 1; margin: .25rem auto;
    object-fit: contain; border-radius: 1rem; background: black; touch-action: none; }
  #file, #spoken { position: absolute; width: 1px; height: 1px; opacity: 0; }
  #answer { color: var(--accent); font-size: 1.8rem; font-weight: 700; line-height: 1.2; }
  section figure { float: right; margin-left: 1rem; }
  #bars { clear: both; padding: .5rem 0; }
  #bars li { display: grid; grid-template-columns: 1fr 1fr 4rem; gap: .6rem; }
  meter { width: 100%; } meter::-webkit-meter-optimum-value { background: var(--accent); }
  #seen, details canvas { width: 6rem; border-radius: .4rem; image-rendering: pixelated; }
  details canvas { width: min(11%, 4rem); margin: 1px; }
</style>
<main>
  <header><h1 id="title"></h1><p id="about"></p></header>
  <section class="card" aria-label="Picture">
    <canvas id="pad" role="img" aria-label="The picture"></canvas>
    <button id="clear" onclick="clearPad()">Clear</button>
    <label>Picture <input type="file" id="file" accept="image/*" onclick="this.value = ''"
      onchange="openPicture(event, this)"></label>
    <button id="camera" onclick="startCamera()">Camera</button>
    <p id="message" role="status"></p>
  </section>
  <section class="card" aria-label="Answer">
    <figure><figcaption>The network sees</figcaption><canvas id="seen"></canvas></figure>
    <p>The answer</p><p id="answer"></p><p id="sure"></p>
    <ul id="bars" aria-label="The likeliest classes"></ul><p id="spoken" role="status"></p>
  </section>
  <details class="card" id="inside" ontoggle="look()"><summary>Look inside the network</summary>
    <p>Each tile is the map of one filter: bright where the filter found what it looks for.</p>
    <div id="stages"></div></details>
</main>
<script type="application/json" id="data">@@THE TRAINED NETWORK@@</script>
<script>
const element = (id) => document.getElementById(id);
const make = (tag) => document.createElement(tag);
const range = (number) => Array.from({length: number}, (_, i) => i);  // 0, 1, 2, ...
const largest = (numbers) => numbers.reduce((a, b) => Math.max(a, b));
const sum = (numbers) => numbers.reduce((a, b) => a + b);

// ---------- The network: a list of steps with their numbers, and a few plain loops ----------
const data = JSON.parse(element("data").textContent);
const {class_names: names, input_shape: [HEIGHT, WIDTH, CHANNELS]} = data;
// The weights come as text (base64), four bytes for each number.
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
for (const step of data.steps) step.weights = new Float32Array(bytesOf(step.weights).buffer);

// Maps are lines of pixels; a pixel is a list of numbers, its channels: x[row][column][channel].
const makeMaps = (height, width, makePixel) => range(height).map(
  (row) => range(width).map((column) => makePixel(row, column)));
const change = (x, changePixel) => x.map((line) => line.map(changePixel));

// A filter lies on a patch of the image, multiplies each number of the patch by a weight of its
// own, and adds all up: one number, large where the patch looks like the filter. Then it moves on
// by one pixel. Each filter gives one map, a channel of the result. ("Dense" layers are filters as
// large as the image: they fit in one place only. "Same": half of the filter may stick out.)
function convolution(x, {shape: [rows, columns, channels, filters], weights, same}) {
  const [above, left] = same ? [(rows - 1) >> 1, (columns - 1) >> 1] : [0, 0];
  const height = same ? x.length : x.length - rows + 1;
  const width = same ? x[0].length : x[0].length - columns + 1;
  return makeMaps(height, width, (row, column) => {
    const sums = weights.slice(-filters);  // the last weights are the biases: sums begin with them
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) {
        const pixel = x[row + i - above]?.[column + j - left] ?? [];  // outside: empty
        for (let k = 0; k < pixel.length; k++) {
          const value = pixel[k];
          if (value === 0) continue;  // nothing to add, as often after a ReLU
          const start = ((i * columns + j) * channels + k) * filters;
          for (let f = 0; f < filters; f++) sums[f] += value * weights[start + f];
        }
      }
    }
    return sums;
  });
}

// Of each patch of a map one number stays: in pooling the largest of 2 x 2.
function pool(x, rows, columns, combine) {
  return makeMaps(Math.floor(x.length / rows), Math.floor(x[0].length / columns), (row, column) => {
    const lines = x.slice(row * rows, (row + 1) * rows);
    const pixels = lines.flatMap((line) => line.slice(column * columns, (column + 1) * columns));
    return pixels.reduce((one, other) => one.map((value, k) => combine(value, other[k])));
  });
}
const pooling = (x, {shape: [rows, columns]}) => pool(x, rows, columns, Math.max);

// Normalization: each channel is multiplied by a number of its own, then another one is added.
const scale = (x, {shape: [channels], weights}) => change(x, (pixel) => pixel.map(
  (value, k) => value * weights[k] + weights[channels + k]));
// ReLU: what is below 0 becomes 0. Without it, many layers could do little more than one.
const relu = (x) => change(x, (pixel) => pixel.map((value) => Math.max(0, value)));
// Softmax: any numbers become probabilities, all above 0 and together 1; larger stays larger.
const softmax = (x) => change(x, (pixel) => {
  const most = largest(pixel);  // taken away first, or exp could become infinite
  const powers = pixel.map((value) => Math.exp(value - most));
  return powers.map((power) => power / sum(powers));
});

// The whole network: what comes out of one step goes into the next.
function recognize(image) {
  const compute = {convolution, pooling, scale, relu, softmax};
  const stages = [];  // what came out of each ReLU, to be looked at
  let x = change(image, (pixel) => new Float32Array(pixel));
  for (const step of data.steps) {
    x = compute[step.kind](x, step);
    if (step.kind === "relu") stages.push(x);
  }
  return {probabilities: [...x[0][0]], stages};  // one pixel is left, a channel for each class
}

// ---------- From any picture to the pixels that the network knows ----------
const clip = (value, most) => Math.min(most, Math.max(0, value));

// The number below which a share of all numbers lies: 0.5 for the median.
function quantile(numbers, share) {
  const sorted = new Float32Array(numbers.flat(2)).sort();
  return sorted[Math.floor(share * (sorted.length - 1))];
}

// A canvas, brought to another size, as maps: grey, or red, green and blue.
function read(canvas, height, width) {
  const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0, width, height);
  const rgba = copy.getImageData(0, 0, width, height).data;
  return makeMaps(height, width, (row, column) => {
    const i = 4 * (row * width + column);
    if (CHANNELS === 3) return [rgba[i], rgba[i + 1], rgba[i + 2]];
    return [0.299 * rgba[i] + 0.587 * rgba[i + 1] + 0.114 * rgba[i + 2]];
  });
}

// The paper at each pixel: the median of the pad or, in uneven light, of 9 x 9 of 16 x 16 parts.
function findPaper(height, width) {
  const parts = read(pad, 16, 16);
  const corners = [parts[0][0], parts[0][15], parts[15][0], parts[15][15]];
  const isEven = quantile(corners, 1) - quantile(corners, 0) <= 30;
  const medians = makeMaps(16, 16, (row, column) => {
    const near = makeMaps(9, 9, (i, j) => parts[clip(row + i - 4, 15)][clip(column + j - 4, 15)]);
    return [quantile(isEven ? parts : near, 0.5)];
  });
  return read(paint(make("canvas"), medians), height, width);  // smoothly enlarged
}

// The image for the network, cut out of larger maps around (middle, centre): each of its pixels is
// the mean of 4 x 4 points in a square with the side `step`.
function cutOut(maps, middle, centre, step) {
  const points = makeMaps(4 * HEIGHT, 4 * WIDTH, (row, column) => {
    const y = Math.floor(middle + step * ((row + 0.5) / 4 - HEIGHT / 2));
    const x = Math.floor(centre + step * ((column + 0.5) / 4 - WIDTH / 2));
    return (maps[y]?.[x] ?? Array(CHANNELS).fill(0)).map((value) => value / 16);  // outside: black
  });
  return pool(points, 4, 4, (a, b) => a + b);
}

// Of a photo the middle; of a drawing the ink, white on black, as large as in training; else null.
function prepare() {
  if (onPad === "nothing") return null;
  const smaller = Math.min(1, SIDE / Math.max(pad.width, pad.height));
  const [height, width] = [Math.ceil(smaller * pad.height), Math.ceil(smaller * pad.width)];
  const copy = read(pad, height, width);
  const step = Math.min(height / HEIGHT, width / WIDTH);
  if (!data.white_on_black) return cutOut(copy, height / 2, width / 2, step);
  const paper = findPaper(height, width);
  const contrast = makeMaps(height, width, (row, column) =>  // in the shade, both are darker
    (copy[row][column][0] + 1) / (paper[row][column][0] + 1) - 1);
  const [dark, light] = [quantile(contrast, 0.001), quantile(contrast, 0.999)];
  const strongest = -dark > light ? Math.min(dark, -0.05) : Math.max(light, 0.05);  // not noise
  const ink = change(contrast, (value) => [255 * clip(value / strongest, 1)]);
  const rows = range(height).filter((row) => ink[row].some(([value]) => value > 100));
  const columns = range(width).filter((column) => ink.some((line) => line[column][0] > 100));
  if (rows.length === 0) return null;
  const [tall, wide] = [rows.at(-1) + 1 - rows[0], columns.at(-1) + 1 - columns[0]];
  const size = Math.max(tall / HEIGHT, wide / WIDTH) / data.ink_share;
  const image = cutOut(ink, rows[0] + tall / 2, columns[0] + wide / 2, size);
  const white = Math.max(1, quantile(image, 0.97));  // made small, a thin line is pale
  return change(image, ([value]) => [255 * clip(value / white, 1)]);
}

// ---------- Where pictures come from: pen, file, camera ----------
const pad = element("pad");  // shows the drawing, the picture or what the camera sees
const pen = pad.getContext("2d", {alpha: false});  // empty, it is black
const SIDE = Math.max(100, 2 * HEIGHT, 2 * WIDTH);  // of what is looked at: enough, and quick
const START = `${data.white_on_black ? "Draw, or take" : "Choose, drop, paste or take"} a picture.`;
let onPad = "nothing";  // or "drawing", or "picture"
let stream = null;  // of the running camera
let last = null;  // where the pen was, while it draws
let waiting = 0;  // for the pen to rest, then for the network
let hearing = 0;  // a screen reader hears the answer when it has rested for a second

function clearPad(sentence = START) {
  if (stream) for (const track of stream.getTracks()) track.stop();
  stream = null;
  [pad.width, pad.height] = [300, 300];
  onPad = "nothing";
  element("message").textContent = sentence;
  look();
}

function showPicture(source, width, height) {
  const smaller = Math.min(1, 4 * SIDE / Math.max(width, height));
  [pad.width, pad.height] = [Math.ceil(width * smaller), Math.ceil(height * smaller)];
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "white";  // behind transparent parts
  pen.fillRect(0, 0, pad.width, pad.height);
  pen.drawImage(source, 0, 0, pad.width, pad.height);
  onPad = "picture";
  look();
}

async function openPicture(event, {files: [file]}) {
  event.preventDefault();  // or the browser shows the file in place of the page
  if (!file) return;
  clearPad("");
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (bitmap) showPicture(bitmap, bitmap.width, bitmap.height);
  else clearPad(`This browser can't read ${file.name} as a picture; try a JPEG or PNG file.`);
}

async function startCamera() {
  try {
    const found = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
    clearPad("");
    stream = found;
    stream.getTracks()[0].onended = () => clearPad("The camera was taken away.");
    const video = Object.assign(make("video"), {muted: true, playsInline: true, srcObject: found});
    await video.play();
    while (stream === found) {
      showPicture(video, video.videoWidth, video.videoHeight);
      await new Promise((done) => setTimeout(done, 100));
    }
  } catch (error) {
    clearPad(`No camera (${error.name}): refused, absent, in use, or a page without https.`);
  }
}

function drawTo(event) {
  const zoom = 300 / pad.clientWidth;
  const point = [event.offsetX * zoom, event.offsetY * zoom];
  Object.assign(pen, {strokeStyle: "white", lineWidth: 27, lineCap: "round"});
  pen.beginPath();
  pen.moveTo(...last || point);
  pen.lineTo(...point);  // to where it already is: a dot
  pen.stroke();
  last = point;
  onPad = "drawing";
  clearTimeout(waiting);
  waiting = setTimeout(look, 60);  // when the pen rests
}

pad.onpointerdown = (event) => {
  if (!data.white_on_black || !event.isPrimary || event.button > 0) return;
  if (onPad === "picture") clearPad();
  pad.setPointerCapture(event.pointerId);  // a line may leave the pad and come back
  drawTo(event);
};
pad.onpointermove = (event) => { if (last && event.isPrimary) drawTo(event); };
pad.onlostpointercapture = () => { last = null; };
document.onpaste = (event) => openPicture(event, event.clipboardData);
document.ondrop = (event) => openPicture(event, event.dataTransfer);
document.ondragover = (event) => event.preventDefault();

// ---------- The answer ----------
// First the preparation; the network a moment later, so that the pen does not wait for both.
function look() {
  const image = prepare();
  paint(element("seen"), image ?? makeMaps(HEIGHT, WIDTH, () => [0]));
  clearTimeout(waiting);
  if (image) waiting = setTimeout(() => showAnswer(recognize(image)), 0);
  else showAnswer({probabilities: names.map(() => 0), stages: []});
}

function showAnswer({probabilities, stages}) {
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  const share = largest(probabilities);
  const doubt = share < 0.5 ? ", so it may well be wrong" : "";
  const answer = share ? names[probabilities.indexOf(share)] : "–";
  const sure = share ? `${percent(share)} sure${doubt}` : "nothing to see yet";
  element("answer").textContent = answer;
  element("sure").textContent = sure;
  clearTimeout(hearing);
  hearing = setTimeout(() => { element("spoken").textContent = `${answer}, ${sure}`; }, 1000);
  const order = range(names.length);  // up to 10 classes keep their places
  if (names.length > 10) order.sort((a, b) => probabilities[b] - probabilities[a]);
  element("bars").replaceChildren(...order.slice(0, 10).map((i) => {
    const row = make("li");
    const bar = Object.assign(make("meter"), {value: probabilities[i], ariaLabel: names[i]});
    row.append(names[i], bar, percent(probabilities[i]));  // as text, never as HTML
    return row;
  }));
  element("stages").replaceChildren(...(element("inside").open ? stages.map(drawStage) : []));
}

// Shows maps of one channel (grey) or three (red, green, blue), 0 to 255, on a canvas.
function paint(canvas, maps) {
  [canvas.width, canvas.height] = [maps[0].length, maps.length];
  const pixels = maps.flat().flatMap(([red, green = red, blue = red]) => [red, green, blue, 255]);
  const shown = new ImageData(new Uint8ClampedArray(pixels), canvas.width);
  canvas.getContext("2d").putImageData(shown, 0, 0);
  return canvas;
}

// Up to 64 maps of a stage, each as a tile: the root makes small numbers visible.
function drawStage(x) {
  const most = Math.max(1e-9, largest(x.flat().map(largest)));
  const tiles = range(Math.min(64, x[0][0].length)).map(
    (k) => paint(make("canvas"), change(x, (pixel) => [255 * Math.sqrt(pixel[k] / most)])));
  const row = make("p");
  row.append(`${x[0][0].length} maps of ${x[0].length} x ${x.length}`, make("br"), ...tiles);
  return row;
}

document.title = `Try it: ${data.title}`;
element("title").textContent = document.title;
element("about").textContent = `${data.parameters.toLocaleString("en")} weights, all in this file.`;
clearPad();
</script>
"""


# %% The program starts here
if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # "?" for what the console can't print
    # In the cells of a notebook, the words are its kernel's, not ours.
    is_ours = pathlib.Path(sys.argv[0]).name == pathlib.Path(globals().get("__file__", "-")).name
    try:
        main(sys.argv[1:] if is_ours else [])
    except KeyboardInterrupt:
        stop("ended by Ctrl-C. After a finished epoch, the same command with --resume goes on.")
    except OSError as error:
        stop(f"{error}. Is there room on the disk, may you write there, or does another program "
             "show the file? After a finished epoch, the same command with --resume goes on.")
