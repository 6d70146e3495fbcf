"""Figures of what a prompt learned: the hand-written prompt's beside its own. Each function gives a matplotlib figure.

They are readable with a thousand classes: where there are more than fit, those that changed most are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..encoding import distinct_classnames
from ..escaping import figure_text, one_line
from .metrics import CALIBRATION_BINS, Guesses, bins_of

BEFORE, AFTER, GAINED, LOST, GREY, INK = "#8b93a1", "#2b83f6", "#2e9e6b", "#dd5a4f", "#9aa0a8", "#111111"
MAX_NAMED, MAX_NUMBERED, MAX_COLOURED, MAX_BARS = 25, 12, 10, 12
LONGEST_NAME, LONGEST_OF_TWO = 22, 17
WIDTH, HEIGHT = 4.8, 4.5  # inches: as wide as a phone, so that text is not shrunk there
# Ten colours that can be told apart, none of them grey, which is for all other classes.
COLOURS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#8fb8de",
    "#bcbd22",
    "#17becf",
)


def class_similarity(
    class_embeds: np.ndarray,
    classnames: Sequence[str],
    title: str = "",
    order: Sequence[int] | None = None,
    limits: tuple[float, float] | None = None,
) -> Any:
    """The cosine of each two classes' embeddings, as a matrix of colours.

    Args:
        class_embeds (`np.ndarray` of shape `(K, D)`): normalised.
        classnames (`Sequence[str]`): K names.
        title (`str`): above the figure.
        order (`Sequence[int]`, *optional*): of the classes, such as [`similarity_order`]'s; default: label order.
        limits (`tuple[float, float]`, *optional*): ends of the colours; default: the least and largest cosine.
    """
    order = list(range(len(classnames)) if order is None else order)
    cosines = class_embeds[order] @ class_embeds[order].T
    np.fill_diagonal(cosines, np.nan)  # always 1: its colour would say nothing, and cost the others theirs
    low, high = limits or similarity_limits(class_embeds)
    figure, axes = _axes(WIDTH, HEIGHT)
    image = axes.imshow(cosines, cmap="viridis", vmin=low, vmax=high)
    figure.colorbar(image, ax=axes, shrink=0.8, label="cosine")
    _name_both_axes(axes, _captions(classnames), order)
    if len(order) <= MAX_NUMBERED:
        for (row, column), value in np.ndenumerate(cosines):
            if row != column:
                colour, text = "w" if value < (low + high) / 2 else INK, f"{value:.2f}".replace("-0.00", "0.00")
                axes.text(column, row, text, ha="center", va="center", size=7, color=colour)
    axes.set_title(figure_text(title))
    return figure


def similarity_limits(*class_embeds: np.ndarray) -> tuple[float, float]:
    """The least and the largest cosine of two classes, over several sets of embeddings `(K, D)`."""
    found = [(embeds @ embeds.T)[~np.eye(len(embeds), dtype=bool)] for embeds in class_embeds]
    cosines = np.concatenate(found)
    return (float(cosines.min()), float(cosines.max())) if len(cosines) else (0.0, 1.0)


def similarity_order(class_embeds: np.ndarray) -> list[int]:
    """Where there are many classes, those with similar embeddings `(K, D)` beside each other; else label order."""
    if len(class_embeds) <= MAX_NAMED:
        return list(range(len(class_embeds)))
    from scipy.cluster.hierarchy import leaves_list, linkage

    return leaves_list(linkage(class_embeds, "average", metric="euclidean")).tolist()


def project_embeddings(
    image_embeds: np.ndarray, class_embeds: Sequence[np.ndarray], method: str = "pca", seed: int = 0
) -> list[np.ndarray]:
    """Two coordinates for each image and for each class embedding of every set.

    CLIP keeps images and texts in different regions, so images and classes are each moved to have mean 0 and brought
    to the same mean square length first; all sets of class embeddings are moved alike, so that they can be compared.

    Args:
        image_embeds (`np.ndarray` of shape `(N, D)`): normalised.
        class_embeds: arrays of shape `(K, D)`, normalised: of the hand-written prompt, of the learned one.
        method (`str`): "pca", whose axes are those of the images; or "tsne", scikit-learn's t-SNE of all together.
        seed (`int`): of t-SNE.

    Returns:
        `(N, 2)`, then `(K, 2)` for each of `class_embeds`.

    Raises:
        ValueError: another `method`.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    texts = np.concatenate(class_embeds)
    images, texts = (part - part.mean(0) for part in (image_embeds, texts))
    sizes = [float(np.sqrt((part**2).sum(1).mean())) or 1.0 for part in (images, texts)]
    images, texts = images / sizes[0], texts / sizes[1]
    if method == "pca":
        pca = PCA(n_components=min(2, *images.shape)).fit(images)
        both = pca.transform(np.concatenate([images, texts]))
        both = np.pad(both, ((0, 0), (0, 2 - both.shape[1])))
    elif method == "tsne":
        together = np.concatenate([images, texts])
        perplexity = min(30.0, (len(together) - 1) / 3)
        both = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(together)
    else:
        raise ValueError(f"method must be pca or tsne, got {method!r}")
    return np.split(both, np.cumsum([len(images), *(len(part) for part in class_embeds)])[:-1])


