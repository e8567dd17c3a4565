"""Which public names attend, and why the others do not."""

import ast
import importlib
import inspect
import pkgutil
import textwrap

from torch import nn

import attention

from .mechanisms import MECHANISMS

MASK = "makes a mask"
CHECK = "checks its arguments"
SCORES = "compares queries and keys, and mixes no values"
CHECKPOINT = "moves weights, and computes nothing"
SHOW = "shows what was computed"

COUNTS = "counts, and mixes no values"
BIAS = "makes a bias of positions, and mixes no values"
TURNS = "turns queries and keys, and mixes no values"
CHANCES = "compares probabilities of tokens, and mixes no values"
PIECES = "turns text into numbers of pieces, and mixes no values"
MEASURES = "measures weights that a layer gives, and mixes no values"
TRAINS = "trains a model, and mixes no values"
ROUNDS = "rounds numbers one by one, and mixes none"
CUTS = "cuts a text between ranks, and mixes no values"
SENDS = "sends tensors to other ranks, and mixes none"
SPREADS = "hands a layer that attends to several ranks; its own tests compare the two"

OTHERS = {
    "BLUE": SHOW,
    "BROWN": SHOW,
    "GREY": SHOW,
    "TEAL": SHOW,
    "DynamicNTKScaling": TURNS,
    "LinearScaling": TURNS,
    "Llama3Scaling": TURNS,
    "NTKScaling": TURNS,
    "ProportionalScaling": TURNS,
    "Scaling": TURNS,
    "YaRN": TURNS,
    "counted_in_order": CHECK,
    "check_factor": CHECK,
    "check_placed": CHECK,
    "check_places": CHECK,
    "check_rotary": CHECK,
    "check_speeds": CHECK,
    "check_turn": CHECK,
    "check_turns": CHECK,
    "convert_pairing": CHECKPOINT,
    "check_poolable": CHECK,
    "check_pooled": CHECK,
    "mean_head": CHECKPOINT,
    "pool_heads": CHECKPOINT,
    "normalised": "brings vectors to one size, and mixes no values",
    "ntk_base": TURNS,
    "picture_places": COUNTS,
    "rotary_frequencies": TURNS,
    "rotate": TURNS,
    "yarn_factor": TURNS,
    "Explorer": SHOW,
    "Layout": CHECKPOINT,
    "Ledger": COUNTS,
    "Cache": "the promise of caches, which mix no values",
    "TwoPasses": "keeps what two passes share, and mixes no values",
    "additive_score": SCORES,
    "alibi": BIAS,
    "alibi_slopes": BIAS,
    "distances": BIAS,
    "relative_bucket": BIAS,
    "relative_shift": BIAS,
    "all_finite": CHECK,
    "and_masks": MASK,
    "as_maps": CHECK,
    "assemble": CHECKPOINT,
    "attention_cost": COUNTS,
    "attention_entropy": SHOW,
    "axis_names": SHOW,
    "canvas": SHOW,
    "causal": MASK,
    "causal_mask": MASK,
    "check_bias": CHECK,
    "check_cache": CHECK,
    "check_context": CHECK,
    "check_fit": CHECK,
    "check_input": CHECK,
    "check_kind": CHECK,
    "check_layout": CHECK,
    "check_no_dropout": CHECK,
    "are_whole": CHECK,
    "check_positions": CHECK,
    "wants_gradient": CHECK,
    "check_sizes": CHECK,
    "check_slots": CHECK,
    "check_tensor": CHECK,
    "check_tensors": CHECK,
    "check_tokens": CHECK,
    "convert_state_dict": CHECKPOINT,
    "describe_weights": SHOW,
    "described": SHOW,
    "document_mask": MASK,
    "dot_product": SCORES,
    "draw_arrow": SHOW,
    "draw_boxes": SHOW,
    "draw_table": SHOW,
    "expected": CHECK,
    "explore": SHOW,
    "extended": "asks a cache, and mixes no values",
    "set_back": "asks a cache, and mixes no values",
    "future_leak": "measures another mechanism",
    "grade": SHOW,
    "ignore_saved_mask": CHECKPOINT,
    "in_order": CHECK,
    "load_safetensors": CHECKPOINT,
    "load_translator": CHECKPOINT,
    "load_weights": CHECKPOINT,
    "merge_states": "joins what two mechanisms gave, and reads no values",
    "name_width": SHOW,
    "nan_of": "finds what is not a number, and mixes no values",
    "padding_mask": MASK,
    "positions_of": "counts, and mixes no values",
    "prefix": MASK,
    "read_marian": CHECKPOINT,
    "has_numbers": CHECK,
    "check_form": CHECK,
    "check_pair": CHECK,
    "check_returned": CHECK,
    "is_number": CHECK,
    "own_number": "makes Python's numbers of others, and mixes no values",
    "own_numbers": "makes Python's numbers of others, and mixes no values",
    "is_size": CHECK,
    "id_list": CHECK,
    "is_whole": CHECK,
    "readable": CHECK,
    "share": SHOW,
    "show_weights": SHOW,
    "sinusoidal": "makes vectors of places, and mixes no values",
    "softmax": "makes weights of scores, and mixes no values",
    "spread": MASK,
    "step": SHOW,
    "surely": CHECK,
    "table_of": MASK,
    "traced": CHECK,
    "declare_operator": "names a form that is given, and mixes no values itself",
    "tiles": "cuts a table, and mixes no values",
    "told": SHOW,
    "visible": MASK,
    "clear_unseen": MASK,
    "what_is_seen": MASK,
    "are_groups": CHECK,
    "as_given": CHECK,
    "autocast_on": CHECK,
    "check_above": CHECK,
    "check_dropout": CHECK,
    "check_heads": CHECK,
    "check_window": CHECK,
    "dropout_now": CHECK,
    "first_order": CHECK,
    "precise": CHECK,
    "repeat_kv": "repeats heads, and mixes no values",
    "broadcast_heads": "repeats heads at most, and mixes no values",
    "scale_queries": CHECK,
    "second_derivative": CHECK,
    "check_scale": CHECK,
    "unified": CHECK,
    "Attend": "the protocol of forms, with no form of its own",
    "visible_token": SHOW,
    "well_formed": SHOW,
    "RollingCache": "remembers keys and values, and mixes none",
    "TOKEN_AXES": COUNTS,
    "check_counts": CHECK,
    "check_inside": CHECK,
    "window": MASK,
    "BlockPool": "is where caches keep what they remember, and mixes none",
    "PagedCache": "remembers keys and values, and mixes none",
    "Request": "a text and a number, and mixes no values",
    "Scheduler": "decides who is read next, and mixes no values",
    "block_names": "names tokens, and mixes no values",
    "blocks_for": COUNTS,
    "publish_prefix": "names blocks, and mixes no values",
    "reuse_prefix": "finds blocks, and mixes no values",
    "slots_of": COUNTS,
    "stack_tables": "lays tables side by side, and mixes no values",
    "wasted_slots": COUNTS,
    "window_and_sinks": MASK,
    "KVCache": "remembers keys and values, and mixes none",
    "check_piece": CHECK,
    "check_room": CHECK,
    "joined_positions": "lays positions in a row, and mixes no values",
    "frozen": "tells what inference mode made, and reads no values",
    "check_rollback": CHECK,
    "cache_bytes": COUNTS,
    "check_absorbable": CHECK,
    "latent_operations": COUNTS,
    "takes_scale": CHECK,
    "with_scale": "settles the scale of a form, and mixes no values",
    "QuantizedCache": "remembers keys and values, and mixes none",
    "check_bits": CHECK,
    "check_numbers": CHECK,
    "dequantize": ROUNDS,
    "quantize": ROUNDS,
    "accept": "chooses tokens, and mixes no values",
    "acceptance_rate": CHANCES,
    "check_draft": CHECK,
    "check_drafted": CHECK,
    "check_probabilities": CHECK,
    "expected_tokens": COUNTS,
    "residual": CHANCES,
    "tree_mask": MASK,
    "BytePairTokenizer": PIECES,
    "StoredTensors": CHECKPOINT,
    "build_language_model": CHECKPOINT,
    "chat_ids": PIECES,
    "chat_text": PIECES,
    "check_best": CHECK,
    "check_choice": CHECK,
    "caches_of": CHECK,
    "check_ids": CHECK,
    "check_stored": CHECK,
    "check_vocabulary": CHECK,
    "generate": "asks a model for one token after the other, and mixes no values",
    "language_model_path": CHECKPOINT,
    "load_language_model": CHECKPOINT,
    "next_probabilities": CHANCES,
    "read_gguf": CHECKPOINT,
    "split_text": PIECES,
    "with_bar": SHOW,
    "HeadScores": MEASURES,
    "ablate": "takes heads out of a model, and mixes no values",
    "attentions_of": CHECK,
    "check_head": CHECK,
    "check_instead": CHECK,
    "head_scores": MEASURES,
    "where_heads_look": MASK,
    "as_interface": "turns the arguments of a form, and mixes no values",
    "register_forms": "enters names in a table, and mixes no values",
    "induction_score": "measures another mechanism",
    "previous_score": "measures another mechanism",
    "repeated_tokens": "draws tokens, and mixes no values",
    "Characters": "numbers characters, and mixes no values",
    "Muon": TRAINS,
    "Recipe": TRAINS,
    "Training": TRAINS,
    "attention_slots": "fills slots of a mechanism, and mixes no values",
    "batch_at": TRAINS,
    "gpt_block": "makes a Block, and mixes no values",
    "held_out_loss": TRAINS,
    "keep": TRAINS,
    "learning_rate": TRAINS,
    "load_corpus": "reads a text, and mixes no values",
    "orthogonalised": TRAINS,
    "put_back": TRAINS,
    "read_checkpoint": TRAINS,
    "resume": TRAINS,
    "save_checkpoint": TRAINS,
    "learnt_and_held_out": TRAINS,
    "state_of": TRAINS,
    "text_loss": TRAINS,
    "train": TRAINS,
    "KeyBlock": CUTS,
    "Fitted": CHECK,
    "agree": CHECK,
    "block_of": CUTS,
    "blocks": CUTS,
    "check_documents": CHECK,
    "exchange": SENDS,
    "fit_call": CHECK,
    "flash_gradients": "finds gradients, and mixes no values",
    "from_all": SENDS,
    "heads_of": CUTS,
    "order_positions": CUTS,
    "order_ranges": CUTS,
    "place_in": CHECK,
    "post": SENDS,
    "ring_work": COUNTS,
    "run_ranks": "starts processes, and mixes no values",
    "scores_in": COUNTS,
    "shard": CUTS,
    "unshard": CUTS,
    "parallelize_attention": SPREADS,
    "ShardedCache": "remembers keys and values, and mixes none",
    "merge_tree": "joins what mechanisms gave, and reads no values",
    "main": "starts a program that measures, and mixes no values",
    "A100": COUNTS,
    "AttentionSizes": COUNTS,
    "AttentionTimes": COUNTS,
    "H100": COUNTS,
    "H800": COUNTS,
    "Machine": COUNTS,
    "attention_times": COUNTS,
    "ring_step": COUNTS,
}

