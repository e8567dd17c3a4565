"""Attention, built: every mechanism is written by a chapter of *Building Attention*.

Words are the same everywhere: `queries`, `keys`, `values`; `scores` before softmax and
`weights` after it; `mask` is boolean and True where a query may see a key; `bias` is
added to scores; `context` is what comes out.

What does not fit is refused before it is computed, by a ValueError, "name: expected …,
got …"; what is not a tensor where one must be, such as a list, by a TypeError.

Letters stand for axes in einops strings and formulas:

    b  batch        h  heads           g  key/value heads
    i  queries      j  keys            d  head_dim            e  value dim
"""

from attention.core.causal import CausalAttention, causal_mask, future_leak
from attention.core.cross import CrossAttention
from attention.core.layer import Attention, causal, prefix, window
from attention.core.masks import and_masks, document_mask, padding_mask
from attention.core.multi_head import MultiHeadAttention, StackedHeads
from attention.core.scaled_dot_product import (
    Attend,
    SelfAttention,
    attend,
    attention_weights,
    weights_of,
)
from attention.history.additive import AdditiveAttention, additive_score
from attention.idea.simple import simple_self_attention, softmax
from attention.memory.bounded import RollingCache, window_and_sinks
from attention.memory.grouped_query import pool_heads
from attention.memory.kv_cache import KVCache
from attention.memory.latent import LatentAttention, cache_bytes
from attention.memory.paged import BlockPool, PagedCache
from attention.memory.quantised import QuantizedCache
from attention.memory.speculative import accept, tree_mask
from attention.position.absolute import LearnedPositions, sinusoidal
from attention.position.longer import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    MultimodalRotary,
    NTKScaling,
    YaRN,
    picture_places,
)
from attention.position.relative import (
    RelativeBias,
    alibi,
    alibi_slopes,
    relative_bucket,
)
from attention.position.rotary import (
    ProcessHeads,
    ProportionalScaling,
    QKNorm,
    Rotary,
    convert_pairing,
    rotary_frequencies,
    rotate,
)
from attention.reading.heads import ablate, head_scores
from attention.reading.language_model import (
    BytePairTokenizer,
    LanguageModel,
    generate,
    load_language_model,
    read_gguf,
)
from attention.reading.translator import attention_entropy, load_translator
from attention.scale.at_scale import AttentionSizes, Machine, attention_times
from attention.scale.context_parallel import (
    order_positions,
    ring_attend,
    shard,
    ulysses_attend,
    unshard,
)
from attention.scale.decode_parallel import ShardedCache, tree_attend
from attention.scale.tensor_parallel import parallelize_attention
from attention.speed.flash import flash_attend
from attention.speed.flash_cpp import cpp_attend
from attention.speed.flash_triton import triton_attend
from attention.speed.online_softmax import merge_states
from attention.tools.explorer import explore
from attention.tools.layouts import convert_state_dict, load_safetensors, load_weights
from attention.tools.maps import describe_weights, show_weights
from attention.tools.ranks import run_ranks
from attention.training.induction import (
    AttentionOnly,
    induction_score,
    previous_score,
)
from attention.training.small_gpt import GPT

__all__ = [  # noqa: RUF022  plainly sorted: GPT is a class, and no constant
    "AdditiveAttention",
    "Attend",
    "Attention",
    "AttentionOnly",
    "AttentionSizes",
    "BlockPool",
    "BytePairTokenizer",
    "CausalAttention",
    "CrossAttention",
    "DynamicNTKScaling",
    "GPT",
    "KVCache",
    "LanguageModel",
    "LatentAttention",
    "LearnedPositions",
    "LinearScaling",
    "Llama3Scaling",
    "Machine",
    "MultiHeadAttention",
    "MultimodalRotary",
    "NTKScaling",
    "PagedCache",
    "ProcessHeads",
    "ProportionalScaling",
    "QKNorm",
    "QuantizedCache",
    "RelativeBias",
    "RollingCache",
    "Rotary",
    "SelfAttention",
    "ShardedCache",
    "StackedHeads",
    "YaRN",
    "ablate",
    "accept",
    "additive_score",
    "alibi",
    "alibi_slopes",
    "and_masks",
    "attend",
    "attention_entropy",
    "attention_times",
    "attention_weights",
    "cache_bytes",
    "causal",
    "causal_mask",
    "convert_pairing",
    "convert_state_dict",
    "cpp_attend",
    "describe_weights",
    "document_mask",
    "explore",
    "flash_attend",
    "future_leak",
    "generate",
    "head_scores",
    "induction_score",
    "load_language_model",
    "load_safetensors",
    "load_translator",
    "load_weights",
    "merge_states",
    "order_positions",
    "padding_mask",
    "parallelize_attention",
    "picture_places",
    "pool_heads",
    "prefix",
    "previous_score",
    "read_gguf",
    "relative_bucket",
    "ring_attend",
    "rotary_frequencies",
    "rotate",
    "run_ranks",
    "shard",
    "show_weights",
    "simple_self_attention",
    "sinusoidal",
    "softmax",
    "tree_attend",
    "tree_mask",
    "triton_attend",
    "ulysses_attend",
    "unshard",
    "weights_of",
    "window",
    "window_and_sinks",
]


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version  # asked for seldom

    try:
        return version("building-attention")
    except PackageNotFoundError:
        why = "`attention` was imported without being installed: its version is unknown"
        raise AttributeError(why) from None
