"""Broken tokens, prompts, encoders and models: a ``SaeVisError`` that says what came, or right data.

An error that the user's own code raises (an encoder's ``encode``, a model's forward pass, a tokenizer) goes through as it
is: it is the user's to read. Here such errors are of the type ``OwnError``, and nothing else may come out.
"""

from __future__ import annotations

import functools
import json
import struct
from types import SimpleNamespace

import fuzzing
import numpy as np
import pytest
import torch
from fuzzing import INTS, survey
from models import HOOK_POINT, QUIET, ToyModel, identity_encoder
from test_fuzz_inputs import Case, OwnError, any_argument

from sae_vis import AutoEncoder, FeatureVisParams, InputError, get_feature_data, get_prompt_data

D_VOCAB, WIDTH, CONTEXT = 24, 6, 8
SMALL = {
    **QUIET,
    "first_group_size": 2,
    "n_groups": 1,
    "other_groups_size": 1,
    "n_bins": 3,
    "n_logits": 2,
    "n_changes": 2,
}


@pytest.fixture(scope="module")
def table():
    return torch.randn(D_VOCAB, WIDTH, generator=torch.Generator().manual_seed(0)) + 0.5


@pytest.fixture(scope="module")
def model(table):
    return ToyModel(table, n_ctx=CONTEXT)


@pytest.fixture(scope="module")
def encoder():
    return identity_encoder(WIDTH, 3)


def check_data(data, rows):
    """The data are those of the tokens: a plain loop over what is shown."""
    assert data.provenance.n_rows == len(rows)
    ignored = data.provenance.ignored_token_ids
    assert data.provenance.n_counted == sum(token not in ignored for row in rows for token in row)
    for feature in data.values():
        for group in feature.sequences.groups:
            for sequence in group.sequences:
                row = rows[sequence.row]
                assert sequence.token_ids == row[sequence.start : sequence.start + len(sequence.token_ids)]
    next(iter(data.values())).get_html()  # one is enough here, and draws in a fifth of the time


# --- tokens ------------------------------------------------------------------------------------------------------------

DTYPES = [
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
]
DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
SHAPES = [(2, 3), (1, 1), (1, 8), (5, 1), (1, 9), (0, 3), (3, 0), (0, 0), (3,), (), (1, 2, 3), (2, 8), (40, 2)]


def some_tokens(random):
    """Tokens of any kind, right or wrong."""
    shape, dtype = random.choice(SHAPES), random.choice(DTYPES)
    high = random.choice([D_VOCAB, D_VOCAB, D_VOCAB, D_VOCAB + 1, 100])
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    plain = torch.randint(random.choice([0, 0, 0, -1]), high, shape, generator=generator)
    kind = random.randrange(16)
    if kind < 4:
        return plain.to(dtype)
    if kind < 7:
        return np.asarray(plain).astype(
            random.choice(["i1", "i8", ">i4", "u1", "u2", "u8", "f4", "c8", "?", "U3", "O", "M8[D]"])
        )
    if kind == 7:
        return plain.tolist()
    if kind == 8:
        rows = plain.tolist() if len(shape) == 2 else [[1, 2], [3, 4]]
        if rows and rows[0]:
            rows[-1][-1] = random.choice(
                [None, "x", 1.0, 1.5, True, float("nan"), [1], *INTS, 10**400, torch.tensor(3), {}, b"x"]
            )
        return rows
    if kind == 9:
        return [[1, 2], [3], [4, 5, 6]]
    if kind == 10:
        return [plain, plain]
    if kind == 11:
        return random.choice(
            [
                plain.to_sparse(),
                plain.to("meta"),
                plain.double().requires_grad_(),
                plain.flatten()[::2],
                plain.expand(2, *shape),
            ]
        )
    if kind == 12:
        return random.choice(
            [
                plain.numpy()[..., ::-1] if shape else 3,
                plain[..., ::2] if shape else 3,
                tuple(map(tuple, plain.tolist())) if len(shape) == 2 else (),
            ]
        )
    return any_argument(random)


