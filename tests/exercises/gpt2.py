"""Answers to the exercises of `core/gpt2`."""
# ruff: noqa: F821  the names are the chapter's


class block_parameters:
    class right:
        def as_a_polynomial(d):
            return 12 * d**2 + 13 * d

        def as_a_tensor(d):
            return torch.tensor(12 * d**2 + 13 * d)

        def layer_by_layer(d):
            layers = [(d, d)] * 4 + [(d, 4 * d), (4 * d, d)]
            return sum(rows * columns + columns for rows, columns in layers) + 4 * d

    class wrong:
        def without_biases(d):
            return 12 * d * d + 4 * d

        def one_norm(d):
            return 12 * d * d + 11 * d

        def norms_without_shift(d):
            return 12 * d * d + 11 * d

        def three_matrices(d):
            return 11 * d * d + 12 * d

        def both_biases_wide(d):
            return 12 * d * d + 16 * d


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
