"""Answers to the exercises of `tools/layouts`."""
# ruff: noqa: F821  the names are the chapter's


class by_projection:
    class right:
        def by_reshape(tensor, num_heads):
            rest = tensor.shape[1:]
            split = tensor.reshape(num_heads, 3, -1, *rest)
            return split.transpose(0, 1).reshape(-1, *rest)

        def by_chunks(tensor, num_heads):
            pieces = tensor.chunk(3 * num_heads)
            return torch.cat([piece for n in range(3) for piece in pieces[n::3]])

    class wrong:
        def as_it_is(tensor, num_heads):
            return tensor

        def the_other_way(tensor, num_heads):
            return rearrange(tensor, "(n h d) ... -> (h n d) ...", h=num_heads, n=3)

        def row_by_row(tensor, num_heads):
            return torch.cat([tensor[n::3] for n in range(3)])

        def heads_last(tensor, num_heads):
            return rearrange(tensor, "(h n d) ... -> (n d h) ...", h=num_heads, n=3)


class drop_biases:
    class right:
        def by_layer(state):
            new = {name: tensor.clone() for name, tensor in state.items()}
            layer = nn.functional.linear
            weight, bias = state["out_proj.weight"], state["out_proj.bias"]
            new["out_proj.bias"] = layer(state["W_value.bias"], weight, bias)
            new["W_key.bias"].zero_()
            new["W_value.bias"].zero_()
            return new

        def by_sum(state):
            moved = (state["out_proj.weight"] * state["W_value.bias"]).sum(dim=1)
            zeros = torch.zeros(len(moved))
            new = dict(state)
            new.update({"W_key.bias": zeros, "W_value.bias": zeros})
            new["out_proj.bias"] = moved + state["out_proj.bias"]
            return new

    class wrong:
        def values_lost(state):
            zeros = torch.zeros_like(state["W_key.bias"])
            return {**state, "W_key.bias": zeros, "W_value.bias": zeros}

        def not_projected(state):
            zeros = torch.zeros_like(state["W_key.bias"])
            bias = state["out_proj.bias"] + state["W_value.bias"]
            new = {"W_key.bias": zeros, "W_value.bias": zeros, "out_proj.bias": bias}
            return {**state, **new}

        def transposed(state):
            zeros = torch.zeros_like(state["W_key.bias"])
            moved = state["W_value.bias"] @ state["out_proj.weight"]
            bias = state["out_proj.bias"] + moved
            new = {"W_key.bias": zeros, "W_value.bias": zeros, "out_proj.bias": bias}
            return {**state, **new}

        def in_place(state):
            moved = state["out_proj.weight"] @ state["W_value.bias"]
            state["out_proj.bias"] += moved
            state["W_key.bias"].zero_()
            state["W_value.bias"].zero_()
            return state

        def queries_too(state):
            zeros = torch.zeros_like(state["W_key.bias"])
            moved = state["out_proj.weight"] @ state["W_value.bias"]
            new = {f"W_{name}.bias": zeros for name in ("query", "key", "value")}
            return {**state, **new, "out_proj.bias": state["out_proj.bias"] + moved}

        def keys_kept(state):
            moved = state["out_proj.weight"] @ state["W_value.bias"]
            zeros = torch.zeros_like(moved)
            bias = state["out_proj.bias"] + moved
            return {**state, "W_value.bias": zeros, "out_proj.bias": bias}

        def left_out(state):
            moved = state["out_proj.weight"] @ state["W_value.bias"]
            new = {**state, "out_proj.bias": state["out_proj.bias"] + moved}
            del new["W_key.bias"], new["W_value.bias"]
            return new


class from_kv:
    class right:
        def by_rows(state):
            both = state["kv_proj.weight"]
            half = len(both) // 2
            named = {"k_proj.weight": both[:half], "v_proj.weight": both[half:]}
            return named | {k: v for k, v in state.items() if k != "kv_proj.weight"}

        def by_split(state):
            state = dict(state)
            both = state.pop("kv_proj.weight")
            pair = both.clone().split(both.shape[0] // 2)
            state["k_proj.weight"], state["v_proj.weight"] = pair
            return state

        def by_rearrange(state):
            keys, values = rearrange(state["kv_proj.weight"], "(n d) i -> n d i", n=2)
            new = {"k_proj.weight": keys, "v_proj.weight": values}
            return {name: new.get(name, state.get(name)) for name in (*state, *new)
                    if name != "kv_proj.weight"}  # fmt: skip

    class wrong:
        def exchanged(state):
            values, keys = state["kv_proj.weight"].chunk(2)
            new = {"k_proj.weight": keys, "v_proj.weight": values}
            return new | {name: state[f"{name}"] for name in state if name[0] in "qo"}

        def turn_about(state):
            both = state["kv_proj.weight"]
            new = {"k_proj.weight": both[::2], "v_proj.weight": both[1::2]}
            return new | {name: state[f"{name}"] for name in state if name[0] in "qo"}

        def across(state):
            keys, values = state["kv_proj.weight"].chunk(2, dim=1)
            new = {"k_proj.weight": keys, "v_proj.weight": values}
            return new | {name: state[f"{name}"] for name in state if name[0] in "qo"}

        def in_place(state):
            both = state.pop("kv_proj.weight")
            state["k_proj.weight"], state["v_proj.weight"] = both.chunk(2)
            return state

        def the_old_name_kept(state):
            keys, values = state["kv_proj.weight"].chunk(2)
            return {**state, "k_proj.weight": keys, "v_proj.weight": values}

        def as_wide_as_the_queries(state):
            both, d = state["kv_proj.weight"], len(state["q_proj.weight"])
            new = {"k_proj.weight": both[:d], "v_proj.weight": both[d:]}
            return new | {name: state[f"{name}"] for name in state if name[0] in "qo"}

        def without_weight(state):
            keys, values = state["kv_proj.weight"].chunk(2)
            new = {"k_proj": keys, "v_proj": values}
            return new | {name: state[f"{name}"] for name in state if name[0] in "qo"}