def as_rows(tokens):
    """The same tokens as lists of ints, by plain code."""
    if isinstance(tokens, torch.Tensor) or (
        isinstance(tokens, list | tuple) and tokens and isinstance(tokens[0], torch.Tensor)
    ):
        tokens = torch.stack(list(tokens)) if isinstance(tokens, list | tuple) else tokens
        return [[int(token) for token in row] for row in tokens.to_dense()]
    return [[int(token) for token in row] for row in np.asarray(tokens)]


def test_any_tokens_are_refused_or_read_as_they_are(model, encoder):
    params = FeatureVisParams(**SMALL)

    def check(case):
        tokens = case.arguments["tokens"]
        data = get_feature_data(encoder, model, tokens, params)
        rows = as_rows(tokens)
        assert all(0 <= token < D_VOCAB for row in rows for token in row)
        check_data(data, rows)
        return "read"

    answers = survey("tokens", 2000, lambda random: Case(tokens=some_tokens(random)), check)
    assert answers["read"] > 0.02 * answers.total()
    assert answers["refused"] > 0.2 * answers.total()


class WordTokenizer:
    """Words of digits, with whatever a test plants."""

    bos_token_id = eos_token_id = pad_token_id = None
    all_special_ids = ()

    def __init__(self, **changes):
        vars(self).update(changes)

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [int(word) for word in text.split() if word.isdigit() and word.isascii()]}

    def convert_ids_to_tokens(self, token_id):
        return f" {token_id}"


def test_any_prompt_is_refused_or_read_as_it_is(table, encoder):
    model = ToyModel(table, n_ctx=CONTEXT, tokenizer=WordTokenizer())
    features = get_feature_data(encoder, model, [[1, 2, 3], [4, 5, 6]], FeatureVisParams(**SMALL))

    def case(random):
        prompt = some_tokens(random)
        kind = random.randrange(4)
        if kind == 0:
            prompt = " ".join(
                random.choice(["1", "5", "23", "24", "x", "-1", "\ud800", "٣"]) for _ in range(random.randrange(12))
            )
        elif kind == 1 and isinstance(prompt, torch.Tensor) and prompt.ndim == 2 and len(prompt):
            prompt = prompt[0]
        return Case(
            prompt=prompt,
            size=random.choice([1, 1, 3, 10**9, any_argument(random)]),
            bos=random.choice([None, None, False, True, any_argument(random)]),
        )

    def check(case):
        given = SimpleNamespace(**case.arguments)
        data = get_prompt_data(encoder, model, given.prompt, features, None, given.size, given.bos)
        if not isinstance(given.prompt, str):
            expected = [token for row in as_rows(_two_dimensional(given.prompt)) for token in row]
            assert data.prompt_token_ids[-len(expected) :] == expected
        data.get_html()
        return "read"

    answers = survey("prompts", 2500, case, check)
    assert answers["read"] > 0.02 * answers.total()
    assert answers["refused"] > 0.2 * answers.total()


def _two_dimensional(prompt):
    prompt = torch.as_tensor(prompt)
    return prompt[None] if prompt.ndim == 1 else prompt


# --- encoders ----------------------------------------------------------------------------------------------------------


class OddEncoder:
    """Follows the protocol, with what is planted in place of some of its answers."""

    PLAIN = frozenset(("encode", "decoder_rows", "d_in", "d_hidden", "hook_point"))

    def __init__(self, **changes):
        self.inner = identity_encoder(WIDTH, 3)
        self.changes = changes

    def planted(self, name, answer):
        change = self.changes.get(name)
        return change(answer) if callable(change) else answer

    @property
    def d_in(self):
        return self.planted("d_in", WIDTH)

    @property
    def d_hidden(self):
        return self.planted("d_hidden", 3)

    @property
    def hook_point(self):
        return self.planted("hook_point", HOOK_POINT)

    def encode(self, x, features=None):
        return self.planted("encode", self.inner.encode(x, features).detach())

    def decoder_rows(self, features):
        return self.planted("decoder_rows", self.inner.decoder_rows(features % 3).detach())


class OddTranscoder(OddEncoder):
    """Has all that is optional, too."""

    @property
    def hook_point_out(self):
        return self.planted("hook_point_out", HOOK_POINT)

    def write_scale(self, x):
        return self.planted("write_scale", torch.ones(x.shape[:2]))

    def digest(self):
        return self.planted("digest", "digest")


def _raise(*_):
    raise OwnError("from the user's own code")


def always(value):
    return lambda _: value