def embedding_map(
    image_points: np.ndarray,
    labels: np.ndarray,
    class_points: np.ndarray,
    classnames: Sequence[str],
    title: str = "",
    coloured: Sequence[int] | None = None,
    limits: np.ndarray | None = None,
) -> Any:
    """Test images (dots) and class embeddings (stars) in two dimensions ([`project_embeddings`]).

    Args:
        image_points (`np.ndarray` of shape `(N, 2)`), labels (`np.ndarray` of shape `(N,)`): images and their classes.
        class_points (`np.ndarray` of shape `(K, 2)`), classnames (`Sequence[str]`): the classes.
        title (`str`): above the figure.
        coloured (`Sequence[int]`, *optional*): up to ten classes that get a colour and a name; default: the first.
        limits (`np.ndarray` of shape `(P, 2)`, *optional*): points that must be in the picture too, so that two
            pictures have the same axes.
    """
    names = _captions(classnames)
    chosen = list(range(len(classnames)) if coloured is None else coloured)[:MAX_COLOURED]
    figure, axes = _axes(WIDTH, HEIGHT)
    axes.axis("off")
    rest = ~np.isin(labels, chosen)
    axes.scatter(*image_points[rest].T, s=6, color=GREY, alpha=0.35, linewidths=0, rasterized=True)
    others = [k for k in range(len(classnames)) if k not in chosen]
    axes.scatter(*class_points[others].T, marker="*", s=14, color=GREY, alpha=0.5, linewidths=0, rasterized=True)
    for k, colour in zip(chosen, COLOURS, strict=False):
        axes.scatter(*image_points[labels == k].T, s=11, color=colour, alpha=0.6, linewidths=0, rasterized=True)
    for k, colour in zip(chosen, COLOURS, strict=False):
        axes.scatter(
            *class_points[k], marker="*", s=190, color=colour, edgecolors="#000000", linewidths=0.8, label=names[k]
        )
    if limits is not None:
        axes.update_datalim(limits)
        axes.autoscale_view()
    axes.set_title(figure_text(title))
    if chosen:
        axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, 0), fontsize=8, frameon=False, markerscale=0.6)
    return figure


def confusion_matrix(
    labels: np.ndarray,
    predicted: np.ndarray,
    classnames: Sequence[str],
    title: str = "",
    classes: Sequence[int] | None = None,
) -> Any:
    """Of each class's images, the share that goes to each class; the rows are what the images show.

    Args:
        labels (`np.ndarray` of shape `(N,)`), predicted (`np.ndarray` of shape `(N,)`): class numbers.
        classnames (`Sequence[str]`): K names.
        title (`str`): above the figure.
        classes (`Sequence[int]`, *optional*): those to show, such as [`most_confused`]'s; default: all.
    """
    chosen = list(range(len(classnames)) if classes is None else classes)
    counts = np.zeros((len(chosen), len(chosen)), dtype=int)
    place = {k: row for row, k in enumerate(chosen)}
    totals = np.bincount(labels, minlength=len(classnames))[chosen]
    for truth, guess in zip(labels.tolist(), predicted.tolist(), strict=True):
        if truth in place and guess in place:
            counts[place[truth], place[guess]] += 1
    shares = counts / np.maximum(totals, 1)[:, None]
    figure, axes = _axes(WIDTH, HEIGHT)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class's images")
    _name_both_axes(axes, _captions(classnames), chosen)
    axes.set(title=figure_text(title), xlabel="predicted", ylabel="true class")
    if len(chosen) <= MAX_NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "w" if shares[row, column] > 0.5 else INK
                axes.text(column, row, str(count), ha="center", va="center", size=8, color=colour)
    return figure


