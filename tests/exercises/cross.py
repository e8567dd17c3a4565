"""Answers to the exercises of `core/cross`."""
# ruff: noqa: F821  the names are the chapter's


class output_shape:
    class right:
        def as_a_list(x, context_input, d_out):
            shape = list(x.shape)
            shape[-1] = d_out
            return shape

        def as_torch_size(x, context_input, d_out):
            return torch.Size([*x.shape[:-1], d_out])

    class wrong:
        def of_the_context(x, context_input, d_out):
            return (*context_input.shape[:-1], d_out)

        def of_the_input(x, context_input, d_out):
            return tuple(x.shape)

        def of_the_weights(x, context_input, d_out):
            return (*x.shape[:-1], context_input.shape[-2])

        def without_the_batch(x, context_input, d_out):
            return (x.shape[-2], d_out)


class summarise:
    class right:
        def one_by_one(inputs, latents, cross):
            return torch.stack([cross(latents, one) for one in inputs])

        def repeated(inputs, latents, cross):
            return cross(latents[None].repeat(inputs.shape[0], 1, 1), inputs)

        def in_float64(inputs, latents, cross):
            return torch.stack([cross(latents, one).double() for one in inputs])

    class wrong:
        def of_the_first(inputs, latents, cross):
            return cross(latents, inputs[0]).expand(len(inputs), -1, -1)

        def of_the_mean(inputs, latents, cross):
            return cross(latents, inputs.mean(dim=0)).expand(len(inputs), -1, -1)

        def without_the_batch(inputs, latents, cross):
            return cross(latents, inputs[0])

        def of_all_as_one(inputs, latents, cross):
            asked = cross(latents, inputs.flatten(0, 1))
            return asked.expand(len(inputs), -1, -1)

        def latents_averaged(inputs, latents, cross):
            answers = cross(latents.expand(len(inputs), -1, -1), inputs)
            return answers.mean(dim=1, keepdim=True)


class by_thought:
    class right:
        def keys_reversed(places):
            module = CrossAttention(5, 5, 1, d_context=8).requires_grad_(False)
            module.W_query.weight.copy_(5 * places)
            module.W_key.weight.zero_()
            module.W_key.weight[:, 3:] = 5 * places.flip(1)
            return module

        def by_loading(places):
            module = CrossAttention(5, 10, 1, d_context=8, qkv_bias=True)
            state = {
                name: torch.zeros_like(t) for name, t in module.state_dict().items()
            }
            for i in range(5):
                state["W_query.weight"][4 - i, i] = 30.0
                state["W_key.weight"][i, 3 + i] = 1.0
            module.load_state_dict(state)
            return module

        def trained(places):
            torch.manual_seed(5)
            module = CrossAttention(5, 12, 1, d_context=8)
            readout = nn.Linear(12, 3)
            parameters = [*module.parameters(), *readout.parameters()]
            optimizer = torch.optim.AdamW(parameters, lr=0.02)
            tokens, asking = torch.randn(64, 5, 3), places.expand(64, -1, -1)
            for _ in range(600):
                result = readout(module(asking, torch.cat([tokens, asking], dim=-1)))
                optimizer.zero_grad()
                nn.functional.mse_loss(result, tokens.flip(1)).backward()
                optimizer.step()
            return module

    class wrong:
        def untrained(places):
            return CrossAttention(5, 16, 1, d_context=8)

        def not_reversed(places):
            module = CrossAttention(5, 5, 1, d_context=8).requires_grad_(False)
            module.W_query.weight.copy_(20 * places)
            module.W_key.weight.zero_()
            module.W_key.weight[:, 3:] = places
            return module

        def too_even(places):
            module = CrossAttention(5, 5, 1, d_context=8).requires_grad_(False)
            module.W_query.weight.copy_(places.flip(0))
            module.W_key.weight.zero_()
            module.W_key.weight[:, 3:] = places
            return module

        def the_tokens_disturb(places):
            module = CrossAttention(5, 5, 1, d_context=8).requires_grad_(False)
            module.W_query.weight.copy_(20 * places.flip(0))
            module.W_key.weight[:, :3] = 1
            module.W_key.weight[:, 3:] = places
            module.W_key.weight[0, :3] = 3
            return module

        def places_first(places):
            module = CrossAttention(5, 5, 1, d_context=8).requires_grad_(False)
            module.W_query.weight.copy_(20 * places.flip(0))
            module.W_key.weight.zero_()
            module.W_key.weight[:, :5] = places
            return module