def odd_answer(random):
    """What may come instead of a tensor of numbers, as a function of the right one."""
    number = random.choice([float("nan"), float("inf"), float("-inf"), -1.0, 0.0, 1e38, 1e-38, 3.0])

    def in_one_place(right):
        changed = right.clone()
        flat = changed.reshape(-1)
        if len(flat):
            flat[random.randrange(len(flat))] = number
        return flat.reshape(right.shape)

    return random.choice(
        [*OTHER_ANSWERS, in_one_place, lambda right: right * number, always(random.choice(NO_TENSORS))]
    )


ABLATIONS = ["direct", "direct", "full", ("direct", "full"), None]
NO_TENSORS = [None, "x", 3, [], float("nan")]
OTHER_ANSWERS = [
    *(_raise, lambda x: x[..., :-1], lambda x: x[:-1], lambda x: x[None], lambda x: x[0], lambda x: x.flatten()),
    *(lambda x: x.mT if x.ndim > 1 else x[::2], lambda x: torch.cat([x, x], -1), lambda x: x[..., :0], lambda x: x[:0]),
    *(lambda x: x.half(), lambda x: x.bfloat16(), lambda x: x.double(), lambda x: x.to(torch.int32), lambda x: x > 0),
    *(lambda x: x.to("meta"), lambda x: x.to(torch.complex64), lambda x: x.to_sparse(), lambda x: x.to(torch.uint8)),
    *(lambda x: x.tolist(), lambda x: x.detach().numpy(), lambda x: (x,), lambda x: {"acts": x}, lambda x: x.sum()),
    *(lambda x: x.detach().requires_grad_(), lambda x: x.expand(2, *x.shape), lambda x: -x),
]


WIDTHS = [0, -1, 1, 2, 4, 5, 7, 10**9, 3.0, 2.5, "3", None, True, np.int64(3), torch.tensor(3), *INTS]


def odd_width(random):
    return random.choice([_raise, *map(always, WIDTHS)])


def odd_encoder(random):
    changes = {}
    names = [
        "encode",
        "encode",
        "decoder_rows",
        "write_scale",
        "d_in",
        "d_hidden",
        "hook_point",
        "hook_point_out",
        "digest",
    ]
    for name in random.sample(names, random.choice([1, 1, 2])):
        if name in ("encode", "decoder_rows", "write_scale"):
            changes[name] = odd_answer(random)
        elif name in ("hook_point", "hook_point_out", "digest"):
            changes[name] = always(random.choice([None, "", "nowhere", 3, HOOK_POINT, "\ud800", ["x"]]))
        else:
            changes[name] = odd_width(random)
    return changes


def fetch_odd(encoder, model, encoder_b=None, **options):
    """Both views; an error of the user's own is an answer too."""
    tokens = [[1, 2, 3, 4], [5, 6, 7, 8]]
    try:
        params = FeatureVisParams(**{**SMALL, **options})
        data = get_feature_data(encoder, model, tokens, params, encoder_b)
        check_data(data, tokens)
        get_prompt_data(encoder, model, [1, 5, 2], data).get_html()
    except OwnError:
        return "the user's own error"
    return "fetched"


@pytest.mark.parametrize("part", range(2))
def test_any_encoder_is_refused_or_used(part, model):
    def case(random):
        return Case(
            b=random.random() < 0.2,
            features=random.choice([None, None, 1, [0, 2]]),
            whole=random.random() < 0.5,
            ablation=random.choice(ABLATIONS),
            **odd_encoder(random),
        )

    def check(case):
        given = dict(case.arguments)
        chosen = {name: given.pop(name) for name in ("b", "features", "whole", "ablation")}
        odd = (OddEncoder if given.keys() <= OddEncoder.PLAIN else OddTranscoder)(**given)
        options = {"hook_point": None if "hook_point" in given else HOOK_POINT, "features": chosen["features"]}
        options |= {"include_left_tables": chosen["whole"], "ablation": chosen["ablation"]}
        if chosen["b"]:
            return fetch_odd(identity_encoder(WIDTH, 3), model, odd, **options | {"hook_point": HOOK_POINT})
        return fetch_odd(odd, model, **options)

    answers = survey(f"encoders {part}", 550, case, check)
    assert answers["fetched"] > 0.02 * answers.total()
    assert answers["the user's own error"]
    assert answers["refused"] > 0.2 * answers.total()