def most_confused(labels: np.ndarray, *predicted: np.ndarray, classes: int, count: int = MAX_NAMED) -> list[int]:
    """The classes that take part in most mistakes, as the true or the predicted one, in label order.

    Args:
        labels, predicted (`np.ndarray` of shape `(N,)`): class numbers, of one prompt or several.
        classes (`int`): K; all of them where they are at most `count`.
    """
    if classes <= count:
        return list(range(classes))
    mistakes = np.zeros(classes, dtype=int)
    for guesses in predicted:
        wrong = guesses != labels
        mistakes += np.bincount(labels[wrong], minlength=classes) + np.bincount(guesses[wrong], minlength=classes)
    return sorted(np.argsort(-mistakes, kind="stable")[:count].tolist())


def changed_pairs(labels: np.ndarray, before: np.ndarray, after: np.ndarray, classnames: Sequence[str]) -> Any:
    """The confusions of two classes whose number changed most from one prompt to the other.

    Args:
        labels, before, after (`np.ndarray` of shape `(N,)`): true classes, and those that two prompts predict.
        classnames (`Sequence[str]`): K names.
    """
    size, names = len(classnames), _captions(classnames, LONGEST_OF_TWO)
    counts = []
    for guesses in (before, after):
        wrong = guesses != labels
        pairs, number = np.unique(labels[wrong].astype(np.int64) * size + guesses[wrong], return_counts=True)
        counts.append(dict(zip(pairs.tolist(), number.tolist(), strict=True)))
    change = {pair: counts[1].get(pair, 0) - counts[0].get(pair, 0) for pair in counts[0].keys() | counts[1].keys()}
    chosen = sorted((pair for pair in change if change[pair]), key=lambda pair: (-abs(change[pair]), pair))[:MAX_BARS]
    old, new = ([float(number.get(pair, 0)) for pair in chosen] for number in counts)
    titles = [f"{names[pair // size]} taken for {names[pair % size]}" for pair in chosen]
    return _from_to(titles, old, new, "images (fewer is better)", "Confusions that changed most", better_if_less=True)


def accuracy_by_class(labels: np.ndarray, before: np.ndarray, after: np.ndarray, classnames: Sequence[str]) -> Any:
    """Accuracy of each class with one prompt and the other, most gained first; of many, those that changed most.

    Args:
        labels, before, after (`np.ndarray` of shape `(N,)`): true classes, and those that two prompts predict.
        classnames (`Sequence[str]`): K names.
    """
    old, new = (class_accuracy(labels, guesses, len(classnames)) for guesses in (before, after))
    change = new - old
    ranked = [k for k in np.argsort(-change, kind="stable") if not np.isnan(change[k])]
    gained, lost = [k for k in ranked if change[k] > 0], [k for k in ranked if change[k] < 0]
    shown = ranked if len(ranked) <= MAX_NAMED else gained[:MAX_BARS] + lost[-MAX_BARS:]
    names = _captions(classnames)
    title = f"{len(gained)} gained, {len(lost)} lost, {len(ranked) - len(gained) - len(lost)} stayed"
    more = "" if shown is ranked else f"\nat most {MAX_BARS} of each are shown"
    before_in_percent, after_in_percent = ((100 * accuracy[shown]).tolist() for accuracy in (old, new))
    shown_names = [names[k] for k in shown]
    figure = _from_to(shown_names, before_in_percent, after_in_percent, "accuracy in %", f"Classes: {title}{more}")
    if len({*before_in_percent, *after_in_percent}) < 2:  # around one value the axis would go beyond 100 %
        figure.axes[0].set_xlim(-5, 105)
    return figure


