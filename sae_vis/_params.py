"""What a user chooses: the parameters of a run and the layout of a page.

Each option's help text lives on the field itself (``metadata["help"]``), so ``FeatureVisParams.help()`` cannot drift
from the code. The components that a page is made of are registered in ``COMPONENTS``; a ``Layout`` arranges them.
"""

from __future__ import annotations

import dataclasses
import operator
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice, pairwise
from typing import Any, Literal

from sae_vis import _templates
from sae_vis._errors import InputError, shown

Correlate = Literal["all", "asked"]
Ablation = Literal["direct", "full"]
FeatureMap = Literal["pca", "umap"]
ABLATIONS: tuple[Ablation, ...] = ("direct", "full")
View = Literal["feature", "prompt"]
NearDuplicates = Literal["keep", "drop"]
LossShares = Literal["estimate", "exact"]
OptionValue = int | None

BYTES_PER_UNIT = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


MOST_ITEMS = 2**24  # of a list of features or tokens: a generator may never end


def _index(value: Any) -> int | None:
    """The plain int that a value stands for, None if for none. A user's object may raise anything."""
    if isinstance(value, bool):
        return None
    try:
        return int(operator.index(value))
    except Exception:  # noqa: BLE001 - the value's own code
        return None


def _items(value: Any, what: str) -> list[Any]:
    """What an iterable gives."""
    try:
        items = list(islice(iter(value), MOST_ITEMS + 1))
    except Exception as error:  # noqa: BLE001 - the value's own code
        raise InputError(f"{what}, got {shown(value)}, which raises {shown(error)}.") from None
    if len(items) > MOST_ITEMS:
        raise InputError(f"{what}, at most {MOST_ITEMS:,}; got more.")
    return items


def _option(default: Any, help_text: str) -> Any:
    """A dataclass field with its default and its help text."""
    return field(default=default, metadata={"help": help_text})


# --- components and layout ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComponentSpec:
    """What one kind of panel is: which attribute of the data it draws, in which views, with which options."""

    help: str
    attribute: str
    template: str
    views: tuple[View, ...]
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    about: str = ""  # a sentence or two with the definitions, which the page shows on demand; "": the one in ABOUTS
    optional: bool = False  # where the data has none, nothing is said of it, unless the layout was given
    draw: Callable[..., Any] | None = None  # what draws a panel of somebody else's; None for those of the library
    data: type | None = None  # likewise: the dataclass of its data, which is in ``FeatureData.extras``


COMPONENTS: dict[str, ComponentSpec] = {
    "feature_tables": ComponentSpec(
        "Neuron alignment, correlated neurons, correlated features, correlated B features.",
        "feature_tables",
        "left_tables_template.html",
        ("feature",),
        {"rows": None},
    ),
    "activations_histogram": ComponentSpec(
        "Histogram of the feature's active activations, with its density.",
        "activations",
        "activations_histogram.html",
        ("feature", "prompt"),
    ),
    "logits_tables": ComponentSpec(
        "The tokens whose logits the feature lowers most and raises most.",
        "logits",
        "logits_tables.html",
        ("feature", "prompt"),
        {"rows": None},
    ),
    "logits_histogram": ComponentSpec(
        "Histogram of the feature's logit weights over the vocabulary.",
        "logits",
        "logits_histogram.html",
        ("feature", "prompt"),
    ),
    "sequences": ComponentSpec(
        "Top activations and random examples from equal intervals of activation.",
        "sequences",
        "sequence_multi_group.html",
        ("feature",),
        {"examples": None},
    ),
    "prompt": ComponentSpec(
        "The prompt, coloured by the feature, with the chosen token bold.",
        "sequence",
        "prompt_sequence.html",
        ("prompt",),
    ),
    "top_sequences": ComponentSpec(
        "The feature's top activations, in a prompt's column.",
        "top_group",
        "top_sequences.html",
        ("prompt",),
        {"examples": None},
    ),
    "tokens": ComponentSpec(
        "The tokens that make up most of the feature's activation, and how often it fires on each.",
        "tokens",
        "tokens_table.html",
        ("feature",),
        {"rows": None},
        optional=True,
    ),
    "neighbours": ComponentSpec(
        "Nearest decoder directions, and the features that are active together with this one.",
        "neighbours",
        "neighbours.html",
        ("feature",),
        {"rows": None},
        optional=True,
    ),
    "positions": ComponentSpec(
        "Histogram of the positions in the rows at which the feature fires.",
        "positions",
        "positions_histogram.html",
        ("feature",),
        optional=True,
    ),
    "counterexamples": ComponentSpec(
        "Random examples where the feature does not fire: on its top tokens, and anywhere.",
        "counterexamples",
        "counterexamples.html",
        ("feature",),
        {"examples": None},
        optional=True,
    ),
    "moments": ComponentSpec(
        "Mean, variance, skewness and kurtosis of the activations.",
        "activations",
        "moments.html",
        ("feature", "prompt"),
    ),
}