# --- models ------------------------------------------------------------------------------------------------------------


class OddModel(ToyModel):
    """Has what the library asks for, with what is planted in place of some of its answers."""

    def __init__(self, table, changes):
        super().__init__(table.clone(), n_ctx=CONTEXT)
        self.changes = changes
        for name in ("W_U", "b_U", "table"):
            if name in changes:
                value = changes[name](getattr(self, name).detach())
                delattr(self, name)
                setattr(self, name, value)
        vars(self.cfg).update(changes.get("cfg", {}))

    def planted(self, name, answer):
        change = self.changes.get(name)
        return answer if change is None else change(answer)

    def unembed(self, x):
        return self.planted("unembed", x @ self.W_U)  # b_U was zeros, before it was planted

    def run_with_hooks(self, tokens, fwd_hooks=(), return_type=None):
        hooks = [] if self.changes.get("never_fires") else fwd_hooks
        if "activations" in self.changes:
            hooks = [
                (name, lambda x, hook=None, run=run: run(self.planted("activations", x.detach())))
                for name, run in hooks
            ]
        return self.planted("logits", super().run_with_hooks(tokens, hooks, return_type))


def odd_tokenizer(random):
    odd = random.choice(
        [_raise, *map(always, [None, 3, "\ud800", b"\xff\xfe", "", "x" * 10**5, ["a"], float("nan"), "</script>"])]
    )
    kind = random.randrange(5)
    if kind == 0:
        return WordTokenizer(convert_ids_to_tokens=odd)
    if kind == 1:
        name = random.choice(["bos_token_id", "eos_token_id", "pad_token_id"])
        return WordTokenizer(
            **{name: random.choice([0, 5, -1, 23, 24, 10**30, "x", None, 1.5, [1], True, np.int64(3)])}
        )
    if kind == 2:
        return WordTokenizer(all_special_ids=random.choice([[1, 2], ["a"], [[1]], 3, "ab", {1: 2}, None]))
    if kind == 3:
        return random.choice(
            [object(), 3, "gpt2", [], {}, SimpleNamespace(get_vocab=_raise), SimpleNamespace(get_vocab=lambda: None)]
        )
    backend = random.choice(
        [
            _raise,
            *map(
                always,
                [
                    "",
                    "{}",
                    "[]",
                    "null",
                    "3",
                    '{"decoders": 3}',
                    '{"decoders": [3]}',
                    '{"type": []}',
                    "\ud800",
                    None,
                    b"{}",
                ],
            ),
        ]
    )
    decoder = SimpleNamespace(__getstate__=lambda: backend(None))
    return WordTokenizer(backend_tokenizer=random.choice([SimpleNamespace(decoder=decoder), SimpleNamespace()]))


def one_row_times(number, right):
    return torch.where(torch.arange(len(right))[:, None] == 5, right * number, right)


def odd_model(random):
    changes = {}
    result = random.choice(["logits", "unembed"])  # not both: the model's own code would trip over the second
    names = ["activations", "activations", result, "W_U", "b_U", "table", "cfg", "never_fires", "tokenizer"]
    for name in random.sample(names, random.choice([1, 1, 2])):
        if name == "cfg":
            key = random.choice(
                ["n_layers", "n_ctx", "model_name", "output_logits_soft_cap", "parallel_attn_mlp", "attention_dir"]
            )
            changes[name] = {
                key: random.choice(
                    [0, -1, 1, 2, 100, 10**30, None, "x", "causal", 1.5, float("nan"), float("inf"), [1], True]
                )
            }
        elif name == "never_fires":
            changes[name] = True
        elif name == "tokenizer":
            changes[name] = odd_tokenizer(random)
        elif name in ("table", "W_U"):  # another shape would be a fault of the model's own layers
            number = random.choice([float("nan"), float("inf"), -1.0, 0.0, 1e38, 1e-38])
            changes[name] = functools.partial(one_row_times, number)
        else:
            changes[name] = odd_answer(random)
    return changes


