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


class train:
    class right:
        def another_recipe(places, tokens):
            torch.manual_seed(5)
            module = CrossAttention(5, 12, 1, d_context=8).to(tokens.device)
            readout = nn.Linear(12, 3).to(tokens.device)
            parameters = [*module.parameters(), *readout.parameters()]
            optimizer = torch.optim.AdamW(parameters, lr=0.02)
            asking = places.expand(len(tokens), -1, -1)
            context_input = torch.cat([tokens, asking], dim=-1)
            for _ in range(600):
                result = readout(module(asking, context_input))
                optimizer.zero_grad()
                nn.functional.mse_loss(result, tokens.flip(1)).backward()
                optimizer.step()
            return module

        def by_thought(places, tokens):
            module = CrossAttention(5, 5, 1, d_context=8).to(tokens.device)
            module.requires_grad_(False)
            module.W_query.weight.copy_(20 * torch.eye(5).flip(0))
            module.W_key.weight.zero_()
            module.W_key.weight[:, 3:] = torch.eye(5)
            return module

    class wrong:
        def untrained(places, tokens):
            return CrossAttention(5, 16, 1, d_context=8).to(tokens.device)

        def not_reversed(places, tokens):
            module = CrossAttention(5, 5, 1, d_context=8).to(tokens.device)
            module.requires_grad_(False)
            module.W_query.weight.copy_(20 * torch.eye(5))
            module.W_key.weight.zero_()
            module.W_key.weight[:, 3:] = torch.eye(5)
            return module

        def too_few_steps(places, tokens):
            torch.manual_seed(123)
            module = CrossAttention(5, 16, 1, d_context=8).to(tokens.device)
            readout = nn.Linear(16, 3).to(tokens.device)
            parameters = [*module.parameters(), *readout.parameters()]
            optimizer = torch.optim.Adam(parameters, lr=0.02)
            asking = places.expand(len(tokens), -1, -1)
            for _ in range(10):
                optimizer.zero_grad()
                result = readout(module(asking, torch.cat([tokens, asking], dim=-1)))
                (result - tokens.flip(1)).pow(2).mean().backward()
                optimizer.step()
            return module