# What each panel is, with its definitions; the page holds these texts once.
ABOUTS: dict[str, str] = {
    "feature_tables": (
        "Neuron alignment: the largest entries of the feature’s decoder row, and each one’s share of the sum of absolute "
        "entries. Correlated neurons and features: the largest Pearson correlation of activations over all counted tokens, "
        "with the cosine similarity of the activations beside it."
    ),
    "neighbours": (
        "Nearest directions: the largest cosine between this feature’s decoder row and any other of the dictionary. Active "
        "together: the largest Jaccard index, the tokens on which both features are active divided by those on which at "
        "least one is."
    ),
    "activations_histogram": (
        "How the activations above zero are distributed: equal bins from the smallest to the largest. Density is the share "
        "of counted tokens on which the feature is active."
    ),
    "positions": "How often the feature is active at each position of a row, as a share of the counted tokens there.",
    "logits_tables": (
        "The tokens whose logits one unit of the feature lowers and raises most by its direct path: its direction in the "
        "residual stream, through the gain of the final norm and the unembedding, centred over the vocabulary."
    ),
    "logits_histogram": "The same logit weights for every token of the vocabulary, in equal bins.",
    "tokens": (
        "For each token string, how often the feature is active on it, P(active | token), its mean activation there, and its "
        "share of the feature’s total activation. A token feature has few strings with high shares; a feature of context has "
        "many with low ones."
    ),
    "sequences": (
        "The largest activations, then random examples from intervals of equal width between zero and the maximum. "
        "Orange: the activation; underline: how much the feature lowers (blue) or raises (red) the loss of predicting that "
        "token. The bars say how much of all activation, and of the loss lowered and raised, an interval holds; ≈ where "
        "that is estimated from its examples. Examples marked ≈ nearly repeat one above: same bold token, 80 % of the "
        "tokens equal."
    ),
    "counterexamples": (
        "Random tokens on which the feature is not active: near misses, where the token is one of those it is most active "
        "on, and any others. They show what the examples cannot: what the feature does not react to."
    ),
    "prompt": (
        "The prompt with this feature’s activation on each token (orange) and its effect on the loss of predicting it: "
        "lowered (blue) or raised (red)."
    ),
    "top_sequences": "The corpus tokens with the feature’s largest activations, to compare the prompt with.",
    "moments": (
        "Over all counted tokens, zeros included: mean; variance (the mean squared distance from the mean); skewness (the mean "
        "cubed distance over the variance to the power 1.5; large where few tokens carry the activation); kurtosis (the mean "
        "fourth power over the variance squared; 3 for a normal distribution)."
    ),
}


def about(name: str) -> str:
    """What a component's panel is, for a reader of the page."""
    spec = COMPONENTS[name]
    return spec.about or ABOUTS.get(name, spec.help)


def _option_value(component: str, option: object, value: object) -> OptionValue:
    number = _index(value)
    if not isinstance(option, str) or (value is not None and (number is None or not 0 <= number < 2**31)):
        raise InputError(
            f"Component {component!r}: option {shown(option)} must be an int >= 0 or None, got {shown(value)}."
        )
    return number


