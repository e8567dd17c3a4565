"""Answers to the exercises of `core/multi_head`."""
# ruff: noqa: F821  the names are the chapter's


class two_numbers:
    class right:
        def by_name():
            sizes = {"d_in": 3, "d_out": 1, "context_length": 6}
            return StackedHeads(**sizes, dropout=0.0, num_heads=2)

        def with_a_bias():
            return StackedHeads(3, 2 // 2, 6, 0.0, 2, qkv_bias=True)

    class wrong:
        def as_before():
            return StackedHeads(3, 2, 6, 0.0, num_heads=2)

        def one_head():
            return StackedHeads(3, 2, 6, 0.0, num_heads=1)

        def four_heads():
            return StackedHeads(3, 1, 6, 0.0, num_heads=4)

        def longer():
            return StackedHeads(3, 1, 1024, 0.0, num_heads=2)

        def with_dropout():
            return StackedHeads(3, 1, 6, 0.5, num_heads=2)

        def for_narrower_tokens():
            return StackedHeads(2, 1, 6, 0.0, num_heads=2)

        def not_stacked():
            return MultiHeadAttention(3, 2, 6, 0.0, num_heads=2)


class silence:
    class right:
        def by_its_values(module, head):
            rows = slice(head * module.head_dim, (head + 1) * module.head_dim)
            module.W_value.weight[rows] = 0
            if module.W_value.bias is not None:
                module.W_value.bias[rows] = 0

        def by_a_view(module, head):
            width = module.head_dim
            module.out_proj.weight.unflatten(1, (-1, width))[:, head] = 0

        def by_a_mask(module, head):
            keep = torch.ones(module.num_heads)
            keep[head] = 0
            module.out_proj.weight.mul_(keep.repeat_interleave(module.head_dim))

    class wrong:
        def rows_for_columns(module, head):
            start = head * module.head_dim
            module.out_proj.weight[start : start + module.head_dim] = 0

        def one_column(module, head):
            module.out_proj.weight[:, head] = 0

        def counts_from_one(module, head):
            start = (head - 1) * module.head_dim
            columns = [c % 6 for c in range(start, start + module.head_dim)]
            module.out_proj.weight[:, columns] = 0

        def its_queries(module, head):
            start = head * module.head_dim
            module.W_query.weight[start : start + module.head_dim] = 0

        def the_bias_of_all(module, head):
            start = head * module.head_dim
            module.out_proj.weight[:, start : start + module.head_dim] = 0
            module.out_proj.bias.zero_()

        def forgets_the_bias_of_the_values(module, head):
            start = head * module.head_dim
            module.W_value.weight[start : start + module.head_dim] = 0

        def with_a_bias_alone(module, head):
            rows = slice(head * module.head_dim, (head + 1) * module.head_dim)
            if module.W_value.bias is not None:
                module.W_value.bias[rows] = 0
                module.W_value.weight[rows] = 0

        def in_a_copy(module, head):
            from copy import deepcopy

            start, module = head * module.head_dim, deepcopy(module)
            module.out_proj.weight[:, start : start + module.head_dim] = 0
            return module

        def every_head(module, head):
            module.out_proj.weight.zero_()

        def always_the_second(module, head):
            module.out_proj.weight[:, 2:4] = 0


class merge:
    class right:
        def by_copying(stacked):
            heads = stacked.heads
            first, width = heads[0], heads[0].W_query.out_features * len(heads)
            biased = first.W_key.bias is not None
            sizes = (first.d_in, width, first.context_length, first.dropout.p)
            merged = MultiHeadAttention(*sizes, len(heads), biased)
            merged.requires_grad_(False)
            for name in ("W_query", "W_key", "W_value"):
                layer = getattr(merged, name)
                layers = [getattr(head, name) for head in heads]
                layer.weight.copy_(torch.cat([each.weight for each in layers]))
                if biased:
                    layer.bias.copy_(torch.cat([each.bias for each in layers]))
            nn.init.eye_(merged.out_proj.weight)
            nn.init.zeros_(merged.out_proj.bias)
            return merged

        def head_by_head(stacked):
            head, h = stacked.heads[0], len(stacked.heads)
            d = head.W_query.out_features
            sizes = (head.d_in, h * d, head.context_length, head.dropout.p, h)
            merged = MultiHeadAttention(*sizes, qkv_bias=head.W_query.bias is not None)
            with torch.no_grad():
                for place, one in enumerate(stacked.heads):
                    rows = slice(place * d, (place + 1) * d)
                    for name, tensor in one.named_parameters():
                        merged.get_parameter(name)[rows] = tensor
                merged.out_proj.weight.copy_(torch.eye(h * d))
                merged.out_proj.bias.fill_(0.0)
            return merged

    class wrong:
        def projection_left(stacked):
            head, h = stacked.heads[0], len(stacked.heads)
            d_out, bias = h * head.W_query.out_features, head.W_query.bias is not None
            sizes = (head.d_in, d_out, head.context_length, head.dropout.p, h, bias)
            merged = MultiHeadAttention(*sizes)
            states = [one.state_dict() for one in stacked.heads]
            state = {name: torch.cat([s[name] for s in states]) for name in states[0]}
            merged.load_state_dict(state, strict=False)
            return merged

        def bias_of_the_projection_left(stacked):
            head, h = stacked.heads[0], len(stacked.heads)
            d_out, bias = h * head.W_query.out_features, head.W_query.bias is not None
            sizes = (head.d_in, d_out, head.context_length, head.dropout.p, h, bias)
            merged = MultiHeadAttention(*sizes)
            states = [one.state_dict() for one in stacked.heads]
            state = {name: torch.cat([s[name] for s in states]) for name in states[0]}
            state["out_proj.weight"] = torch.eye(d_out)
            merged.load_state_dict(state, strict=False)
            return merged

        def heads_reversed(stacked):
            head, h = stacked.heads[0], len(stacked.heads)
            d_out, bias = h * head.W_query.out_features, head.W_query.bias is not None
            sizes = (head.d_in, d_out, head.context_length, head.dropout.p, h, bias)
            merged = MultiHeadAttention(*sizes)
            states = [one.state_dict() for one in reversed(stacked.heads)]
            state = {name: torch.cat([s[name] for s in states]) for name in states[0]}
            state["out_proj.weight"] = torch.eye(d_out)
            state["out_proj.bias"] = torch.zeros(d_out)
            merged.load_state_dict(state)
            return merged

        def one_wide_head(stacked):
            head, h = stacked.heads[0], len(stacked.heads)
            d_out, bias = h * head.W_query.out_features, head.W_query.bias is not None
            sizes = (head.d_in, d_out, head.context_length, head.dropout.p, 1, bias)
            merged = MultiHeadAttention(*sizes)
            states = [one.state_dict() for one in stacked.heads]
            state = {name: torch.cat([s[name] for s in states]) for name in states[0]}
            state["out_proj.weight"] = torch.eye(d_out)
            state["out_proj.bias"] = torch.zeros(d_out)
            merged.load_state_dict(state)
            return merged

        def without_dropout(stacked):
            head, h = stacked.heads[0], len(stacked.heads)
            d_out, bias = h * head.W_query.out_features, head.W_query.bias is not None
            sizes = (head.d_in, d_out, head.context_length, 0.0, h, bias)
            merged = MultiHeadAttention(*sizes)
            states = [one.state_dict() for one in stacked.heads]
            state = {name: torch.cat([s[name] for s in states]) for name in states[0]}
            state["out_proj.weight"] = torch.eye(d_out)
            state["out_proj.bias"] = torch.zeros(d_out)
            merged.load_state_dict(state)
            return merged

        def another_context_length(stacked):
            head, h = stacked.heads[0], len(stacked.heads)
            d_out, bias = h * head.W_query.out_features, head.W_query.bias is not None
            merged = MultiHeadAttention(head.d_in, d_out, 6, head.dropout.p, h, bias)
            states = [one.state_dict() for one in stacked.heads]
            state = {name: torch.cat([s[name] for s in states]) for name in states[0]}
            state["out_proj.weight"] = torch.eye(d_out)
            state["out_proj.bias"] = torch.zeros(d_out)
            merged.load_state_dict(state)
            return merged

        def the_stack_itself(stacked):
            return stacked

        def empties_the_stack(stacked):
            head, h = stacked.heads[0], len(stacked.heads)
            d_out = h * head.W_query.out_features
            sizes = (head.d_in, d_out, head.context_length, head.dropout.p, h)
            for parameter in stacked.parameters():
                parameter.data.zero_()
            merged = MultiHeadAttention(*sizes)
            for parameter in merged.parameters():
                parameter.data.zero_()
            return merged