# What attends, and cannot be asked so many questions.
ELSEWHERE = {
    "attend_tile": "one tile of flash_attend, from scores that are made already",
    "flash_state": "a part of flash_attend, with nothing checked; "
    "tests/speed/test_flash.py makes a whole of parts",
    "weights_through": "goes the way of `through`; tests of `LanguageModel` and `GPT`",
    "through": "goes through the blocks of a model; tests of `LanguageModel` and `GPT`",
    "weights_of": "shows the weights of a form; `shown` asks all modules for them",
    "paged_attend": "reads keys that lie in blocks, for one query of each text; "
    "tests/memory/test_paged.py compares it with `attend`",
    "triton_paged_attend": "the same, interpreted, in tests/memory/test_paged.py",
    "triton_attend": "interpreted, a call takes a tenth of a second; "
    "tests/speed/test_flash_triton.py asks it the same",
}

# Modules that attend through a mechanism inside them, and by no sum of their own.
AROUND = {
    "Block": "Attention",
    "AttentionOnly": "Attention",
    "DecoderLayer": "CrossAttention",
    "EncoderLayer": "CrossAttention",
    "LanguageModel": "Block",
    "GPT": "Block",
    "LearnedPositions": "none: it adds a vector to each token",
    "RelativeBias": "none: it makes a bias of positions",
    "MultimodalRotary": f"none: {TURNS}",
    "ProcessHeads": f"none: {TURNS}",
    "QKNorm": f"none: {TURNS}",
    "RMSNorm": "none: it normalises vectors",
    "Rotary": f"none: {TURNS}",
    "SimplerSimpleRecurrentUnit": "none: a state goes from step to step",
    "SwiGLU": "none: a small network for each token",
    "Translator": "EncoderLayer and DecoderLayer",
}