def class_accuracy(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The share of each class's images that is right, `(K,)`; nan where a class has none."""
    totals = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[labels == predicted], minlength=classes)
    return np.where(totals > 0, right / np.maximum(totals, 1), np.nan)


def reliability_diagram(guesses: Mapping[str, Guesses], labels: np.ndarray) -> Any:
    """Accuracy over confidence in the bins of the calibration error, and how many images are in each.

    Args:
        guesses (`dict[str, Guesses]`): of the hand-written prompt and of the learned one, by the prompt's name;
            [`Guesses.of`] makes them of softmax scores.
        labels (`np.ndarray` of shape `(N,)`): the right classes.
    """
    figure, axes = _axes(WIDTH, HEIGHT)
    axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1, label="as sure as right")
    for (name, found), colour, marker in zip(guesses.items(), (BEFORE, AFTER), "so", strict=True):
        confidence, right = found.confidence, found.predicted == labels
        bins = bins_of(confidence)
        counts = np.bincount(bins, minlength=CALIBRATION_BINS)
        full = counts > 0
        sums = [np.bincount(bins, weights=x, minlength=CALIBRATION_BINS) for x in (confidence, right)]
        curve = [100 * total[full] / counts[full] for total in sums]
        axes.plot(*curve, color=colour, linewidth=1.5)
        sizes = 8 + 160 * counts[full] / len(labels)
        label = f"{figure_text(name)}: calibration error {100 * found.calibration_error(labels):.1f}"
        axes.scatter(*curve, s=sizes, color=colour, marker=marker, alpha=0.85, label=label)
    axes.set(xlim=(0, 103), ylim=(0, 103), xlabel="confidence in %", ylabel="accuracy in %", title="Reliability")
    legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=8, frameon=False)
    for handle in legend.legend_handles[1:]:
        handle.set_sizes([40])
    axes.grid(alpha=0.25)
    return figure


def _from_to(
    names: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    unit: str,
    title: str,
    better_if_less: bool = False,
) -> Any:
    """A line for each name from one prompt's value to the other's."""
    figure, axes = _axes(WIDTH, 1.5 + 0.24 * max(2, len(names)))
    rows = range(len(names))
    for row, old, new in zip(rows, before, after, strict=True):
        colour = GREY if old == new else GAINED if (new < old) == better_if_less else LOST
        axes.plot([old, new], [row, row], color=colour, linewidth=2.5, alpha=0.7, zorder=1)
    axes.scatter(before, rows, color=BEFORE, marker="s", s=24, label="hand-written", zorder=2)
    axes.scatter(after, rows, color=AFTER, s=34, label="learned", zorder=3)
    axes.set_yticks(rows, names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(title, size=11)  # over the names too, which may leave little width
    axes.set_xlabel(unit)
    axes.grid(axis="x", alpha=0.25)
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    if not names:
        axes.text(0.5, 0.5, "nothing changed", transform=axes.transAxes, ha="center", va="center")
    return figure


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _captions(classnames: Sequence[str], longest: int = LONGEST_NAME) -> list[str]:
    """Class names as they stand in a figure: told apart, and short."""
    names = distinct_classnames([*map(one_line, classnames)])
    short = [name if len(name) <= longest else f"{name[: longest - 1].rstrip()}…" for name in names]
    count, half = Counter(short), longest // 2
    for k, name in enumerate(names):
        if count[short[k]] > 1:  # then they may differ in their ends
            short[k] = f"{name[: longest - 1 - half].rstrip()}…{name[-half:].lstrip()}"
    return [*map(figure_text, short)]


def _name_both_axes(axes: Any, names: Sequence[str], order: Sequence[int]) -> None:
    """As many class names along both sides of a matrix as can be read."""
    step = -(-len(order) // MAX_NAMED)
    places = list(range(0, len(order), step))
    shown = [names[order[place]] for place in places]
    size = 8 if len(order) <= MAX_NUMBERED else 6.5
    axes.set_yticks(places, shown, fontsize=size)
    axes.set_xticks(places, shown, fontsize=size, rotation=90)
    axes.tick_params(length=0)
