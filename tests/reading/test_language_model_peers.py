"""A small random Llama is `transformers`' own, and ids are those of `tokenizers`.

Nothing is downloaded: weights are random, and the vocabulary is that of the model's
file, if it is there.
"""

import warnings

import pytest
import torch
from test_language_model import MERGES, SPLIT, TEXTS, needs_model, tokenizer_of

from attention import KVCache, convert_pairing, generate, load_language_model
from attention.reading.language_model import LanguageModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip(
        "transformers", reason="an oracle: pip install 'building-attention[peers]'"
    )
    tokenizers = pytest.importorskip("tokenizers", reason="it comes with transformers")

NAMES = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.W_query",
    "self_attn.k_proj": "attention.W_key",
    "self_attn.v_proj": "attention.W_value",
    "self_attn.o_proj": "attention.out_proj",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
    "embed_tokens": "embedding",
    "norm": "norm",
}


def renamed(name):
    """Our name of a parameter of theirs."""
    name = name.removeprefix("model.")
    start = ""
    if name.startswith("layers."):
        _, number, name = name.split(".", 2)
        start = f"blocks.{number}."
    name, kind = name.rsplit(".", 1)
    return f"{start}{NAMES[name]}.{kind}"


@pytest.fixture(params=[False, True], ids=["halves", "neighbours"])
def models(request):
    """Theirs and ours with the same weights, in either pairing."""
    torch.manual_seed(2357)
    config = transformers.LlamaConfig(
        hidden_size=48,
        num_attention_heads=6,
        num_key_value_heads=2,
        num_hidden_layers=3,
        intermediate_size=28,
        vocab_size=31,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = LanguageModel(
        31, 48, 28, 3, 6, num_kv_heads=2, base=1e5, interleaved=request.param
    ).eval()
    state = {renamed(n): p.detach().clone() for n, p in theirs.named_parameters()}
    for name, tensor in state.items():
        if request.param and ("W_query" in name or "W_key" in name):
            state[name] = convert_pairing(tensor, 8, interleaved=True)
    ours.load_state_dict(state)
    return theirs, ours


def test_a_small_random_llama_gives_the_same_logits(models):
    theirs, ours = models
    ids = torch.randint(31, (2, 13))
    with torch.no_grad():
        must = theirs(ids).logits
        torch.testing.assert_close(ours(ids), must, atol=1e-4, rtol=1e-4)


def test_it_writes_the_same_greedily(models):
    theirs, ours = models
    ids = torch.tensor([[3, 5, 7]])
    options = {"max_new_tokens": 11, "do_sample": False, "pad_token_id": 0}
    theirs.generation_config.eos_token_id = None
    must = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
    got = generate(ours, ids[0], num_tokens=11, make_cache=KVCache)
    assert [*got] == must[0, 3:].tolist()


def theirs_of(ours, merges):
    """The same vocabulary and merges, in the library `tokenizers`."""
    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(dict(ours.ids), pairs))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return made


@pytest.mark.parametrize("text", [*TEXTS, *SPLIT], ids=ascii)
def test_a_small_vocabulary_cuts_a_text_alike(text):
    ours = tokenizer_of(special=())
    assert ours.encode(text) == theirs_of(ours, MERGES).encode(text).ids


@pytest.fixture(scope="module")
def real():
    ours = load_language_model().tokenizer
    return ours, theirs_of(ours, [" ".join(pair) for pair in ours.ranks])


@needs_model
@pytest.mark.parametrize("text", [*TEXTS, *SPLIT], ids=ascii)
def test_the_real_vocabulary_cuts_a_text_alike(real, text):
    ours, theirs = real
    assert ours.encode(text) == theirs.encode(text).ids


@needs_model
def test_it_does_for_many_random_texts(real):
    ours, theirs = real
    draw = torch.Generator().manual_seed(0)
    kinds = ["aAzZ'sde ", " \n\t\r\u00a0\u2003", "0123½²٣", "éßñ中字한🦔\u0301—’_#"]
    letters = "".join(kinds) + " " * 8
    for _ in range(3000):
        picks = torch.randint(len(letters), (20,), generator=draw).tolist()
        text = "".join(letters[pick] for pick in picks)
        assert ours.encode(text) == theirs.encode(text).ids, repr(text)