@pytest.mark.parametrize("part", range(2))
def test_any_model_is_refused_or_used(part, table, encoder):
    def check(case):
        changes = dict(case.arguments)
        ablation = changes.pop("ablation")
        try:
            with torch.no_grad():
                odd = OddModel(table, {name: change for name, change in changes.items() if name != "tokenizer"})
        except Exception:  # noqa: BLE001 - torch does not take that as a part of a module
            return "no model"
        if "tokenizer" in changes:
            odd.tokenizer = changes["tokenizer"]
        hooks = {name: dict(part._forward_hooks) for name, part in odd.named_modules()}
        answer = fetch_odd(encoder, odd, ignore_tokens=None if "tokenizer" in changes else (), ablation=ablation)
        assert hooks == {name: dict(part._forward_hooks) for name, part in odd.named_modules()}
        return answer

    answers = survey(
        f"models {part}", 330, lambda random: Case(ablation=random.choice(ABLATIONS), **odd_model(random)), check
    )
    assert answers["fetched"] > 0.02 * answers.total()
    assert answers["the user's own error"]
    assert answers["refused"] > 0.2 * answers.total()


# --- files of weights --------------------------------------------------------------------------------------------------


def test_any_file_of_weights_is_refused_or_loads(tmp_path, encoder):
    path = tmp_path / "encoder.safetensors"
    encoder.save(path)
    good = path.read_bytes()
    size = struct.unpack("<Q", good[:8])[0]
    header, body = json.loads(good[8 : 8 + size]), good[8 + size :]

    def case(random):
        kind = random.randrange(4)
        if kind == 0:
            at = random.randrange(len(good))
            flipped = bytes([good[at] ^ (1 << random.randrange(8))])
            return random.choice(
                [good[:at], good[:at] + flipped + good[at + 1 :], good + b"x", good[at:], b"", random.randbytes(40)]
            )
        tree = json.loads(json.dumps(header))
        for _ in range(random.choice([1, 1, 2])):
            fuzzing.break_tree(random, tree)
            if not tree:
                break
        text = fuzzing.write_tree(random, tree).encode("utf-8", "surrogatepass")
        length = len(text) if kind < 3 else random.choice([0, 1, len(text) - 1, 2**31, 2**63, 2**64 - 1])
        return struct.pack("<Q", length) + text + body

    def check(data):
        path.write_bytes(data)
        loaded = AutoEncoder.load(path)
        shapes = {name: tuple(weight.shape) for name, weight in loaded.named_parameters()}
        d_in, d_hidden = loaded.d_in, loaded.d_hidden
        assert shapes == {"W_enc": (d_in, d_hidden), "b_enc": (d_hidden,), "W_dec": (d_hidden, d_in), "b_dec": (d_in,)}
        loaded.encode(torch.ones(1, 1, d_in))
        return "loaded"

    answers = survey("weights", 2500, case, check)
    assert answers["loaded"] > 0.02 * answers.total()
    assert answers["refused"] > 0.2 * answers.total()


def test_any_weights_are_refused_or_used(encoder):
    good = {name: weight.detach() for name, weight in encoder.named_parameters()}

    def case(random):
        weights = dict(good)
        for name in random.sample(sorted(good), random.choice([1, 1, 2])):
            weights[name] = random.choice([odd_answer(random), always(any_argument(random))])
        if random.random() < 0.2:
            weights[random.choice(["W", 3, None, "b_enc "])] = weights.pop(random.choice(sorted(good)))
        return Case(weights=weights if random.random() < 0.95 else any_argument(random))

    def check(case):
        weights = case.arguments["weights"]
        if isinstance(weights, dict):
            try:
                weights = {name: make(good[name]) if callable(make) else make for name, make in weights.items()}
            except (KeyError, RuntimeError, OwnError):
                return "no weights"
        made = AutoEncoder.from_weights(weights)
        assert made.encode(torch.ones(1, 1, made.d_in)).shape == (1, 1, made.d_hidden)
        return "made"

    answers = survey("weights in memory", 2000, case, check)
    assert answers["made"] > 0.02 * answers.total()


@pytest.mark.parametrize("name", ["", ".", "nowhere.safetensors", "a\x00b", "x" * 300, "folder"])
def test_what_is_no_file_of_weights_is_refused(name, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError):
        AutoEncoder.load(tmp_path / name)
    with pytest.raises(InputError):
        AutoEncoder.load(f"{tmp_path}/{name}")