def public() -> dict[str, object]:
    """Every name in an `__all__` of the package or of one of its modules."""
    found = {name: getattr(attention, name) for name in attention.__all__}
    for info in pkgutil.walk_packages(attention.__path__, "attention."):
        module = importlib.import_module(info.name)
        found |= {
            name: getattr(module, name) for name in getattr(module, "__all__", ())
        }
    return found


def unaccounted() -> set[str]:
    """Public names that are neither a mechanism nor in a table above."""
    covered = {id(mechanism.covers) for mechanism in MECHANISMS}
    names = {name for name, thing in public().items() if id(thing) not in covered}
    return names - set(OTHERS) - set(ELSEWHERE) - set(AROUND)


def attends_by_itself(thing) -> set[str]:
    """What a class calls, of all that attention could be written with."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    used = {func.id for func in called if isinstance(func, ast.Name)}
    used |= {func.attr for func in called if isinstance(func, ast.Attribute)}
    used |= {"@" for node in ast.walk(tree) if isinstance(node, ast.MatMult)}
    products = {"@", "matmul", "mm", "bmm", "einsum", "baddbmm"}
    named = {"softmax", "exp", "attend", "scaled_dot_product_attention"}
    return used & (products | named)


def seems_to_attend(thing) -> bool:
    """A module, or a function that makes numbers of values or of a sequence."""
    if not callable(thing):  # a colour, or a machine
        return False
    if inspect.isclass(thing):
        return issubclass(thing, nn.Module)
    signature = inspect.signature(thing)
    numbers = "Float" in str(signature.return_annotation)
    return numbers and bool({"values", "x"} & set(signature.parameters))
