"""Answers to the exercises of `core/scaled_dot_product`."""
# ruff: noqa: F821  the names are the chapter's


class count_parameters:
    class right:
        def in_one_matrix(d_in, d_out, qkv_bias):
            return (d_in + qkv_bias) * 3 * d_out

        def as_a_tensor(d_in, d_out, qkv_bias):
            return torch.tensor(3 * (d_in * d_out + qkv_bias * d_out))

    class wrong:
        def without_biases(d_in, d_out, qkv_bias):
            return 3 * d_in * d_out

        def always_biased(d_in, d_out, qkv_bias):
            return 3 * (d_in + 1) * d_out

        def one_layer(d_in, d_out, qkv_bias):
            return d_in * d_out + (d_out if qkv_bias else 0)

        def bias_of_the_input(d_in, d_out, qkv_bias):
            return 3 * (d_in * d_out + (d_in if qkv_bias else 0))

        def one_bias_in_all(d_in, d_out, qkv_bias):
            return 3 * d_in * d_out + (d_out if qkv_bias else 0)

        def by_building(d_in, d_out, qkv_bias):
            module = SelfAttention(d_in, d_out, qkv_bias)
            return sum(parameter.numel() for parameter in module.parameters())


class contrast:
    class right:
        def by_hand(d, scale):
            queries, keys = torch.randn(500, d), torch.randn(500, 16, d)
            scores = torch.einsum("id,ijd->ij", queries, keys) * scale
            weights = scores.softmax(dim=-1).sort(dim=-1).values
            return float((weights[:, -1] - weights[:, 0]).mean())

        def one_draw_of_keys(d, scale):
            queries, keys = torch.randn(500, d), torch.randn(16, d)
            weights = attention_weights(queries, keys, scale=scale)
            return (weights.amax(dim=-1) - weights.amin(dim=-1)).mean().item()

        def as_a_tensor(d, scale):
            torch.manual_seed(5)
            queries, keys = torch.randn(500, 1, d), torch.randn(500, 16, d)
            weights = softmax(queries @ keys.mT * scale)[:, 0]
            return (weights.max(dim=1).values - weights.min(dim=1).values).mean()

    class wrong:
        def the_largest_alone(d, scale):
            queries, keys = torch.randn(500, 1, d), torch.randn(500, 16, d)
            return attention_weights(queries, keys, scale=scale).amax(-1).mean().item()

        def over_all_queries(d, scale):
            queries, keys = torch.randn(500, 1, d), torch.randn(500, 16, d)
            weights = attention_weights(queries, keys, scale=scale)
            return (weights.max() - weights.min()).item()

        def of_the_scores(d, scale):
            queries, keys = torch.randn(500, 1, d), torch.randn(500, 16, d)
            scores = queries @ keys.mT * scale
            return (scores.amax(dim=-1) - scores.amin(dim=-1)).mean().item()

        def scaled_twice(d, scale):
            queries, keys = torch.randn(500, 1, d), torch.randn(500, 16, d)
            scores = queries @ keys.mT * scale
            weights = softmax(scores * d**-0.5)
            return (weights.amax(dim=-1) - weights.amin(dim=-1)).mean().item()

        def divided_by_the_scale(d, scale):
            queries, keys = torch.randn(500, 1, d), torch.randn(500, 16, d)
            weights = softmax(queries @ keys.mT / scale)
            return (weights.amax(dim=-1) - weights.amin(dim=-1)).mean().item()

        def ignores_the_scale(d, scale):
            queries, keys = torch.randn(500, 1, d), torch.randn(500, 16, d)
            weights = attention_weights(queries, keys)
            return (weights.amax(dim=-1) - weights.amin(dim=-1)).mean().item()

        def the_standard_deviation(d, scale):
            queries, keys = torch.randn(500, 1, d), torch.randn(500, 16, d)
            return attention_weights(queries, keys, scale=scale).std(-1).mean().item()

        def over_the_queries(d, scale):
            queries, keys = torch.randn(500, d), torch.randn(16, d)
            weights = attention_weights(queries, keys, scale=scale)
            return (weights.amax(dim=0) - weights.amin(dim=0)).mean().item()

        def positive_numbers(d, scale):
            queries, keys = torch.rand(500, 1, d), torch.rand(500, 16, d)
            weights = attention_weights(queries, keys, scale=scale)
            return (weights.amax(dim=-1) - weights.amin(dim=-1)).mean().item()


class train:
    class right:
        def with_another_optimizer(x, target):
            torch.manual_seed(3)
            module = SelfAttention(3, 3, qkv_bias=True).to(x.device)
            optimizer = torch.optim.AdamW(module.parameters(), lr=0.05)
            for _ in range(1500):
                loss = nn.functional.mse_loss(module(x), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return module

        def more_slowly(x, target):
            torch.manual_seed(123)
            module = SelfAttention(3, 3, True).to(x.device)
            optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
            for _ in range(2000):
                optimizer.zero_grad()
                (module(x) - target).square().sum().backward()
                optimizer.step()
            return module

    class wrong:
        def untrained(x, target):
            torch.manual_seed(123)
            return SelfAttention(3, 3, qkv_bias=True).to(x.device)

        def default_rate(x, target):
            torch.manual_seed(123)
            module = SelfAttention(3, 3, qkv_bias=True).to(x.device)
            optimizer = torch.optim.Adam(module.parameters())
            for _ in range(1000):
                optimizer.zero_grad()
                (module(x) - target).pow(2).mean().backward()
                optimizer.step()
            return module

        def towards_itself(x, target):
            torch.manual_seed(123)
            module = SelfAttention(3, 3, qkv_bias=True).to(x.device)
            optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
            for _ in range(300):
                optimizer.zero_grad()
                (module(x) - x).pow(2).mean().backward()
                optimizer.step()
            return module

        def the_target_itself(x, target):
            return lambda x: target

        def a_layer_that_does_not_attend(x, target):
            layer = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 3))
            layer = layer.to(x.device)
            optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
            for _ in range(50):
                optimizer.zero_grad()
                (layer(x) - target).pow(2).mean().backward()
                optimizer.step()
            return layer