@dataclass(frozen=True)
class Component:
    """One panel of a column: its name in ``COMPONENTS`` and the options that differ from the defaults.

    Raises:
        InputError: if the name or an option is unknown.
    """

    name: str
    options: dict[str, OptionValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = COMPONENTS.get(self.name) if isinstance(self.name, str) else None
        if spec is None:
            raise InputError(
                f"Unknown component {shown(self.name)}. Known: {', '.join(COMPONENTS)}. A panel of your own is known once "
                "register_component was called."
            )
        if not isinstance(self.options, dict):
            raise InputError(f"Component {self.name!r}: options must be a dict, got {shown(self.options)}.")
        options: dict[str, OptionValue] = {}
        for option, value in self.options.items():
            if not isinstance(option, str) or option not in spec.options:
                known = ", ".join(spec.options) or "none"
                raise InputError(f"Component {self.name!r} has no option {shown(option)}. Its options: {known}.")
            options[option] = _option_value(self.name, option, value)
        object.__setattr__(self, "name", str.__str__(self.name))
        object.__setattr__(self, "options", options)

    @classmethod
    def help(cls) -> HelpText:
        """Every component with its views, its options and what it shows, as a text that shows itself."""
        return HelpText("\n".join(["Component", *_component_lines()]))


@dataclass(frozen=True, init=False)
class Column:
    """Components below each other: ``Column("logits_tables", Component("sequences"), width=420)``.

    Args:
        parts: names or ``Component`` objects, top to bottom.
        width: in CSS pixels; None takes what the components need. A column of sequences takes all the room that is left:
            there it is the least width of a group, and as many groups as fit stand beside each other.
        height: in CSS pixels, beyond which the column scrolls; None: that of the layout, if it has one.
    """

    components: tuple[Component, ...]
    width: int | None = None
    height: int | None = None

    def __init__(
        self,
        *parts: str | Component | Iterable[str | Component],
        components: Iterable[str | Component] = (),  # as dataclasses.replace gives them
        width: int | None = None,
        height: int | None = None,
    ) -> None:
        flat: list[str | Component] = []
        for item in (*parts, components):
            what = "A Column takes names of components, Component objects and lists of them"
            if isinstance(item, Mapping):  # whose values would be lost
                raise InputError(f"{what}, got {shown(item)}.")
            flat.extend([item] if isinstance(item, str | Component) else _items(item, what))
        as_components = tuple(item if isinstance(item, Component) else Component(item) for item in flat)
        object.__setattr__(self, "components", as_components)
        object.__setattr__(self, "width", width)
        object.__setattr__(self, "height", height)
        self.__post_init__()

    def __post_init__(self) -> None:  # called by __init__, and by the decoder of JSON, which does not call that
        if not self.components:
            raise InputError("A Column needs at least one component.")
        object.__setattr__(self, "width", _pixels("Column width", self.width, 40, 10_000))
        object.__setattr__(self, "height", _pixels("Column height", self.height, 40, 100_000))


def _pixels(what: str, value: object, low: int, high: int) -> int | None:
    number = _index(value)
    if value is not None and (number is None or not low <= number <= high):
        raise InputError(f"{what} must be an int from {low} to {high} (CSS pixels) or None, got {shown(value)}.")
    return number


@dataclass(frozen=True)
class Layout:
    """The columns of a page, left to right, and its height (CSS pixels; None: as tall as the content)."""

    columns: tuple[Column, ...]
    height: int | None = None

    def __post_init__(self) -> None:
        what = "A Layout needs a list of at least one Column, e.g. Layout([Column('sequences')])"
        columns = _items(self.columns, what)
        if not columns or not all(isinstance(column, Column) for column in columns):
            raise InputError(f"{what}.")
        object.__setattr__(self, "columns", tuple(columns))
        object.__setattr__(self, "height", _pixels("Layout height", self.height, 100, 100_000))

    def components(self) -> tuple[Component, ...]:
        """All components, column by column."""
        return tuple(component for column in self.columns for component in column.components)

    @classmethod
    def help(cls) -> HelpText:
        """What a layout is made of, and the defaults of both views, as a text that shows itself."""
        return HelpText("\n".join(_layout_help()))

    def tree(self) -> HelpText:
        """The columns and their components, as a text that shows itself."""
        return HelpText("\n".join(_tree_lines(self)))

    def check_view(self, view: View) -> None:
        """Raise ``InputError`` where a component does not belong in this view."""
        for component in self.components():
            if view not in COMPONENTS[component.name].views:
                fitting = ", ".join(name for name, spec in COMPONENTS.items() if view in spec.views)
                raise InputError(f"Component {component.name!r} cannot be shown in the {view} view. There: {fitting}.")


PROMPT_LAYOUT = Layout(
    (
        Column(
            "prompt",
            "activations_histogram",
            Component("logits_tables", {"rows": 5}),
            "logits_histogram",
            Component("top_sequences", {"examples": 10}),
            width=420,
        ),
    )
)


def _component_lines() -> list[str]:
    lines = []
    for name, spec in COMPONENTS.items():
        views = " and ".join(spec.views)
        lines.append(f"\n  {name}  ({views} view{'s' if len(spec.views) > 1 else ''})")
        lines += [f"      {option} = {default!r}" for option, default in spec.options.items()]
        lines += textwrap.wrap(about(name), 96, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _tree_lines(layout: Layout) -> list[str]:
    lines = ["Layout" + (f"  height={layout.height}" if layout.height else "")]
    for column in layout.columns:
        sizes = {"width": column.width, "height": column.height}
        lines.append("  Column" + "".join(f"  {name}={size}" for name, size in sizes.items() if size))
        for component in column.components:
            options = "".join(f"  {name}={value!r}" for name, value in component.options.items())
            lines.append(f"    {component.name}{options}")
    return lines


def _layout_help() -> list[str]:
    """The pieces from the outside in, then the defaults."""
    classes: tuple[type, ...] = (Layout, Column, Component)
    lines = [
        "Layout(columns, height=None)",
        "  Column(*components, width=None, height=None)",
        "    Component(name, options)",
    ]
    for cls in classes:
        lines += [
            "",
            cls.__name__,
            *("  " + line for line in textwrap.dedent("    " + (cls.__doc__ or "")).splitlines()),
        ]
    for view, default in (("feature", FeatureVisParams().feature_layout()), ("prompt", PROMPT_LAYOUT)):
        lines += ["", f"The default of the {view} view:", *_tree_lines(default)]
    return [*lines, "", "The components:", *_component_lines()]


# --- a panel of one's own ----------------------------------------------------------------------------------------

BUILT_IN = frozenset(COMPONENTS)


def register_component(
    name: str,
    *,
    template: str,
    help: str,  # noqa: A002 - the word of the library for this
    about: str = "",
    folder: str | os.PathLike[str] | None = None,
    data: type | None = None,
    attribute: str | None = None,
    draw: Callable[..., Any] | None = None,
    views: tuple[View, ...] = ("feature",),
    options: Mapping[str, OptionValue] | None = None,
) -> None:
    """Make a panel of one's own known, so that a ``Layout`` can have it; docs/panels.md has an example.

    Args:
        name: what it is called in a layout: small letters, digits and underscores.
        template: its file; the css and js that its first line names go into every page whose layout has the panel.
        help: its title, in a few words.
        about: a sentence or two that the page shows on demand.
        folder: where its template, css and js are, side by side; None: they are the library's.
        data: the dataclass of its data, which ``FeatureData.extras[name]`` holds. It needs a method ``get_html(page, **options)``
            that gives ``Html``, unless ``draw`` is given.
        attribute: instead of ``data``, the attribute of ``FeatureData`` or ``PromptData`` that it draws, e.g. "activations".
        draw: ``draw(part, page, options)`` gives ``Html``; None: the ``get_html`` of the data.
        views: "feature", "prompt" or both.
        options: the names of its options, with their defaults.

    Raises:
        InputError: if the name is no such name or that of a panel of the library, or there is neither data nor attribute.
    """
    if not isinstance(name, str) or not _COMPONENT_NAME.fullmatch(name):
        raise InputError(
            f"A component's name is small letters, digits and underscores, e.g. 'my_panel', got {shown(name)}."
        )
    if name in BUILT_IN:
        raise InputError(f"Component {name!r} is one of the library: choose another name.")
    if (data is None) == (attribute is None):
        raise InputError(
            f"Component {name!r} needs either data=, a dataclass, or attribute=, what it draws of a feature."
        )
    for what, text in (("template", template), ("help", help), ("about", about), ("attribute", attribute or "")):
        if not isinstance(text, str):
            raise InputError(f"Component {name!r}: {what} must be a text, got {shown(text)}.")
    if data is not None and not (isinstance(data, type) and dataclasses.is_dataclass(data)):
        raise InputError(f"Component {name!r}: data must be a dataclass, got {shown(data)}.")
    if draw is not None and not callable(draw):
        raise InputError(f"Component {name!r}: draw must be a function, got {shown(draw)}.")
    if not isinstance(views, tuple | list) or not views or any(view not in ("feature", "prompt") for view in views):
        raise InputError(f"Component {name!r}: views must be 'feature', 'prompt' or both, got {shown(views)}.")
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"Component {name!r}: options must be a mapping of names to defaults, got {shown(options)}.")
    defaults = {option: _option_value(name, option, value) for option, value in (options or {}).items()}
    if folder is not None:
        _templates.add_folder(folder)
    _templates.forget()  # its files may have been edited since it was registered before
    _templates.template(template)  # an error in it shows at once
    COMPONENTS[name] = ComponentSpec(
        help, attribute or "extras", template, tuple(views), defaults, about, True, draw or _draw_part, data
    )


_COMPONENT_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")


def _draw_part(part: Any, page: Any, options: Mapping[str, OptionValue]) -> Any:
    if not hasattr(part, "get_html"):
        raise InputError(f"A panel of {type(part).__name__} needs draw=: that cannot draw itself.")
    return part.get_html(page, **options)


# --- parameters --------------------------------------------------------------------------------------------------


class HelpText(str):
    """A string that shows itself as it reads, at a prompt and in a notebook."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class FeatureVisParams:
    """Every option of ``get_feature_data`` and ``get_prompt_data``; ``FeatureVisParams.help()`` explains each.

    Use ``dataclasses.replace(params, ...)`` to change one.

    Raises:
        InputError: if a value has the wrong type or is out of range.
    """

    hook_point: str | None = _option(
        None,
        "Where the encoder reads the model, e.g. 'blocks.0.mlp.hook_post'. None: the encoder's own `hook_point`.",
    )
    features: tuple[int, ...] | None = _option(
        None, "Features to analyse: an int, a sequence of ints, or None for the whole dictionary."
    )
    minibatch_size_tokens: int = _option(64, "Rows of tokens in one forward pass of the model.")
    minibatch_size_features: int | None = _option(
        None, "At most so many features in one round over the tokens. None: as many as the memory budget holds."
    )
    memory_budget: str | int = _option(
        "4GB",
        "Memory that a run may use, as bytes or e.g. '500MB', beside the model. Activations beyond it lie in temporary files; "
        "if the tables of correlated neurons need more, several rounds over the tokens are made.",
    )
    ignore_tokens: tuple[int, ...] | None = _option(
        None,
        "Token ids whose positions are left out of every number (shown greyed). None: the tokenizer's BOS, EOS and padding "
        "ids; () counts every position.",
    )
    ignore_positions: tuple[int, ...] = _option(
        (),
        "Places in the row, from 0 on, that are left out of every number too (shown greyed), e.g. (0,) or range(8).",
    )
    correlate_features: Correlate | None = _option(
        "all",
        "Where to look for correlated features: 'all' (the whole dictionary), 'asked' (only `features`, which spares the "
        "full encoding) or None (leave them out).",
    )
    ablation: Ablation | tuple[Ablation, ...] | None = _option(
        "direct",
        "How the effect on the loss is measured: 'direct' (the feature's contribution is taken out of the final residual "
        "stream), 'full' (it is taken out at the hook point and everything later is computed again, which costs a forward "
        "pass for every feature and row shown), ('direct', 'full') for both, with a switch on the page, or None (neither "
        "computed nor shown).",
    )
    include_left_tables: bool = _option(True, "Compute and show the tables of aligned neurons and correlated features.")
    rows_in_left_tables: int = _option(3, "Rows of each of these tables.")
    buffer: tuple[int, int] | None = _option(
        (5, 5), "Tokens shown before and after the bold token, clipped at the row's ends. None: the whole row."
    )
    n_groups: int = _option(10, "Intervals of equal width between 0 and the maximum activation. 0: none.")
    first_group_size: int = _option(20, "Examples in the top group.")
    other_groups_size: int = _option(5, "Random examples in each interval.")
    allow_overlap: bool = _option(False, "Let examples of a group overlap each other in the same row.")
    n_bins: int = _option(40, "Bins of each histogram.")
    n_logits: int = _option(10, "Rows of each logit table.")
    n_changes: int = _option(5, "Tokens listed on hover as most raised and as most lowered.")
    n_tokens: int = _option(10, "Tokens with the largest share of the activation that are listed. 0: none.")
    n_counterexamples: int = _option(
        5,
        "Random examples where the feature does not fire: so many on its top tokens (near misses) and as many anywhere. "
        "0: none.",
    )
    n_position_bins: int = _option(
        32,
        "Bins, at most, of the histogram of the positions in the rows at which the feature fires. 0: no such histogram.",
    )
    store_rows: bool = _option(True, "Keep the whole rows that examples come from in the saved data.")
    border: bool = _option(True, "Draw a border around each feature.")
    seq_width: int | None = _option(420, "Width of a group of sequences in CSS pixels. None: as wide as it needs.")
    seq_height: int | None = _option(
        None, "Height of the page's columns in CSS pixels (they scroll). None: as tall as they need."
    )
    layout: Layout | None = _option(None, "The arrangement of the panels. None: made from the options above.")
    prompt_layout: Layout | None = _option(
        None, "The arrangement of the panels of a feature's column in the prompt-centric view. None: the default."
    )
    near_duplicates: NearDuplicates = _option(
        "keep",
        "Examples that nearly repeat an earlier one of the feature (same bold token, 80 % of the tokens around it equal): 'keep' "
        "marks them, 'drop' passes them over and takes the next candidate.",
    )
    loss_shares: LossShares = _option(
        "estimate",
        "How the intervals' shares of the effect on the loss are found: 'estimate' (from the examples that are shown) or 'exact' "
        "(every active position is measured, which takes a pass over all rows that the feature is active in).",
    )
    seed: int = _option(0, "Chooses the random examples of the intervals.")
    verbose: bool = _option(True, "Show progress bars.")
    feature_map: FeatureMap | None = _option(
        "pca",
        "How the map of decoder directions in the overview is made: 'pca' (their two main axes), 'umap' (needs umap-learn: "
        "pip install 'sae-vis[map]'; takes a minute for 20,000 features) or None (no map).",
    )

    def __post_init__(self) -> None:
        for name, clean in _CLEANERS.items():
            object.__setattr__(self, name, clean(name, getattr(self, name)))

    @property
    def ablations(self) -> tuple[Ablation, ...]:
        """How the effects are measured, as a tuple of none, one or both."""
        if self.ablation is None:
            return ()
        return (self.ablation,) if isinstance(self.ablation, str) else self.ablation

    @property
    def memory_budget_bytes(self) -> int:
        """The memory budget as a number of bytes."""
        return parse_bytes(self.memory_budget)

    def feature_layout(self) -> Layout:
        """The layout of the feature-centric view: the one given, or one made from the flat options."""
        if self.layout is not None:
            return self.layout
        columns = [Column("feature_tables", "neighbours")] if self.include_left_tables else []
        positions = ["positions"] if self.n_position_bins else []
        tokens = ["tokens"] if self.n_tokens else []
        counterexamples = ["counterexamples"] if self.n_counterexamples else []
        middle = ("activations_histogram", "moments", positions, "logits_tables", "logits_histogram", tokens)
        columns.append(Column(*middle))
        columns.append(Column("sequences", counterexamples, width=self.seq_width))
        return Layout(tuple(columns), height=self.seq_height)

    def layout_of(self, view: View) -> Layout:
        """The layout of a view: the one given, or the default."""
        return self.feature_layout() if view == "feature" else self.prompt_layout or PROMPT_LAYOUT

    @classmethod
    def help(cls) -> HelpText:
        """Every option with its default and its meaning, as a text that shows itself."""
        lines = ["FeatureVisParams"]
        for option in dataclasses.fields(cls):
            lines.append(f"\n  {option.name} = {option.default!r}")
            lines.extend(textwrap.wrap(option.metadata["help"], 96, initial_indent=" " * 6, subsequent_indent=" " * 6))
        return HelpText("\n".join(lines))


# Options that change how a run is made, not what it finds, each with its default.
_OF_THE_RUN = ("features", "minibatch_size_tokens", "minibatch_size_features", "memory_budget", "verbose")
RUN_OPTIONS: dict[str, Any] = {
    option.name: option.default for option in dataclasses.fields(FeatureVisParams) if option.name in _OF_THE_RUN
}


def parse_bytes(value: str | int) -> int:
    """A number of bytes from ``4_000_000`` or ``"4GB"`` (KB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024)."""
    try:
        amount = _bytes_of_text(value) if isinstance(value, str) else 0.0 if isinstance(value, bool) else float(value)
    except Exception:  # noqa: BLE001 - the value's own code
        amount = 0.0
    if not 1 <= amount < 2**63:
        raise InputError(
            f"memory_budget must be a number of bytes or a text like '4GB' or '500MiB', got {shown(value)}."
        )
    return int(amount)


def _bytes_of_text(value: str) -> float:
    text = value.strip().upper()
    unit = next((u for u in sorted(BYTES_PER_UNIT, key=len, reverse=True) if text.endswith(u)), None)
    return float(text[: -len(unit)]) * BYTES_PER_UNIT[unit] if unit else float(text)


# --- one cleaner per option: the value in its canonical form, or an InputError ------------------------------------


def _as_int(name: str, value: object, low: int, high: int) -> int:
    number = _index(value)
    if number is None or not low <= number <= high:
        raise InputError(f"FeatureVisParams.{name} must be an int from {low} to {high}, got {shown(value)}.")
    return number


def _int_from(low: int, high: int) -> Any:
    return lambda name, value: _as_int(name, value, low, high)


def _optional(clean: Any) -> Any:
    return lambda name, value: None if value is None else clean(name, value)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"FeatureVisParams.{name} must be True or False, got {shown(value)}.")
    return value


def _one_of(*allowed: object) -> Any:
    def clean(name: str, value: object) -> object:
        known = str.__str__(value) if isinstance(value, str) else value
        if (known is not None and not isinstance(known, str)) or known not in allowed:
            raise InputError(
                f"FeatureVisParams.{name} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}."
            )
        return known

    return clean


def _ablation(name: str, value: Any) -> Ablation | tuple[Ablation, ...] | None:
    """One of them as a string, both as a tuple in the order in which they are shown."""
    asked = (value,) if isinstance(value, str) else () if value is None else value
    items = list(asked) if isinstance(asked, tuple | list) else [None]
    known = [str.__str__(item) for item in items if isinstance(item, str)]
    if len(known) < len(items) or not set(known) <= set(ABLATIONS) or (value is not None and not known):
        raise InputError(
            f"FeatureVisParams.{name} must be 'direct', 'full', ('direct', 'full') or None, got {shown(value)}."
        )
    chosen = tuple(one for one in ABLATIONS if one in known)
    return chosen if len(chosen) > 1 else chosen[0] if chosen else None


def _hook_point(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise InputError(
            f"FeatureVisParams.{name} must be a name such as 'blocks.0.mlp.hook_post', or None for the encoder's own, "
            f"got {shown(value)}."
        )
    return str.__str__(value)


def _int_list(name: str, value: Any) -> tuple[int, ...]:
    """Ints in the order given; one int, a sequence, a range, an array or a tensor of ints."""
    what = f"FeatureVisParams.{name} must be an int, a sequence of ints or None"
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping):
        raise InputError(f"{what}, got {shown(value)}.")
    listed = _plain_list(value)
    number = _index(listed)
    items = _items(listed, what) if number is None else [number]
    return tuple(_as_int(name, item, 0, 2**31 - 1) for item in items)


def _plain_list(value: Any) -> Any:
    """Arrays and tensors as lists of plain numbers, without importing either library; anything else as it is."""
    try:
        return value.tolist() if hasattr(value, "tolist") else value
    except Exception:  # noqa: BLE001 - e.g. a tensor without data
        return value


def _features(name: str, value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    indices = sorted(_int_list(name, value))
    if not indices:
        raise InputError(
            "FeatureVisParams.features is empty: give at least one feature, or None for the whole dictionary."
        )
    twice = {a for a, b in pairwise(indices) if a == b}
    if twice:
        raise InputError(f"FeatureVisParams.features names a feature more than once: {sorted(twice)[:5]}.")
    return tuple(indices)


def _ignore_tokens(name: str, value: Any) -> tuple[int, ...] | None:
    return None if value is None else tuple(sorted(set(_int_list(name, value))))


def _ignore_positions(name: str, value: Any) -> tuple[int, ...]:
    places = sorted(set(_int_list(name, value)))
    if places and not 0 <= places[0] <= places[-1] < 2**31:
        raise InputError(
            f"FeatureVisParams.ignore_positions must be places in the row, from 0 on, got {shown(value)}: the last ones have "
            "the numbers just below the length of the rows."
        )
    return tuple(places)


def _buffer(name: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    items = _int_list(name, value)
    if len(items) != 2:
        raise InputError(
            f"FeatureVisParams.buffer must be two ints (before, after) or None for whole rows, got {shown(value)}."
        )
    return items[0], items[1]


def _memory_budget(name: str, value: Any) -> str | int:
    amount = parse_bytes(value)
    return str.__str__(value) if isinstance(value, str) else amount


def _layout(name: str, value: object) -> Layout | None:
    if value is not None and not isinstance(value, Layout):
        raise InputError(f"FeatureVisParams.{name} must be a Layout or None, got {type(value).__name__}.")
    if value is not None:
        value.check_view("prompt" if name == "prompt_layout" else "feature")
    return value


_CLEANERS: dict[str, Any] = {
    "hook_point": _hook_point,
    "features": _features,
    "minibatch_size_tokens": _int_from(1, 2**20),
    "minibatch_size_features": _optional(_int_from(1, 2**31 - 1)),
    "memory_budget": _memory_budget,
    "ignore_tokens": _ignore_tokens,
    "ignore_positions": _ignore_positions,
    "correlate_features": _one_of("all", "asked", None),
    "ablation": _ablation,
    "include_left_tables": _flag,
    "rows_in_left_tables": _int_from(1, 1000),
    "buffer": _buffer,
    "n_groups": _int_from(0, 1000),
    "first_group_size": _int_from(0, 100_000),
    "other_groups_size": _int_from(0, 100_000),
    "allow_overlap": _flag,
    "n_bins": _int_from(1, 10_000),
    "n_logits": _int_from(1, 10_000),
    "n_changes": _int_from(0, 1000),
    "n_tokens": _int_from(0, 10_000),
    "n_counterexamples": _int_from(0, 100_000),
    "n_position_bins": _int_from(0, 10_000),
    "store_rows": _flag,
    "border": _flag,
    "seq_width": _optional(_int_from(40, 10_000)),
    "seq_height": _optional(_int_from(100, 100_000)),
    "layout": _layout,
    "prompt_layout": _layout,
    "near_duplicates": _one_of("keep", "drop"),
    "loss_shares": _one_of("estimate", "exact"),
    "seed": _int_from(0, 2**63 - 1),
    "verbose": _flag,
    "feature_map": _one_of("pca", "umap", None),
}


def nearest(name: str, known: Iterable[str], n: int = 5) -> list[str]:
    """The known names that look most like this one, for error messages."""
    return get_close_matches(name, list(known), n=n, cutoff=0.3)
