"""Models of transformers give with our forms what they give with their own calls.

Their weights are random: nothing is downloaded.
"""

import os
import warnings

import pytest
import torch
from examples import said

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip(
        "transformers", reason="an oracle: pip install 'building-attention[peers]'"
    )
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

from attention import attend, weights_of
from attention.reading.interface import register_forms

pytestmark = pytest.mark.filterwarnings("ignore")
equal = torch.testing.assert_close
OURS = ("attend", "tiled_attend")
SIZES = {"hidden_size": 24, "num_attention_heads": 6, "num_hidden_layers": 2}
SIZES |= {"intermediate_size": 20, "vocab_size": 31}
KINDS = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 3, "sliding_window": 3},
    "gemma": {"num_key_value_heads": 1, "head_dim": 10},
    "gpt2": {},
    "bert": {},
}
WRITERS = sorted(set(KINDS) - {"bert"})
CACHES = ("dynamic", "static")


@pytest.fixture(autouse=True, scope="module")
def registered():
    register_forms()


def model_of(kind, make=AutoModel, **more):
    torch.manual_seed(2357)
    config = CONFIG_MAPPING[kind](**SIZES | KINDS.get(kind, {}) | more)
    return make.from_config(config, attn_implementation="sdpa").eval()


@pytest.fixture
def texts():
    """Two texts of 11 tokens, the first of which begins with 4 of padding."""
    ids = torch.randint(1, 31, (2, 11), generator=torch.Generator().manual_seed(11))
    real = torch.ones(2, 11, dtype=torch.int64)
    real[0, :4] = 0
    return ids, real


@pytest.mark.parametrize("theirs", ["sdpa", "eager"])
@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_is_read_alike(kind, ours, theirs, texts):
    ids, real = texts
    model = model_of(kind)
    model.set_attn_implementation(theirs)
    must = model(ids, attention_mask=real)[0][real == 1]
    model.set_attn_implementation(ours)
    equal(model(ids, attention_mask=real)[0][real == 1], must, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_padding_is_read_alike(kind, ours, texts):
    model, ids = model_of(kind), texts[0]
    must = model(ids)[0]
    model.set_attn_implementation(ours)
    equal(model(ids)[0], must, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("kind", WRITERS)
def test_texts_are_written_alike_with_their_caches(kind, ours, cache, texts):
    ids, real = texts
    model = model_of(kind, AutoModelForCausalLM, bos_token_id=1, eos_token_id=None)
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    options |= {"attention_mask": real, "cache_implementation": cache}
    must = model.generate(ids, **options)
    model.set_attn_implementation(ours)
    got = model.generate(ids, **options)
    assert torch.equal(got.sequences, must.sequences)
    equal(torch.stack(got.logits), torch.stack(must.logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_are_those_of_the_steps_one_by_one(kind, ours, texts):
    ids, real = texts
    model = model_of(kind)
    model.set_attn_implementation("eager")
    options = {"attention_mask": real, "output_attentions": True}
    must = model(ids, **options).attentions
    model.set_attn_implementation(ours)
    register_forms(show=kind == "gpt2")  # which does not hand the wish on
    seen = model(ids, **options).attentions
    register_forms()
    for given, wanted in zip(seen, must, strict=True):
        rows = (real == 1)[:, None, :, None].expand_as(wanted)
        equal(given[rows], wanted[rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_gradients_are_theirs(kind, ours, texts):
    ids, real = texts
    model = model_of(kind)
    slopes = []
    for name in ("sdpa", ours):
        model.set_attn_implementation(name)
        model.zero_grad()
        model(ids, attention_mask=real)[0][real == 1].square().sum().backward()
        grads = (p.grad for p in model.parameters() if p.grad is not None)
        slopes.append([grad.clone() for grad in grads])
    for got, must in zip(*reversed(slopes), strict=True):
        equal(got, must, rtol=1e-3, atol=1e-3)  # sums over two layers and 18 tokens


def test_a_bias_of_positions_is_that_of_t5(texts):
    ids, real = texts
    torch.manual_seed(2357)
    config = CONFIG_MAPPING["t5"](
        d_model=24, d_kv=4, num_heads=6, d_ff=20, num_layers=2, vocab_size=31
    )
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    given = {"input_ids": ids, "attention_mask": real, "decoder_input_ids": ids}
    must = model(**given)[0]
    for name in OURS:
        model.set_attn_implementation(name)
        equal(model(**given)[0], must, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "name"), [("gemma2", "softcap"), ("gpt_oss", "s_aux")]
)
def test_models_that_need_more_are_refused_by_name(kind, name, texts, as_importer):
    own = {"num_key_value_heads": 2, "head_dim": 4, "num_local_experts": 2}
    own |= {"num_experts_per_tok": 1} if kind == "gpt_oss" else {}
    torch.manual_seed(2357)
    model = AutoModel.from_config(CONFIG_MAPPING[kind](**SIZES | own)).eval()
    model.config._attn_implementation = "attend"
    with pytest.raises(ValueError, match=said(name, "eager")):
        model(texts[0])


def test_a_form_of_ones_own_is_entered_by_its_name(texts):
    seen = []

    def mine(queries, keys, values, mask=None, **options):
        seen.append(weights_of(attend, queries, keys, values, mask, causal=True))
        return attend(queries, keys, values, mask, **options)

    assert register_forms(mine=mine) == ("mine",)
    assert register_forms(mine=mine) == ("mine",)  # once more, as in a notebook
    model = model_of("llama")
    must = model(texts[0])[0]
    model.set_attn_implementation("mine")
    equal(model(texts[0])[0], must, rtol=1e-4, atol=1e-4)
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["sdpa", "eager", "flash_attend", "of/mine"])
def test_a_name_that_means_something_else_to_them_is_refused(name, as_importer):
    with pytest.raises(ValueError, match=said("forms", "plain", name)):
        register_forms(**{name: attend})


@pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a GPU, or TRITON_INTERPRET=1",
)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_kernel_reads_alike(kind, texts):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids, own = texts[0].to(device), {} if kind == "bert" else {"num_key_value_heads": 2}
    model = model_of(kind, hidden_size=64, num_attention_heads=4, **own).to(device)
    must = model(ids)[0]
    model.set_attn_implementation("triton_attend")
    equal(model(ids)[0], must, rtol=1e-3, atol=1e-3)
